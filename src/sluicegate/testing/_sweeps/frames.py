"""Where a task waits, read from the frames of its coroutine."""

from __future__ import annotations

import asyncio
import gc
import linecache
import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final


if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType


#: Libraries that count as libraries even if they are installed from a checkout.
LOOPS: Final = ("trio", "anyio")

#: The functions in which a task waits for a thread.
_THREAD_CALLS: Final = {"to_thread_run_sync", "run_sync_in_worker_thread"}

#: The functions in which a task waits for others: the end of a nursery, and asyncio's waits.
_TASK_WAITS: Final = {"__aexit__", "wait_for", "wait", "_wait", "_cancel_and_wait"}


def _directories() -> Iterator[str]:
    """Yield the directories of libraries, as Python names them and with links resolved."""
    found = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    found += [str(Path(str(spec.origin)).parent) for spec in map(find_spec, LOOPS) if spec]
    for path in map(Path, found):
        yield f"{path}{os.sep}"
        yield f"{path.resolve()}{os.sep}"


_LIBRARIES: Final = tuple(_directories())

#: A place in a program: its code, and the line.
CodePlace = tuple["CodeType", int]


def await_places(coro: object) -> Iterator[CodePlace]:
    """Yield the places at which a suspended coroutine waits, the outermost first."""
    while coro is not None:
        inner: Any = coro
        if hasattr(inner, "cr_await"):
            frame, coro = inner.cr_frame, inner.cr_await
        elif hasattr(inner, "gi_yieldfrom"):
            frame, coro = inner.gi_frame, inner.gi_yieldfrom
        elif hasattr(inner, "ag_await"):
            frame, coro = inner.ag_frame, inner.ag_await
        else:
            # The driver of an async generator or of __await__ exposes it only to the collector.
            frame, coro = None, _driven(inner)
        if frame is not None:
            yield frame.f_code, frame.f_lineno
            if coro is None and hasattr(inner, "gi_yieldfrom"):
                coro = _driven_by_hand(frame)


def _driven(driver: object) -> object:
    if type(driver).__module__ != "builtins":
        return None
    for referent in gc.get_referents(driver):
        if hasattr(referent, "ag_await") or hasattr(referent, "cr_await"):
            return referent
    return None


def _driven_by_hand(frame: FrameType) -> object:
    """Return the coroutine that a generator drives with ``send()`` instead of ``await``."""
    if frame.f_code.co_name == "_async_yield":  # the end of every wait on Trio
        return None
    for value in frame.f_locals.values():
        if getattr(value, "cr_suspended", False):
            return value
    return None


def waits_for_thread(coro: object) -> bool:
    """Whether a coroutine waits for a call in a thread to return."""
    return any(code.co_name in _THREAD_CALLS for code, _ in await_places(coro))


def waits_for_tasks(coro: object) -> bool:
    """Whether a coroutine waits in a library for tasks to end, as a nursery's end does."""
    return any(
        code.co_name == "__aexit__" or code.co_filename == asyncio.tasks.__file__
        for code, _ in await_places(coro)
        if code.co_name in _TASK_WAITS and is_library(code)
    )


def is_library(code: CodeType) -> bool:
    """Whether code belongs to Python's own library or to an installed package."""
    return code.co_filename.startswith((*_LIBRARIES, "<"))


def tell_place(place: CodePlace) -> str:
    """Describe a place by its file, line and function."""
    return f"{tell_file(place)} in {place[0].co_name}"


def tell_file(place: CodePlace) -> str:
    """Describe a place by its file and line; the user's files by a relative path."""
    code, line = place
    path = Path(code.co_filename)
    return f"{'/'.join(path.parts[-2:]) if is_library(code) else _near(path)}:{line}"


def _near(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def tell_await(places: list[CodePlace]) -> str:
    """Describe where a task waits: the line of the user's code, and the library calls below it."""
    if not places:
        return "before its first step"
    mine = [n for n, (code, _) in enumerate(places) if not is_library(code)]
    number = mine[-1] if mine else 0
    code, line = places[number]
    text = tell_place(places[number])
    source = linecache.getline(code.co_filename, line).strip()
    if source:
        text += f": {source}"
    below = [place for place in places[number + 1 :] if not _is_trap(place[0])]
    if below:
        calls = " > ".join(code.co_name for code, _ in below)
        text += f" (inside {calls}, {tell_file(below[-1])})"
    return text


def _is_trap(code: CodeType) -> bool:
    # Every wait on Trio ends in these, so they carry no information.
    return code.co_filename.endswith(str(Path("trio", "_core", "_traps.py")))
