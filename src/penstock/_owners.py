"""Who may own a run, and what waits for its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator


class NurseryLike(Protocol):
    """A Trio nursery or an AnyIO task group."""

    def start_soon(self, async_fn: Callable[..., Awaitable[Any]], /, *args: Any) -> Any: ...


class TaskGroupLike(Protocol):
    """An ``asyncio.TaskGroup``."""

    def create_task(self, coro: Coroutine[Any, Any, Any], /) -> Any: ...


SPELLINGS = """expected one of
    result = await workflow.run(...)                       # in place
    async with workflow.run(...) as handler: ...           # owned by a block
    handler = workflow.run(...).start_soon(nursery)        # owned by a nursery
    async with workflow_scope(): handler = workflow.run(...); ...   # owned by a scope"""


@final
class Unwound:
    """What ``handler.cancel()`` returns: awaited, it waits until nothing of the run is left."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait. A checkpoint; cancelled, it leaves the run to unwind by itself."""
        return self._wait().__await__()
