"""Spans of runs: what is inside of what, what caused what, and how it ended."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from contextvars import copy_context

import anyio
import httpx
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import NoOpTracerProvider, StatusCode
from tenacity import stop_after_attempt, wait_none

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowDetachedError,
    WorkflowTimeoutError,
    catch_error,
    observe,
    step,
)
from sluicegate._engine.ending import detach_run
from sluicegate._events import StepFailedEvent
from sluicegate._handler import run_of
from sluicegate.otel import OpenTelemetryObserver


pytestmark = pytest.mark.anyio

UNSET, ERROR = StatusCode.UNSET, StatusCode.ERROR


class Draft(Event):
    text: str = ""


class Part(Event):
    number: int


class Done(Event):
    number: int


class Question(InputRequiredEvent):
    text: str = ""


class Answer(HumanResponseEvent):
    text: str = ""


class Chain(Workflow):
    @step
    async def write(self, ev: StartEvent) -> Draft:
        return Draft()

    @step
    async def polish(self, ev: Draft) -> StopEvent:
        with trace.get_tracer("user", tracer_provider=ev.provider).start_as_current_span("mine"):
            pass
        return StopEvent()


class Plain(Workflow):
    @step
    async def work(self, ev: StartEvent) -> Draft:
        return Draft(text="secret")

    @step
    async def end(self, ev: Draft) -> StopEvent:
        return StopEvent(result=ev.text)


class Endless(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        ev.began.set()
        await anyio.sleep_forever()


class Fan(Workflow):
    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        for number in range(3):
            ctx.send_event(Part(number=number))

    @step
    async def work(self, ev: Part) -> Done:
        return Done(number=ev.number)

    @step
    async def gather(self, ctx: Context, ev: Done) -> StopEvent | None:
        found = ctx.collect_events(ev, [Done] * 3)
        return None if found is None else StopEvent()


def exceptions(span):
    """Return the names of the events that record exceptions."""
    return [
        event.attributes["exception.type"] for event in span.events if event.name == "exception"
    ]


# -- what is inside of what ----------------------------------------------------------------------


async def test_a_step_is_inside_its_run_and_linked_to_the_step_that_emitted_its_event(traced):
    """Nesting says to what a step belongs; a link says what caused it."""
    await Plain(observers=[traced.observer]).run()

    run, work, end = (
        traced.one(f"{n}") for n in ("invoke_workflow Plain", "step work", "step end")
    )
    assert run.parent is None
    assert traced.parent(work) == traced.parent(end) == "invoke_workflow Plain"
    assert traced.links(work) == []
    assert traced.links(end) == ["step work"]
    assert end.links[0].attributes["sluicegate.event.type"] == "Draft"
    assert run.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert run.attributes["gen_ai.workflow.name"] == "Plain"
    assert end.attributes["sluicegate.step.name"] == "end"
    assert end.attributes["sluicegate.step.attempt"] == 1
    assert end.attributes["sluicegate.event.type"] == "Draft"
    assert end.attributes["sluicegate.run.id"] == run.attributes["sluicegate.run.id"]
    assert {s.attributes["sluicegate.outcome"] for s in traced.spans} == {"completed"}
    assert {s.status.status_code for s in traced.spans} == {UNSET}


async def test_spans_that_a_step_opens_are_inside_of_it_in_its_tasks_and_threads(traced):
    """The step's span is current in the step, in its tasks and in the thread of a ``def`` step."""
    tracer = traced.provider.get_tracer("user")

    class Opens(Workflow):
        @step
        async def in_loop(self, ev: StartEvent) -> Draft:
            async def task(name):
                with tracer.start_as_current_span(name):
                    await anyio.sleep(0)

            async with anyio.create_task_group() as group:
                group.start_soon(task, "in a task")
            with tracer.start_as_current_span("in the step"):
                await anyio.sleep(0)
            return Draft()

        @step
        def in_thread(self, ev: Draft) -> StopEvent:
            with tracer.start_as_current_span("in a thread"):
                return StopEvent()

    await Opens(observers=[traced.observer]).run()

    parents = dict(traced.tree())
    assert parents["in a task"] == parents["in the step"] == "step in_loop"
    assert parents["in a thread"] == "step in_thread"


async def test_a_child_is_inside_the_step_that_runs_it(traced):
    """The observers of a run hear of its children, whose spans are inside the parent's step."""

    class Parent(Workflow):
        @step
        async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.run_child(Plain())
            return StopEvent()

    await Parent(observers=[traced.observer]).run()

    assert traced.tree() == [
        ("invoke_workflow Parent", ""),
        ("invoke_workflow Plain", "step outer"),
        ("step end", "invoke_workflow Plain"),
        ("step outer", "invoke_workflow Parent"),
        ("step work", "invoke_workflow Plain"),
    ]
    assert len({span.context.trace_id for span in traced.spans}) == 1


async def test_the_context_of_a_request_is_the_parent_of_the_run_and_is_left_as_it_was(traced):
    """A ``traceparent`` header, extracted by the server, is what the run's span belongs to."""
    header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    token = context.attach(propagate.extract({"traceparent": header, "baggage": "tenant=7"}))
    try:
        before = dict(copy_context().items())
        await Plain(observers=[traced.observer]).run()

        assert dict(copy_context().items()) == before
    finally:
        context.detach(token)
    run = traced.one("invoke_workflow Plain")
    assert f"{run.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert {f"{s.context.trace_id:032x}" for s in traced.spans} == {
        "4bf92f3577b34da6a3ce929d0e0e4736"
    }


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_the_span_of_an_http_client_is_inside_the_step(traced, kind):
    """An instrumented client, as any other instrumentation, finds the step's span."""
    respond = httpx.MockTransport(lambda request: httpx.Response(200, request=request))
    instrument = HTTPXClientInstrumentor.instrument_client

    class Calls(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Draft | StopEvent:
            if ev.kind == "def":
                return Draft()
            async with httpx.AsyncClient(transport=respond) as client:
                instrument(client, tracer_provider=traced.provider)
                await client.get("http://model.invalid/v1")
            return StopEvent()

        @step
        def ask_in_thread(self, ev: Draft) -> StopEvent:
            with httpx.Client(transport=respond) as client:
                instrument(client, tracer_provider=traced.provider)
                client.get("http://model.invalid/v1")
            return StopEvent()

    await Calls(observers=[traced.observer]).run(kind=kind)

    span = traced.one("GET")
    assert span.kind is trace.SpanKind.CLIENT
    assert traced.parent(span) == ("step ask" if kind == "async" else "step ask_in_thread")


async def test_many_runs_at_once_keep_their_spans_apart(traced):
    """One observer serves any number of runs, and keeps nothing of those that have ended."""
    workflow = Plain(observers=[traced.observer])
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(_run, workflow)

    for run in traced.named("invoke_workflow Plain"):
        inside = [s for s in traced.spans if s.parent and s.parent.span_id == run.context.span_id]
        assert sorted(span.name for span in inside) == ["step end", "step work"]
        assert {s.attributes["sluicegate.run.id"] for s in inside} == {
            run.attributes["sluicegate.run.id"]
        }
    assert len(traced.spans) == 60
    assert repr(traced.observer) == "<OpenTelemetryObserver, 0 runs>"


async def _run(workflow):
    await workflow.run()


async def test_two_observers_make_two_traces(traced, make_traced):
    """Observers with different providers do not see each other's spans as parents of their steps."""
    other = make_traced()
    with observe(traced.observer, other.observer):
        await Plain().run()

    assert {name for name, _ in traced.tree()} == {name for name, _ in other.tree()}
    assert traced.links(traced.one("step end")) == ["step work"]
    assert other.links(other.one("step end")) == ["step work"]


# -- causes --------------------------------------------------------------------------------------


async def test_a_step_that_collects_is_linked_to_each_step_that_emitted_an_event(traced):
    """The invocation in which ``collect_events`` is complete has a link for each event of the set."""
    await Fan(observers=[traced.observer]).run()

    last = max(traced.named("step gather"), key=lambda span: len(span.links))
    assert traced.links(last) == ["step work"] * 3
    assert len({link.context.span_id for link in last.links}) == 3
    assert [traced.links(span) for span in traced.named("step work")] == [["step split"]] * 3


async def test_a_join_is_linked_to_each_step_that_emitted_an_event(traced):
    """A step that takes a list has a link for each event of the list."""

    class Joins(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Part]:
            return [Part(number=number) for number in range(3)]

        @step
        async def work(self, ev: Part) -> Done:
            return Done(number=ev.number)

        @step
        async def gather(self, events: list[Done]) -> StopEvent:
            return StopEvent()

    await Joins(observers=[traced.observer]).run()

    assert traced.links(traced.one("step gather")) == ["step work"] * 3


# -- how it ended --------------------------------------------------------------------------------


async def test_a_cancelled_step_says_so_and_why_and_is_no_error(traced):
    """Cancelled by its owner: outcome, who and why on the run and on the step, and no status."""
    began = anyio.Event()
    async with Endless(observers=[traced.observer]).run(began=began) as handler:
        await began.wait()
        handler.cancel("the user has left")

    for name in ("invoke_workflow Endless", "step work"):
        span = traced.one(name)
        assert span.status.status_code is UNSET
        assert span.attributes["sluicegate.outcome"] == "cancelled"
        assert span.attributes["sluicegate.cancellation.by"] == "owner"
        assert "the user has left" in span.attributes["sluicegate.cancellation.reason"]
        assert exceptions(span) == []
    assert traced.one("step work").attributes["sluicegate.cancellation.unwind.duration"] >= 0
    assert [event.name for event in traced.one("step work").events] == ["cancellation"]


@pytest.mark.parametrize("cause", [None, OSError("disk full")])
async def test_a_run_that_continues_elsewhere_says_so(traced, cause):
    """Detached: an error only if the lease was lost or the store has failed."""
    began = anyio.Event()
    handler = Endless(observers=[traced.observer]).run(began=began)
    run_of(handler).outcome.is_durable = True
    with contextlib.suppress(WorkflowDetachedError):
        async with handler:
            await began.wait()
            detach_run(run_of(handler), "its store has failed", cause)

    span = traced.one("invoke_workflow Endless")
    assert span.attributes["sluicegate.outcome"] == "detached"
    assert span.status.status_code is (UNSET if cause is None else ERROR)
    assert len(exceptions(span)) == (cause is not None)
    by = span.attributes.get("sluicegate.cancellation.by")
    assert by == ("outside" if cause is None else None)


async def test_a_step_that_a_stop_event_cancels_says_so(traced):
    """The run has completed; the step that was still at work is cancelled by the stop."""
    began = anyio.Event()

    class Race(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Part]:
            return [Part(number=0), Part(number=1)]

        @step
        async def work(self, ev: Part) -> StopEvent:
            if not ev.number:
                began.set()
                await anyio.sleep_forever()
            await began.wait()
            return StopEvent()

    await Race(observers=[traced.observer]).run()

    outcomes = {
        span.attributes["sluicegate.outcome"]: span.attributes.get("sluicegate.cancellation.by")
        for span in traced.named("step work")
    }
    assert outcomes == {"completed": None, "cancelled": "stop"}
    assert traced.one("invoke_workflow Race").attributes["sluicegate.outcome"] == "completed"


async def test_a_cancelled_branch_says_so(traced):
    """The steps of a branch are cancelled by it, with the reason that was given."""
    began = anyio.Event()

    class Branches(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part | StopEvent:
            branch = ctx.send_event(Part(number=1))
            await began.wait()
            branch.cancel("enough")
            await branch.wait()
            return StopEvent()

        @step
        async def work(self, ev: Part) -> None:
            began.set()
            await anyio.sleep_forever()

    await Branches(observers=[traced.observer]).run()

    span = traced.one("step work")
    assert span.status.status_code is UNSET
    assert span.attributes["sluicegate.cancellation.by"] == "branch"
    assert span.attributes["sluicegate.cancellation.reason"] == "enough"
    assert traced.parent(traced.one("wait for branch")) == "step begin"


async def test_a_timeout_of_the_run_is_an_error_of_the_run_and_cancels_its_steps(traced):
    """The user set it, so the run has failed; its steps are cancelled, by the deadline."""
    with pytest.raises(WorkflowTimeoutError):
        await Endless(timeout=0.05, observers=[traced.observer]).run(began=anyio.Event())

    run, work = traced.one("invoke_workflow Endless"), traced.one("step work")
    assert run.status.status_code is ERROR
    assert run.attributes["sluicegate.outcome"] == "timed_out"
    assert run.attributes["error.type"].endswith("WorkflowTimeoutError")
    assert run.attributes["sluicegate.run.timeout"] == 0.05
    assert len(exceptions(run)) == 1
    assert work.status.status_code is UNSET
    assert work.attributes["sluicegate.cancellation.by"] == "deadline"


async def test_a_timeout_of_a_step_is_an_error_of_the_step(traced):
    """The step has failed with its timeout."""

    class Slow(Workflow):
        @step(timeout=0.02)
        async def work(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()

    with pytest.raises(StepTimeoutError):
        await Slow(observers=[traced.observer]).run()

    span = traced.one("step work")
    assert span.status.status_code is ERROR
    assert span.attributes["error.type"].endswith("StepTimeoutError")


async def test_a_failure_is_recorded_once_in_the_innermost_span(traced):
    """A failure of a child's step is an error of four spans, and its traceback is in one of them."""

    class Fails(Workflow):
        @step
        async def inner(self, ev: StartEvent) -> StopEvent:
            raise ValueError("no such page")

    class Parent(Workflow):
        @step
        async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.run_child(Fails())
            return StopEvent()

    with pytest.raises(ValueError, match="no such page"):
        await Parent(observers=[traced.observer]).run()

    assert {span.status.status_code for span in traced.spans} == {ERROR}
    assert {span.attributes["error.type"] for span in traced.spans} == {"ValueError"}
    recorded = {span.name: exceptions(span) for span in traced.spans}
    assert recorded == {
        "step inner": ["ValueError"],
        "invoke_workflow Fails": [],
        "step outer": [],
        "invoke_workflow Parent": [],
    }


async def test_each_attempt_has_its_span_and_its_number(traced):
    """A retried step: the first attempt has failed, the second is linked to it; the run is fine."""

    class Retried(Workflow):
        @step(retry=Retry(wait=wait_none(), stop=stop_after_attempt(3)))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.step.attempt == 1:
                raise OSError("not yet")
            return StopEvent()

    await Retried(observers=[traced.observer]).run()

    first, second = traced.named("step work")
    assert [s.attributes["sluicegate.step.attempt"] for s in (first, second)] == [1, 2]
    assert (first.status.status_code, second.status.status_code) == (ERROR, UNSET)
    assert exceptions(first) == ["OSError"]
    assert [dict(link.attributes) for link in second.links] == [
        {"sluicegate.link": "attempt before"}
    ]
    assert second.links[0].context.span_id == first.context.span_id
    assert traced.one("invoke_workflow Retried").status.status_code is UNSET


async def test_a_handled_failure_causes_the_handler(traced):
    """The span of the step that handles a failure is linked to the one that failed."""

    class Handled(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise OSError("gone")

        @catch_error
        async def mend(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    await Handled(observers=[traced.observer]).run()

    assert traced.links(traced.one("step mend")) == ["step work"]
    assert traced.one("invoke_workflow Handled").status.status_code is UNSET


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


async def test_an_exception_without_words_ends_its_spans_all_the_same(traced):
    """Whatever an exception refuses, its span has a status and its class."""

    class Fails(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise Rude

    with pytest.raises(Rude):
        await Fails(observers=[traced.observer]).run()

    assert [span.status.status_code for span in traced.spans] == [ERROR, ERROR]
    assert len(exceptions(traced.one("step work"))) == 1


# -- waiting -------------------------------------------------------------------------------------


async def test_waiting_for_a_person_is_apart_from_working(traced):
    """The wait for an answer is a span of its own, and its seconds are counted on step and run."""

    class Asks(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Answer, waiter_event=Question(text="well?"))
            return StopEvent(result=answer.text)

    async with Asks(observers=[traced.observer]).run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Question):
                await anyio.sleep(0.005)
                handler.send_event(Answer(text="yes"))
        assert await handler == "yes"

    wait, ask, run = (
        traced.one(n) for n in ("wait for person", "step ask", "invoke_workflow Asks")
    )
    assert traced.parent(wait) == "step ask"
    assert wait.attributes["sluicegate.wait.kind"] == "person"
    assert wait.attributes["sluicegate.wait.outcome"] == "done"
    assert wait.end_time - wait.start_time >= 4_000_000
    assert ask.attributes["sluicegate.step.wait.duration"] >= 0.004
    assert run.attributes["sluicegate.run.people.duration"] >= 0.004
    assert [
        attributes["sluicegate.wait.kind"]
        for attributes, _ in traced.points("sluicegate.wait.duration")
    ] == ["person"]


async def test_a_question_that_no_step_waits_for_is_a_wait_of_the_run(traced):
    """A step that returns its question has ended; the run waits for the person."""

    class Asks(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Question:
            return Question(text="well?")

        @step
        async def take(self, ev: Answer) -> StopEvent:
            return StopEvent(result=ev.text)

    async with Asks(observers=[traced.observer]).run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Question):
                handler.send_event(Answer(text="yes"))

    wait = traced.one("wait for person")
    assert traced.parent(wait) == "invoke_workflow Asks"
    assert traced.links(wait) == ["step ask"]
    assert [point.value for _, point in traced.points("sluicegate.question.open")] == [0]


async def test_waiting_for_an_event_is_linked_to_who_emitted_it(traced):
    """The span of the wait ends with its event, and is linked to the step that emitted that."""

    class Waits(Workflow):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> Part | StopEvent:
            ctx.send_event(Part(number=1))
            await ctx.wait_for_event(Done)
            return StopEvent()

        @step
        async def work(self, ev: Part) -> Done:
            return Done(number=1)

    await Waits(observers=[traced.observer]).run()

    wait = traced.one("wait for event")
    assert traced.parent(wait) == "step wait"
    assert wait.attributes["sluicegate.event.type"] == "Done"
    assert traced.links(wait) == ["step work"]


async def test_waiting_for_a_limiter_is_inside_the_step_and_before_its_body(traced):
    """The second invocation waits for the limiter until the first has ended."""
    limiter = anyio.CapacityLimiter(1)

    class Limited(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Part]:
            return [Part(number=0), Part(number=1)]

        @step(limiter=limiter)
        async def work(self, ev: Part) -> Done:
            await anyio.sleep(0.005)
            return Done(number=ev.number)

        @step
        async def gather(self, events: list[Done]) -> StopEvent:
            return StopEvent()

    await Limited(observers=[traced.observer]).run()

    # Under load, the first may have waited for a millisecond as well.
    for wait in (waits := traced.named("wait for limiter")):
        assert traced.parent(wait) == "step work"
        assert wait.attributes["sluicegate.wait.outcome"] == "done"
    assert waits[-1].end_time - waits[-1].start_time >= 4_000_000


# -- across a resume -----------------------------------------------------------------------------


async def test_a_resumed_run_is_linked_to_the_run_before_through_the_snapshot(traced):
    """The snapshot contains the context of the trace; the resumed run is a trace of its own."""

    class Asks(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Question:
            return Question(text="well?")

        @step
        async def take(self, ev: Answer) -> StopEvent:
            return StopEvent(result=baggage.get_baggage("tenant"))

    workflow = Asks(observers=[traced.observer])
    snapshot = None
    token = context.attach(baggage.set_baggage("tenant", "7"))
    try:
        async with workflow.run() as handler:
            async for event in handler.stream_events():
                if isinstance(event, Question):
                    snapshot = handler.snapshot()
                    handler.cancel("for today")
    finally:
        context.detach(token)
    (before,) = traced.named("invoke_workflow Asks")
    assert f"{before.context.span_id:016x}" in snapshot["carrier"]["traceparent"]

    async with workflow.resume(snapshot) as handler:
        handler.send_event(Answer(text="yes"))
        assert await handler == "7"
        again = handler.snapshot()["carrier"]["traceparent"]

    _, after = traced.named("invoke_workflow Asks")
    assert after.parent is None
    assert after.context.trace_id != before.context.trace_id
    assert [dict(link.attributes) for link in after.links] == [{"sluicegate.link": "resumed from"}]
    assert after.links[0].context.span_id == before.context.span_id
    assert after.attributes["sluicegate.run.resumed"] is True
    assert f"{after.context.span_id:016x}" in again


# -- what is shown, and what is not --------------------------------------------------------------


async def test_no_values_are_shown_unless_asked_for(traced, make_traced, monkeypatch):
    """The text of events is in no attribute; ``capture_values`` or the environment asks for it."""
    await Plain(observers=[traced.observer]).run()
    assert not any("secret" in str(v) for s in traced.spans for v in s.attributes.values())

    asked = make_traced(capture_values=True)
    await Plain(observers=[asked.observer]).run()
    assert "secret" in asked.one("step end").attributes["sluicegate.event.value"]
    assert "secret" in asked.one("step work").attributes["sluicegate.result.value"]

    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    by_environment = make_traced()
    await Plain(observers=[by_environment.observer]).run()
    assert "secret" in by_environment.one("step end").attributes["sluicegate.event.value"]


async def test_the_newest_conventions_are_used_where_they_are_asked_for(make_traced, monkeypatch):
    """``OTEL_SEMCONV_STABILITY_OPT_IN`` decides how the name of the workflow is called."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, gen_ai_latest_experimental")
    traced = make_traced()
    await Plain(observers=[traced.observer]).run()

    run = traced.one("invoke_workflow Plain")
    assert run.attributes["gen_ai.agent.name"] == "Plain"
    assert "gen_ai.workflow.name" not in run.attributes
    assert len(traced.points("gen_ai.invoke_agent.duration")) == 1


@pytest.mark.parametrize("provider", [TracerProvider(ALWAYS_OFF), NoOpTracerProvider()])
async def test_a_run_that_is_not_sampled_leaves_no_spans(provider, make_traced):
    """A sampler, or a program without an SDK, may drop all of it; the run is the same."""
    traced = make_traced()
    observer = OpenTelemetryObserver(provider, traced.meters)

    assert await Plain(observers=[observer]).run() == "secret"
    assert traced.spans == ()
    assert len(traced.points("sluicegate.step.duration")) == 2


class Fragile(Sampler):
    """Raises when the span of a certain step is to begin."""

    def should_sample(self, parent_context, trace_id, name, *args, **options):
        if name == "step end":
            raise RuntimeError("no decision")
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, *args, **options)

    def get_description(self):
        return "fragile"


async def test_a_fault_of_the_sdk_ends_the_trace_and_not_the_run(traced, caplog):
    """It is logged once; the spans that were open are ended, and nothing is kept."""
    provider = TracerProvider(Fragile(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(traced.exporter))
    observer = OpenTelemetryObserver(provider)

    assert await Plain(observers=[observer]).run() == "secret"

    assert "the observer OpenTelemetryObserver raised RuntimeError" in caplog.text
    assert {span.name for span in traced.spans} == {"invoke_workflow Plain", "step work"}
    assert repr(observer) == "<OpenTelemetryObserver, 0 runs>"


# -- measurements --------------------------------------------------------------------------------


async def test_runs_and_steps_are_measured(traced):
    """Durations by outcome; queue time; and nothing is in flight when all is over."""
    workflow = Plain(observers=[traced.observer])
    await workflow.run()
    await workflow.run()

    ((attributes, runs),) = traced.points("gen_ai.invoke_workflow.duration")
    assert runs.count == 2
    assert attributes == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "Plain",
        "sluicegate.outcome": "completed",
    }
    steps = {
        a["sluicegate.step.name"]: p.count for a, p in traced.points("sluicegate.step.duration")
    }
    assert steps == {"work": 2, "end": 2}
    queued = traced.points("sluicegate.step.queue.duration")
    assert sum(point.count for _, point in queued) == 4
    for metric in ("sluicegate.run.active", "sluicegate.step.active", "sluicegate.step.queued"):
        assert {point.value for _, point in traced.points(metric)} == {0}, metric


async def test_observers_with_one_meter_provider_count_together(traced):
    """A provider keeps one instrument of a name, so the counts are those of all observers."""
    began = anyio.Event()
    other = OpenTelemetryObserver(traced.provider, traced.meters)
    async with (
        Endless(observers=[traced.observer]).run(began=began) as handler,
        Endless(observers=[other]).run(began=(again := anyio.Event())) as second,
    ):
        await began.wait()
        await again.wait()
        for metric in ("sluicegate.run.active", "sluicegate.step.active"):
            assert [point.value for _, point in traced.points(metric)] == [2], metric
        handler.cancel("enough")
        second.cancel("enough")


async def test_what_was_queued_or_at_work_when_a_run_ends_is_in_flight_no_more(traced):
    """Cancelled with one step at work and two queued: every count returns to 0."""
    began = anyio.Event()

    class Many(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Part]:
            return [Part(number=number) for number in range(3)]

        @step(num_workers=1)
        async def work(self, ev: Part) -> StopEvent:
            began.set()
            await anyio.sleep_forever()

    async with Many(observers=[traced.observer]).run() as handler:
        await began.wait()
        handler.cancel("enough")

    assert len(traced.named("step work")) == 1
    for metric in ("sluicegate.run.active", "sluicegate.step.active", "sluicegate.step.queued"):
        assert {point.value for _, point in traced.points(metric)} == {0}, metric


# -- memory and imports --------------------------------------------------------------------------


async def test_nothing_is_kept_of_a_long_run_but_its_latest_causes(traced):
    """The spans of a chain of steps are dropped when they have ended, apart from some contexts."""
    kept = []

    class Loop(Workflow):
        @step
        async def work(self, ev: StartEvent | Part) -> Part | StopEvent:
            number = getattr(ev, "number", 0)
            if number == 300:
                gc.collect()
                kept.extend(o for o in gc.get_objects() if type(o).__name__ == "StepTrace")
                return StopEvent()
            return Part(number=number + 1)

    await Loop(observers=[traced.observer]).run()

    assert len(kept) == 1


def test_the_extra_is_named_where_it_is_missing():
    """Without OpenTelemetry, the import says what to install; the package itself does not import it."""
    code = (
        "import sys, sluicegate\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
        "sys.modules['opentelemetry'] = None\n"
        "import sluicegate.otel\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )

    assert 'pip install "sluicegate[otel]"' in ended.stderr
