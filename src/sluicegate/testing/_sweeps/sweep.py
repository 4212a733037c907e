"""``sweep()`` cancels a scenario at every position; ``fuzz()`` runs it under many schedules."""

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
    CRASH,
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
    from sluicegate.testing._sweeps.crash import Loss
    from sluicegate.testing._sweeps.stage import Staging


#: How many further runs the search for an earlier position may take.
SHRINK_RUNS: Final = 500

Check = Callable[[Outcome], Any]
Raises = type[BaseException] | tuple[type[BaseException], ...]


@attrs.define
class SweepReport:
    """The runs of a sweep or a fuzz that passed."""

    runs: int = 0
    """The number of runs, including the undisturbed ones."""
    positions: int = 0
    """The number of runs in which the scenario was struck."""
    sampled: bool = False
    """Whether positions were skipped because there were more than the limit."""
    lines: list[str] = attrs.Factory(list[str])
    """A summary for each event loop, kind and seed."""

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
    loses: Loss = "pending",
    keep_going: bool = False,
) -> SweepReport:
    """Run an async function repeatedly, cancelling each run at the next possible moment.

    A moment lies between two steps of tasks: a task has just blocked (*park*), or is about to
    resume (*wake*: its wait is over and it has not run yet; races happen here). The scenario runs
    once undisturbed, then once for each moment. Each run has a new event loop with virtual time and
    a reproducible schedule.

    These conditions are checked after each run. It ended within ``within`` virtual seconds. It left
    no task, thread or open async generator, and no ``ResourceWarning``, ``RuntimeWarning`` or
    uncatchable exception. It closed the channels that the undisturbed run closes. A cancellation
    that reached the scenario left it, and so did no other exception, except those of ``raises``.
    The check passed. The scenario works when it is run again in the same event loop.

    Args:
        scenario: An async function without arguments, or with one: the :class:`Trial`. It creates
            everything it uses, because it is called once per run.
        backends: The event loops: ``"trio"``, ``"asyncio"``, or both.
        kinds: How it is cancelled. ``"scope"``: by a cancel scope around it, Trio's or AnyIO's.
            ``"native"``: by ``Task.cancel()``. ``"timeout"``: by an ``asyncio.timeout``.
            ``"deadline"``: the clock jumps to the scope's deadline, past all earlier timers, but
            not past the time limit of a shielded clean-up in progress.
            ``"interrupt"``: by a KeyboardInterrupt that arrives while the event loop's own code
            runs: Trio raises it in the main task, asyncio's runner cancels that task natively.
            ``"error"``: nothing is cancelled; a task's await raises ``error``.
            ``"all"``: each of these in turn. Default: scope, and native on asyncio.
            ``"crash"``: the process of the scenario dies, and starts again. Its life is cut off:
            ``trial.crash.ledger`` and the stores opened with ``trial.crash.store`` take nothing
            from it any more. It is cancelled and unwinds unobserved. Then the scenario is called
            again, as the main function of a new process would be, with the same store and ledger;
            the conditions are checked after this life. Not part of ``"all"``.
        modes: ``"park"``, ``"wake"``, or both.
        target: The part to cancel instead of the whole scenario: the name of tasks, or of blocks
            of :meth:`Trial.target`, or a pattern (``"worker-*"``, ``"*"`` for any task). At a
            moment of the target itself, only that target is cancelled. At a moment of another task
            all targets are cancelled together, so a pattern strikes several tasks in one run.
        twice: Whether each run is followed by runs in which the whole scenario is cancelled a
            second time, at each later moment (by an outer scope on Trio, natively on asyncio). A
            crash is followed by a second one in the next life.
        error: The exception, or exception class, that kind ``"error"`` raises.
        seeds: The schedules: a number of them, or the seeds. Seed 0 is asyncio's own order, and
            the order in which tasks were spawned on Trio.
        at: The only run to make: the text that a failure printed, or a position.
        limit: The maximum number of positions for an event loop, kind and seed. If there are more,
            the first ``limit / 2`` are run and a sample of the rest, and the report says so. With
            ``twice``, up to about as many runs are added.
        within: The virtual seconds within which a cancelled scenario has to end.
        raises: An exception class, or several, that may leave the scenario besides the
            cancellation.
        check: Called with the :class:`Outcome` of every run, inside the event loop; may be async.
            It raises (or returns False) if something is wrong. Default: the scenario's attribute
            ``check``, if it has one.
        allow: The leftovers to permit: any of ``"task"``, ``"thread"``, ``"generator"``,
            ``"channel"``, ``"warning"`` and ``"swallowed"``.
        fresh: Whether the scenario is run again after each cancelled run.
        loses: Which of the unconfirmed writes a crash loses: ``"pending"``, all of them; ``"half"``,
            the later half; ``"nothing"``, none: the process died after they were written and before
            the store confirmed them.
        keep_going: Whether to make all runs after one has failed. The failure raised is the first
            one, with a count of all, grouped by problem.

    Returns:
        A report of the runs.

    Raises:
        ScenarioFailure: A run broke a condition. It is the earliest such run; if positions were
            sampled, only the 500 positions after the first half are searched for an earlier one.
        RuntimeError: An event loop is running in this thread.
        TypeError: An argument has the wrong type.
        ValueError: An argument has an unknown value.
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
        loses=loses,
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
    """Run an async function under many reproducible schedules.

    A seed decides which of the runnable tasks runs first. The conditions of :func:`sweep` are
    checked after each run.

    Args:
        scenario: As for :func:`sweep`.
        seeds: The number of schedules, from seed 0 on; or their seeds.
        backends: The event loops: ``"trio"``, ``"asyncio"``, or both.
        cancel: Whether each run is also cancelled, at a moment that its seed decides: True, or the
            kinds of :func:`sweep` to choose from.
        target: The part to cancel; as for :func:`sweep`.
        at: The only run to make: the text that a failure printed, or a seed.
        within: The virtual seconds within which a cancelled scenario has to end.
        raises: The exception classes that may leave the scenario.
        check: Called with the outcome of every run; as for :func:`sweep`.
        allow: The leftovers to permit; as for :func:`sweep`.
        fresh: Whether the scenario is run again after each cancelled run.
        keep_going: As for :func:`sweep`.

    Returns:
        A report of the runs.

    Raises:
        ScenarioFailure: A run broke a condition. If the run fails without a cancellation or with an
            earlier one, that run is reported.
        RuntimeError: An event loop is running in this thread.
        TypeError: An argument has the wrong type.
        ValueError: An argument has an unknown value.
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
    """The runs of one call of ``sweep()`` or ``fuzz()``; the first failure ends it by default.

    Args:
        staging: The scenario.
        call: ``"sweep"`` or ``"fuzz"``; the failure names it.
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
        #: For each problem, the texts of the runs that had it.
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
            # Objects that it refers to would count as leftovers of a later run.
            failure.outcome = failure.__cause__ = None
            self._first = failure
            self._count(run)
        return run

    def _count(self, run: TrialRun) -> None:
        what = run.problem.partition("\n")[0]
        self._failed.setdefault(what, []).append(str(run.at))
        run.outcome = run.error = None

    def conclude(self) -> None:
        """Raise the first failure of runs made with ``keep_going``, with a summary of all.

        Raises:
            ScenarioFailure: A run failed.
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
        if at.kind == CRASH and staging.loses != "pending":
            options += f"loses={staging.loses!r}, "
        if staging.check is not None and not hasattr(staging.scenario, "check"):
            options += f"check={name_of(staging.check)}, "
        return options

    def refuse_nothing(self, position: int | None) -> None:
        """Check that the requested target or position was found.

        Raises:
            ValueError: The scenario has no such position, or no such target.
        """
        staging = self._staging
        if staging.target is not None and not self._most:
            msg = (
                f"target={staging.target!r} matches nothing in {name_of(staging.scenario)}; expected "
                "the name of a task or of a block of trial.target(name), or a pattern; the names "
                f"are {', '.join(map(repr, sorted(self._names))) or 'missing: it has none'}"
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
        """Whether the undisturbed run has failed, which makes the other runs meaningless."""
        at = str(At(backend, seed=seed))
        return any(at in runs for runs in self._failed.values())

    def replay(self, at: At) -> None:
        """Make one run, after the undisturbed one.

        Raises:
            ScenarioFailure: The run fails.
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
        """Yield each position to run, and whether it belongs to the sample."""
        assert self._undisturbed is not None
        count, limit = self._undisturbed.moments, self._limit
        if count <= limit:
            # Kind "error" has fewer positions, because not every wait can raise.
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
                random.Random(at.position).sample(later, most)  # noqa: S311 - reproducible
            )
        )
        for number in chosen:
            self._check(self._run(attrs.evolve(at, again=number)))
        return len(chosen) < len(later)

    def _earliest(self, run: TrialRun) -> TrialRun:
        """Search for an earlier position that fails as well."""
        known = self._limit // 2 if self._call == "sweep" else 0  # already run
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
                chance = random.Random(f"{backend} {seed}")  # noqa: S311 - reproducible
                at = At(backend, chance.choice(kinds), chance.randint(1, found.moments), seed=seed)
                run = self._run(at)
                if run.problem:
                    self._check(run if self._keeps_going else self._earliest(run))
        ways = f", cancelled by {', '.join(kinds)}" if kinds else ""
        self.report.lines.append(
            f"{backend}: {count} seeds, {self.report.runs - before} runs{ways}"
        )
