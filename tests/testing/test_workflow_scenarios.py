"""Workflow scenarios: what must hold after each run of a workflow, and that it is missed if it does not."""

from __future__ import annotations

import itertools
import time
from typing import Annotated, Self

import anyio
import pytest

from sluicegate import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    Resource,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)
from sluicegate._engine import (
    entered,
    invocation,
    machine,
    outcome,
    resource_scopes,
    runner,
    step_operations,
)
from sluicegate._loop.limits import LoopSlots
from sluicegate._streams import EventLog, EventStream
from sluicegate.testing import (
    Reading,
    ScenarioFailure,
    StepStruckError,
    audit,
    fuzz,
    run_virtually,
    sweep,
    workflow_scenario,
)
from tests.helpers import Done, Item, Note, on_each_backend, steady_id


class Fan(Workflow[int]):
    """Three steps, with a fan-out of three."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> list[Item]:
        ctx.write_event_to_stream(Note(number=0))
        await anyio.sleep(0.1)
        return [Item(number=n) for n in (1, 2, 3)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Done:
        await ctx.stream.send(Note(number=ev.number))
        await anyio.sleep(0.1)
        return Done(number=ev.number)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sum(ev.number for ev in evs))


class Asks(Workflow):
    """A question that a step returns, and one in the middle of a step."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(about="name")

    @step
    async def greet(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        place = await ctx.wait_for_event(
            HumanResponseEvent, waiter_event=InputRequiredEvent(about="place")
        )
        return StopEvent(result=(ev.text, place.text))


ANSWERS = [HumanResponseEvent(text="Ada"), HumanResponseEvent(text="Turin")]


class Manager:
    """A context manager that takes its time, both ways, and may be left any number of times."""

    async def __aenter__(self) -> Self:
        await anyio.sleep(0.1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await anyio.sleep(0.1)


def inner() -> Manager:
    return Manager()


def outer(first: Annotated[Manager, Resource(inner)]) -> Manager:
    return Manager()


async def shared() -> Manager:
    return Manager()


class Holds(Workflow):
    """Two resources of the run, one that needs the other, one of a step, one of the workflow."""

    @step
    async def only(
        self,
        ev: StartEvent,
        a: Annotated[Manager, Resource(outer)],
        b: Annotated[Manager, Resource(inner, scope="step")],
        c: Annotated[Manager, Resource(shared, scope="workflow")],
    ) -> StopEvent:
        await anyio.sleep(0.1)
        return StopEvent()


def limited():
    """Return a workflow with a limiter, which AnyIO binds to the event loop it is first used in."""

    class Limited(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(number=1), Item(number=2)]

        @step(limiter=anyio.CapacityLimiter(1))
        async def work(self, ev: Item) -> Done:
            await anyio.sleep(0.1)
            return Done(number=ev.number)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    return Limited()


class Fails(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(0.1)
        raise ValueError(3)


class Races(Workflow):
    """The first of two that run ends the run."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(number=1), Item(number=2)]

    @step
    async def work(self, ev: Item) -> StopEvent | None:
        await anyio.sleep(ev.number)
        return StopEvent(result=ev.number)


class Parent(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Fan()))


# -- what is healthy -------------------------------------------------------------------------------


@pytest.mark.slow
@on_each_backend
def test_a_healthy_workflow_passes_whatever_is_cancelled_and_how(backend):
    """A workflow with a fan-out passes a whole sweep, of every kind; so do its parts, a sample."""
    scenario = workflow_scenario(Fan(), readers=2)

    report = sweep(scenario, backends=backend, kinds="all")

    assert not report.sampled
    assert report.positions > 40
    for target in ("reader", "step:*"):
        sweep(scenario, backends=backend, kinds="all", target=target, limit=8)


HEALTHY = {
    "asks": (Asks, {"answers": ANSWERS}, {}),
    "holds": (Holds, {"enter": True}, {}),
    "limited": (limited, {}, {}),
    "gated": (Fan(num_concurrent_runs=1), {}, {}),
    "fails": (Fails, {"until_status": "failed"}, {"raises": ValueError}),
    "times out": (
        Fan(timeout=0.15),
        {"until_status": "timed_out"},
        {"raises": WorkflowTimeoutError},
    ),
    "child": (Parent, {}, {}),
    "races": (Races, {}, {}),
}


@on_each_backend
@pytest.mark.parametrize("name", HEALTHY)
def test_every_feature_that_the_books_know_passes(backend, name):
    """Questions, resources, limiters, gates, failures, timeouts and children leave nothing."""
    workflow, given, allowed = HEALTHY[name]

    sweep(workflow_scenario(workflow, **given), backends=backend, limit=16, **allowed)


@on_each_backend
def test_a_failure_comes_before_a_cancellation_and_after_an_interrupt(backend):
    """A step that fails while it unwinds has its failure raised; a KeyboardInterrupt goes first."""

    class Unwinds(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(1)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
                raise ValueError

    scenario = workflow_scenario(Unwinds, until_status="failed")

    sweep(scenario, backends=backend, kinds=("scope", "interrupt"), limit=20, raises=ValueError)


@on_each_backend
def test_schedules_and_second_cancellations(backend):
    """The same holds under the fuzz, and where a cancellation is followed by another."""
    fuzz(workflow_scenario(Fan(), readers=2), seeds=5, backends=backend, cancel=True)
    sweep(workflow_scenario(Fan()), backends=backend, kinds="scope", twice=True, limit=10)


@on_each_backend
def test_the_moments_of_a_scenario_repeat(backend, monkeypatch):
    """How quick the machine is has no influence on where a run is cancelled."""
    scenario = workflow_scenario(Fan(), readers=2)
    first = str(sweep(scenario, backends=backend, kinds="scope", limit=1, fresh=False))
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))

    again = str(sweep(scenario, backends=backend, kinds="scope", limit=1, fresh=False))

    assert first == again
    monkeypatch.undo()
    sweep(scenario, backends=backend, kinds="scope", limit=1)
    assert runner.perf_counter is time.perf_counter


# -- what the check is given -------------------------------------------------------------------------


@on_each_backend
def test_the_check_sees_the_run(backend):
    """The outcome's state has the handler, the readers and their events; its value is the result."""
    seen = []

    async def check(outcome):
        state = outcome.state
        seen.append((outcome.struck, state.handler.status, [r.name for r in state.readers]))
        assert all(isinstance(reading, Reading) for reading in state.readers)
        if not outcome.struck:
            assert outcome.value == state.handler.result() == 6
            assert sorted(e.number for e in state.events[:-1]) == [0, 1, 2, 3]
            assert state.events[-1] is state.handler.stop_event
            assert state.workflow is workflow
            assert state.raised is None

    workflow = Fan()
    scenario = workflow_scenario(workflow, check=check)

    sweep(scenario, backends=backend, kinds="scope", limit=3)

    assert seen[0] == (False, "completed", ["reader 1", "late reader"])
    assert (True, "cancelled", ["reader 1"]) in seen


@on_each_backend
@pytest.mark.parametrize("verdict", [False, AssertionError("mine")], ids=str)
def test_the_check_given_can_fail(backend, verdict):
    """A check that returns False, or raises, fails the run; it comes after the scenario's own."""

    def check(outcome):
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    with pytest.raises(ScenarioFailure, match="the check failed") as caught:
        sweep(workflow_scenario(Fan(), check=check), backends=backend)

    assert f"sweep(workflow_scenario(Fan(), ...), at={backend!r})" in str(caught.value)


@on_each_backend
def test_a_factory_makes_a_workflow_for_each_run(backend):
    """A class or a function is called for each run; an object is used by all, and stays as it is."""
    made = []

    def make():
        made.append(Fan())
        return made[-1]

    graph = Fan()._built()
    steps = graph.steps

    report = sweep(workflow_scenario(make), backends=backend, kinds="scope", limit=2, fresh=False)

    assert len(made) == report.runs
    assert graph.steps is steps
    assert all(workflow._built() is graph for workflow in made)


# -- targets -----------------------------------------------------------------------------------------


@on_each_backend
def test_a_reader_that_is_cancelled_by_itself_reads_on(backend):
    """A reader's own cancellation loses nothing, and leaves the run and the other reader alone."""

    def check(outcome):
        assert outcome.value == 6
        for reading in outcome.state.readers:
            assert sorted(e.number for e in reading.events[:-1]) == [0, 1, 2, 3]

    scenario = workflow_scenario(Fan(), readers=2, check=check)

    kinds = {"trio": "scope", "asyncio": ("scope", "timeout")}[backend]
    sweep(scenario, backends=backend, kinds=kinds, target="reader", limit=30)


def test_a_reader_that_is_cancelled_natively_does_not_pull_the_others_along():
    """Natively cancelled, a reader ends; what it has not taken is there for the next."""

    cut = []

    def check(outcome):
        assert outcome.value == ("Ada", "Turin")
        reader, late = outcome.state.readers
        assert late.has_ended
        cut.append(not reader.has_ended)

    scenario = workflow_scenario(Asks, answers=ANSWERS, check=check)

    sweep(scenario, backends="asyncio", kinds="native", target="reader")

    assert any(cut)


@on_each_backend
def test_a_step_that_is_cancelled_by_a_scope_fails_with_our_error(backend):
    """A step whose own scope was cancelled raises StepStruckError, and so the run fails with it."""
    failures = []

    def check(outcome):
        if outcome.struck and outcome.value is None:
            handler = outcome.state.handler
            assert handler.status == "failed"
            assert handler.exceptions == (outcome.state.raised,)
            failures.append(type(outcome.state.raised))

    scenario = workflow_scenario(Fan(), check=check)

    sweep(scenario, backends=backend, kinds="scope", modes="park", target="step:split")

    assert set(failures) == {StepStruckError}


def test_a_step_that_is_cancelled_natively_is_a_stray_for_the_engine():
    """A native cancellation goes through the step to the engine, which tells of it as a failure."""

    def check(outcome):
        if outcome.struck:
            assert outcome.value is None
            failure = outcome.state.raised
            assert isinstance(failure, WorkflowRuntimeError)
            assert "raised CancelledError" in str(failure)

    scenario = workflow_scenario(Fan(), check=check)

    sweep(scenario, backends="asyncio", kinds="native", target="step:split")


# -- what is refused -----------------------------------------------------------------------------------


@on_each_backend
def test_a_question_without_an_answer_fails_at_once(backend):
    """A run that asks, where no answers were given, fails and says so; it does not hang."""
    with pytest.raises(ScenarioFailure, match="but there is no answer; expected `answers="):
        sweep(workflow_scenario(Asks), backends=backend)


@on_each_backend
def test_answers_that_nobody_asked_for_are_told(backend):
    """Undisturbed, all listed answers have to be used."""
    with pytest.raises(ScenarioFailure, match="did not ask for 1 of the answers"):
        sweep(workflow_scenario(Asks, answers=[*ANSWERS, ANSWERS[0]]), backends=backend)


@on_each_backend
def test_an_undisturbed_run_ends_as_expected(backend):
    """A run that fails where it is to complete, or completes where it is to fail, is told."""
    with pytest.raises(ScenarioFailure, match="the run ended as 'completed'; expected failed"):
        sweep(workflow_scenario(Fan(), until_status="failed"), backends=backend)
    with pytest.raises(ScenarioFailure, match="ended as 'failed'; expected completed or cancelled"):
        sweep(
            workflow_scenario(Fails(), until_status=("completed", "cancelled")),
            backends=backend,
            raises=ValueError,
        )


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"workflow": 7}, TypeError, "was given 7; expected a workflow object"),
        (
            {"answers": iter(ANSWERS)},
            TypeError,
            "would be exhausted by the first of many runs; expected a list",
        ),
        (
            {"readers": -1},
            ValueError,
            "readers=-1; expected the number of readers of the stream: readers=2",
        ),
        ({"readers": True}, ValueError, "readers=True; expected"),
        (
            {"until_status": "done"},
            ValueError,
            "until_status='done'; expected any of 'completed', ",
        ),
        ({"until_status": ()}, ValueError, r"until_status=\(\); expected any of"),
    ],
    ids=steady_id,
)
def test_bad_arguments_are_refused_at_once(given, error, text):
    """What cannot be used is refused where it is given, with what was expected."""
    with pytest.raises(error, match=text):
        workflow_scenario(**{"workflow": Fan(), **given})


# -- the audit -------------------------------------------------------------------------------------------


@on_each_backend
def test_the_audit_of_a_run_under_way_tells_what_it_holds(backend):
    """The audit finds nothing in a run that is over, and everything in one that continues."""

    async def main():
        async with Fan().run() as handler:
            await anyio.sleep(0.15)
            found = "\n".join(audit(handler))
            for what in ("workers", "a nursery", "not over", "not closed", "machine still holds"):
                assert what in found
        assert audit(handler) == []

    run_virtually(main, backend=backend)


# -- planted faults ----------------------------------------------------------------------------------------


def drops_an_event(patch):
    """An event that is published does not get into the stream."""
    append = EventLog.append

    def faulty(self, event):
        if not (isinstance(event, Note) and event.number == 2):
            append(self, event)

    patch.setattr(EventLog, "append", faulty)


def ends_twice(patch):
    """The terminal event is published twice."""
    close = EventLog.close

    def faulty(self, last, number):
        close(self, last, number)
        self.append(last)

    patch.setattr(EventLog, "close", faulty)


def stays_open(patch):
    """The stream is not closed after its terminal event."""
    patch.setattr(EventLog, "close", lambda self, last, number: self.append(last))


def reader_skips(patch):
    """A reader that is cancelled while it waits misses the next event."""
    following = EventStream.__anext__

    async def faulty(self):
        try:
            return await following(self)
        except anyio.get_cancelled_exc_class():
            self._position.at += 1
            raise

    patch.setattr(EventStream, "__anext__", faulty)


def takes_late_events(patch):
    """What is published after the end is taken without a word."""
    patch.setattr(step_operations, "check_publishable", lambda event, log: None)


def settles_twice(patch):
    """A run that has completed is then taken for cancelled."""
    conclude = runner.conclude

    def faulty(self, backend, interruption):
        conclude(self, backend, interruption)
        if self.outcome.status == "completed":
            self.outcome.status = "cancelled"

    patch.setattr(runner, "conclude", faulty)


def raises_a_copy(patch):
    """What `await handler` raises is not the object that the step raised."""
    fail = outcome.Outcome.fail

    def faulty(self, error, failed, event, cancelled):
        fail(self, error, failed, event, cancelled)
        self.error = type(error)(*error.args)

    patch.setattr(outcome.Outcome, "fail", faulty)


def loses_the_cancellation(patch):
    """A run that was cancelled is told as completed."""
    cancel = outcome.Outcome.cancel

    def faulty(self, reason):
        cancel(self, reason)
        self.status, self.error, self.stop_event = "completed", None, StopEvent()

    patch.setattr(outcome.Outcome, "cancel", faulty)


def keeps_a_worker(patch):
    """A worker that is cancelled stays registered."""
    run = runner.run_worker

    async def faulty(self, *delivery):
        try:
            await run(self, *delivery)
        except BaseException:
            self.workers["gone"] = None
            raise
        if self.outcome.status == "cancelled":
            self.workers["gone"] = None

    patch.setattr(runner, "run_worker", faulty)


def keeps_a_slot(patch):
    """A step that is cancelled does not give back its place in the limiter."""
    leave = invocation.Place.__aexit__

    async def faulty(self, kind, *more):
        if kind is None:
            await leave(self, kind, *more)

    patch.setattr(invocation.Place, "__aexit__", faulty)


def keeps_the_gate(patch):
    """A run does not leave the gate of its workflow."""
    patch.setattr(LoopSlots, "release", lambda self: None)


def miscounts(patch):
    """The machine counts a delivery twice that ends the run."""
    finish = machine.Machine.finish

    def faulty(self, queue, node, result):
        self.alive += isinstance(result, StopEvent)
        return finish(self, queue, node, result)

    patch.setattr(machine.Machine, "finish", faulty)


def keeps_a_wait(patch):
    """A step that is cancelled while it waits for an event is still waited for."""
    end = machine.Machine.end_wait

    def faulty(self, wait, *, is_taken, **more):
        if is_taken:
            end(self, wait, is_taken=is_taken, **more)

    patch.setattr(machine.Machine, "end_wait", faulty)


def has_too_many_workers(patch):
    """A step gets one worker more than it may have."""
    init = machine.StepQueue.__init__

    def faulty(self, of):
        init(self, of)
        self.limit += 1

    patch.setattr(machine.StepQueue, "__init__", faulty)


def loses_a_failure(patch):
    """A failure that nobody has seen does not leave the block that is cancelled."""
    patch.setattr(WorkflowHandler, "_unobserved", lambda self: None)


def closes_twice(patch):
    """A resource is closed twice."""
    leave = entered._leave

    async def faulty(manager, error):
        await leave(manager, error)
        return await leave(manager, error)

    patch.setattr(entered, "_leave", faulty)


def closes_in_the_wrong_order(patch):
    """Resources are closed in the order of their opening."""

    def faulty(self):
        if self._is_closing and not self._building and self._opened:
            self._opened[0].close()

    patch.setattr(resource_scopes.ResourceScope, "_close_next", faulty)


def does_not_close(patch):
    """A resource is not closed where the run was cancelled."""
    leave = entered._leave

    async def faulty(manager, error):
        return await leave(manager, error) if error is None else None

    patch.setattr(entered, "_leave", faulty)


def ends_before_the_steps(patch):
    """The stream ends with the stop event, while other steps still unwind."""
    stop, close = runner.stop, EventLog.close

    def faulty(self, event):
        self.log.close(event)
        stop(self, event)

    patch.setattr(runner, "stop", faulty)
    patch.setattr(EventLog, "close", lambda self, *last: self.closed or close(self, *last))


PLANTED = {
    drops_an_event: (Fan, {}, "4 events were published, the stream took 3"),
    ends_twice: (Fan, {}, "more than one terminal event"),
    stays_open: (Fan, {}, "undisturbed, it did not end|keeps running"),
    reader_skips: (Fan, {"target": "reader"}, r"reader 1 got \d events"),
    takes_late_events: (Fan, {}, "write_event_to_stream.. after the end was not refused"),
    settles_twice: (Fan, {}, "there is a result, the status is 'cancelled'"),
    raises_a_copy: (Fails, {"raises": ValueError}, "the run has failed: ValueError"),
    loses_the_cancellation: (Fan, {}, "which no step returned"),
    keeps_a_worker: (Fan, {}, "the run still holds workers"),
    keeps_a_slot: (limited, {}, "the limiter of Limited.work has borrowers"),
    keeps_the_gate: (
        Fan(num_concurrent_runs=1),
        {},
        "num_concurrent_runs still counts runs",
    ),
    miscounts: (Fan, {}, "the machine counts"),
    keeps_a_wait: (Asks, {}, "the machine has (waits|answered)"),
    has_too_many_workers: (Fan, {}, "more than 2 workers at a time ran Fan.work"),
    loses_a_failure: (
        Fails,
        {"raises": ValueError},
        "a cancellation left a run that had .*, instead of its failures",
    ),
    closes_twice: (Holds, {}, "was closed 2 times"),
    closes_in_the_wrong_order: (Holds, {}, "the resource inner was closed before outer"),
    does_not_close: (Holds, {}, "the resource .* was not closed"),
    ends_before_the_steps: (Races, {}, "the stream ended while steps ran: work"),
}


@on_each_backend
@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_fault_planted_in_the_engine_is_found(backend, fault, monkeypatch):
    """Each invariant is there: an engine that breaks it does not pass the sweep."""
    workflow, allowed, text = PLANTED[fault]
    scenario = workflow_scenario(
        workflow,
        enter=workflow is Holds,
        answers=ANSWERS if workflow is Asks else (),
        until_status="failed" if workflow is Fails else "completed",
    )
    fault(monkeypatch)

    with pytest.raises(ScenarioFailure, match=text):
        sweep(scenario, backends=backend, kinds="scope", limit=100, **allowed)


class Connection:
    """A resource whose clean-up awaits once."""

    async def __aenter__(self) -> Self:
        await anyio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await anyio.sleep(0)


class Connects(Workflow[str]):
    @step
    async def begin(
        self,
        ev: StartEvent,
        of_step: Annotated[Connection, Resource(Connection, scope="step")],
        of_run: Annotated[Connection, Resource(Connection)],
    ) -> StopEvent:
        await anyio.sleep(0)
        return StopEvent(result="sent")


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("kinds", ["deadline", "all"])
def test_clean_up_of_a_resource_that_awaits_is_no_fault(backend, kinds):
    """In no kind of disturbance a resource fails the sweep because its clean-up awaits."""
    report = sweep(workflow_scenario(Connects), backends=backend, kinds=kinds)

    assert report.positions > 20
