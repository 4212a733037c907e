"""The sweep and the fuzz: a scenario, cancelled at every point, and under many schedules."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from sluicegate.testing._sweeps.arguments import (
    choose,
    chosen_at,
    chosen_kinds,
    chosen_seeds,
    name_of,
    new_staging,
    positive,
)
from sluicegate.testing._sweeps.leftovers import freeze_what_stays, small_heap
from sluicegate.testing._sweeps.running import TrialRun, Undisturbed, failure_of, run_once
from sluicegate.testing._sweeps.trial import (
    KINDS,
    MODES,
    At,
    InjectedError,
    Kind,
    Outcome,
    Scenario,
    ScenarioFailure,
)
from sluicegate.testing._sweeps.virtual import refuse_running_loop


if TYPE_CHECKING:
    from sluicegate.testing._sweeps.stage import Staging


#: How many further runs the search for an earlier position may take.
SHRINK_RUNS: Final = 500

Check = Callable[[Outcome], Any]
Raises = type[BaseException] | tuple[type[BaseException], ...]


@attrs.define
class SweepReport:
    """What a sweep or a fuzz has run, all of it well."""

    runs: int = 0
    """How many runs there were, the undisturbed ones among them."""
    positions: int = 0
    """At how many of them the scenario was struck."""
    sampled: bool = False
    """Whether there were more positions than the limit, so that some were left out."""
    lines: list[str] = attrs.Factory(list[str])
    """For each event loop, kind and seed, what was run."""

    def __str__(self) -> str:
        return "\n".join(self.lines)


def sweep(
    scenario: Scenario,
    *,
    backends: str | Sequence[str] = "trio",
    kinds: str | Sequence[str] | None = None,
    modes: str | Sequence[str] = MODES,
    target: str | None = None,
    twice: bool = False,
    error: BaseException | type[BaseException] = InjectedError,
    seeds: int | Iterable[int] = (0,),
    at: At | str | int | None = None,
    limit: int = 500,
    within: float = 60.0,
    raises: Raises = (),
    check: Check | None = None,
    allow: str | Collection[str] = (),
    fresh: bool = True,
    keep_going: bool = False,
) -> SweepReport:
    """Run an async function again and again, each time cancelled at the next possible moment.

    A moment lies between two steps of tasks: one has just blocked (*park*), or is about to go on
    (*wake*: what it waited for is there, and it has not run yet; races live here). The scenario is
    run once undisturbed, then once for each moment, until there is none left; each in an event
    loop of its own with virtual time and a schedule that repeats.

    After each run these must hold: it has ended within ``within`` virtual seconds; it has left no
    task, thread, open async generator and no ``ResourceWarning``, ``RuntimeWarning`` or exception
    that nobody could catch; channels are closed that the undisturbed run closes; a cancellation
    that reached it has left it; nothing else has, but ``raises``; the check passes; and the
    scenario, run again in the same event loop, works.

    Args:
        scenario: An async function without arguments, or with one: the :class:`Trial`. It makes
            what it uses, for it is called again and again.
        backends: The event loops: ``"trio"``, ``"asyncio"``, or both.
        kinds: How it is cancelled. ``"scope"``: by a cancel scope around it, Trio's or AnyIO's.
            ``"native"``: by ``Task.cancel()``. ``"timeout"``: by an ``asyncio.timeout``.
            ``"deadline"``: the clock jumps to the scope's deadline, past all timers before it, but
            past no time limit of a shielded clean-up that is under way.
            ``"interrupt"``: by a KeyboardInterrupt that comes while the event loop's own code runs:
            Trio raises it in the main task, and asyncio's runner cancels that one natively. ``"error"``: not at all; a task's await raises
            ``error``. ``"all"``: by each of these. Default: scope, on asyncio native too.
        modes: ``"park"``, ``"wake"``, or both.
        target: What is cancelled, instead of the whole scenario: the name of tasks, or of blocks
            of :meth:`Trial.target`, or a pattern (``"worker-*"``, ``"*"`` for any task). At a
            moment of its own a target is cancelled alone. At a moment of another task all targets
            are cancelled together, so a pattern strikes several tasks in one run.
        twice: Whether each run is followed by those in which the whole scenario is cancelled a
            second time, at each later moment (by an outer scope on Trio, natively on asyncio).
        error: What kind ``"error"`` raises: an exception, or the class of one.
        seeds: The schedules: a number of them, or the seeds. Seed 0 is asyncio's own order, and
            on Trio that in which tasks were spawned.
        at: TrialRun only this: what a failure printed, or a position.
        limit: How many positions are run at most for an event loop, kind and seed. Of more, the
            first half of that number is run, and a sample of the others; the report says so. With
            ``twice`` about as many further runs are made.
        within: Within how many virtual seconds a cancelled scenario has to end.
        raises: What may leave the scenario besides the cancellation: a class of exceptions, or
            several.
        check: Called with the :class:`Outcome` of every run, inside the event loop; may be async;
            raises (or returns False) if something is wrong. Default: the scenario's own attribute
            ``check``, if it has one.
        allow: What may be left: any of ``"task"``, ``"thread"``, ``"generator"``, ``"channel"``,
            ``"warning"``; and ``"swallowed"``.
        fresh: Whether the scenario is run again after each cancelled run.
        keep_going: Whether the runs go through to the last after one has failed. The failure then
            is that of the first, with a count of the others, grouped by what is wrong.

    Returns:
        What was run.

    Raises:
        ScenarioFailure: A run broke one of these: the earliest one, but that of a sample only the
            500 positions behind the first half are looked through.
        RuntimeError: An event loop runs in this thread.
        TypeError: An argument is of the wrong kind.
        ValueError: An argument names nothing that there is.
    """
    refuse_running_loop("sweep")
    staging = new_staging(
        scenario,
        modes=choose("modes", modes, MODES),
        target=target,
        error=error,
        within=within,
        raises=raises,
        check=check,
        allow=allow,
        fresh=fresh,
    )
    chosen = choose("backends", backends, tuple(KINDS))
    positive("limit", limit, "a number of runs")
    sweeping = _Sweeping(staging, "sweep", limit, twice=twice, keep_going=keep_going)
    ways = {backend: chosen_kinds(backend, kinds, chosen) for backend in chosen}
    wanted = chosen_seeds(seeds)
    token, position = chosen_at(at)
    with small_heap():
        if token is not None:
            sweeping.replay(token)
            sweeping.conclude()
            return sweeping.report
        for backend in chosen:
            for seed in wanted:
                sweeping.sweep(backend, ways[backend], seed, position)
    sweeping.conclude()
    sweeping.refuse_nothing(position)
    return sweeping.report


def fuzz(
    scenario: Scenario,
    *,
    seeds: int | Iterable[int] = 100,
    backends: str | Sequence[str] = "trio",
    cancel: bool | str | Sequence[str] = False,
    target: str | None = None,
    at: At | str | int | None = None,
    within: float = 60.0,
    raises: Raises = (),
    check: Check | None = None,
    allow: str | Collection[str] = (),
    fresh: bool = False,
    keep_going: bool = False,
) -> SweepReport:
    """Run an async function under many schedules, each of which can be repeated.

    A seed decides which of the tasks that could run goes first. What must hold after each run is
    what :func:`sweep` says.

    Args:
        scenario: As for :func:`sweep`, and so is what is not described here.
        seeds: How many schedules, beginning with seed 0; or their seeds.
        backends: The event loops: ``"trio"``, ``"asyncio"``, or both.
        cancel: Whether each run is also cancelled, at a moment that its seed decides: True, or in
            which ways (the kinds of :func:`sweep`).
        target: What is cancelled.
        at: TrialRun only this: what a failure printed, or a seed.
        within: Within how many virtual seconds a cancelled scenario has to end.
        raises: What may leave the scenario.
        check: What is called with the outcome of every run.
        allow: What may be left.
        fresh: Whether the scenario is run again after each cancelled run.
        keep_going: Whether the runs go through to the last after one has failed. The failure then
            is that of the first, with a count of the others, grouped by what is wrong.

    Returns:
        What was run.

    Raises:
        ScenarioFailure: A run broke an invariant. If cancelling it was not needed for that, or an
            earlier moment will do, the failure tells of that run.
        RuntimeError: An event loop runs in this thread.
        TypeError: An argument is of the wrong kind.
        ValueError: An argument names nothing that there is.
    """
    refuse_running_loop("fuzz")
    staging = new_staging(
        scenario,
        modes=MODES,
        target=target,
        error=InjectedError,
        within=within,
        raises=raises,
        check=check,
        allow=allow,
        fresh=fresh,
    )
    chosen = choose("backends", backends, tuple(KINDS))
    fuzzing = _Sweeping(staging, "fuzz", SHRINK_RUNS, twice=False, keep_going=keep_going)
    ways: dict[str, tuple[Kind, ...]] = {
        backend: ()
        if cancel is False
        else chosen_kinds(backend, None if cancel is True else cancel, chosen)
        for backend in chosen
    }
    token, seed = chosen_at(at)
    wanted = chosen_seeds(seeds if seed is None else [seed])
    with small_heap():
        if token is not None:
            fuzzing.replay(token)
            fuzzing.conclude()
            return fuzzing.report
        for backend in chosen:
            fuzzing.fuzz(backend, wanted, ways[backend])
    fuzzing.conclude()
    if cancel is not False:
        fuzzing.refuse_nothing(None)
    return fuzzing.report


class _Sweeping:
    """The runs of one call, counted; the first that fails ends it.

    Args:
        staging: The scenario.
        call: ``"sweep"`` or ``"fuzz"``, for the failure.
        limit: See :func:`sweep`.
        twice: See :func:`sweep`.
        keep_going: See :func:`sweep`.
    """

    def __init__(
        self, staging: Staging, call: str, limit: int, *, twice: bool, keep_going: bool
    ) -> None:
        self._staging = staging
        self._call = call
        self._limit = limit
        self._twice = twice
        self._undisturbed: Undisturbed | None = None
        self._most = 0
        self._names: set[str] = set()
        self._keeps_going = keep_going
        self._first: ScenarioFailure | None = None
        #: The texts of the runs that failed, by what is wrong; those after the first.
        self._failed: dict[str, list[str]] = {}
        self.report = SweepReport()

    def _run(self, at: At) -> TrialRun:
        self.report.runs += 1
        run = run_once(self._staging, at, self._undisturbed)
        self.report.positions += run.struck
        return run

    def _check(self, run: TrialRun) -> TrialRun:
        if run.problem:
            if self._first is not None:
                self._count(run)
                return run
            positions = 0 if self._undisturbed is None else self._undisturbed.moments
            name = name_of(self._staging.scenario)
            failure = failure_of(run, name, self._call, positions, self._options(run.at))
            if not self._keeps_going:
                raise failure
            # What hangs on it would be taken for what a later run has left.
            failure.outcome = failure.__cause__ = None
            self._first = failure
            self._count(run)
        return run

    def _count(self, run: TrialRun) -> None:
        what = run.problem.partition("\n")[0]
        self._failed.setdefault(what, []).append(str(run.at))
        run.outcome = run.error = None

    def conclude(self) -> None:
        """End runs that went on after a failure.

        Raises:
            ScenarioFailure: A run has failed.
        """
        first = self._first
        if first is None:
            return
        failed = tuple(at for runs in self._failed.values() for at in runs)
        lines = [f"{len(failed)} of {self.report.runs} runs failed:"]
        for what, runs in sorted(self._failed.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(runs)} x {what} (first: {runs[0]})")
        text = "\n".join([str(first), "", *lines])
        raise ScenarioFailure(text, problem=first.problem, at=first.at, outcome=None, failed=failed)

    def _options(self, at: At) -> str:
        staging, error = self._staging, self._staging.error
        options = "" if staging.target is None else f"target={staging.target!r}, "
        if set(staging.modes) != set(MODES):
            options += f"modes={staging.modes[0]!r}, "
        if at.kind == "error" and error is not InjectedError:
            options += f"error={name_of(error) if isinstance(error, type) else repr(error)}, "
        if staging.raises:
            options += f"raises=({', '.join(map(name_of, staging.raises))},), "
        if staging.allow:
            options += f"allow={tuple(sorted(staging.allow))}, "
        if staging.check is not None and not hasattr(staging.scenario, "check"):
            options += f"check={name_of(staging.check)}, "
        return options

    def refuse_nothing(self, position: int | None) -> None:
        """Refuse to have struck nothing where something was asked for.

        Raises:
            ValueError: The scenario has no such position, or no such target.
        """
        staging = self._staging
        if staging.target is not None and not self._most:
            msg = (
                f"target={staging.target!r} was nowhere in {name_of(staging.scenario)}; expected "
                "the name of a task or of a block of trial.target(name), or a pattern: of "
                f"{', '.join(map(repr, sorted(self._names))) or 'which it has none'}"
            )
            raise ValueError(msg)
        if position is not None and not self.report.positions:
            raise self._not_reached(position, self._most)

    def _not_reached(self, at: str | int, most: int) -> ValueError:
        return ValueError(
            f"at={at!r} was not reached; expected a position up to {most}: "
            "the scenario has no more on this event loop, with this seed, target and these modes"
        )

    def _begin(self, backend: str, seed: int) -> Undisturbed:
        self._undisturbed = None
        run = self._check(self._run(At(backend, seed=seed)))
        found = Undisturbed(run.moments, closes_channels=not run.channels_left, warned=run.warned)
        self._undisturbed = found
        freeze_what_stays()
        self._most = max(self._most, found.moments)
        self._names |= run.names
        return found

    def _has_failed(self, backend: str, seed: int) -> bool:
        """Whether the undisturbed run has failed, so that the others would tell nothing."""
        at = str(At(backend, seed=seed))
        return any(at in runs for runs in self._failed.values())

    def replay(self, at: At) -> None:
        """Do one run, after the undisturbed one.

        Raises:
            ScenarioFailure: It fails.
            ValueError: The scenario has no such position.
        """
        self._begin(at.backend, at.seed)
        if at.kind is not None:
            run = self._check(self._run(at))
            if not run.struck:
                self.refuse_nothing(None)
                raise self._not_reached(str(at), run.moments)
            if at.again and not run.struck_again:
                msg = (
                    f"at={str(at)!r}: there was no second cancellation; expected it at one of the "
                    f"{max(0, run.moments - at.position)} positions after the first"
                )
                raise ValueError(msg)
        self.report.lines.append(f"{at}: one run")

    def sweep(self, backend: str, kinds: Iterable[Kind], seed: int, position: int | None) -> None:
        """Sweep one event loop with one seed.

        Raises:
            ScenarioFailure: A run fails.
        """
        self._begin(backend, seed)
        if self._has_failed(backend, seed):
            return
        for kind in kinds:
            if position is not None:
                self._strike(At(backend, kind, position, seed=seed))
                continue
            before, is_sampled, last = self.report.runs, False, 0
            for number, is_sample in self._positions():
                at = At(backend, kind, number, seed=seed)
                run = self._run(at)
                if run.problem:
                    is_searched = is_sample and not self._keeps_going
                    self._check(self._earliest(run) if is_searched else run)
                if not run.struck:
                    break
                last = number
                is_sampled |= is_sample
                if self._twice and not run.problem:
                    is_sampled |= self._strike_again(at, run.moments)
            self.report.sampled |= is_sampled
            self._tell(at=At(backend, kind, last, seed=seed), before=before, sampled=is_sampled)

    def _tell(self, at: At, before: int, *, sampled: bool) -> None:
        many = (
            self._undisturbed.moments if self._undisturbed is not None and sampled else at.position
        )
        text = f"{at.backend}, {at.kind}: {self.report.runs - before} runs, "
        text += f"a sample of {many} positions" if sampled else f"all of {many} positions"
        self.report.lines.append(text + (f", seed {at.seed}" if at.seed else ""))

    def _strike(self, at: At) -> None:
        self._check(self._run(at))
        self.report.lines.append(f"{at}: one run")

    def _positions(self) -> Iterator[tuple[int, bool]]:
        """Yield the positions to run, and whether they are a sample of what is left."""
        assert self._undisturbed is not None
        count, limit = self._undisturbed.moments, self._limit
        if count <= limit:
            # Of errors there are fewer: not every wait can raise one.
            yield from ((number, False) for number in range(1, limit + 1))
            return
        first = limit // 2
        yield from ((number, False) for number in range(1, first + 1))
        rest = random.Random(count).sample(range(first + 1, count + 1), limit - first)  # noqa: S311
        yield from ((number, True) for number in sorted(rest))

    def _strike_again(self, at: At, moments: int) -> bool:
        """Cancel a second time at the moments after the first; return whether it was a sample."""
        assert self._undisturbed is not None
        later = range(1, moments - at.position + 1)
        most = max(1, self._limit // max(1, self._undisturbed.moments))
        chosen = (
            later
            if len(later) <= most
            else sorted(
                random.Random(at.position).sample(later, most)  # noqa: S311 - it is to repeat
            )
        )
        for number in chosen:
            self._check(self._run(attrs.evolve(at, again=number)))
        return len(chosen) < len(later)

    def _earliest(self, run: TrialRun) -> TrialRun:
        """Look for an earlier position that fails as well."""
        known = self._limit // 2 if self._call == "sweep" else 0  # these have been run
        for number in range(known + 1, min(run.at.position, known + SHRINK_RUNS)):
            earlier = self._run(attrs.evolve(run.at, position=number))
            if earlier.problem:
                return earlier
        return run

    def fuzz(self, backend: str, seeds: Iterable[int], kinds: Sequence[Kind]) -> None:
        """Run one event loop with many seeds.

        Raises:
            ScenarioFailure: A run fails.
        """
        before, count = self.report.runs, 0
        for seed in seeds:
            count += 1
            found = self._begin(backend, seed)
            if kinds and found.moments and not self._has_failed(backend, seed):
                chance = random.Random(f"{backend} {seed}")  # noqa: S311 - it is to repeat
                at = At(backend, chance.choice(kinds), chance.randint(1, found.moments), seed=seed)
                run = self._run(at)
                if run.problem:
                    self._check(run if self._keeps_going else self._earliest(run))
        ways = f", cancelled by {', '.join(kinds)}" if kinds else ""
        self.report.lines.append(
            f"{backend}: {count} seeds, {self.report.runs - before} runs{ways}"
        )
