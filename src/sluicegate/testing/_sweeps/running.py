"""Runs a scenario once, in a new event loop, and judges the run."""

from __future__ import annotations

import gc
import inspect
import reprlib
import traceback
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from sluicegate.testing._sweeps.frames import CodePlace, tell_await
from sluicegate.testing._sweeps.leftovers import (
    Generators,
    LeftoverWatch,
    for_others,
    hold_for_good,
    leaves,
)
from sluicegate.testing._sweeps.stage import LONGEST, SPIN_STEPS
from sluicegate.testing._sweeps.trial import CRASH, At, Outcome, ScenarioFailure


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sluicegate.testing._sweeps.stage import Stage, Staging


#: The maximum number of other tasks that a failure shows.
MOST_BESIDE: Final = 12

_short = reprlib.Repr()
_short.maxother = _short.maxstring = 100

#: Warnings that always fail a run; others fail it only if the undisturbed run has none.
_LEFT_BEHIND = (ResourceWarning, RuntimeWarning)


@attrs.frozen
class Undisturbed:
    """The behaviour of the undisturbed run, with which the other runs are compared."""

    moments: int
    closes_channels: bool
    warned: Counter[tuple[type[Warning], str]]


@attrs.define
class TrialRun:
    """One run of a scenario, ended and judged."""

    at: At
    struck: bool = False
    struck_again: bool = False
    moments: int = 0
    #: The first problem; empty if there is none.
    problem: str = ""
    alive: list[str] = attrs.Factory(list[str])
    #: Where the other tasks were when it was struck.
    beside: list[tuple[str, list[CodePlace]]] = attrs.Factory(list[tuple[str, list[CodePlace]]])
    #: A description of how the scenario ended, kept after its outcome was dropped.
    then: str = ""
    outcome: Outcome | None = None
    error: BaseException | None = None
    channels_left: int = 0
    warned: Counter[tuple[type[Warning], str]] = attrs.Factory(Counter[tuple[type[Warning], str]])
    #: The names of all tasks and blocks that could have been targets.
    names: set[str] = attrs.Factory(set[str])

    def blame(self, problem: str) -> None:
        """Set the problem, unless there is one already."""
        if not self.problem:
            self.problem = problem


def new_stage(staging: Staging, at: At) -> Stage[Any]:
    """Return the stage for one run."""
    if at.backend == "trio":
        from sluicegate.testing._sweeps.trio_stage import TrioStage  # noqa: PLC0415 - imported on demand

        return TrioStage(staging, at)
    from sluicegate.testing._sweeps.asyncio_stage import (  # noqa: PLC0415 - imported on demand
        AsyncioStage,
    )

    return AsyncioStage(staging, at)


def run_once(staging: Staging, at: At, undisturbed: Undisturbed | None) -> TrialRun:
    """Run a scenario once, strike it at one moment, and judge the outcome.

    Args:
        staging: The scenario and its settings.
        at: Where to strike it.
        undisturbed: The behaviour of the undisturbed run; None if this is that run.
    """
    run = TrialRun(at)
    allow = staging.allow
    with getattr(staging.scenario, "around", nullcontext)(), LeftoverWatch() as watch:
        stage = new_stage(staging, at)
        try:
            cast("Any", stage).run(_main(stage, run))
        finally:
            if stage.strands:
                hold_for_good(stage.strands)
        run.moments = stage.moments
        run.struck = bool(stage.where)
        run.struck_again = stage.is_struck_again
        run.beside = stage.beside if staging.target is None else []
        if stage.stuck:
            run.alive = stage.alive
            run.blame(f"{_struck(stage)}{stage.stuck}")
            run.outcome = run.outcome or _unfinished(stage)
        complaints: list[str] = getattr(stage, "complaints", [])
        run.channels_left = watch.open_channels()
        if run.channels_left and undisturbed is not None and undisturbed.closes_channels:
            _blame_left(run, allow, "channel", f"{run.channels_left} ends of memory channels")
        watch.channels.clear()
        if "thread" not in allow and (threads := watch.threads_left()):
            run.blame(f"threads still working: {', '.join(threads)}")
        if not run.problem and run.outcome is not None:
            # Objects that a traceback refers to would not be collected.
            run.then = _then(run.outcome)
            run.outcome = attrs.evolve(run.outcome, value=None, error=None, state=None, ledger=())
            if stage.injected is not None:
                stage.injected.__traceback__ = stage.injected.__context__ = None
        run.names = stage.names
        del stage
        gc.collect()
        for complaint in complaints:
            run.blame(f"the event loop's exception handler was called: {complaint}")
        run.warned = watch.warned()
        if "warning" not in allow:
            _judge_warnings(run, undisturbed)
        for told in watch.unraisable:
            run.blame(f"an uncatchable exception: {told}")
    return run


def _main(stage: Stage[Any], run: TrialRun) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        with Generators() as generators:
            outcome = await stage.attempt(strikes=True)
            while stage.crash.is_cut and not stage.stuck:
                # Effects of the dead life while it unwound are not observed.
                outcome = await stage.attempt(strikes=True, crash=stage.crash.next_life())
            if stage.stuck:
                return
            run.outcome = outcome
            await _judge(stage, run, outcome, generators)
            is_again = stage.at.kind != CRASH and stage.staging.fresh
            if outcome.struck and is_again and not run.problem and not stage.stuck:
                fresh = await stage.attempt(strikes=False)
                if stage.stuck:
                    return
                await _judge(stage, run, fresh, generators)
                if run.problem:
                    run.problem = f"the fresh run after it failed: {run.problem}"

    return main


async def _judge(
    stage: Stage[Any], run: TrialRun, outcome: Outcome, generators: Generators
) -> None:
    __tracebackhide__ = True
    staging, allow = stage.staging, stage.staging.allow
    left = list(leaves(outcome.error))
    unexpected = [error for error in left if not _may_leave(stage, outcome, error)]
    # Failures beside an injected error are its consequences.
    if unexpected and (stage.injected is None or stage.injected not in left):
        run.error = outcome.error
        run.blame(f"{_struck(stage)}{_tell(unexpected[0])} left the scenario")
    elif (
        outcome.struck and stage.at.kind != CRASH and outcome.completed and "swallowed" not in allow
    ):
        _judge_swallowed(stage, run)
    _blame_left(run, allow, "generator", *generators.left_open())
    running = [
        strand.tell()
        for strand in list(stage.strands.values())
        # asyncio closes a dropped generator in a separate task.
        if strand is not stage.host and type(strand.coro).__name__ != "async_generator_athrow"
    ]
    running += [repr(task.name) for task in getattr(stage, "system", ())]
    _blame_left(run, allow, "task", *running)
    generators.dropped.clear()
    if staging.check is not None and not run.problem:
        stage.allow_time("the check", LONGEST, stage.steps + SPIN_STEPS * 49)
        try:
            verdict = staging.check(outcome)
            if inspect.isawaitable(verdict):
                verdict = await verdict
        except BaseException as error:  # noqa: ASYNC103 - judged here
            if stage.stuck or for_others(error) is not None:
                raise
            run.error = error
            run.blame(f"the check failed: {_tell(error)}")
        else:
            if verdict is False:
                run.blame("the check failed: it returned False")


def _judge_swallowed(stage: Stage[Any], run: TrialRun) -> None:
    if stage.swallowed:
        run.blame(f"the cancellation was swallowed: block {stage.swallowed!r} ran to its end")
    elif stage.staging.target is None:
        for name, places in stage.kept[:1]:
            run.blame(
                f"the cancellation was swallowed: it had reached {name!r} at {tell_await(places)}, "
                "which then ran to its end, and so did the scenario"
            )


def _may_leave(stage: Stage[Any], outcome: Outcome, error: BaseException) -> bool:
    if isinstance(error, stage.staging.raises):
        return True
    if not outcome.struck:
        return False
    if stage.at.kind == "interrupt" and isinstance(error, KeyboardInterrupt):
        return True
    injected = stage.injected
    is_consequence = getattr(stage.staging.scenario, "is_consequence", None)
    if is_consequence is not None and injected is not None and is_consequence(error, injected):
        return True
    return error is injected


def _blame_left(run: TrialRun, allow: Iterable[str], kind: str, *left: str) -> None:
    if left and kind not in allow:
        what = {"task": "still running", "generator": "async generators left open"}.get(kind)
        separator = "\n    " if kind == "task" and len(left) > 1 else ", "  # one line per task
        beginning = separator if separator[0] == "\n" else " "
        run.blame(f"{what or 'left open'}:{beginning}{separator.join(left)}")


def _judge_warnings(run: TrialRun, undisturbed: Undisturbed | None) -> None:
    for kind, text in run.warned:
        is_usual = undisturbed is not None and undisturbed.warned[kind, text] > 0
        if issubclass(kind, _LEFT_BEHIND) or (undisturbed is not None and not is_usual):
            run.blame(f"{kind.__name__}: {text}")


def _struck(stage: Stage[Any]) -> str:
    return "" if stage.where else "undisturbed, "


def _tell(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _unfinished(stage: Stage[Any]) -> Outcome:
    return Outcome(
        at=stage.at,
        struck=bool(stage.where),
        where=stage.where,
        value=None,
        error=None,
        cancelled=False,
        state=None,
        seconds=stage.staging.within,
    )


def _then(outcome: Outcome) -> str:
    if outcome.cancelled:
        return f"it was cancelled, within {outcome.seconds:g} s"
    if outcome.error is not None:
        return f"{_tell(outcome.error).partition(chr(10))[0]} left it"
    return f"it returned {_short.repr(outcome.value)}"


def failure_of(
    run: TrialRun, name: str, call: str, positions: int, options: str
) -> ScenarioFailure:
    """Return the failure that describes a run.

    Args:
        run: The run.
        name: The name of the scenario.
        call: The function that ran it.
        positions: The number of positions; 0 if it is not known.
        options: The arguments of the call that affect the numbering of positions.
    """
    at, outcome = run.at, run.outcome
    lines = [run.problem, ""]
    of = f" of {positions}" if positions else ""
    how = "undisturbed" if at.kind is None else f"{at.kind} at position {at.position}{of}"
    lines.append(f"  run      {at}: {at.backend}, {how}, seed {at.seed}")
    if outcome is not None:
        if outcome.where:
            lines.append(f"  struck   {outcome.where}")
        lines += [
            f"  beside   {name!r} at {tell_await(places)}"
            for name, places in run.beside[:MOST_BESIDE]
        ]
        if not run.alive:
            lines.append(f"  then     {run.then or _then(outcome)}")
    lines += [f"  alive    {strand}" for strand in run.alive]
    lines.append(f"  replay   {call}({name}, {options}at={str(at)!r})")
    failure = ScenarioFailure("\n".join(lines), problem=run.problem, at=str(at), outcome=outcome)
    failure.__cause__ = run.error
    return failure
