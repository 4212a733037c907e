"""The questions of a run: a line of standard input for each, without blocking the event loop.

A thread reads, because there is no other portable way to wait for a terminal. It is a daemon
thread: when the run ends or is interrupted, it stays blocked in its ``read``. Therefore it must
not hold a lock that others need, such as that of ``sys.stdin``; it reads the descriptor.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sluicegate._data.from_outside import decode_event
from sluicegate._definition.graph import graph_of
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._events import HumanResponseEvent, InputRequiredEvent, fields_of, is_open
from sluicegate._handler import run_of
from sluicegate._loop import current_backend
from sluicegate._questions import PROMPTS
from sluicegate.cli._input import field_types, json_object
from sluicegate.cli._output import printable
from sluicegate.cli._targets import UsageError


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sluicegate._events import Event
    from sluicegate._handler import WorkflowHandler
    from sluicegate.cli._targets import AnyWorkflow
    from sluicegate.durable import RunSummary


class Terminal(Protocol):
    """The display on the terminal besides the output."""

    def hide(self) -> None: ...

    def show(self) -> None: ...


#: Seconds between two reads of the questions of a stored run.
_LOOK = 0.1


class Questions:
    """Answers the questions of one run, one by one, from standard input.

    Attributes:
        failure: Why a question could not be answered; in this case the run has been cancelled.
    """

    def __init__(
        self, workflow: AnyWorkflow, handler: WorkflowHandler[Any], watch: Terminal | None = None
    ) -> None:
        backend = current_backend()
        #: What else is drawn on the terminal, and goes away while a question is open there.
        self._watch = watch
        self.failure: UsageError | None = None
        self._handler = handler
        #: Calls a function in the event loop; the thread uses nothing else of the loop.
        self._post = backend.caller_into(backend.current_loop())
        self._lines: deque[str | None] = deque()
        self._waiter = backend.waiter()
        self._kinds = answer_classes(workflow)
        self._waited_for: tuple[type[HumanResponseEvent], ...] = ()
        #: The questions to ask, each with its id where that is known.
        self._open: deque[tuple[InputRequiredEvent, str | None]] = deque()
        self._wanted: SimpleQueue[str] = SimpleQueue()
        self._has_thread = False

    async def ask_stored(self, row: Callable[[], Awaitable[RunSummary | None]]) -> None:
        """Ask the questions of a stored run, in whatever process it is, until cancelled.

        They are not taken from the stream, which has those that were answered, too.

        Args:
            row: Returns the row of the run; None before it has one.
        """
        backend, asked = current_backend(), set[str]()
        while True:
            found, part = await row(), run_of(self._handler).part
            is_live = part is not None and part.is_live
            if (
                found is not None
                and not found.messages  # they may be answers
                and (is_live or found.status in {"idle", "parked"})
            ):
                for question in self._handler.questions:
                    if isinstance(question.event, InputRequiredEvent) and question.id not in asked:
                        asked.add(question.id)
                        self.ask(question.event, question.id)
            await backend.sleep(_LOOK)

    def ask(self, question: InputRequiredEvent, name: str | None = None) -> None:
        """Ask a question; its answer is sent into the run when it arrives.

        Args:
            question: The question.
            name: Its id; by default that of the open question with the same event object.
        """
        if not self._kinds:  # a step, or a child, can wait for the answer
            wanted = (kind for asked in self._handler.questions for kind in asked.answers)
            self._waited_for = answers_among(wanted) or self._waited_for
        if not (self._kinds or self._waited_for):
            kind = type(question).__name__
            text = f"sluicegate: {kind} cannot be answered: no step takes a HumanResponseEvent"
            print(text, file=sys.stderr)  # noqa: T201
            return
        self._open.append((question, name))
        if len(self._open) == 1:
            self._read()

    async def serve(self) -> None:
        """Send the answers into the run as they arrive, until cancelled.

        Raises:
            UsageError: A question of a stored run was not answered; it stays open.
        """
        while True:
            while self._lines:
                await self._take(self._lines.popleft())
            await self._waiter.wait()

    def _read(self) -> None:
        if not self._has_thread:
            self._has_thread = True
            reader = threading.Thread(
                target=self._read_lines, name="sluicegate answers", daemon=True
            )
            reader.start()
        self._wanted.put(prompt_of(self._open[0][0]) if is_terminal(sys.stdin) else "")

    def _read_lines(self) -> None:
        """Read a line for each prompt, in the thread."""
        lines = Lines(sys.stdin)
        while True:
            prompt = self._wanted.get()
            if prompt:
                if self._watch is not None:
                    self._watch.hide()
                sys.stderr.write(prompt)
                sys.stderr.flush()
            try:
                line = lines.next()
            except OSError:
                line = None
            if prompt and self._watch is not None:
                self._watch.show()
            try:
                self._post(partial(self._receive, line))
            except RuntimeError:  # the event loop has ended, and the question with it
                return

    def _receive(self, line: str | None) -> None:
        self._lines.append(line)
        self._waiter.wake()

    async def _take(self, line: str | None) -> None:
        """Send an answer into the run."""
        question, name = self._open[0]
        try:
            answer = self._answer(question, line)
        except UsageError as error:
            if name is not None:
                raise  # the owner is left, and the run keeps waiting in its store
            self.failure = error  # raised by the command when the run has unwound
            self._handler.cancel(f"{type(question).__name__} was not answered")
            return
        if answer is not None:
            # The steps take this class, so it is refused only while the run unwinds.
            # A question that was answered elsewhere, or dropped, needs no answer.
            with suppress(WorkflowRuntimeError):
                found = name or self._name_of(question, answer)
                await self._handler.send_event(answer, question=found)
            self._open.popleft()  # not before: another question may come while this one is sent
        if self._open:
            self._read()

    def _name_of(self, question: InputRequiredEvent, answer: HumanResponseEvent) -> str | None:
        """Return the id of a question, if it is open and takes answers of this class."""
        for asked in self._handler.questions:
            if asked.event is question and isinstance(answer, asked.answers):
                return asked.id
        return None

    def _answer(self, question: InputRequiredEvent, line: str | None) -> HumanResponseEvent | None:
        """Return the answer in ``line``, or None if a person can try again."""
        name = type(question).__name__
        if line is None:
            shown = prompt_of(question).strip()
            msg = f"the workflow asks ({name}: {shown}) and standard input has ended"
            raise UsageError(msg)
        try:
            return read_answer(self._kinds or self._waited_for, line)
        except UsageError as error:
            if not is_terminal(sys.stdin):
                raise
            print(f"sluicegate: {error}", file=sys.stderr)  # noqa: T201
            return None


def answer_classes(workflow: AnyWorkflow) -> tuple[type[HumanResponseEvent], ...]:
    """Return the classes of answers that the steps take; only the plain one if they take it."""
    graph = graph_of(type(workflow))
    if graph.targets(HumanResponseEvent):
        return (HumanResponseEvent,)
    return answers_among(graph.acceptors)


def answers_among(kinds: Iterable[type[Event]]) -> tuple[type[HumanResponseEvent], ...]:
    """Return the classes of answers among some classes, each once."""
    return tuple(dict.fromkeys(k for k in kinds if issubclass(k, HumanResponseEvent)))


def read_answer(kinds: tuple[type[HumanResponseEvent], ...], line: str) -> HumanResponseEvent:
    """Make an answer from a line.

    Raises:
        UsageError: The line does not fit, or several classes of answers are possible.
    """
    if len(kinds) > 1:
        names = ", ".join(kind.__name__ for kind in kinds)
        msg = (
            f"a line does not show which class of answers is meant, {names}; expected a workflow "
            "that takes one class of answers"
        )
        raise UsageError(msg)
    kind = next(iter(kinds))
    fields = field_types(kind)
    if is_open(kind) or "response" in fields:
        data: dict[str, Any] = {"response": line}
    elif len(fields) == 1:
        data = {next(iter(fields)): line}
    else:
        data = {}
    try:
        return decode_event(kind, data)
    except TypeError as error:
        # More fields than a line can fill, or one that is not a string.
        try:
            return decode_event(kind, json_object(line, "the answer"))
        except (TypeError, UsageError):
            call = ", ".join(f'"{name}": ...' for name in fields)
            msg = f"{error}; expected as answer {{{call}}}"
            raise UsageError(msg) from error


def prompt_of(question: InputRequiredEvent) -> str:
    """Return the prompt for a question: its text, or its repr."""
    fields = fields_of(question)
    for name in PROMPTS:
        text = fields.get(name)
        if isinstance(text, str) and text.strip():
            return printable(text if text[-1].isspace() else f"{text} ")
    return printable(f"{question!r} ")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; a closed or missing stream is not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


class Lines:
    """The lines of a stream, read from its descriptor where it has one."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._rest = b""
        try:
            self._descriptor = stream.fileno() if stream is not None else None
        except (OSError, ValueError):
            self._descriptor = None

    def next(self) -> str | None:
        """Return the next line without its line break, or None after the last one. Blocks."""
        if self._descriptor is None:
            line = self._stream.readline() if self._stream is not None else ""
            return line.removesuffix("\n") if line else None
        while b"\n" not in self._rest:
            more = os.read(self._descriptor, 65536)
            if not more:
                break
            self._rest += more
        if not self._rest:
            return None
        raw, _, self._rest = self._rest.partition(b"\n")
        return raw.removesuffix(b"\r").decode(errors="replace")
