"""Exchanges of AG-UI: the input that opens one, the run that it is about, and the stream that answers.

The server owns the run, for it outlives the exchange if it asks something: the exchange then ends with
an interrupt, and the run waits. The next input answers with the ids of the questions, and its exchange
continues the same run. If the client hangs up in an exchange, the run is cancelled, as any that a request
has started.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, cast, final

import attrs
import msgspec

from sluicegate._asgi import HEARTBEAT, Encoder
from sluicegate._data.json import json_of
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import StopEvent
from sluicegate._handler import run_of
from sluicegate._loop import current_backend
from sluicegate._observers import Observer
from sluicegate.records import (
    EventStreamed,
    InvocationEnded,
    InvocationQueued,
    InvocationStarted,
    RunEnded,
    RunStarted,
    StateEditEnded,
)
from sluicegate.serve._ag_ui import LEFT, Interrupt, Translator, encoded
from sluicegate.serve._data import question_data, shown
from sluicegate.serve._requests import (
    Refusal,
    RunRequest,
    answer_classes,
    decoded,
    read_event,
    read_run,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sluicegate._definition.graph import Graph
    from sluicegate._events import Event
    from sluicegate._handler import WorkflowHandler
    from sluicegate._observers import RunInfo
    from sluicegate._questions import OpenQuestion
    from sluicegate.records import Record
    from sluicegate.serve._runs import Runs, ServedRun

#: Records that wait for the client to read; with more, events of the stream are dropped.
MOST_WAITING = 10_000
#: How many threads and runs are looked after before those that are over are forgotten.
_MOST_KEPT = 1_000
#: The records that a translation is made of.
_KEPT = (
    EventStreamed,
    InvocationEnded,
    InvocationQueued,
    InvocationStarted,
    RunEnded,
    RunStarted,
)
_BEGINNINGS = (InvocationQueued, RunStarted)
_ENDS = (InvocationEnded, RunEnded)
#: The fields of a question that may be its text, in order.
_TEXTS = ("message", "question", "prompt", "text", "prefix")


# -- the input ------------------------------------------------------------------------------------


@attrs.frozen
class RunInput:
    """The input of an exchange: a ``RunAgentInput``.

    Attributes:
        thread_id: The conversation.
        run_id: The exchange.
        parent_run_id: What the client says it continues.
        resume: The answers to interrupts, as the client sent them.
    """

    thread_id: str
    run_id: str
    parent_run_id: str | None = None
    resume: list[dict[str, Any]] = attrs.Factory(list[dict[str, Any]])


def read_input(body: dict[str, Any]) -> RunInput:
    """Return the input in a body.

    Raises:
        Refusal: It is none.
    """
    for name in ("threadId", "runId"):
        if not isinstance(body.get(name), str):
            msg = (
                f"{name} is {brief(body.get(name))}; expected a RunAgentInput of AG-UI: "
                '{"threadId": "...", "runId": "...", "messages": [], "forwardedProps": {...}}'
            )
            raise Refusal(400, msg, field=name)
    for name in ("messages", "tools", "context", "resume"):
        given = body.get(name, [])
        is_list = isinstance(given, list)
        if not is_list or not all(isinstance(each, dict) for each in cast("list[Any]", given)):
            msg = f"{name} is {brief(cast('Any', given))}; expected a list of objects"
            raise Refusal(400, msg, field=name)
    parent = body.get("parentRunId")
    if parent is not None and not isinstance(parent, str):
        msg = f"parentRunId is {brief(parent)}; expected a text"
        raise Refusal(400, msg, field="parentRunId")
    return RunInput(body["threadId"], body["runId"], parent, body.get("resume", []))


def read_exchange(graph: Graph, body: dict[str, Any]) -> tuple[RunInput | None, RunRequest]:
    """Return the input in a body, and what it asks to run.

    A body of the other formats is understood, too: it has no input, but the run is told of as one.

    The start event gets the members of ``forwardedProps`` as its fields, and, if its class declares fields
    of these names or none at all, ``thread_id``, ``messages``, ``state``, ``tools``, ``context``, and as
    ``user_message`` the text of the last message of the user.

    Raises:
        Refusal: The input does not fit the workflow.
    """
    if body.keys() & {"start_event", "kwargs"}:
        return None, read_run(graph, body)
    given = read_input(body)
    props = body.get("forwardedProps")
    if props is not None and not isinstance(props, dict):
        msg = f"forwardedProps is {brief(props)}; expected an object with the fields of the start event"
        raise Refusal(400, msg, field="forwardedProps")
    cls = graph.start_event
    declared = {field.name for field in attrs.fields(cls)}
    offered: dict[str, Any] = {
        "thread_id": given.thread_id,
        "messages": body.get("messages", []),
        "state": body.get("state"),
        "tools": body.get("tools", []),
        "context": body.get("context", []),
        "user_message": _last_words(body.get("messages", [])),
    }
    fitting = {n: v for n, v in offered.items() if (n in declared if declared else v)}
    value = {**fitting, **cast("dict[str, Any]", props or {})}
    return given, RunRequest(decoded(cls, value, "forwardedProps"), None, body)


def _last_words(messages: list[dict[str, Any]]) -> str:
    """Return the text of the last message of the user; an empty text if there is none."""
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return content
        parts = cast("list[Any]", content) if isinstance(content, list) else []
        texts = [cast("Any", part).get("text") for part in parts if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


# -- what is known of a run --------------------------------------------------------------------------


@final
class Feed(Observer):
    """The records of a run and of its children, until an exchange tells of them.

    At most about :data:`MOST_WAITING` wait. Beyond, the events of the stream are dropped, and what both
    began and ended; the rest is as large as what is at work.
    """

    def __init__(self, handler: WorkflowHandler[Any], workflow: str, thread_id: str | None) -> None:
        self.handler = handler
        self.thread_id: str | None = thread_id
        self.translator = Translator(handler.run_id, workflow)
        #: Whether the run waits for answers, and no input has come with them yet.
        self.is_left: bool = False
        #: The position in the stream of the run where the next exchange continues.
        self.cursor: str = "0"
        #: Called when there is something to tell.
        self.wake: Callable[[], object] | None = None
        #: The answers so far, by the ids of the interrupts.
        self.answered: dict[str, Any] = {}
        #: The runs whose records it has; without any, the events of the stream are all that is known.
        self._known: set[str] = set()
        self._waiting: deque[tuple[str, Record]] = deque()
        self._limit = MOST_WAITING
        self._missed = 0
        self._is_state_old = True
        self._has_state = False
        self._is_deaf = False

    @property
    def is_listening(self) -> bool:
        """Whether it has the records of the run."""
        return bool(self._known)

    def listen(self, run: RunInfo) -> Callable[[Record], object] | None:
        """Listen to the run and to its children, and to no other run that they may begin."""
        if run.run_id != self.handler.run_id and run.parent_run_id not in self._known:
            return None
        self._known.add(run.run_id)
        self._is_state_old = True
        return partial(self._take, run.run_id)

    def close(self) -> None:
        """Listen no more, for nobody will ask."""
        self._is_deaf = True
        self._waiting.clear()
        self.wake = None

    def _take(self, run_id: str, record: Record) -> None:
        if self._is_deaf:
            return
        if isinstance(record, StateEditEnded):
            if run_id != self.handler.run_id or record.outcome != "committed":
                return
            self._is_state_old = True
        elif isinstance(record, _KEPT):
            self._waiting.append((run_id, record))
            if len(self._waiting) > self._limit:
                self._compact()
            if isinstance(record, RunEnded) and self.is_left:
                self._end_unheard(run_id, record)
        else:
            return
        if self.wake is not None:
            self.wake()

    def _end_unheard(self, run_id: str, record: RunEnded) -> None:
        """Let go of a run that has ended although nobody has answered: no exchange will tell of it."""
        if run_id == self.handler.run_id and record.status not in LEFT:
            self.close()

    def _compact(self) -> None:
        """Drop the events of the stream, and the invocations and children that are over already."""
        began = {_subject(*each) for each in self._waiting if isinstance(each[1], _BEGINNINGS)}
        over = {_subject(*each) for each in self._waiting if isinstance(each[1], _ENDS)} & began
        kept: deque[tuple[str, Record]] = deque()
        for run_id, record in self._waiting:
            if isinstance(record, EventStreamed) and not isinstance(record.value, StopEvent):
                self._missed += run_id == self.handler.run_id
            elif _subject(run_id, record) not in over and (run_id, None) not in over:
                kept.append((run_id, record))
        self._waiting = kept
        self._limit = max(MOST_WAITING, 2 * len(kept))

    def drain(self) -> list[dict[str, Any]]:
        """Return what there is to tell now."""
        translator = self.translator
        events: list[dict[str, Any]] = []
        if self._missed:
            events += translator.gap(self._missed)
            self._missed = 0
        while self._waiting and translator.is_open:
            run_id, record = self._waiting.popleft()
            if isinstance(record, RunEnded) and run_id == self.handler.run_id:
                events += self._drain_state()
            events += translator.record(run_id, record)
        return events + translator.settle() + self._drain_state()

    def _drain_state(self) -> list[dict[str, Any]]:
        part = run_of(self.handler).part
        if not self._is_state_old or (part is not None and not part.is_live):
            return []
        self._is_state_old = False
        state = state_of(self.handler)
        if not state and not self._has_state:
            return []
        self._has_state = True
        return self.translator.state(state)

    def interrupts(self) -> list[Interrupt]:
        """Return the open questions, if the run waits for nothing else: not for an answer on its way."""
        if self.handler.status != "idle":
            return []
        run_id = self.handler.run_id
        found = [interrupt_of(run_id, each) for each in self.handler.questions]
        return [] if any(each.id in self.answered for each in found) else found


def _subject(run_id: str, record: Record) -> tuple[str, int | None]:
    """Return what a record is about: an invocation, or a run."""
    if isinstance(record, InvocationQueued | InvocationStarted | InvocationEnded):
        return run_id, record.invocation
    return run_id, None


def state_of(handler: WorkflowHandler[Any]) -> dict[str, Any]:
    """Return the state of a run as JSON data, without its private fields."""
    data: Any = msgspec.json.decode(json_of(shown(handler.ctx.store.snapshot_state())))
    if not isinstance(data, dict):
        return {}
    items = cast("dict[str, Any]", data).items()
    return {name: value for name, value in items if not name.startswith("_")}


def interrupt_of(run_id: str, question: OpenQuestion) -> Interrupt:
    """Return a question as an interrupt. Its id names the run, so that the answer finds it."""
    data = question_data(question)
    answers: list[dict[str, Any]] = data["answers"]
    schema: dict[str, Any] | None = None
    if len(answers) == 1:
        schema = answers[0]["schema"]
    elif answers:
        forms = [
            {"properties": {"type": {"const": each["type"]}, "value": each["schema"]}}
            for each in answers
        ]
        schema = {"type": "object", "required": ["type", "value"], "anyOf": forms}
    fields: dict[str, Any] = data["fields"]
    texts = [fields[name] for name in _TEXTS if isinstance(fields.get(name), str)]
    asker = question.id.rpartition("/")[0].rpartition("/")[2]
    return Interrupt(
        f"{run_id}/{question.id}",
        asker or run_id,
        texts[0] if texts else None,
        schema,
        None if question.event is None else {"type": data["type"], "value": fields},
    )


# -- the response ---------------------------------------------------------------------------------


@final
class ExchangeEncoder(Encoder):
    """Tells of a run in one exchange.

    Args:
        feed: What is known of the run.
        given: The input.
    """

    def __init__(self, feed: Feed, given: RunInput) -> None:
        self._feed = feed
        self._input = given
        self._has_begun = False

    @property
    def is_over(self) -> bool:
        """Whether the exchange has ended, be it that the run asks something."""
        return self._has_begun and not self._feed.translator.is_open

    def bind(self, poke: Callable[[], None]) -> None:
        self._feed.wake = poke

    def begin(self) -> bytes:
        given = self._input
        self._has_begun = True
        events = self._feed.translator.start(given.thread_id, given.run_id, given.parent_run_id)
        return encoded(events) + self.pending()

    def event(self, event: Event, cursor: str) -> bytes:
        self._feed.cursor = cursor
        body = self.pending()
        if isinstance(event, StopEvent):
            body += encoded(self._feed.translator.finish(event), cursor)
        elif not self._feed.is_listening:
            body += encoded(self._feed.translator.published(event), cursor)
        return body

    def pending(self) -> bytes:
        if self.is_over:
            return b""
        events = self._feed.drain()
        interrupts = self._feed.interrupts()
        if interrupts:
            events += self._feed.translator.interrupt(interrupts)
        return encoded(events, self._feed.cursor)

    def stopping(self, grace: float) -> bytes:
        return encoded(self._feed.translator.stopping(grace))

    def heartbeat(self) -> bytes:
        return HEARTBEAT

    def end(self) -> bytes:
        return self.pending() + encoded(
            self._feed.translator.fail("the server stops; the run may go on elsewhere", "stopping")
        )


@final
class SpectatorEncoder(Encoder):
    """Tells of a run from its stream alone, to a client that only reads.

    Args:
        run_id: The run.
        workflow: The name of its workflow.
    """

    def __init__(self, run_id: str, workflow: str) -> None:
        self._translator = Translator(run_id, workflow)
        self._run_id = run_id

    def begin(self) -> bytes:
        return encoded(self._translator.start(self._run_id, self._run_id))

    def event(self, event: Event, cursor: str) -> bytes:
        return encoded(self._translator.published(event), cursor)

    def gap(self, missed: int) -> bytes:
        return encoded(self._translator.gap(missed))

    def stopping(self, grace: float) -> bytes:
        return encoded(self._translator.stopping(grace))

    def heartbeat(self) -> bytes:
        return HEARTBEAT

    def end(self) -> bytes:
        return encoded(
            self._translator.fail("the server stops; the run may go on elsewhere", "stopping")
        )


# -- answers --------------------------------------------------------------------------------------


def resumed_run(given: RunInput) -> str:
    """Return the id of the run that the answers of an input are for.

    Raises:
        ResumeError: They are for several.
    """
    ids = [each.get("interruptId") for each in given.resume]
    found = {str(each).rpartition("/")[0].partition("/")[0] for each in ids}
    if len(found) > 1:
        msg = f"the interrupts {brief(ids)} are of several runs; expected those of one"
        raise ResumeError(msg, "unknown_interrupt")
    return found.pop()


class ResumeError(Exception):
    """The answers of an input do not fit the questions of the run.

    Args:
        message: What is wrong.
        code: A code for it.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message: str = message
        self.code: str = code

    @property
    def encoder(self) -> Encoder:
        """What tells a client of it, in an exchange that has no run."""
        return _Refused({"type": "RUN_ERROR", "message": self.message, "code": self.code})


@final
class _Refused(Encoder):
    """An exchange of a single event."""

    def __init__(self, event: dict[str, Any]) -> None:
        self._event = event

    def begin(self) -> bytes:
        return encoded([self._event])


@final
class Feeds:
    """The runs of a server that exchanges are about.

    Args:
        runs: The runs of the server.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._feeds: dict[str, Feed] = {}
        #: The run of each thread that waits for answers.
        self._waiting: dict[tuple[str, str], str] = {}

    def open(self, run: ServedRun, thread_id: str | None) -> Feed:
        """Return a feed for a run that has not begun yet; it is to observe it."""
        if len(self._feeds) >= _MOST_KEPT:
            for run_id in [each for each in self._feeds if self._is_over(each)]:
                self._feeds.pop(run_id).close()
            for key in [key for key, each in self._waiting.items() if each not in self._feeds]:
                del self._waiting[key]
        feed = self._feeds[run.run_id] = Feed(run.handler, run.name, thread_id)
        run.users += 1  # the feed is in this process, so the run stays here, too
        return feed

    def leave(self, run: ServedRun, feed: Feed) -> None:
        """Note that an exchange has ended: the run waits for answers, or nobody asks for it any more."""
        key = (run.name, feed.thread_id or "")
        if feed.translator.is_interrupted and not run.is_over:
            feed.wake, feed.is_left = None, True
            self._waiting[key] = run.run_id
            return
        feed.close()
        if self._feeds.pop(run.run_id, None) is not None:
            run.users -= 1
        if self._waiting.get(key) == run.run_id:
            del self._waiting[key]

    def _is_over(self, run_id: str) -> bool:
        run = self._runs.get(run_id)
        return run is None or run.is_over

    def check_new(self, name: str, thread_id: str) -> None:
        """Refuse a new run on a thread of which another waits for answers.

        Raises:
            ResumeError: One does.
        """
        run_id = self._waiting.get((name, thread_id))
        if run_id is not None and not self._is_over(run_id):
            msg = "the thread waits for answers; expected an input whose `resume` has them"
            raise ResumeError(msg, "interrupted")

    def resumed(self, run: ServedRun, name: str, given: RunInput) -> Feed:
        """Return the feed of a run that an input continues; a new one, if the server was restarted.

        Raises:
            ResumeError: The run is another workflow's or another thread's, it has ended, or another
                exchange is about it.
        """
        if run.name != name or run.is_over:
            msg = f"no run of {name} waits for these answers; expected the ids of its interrupts"
            raise ResumeError(msg, "unknown_interrupt")
        feed = self._feeds.get(run.run_id) or self.open(run, None)
        if feed.thread_id not in (None, given.thread_id):
            msg = f"the interrupts are of another thread than {brief(given.thread_id)}"
            raise ResumeError(msg, "wrong_thread")
        if feed.translator.is_open:
            msg = "another exchange of the run is under way; expected the input after its end"
            raise ResumeError(msg, "busy")
        return feed

    async def answer(self, run: ServedRun, feed: Feed, entries: Iterable[dict[str, Any]]) -> None:
        """Give a run the answers of an input; all of them, or none. A checkpoint.

        Raises:
            ResumeError: They do not cover the open questions, or do not fit them.
        """
        given: dict[str, Any] = {}
        for each in entries:
            answer = {"status": each.get("status"), "payload": each.get("payload")}
            if answer["status"] not in ("resolved", "cancelled"):
                msg = f"status is {brief(answer['status'])}; expected 'resolved' or 'cancelled'"
                raise ResumeError(msg, "invalid_answer")
            given[str(each.get("interruptId"))] = answer
        if all(feed.answered.get(name) == answer for name, answer in given.items()):
            feed.is_left = False
            await current_backend().checkpoint()
            return  # the input was sent again
        asked = {f"{run.run_id}/{each.id}": each for each in run.handler.questions}
        if given.keys() != asked.keys():
            msg = f"the run waits for answers to {brief([*asked])}; expected exactly these"
            code = "unknown_interrupt" if given.keys() - asked.keys() else "partial"
            raise ResumeError(msg, code)
        events = {
            name: self._event(run, question, given[name]["payload"])
            for name, question in asked.items()
            if given[name]["status"] == "resolved"
        }
        feed.is_left = False  # what the run does from now on is to be told
        if len(events) < len(given):
            run.handler.cancel("a question was cancelled")
            feed.answered |= given
            await current_backend().checkpoint()
            return
        try:
            sent = [
                run.handler.send_event(event, question=asked[name].id, id=f"answer to {name}")
                for name, event in events.items()
            ]
            for acknowledgement in sent:
                await acknowledgement
        except (WorkflowRuntimeError, TypeError) as error:
            feed.is_left = True
            raise ResumeError(str(error), "invalid_answer") from None
        feed.answered |= given

    @staticmethod
    def _event(run: ServedRun, question: OpenQuestion, payload: Any) -> Event:
        """Return the answer to a question: a value that is no object is its only field."""
        kinds = list(question.answers)
        if not isinstance(payload, dict) and len(kinds) == 1:
            names = [field.name for field in attrs.fields(cast("Any", kinds[0]))]
            if len(names) <= 1:
                payload = {names[0] if names else "response": payload}
        try:
            return read_event(payload, answer_classes(run.graph, kinds), kinds)
        except Refusal as refusal:
            raise ResumeError(refusal.detail, "invalid_answer") from None
