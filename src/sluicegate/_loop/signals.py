"""Signals that end a program, and one that prints what it does.

The first signal unwinds the program, the second prints a report, the third ends it. SIGQUIT, which
a terminal sends for Ctrl and the backslash, prints what every run of the process waits for.

A handler is installed only where the disposition is the default, in the main thread, while one
event loop runs. So a program under ``nohup`` still ignores SIGHUP, and a program that handles a
signal itself keeps its handler.

Trio's own handler raises KeyboardInterrupt in the main task, despite shields; asyncio's cancels the
main task, and the second Ctrl-C interrupts the clean-up. Here a signal cancels a scope around the
whole program, and shields hold on both backends.

A program that serves others may drain first: then the first signal only tells it to finish what it
has, and the second one unwinds it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, final

from sluicegate._exceptions import URGENT
from sluicegate._loop import (
    backend_named,
    current_backend,
    currently_ki_protected,
    disable_ki_protection,
)
from sluicegate._loop.stacks import Stacks, user_frames


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from sluicegate._loop import Backend


T = TypeVar("T")

#: The number of signals of one kind at which the process ends.
_LAST = 3


@final
class Signals:
    """Runs one event loop, in which SIGINT, SIGTERM and SIGHUP cancel everything.

    Args:
        dump: Returns what SIGQUIT prints, given the frame that the signal has interrupted. It is
            called in a signal handler.
        drain: Is called in the event loop, and the first signal cancels nothing. A function that
            returns by itself then gives its result; a second signal cancels everything.

    Attributes:
        received: The first signal received, or None.
    """

    __slots__ = (
        "_backend",
        "_call_soon",
        "_counts",
        "_drain",
        "_dump",
        "_has_turned",
        "_is_draining",
        "_loop",
        "_main",
        "_previous",
        "_scope",
        "received",
    )

    def __init__(
        self,
        dump: Callable[[FrameType | None], str],
        drain: Callable[[], object] | None = None,
    ) -> None:
        self.received: int | None = None
        self._dump = dump
        self._drain = drain
        self._is_draining = False
        self._counts: dict[int, int] = {}
        self._previous: dict[int, Any] = {}
        self._backend: Backend | None = None
        self._call_soon: Callable[[Callable[[], object]], object] | None = None
        self._has_turned = False
        self._loop: Any = None
        self._main: Any = None
        self._scope: Any = None

    def run(
        self,
        function: Callable[[], Awaitable[T]],
        backend: str,
        options: dict[str, Any],
        *,
        name: str | None = None,
    ) -> T:
        """Run an async function in a new event loop.

        Args:
            function: The async function; it is called without arguments.
            backend: ``"trio"`` or ``"asyncio"``.
            options: Keyword arguments for ``trio.run``, or the ``backend_options`` of ``anyio.run``.
            name: The name of its task.

        Returns:
            The result of the function.

        Raises:
            KeyboardInterrupt: SIGINT was received, and everything has unwound.
            SystemExit: SIGTERM or SIGHUP was received, and everything has unwound: ``128 + n``.
            BaseException: The exception of the function.
        """

        @disable_ki_protection  # it awaits user code
        async def main() -> list[T]:
            this = self._backend = current_backend()
            self._loop = this.current_loop()
            self._main = this.current_task()
            if name is not None:
                this.rename_task(self._main, name)
            with this.cancel_scope() as self._scope:
                self._call_soon = this.caller_into(self._loop)
                if self.received is not None:
                    self._begin_to_end()
                return [await function()]  # noqa: ASYNC910 - nothing, if it was cancelled
            return []

        with self:
            try:
                result: list[T] = backend_named(backend).run_in_new_loop(main, options)
            except BaseException as error:
                if self.received is None or issubclass(type(error), URGENT):
                    raise
                if self.received != signal.SIGINT:  # SystemExit shows no traceback
                    sys.excepthook(type(error), error, error.__traceback__)
                raise self._exception(self.received) from error  # noqa: ASYNC104 - its cause
            finally:
                self._call_soon = self._scope = self._loop = self._main = None
        if self.received is not None and not (self._is_draining and result):
            raise self._exception(self.received)
        return result[0]

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name, default, handle in (
            ("SIGINT", signal.default_int_handler, self._handle),
            ("SIGTERM", signal.SIG_DFL, self._handle),
            ("SIGHUP", signal.SIG_DFL, self._handle),
            ("SIGQUIT", signal.SIG_DFL, self._print_dump),
        ):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is default:
                with suppress(ValueError):  # a subinterpreter cannot install any
                    self._previous[number] = signal.signal(number, handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            if signal.getsignal(number) in (self._handle, self._print_dump):
                signal.signal(number, previous)

    def _print_dump(self, _number: int, frame: FrameType | None) -> None:
        _write(self._dump(frame))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        count = self._counts[number] = self._counts.get(number, 0) + 1
        if count >= _LAST:
            _end_process(number)
        is_stuck = self._call_soon is not None and not self._has_turned
        if self.received is None:
            self.received, self._is_draining = number, self._drain is not None
            self._call_in_loop(self._begin_to_end)
        elif self._is_draining and not is_stuck:
            self._is_draining = False
            self._call_in_loop(self._cancel)
        elif count > 1 and is_stuck and not currently_ki_protected():
            raise self._exception(number)  # in the step that holds the event loop
        elif count > 1:
            _write(self._report(number, frame))

    def _call_in_loop(self, function: Callable[[], object]) -> None:
        if self._call_soon is not None:
            with suppress(RuntimeError):  # the event loop has ended
                self._call_soon(function)

    def _begin_to_end(self) -> None:
        """Drain, or cancel everything; called in the event loop."""
        if self._is_draining and self._drain is not None:
            self._has_turned = True
            self._drain()
        else:
            self._cancel()

    def _cancel(self) -> None:
        """Cancel everything; called in the event loop."""
        self._has_turned = True
        if self._scope is not None and self._backend is not None and self.received is not None:
            self._backend.cancel(self._scope, f"{_name(self.received)} was received")

    @staticmethod
    def _exception(number: int) -> BaseException:
        return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)

    def _report(self, number: int, frame: FrameType | None) -> str:
        lines = [f"sluicegate: {_name(number)} again; still cleaning up:"]
        backend, stacks = self._backend, Stacks(frame)
        if backend is not None and self._main is not None:
            for task in backend.living_tasks(self._loop, self._main):
                frames = stacks.of_coroutine(backend.coroutine_of(task))
                lines.append(f"    {backend.task_name(task)}{_place(frames)}")
        lines.append(f"a third {_name(number)} ends the process without it")
        return "".join(f"{line}\n" for line in lines)


def _name(number: int) -> str:
    return signal.Signals(number).name


def _end_process(number: int) -> None:
    """End the process in the way that the signal does by default."""
    if os.getpid() != 1:  # the first process of a namespace does not receive them
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    os._exit(128 + number)


def _write(text: str) -> None:
    """Write to standard error, past its buffer, which the signal may have interrupted."""
    data = text.encode(errors="replace")
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return
    with suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _place(frames: list[FrameType]) -> str:
    """Return the line of user code that a task is at."""
    theirs = user_frames(frames)
    if not theirs:
        return ""
    code = theirs[-1].f_code
    return f", at {Path(code.co_filename).name}:{theirs[-1].f_lineno} in {code.co_name}"
