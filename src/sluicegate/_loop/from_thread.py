"""``handler.from_thread``: sending events to a run, and cancelling it, from any thread."""

from __future__ import annotations

import threading
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, cast, final

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._exceptions import is_a
from sluicegate._loop import enable_ki_protection, in_event_loop
from sluicegate._loop.seam import capture, release


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._events import Event

    CallSoon = Callable[[Callable[[], object]], object]

T = TypeVar("T")

#: Seconds after which a waiting thread checks whether the event loop still runs.
_LOOK_AGAIN = 0.05


@final
class HandlerFromThread:
    """The methods of a handler that may be called from any thread: ``handler.from_thread``.

    A call blocks until the event loop has executed it, and raises in the calling thread what it
    raised there. In the loop's thread it is an ordinary call. Any number of threads may call.
    """

    __slots__ = ("_cancel", "_find_loop", "_send_event")

    def __init__(
        self,
        *,
        find_loop: Callable[[], tuple[int, CallSoon] | None],
        send_event: Callable[..., object],
        cancel: Callable[[str], object],
    ) -> None:
        """Take the functions to call in the event loop.

        Args:
            find_loop: Returns the thread of the run's loop, and ``backend.caller_into(loop)``; None
                while the run has not been started. It is called at each use.
            send_event: ``handler.send_event``.
            cancel: Cancels the run, with a reason.
        """
        self._find_loop = find_loop
        self._send_event = send_event
        self._cancel = cancel

    def send_event(
        self,
        event: Event,
        step: str | None = None,
        *,
        question: str | None = None,
        id: str | None = None,  # noqa: A002 - the name that handler.send_event() has for it
    ) -> None:
        """Call ``handler.send_event()`` in the event loop, and wait for it. Not a checkpoint.

        It does not wait until the store of a durable run has the event, as awaiting
        ``handler.send_event()`` does.

        Args:
            event: As for ``handler.send_event()``.
            step: The name of the only step that receives it; by default all steps that accept
                its class.
            question: The id of the question that it answers.
            id: A name of your choice for this event; a second event with it is not applied.

        Raises:
            QuestionClosedError: The question is no longer open.
            EventConflictError: An event with the same ``id`` had different content.
            WorkflowRuntimeError: As for ``handler.send_event()``; the run has not been started or
                has ended, or the event loop has ended.
            TypeError: Both ``step`` and ``question`` are given.
        """
        self._do("send_event", partial(self._send_event, event, step, question=question, id=id))

    def cancel(self, reason: str = "handler.from_thread.cancel() was called") -> None:
        """Cancel the run; wait until that has begun, not for its end. Not a checkpoint.

        A run that has ended is not changed.

        Args:
            reason: The reason in ``WorkflowCancelledError`` and in the terminal event.

        Raises:
            WorkflowRuntimeError: The run has not been started, or the event loop has ended.
        """
        self._do("cancel", partial(self._cancel, reason))

    def _do(self, what: str, function: Callable[[], object]) -> None:
        found = self._find_loop()
        if found is not None and found[0] != threading.get_ident():
            call_and_wait(found[1], function)
        elif found is not None or in_event_loop():
            function()  # before the start: the call itself may start the run
        else:
            msg = (
                f"from_thread.{what}() was called before the run was started; expected a run "
                "that its owner has started: `async with workflow.run(...) as handler: ...`"
            )
            raise WorkflowRuntimeError(msg)


def call_and_wait(call_soon: CallSoon, function: Callable[[], T]) -> T:
    """Have an event loop call ``function``, in the caller's context variables, and wait for it.

    Args:
        call_soon: The result of ``backend.caller_into(loop)`` for the loop.
        function: The function; the caller is in another thread than the loop.

    Returns:
        The result of the function.

    Raises:
        BaseException: The exception of the function.
        WorkflowRuntimeError: The loop has ended, or ended before it called the function.
    """
    answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    @enable_ki_protection
    def work() -> None:
        captured = capture(function)
        answers.put(captured)
        if not is_a(captured[1], (Exception, type(None))):
            release(captured)  # a KeyboardInterrupt ends the loop as well

    try:
        call_soon(partial(copy_context().run, work))
        answer = _wait(answers, call_soon)
    except RuntimeError as error:
        msg = (
            "the event loop of the run is over, so nothing can be done in it any more; expected "
            "the call while the run is under way"
        )
        raise WorkflowRuntimeError(msg) from error
    try:
        return cast("T", release(answer))
    finally:
        del answer  # or this frame and its exception keep each other alive


def _wait(answers: SimpleQueue[T], call_soon: CallSoon) -> T:
    while True:
        try:
            return answers.get(timeout=_LOOK_AGAIN)
        except Empty:
            try:
                call_soon(_nothing)
            except RuntimeError:
                if answers.empty():  # else it was called just before the end
                    raise


def _nothing() -> None:
    """Do nothing; scheduling it fails if the event loop has ended."""
