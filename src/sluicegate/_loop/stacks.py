"""Stacks: the frames of a task, down to what it awaits, read from any thread or signal handler.

A suspended task has no stack of its own. Its coroutine has a frame, and the coroutine that it awaits
has the next one. Nothing here calls code of the user, waits, or takes a lock.
"""

from __future__ import annotations

import gc
import linecache
import os
import sys
import threading
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, final

from sluicegate._loop.run_in_context import run_in_context


if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


#: The greatest number of frames that are followed.
DEEPEST = 1000

#: The types with which the interpreter wraps what is awaited; each refers to it.
_WRAPPERS = frozenset(
    {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
)

#: Packages and modules whose frames are not part of the user's program.
_MACHINERY = ("sluicegate", "trio", "anyio", "asyncio", "outcome", "contextlib", "threading")


@final
class Stacks:
    """The stacks of all threads at one moment.

    Args:
        end: The frame at which the stack of this thread ends: that of the caller, or the one that a
            signal has interrupted. Without the frames of who looks, which would hold themselves.
    """

    __slots__ = ("_threads", "_where")

    def __init__(self, end: FrameType | None) -> None:
        #: By thread: the frames, outermost first.
        self._threads: dict[int, list[FrameType]] = {}
        #: For each frame, by its id, the thread and the place in its stack.
        self._where: dict[int, tuple[int, int]] = {}
        tops: dict[int, FrameType | None] = {**sys._current_frames(), threading.get_ident(): end}
        for thread, top in tops.items():
            frames = list(_outward(top))
            frames.reverse()
            self._threads[thread] = frames
            for place, frame in enumerate(frames):
                self._where[id(frame)] = thread, place

    def clear(self) -> None:
        """Let go of all frames."""
        self._threads.clear()
        self._where.clear()

    def of_thread(self, thread: int | None) -> list[FrameType]:
        """Return the frames of a thread, outermost first; none of a thread that has ended."""
        return [] if thread is None else self._threads.get(thread, [])

    def of_coroutine(self, coroutine: Any) -> list[FrameType]:
        """Return the frames of a coroutine, outermost first, whether it is suspended or runs."""
        frames: list[FrameType] = []
        for frame in suspended_frames(coroutine):
            frames.append(frame)
            thread, place = self._where.get(id(frame), (None, 0))
            if thread is not None:  # it runs, and the interpreter has the rest of its stack
                return frames + self._threads[thread][place + 1 :]
        return frames

    def is_running(self, frames: list[FrameType]) -> bool:
        """Whether the last of a coroutine's frames is running, in whatever thread."""
        return bool(frames) and id(frames[-1]) in self._where


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def suspended_frames(coroutine: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine, the outermost first; of a running one, the first."""
    seen: set[int] = set()
    while coroutine is not None and id(coroutine) not in seen and len(seen) < DEEPEST:
        seen.add(id(coroutine))
        frame, coroutine = _frame_and_inner(coroutine)
        if frame is not None:
            yield frame
            if coroutine is None and frame.f_code is run_in_context.__code__:
                coroutine = frame.f_locals.get("coroutine")  # it drives it, and so awaits nothing


def _frame_and_inner(thing: Any) -> tuple[FrameType | None, Any]:
    """Return the frame of an awaitable, if it has one, and what it awaits in turn."""
    kind = _class_of(thing)
    frame: FrameType | None = None
    inner: Any = None
    if kind is CoroutineType:
        frame, inner = thing.cr_frame, thing.cr_await
    elif kind is GeneratorType:
        frame, inner = thing.gi_frame, thing.gi_yieldfrom
    elif kind is AsyncGeneratorType:
        frame, inner = thing.ag_frame, thing.ag_await
    elif kind.__name__ in _WRAPPERS:
        inner = next((other for other in _referents(thing) if _is_followed(other)), None)
    elif kind.__name__ == "FutureIter":  # what asyncio's future gives to `await`
        inner = next(
            (c for other in _referents(thing) if (c := _coroutine_of_task(other)) is not None), None
        )
    elif kind.__module__ == "sluicegate._handler":  # a coroutine that runs another
        inner = thing.coroutine
    return frame, inner


def _class_of(thing: object) -> type:
    return type(thing)


def _referents(thing: object) -> list[Any]:
    return gc.get_referents(thing)


def _is_followed(thing: object) -> bool:
    kind = type(thing)
    return kind in (CoroutineType, GeneratorType, AsyncGeneratorType) or kind.__name__ in _WRAPPERS


def _coroutine_of_task(thing: Any) -> Any:
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and issubclass(type(thing), asyncio.Task):
        return thing.get_coro()
    return None


def machinery() -> tuple[str, ...]:
    """Return the beginnings of the paths of the event loops' code, and of the engine's."""
    found: list[str] = []
    for name in _MACHINERY:
        # Nothing is imported here: under Trio neither asyncio nor AnyIO is imported.
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            path = Path(file)
            found.append(f"{path.parent}{os.sep}" if path.name == "__init__.py" else file)
    return tuple(found)


def is_ours(frame: FrameType) -> bool:
    """Whether a frame is one of sluicegate itself."""
    return frame.f_code.co_filename.startswith(_OWN)


_OWN = f"{Path(__file__).parent.parent}{os.sep}"


def function_of(frame: FrameType) -> str:
    """Return the name of a frame's function, with its class."""
    return frame.f_code.co_qualname.rpartition("<locals>.")[2]


def place_of(frame: FrameType) -> str:
    """Return the file, the line and the function of a frame."""
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno} in {function_of(frame)}"


def line_of(frame: FrameType) -> str:
    """Return the source of the line that a frame is at; empty if it is not known."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def short_path(file: str) -> str:
    """Return a path relative to the current directory, or to the nearest directory of imports."""
    try:
        roots = [str(Path.cwd())]
    except OSError:  # it was removed
        roots = []
    roots += sorted((path for path in sys.path if path), key=len, reverse=True)
    for root in roots:
        if file.startswith(f"{root}{os.sep}"):
            return file[len(root) + 1 :]
    return file


def user_frames(frames: list[FrameType]) -> list[FrameType]:
    """Return the frames that are neither ours nor those of an event loop."""
    folders = machinery()
    return [frame for frame in frames if not frame.f_code.co_filename.startswith(folders)]
