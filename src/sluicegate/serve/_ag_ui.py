"""The events of AG-UI 1.0 for a run.

AG-UI is a protocol between agents and user interfaces (https://docs.ag-ui.com/spec/1.0). A client posts
an input and gets one *exchange*: ``RUN_STARTED``, what happens, and ``RUN_FINISHED`` or ``RUN_ERROR``. It
demands that

* everything that was opened (steps, messages, calls of tools, subagents) is closed before ``RUN_FINISHED``;
  here it is before ``RUN_ERROR``, too;
* no two open steps of an owner, the run or a subagent, have the same name;
* what continues a message has the owner that the message was opened with;
* a subagent is started once in an exchange;
* nothing is asked in the middle: a run that waits for an answer ends its exchange with an interrupt, and
  the answer comes with the input of the next one.

A :class:`Translator` is a function of its inputs: it reads no clock and no run.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import attrs
import msgspec

from sluicegate._data.json import json_of
from sluicegate._errors import name_of
from sluicegate._events import (
    ChildEvent,
    InternalEvent,
    ProgressEvent,
    StepStateChanged,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    untagged,
)
from sluicegate.llms import ReasoningDelta, TextDelta, ToolCalled, ToolReturned
from sluicegate.records import (
    EventStreamed,
    InvocationEnded,
    InvocationQueued,
    InvocationStarted,
    RunEnded,
    RunStarted,
)
from sluicegate.serve._data import value_of
from sluicegate.serve._json_patch import json_patch


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sluicegate._events import Event
    from sluicegate.records import Record

#: The version of the protocol.
VERSION = "1.0"

#: An event of AG-UI, as the data of its JSON.
AgUiEvent: TypeAlias = dict[str, Any]

#: The roles that a message may have.
_ROLES = frozenset({"developer", "system", "assistant", "user"})

#: The statuses of a run that has left the memory before its end.
LEFT = ("parked", "detached")
#: The ends of a step in internal events, as the records name them.
_OUTCOMES = {"done": "completed", "raised": "failed"}


@attrs.frozen
class Interrupt:
    """An open question, as an exchange ends with it.

    Attributes:
        id: Identifies it; the answer names it.
        run_id: The run that asks: this one, or one of its children.
        message: The question, for a person.
        schema: The JSON Schema of the answer; None if it is not known.
        event: The class and the fields of the question; None if none was published.
    """

    id: str
    run_id: str
    message: str | None = None
    schema: dict[str, Any] | None = None
    event: dict[str, Any] | None = None


@attrs.define(eq=False)
class _Owner:
    """The run, or a child: a subagent."""

    run_id: str
    name: str
    parent: _Owner | None = None
    #: Its identifier as a subagent; None for the run itself.
    subagent: str | None = None
    #: From its clock to the time of day, in seconds; None if it is unknown.
    offset: float | None = None
    #: The names of the steps by invocation: queued, at work, and the names under which they are open.
    queued: dict[int, str] = attrs.Factory(dict[int, str])
    live: dict[int, str] = attrs.Factory(dict[int, str])
    open: dict[int, str] = attrs.Factory(dict[int, str])
    is_announced: bool = False
    last: StopEvent | None = None


@attrs.define(eq=False)
class _Message:
    """A message that was opened at least once."""

    id: str
    kind: Literal["TEXT_MESSAGE", "REASONING_MESSAGE"]
    owner: _Owner
    role: str
    #: The invocation that last added to it, with its run; None if it is unknown.
    publisher: tuple[str, int] | None = None
    is_open: bool = False


@attrs.define(eq=False)
class _Published:
    """An event on the stream of the run; the records that follow say which child published it."""

    value: Event
    owner: _Owner
    invocation: int | None


@final
class Translator:
    """Translates what happens in a run into events of AG-UI.

    It takes the events of the stream (:meth:`published`); or, if the run is observed, its records and
    those of its children (:meth:`record`), which contain the events and tell more. Each method returns
    the events to send, in order. Outside of an exchange there are none, but the next one begins with what
    is at work by then.

    Args:
        run_id: The run.
        workflow: The name of its workflow.
    """

    def __init__(self, run_id: str, workflow: str) -> None:
        self._root = _Owner(run_id, workflow)
        self._runs: dict[str, _Owner] = {run_id: self._root}
        self._out: list[AgUiEvent] = []
        self._is_open = self._is_over = self._is_interrupted = False
        self._thread = self._exchange = ""
        self._timestamp: int | None = None
        self._pending: _Published | None = None
        #: The messages by what identifies them, the open ones being among them.
        self._messages: dict[tuple[Any, ...], _Message] = {}
        #: The identifiers of messages and of subagents that were used, and how often one was wanted.
        self._wanted: Counter[tuple[str, str]] = Counter()
        #: The calls of tools in the exchange, and whether they have returned.
        self._calls: dict[str, bool] = {}
        self._state: Any = None
        #: The last number given to an invocation whose own one is unknown; they are negative.
        self._unnumbered = 0

    @property
    def is_interrupted(self) -> bool:
        """Whether the last exchange has ended with open questions."""
        return self._is_interrupted

    @property
    def is_open(self) -> bool:
        """Whether an exchange has begun and not ended."""
        return self._is_open

    # -- the exchange ------------------------------------------------------------------------------

    def start(self, thread_id: str, exchange: str, parent: str | None = None) -> list[AgUiEvent]:
        """Begin an exchange, with what is at work. If the run has ended, so has the exchange.

        Args:
            thread_id: The conversation.
            exchange: The ``runId`` of AG-UI, which is another one in each exchange.
            parent: The ``parentRunId`` of the input.
        """
        self._thread, self._exchange, self._is_open = thread_id, exchange, True
        self._is_interrupted = False
        self._calls.clear()
        fields = {"threadId": thread_id, "runId": exchange, "protocolVersion": VERSION}
        if parent is not None:
            fields["parentRunId"] = parent
        mine = {"handler_id": self._root.run_id, "workflow_name": self._root.name}
        self._emit("RUN_STARTED", None, **fields, metadata={"sluicegate": mine})
        if self._state is not None:
            self._emit("STATE_SNAPSHOT", None, snapshot=self._state)
        for owner in self._runs.values():
            self._announce(owner)
            for invocation in owner.live:
                self._open_step(owner, invocation)
        if self._is_over:
            self._end_run(self._root)
        return self._taken()

    def finish(self, last: StopEvent) -> list[AgUiEvent]:
        """End the exchange with the terminal event of the run."""
        self._root.last = last
        self._settle()
        self._end_run(self._root)
        return self._taken()

    def interrupt(self, interrupts: Sequence[Interrupt]) -> list[AgUiEvent]:
        """End the exchange with the open questions of a run that waits for answers.

        Args:
            interrupts: The questions, at least one.
        """
        self._settle()
        if not self._is_open:
            return self._taken()
        if self._state is not None:
            self._emit("STATE_SNAPSHOT", None, snapshot=self._state)
        shown = [self._interrupt(each) for each in interrupts]
        for owner in reversed(self._runs.values()):
            self._close_all(owner)
            if owner.is_announced:
                asked = [each.id for each in interrupts if each.run_id == owner.run_id]
                outcome = {"type": "suspended", **({"interruptIds": asked} if asked else {})}
                self._leave(owner, "SUBAGENT_FINISHED", outcome=outcome)
        self._is_interrupted = True
        self._end("RUN_FINISHED", outcome={"type": "interrupt", "interrupts": shown})
        return self._taken()

    def fail(self, message: str, code: str) -> list[AgUiEvent]:
        """End the exchange early: what it tells of may go on."""
        self._settle()
        if self._is_open:
            for owner in reversed(self._runs.values()):
                self._close_all(owner)
                if owner.is_announced:
                    self._leave(owner, "SUBAGENT_ERROR", message=message, code=code)
            self._end("RUN_ERROR", message=message, code=code)
        return self._taken()

    # -- what happens ------------------------------------------------------------------------------

    def published(self, event: Event) -> list[AgUiEvent]:
        """Take an event of the stream, of a run whose records are not known.

        If the internal events are among them, its steps are told of.
        """
        if isinstance(event, StepStateChanged):
            self._step_changed(event)
        else:
            self._publish(event, self._root, None)
        return self._taken()

    def record(self, run_id: str, record: Record) -> list[AgUiEvent]:
        """Take a record of the run, or of a child. The end of the run ends the exchange.

        Args:
            run_id: The run that it is of.
            record: The record.
        """
        owner = self._runs.get(run_id)
        if owner is not None and owner.offset is not None:
            self._timestamp = round((record.at + owner.offset) * 1000)
        if isinstance(record, EventStreamed):
            self._streamed(owner, record)
            return self._taken()
        self._settle()
        if isinstance(record, RunStarted):
            self._begin_run(record)
        elif owner is None:
            pass
        elif isinstance(record, InvocationQueued):
            owner.queued[record.invocation] = record.step
        elif isinstance(record, InvocationStarted):
            owner.live[record.invocation] = owner.queued.pop(record.invocation)
            self._open_step(owner, record.invocation)
        elif isinstance(record, InvocationEnded):
            self._close_step(owner, record.invocation, record.outcome)
        elif isinstance(record, RunEnded) and record.status in LEFT:
            self._leave_memory(owner)
        elif isinstance(record, RunEnded):
            self._end_run(owner)
        return self._taken()

    def settle(self) -> list[AgUiEvent]:
        """Return what waited for another record, when there is none for now."""
        self._settle()
        return self._taken()

    def state(self, value: Any) -> list[AgUiEvent]:
        """Take the state of the run, as JSON data: what has changed is told.

        Args:
            value: The state. It belongs to the translator from now on.
        """
        old, self._state = self._state, value
        if old is None:
            if value is not None:
                self._emit("STATE_SNAPSHOT", None, snapshot=value)
        elif (patch := json_patch(old, value)) is None:
            self._emit("STATE_SNAPSHOT", None, snapshot=value)
        elif patch:
            self._emit("STATE_DELTA", None, delta=patch)
        return self._taken()

    def gap(self, missed: int) -> list[AgUiEvent]:
        """Tell that so many events of the stream were lost, because the client reads too slowly."""
        self._settle()
        self._emit("CUSTOM", None, name="sluicegate.gap", value={"missed": missed})
        return self._taken()

    def stopping(self, grace: float) -> list[AgUiEvent]:
        """Tell that the server stops within so many seconds."""
        self._settle()
        self._emit("CUSTOM", None, name="sluicegate.stopping", value={"grace": grace})
        return self._taken()

    # -- the stream --------------------------------------------------------------------------------

    def _streamed(self, owner: _Owner | None, record: EventStreamed) -> None:
        """Take an event on the stream of the run, or of a child.

        An event that a child's stream forwards has a record of each stream that it passes, the
        outermost first, with nothing between them. The last one names the invocation.
        """
        if owner is None:
            return
        if owner is not self._root:
            if isinstance(record.value, StopEvent):
                owner.last = record.value
            elif self._pending is not None and untagged(self._pending.value) is untagged(
                record.value
            ):
                self._pending.owner, self._pending.invocation = owner, record.invocation
            return
        self._settle()
        if isinstance(record.value, StopEvent):
            owner.last = record.value
        else:
            self._pending = _Published(record.value, owner, record.invocation)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._publish(pending.value, pending.owner, pending.invocation)

    def _publish(self, event: Event, owner: _Owner, invocation: int | None) -> None:
        if isinstance(event, StopEvent):
            owner.last = event
            self._end_run(owner)
            return
        inner = untagged(event)
        publisher = None if invocation is None else (owner.run_id, invocation)
        if isinstance(inner, InternalEvent):
            return
        if isinstance(inner, TextDelta):
            role = inner.role if inner.role in _ROLES else "assistant"
            self._append("TEXT_MESSAGE", owner, publisher, inner, role)
        elif isinstance(inner, ReasoningDelta):
            self._append("REASONING_MESSAGE", owner, publisher, inner, "reasoning")
        elif isinstance(inner, ToolCalled):
            self._call(inner, owner)
        elif isinstance(inner, ToolReturned):
            self._return(inner, owner)
        elif isinstance(inner, ProgressEvent):
            self._progress(inner, owner)
        else:
            fields: dict[str, Any] = {"name": type(inner).__name__, "value": _data_of(inner)}
            if isinstance(event, ChildEvent):
                fields["metadata"] = {"sluicegate": {"path": [*event.path]}}
            self._emit("CUSTOM", owner, **fields)

    def _append(
        self,
        kind: Literal["TEXT_MESSAGE", "REASONING_MESSAGE"],
        owner: _Owner,
        publisher: tuple[str, int] | None,
        event: TextDelta | ReasoningDelta,
        role: str,
    ) -> None:
        message = self._message(kind, owner, event.message, role)
        message.publisher = publisher
        if not message.is_open and self._is_open:
            message.is_open = True
            if kind == "REASONING_MESSAGE":
                self._emit("REASONING_START", owner, messageId=message.id)
            self._emit(f"{kind}_START", owner, messageId=message.id, role=role)
        if event.text:
            self._emit(f"{kind}_CONTENT", owner, messageId=message.id, delta=_text(event.text))
        if event.is_last:
            self._close_message(message)

    def _message(self, kind: Any, owner: _Owner, wanted: str, role: str) -> _Message:
        """Return a message. One that another owner or role has already keeps its identifier to itself."""
        key = (kind, owner.run_id, owner.subagent, wanted, role)
        message = self._messages.get(key)
        if message is None:
            made = _Message(self._unique("message", wanted), kind, owner, role)
            message = self._messages[key] = made
        return message

    def _close_message(self, message: _Message) -> None:
        if message.is_open:
            message.is_open = False
            self._emit(f"{message.kind}_END", message.owner, messageId=message.id)
            if message.kind == "REASONING_MESSAGE":
                self._emit("REASONING_END", message.owner, messageId=message.id)

    def _call(self, call: ToolCalled, owner: _Owner) -> None:
        if call.id in self._calls:  # a step that was tried again
            return
        self._calls[call.id] = False
        more = {}
        if call.message is not None:
            message = self._message("TEXT_MESSAGE", owner, call.message, "assistant")
            more["parentMessageId"] = message.id
        identity = {"toolCallId": _text(call.id)}
        self._emit("TOOL_CALL_START", owner, **identity, toolCallName=_text(call.name), **more)
        self._emit("TOOL_CALL_ARGS", owner, **identity, delta=_text(call.arguments))
        self._emit("TOOL_CALL_END", owner, **identity)

    def _return(self, result: ToolReturned, owner: _Owner) -> None:
        if result.id in self._calls:
            self._calls[result.id] = True
        fields: dict[str, Any] = {
            "messageId": self._unique("message", f"{result.id}-result"),
            "toolCallId": _text(result.id),
            "content": _text(result.content),
        }
        if result.is_error:
            fields["metadata"] = {"sluicegate": {"is_error": True}}
        self._emit("TOOL_CALL_RESULT", owner, **fields)

    def _progress(self, event: ProgressEvent, owner: _Owner) -> None:
        content = _data_of(event)
        of = f"{content.pop('run_id')}-{content.pop('invocation')}"
        key = ("ACTIVITY", owner.run_id, owner.subagent, of)
        message = self._messages.get(key)
        if message is None:
            made = _Message(self._unique("message", f"progress-{of}"), "TEXT_MESSAGE", owner, "")
            message = self._messages[key] = made
        self._emit(
            "ACTIVITY_SNAPSHOT",
            owner,
            messageId=message.id,
            activityType="progress",
            content=content,
        )

    # -- runs and steps ----------------------------------------------------------------------------

    def _begin_run(self, record: RunStarted) -> None:
        if record.run_id == self._root.run_id:
            self._root.offset = record.wall_offset
        elif record.parent_run in self._runs:
            parent = self._runs[record.parent_run]
            owner = _Owner(record.run_id, record.workflow, parent, offset=record.wall_offset)
            owner.subagent = self._unique("subagent", record.run_id)
            self._runs[record.run_id] = owner
            self._announce(owner)

    def _announce(self, owner: _Owner) -> None:
        if owner.subagent is None or owner.is_announced or not self._is_open:
            return
        owner.is_announced = True
        parent = None if owner.parent is None else owner.parent.subagent
        more = {} if parent is None else {"parentSubagentRunId": parent}
        self._emit("SUBAGENT_STARTED", owner, name=owner.name, **more)

    def _leave(self, owner: _Owner, kind: str, **fields: Any) -> None:
        owner.is_announced = False
        self._emit(kind, owner, **fields)

    def _open_step(self, owner: _Owner, invocation: int) -> None:
        if invocation in owner.open or not self._is_open:
            return
        step = owner.live[invocation]
        name, number = step, 1
        while name in owner.open.values():
            number += 1
            name = f"{step} ({number})"
        owner.open[invocation] = name
        more = {"sluicegate": {"step": step, "invocation": invocation}}
        self._emit("STEP_STARTED", owner, stepName=name, metadata=more)

    def _close_step(self, owner: _Owner, invocation: int, outcome: str | None = None) -> None:
        step = owner.live.pop(invocation, None) or owner.queued.pop(invocation, None)
        for message in self._messages.values():
            if message.is_open and message.publisher == (owner.run_id, invocation):
                self._close_message(message)
        name = owner.open.pop(invocation, None)
        if name is not None:
            more = {"step": step, "invocation": invocation, "outcome": outcome}
            self._emit("STEP_FINISHED", owner, stepName=name, metadata={"sluicegate": more})

    def _step_changed(self, event: StepStateChanged) -> None:
        """Open or close a step of which only the name is known."""
        root = self._root
        if event.state == "running":
            self._unnumbered -= 1
            root.live[self._unnumbered] = event.name
            self._open_step(root, self._unnumbered)
            return
        for invocation, step in root.live.items():
            if step == event.name:
                self._close_step(root, invocation, _OUTCOMES.get(event.state, event.state))
                return

    def _close_all(self, owner: _Owner) -> None:
        """Close what an owner has open. Its steps are still at work for the next exchange."""
        for message in self._messages.values():
            if message.owner is owner:
                self._close_message(message)
        while owner.open:
            invocation, name = owner.open.popitem()
            more = {"sluicegate": {"step": owner.live.get(invocation), "invocation": invocation}}
            self._emit("STEP_FINISHED", owner, stepName=name, metadata=more)

    def _end_run(self, owner: _Owner) -> None:
        """Close a run, with the event that its stream ended with."""
        for child in [each for each in self._runs.values() if each.parent is owner]:
            self._end_run(child)
        self._close_all(owner)
        owner.live.clear()
        owner.queued.clear()
        last = owner.last
        error = _error_of(last)
        if owner is not self._root:
            del self._runs[owner.run_id]
            if not owner.is_announced:
                return
            if error is not None:
                self._leave(owner, "SUBAGENT_ERROR", message=error[0], code=error[1])
            else:
                self._leave(owner, "SUBAGENT_FINISHED", **_result_of(last))
            return
        self._is_over = True
        if not self._is_open:
            return
        if isinstance(last, WorkflowCancelledEvent):
            self._end("RUN_FINISHED", outcome={"type": "cancelled"}, **_reason_of(last))
        elif error is not None:
            self._end("RUN_ERROR", message=error[0], code=error[1])
        else:
            left = [_text(call) for call, has_returned in self._calls.items() if not has_returned]
            outcome = {"type": "success", **({"pendingToolCallIds": left} if left else {})}
            self._end("RUN_FINISHED", outcome=outcome, **_result_of(last))

    def _leave_memory(self, owner: _Owner) -> None:
        """Close what is at work in a run that has left the memory, where it begins anew later."""
        self._close_all(owner)
        owner.live.clear()
        owner.queued.clear()
        if owner is not self._root:
            del self._runs[owner.run_id]
            if owner.is_announced:
                self._leave(owner, "SUBAGENT_FINISHED", outcome={"type": "suspended"})

    def _end(self, kind: str, **fields: Any) -> None:
        if kind == "RUN_FINISHED":
            fields = {"threadId": self._thread, "runId": self._exchange, **fields}
        self._emit(kind, None, **fields)
        self._is_open = False

    def _interrupt(self, question: Interrupt) -> dict[str, Any]:
        shown: dict[str, Any] = {"id": question.id, "reason": "input_required"}
        owner = self._runs.get(question.run_id, self._root)
        if owner.subagent is not None:
            shown["subagentRunId"] = owner.subagent
        if question.message is not None:
            shown["message"] = question.message
        if question.schema is not None:
            shown["responseSchema"] = question.schema
        if question.event is not None:
            shown["metadata"] = {"sluicegate": question.event}
        return shown

    # -- what is sent ------------------------------------------------------------------------------

    def _unique(self, kind: str, wanted: str) -> str:
        """Return an identifier that was not used before: the wanted one, or one made of it."""
        wanted = _text(wanted)
        made = wanted
        while self._wanted[kind, made]:
            self._wanted[kind, wanted] += 1
            made = f"{wanted}#{self._wanted[kind, wanted]}"
        self._wanted[kind, made] += 1
        return made

    def _emit(self, kind: str, owner: _Owner | None, **fields: Any) -> None:
        if not self._is_open:
            return
        event: AgUiEvent = {"type": kind}
        if self._timestamp is not None:
            event["timestamp"] = self._timestamp
        if owner is not None and owner.subagent is not None:
            event["subagentRunId"] = owner.subagent
        event |= fields
        self._out.append(event)

    def _taken(self) -> list[AgUiEvent]:
        taken, self._out = self._out, []
        return taken


def encoded(events: Iterable[AgUiEvent], cursor: str | None = None) -> bytes:
    """Return events of AG-UI as server-sent events.

    Args:
        events: The events.
        cursor: The position in the stream of the run behind the last of them.
    """
    blocks = [f"data: {json_of(event)}\n\n" for event in events]
    if blocks and cursor is not None:
        blocks[-1] = f"id: {cursor}\n{blocks[-1]}"
    return "".join(blocks).encode("utf-8", "backslashreplace")


def _text(text: str) -> str:
    """Return a text without lone surrogates, which JSON cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _data_of(event: Event) -> dict[str, Any]:
    return msgspec.json.decode(json_of(value_of(event)))  # type: ignore[no-any-return]


def _error_of(last: StopEvent | None) -> tuple[str, str] | None:
    """Return what went wrong, and a code; of an exception the class alone, its text may be confidential."""
    if isinstance(last, WorkflowFailedEvent):
        kind = name_of(last.exception)
        where = "" if last.step_name is None else f" in the step {last.step_name}"
        return f"{kind}{where}", kind
    if isinstance(last, WorkflowTimedOutEvent):
        return f"the run did not end within {last.timeout:g} s", "timed_out"
    if isinstance(last, WorkflowCancelledEvent):
        return last.reason or "the run was cancelled", "cancelled"
    if isinstance(last, WorkflowDetachedEvent):
        return f"the run continues elsewhere: {last.reason}", "detached"
    return ("the run has left no result", "unknown") if last is None else None


def _result_of(last: StopEvent | None) -> dict[str, Any]:
    """Return the result of a run that has completed, as a field; none for None."""
    if last is None:
        return {}
    data = _data_of(last)
    result = data.get("result") if type(last) is StopEvent and data.keys() <= {"result"} else data
    return {} if result is None else {"result": result}


def _reason_of(last: WorkflowCancelledEvent) -> dict[str, Any]:
    return {} if last.reason is None else {"metadata": {"sluicegate": {"reason": last.reason}}}
