"""The context of a step in a worker process."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Never, final

from sluicegate._context import Branch, step_context, watch_progress
from sluicegate._engine.progress import INTERVAL, check_report
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._loop import current_backend
from sluicegate._loop.process_worker import PROGRESS, ask_parent


if TYPE_CHECKING:
    from collections.abc import Generator

    from sluicegate._context import Context
    from sluicegate._engine.progress import State
    from sluicegate._events import Event
    from sluicegate._loop.process_worker import Call, Channel, StepOfCall


def make_context(channel: Channel, call: Call, step: StepOfCall) -> Context[Any]:
    """Return the context for one call of a step."""
    operations: Any = _ProcessOperations(channel, call.number, step)
    again = SimpleNamespace(number=step.attempt)
    context = step_context(operations, step, None, again)  # type: ignore[arg-type]
    if step.has_idle_timeout:
        watch_progress(context, operations.note_progress)
    return context


@final
class _ProcessReport:
    """The progress reports of a call, limited in the worker process, before they cost the parent.

    The first is sent at once, and waits for the parent. The next is held until the interval is over.
    A thread then sends the newest one, because the step may be busy with something else.
    """

    __slots__ = ("_channel", "_due", "_ended", "_held", "_lock", "_number", "_thread")

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._held: State | None = None
        #: Guards what follows, and keeps the reports in order.
        self._lock = threading.Lock()
        #: When the next report may be sent, on the monotonic clock.
        self._due = 0.0
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def put(self, done: Any, total: Any, message: Any) -> None:
        report = check_report(done, total, message)
        with self._lock:
            self._held = report
            if self._thread is not None:
                return
            if time.monotonic() >= self._due:
                self._send()
                return
            self._thread = threading.Thread(
                target=self._send_later, name="sluicegate progress", daemon=True
            )
            self._thread.start()

    def _send_later(self) -> None:
        while not self._ended.wait(max(self._due - time.monotonic(), 0)):
            with self._lock:
                if self._held is None:
                    self._thread = None
                    return
                self._send()

    def _send(self) -> None:
        """Send what is held; the caller has the lock."""
        held, self._held = self._held, None
        if held is not None:
            ask_parent(self._channel, self._number, "progress", *held)
            self._due = time.monotonic() + INTERVAL

    def close(self) -> None:
        """Send what is held, because the call has ended; no thread sends after this."""
        if self._channel.is_forked:
            return  # the report is that of the step, which runs on in its own process
        with self._lock:
            self._ended.set()
            self._send()

    def __await__(self) -> Generator[Any, Any, None]:
        return current_backend().checkpoint().__await__()


@final
class _ProcessOperations:
    """The operations of a run that are available in a worker process.

    See :class:`sluicegate._context.RunOperations`.
    """

    __slots__ = ("_channel", "_delivery_key", "_number", "fencing_token", "run_id")

    is_running = True  # else this process would have ended

    def __init__(self, channel: Channel, number: int, step: StepOfCall) -> None:
        self._channel = channel
        self._number = number
        self._delivery_key = step.delivery_key
        self.fencing_token = step.fencing_token
        self.run_id = step.run_id

    def delivery_key(self, _context: object) -> str:
        return self._delivery_key

    def send(self, _context: object, event: Event, target: str | None) -> Branch:
        ask_parent(self._channel, self._number, "send_event", event, target)
        elsewhere: Any = _Elsewhere()
        return Branch(elsewhere, _FarLine(), None)

    def publish(self, event: Event | None) -> None:
        if event is not None:
            ask_parent(self._channel, self._number, "write_event_to_stream", event)

    def open_report(self, _context: object) -> _ProcessReport:
        return _ProcessReport(self._channel, self._number)

    def note_progress(self) -> None:
        if self._channel.number == self._number:
            self._channel.send(PROGRESS, b"")

    @property
    def log(self) -> Never:
        _refuse("ctx.stream", "`ctx.write_event_to_stream(event)`")

    @property
    def store(self) -> Never:
        _refuse("ctx.store", "its content in a field of the event")

    def collect(self, *_: object) -> Never:
        _refuse("collect_events", "a step of the event loop that collects")

    async def wait_for(self, *_: object) -> Never:  # noqa: ASYNC910 - it only refuses
        _refuse("wait_for_event", "a step of the event loop that waits")

    async def once(self, *_: object) -> Never:  # noqa: ASYNC910 - it only refuses
        _refuse("once", "a step of the event loop that calls it")

    async def sleep(self, *_: object) -> Never:  # noqa: ASYNC910 - it only refuses
        _refuse("sleep", "`time.sleep(seconds)`, or a step of the event loop that sleeps")

    async def run_child(self, *_: object) -> Never:  # noqa: ASYNC910 - it only refuses
        _refuse("run_child", "a step of the event loop that runs it")

    def retry_info(self, _context: object) -> Never:
        _refuse("retry_info", "`ctx.step.attempt`")

    def deadline(self) -> Never:
        _refuse("deadline", "a field of its event")

    def snapshot(self) -> Never:
        _refuse("to_dict", "`handler.snapshot()` in the process of the run")


class _Elsewhere:
    """Refuses the operations on a branch that was sent from a worker process."""

    def cancel_branch(self, _node: object, _reason: str) -> Never:
        _refuse("Branch.cancel", "a step of the event loop that sends the event")

    async def wait_for_branch(self, _node: object, _step: object) -> Never:  # noqa: ASYNC910 - it only refuses
        _refuse("Branch.wait", "a step of the event loop that sends the event")


class _FarLine:
    """The lineage of a branch that was sent from a worker process, which has no data on it."""

    is_held = True

    @property
    def is_over(self) -> bool:
        _refuse("Branch.is_done", "a step of the event loop that sends the event")

    @property
    def is_cancelled(self) -> bool:
        _refuse("Branch.is_cancelled", "a step of the event loop that sends the event")


def _refuse(what: str, instead: str) -> Never:
    msg = (
        f"{what} is not available in a step that runs in a process: its context has send_event, "
        f"write_event_to_stream, progress and report_progress; expected {instead}"
    )
    raise WorkflowRuntimeError(msg)
