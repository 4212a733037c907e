"""One invocation of a step: its coroutine, driven in a context of its own."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Protocol

from sluicegate._loop import Error, disable_ki_protection


try:  # Trio's decorators set it, and there is no public way to ask for it
    from trio._core import _ki

    _ki_protection: Any = _ki._CODE_KI_PROTECTION_STATUS_WMAP
except (ImportError, AttributeError):
    _ki_protection = {}


if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from contextvars import Context


class DeliveryListener(Protocol):
    """What is told of the exceptions that are delivered into a coroutine."""

    _run: Any
    was_interrupted: bool

    def note_delivery(self, error: BaseException) -> None: ...


class _HasCode:
    """Carries a code object to Trio's decorator, which asks for no more than this."""

    def __init__(self, code: types.CodeType) -> None:
        self.__code__ = code


def _has_protection_set(code: types.CodeType) -> bool:
    """Whether Trio's protection from Ctrl-C was enabled or disabled for this code before."""
    try:
        return _ki_protection[code] is not None
    except KeyError:
        return False


def let_interrupts_in(code: types.CodeType | None) -> None:
    """Have Ctrl-C reach the frames of this code, and what they call, under the protected engine.

    The code is the user's: a step, a factory. What runs it is not marked, so an interrupt never
    falls between the two: not before the coroutine has begun, which would then never be closed,
    and not behind an answer of the event loop, which would then be lost. Code that the user has
    protected stays protected.
    """
    if code is not None and not _has_protection_set(code):
        disable_ki_protection(_HasCode(code))


@types.coroutine
def run_in_context(
    coroutine: Coroutine[Any, Any, Any],
    context: Context,
    worker: DeliveryListener | None = None,
) -> Generator[Any, Any, Any]:
    """Await ``coroutine`` in ``context``; a context variable that it sets stays in there.

    The event loop sees what the coroutine yields, and the coroutine sees what the event loop
    sends or throws, exactly as if it were awaited. Nurseries, threads and timeouts that it
    starts take their context from ``context``.

    A ``worker`` is told of an exception before it is delivered into the coroutine, which may take
    long to unwind. (Trio sends it in, and throws only to close; asyncio throws it.)
    """
    run = context.run
    send = coroutine.send
    try:
        trap = run(send, None)
        while True:
            try:
                answer = yield trap
            except BaseException as error:  # noqa: ASYNC103, BLE001 - handed on, whatever it is
                if worker is not None:
                    if worker._run.outcome.status:  # settled: nothing is left to be decided
                        worker.was_interrupted = True
                    else:
                        worker.note_delivery(error)
                trap = run(coroutine.throw, error)
            else:
                if worker is not None and type(answer) is Error:
                    if worker._run.outcome.status:
                        worker.was_interrupted = True
                    else:
                        worker.note_delivery(answer.error)
                trap = run(send, answer)
    except StopIteration as stop:
        return stop.value
    finally:
        answer = None  # an error that was delivered would keep this frame alive, and that it
