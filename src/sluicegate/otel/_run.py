"""The spans of one run, made of its records."""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar
from time import time_ns
from typing import TYPE_CHECKING, Any, final

from opentelemetry import baggage, propagate
from opentelemetry import context as context_api
from opentelemetry.trace import (
    Link,
    SpanKind,
    get_current_span,
    set_span_in_context,
)

from sluicegate._errors import brief
from sluicegate.llms._calls import call_listeners
from sluicegate.records import (
    CancellationDelivered,
    CancellationRequested,
    EventEmitted,
    EventsCollected,
    InvocationEnded,
    InvocationQueued,
    InvocationStarted,
    QuestionAnswered,
    QuestionAsked,
    RunStarted,
    WaitEnded,
    WaitStarted,
)

from ._failures import error_type, mark_failed
from ._models import CallSpan
from ._names import (
    ATTEMPT,
    CANCELLATION_REASON,
    CANCELLED_BY,
    CANCELLED_BY_INVOCATION,
    ERROR_TYPE,
    EVENT_TYPE,
    EVENT_VALUE,
    INVOCATION,
    INVOKE_WORKFLOW,
    LINK,
    OPERATION,
    OUTCOME,
    QUESTION_ID,
    RESULT_VALUE,
    RUN_ID,
    RUN_PEOPLE,
    RUN_QUEUED,
    RUN_RESUMED,
    RUN_TIMEOUT,
    STEP,
    STEP_QUEUED,
    STEP_WAITED,
    UNWINDING,
    WAIT_KIND,
    WAIT_OUTCOME,
    WORKER,
    WORKFLOW,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer

    from sluicegate._observers import Invocation, RunInfo
    from sluicegate.llms._calls import CallReport, ModelCall
    from sluicegate.records import Record

    from ._in_flight import Counts, Labels
    from ._instruments import Instruments


#: Of how many events, the latest of a run, the emitting spans are known; links to older ones are left out.
CAUSES_KEPT = 4096

#: Of how many failures of steps, the latest of a run, it is known that they are recorded.
FAILURES_KEPT = 64

#: The most links of one span: the default limit of OpenTelemetry's SDK.
MOST_LINKS = 128

#: Seconds below which a wait for a place, a thread or a lock gets no span.
SHORTEST_WAIT = 0.001

#: The statuses of a durable run that is not over: another span continues it.
CONTINUES = ("detached", "parked")

#: The step whose context this is; of the innermost observer, if several trace the run.
current_step: ContextVar[StepTrace | None] = ContextVar("sluicegate_otel_step", default=None)


@final
class StepTrace:
    """One invocation of a step: its span from when a worker takes it until it ends."""

    __slots__ = (
        "attempt",
        "cancellation",
        "causes",
        "delivered_at",
        "events",
        "is_given_on",
        "name",
        "number",
        "queued_at",
        "recorded",
        "run",
        "span",
        "started_at",
        "waited",
        "waiting_since",
        "waits",
    )

    def __init__(self, run: RunTrace, record: InvocationQueued) -> None:
        self.run = run
        self.name = record.step
        self.number = record.invocation
        self.attempt = record.attempt
        self.queued_at = record.at if record.not_before is None else record.not_before
        #: The types of its events, and the spans to link: where an event was emitted, or the
        #: attempt before.
        self.events: list[str] = []
        self.causes: list[tuple[SpanContext, str]] = []
        self.span: Span | None = None
        self.started_at = self.queued_at
        #: Its open waits, by their numbers; seconds waited; and since when it waits.
        self.waits: dict[int, Wait] = {}
        self.waited = self.waiting_since = 0.0
        #: The cancellation of its run or branch, and when that was raised in it.
        self.cancellation: CancellationRequested | None = None
        self.delivered_at: float | None = None
        #: The exception that a span inside it has recorded.
        self.recorded: BaseException | None = None
        #: Whether its failure is retried, or given to a step that handles failures.
        self.is_given_on = False


@final
class Wait:
    """An open wait of an invocation."""

    __slots__ = ("at", "began", "kind", "question", "step", "subject")

    def __init__(self, record: WaitStarted, step: StepTrace) -> None:
        self.kind: str = record.kind
        self.subject = record.subject
        self.question: str | None = None
        self.step = step
        self.at = record.at
        self.began = time_ns()


@final
class RunTrace:
    """The spans of one run; also what is entered around the run.

    Args:
        observer: The observer that it belongs to.
        info: The run.
        tracer: Makes the spans.
        instruments: Measure.
        parent: The step that runs it as a child; None for none.
        counts: Count what is in flight.
        workflow_name: The name of the attribute for the name of a workflow.
        captures_values: Whether spans show events and results.
        on_end: Called with the run when it has ended.
    """

    def __init__(
        self,
        observer: object,
        info: RunInfo,
        tracer: Tracer,
        instruments: Instruments,
        parent: StepTrace | None,
        *,
        counts: Counts,
        workflow_name: str,
        captures_values: bool,
        on_end: Callable[[RunInfo], object],
    ) -> None:
        self.observer = observer
        self.recorded: BaseException | None = None
        #: The invocations that are queued or active.
        self.steps: dict[int, StepTrace] = {}
        self._info = info
        self._tracer = tracer
        self._measure = instruments
        self._counts = counts
        self._parent = parent
        self._workflow_name = workflow_name
        self._captures = captures_values
        self._on_end = on_end
        #: The attributes of the run's span, and those of the spans of its steps.
        self._of_steps = {RUN_ID: info.run_id, WORKFLOW: info.workflow}
        self._attributes: dict[str, Any] = dict(self._of_steps)
        self._labels: dict[str, Any] = {OPERATION: INVOKE_WORKFLOW, workflow_name: info.workflow}
        self._key: Labels = ((WORKFLOW, info.workflow),)
        self._step_labels: dict[str, tuple[dict[str, Any], Labels]] = {}
        self._span: Span | None = None
        self._context: Context = context_api.get_current()
        self._tokens: tuple[Any, Token[Any]] | None = None
        self._is_recording = False
        self._started_at = self._at = 0.0
        #: The latest events: number, type, and the span that emitted it. An event takes the place of
        #: the one that came :data:`CAUSES_KEPT` before it.
        self._causes: dict[int, tuple[int, str, SpanContext | None]] = {}
        self._waits: dict[int, Wait] = {}
        self._questions: dict[str, tuple[str, float, int, Wait | None, SpanContext | None]] = {}
        self._asking_since = self._asked_for = 0.0
        self._cancellation: CancellationRequested | None = None
        #: Failures of steps that fail the run, which are recorded in the spans of the steps.
        self._failures: deque[BaseException] = deque(maxlen=FAILURES_KEPT)

    def take(self, record: Record) -> None:
        """Take one record of the run."""
        self._at = record.at
        handler = _HANDLERS.get(type(record))
        if handler is not None:
            handler(self, record)

    # -- around the run

    def __enter__(self) -> None:
        """Open the span of the run, and make it current."""
        context = context_api.get_current()
        links: list[Link] = []
        if self._info.is_resumed:
            context, links = self._continue(context)
        above = None if self._parent is None else self._parent.span
        if above is not None and not get_current_span(context).get_span_context().is_valid:
            context = set_span_in_context(above, context)
        name = self._info.workflow
        self._span = self._tracer.start_span(
            f"{INVOKE_WORKFLOW} {name}",
            context,
            SpanKind.INTERNAL,
            {OPERATION: INVOKE_WORKFLOW, self._workflow_name: name, **self._attributes},
            links,
        )
        self._is_recording = self._span.is_recording()
        self._context = set_span_in_context(self._span, context)
        self._write_carrier()
        others = tuple(
            listen
            for listen in call_listeners.get()
            if getattr(getattr(listen, "__self__", None), "observer", None) is not self.observer
        )
        self._tokens = (
            context_api.attach(self._context),
            call_listeners.set((*others, self.begin_call)),
        )
        self._counts.runs.add(1, self._key)

    def _continue(self, context: Context) -> tuple[Context, list[Link]]:
        """Return the context with the baggage of the run before, and a link to its span."""
        before = propagate.extract(self._info.carrier, context_api.Context())
        for key, value in baggage.get_all(before).items():
            if baggage.get_baggage(key, context) is None:
                context = baggage.set_baggage(key, value, context)
        span = get_current_span(before).get_span_context()
        return context, [Link(span, {LINK: "resumed from"})] if span.is_valid else []

    def _write_carrier(self) -> None:
        """Put the context of the run's span in the carrier, which is part of every snapshot."""
        assert self._span is not None
        if self._span.get_span_context().is_valid:
            carrier = self._info.carrier
            for field in propagate.get_global_textmap().fields:
                carrier.pop(field, None)
            propagate.inject(carrier, self._context)

    def __exit__(self, *_: object) -> None:
        """End the span of the run. ``status`` and ``error`` of the run are set."""
        try:
            if self._tokens is not None:
                attached, listening = self._tokens
                call_listeners.reset(listening)
                context_api.detach(attached)
            self._end()
        finally:
            self._on_end(self._info)

    def _end(self) -> None:
        span, info = self._span, self._info
        assert span is not None
        for question in tuple(self._questions):
            # A question of a durable run is still open where that continues.
            self._close_question(question, info.status if info.status in CONTINUES else "cancelled")
        for step in tuple(self.steps.values()):
            self._drop(step)
        labels = {**self._labels, OUTCOME: info.status or "cancelled"}
        span.set_attribute(OUTCOME, labels[OUTCOME])
        if self._asked_for:
            span.set_attribute(RUN_PEOPLE, self._asked_for)
        if info.error is not None and (
            info.status in ("failed", "timed_out")
            or (info.status == "detached" and info.error.__cause__ is not None)
        ):
            labels[ERROR_TYPE] = error_type(info.error)
            is_recorded = any(info.error is error for error in self._failures)
            mark_failed(span, info.error, is_recorded=is_recorded or self.recorded is info.error)
            if self._parent is not None:
                self._parent.recorded = info.error
        elif info.status in ("cancelled", *CONTINUES) and self._cancellation is not None:
            span.set_attributes(_cancellation(self._cancellation))
        self._failures.clear()
        self._counts.runs.add(-1, self._key)
        self._measure.run_duration.record(self._at - self._started_at, labels)
        span.end()

    def begin_call(self, call: ModelCall) -> CallReport:
        """Open the span of a model call, in the context of the call."""
        step = current_step.get()
        owner = self if step is None or step.run is not self else step
        return CallSpan(self._tracer, self._measure, call, owner, captures_values=self._captures)

    def around(self, invocation: Invocation) -> _AroundStep | None:
        """Return what makes the span of a step current."""
        step = self.steps.get(invocation.number)
        if step is None or step.span is None:
            return None
        if self._captures and self._is_recording:
            step.span.set_attribute(EVENT_VALUE, brief(invocation.event))
        return _AroundStep(step, invocation if self._captures else None)

    # -- records of the run

    def _run_started(self, record: RunStarted) -> None:
        self._started_at = record.at
        if record.is_resumed:
            self._attributes[RUN_RESUMED] = True
        if record.timeout is not None:
            self._attributes[RUN_TIMEOUT] = record.timeout
        if record.queued >= SHORTEST_WAIT:
            self._attributes[RUN_QUEUED] = record.queued

    # -- causes

    def _event_emitted(self, record: EventEmitted) -> None:
        step = None if record.source is None else self.steps.get(record.source)
        if step is not None and record.origin == "engine":
            step.is_given_on = True
        if not self._is_recording:
            return
        span = None if step is None or step.span is None else step.span.get_span_context()
        self._causes[record.event % CAUSES_KEPT] = record.event, record.event_type, span

    def _cause(self, event: int) -> tuple[str, SpanContext | None]:
        found = self._causes.get(event % CAUSES_KEPT)
        if found is None or found[0] != event:
            return "", None
        return found[1], found[2]

    def _causes_of(self, events: Iterable[int], step: StepTrace) -> list[tuple[SpanContext, str]]:
        found: list[tuple[SpanContext, str]] = []
        for event in events:
            kind, span = self._cause(event)
            if kind and kind not in step.events:
                step.events.append(kind)
            if span is not None and len(found) < MOST_LINKS:
                found.append((span, kind))
        return found

    def _events_collected(self, record: EventsCollected) -> None:
        step = self.steps.get(record.invocation or 0)
        if step is None or step.span is None or not self._is_recording:
            return
        known = {span.span_id for span, _ in step.causes}
        for span, kind in self._causes_of(record.events, step):
            if span.span_id not in known:
                step.span.add_link(span, {EVENT_TYPE: kind})

    # -- invocations

    def _labels_of(self, step: str) -> tuple[dict[str, Any], Labels]:
        """Return the attributes of measurements of a step: as such, and as a key."""
        found = self._step_labels.get(step)
        if found is None:
            labels = {WORKFLOW: self._info.workflow, STEP: step}
            found = self._step_labels[step] = labels, tuple(labels.items())
        return found

    def _invocation_queued(self, record: InvocationQueued) -> None:
        self.steps[record.invocation] = step = StepTrace(self, record)
        if self._is_recording:
            step.causes = self._causes_of(record.events, step)
        before = None if record.previous is None else self.steps.get(record.previous)
        if before is not None:
            before.is_given_on = True
            if before.span is not None:
                step.causes.append((before.span.get_span_context(), ""))
        self._counts.queued.add(1, self._labels_of(record.step)[1])

    def _invocation_started(self, record: InvocationStarted) -> None:
        step = self.steps.get(record.invocation)
        if step is None:
            return
        step.started_at = record.at
        queued = max(record.at - step.queued_at, 0.0)
        attributes, links = None, None
        if self._is_recording:
            attributes = self._describe(step, record.worker, queued)
            links = [
                Link(span, {EVENT_TYPE: kind} if kind else {LINK: "attempt before"})
                for span, kind in step.causes
            ]
        step.span = self._tracer.start_span(
            f"step {step.name}", self._context, SpanKind.INTERNAL, attributes, links
        )
        labels, key = self._labels_of(step.name)
        self._measure.queue_duration.record(queued, labels)
        self._counts.queued.add(-1, key)
        self._counts.steps.add(1, key)

    def _describe(self, step: StepTrace, worker: int, queued: float) -> dict[str, Any]:
        return {
            **self._of_steps,
            STEP: step.name,
            INVOCATION: step.number,
            ATTEMPT: step.attempt,
            WORKER: worker,
            STEP_QUEUED: queued,
            EVENT_TYPE: step.events[0] if len(step.events) == 1 else ", ".join(step.events),
        }

    def _invocation_ended(self, record: InvocationEnded) -> None:
        step = self.steps.pop(record.invocation, None)
        if step is None:
            return
        labels, key = self._labels_of(step.name)
        if step.span is None:
            self._counts.queued.add(-1, key)
            return
        for number in tuple(step.waits):
            self._end_wait(number, record.at, "cancelled")
        self._counts.steps.add(-1, key)
        labels = {**labels, OUTCOME: record.outcome}
        if record.error is not None and record.outcome == "failed":
            labels[ERROR_TYPE] = error_type(record.error)
        self._measure.step_duration.record(record.at - step.started_at, labels)
        self._close(step, step.span, record)

    def _close(self, step: StepTrace, span: Span, record: InvocationEnded) -> None:
        """End the span of a step."""
        outcome, error = record.outcome, record.error
        span.set_attribute(OUTCOME, outcome)
        if step.waited:
            span.set_attribute(STEP_WAITED, step.waited)
        if outcome == "failed" and error is not None:
            mark_failed(span, error, is_recorded=error is step.recorded)
            if not step.is_given_on:
                self._failures.append(error)
        elif outcome == "cancelled":
            span.set_attributes(_cancellation(step.cancellation or self._cancellation))
        if step.delivered_at is not None:
            span.set_attribute(UNWINDING, record.at - step.delivered_at)
        span.end()
        step.recorded = None

    def _drop(self, step: StepTrace) -> None:
        self._invocation_ended(InvocationEnded(self._at, step.number, "cancelled"))

    # -- cancellation

    def _cancellation_requested(self, record: CancellationRequested) -> None:
        if record.scope == "run":
            self._cancellation = record
        for number in record.invocations:
            step = self.steps.get(number)
            if step is not None and step.cancellation is None:
                step.cancellation = record

    def _cancellation_delivered(self, record: CancellationDelivered) -> None:
        step = self.steps.get(record.invocation)
        if step is not None and step.span is not None:
            step.delivered_at = record.at
            why = None if record.cancellation is None else step.cancellation
            step.span.add_event("cancellation", _cancellation(why))

    # -- waits

    def _wait_started(self, record: WaitStarted) -> None:
        step = None if record.invocation is None else self.steps.get(record.invocation)
        if step is None:
            return
        if not step.waits:
            step.waiting_since = record.at
        step.waits[record.wait] = self._waits[record.wait] = Wait(record, step)

    def _wait_ended(self, record: WaitEnded) -> None:
        self._end_wait(record.wait, record.at, record.outcome, record.event)

    def _end_wait(self, number: int, at: float, outcome: str, event: int | None = None) -> None:
        wait = self._waits.pop(number, None)
        if wait is None:
            return
        step = wait.step
        del step.waits[number]
        if not step.waits:
            step.waited += at - step.waiting_since
        if step.span is None or wait.kind == "child":
            return  # the run of the child has its own span
        took = at - wait.at
        labels = {**self._labels_of(step.name)[0], WAIT_KIND: wait.kind}
        self._measure.wait_duration.record(took, labels)
        if took >= SHORTEST_WAIT or wait.kind in ("event", "person", "branch"):
            self._show_wait(wait, step.span, outcome, event)

    def _show_wait(self, wait: Wait, span: Span, outcome: str, event: int | None) -> None:
        """Make the span of a wait that is over: no other span is inside of it."""
        kind, cause = ("", None) if event is None else self._cause(event)
        attributes: dict[str, Any] = {WAIT_KIND: wait.kind, WAIT_OUTCOME: outcome}
        if wait.subject:
            attributes[EVENT_TYPE] = wait.subject
        if wait.question is not None:
            attributes[QUESTION_ID] = wait.question
        self._tracer.start_span(
            f"wait for {wait.kind}",
            set_span_in_context(span, self._context),
            SpanKind.INTERNAL,
            attributes,
            [] if cause is None else [Link(cause, {EVENT_TYPE: kind})],
            wait.began,
        ).end()

    # -- questions to people

    def _question_asked(self, record: QuestionAsked) -> None:
        step = None if record.invocation is None else self.steps.get(record.invocation)
        wait = None
        if step is not None:
            # A step asks when its wait has begun.
            latest = reversed(tuple(step.waits.values()))
            wait = next((w for w in latest if w.kind == "event"), None)
        if wait is not None:
            wait.kind, wait.question = "person", record.question
        asked_by = None if step is None or step.span is None else step.span.get_span_context()
        if not self._questions:
            self._asking_since = record.at
        asked = record.event_type, record.at, time_ns(), wait, asked_by
        self._questions[record.question] = asked
        self._counts.questions.add(1, self._key)

    def _question_answered(self, record: QuestionAnswered) -> None:
        self._close_question(record.question, "cancelled" if record.event is None else "done")

    def _close_question(self, question: str, outcome: str) -> None:
        """End the wait for an answer; where no step waits for it, the run has a span for it."""
        asked = self._questions.pop(question, None)
        if asked is None:
            return
        kind, at, began, wait, asked_by = asked
        if not self._questions:
            self._asked_for += self._at - self._asking_since
        self._counts.questions.add(-1, self._key)
        if wait is not None:
            return
        labels = {WORKFLOW: self._info.workflow, WAIT_KIND: "person"}
        self._measure.wait_duration.record(self._at - at, labels)
        self._tracer.start_span(
            "wait for person",
            self._context,
            SpanKind.INTERNAL,
            {
                WAIT_KIND: "person",
                WAIT_OUTCOME: outcome,
                EVENT_TYPE: kind,
                QUESTION_ID: question,
            },
            [] if asked_by is None else [Link(asked_by, {EVENT_TYPE: kind})],
            began,
        ).end()


@final
class _AroundStep:
    """Makes the span of a step current in its context; the span is ended with its record."""

    __slots__ = ("_invocation", "_step", "_tokens")

    def __init__(self, step: StepTrace, invocation: Invocation | None) -> None:
        self._step = step
        #: Where the span shows the result.
        self._invocation = invocation
        self._tokens: tuple[Any, Token[StepTrace | None]] | None = None

    def __enter__(self) -> None:
        step = self._step
        assert step.span is not None
        self._tokens = (
            context_api.attach(set_span_in_context(step.span)),
            current_step.set(step),
        )

    def __exit__(self, *_: object) -> None:
        if self._tokens is not None:
            attached, step = self._tokens
            current_step.reset(step)
            context_api.detach(attached)
        invocation, span = self._invocation, self._step.span
        if invocation is not None and invocation.outcome == "completed" and span is not None:
            span.set_attribute(RESULT_VALUE, brief(invocation.result))


def _cancellation(record: CancellationRequested | None) -> dict[str, Any]:
    """Return the attributes for who has asked for a cancellation, and why."""
    if record is None:
        return {CANCELLED_BY: "step", CANCELLATION_REASON: "a cancel scope of the step itself"}
    found: dict[str, Any] = {CANCELLED_BY: record.by, CANCELLATION_REASON: record.reason}
    if record.invocation is not None:
        found[CANCELLED_BY_INVOCATION] = record.invocation
    return found


_HANDLERS: dict[type[Record], Callable[[RunTrace, Any], None]] = {
    RunStarted: RunTrace._run_started,
    EventEmitted: RunTrace._event_emitted,
    EventsCollected: RunTrace._events_collected,
    InvocationQueued: RunTrace._invocation_queued,
    InvocationStarted: RunTrace._invocation_started,
    InvocationEnded: RunTrace._invocation_ended,
    CancellationRequested: RunTrace._cancellation_requested,
    CancellationDelivered: RunTrace._cancellation_delivered,
    WaitStarted: RunTrace._wait_started,
    WaitEnded: RunTrace._wait_ended,
    QuestionAsked: RunTrace._question_asked,
    QuestionAnswered: RunTrace._question_answered,
}
