"""Leftovers: what a run must not leave behind, and how it is found."""

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
    from types import TracebackType


#: How many real seconds a thread is given to end after its run.
GRACE: Final = 1.0

#: What idle threads of Trio's cache are called; they wait for further work, of any run.
_IDLE_THREAD = re.compile(r"Trio thread \d+")


#: How many objects Python 3.12 freezes itself as it starts, at most.
_FROZEN_BY_PYTHON: Final = 1000

_frozen: list[bool] = []


def leaves(error: BaseException | None) -> Iterator[BaseException]:
    """Yield what is in a group, however deep; or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(part)
    elif error is not None:
        yield error


def for_others(
    error: BaseException, expected: tuple[type[BaseException], ...] = ()
) -> BaseException | None:
    """Return what is not a scenario's failure: a real Ctrl-C, an exit, what skips or ends a test.

    Args:
        error: What was raised, perhaps with it inside.
        expected: What the scenario may raise, whatever it is.
    """
    pytest: Any = sys.modules.get("_pytest.outcomes")  # nobody else can have raised its own
    kinds: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, GeneratorExit)
    kinds += () if pytest is None else (pytest.Skipped, pytest.Exit, pytest.XFailed)
    for leaf in leaves(error):
        if isinstance(leaf, kinds) and not isinstance(leaf, expected):
            return leaf
    return None


class LeftoverWatch:
    """Collects what goes wrong beside a run: warnings, exceptions nobody gets, threads, channels."""

    def __init__(self) -> None:
        #: Exceptions that were raised where nobody could catch them.
        self.unraisable: list[str] = []
        #: Ends of Trio's memory channels that were made; kept, or those dropped would look closed.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._counting.__exit__(None, None, None)
        sys.unraisablehook, threading.excepthook = self._hooks
        self._catching.__exit__(None, None, None)

    def _left_thread(self, told: threading.ExceptHookArgs) -> None:
        if not issubclass(told.exc_type, SystemExit):  # which ends a thread, and nothing else
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
        """Return what was warned of, and how often."""
        return Counter(
            (w.category, str(w.message))
            for w in self._caught
            # Generators are told by our own hooks, on every event loop.
            if not str(w.message).startswith("Async generator ")
        )

    def threads_left(self) -> list[str]:
        """Return the names of the threads that still work; they are given a second to end."""
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
    """Note each end of a Trio memory channel that is made; AnyIO's warn by themselves."""
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
    """Notes the async generators that were begun; entered inside a running event loop."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        #: The names of those that were dropped before they had ended.
        self.dropped: list[str] = []

    def __enter__(self) -> Self:
        # Not kept as it is: the collector does not look into it, and this would be held for good.
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
        # What another event loop has set since is its own.
        if sys.get_asyncgen_hooks().firstiter is self._begins:
            sys.set_asyncgen_hooks(*self._hooks)

    def left_open(self) -> list[str]:
        """Return the names of the generators that are suspended, or were dropped so."""
        return self.dropped + [
            _name_of(generator)
            for generator in list(self._open)
            if cast("Any", generator).ag_frame is not None
        ]


def _name_of(generator: Any) -> str:
    return str(generator.__qualname__)


def hold_for_good(wreck: object) -> None:
    """Keep what a run has left undone from ever being collected, at the end of Python as well.

    Collecting a task closes its coroutine, and one that goes on whatever it is told would go on
    then, for ever. It takes an error to get here, so there are not many.
    """
    import ctypes  # noqa: PLC0415 - only a run that was given up needs it

    _wrecks.append(wreck)
    if hasattr(ctypes, "pythonapi"):  # Python empties its modules when it ends
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(wreck))


_wrecks: list[object] = []


def freeze_what_stays() -> None:
    """Leave out of that heap what a first run has imported and made for good."""
    if _frozen:
        gc.freeze()


@contextmanager
def small_heap() -> Generator[None]:
    """Have the garbage collector look only at what is made in this block, so that it is quick."""
    if _frozen:  # by a sweep around this one
        yield
        return
    if gc.get_freeze_count() > _FROZEN_BY_PYTHON:  # by the program, which wants it to stay so
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
