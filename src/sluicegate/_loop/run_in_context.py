"""Running the coroutine of a step in its own context variables."""

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
    """Is notified of exceptions before they are delivered into a coroutine."""

    run: Any
    was_interrupted: bool

    def note_delivery(self, error: BaseException) -> None: ...


class _HasCode:
    """Passes a code object to Trio's decorator, which reads only ``__code__``."""

    def __init__(self, code: types.CodeType) -> None:
        self.__code__ = code


def _has_protection_set(code: types.CodeType) -> bool:
    """Whether protection from Ctrl-C was enabled or disabled for this code before."""
    try:
        return _ki_protection[code] is not None
    except KeyError:
        return False


def let_interrupts_in(code: types.CodeType | None) -> None:
    """Allow Ctrl-C in the frames of user code, and in their calls, under the protected engine.

    The code is a step or a factory. The engine's frames around it stay protected, so an interrupt
    cannot arrive before the coroutine has begun, which would leave it unclosed, or after the event
    loop's answer, which would be lost. Code that the user has protected stays protected.
    """
    if code is not None and not _has_protection_set(code):
        disable_ki_protection(_HasCode(code))


@types.coroutine
def run_in_context(
    coroutine: Coroutine[Any, Any, Any],
    context: Context,
    worker: DeliveryListener | None = None,
) -> Generator[Any, Any, Any]:
    """Await ``coroutine`` in ``context``; context variables that it sets stay there.

    Every value that the coroutine yields reaches the event loop, and every value or exception from
    the loop reaches the coroutine, exactly as if it were awaited. Nurseries, threads and timeouts
    that it starts inherit ``context``.

    The ``worker`` is notified of an exception before it is delivered into the coroutine, because
    unwinding may take long. (Trio sends an exception as a value, and throws only to close; asyncio
    throws it.)
    """
    run = context.run
    send = coroutine.send
    try:
        trap = run(send, None)
        while True:
            try:
                answer = yield trap
            except BaseException as error:  # noqa: ASYNC103, BLE001 - passed on to the coroutine
                if worker is not None:
                    if worker.run.outcome.status and worker.run.records is None:  # a call less
                        worker.was_interrupted = True
                    else:
                        worker.note_delivery(error)
                trap = run(coroutine.throw, error)
            else:
                if worker is not None and type(answer) is Error:
                    if worker.run.outcome.status and worker.run.records is None:
                        worker.was_interrupted = True
                    else:
                        worker.note_delivery(answer.error)
                trap = run(send, answer)
    except StopIteration as stop:
        return stop.value
    finally:
        answer = None  # an error that was delivered would keep this frame alive, and that it
