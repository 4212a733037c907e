"""The worker process of a step: it receives frames, calls the step, and sends frames.

Only the worker process runs this, in its main thread; the parent's side is
:mod:`sluicegate._loop.process_pool`. A frame is a kind, the length of the payload, and the payload. All
frames use one socket, inherited under a descriptor above 2, so that output of a step or its child
processes cannot be mistaken for a frame. A second thread reads, so that the worker notices the end
of the parent during a step too.
"""

from __future__ import annotations

import faulthandler
import inspect
import io
import logging
import os
import pickle
import runpy
import signal
import struct
import sys
import threading
import traceback
from contextvars import copy_context
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._exceptions import links_of, set_links, set_trace, trace_of


if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


LOGGER = logging.getLogger("sluicegate")

HEADER = struct.Struct("!BQ")

# From the parent: a function to import, a call, which is two frames, and the reply to an event.
LOAD, CALL, REQUEST, REPLY = 1, 2, 3, 4
# From the worker: ready, once; a request has begun; and one of the last three as its answer.
READY, BEGAN, EVENT, PROGRESS, LOG, RESULT, ERROR, REFUSAL = range(10, 18)

#: The end of messages about values that cannot be pickled.
PICKLABLE = "fields that pickle takes, such as numbers, text, bytes, lists and classes of a module"

#: Whether the user's script is being imported in this worker process.
is_importing_main = False


@attrs.frozen
class Beginning:
    """The first data that a worker process receives."""

    #: ``("module", name)`` or ``("path", path)`` of the user's main module, or None.
    main: tuple[str, str] | None
    argv: list[str]
    #: The loggers whose level the parent has set, by name; ``""`` is the root.
    levels: dict[str, int]


@attrs.frozen
class Surroundings:
    """The parent's directory, import path and environment; sent again after a change."""

    directory: str | None
    path: tuple[str, ...]
    environment: dict[str, str]

    def apply(self, before: Surroundings | None) -> None:
        """Apply these in place of the previous ones."""
        sys.path[:] = self.path
        if before is None:
            return  # it was started with the rest
        if self.directory is not None and self.directory != before.directory:
            os.chdir(self.directory)
        if self.environment != before.environment:
            for name in before.environment.keys() - self.environment.keys():
                os.environ.pop(name, None)
            os.environ.update(self.environment)


@attrs.frozen
class StepOfCall:
    """The step, as its context shows it; the fields have the names of those of ``Step``."""

    run_id: str
    name: str
    label: str
    num_workers: int
    timeout: float | None
    attempt: int
    delivery_key: str
    fencing_token: int
    has_idle_timeout: bool


@attrs.frozen
class Call:
    """One call of a step; the function and its arguments follow in the next frame."""

    number: int
    surroundings: Surroundings | None
    #: What observers enter around the body, pickled; each with the name of the observer.
    around: tuple[tuple[str, bytes], ...]
    #: The step and where its context stands among the arguments, if it takes one.
    context: tuple[int, StepOfCall] | None


class MainUnpickler(pickle.Unpickler):
    """Reads a request, which may refer to the user's main module as ``__main__``.

    The main module is imported under the name ``__mp_main__``, as :mod:`multiprocessing` does it,
    and only if the request refers to it.
    """

    def __init__(self, data: bytes, main: tuple[str, str] | None) -> None:
        super().__init__(io.BytesIO(data))
        self._main = main

    def find_class(self, module: str, name: str, /) -> Any:
        if module in ("__main__", "__mp_main__"):
            import_main(self._main)
            module = "__mp_main__"
        return super().find_class(module, name)


def import_main(main: tuple[str, str] | None) -> None:
    """Import the user's main module, unless it is imported already."""
    global is_importing_main  # noqa: PLW0603 - of the process, as the module is
    if "__mp_main__" in sys.modules or main is None:
        return
    how, place = main
    is_importing_main = True
    try:
        if how == "module":
            content = runpy.run_module(place, run_name="__mp_main__", alter_sys=True)
        else:
            content = runpy.run_path(place, run_name="__mp_main__")
    finally:
        is_importing_main = False
    module = ModuleType("__mp_main__")
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


class Channel:
    """The socket to the parent, shared by all threads of the worker process.

    Attributes:
        number: The number of the current call, or None.
        calls: The calls received, and None at the end.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.number: int | None = None
        self.calls: SimpleQueue[tuple[Call | None, bytes] | None] = SimpleQueue()
        self._connection: socket.socket | None = connection
        self._replies: SimpleQueue[bytes] = SimpleQueue()
        self._sending = threading.Lock()
        self._asking = threading.Lock()

    @property
    def is_forked(self) -> bool:
        """Whether a step has forked this process, in which the channel must not be used."""
        return self._connection is None

    def send(self, kind: int, payload: bytes) -> None:
        connection = self._connection
        if connection is None:
            return
        with self._sending:
            connection.sendall(HEADER.pack(kind, len(payload)))
            connection.sendall(payload)

    def ask(self, kind: int, payload: bytes) -> bytes:
        """Send a frame and return the reply to it; one thread at a time."""
        with self._asking:
            self.send(kind, payload)
            return self._replies.get()

    def read(self) -> None:
        """Read frames until the parent has ended."""
        connection = self._connection
        assert connection is not None
        try:
            with connection.makefile("rb") as file:
                self._read(file)
        except OSError:
            pass
        if self.number is not None:
            end_at_once()
        self.calls.put(None)

    def _read(self, file: Any) -> None:
        call: Call | None = None
        while len(header := file.read(HEADER.size)) == HEADER.size:
            kind, length = HEADER.unpack(header)
            payload = file.read(length)
            if len(payload) < length:
                return
            if kind == LOAD:
                self.calls.put((None, payload))
            elif kind == CALL:
                call = pickle.loads(payload)  # noqa: S301 - the parent process made it
            elif kind == REQUEST:
                assert call is not None
                self.calls.put((call, payload))
            else:
                self._replies.put(payload)

    def forget(self) -> None:
        """Disconnect from the parent, in a process that a step has forked."""
        connection, self._connection = self._connection, None
        if connection is not None:
            os.close(connection.detach())
        # It reacts again to signals of a terminal, a supervisor and multiprocessing.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self._sending = threading.Lock()
        self._asking = threading.Lock()


def end_at_once() -> None:
    """Kill this process and its process group, because the parent has ended."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class _LogHandler(logging.Handler):
    """Passes log records to the parent process."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        if self._channel.is_forked:
            if logging.lastResort is not None:
                logging.lastResort.handle(record)
            return
        try:
            self._channel.send(LOG, _pack_record(record))
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)


def _pack_record(record: logging.LogRecord) -> bytes:
    fields = dict(record.__dict__)
    fields["msg"] = fields["message"] = record.getMessage()
    fields["args"] = None
    if record.exc_info:
        fields["exc_text"] = record.exc_text or logging.Formatter().formatException(record.exc_info)
    fields["exc_info"] = None
    try:
        return pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 - without added fields
        kept = {
            name: value for name, value in fields.items() if isinstance(value, str | int | float)
        }
        return pickle.dumps({**kept, "args": None, "exc_info": None}, pickle.HIGHEST_PROTOCOL)


def serve(
    connection: socket.socket,
    beginning: Beginning,
    surroundings: Surroundings,
    make_context: Callable[[Channel, Call, StepOfCall], Any],
) -> None:
    """Execute the parent's calls, one after another, until the parent has ended."""
    pid = os.getpid()
    channel = Channel(connection)
    _settle(channel, beginning)
    threading.Thread(target=channel.read, name="sluicegate worker", daemon=True).start()
    channel.send(READY, b"")
    while (item := channel.calls.get()) is not None:
        call, request = item
        channel.send(BEGAN, b"")
        channel.number = 0 if call is None else call.number
        try:
            if call is None:
                kind, payload = load(request, beginning.main)
            else:
                if call.surroundings is not None:
                    call.surroundings.apply(surroundings)
                    surroundings = call.surroundings
                # A copy: the variables that a step or an observer sets are not seen by the next.
                kind, payload = copy_context().run(
                    work, channel, call, request, beginning.main, make_context
                )
        finally:
            channel.number = None
            if os.getpid() != pid:
                _end_fork()
        try:
            channel.send(kind, payload)
        except OSError:
            return  # the parent has ended, or the step has closed the socket
        del item, request, payload  # they may be large


def _settle(channel: Channel, beginning: Beginning) -> None:
    os.register_at_fork(after_in_child=channel.forget)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The parent handles them, and ends this process while it unwinds. This is a handler and
        # not SIG_IGN, because child processes would inherit SIG_IGN.
        signal.signal(number, _leave_to_parent)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    for name, level in beginning.levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger().addHandler(_LogHandler(channel))
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a crash in native code prints its place to stderr


def _leave_to_parent(_number: int, _frame: object) -> None:
    pass


def _end_fork() -> None:
    """End a process that a step has forked and that has returned from the step."""
    error = sys.exception()
    if error is not None:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0 if error is None else 1)


def load(function: bytes, main: tuple[str, str] | None) -> tuple[int, bytes]:
    """Import the modules of a step ahead of its call; return a frame as :func:`work` does."""
    try:
        MainUnpickler(function, main).load()
    except BaseException as error:  # noqa: ASYNC103, BLE001 - reported to the parent
        return _refuse("unread", "", f"{type(error).__name__}: {error}")  # noqa: ASYNC104
    return RESULT, pickle.dumps(None)


def work(
    channel: Channel,
    call: Call,
    request: bytes,
    main: tuple[str, str] | None,
    make_context: Callable[[Channel, Call, StepOfCall], Any],
) -> tuple[int, bytes]:
    """Call a step.

    Returns:
        The kind and the payload of the answering frame: the pickled result, the error, or the
        reason why neither could be sent.
    """
    context = None
    try:
        function, arguments = MainUnpickler(request, main).load()
        if call.context is not None:
            place, step = call.context
            context = make_context(channel, call, step)
            arguments = [*arguments[:place], context, *arguments[place:]]
    except BaseException as error:  # noqa: ASYNC103, BLE001 - reported to the parent
        return _refuse("unread", "", f"{type(error).__name__}: {error}")  # noqa: ASYNC104
    entered = _enter(call.around, main)
    try:
        try:
            result = function(*arguments)
        finally:
            if context is not None:
                context.end()
    except BaseException as error:  # noqa: ASYNC103, BLE001 - reported to the parent
        if not channel.is_forked:
            _leave(entered, error)
        return _pack_error(error)  # noqa: ASYNC104
    if not channel.is_forked:
        _leave(entered, None)
    if inspect.iscoroutine(result):
        result.close()
    try:
        return RESULT, pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
    except BaseException as why:  # noqa: ASYNC103, BLE001 - reported to the parent
        return _refuse("unsent result", type(result).__name__, str(why))  # noqa: ASYNC104


def _enter(
    around: tuple[tuple[str, bytes], ...], main: tuple[str, str] | None
) -> list[tuple[str, Any]]:
    """Enter what observers put around the body. A fault is logged, and does not reach the step."""
    entered: list[tuple[str, Any]] = []
    for observer, pickled in around:
        try:
            manager = MainUnpickler(pickled, main).load()()
            manager.__enter__()
        except BaseException as fault:  # noqa: ASYNC103, BLE001 - logged
            _log_fault(observer, fault)
        else:
            entered.append((observer, manager))
    return entered


def _leave(entered: list[tuple[str, Any]], error: BaseException | None) -> None:
    """Leave it, in reverse order. The exception of the step stays as it is."""
    kind = None if error is None else type(error)
    trace = None if error is None else trace_of(error)
    links = None if error is None else links_of(error)
    while entered:
        observer, manager = entered.pop()
        try:
            manager.__exit__(kind, error, trace)
        except BaseException as fault:  # noqa: ASYNC103, BLE001 - logged
            if fault is not error:
                _log_fault(observer, fault)
    if error is not None and links is not None:
        set_links(error, links)
        set_trace(error, trace)


def _log_fault(observer: str, fault: BaseException) -> None:
    LOGGER.error(
        "what the observer %s enters around a step in a worker process raised %s; the step does not "
        "see it",
        observer,
        type(fault).__name__,
        exc_info=fault,
    )


def _pack_error(error: BaseException) -> tuple[int, bytes]:
    # Without the frames of this module, which are not part of the step.
    trace = error.__traceback__
    inner = None if trace is None else trace.tb_next
    details = "".join(traceback.format_exception(type(error), error, inner))
    try:
        answer = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        pickle.loads(answer)  # noqa: S301 - some exceptions fail only there
    except BaseException as why:  # noqa: ASYNC103, BLE001 - reported to the parent
        return _refuse("unsent error", type(error).__name__, f"{why}\n{details}")  # noqa: ASYNC104
    return ERROR, pickle.dumps((answer, details), pickle.HIGHEST_PROTOCOL)


def _refuse(what: str, kind: str, details: str) -> tuple[int, bytes]:
    return REFUSAL, pickle.dumps((what, kind, details), pickle.HIGHEST_PROTOCOL)


def ask_parent(channel: Channel, number: int, what: str, *arguments: Any) -> None:
    """Ask the parent to call a method of the context of the call ``number``.

    Raises:
        Exception: The exception of the method.
        WorkflowRuntimeError: The call has ended, the process is a forked one, or an argument
            cannot be pickled.
    """
    if channel.is_forked:
        msg = (
            f"{what} was called in a process that the step has forked; expected it in the process "
            "of the step itself"
        )
        raise WorkflowRuntimeError(msg)
    if channel.number != number:
        msg = f"{what} was called after the step had ended; expected it while the step runs"
        raise WorkflowRuntimeError(msg)
    try:
        payload = pickle.dumps((number, what, arguments), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        msg = (
            f"{what} was given {type(arguments[0]).__name__}, which cannot be pickled ({error}); "
            f"expected {PICKLABLE}"
        )
        raise WorkflowRuntimeError(msg) from error
    refusal = pickle.loads(channel.ask(EVENT, payload))  # noqa: S301 - the parent process made it
    if refusal is not None:
        raise refusal
