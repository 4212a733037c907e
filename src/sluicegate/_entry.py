"""The entry: run an async function on either backend, with a scope around it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._loop import current_backend
from sluicegate._scope import workflow_scope


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


T = TypeVar("T")


def run(
    main: Callable[..., Awaitable[T]],
    *args: Any,
    backend: Literal["trio", "asyncio"] = "trio",
    backend_options: dict[str, Any] | None = None,
) -> T:
    """Run an async function in a new event loop, inside a :func:`workflow_scope`.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP unwind the program like a cancellation, and wake the event
    loop at whatever moment they come: every clean-up runs to its end, if it is shielded where it
    awaits. A second signal of the same kind lists on standard error what still cleans up; while
    a step computes and lets nothing else run, it is raised in that step. A third ends the process.
    This holds in the main thread, and for signals whose disposition was the default one; it is
    the default one again afterwards.

    Args:
        main: The async function; it is called with ``args``.
        *args: Its arguments.
        backend: ``"trio"`` or ``"asyncio"``.
        backend_options: Keyword arguments for ``trio.run``, or the ``backend_options`` of
            ``anyio.run`` (``{"use_uvloop": True}``).

    Returns:
        What ``main`` returns, once every run that it started is over.

    Raises:
        WorkflowRuntimeError: An event loop runs here already, as in a notebook.
        TypeError: ``main`` is a coroutine and not a function.
        ValueError: There is no such backend.
        KeyboardInterrupt: SIGINT was received, and everything has unwound.
        SystemExit: SIGTERM or SIGHUP was received (the code is 128 + its number), and everything
            has unwound.
        BaseException: What ``main`` raises, or else the first failure of a run that nobody saw.
    """
    if inspect.iscoroutine(main):
        main.close()
        msg = "run() was given a coroutine; expected the function: run(main), not run(main())"
        raise TypeError(msg)

    async def scoped() -> T:
        async with workflow_scope():
            return await main(*args)

    if backend not in ("trio", "asyncio"):
        msg = f"there is no backend {backend!r}; expected 'trio' or 'asyncio'"
        raise ValueError(msg)
    _check_no_loop(backend)
    from sluicegate._loop.signals import Signals  # noqa: PLC0415 - who has an event loop needs it not

    name = f"{getattr(main, '__module__', '')}.{getattr(main, '__qualname__', repr(main))}"
    return Signals().run(scoped, backend, backend_options or {}, name=name)


def _check_no_loop(backend: str) -> None:
    try:
        running = current_backend().name
    except RuntimeError:
        return
    if running == "asyncio" and backend == "trio":
        return  # Trio runs inside of asyncio, which waits meanwhile
    instead = "`async with sluicegate.workflow_scope(): await main()`"
    if running == "asyncio":
        instead += ", or in a notebook `sluicegate.open_scope()` once, and then `await main()`"
    msg = (
        f"run(main, backend={backend!r}) starts an event loop, and one of {running} runs here "
        f"already; expected {instead}"
    )
    raise WorkflowRuntimeError(msg)
