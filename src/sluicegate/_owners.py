"""Who may own a run, and what waits for its end."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, final


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator


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


@final
class Begins(Coroutine[Any, Any, None]):
    """A coroutine that begins even if asyncio cancels its task before.

    A task that is cancelled before its first turn has the cancellation thrown into a coroutine that
    has not begun, of which nothing runs then: here it runs to its first await, and is cancelled there.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._has_begun = False

    def __await__(self) -> Generator[Any, Any, None]:
        return self._coroutine.__await__()

    def send(self, value: Any, /) -> Any:
        self._has_begun = True
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        if not self._has_begun:
            self._has_begun = True
            self._coroutine.send(None)
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()
