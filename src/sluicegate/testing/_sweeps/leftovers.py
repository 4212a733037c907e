"""Finds what a run must not leave behind: warnings, threads, channels and async generators."""

from __future__ import annotations

import gc
import re
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, cast

import trio


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator


#: The real seconds that a thread has to end after its run.
GRACE: Final = 1.0

#: The names of idle threads in Trio's cache, which wait for work of any run.
_IDLE_THREAD = re.compile(r"Trio thread \d+")


#: An upper bound of the objects that Python 3.12 itself freezes when it starts.
_FROZEN_BY_PYTHON: Final = 1000

_frozen: list[bool] = []


def leaves(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exceptions in a group, at any depth; or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(part)
    elif error is not None:
        yield error


def for_others(
    error: BaseException, expected: tuple[type[BaseException], ...] = ()
) -> BaseException | None:
    """Return the first exception that is not a failure of the scenario, and must be raised on.

    These are a real Ctrl-C, an exit, and pytest's exceptions that skip or end a test.

    Args:
        error: The exception or group that was raised.
        expected: Classes that the scenario may raise, also these.
    """
    pytest: Any = sys.modules.get("_pytest.outcomes")  # not imported: never raised
    kinds: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, GeneratorExit)
    kinds += () if pytest is None else (pytest.Skipped, pytest.Exit, pytest.XFailed)
    for leaf in leaves(error):
        if isinstance(leaf, kinds) and not isinstance(leaf, expected):
            return leaf
    return None


class LeftoverWatch:
    """Collects warnings, uncatchable exceptions, threads and channels during a run."""

    def __init__(self) -> None:
        #: Exceptions that were raised where no code could catch them.
        self.unraisable: list[str] = []
        #: All ends of Trio's memory channels. They are kept because a dropped one looks closed.
        self.channels: list[Any] = []
        self._caught: list[warnings.WarningMessage] = []

    def __enter__(self) -> Self:
        self._busy = {thread for thread in threading.enumerate() if not _is_idle(thread)}
        self._catching = warnings.catch_warnings(record=True)
        self._caught = self._catching.__enter__()
        warnings.simplefilter("always")
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook = self._unraisable
        threading.excepthook = self._left_thread
        self._counting = _counting_channels(self.channels)
        self._counting.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._counting.__exit__(None, None, None)
        sys.unraisablehook, threading.excepthook = self._hooks
        self._catching.__exit__(None, None, None)

    def _left_thread(self, told: threading.ExceptHookArgs) -> None:
        if not issubclass(told.exc_type, SystemExit):  # it only ends the thread
            self._unraisable(told)

    def _unraisable(self, told: Any) -> None:
        thing = getattr(told, "object", None)
        where = f" in {thing!r}" if thing is not None else ""
        error = traceback.format_exception_only(told.exc_type, told.exc_value)[-1].strip()
        self.unraisable.append(f"{error}{where}")

    def open_channels(self) -> int:
        """Count the ends of Trio's memory channels that are still open."""
        return sum(not end._closed for end in self.channels)

    def warned(self) -> Counter[tuple[type[Warning], str]]:
        """Return the warnings, with counts."""
        return Counter(
            (w.category, str(w.message))
            for w in self._caught
            # `Generators` reports these, on every event loop.
            if not str(w.message).startswith("Async generator ")
        )

    def threads_left(self) -> list[str]:
        """Return the names of the threads that still work after a second."""
        until = time.monotonic() + GRACE
        while True:
            left = [
                thread.name
                for thread in threading.enumerate()
                if thread not in self._busy and not _is_idle(thread)
            ]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.001)


def _is_idle(thread: threading.Thread) -> bool:
    return _IDLE_THREAD.fullmatch(thread.name) is not None


@contextmanager
def _counting_channels(found: list[Any]) -> Generator[None]:
    """Add each new end of a Trio memory channel to ``found``. AnyIO's channels warn themselves."""
    classes: list[Any] = [trio.MemorySendChannel, trio.MemoryReceiveChannel]
    originals = [kind.__attrs_post_init__ for kind in classes]

    def noting(original: Any) -> Any:
        def post_init(self: Any) -> None:
            original(self)
            found.append(self)

        return post_init

    for kind, original in zip(classes, originals, strict=True):
        kind.__attrs_post_init__ = noting(original)
    try:
        yield
    finally:
        for kind, original in zip(classes, originals, strict=True):
            kind.__attrs_post_init__ = original


class Generators:
    """Tracks the async generators that were started. Entered inside a running event loop."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        #: The names of those that were garbage-collected before they had ended.
        self.dropped: list[str] = []

    def __enter__(self) -> Self:
        # As a plain tuple: the collector does not traverse this type, so a cycle would leak.
        firstiter, finalizer = self._hooks = (*sys.get_asyncgen_hooks(),)

        def begins(generator: AsyncGenerator[Any, Any]) -> None:
            self._open.add(generator)
            if firstiter is not None:
                firstiter(generator)

        def dropped(generator: AsyncGenerator[Any, Any]) -> None:
            self.dropped.append(_name_of(generator))
            if finalizer is not None:
                finalizer(generator)

        self._begins = begins
        sys.set_asyncgen_hooks(begins, dropped)
        return self

    def __exit__(self, *_: object) -> None:
        # Another event loop may have set its hooks since; leave those.
        if sys.get_asyncgen_hooks().firstiter is self._begins:
            sys.set_asyncgen_hooks(*self._hooks)

    def left_open(self) -> list[str]:
        """Return the names of the generators that are suspended, or were collected suspended."""
        return self.dropped + [
            _name_of(generator)
            for generator in list(self._open)
            if cast("Any", generator).ag_frame is not None
        ]


def _name_of(generator: Any) -> str:
    return str(generator.__qualname__)


def hold_for_good(wreck: object) -> None:
    """Keep the tasks of an abandoned run from being garbage-collected, at Python's exit as well.

    Collecting a task closes its coroutine, and a coroutine that ignores every exception would then
    run forever. Only failed runs get here, so they are few.
    """
    import ctypes  # noqa: PLC0415 - only for abandoned runs

    _wrecks.append(wreck)
    if hasattr(ctypes, "pythonapi"):  # Python empties its modules when it ends
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(wreck))


_wrecks: list[object] = []


def freeze_what_stays() -> None:
    """Exclude from that heap what the first run has imported and cached."""
    if _frozen:
        gc.freeze()


@contextmanager
def small_heap() -> Generator[None]:
    """Make the garbage collector skip all objects older than this block, which makes it fast."""
    if _frozen:  # by a sweep around this one
        yield
        return
    if gc.get_freeze_count() > _FROZEN_BY_PYTHON:  # frozen by the program: leave that
        gc.collect()
        yield
        return
    gc.freeze()
    _frozen.append(True)
    try:
        yield
    finally:
        _frozen.clear()
        gc.unfreeze()
