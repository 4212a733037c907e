"""One invocation of a step: its coroutine, driven in a context of its own."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from penstock._backends import Error, disable_ki_protection


if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context


@types.coroutine
@disable_ki_protection  # the engine around it is protected, what the user wrote is not
def run_in_context(
    coroutine: Coroutine[Any, Any, Any],
    context: Context,
    watch: Callable[[BaseException], object] | None = None,
) -> Generator[Any, Any, Any]:
    """Await ``coroutine`` in ``context``; a context variable that it sets stays in there.

    The event loop sees what the coroutine yields, and the coroutine sees what the event loop
    sends or throws, exactly as if it were awaited. Nurseries, threads and timeouts that it
    starts take their context from ``context``.

    ``watch``, where given, is called with an exception before it is delivered into the coroutine,
    which may take long to unwind. (Trio sends it in, and throws only to close; asyncio throws it.)
    """
    run = context.run
    send = coroutine.send
    try:
        trap = run(send, None)
        while True:
            try:
                answer = yield trap
            except BaseException as error:  # noqa: ASYNC103, BLE001 - handed on, whatever it is
                if watch is not None:
                    watch(error)
                trap = run(coroutine.throw, error)
            else:
                if watch is not None and type(answer) is Error:
                    watch(answer.error)
                trap = run(send, answer)
    except StopIteration as stop:
        return stop.value
    finally:
        answer = None  # an error that was delivered would keep this frame alive, and that it
