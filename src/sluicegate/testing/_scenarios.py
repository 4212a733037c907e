"""Runs of a workflow as scenarios for sweeps and fuzzing, and the checks after each run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast, final

import attrs

from sluicegate import _streams
from sluicegate._engine import runner
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import (
    Event,
    InputRequiredEvent,
    InternalEvent,
    StopEvent,
    untagged,
)
from sluicegate._exceptions import URGENT, is_a
from sluicegate._handler import run_of
from sluicegate._loop import current_backend
from sluicegate._state import store
from sluicegate._streams import TURN
from sluicegate._workflow import Workflow
from sluicegate.testing._answering import Answerer
from sluicegate.testing._auditing import TERMINAL, audit_run, watched
from sluicegate.testing._running import check_workflow


if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sluicegate._events import StartEvent
    from sluicegate._handler import WorkflowHandler
    from sluicegate._streams import EventStream
    from sluicegate.testing._answering import Answers
    from sluicegate.testing._sweeps.trial import Outcome, Trial


# -- the scenario --------------------------------------------------------------------------------


@attrs.define(eq=False)
class Reading:
    """The events that one reader of a run's stream got; in ``outcome.state.readers``."""

    name: str
    events: list[Event] = attrs.Factory(list[Event])
    """The events that it took, in order."""
    missed: int = 0
    """How many events had been dropped before it began."""
    sequence: int = 0
    """The sequence number of the last event that it took."""
    has_ended: bool = False
    """Whether its iteration reached the end."""

    async def read(  # noqa: ASYNC910 - there is at least a terminal event
        self,
        stream: EventStream,
        block: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        breaks: bool = False,
    ) -> None:
        """Read to the end; after a block was left early, resume at its position. A checkpoint."""
        with stream:
            self.missed = stream.missed
            try:
                while not self.has_ended:
                    with block():
                        async for event in stream:
                            self.events.append(event)
                            if breaks:
                                break
                        else:
                            self.has_ended = True
            finally:
                self.sequence = stream.sequence


@contextmanager
def _steady_turns() -> Generator[None]:
    """Make the engine yield to other tasks after a number of checks instead of after real time.

    A scenario has the same moments in every run only if it does not depend on the machine's speed.
    """
    looks = count(10)

    def perf_counter() -> float:
        return next(looks) * TURN * 0.75

    modules = cast("list[Any]", [store, _streams, runner])
    saved = [module.perf_counter for module in modules]
    for module in modules:
        module.perf_counter = perf_counter
    try:
        yield
    finally:
        for module, own in zip(modules, saved, strict=True):
            module.perf_counter = own


@final
class WorkflowScenario:
    """A run of a workflow as a scenario; see :func:`workflow_scenario`."""

    def __init__(
        self,
        workflow: Workflow[Any] | Callable[[], Workflow[Any]],
        *,
        readers: int,
        start_event: StartEvent | None,
        answers: Answers,
        enter: bool,
        check: Callable[[Outcome], Any] | None,
        until_status: str | tuple[str, ...],
        fields: dict[str, Any],
    ) -> None:
        if isinstance(answers, Iterator):
            msg = (
                f"answers={brief(cast('Any', answers))} would be exhausted by the first of many runs; expected "
                "a list, a mapping or a function: answers=[HumanResponseEvent(...)]"
            )
            raise TypeError(msg)
        expected = (until_status,) if isinstance(until_status, str) else until_status
        if not (expected and set(expected) <= set(TERMINAL)):
            msg = f"until_status={until_status!r}; expected any of {', '.join(map(repr, TERMINAL))}"
            raise ValueError(msg)
        if type(readers) is not int or readers < 0:
            msg = f"readers={readers!r}; expected the number of readers of the stream: readers=2"
            raise ValueError(msg)
        self._given = cast("Any", workflow)
        self._is_one = isinstance(workflow, Workflow) or not callable(workflow)
        if self._is_one:
            check_workflow(self._given, "workflow_scenario")
        self._readers = readers
        self._start_event = start_event
        self._answers = answers
        self._enter = enter
        self._check = check
        self._until = expected
        self._fields = fields
        name = getattr(self._given, "__name__", f"{type(self._given).__name__}()")
        self.__name__: str = f"workflow_scenario({name}, ...)"

    def is_consequence(self, error: BaseException, injected: BaseException) -> bool:
        """Whether ``error`` is the engine's report that ``injected`` has ended something.

        The engine raises one if an error is injected into an await that keeps a resource or a run.
        """
        return isinstance(error, WorkflowRuntimeError) and error.__cause__ is injected

    async def __call__(self, trial: Trial) -> Any:
        """Run the workflow once. A checkpoint; when cancelled, it raises after the run has unwound.

        Raises:
            BaseException: As ``await handler``; but a failure caused by a step that was cancelled
                as a target stays in the handler.
        """
        workflow = self._given if self._is_one else self._given()
        check_workflow(workflow, "workflow_scenario")
        state = trial.state
        state.workflow, state.handler, state.raised = workflow, None, None
        state.readers, state.events = [], []
        return await self._run(workflow, trial)

    #: Entered around each run of a sweep or a fuzz, also around one that is given up.
    around: Callable[[], AbstractContextManager[None]] = staticmethod(_steady_turns)

    async def _run(self, workflow: Workflow[Any], trial: Trial) -> Any:
        state = trial.state
        async with workflow if self._enter else nullcontext():
            state.handler = handler = workflow.run(start_event=self._start_event, **self._fields)
            state.watch = watch = watched(handler, trial)
            try:
                async with handler:
                    return await self._host(handler, trial)
            except Exception as error:
                if not watch.is_of_target(error):
                    raise
                return None
            finally:
                watch.run.log.forward, watch.run.graph = None, watch.graph

    async def _host(self, handler: WorkflowHandler[Any], trial: Trial) -> Any:
        state, result = trial.state, None
        async with current_backend().open_nursery() as nursery:
            for number in range(1, self._readers + 1):
                state.readers.append(reading := Reading(f"reader {number}"))
                breaks = number == self._readers > 1
                read = self._read(handler, trial, reading, breaks=breaks)
                nursery.start_soon(read, name=f"stream {reading.name}")
            state.events = state.readers[0].events if state.readers else []
            state.answerer = answerer = Answerer(state.watch.graph.name, self._answers)
            if self._answers:
                nursery.start_soon(self._answer, handler, answerer, name="answers")
            elif self._answers is not None:
                state.watch.refuse = answerer.unanswered
            try:
                result = await handler
            except Exception as error:
                if not handler.is_done():
                    raise
                state.raised = error  # raised below, after the readers have ended
        state.readers.append(late := Reading("late reader"))
        await late.read(handler.stream_events(), partial(trial.target, late.name))
        if state.raised is not None:
            raise state.raised
        return result

    @staticmethod
    def _read(
        handler: WorkflowHandler[Any], trial: Trial, reading: Reading, *, breaks: bool
    ) -> Callable[[], Any]:
        async def read() -> None:  # noqa: ASYNC910 - reading is one
            backend = current_backend()
            try:
                block = partial(trial.target, "reader")
                await reading.read(handler.stream_events(), block, breaks=breaks)
            except backend.Cancelled:
                if backend.is_cancelled():
                    raise
                # A native cancellation of this task alone must not cancel its siblings and the host.

        return read

    @staticmethod
    async def _answer(handler: WorkflowHandler[Any], answerer: Answerer) -> None:
        with handler.stream_events() as stream:
            async for event in stream:
                asked = untagged(event)
                if isinstance(asked, InputRequiredEvent):
                    answer = await answerer.answer(asked)
                    if answer is not None and not run_of(handler).outcome.status:
                        handler.send_event(answer)

    async def check(self, outcome: Outcome) -> Any:
        """Check the conditions after a run, then call the given check.

        Raises:
            AssertionError: A condition does not hold; the text has a line for each problem.
        """
        state = outcome.state
        if state.handler is not None:
            problems = [*_check_end(state.handler, state, outcome)]
            if not outcome.struck:
                problems += self._check_whole(state)
            problems += await _check_streams(state.handler, state)
            problems += [*state.watch.problems, *state.watch.left_open()]
            if not (outcome.struck and outcome.at.kind == "error"):
                problems += state.watch.disorder
            problems += audit_run(state.watch.run)
            if problems:
                raise AssertionError("\n".join(dict.fromkeys(problems)))
        if self._check is not None:
            verdict = self._check(outcome)
            return await verdict if inspect.isawaitable(verdict) else verdict  # noqa: ASYNC910
        return None  # noqa: ASYNC910

    def _check_whole(self, state: Any) -> Iterator[str]:
        status = state.handler.status
        if status not in self._until:
            yield f"undisturbed, the run ended as {status!r}; expected {' or '.join(self._until)}"
        elif status == "completed" and (left := state.answerer.leftover()):
            yield f"undisturbed, the run did not ask for {left} of the answers"
        for reading in state.readers:
            if not reading.has_ended:
                yield f"undisturbed, {reading.name} did not reach the end"


def _check_end(handler: WorkflowHandler[Any], state: Any, outcome: Outcome) -> Iterator[str]:
    """Yield contradictions between the end of a run and the exception that it raised."""
    ended, status, raised = state.watch.run.outcome, handler.status, state.raised
    if status not in TERMINAL or not handler.is_done():
        yield f"the handler is left in the state {status!r}, is_done() is {handler.is_done()}"
        return
    # A KeyboardInterrupt takes precedence over a failure, a cancellation does not.
    if outcome.cancelled and raised is None and outcome.at.kind != "interrupt":
        if ended.unseen is not None:  # else they occurred in the same tick as the cancellation
            yield f"a cancellation left a run that had {status}, instead of its failures: {ended.errors}"
        elif status not in ("cancelled", "detached", "completed"):
            yield f"a cancellation left a run that had {status}"
    if raised is not None and raised is not ended.error:
        yield f"`await handler` raised {raised!r}, but the run's failure is {ended.error!r}"
    is_kept = state.watch.is_of_target(ended.error)
    if outcome.completed and raised is None and not is_kept and status != "completed":
        yield f"the scenario returned, but the status is {status!r}"
    yield from _check_result(handler, ended.error)
    stop = handler.stop_event
    if stop is not None and not any(stop is returned for returned in state.watch.stops):
        yield f"the stop event is {stop!r}, which no step returned"
    # A run whose clean-up fails after its stop event has failed.
    has_stop = stop is not None
    if has_stop != (status == "completed") and not (has_stop and status == "failed"):
        yield f"the stop event is {stop!r}, the status is {status!r}"


def _check_result(handler: WorkflowHandler[Any], failure: BaseException | None) -> Iterator[str]:
    status, errors = handler.status, handler.exceptions
    try:
        handler.result()
    except BaseException as error:  # noqa: ASYNC103, BLE001 - inspected only; the handler keeps it
        if error is not failure or status == "completed":
            yield f"handler.result() raised {error!r}, the status is {status!r}"  # noqa: ASYNC104
        is_kept = any(error is one for one in errors)
        is_unkept = not is_kept and status in ("cancelled", "detached")  # it is no failure
        is_first = is_unkept or is_a(error, URGENT) or (is_kept and errors[0] is error)
        if not is_first or (status == "cancelled" and is_kept):
            yield f"the run has {status}: {error!r}, all failures: {errors!r}"  # noqa: ASYNC104
    else:
        if status != "completed" or errors:
            yield f"there is a result, the status is {status!r}, handler.exceptions are {errors!r}"


async def _check_streams(handler: WorkflowHandler[Any], state: Any) -> list[str]:
    """Return problems of the published and read events; reads and writes once more to find them."""
    watch, run = state.watch, state.watch.run
    logged: list[Event] = watch.logged
    found: list[str] = []
    last = logged[-1] if logged else None
    public = [event for event in logged[:-1] if not isinstance(event, InternalEvent)]
    if not _same(public, watch.written):
        found.append(f"{len(watch.written)} events were published, the stream took {len(public)}")
    if type(last) is not (kind := TERMINAL[handler.status]) and not isinstance(last, kind):
        found.append(f"the stream ends with {last!r}, the status is {handler.status!r}")
    if any(isinstance(event, StopEvent) for event in public):
        found.append("the stream has more than one terminal event")
    if last is not (handler.stop_event or last) and handler.status == "completed":
        found.append(f"the stream ends with {last!r}, the stop event is {handler.stop_event!r}")
    if run.log.next - watch.first != len(logged) or not run.log.closed:
        found.append(f"the stream counts {run.log.next - watch.first} of {len(logged)} events")
        return found  # noqa: ASYNC910 - a reader might wait forever
    late = Reading("a reader after the end")
    await late.read(handler.stream_events())
    for reading in (*state.readers, late):
        if not reading.has_ended:  # it was cancelled, and can be resumed
            rest = Reading(reading.name)
            await rest.read(handler.stream_events(after=reading.sequence))
            dropped = rest.missed
        else:
            rest, dropped = Reading(""), 0
        expected = [e for e in logged[reading.missed :] if not isinstance(e, InternalEvent)]
        at = len(reading.events)
        got = [*reading.events, *expected[at : at + dropped], *rest.events]
        if not _same(got, expected):
            found.append(
                f"{reading.name} got {len(got)} events {brief(got)}, not {brief(expected)}"
            )
    found += await _write_late(handler)
    if run.log.next - watch.first != len(logged):
        found.append("something was published after the end")
    return found


async def _write_late(handler: WorkflowHandler[Any]) -> list[str]:
    """Return the ways of writing to a run that is over that do not raise."""
    ctx, event, found = handler.ctx, Event(), list[str]()
    for write in (handler.send_event, ctx.write_event_to_stream, ctx.stream.send):
        try:
            sent = cast("Any", write)(event)
            if inspect.isawaitable(sent):
                await sent
        except WorkflowRuntimeError:
            continue
        found.append(f"{write.__name__}() after the end was not refused")
    return found  # noqa: ASYNC910


def _same(these: list[Event], those: list[Event]) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))


def workflow_scenario(
    workflow: Workflow[Any] | Callable[[], Workflow[Any]],
    *,
    readers: int = 1,
    start_event: StartEvent | None = None,
    answers: Answers = (),
    enter: bool = False,
    check: Callable[[Outcome], Any] | None = None,
    until_status: str | tuple[str, ...] = "completed",
    **fields: Any,
) -> WorkflowScenario:
    """Make a scenario of one run of a workflow for :func:`sweep` and :func:`fuzz`.

    ::

        sweep(workflow_scenario(Writer(), topic="locks"), backends=("trio", "asyncio"), kinds="all")

    An ``async with`` block owns the run, readers take its stream in separate tasks, and the host
    awaits the handler and then opens another reader. After every run, struck or not, these
    conditions are checked in addition to those of :func:`sweep`. The handler's status, result and
    exception agree. Each reader got every event since its beginning, in order, and the terminal
    event last; a cancelled reader can be resumed at its position. The stream has exactly the
    published events, accepts none after the end, and ended when no step was running. No step had
    too many workers. Resources were closed once, in reverse order. The run holds nothing any more.

    The blocks that can be targets are ``"reader"`` (and ``"late reader"``, a part of the host), and
    ``"step:<name>"`` for each invocation of a step. A reader that is cancelled by a scope continues
    to read. A step that is cancelled by a scope or a timeout raises :class:`StepStruckError` as its
    failure, which is retried, handled, or fails the run, like any other. If the run fails by that,
    the failure stays in the handler.

    The check finds in ``outcome.state``: ``workflow``; ``handler`` (None if the run was struck
    before there was one); ``readers``, a list of :class:`Reading`; ``events``, those of the first
    reader; ``raised``, the exception of ``await handler``.

    Args:
        workflow: A workflow object; or a class or function that returns one, called for each run.
        readers: The number of readers from the beginning. The last of several leaves its loop
            after each event, and resumes.
        start_event: The start event; by default it is created from ``fields``.
        answers: The answers to the run's questions; as for :func:`run_workflow`, but only questions
            are answered.
        enter: Whether to run inside ``async with workflow:``.
        check: Called with the outcome, after the checks above; as for :func:`sweep`.
        until_status: The final status, or statuses, of an undisturbed run. A failure leaves the
            scenario: name its class in ``raises`` of the sweep.
        **fields: The fields of the start event.

    Returns:
        The scenario, for ``sweep(it, ...)``.

    Raises:
        TypeError: The workflow is not one, or the first run would exhaust the answers.
        ValueError: ``readers`` is not a number of readers, or ``until_status`` not a status.
    """
    return WorkflowScenario(
        workflow,
        readers=readers,
        start_event=start_event,
        answers=answers,
        enter=enter,
        check=check,
        until_status=until_status,
        fields=fields,
    )
