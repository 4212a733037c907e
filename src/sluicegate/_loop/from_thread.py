"""Answers from any thread: what ``handler.from_thread`` does, and how it gets into the loop."""

from __future__ import annotations

import threading
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar, cast, final

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._exceptions import is_a
from sluicegate._loop import current_backend, enable_ki_protection


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._events import Event

    CallSoon = Callable[[Callable[[], object]], object]

T = TypeVar("T")

#: Seconds after which a thread that waits for the event loop looks whether there still is one.
_LOOK_AGAIN = 0.05


@final
class HandlerFromThread:
    """What may be done with a run from any thread: ``handler.from_thread``.

    A call blocks until it has been done in the event loop, and raises in its own thread what it
    raised there. In the loop's thread it is an ordinary call. Any number of threads may call.
    """

    __slots__ = ("_cancel", "_find_loop", "_is_over", "_send_event")

    def __init__(
        self,
        *,
        find_loop: Callable[[], tuple[int, CallSoon] | None],
        send_event: Callable[..., object],
        cancel: Callable[[str], object],
        is_over: Callable[[], bool],
    ) -> None:
        """Take what to call in the event loop.

        Args:
            find_loop: Returns the identifier of the thread of the run's loop, and what
                ``backend.caller_into(loop)`` returns for that loop; None while the run has not
                been started. It is asked at each call.
            send_event: Sends an event into the run, to all steps or to the one named.
            cancel: Cancels the run, with a reason.
            is_over: Whether the run has ended.
        """
        self._find_loop = find_loop
        self._send_event = send_event
        self._cancel = cancel
        self._is_over = is_over

    def send_event(
        self,
        event: Event,
        step: str | None = None,
        *,
        question: str | None = None,
        id: str | None = None,  # noqa: A002 - what it is
    ) -> None:
        """Send an event into the run, and wait until it is there. Not a checkpoint.

        Args:
            event: As for ``handler.send_event()``.
            step: The name of the one step that gets it; by default all that take its class do.
            question: The id of the question that it answers.
            id: A name of your own for this event; the same one is not applied twice.

        Raises:
            QuestionClosedError: The question is open no longer.
            EventConflictError: An event with other content came under the same ``id``.
            WorkflowRuntimeError: As for ``handler.send_event()``; the run has not been started or
                has ended, or the event loop is over.
            TypeError: Both ``step`` and ``question`` are given.
        """
        self._do("send_event", partial(self._send_event, event, step, question=question, id=id))

    def cancel(self, reason: str = "handler.from_thread.cancel() was called") -> None:
        """Cancel the run, and wait until that has begun; not for its end. Not a checkpoint.

        Args:
            reason: What ``WorkflowCancelledError`` and the terminal event say.

        A run that is over stays as it is.

        Raises:
            WorkflowRuntimeError: The run has not been started, or the event loop is over.
        """
        self._do("cancel", partial(self._cancel, reason))

    def _do(self, what: str, function: Callable[[], object]) -> None:
        found = self._find_loop()
        if found is None:
            try:
                current_backend()
            except RuntimeError:
                msg = (
                    f"from_thread.{what}() was called before the run was started; expected a run "
                    "that its owner has started: `async with workflow.run(...) as handler: ...`"
                )
                raise WorkflowRuntimeError(msg) from None
            function()  # in an event loop, where the call itself may start the run
            return
        thread, call_soon = found
        if threading.get_ident() == thread:
            function()
        else:
            call_and_wait(call_soon, partial(self._in_loop, what, function))

    @enable_ki_protection
    def _in_loop(self, what: str, function: Callable[[], object]) -> None:
        if self._is_over():
            msg = (
                f"from_thread.{what}() came after the end of the run; expected it while the run is "
                "under way: `if not handler.is_done(): ...`"
            )
            raise WorkflowRuntimeError(msg)
        function()


def call_and_wait(call_soon: CallSoon, function: Callable[[], T]) -> T:
    """Have an event loop call ``function``, in the context of the caller, and wait for it.

    Args:
        call_soon: What ``backend.caller_into(loop)`` returned for that loop.
        function: What to call; for a caller in any other thread.

    Returns:
        What the function returns.

    Raises:
        BaseException: What the function raises.
        WorkflowRuntimeError: The loop is over, or ended before it called the function.
    """
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            answers.put((function(), None))
        except BaseException as error:  # noqa: ASYNC103 - raised by the thread that waits
            answers.put((None, error))
            if not is_a(error, Exception):
                raise

    try:
        call_soon(partial(copy_context().run, work))
        answer = _wait(answers, call_soon)
    except RuntimeError as error:
        msg = (
            "the event loop of the run is over, so nothing can be done in it any more; expected "
            "the call while the run is under way"
        )
        raise WorkflowRuntimeError(msg) from error
    value, failure = answer
    if failure is None:
        return cast("T", value)
    try:
        raise failure
    finally:
        del failure, answer  # or this frame and its exception keep each other alive


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
    """Be called by an event loop that is alive."""
