"""The entry: run an async function on either backend, with a scope around it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from penstock._scope import workflow_scope


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

    On asyncio too, Ctrl-C wakes the event loop at whatever moment it comes (``asyncio.run`` misses
    one that comes just before it sleeps, until something else wakes it).

    Args:
        main: The async function; it is called with ``args``.
        *args: Its arguments.
        backend: ``"trio"`` or ``"asyncio"``.
        backend_options: Keyword arguments for ``trio.run``, or the ``backend_options`` of
            ``anyio.run`` (``{"use_uvloop": True}``).

    Returns:
        What ``main`` returns, once every run that it started is over.

    Raises:
        TypeError: ``main`` is a coroutine and not a function.
        ValueError: There is no such backend.
        BaseException: What ``main`` raises, or else the first failure of a run that nobody saw.
    """
    if inspect.iscoroutine(main):
        main.close()
        msg = "run() was given a coroutine; expected the function: run(main), not run(main())"
        raise TypeError(msg)

    async def scoped() -> T:
        async with workflow_scope():
            return await main(*args)

    options = backend_options or {}
    if backend == "trio":
        import trio  # noqa: PLC0415 - as asyncio below: the entry alone chooses the event loop

        return trio.run(scoped, **options)
    if backend == "asyncio":
        from penstock._backends.asyncio import run_in_new_loop  # noqa: PLC0415

        return cast("T", run_in_new_loop(scoped, options))
    msg = f"there is no backend {backend!r}; expected 'trio' or 'asyncio'"
    raise ValueError(msg)
