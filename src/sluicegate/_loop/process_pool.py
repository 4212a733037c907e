"""Worker processes for steps, as the event loop sees them: started, lent, ended.

Each event loop has its own pool. A worker is an interpreter that runs
:mod:`sluicegate._engine.process_main`, and one socket. It knows nothing of the event loop, so an idle one
needs neither a task nor a transport, and waits until a step needs it or the loop ends.

A worker leads its own process group. So a terminal's Ctrl-C does not reach it before
the parent has unwound, and killing it kills the processes that its step has started. It ends by itself
when its parent is gone, because its socket is then at its end.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import time
from contextlib import closing, suppress
from math import inf
from typing import TYPE_CHECKING, final
from weakref import finalize

from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop import process_worker as protocol
from sluicegate._loop.limits import LoopSlots, PerLoop, WaitQueue
from sluicegate._loop.process_start import (
    check_startable,
    current_surroundings,
    first_words,
    launch,
)


if TYPE_CHECKING:
    from sluicegate._loop import Backend


#: The number of bytes read or written between two checkpoints.
CHUNK = 1 << 18
#: Real seconds after which an unused process is closed, and seconds that closing may take.
IDLE_TIME = 300.0
GRACE = 1.0


class BrokenProcessError(Exception):
    """Raised when a worker process ended, or failed to start, instead of answering."""


@final
class WorkerProcess:
    """One worker process, from its start to its end."""

    __slots__ = ("_process", "_socket", "_surroundings", "calls", "idle_since", "loaded")

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._surroundings: protocol.Surroundings | None = None
        #: The number of calls sent to it, and the time since which it is idle.
        self.calls = 0
        self.idle_since = 0.0
        #: The functions that it has imported.
        self.loaded: set[bytes] = set()

    # -- the process

    async def start(self, backend: Backend) -> None:
        """Start it and wait until it is ready. A checkpoint; cancelled, there is no process.

        Raises:
            BrokenProcessError: It ended before it was ready.
            OSError: The system did not start it.
        """
        try:
            # In a thread, because forking and loading the interpreter may take long.
            await backend.run_in_thread(self._start, abandon_on_cancel=False)
            backend.hold_clock(inf)
            try:
                kind, _ = await self.receive(backend)
            finally:
                backend.release_clock(inf)
        except BaseException:
            await self.end(backend)  # noqa: ASYNC102, ASYNC120 - it shields itself
            raise
        if kind != protocol.READY:
            await self.end(backend)
            msg = f"it began with a frame of kind {kind}"
            raise BrokenProcessError(msg)

    def _start(self) -> None:
        self._surroundings = surroundings = current_surroundings()
        ours, theirs = socket.socketpair()
        self._socket = ours
        with closing(theirs):
            self._process = launch(theirs)
        with suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it has ended; receive() reports that
            ours.sendall(first_words(surroundings))
        ours.setblocking(False)

    @property
    def pid(self) -> int | None:
        """The identifier of the process, or None if there is none."""
        return None if self._process is None else self._process.pid

    def is_alive(self) -> bool:
        """Whether it can take a call, as far as known. Never waits."""
        if self._socket is None or self._process is None or self._process.poll() is not None:
            return False
        try:
            return (
                self._socket.recv(1, socket.MSG_PEEK) != b""
            )  # else a record that was logged meanwhile
        except BlockingIOError:
            return True
        except OSError:
            return False

    def hang_up(self) -> None:
        """Close the socket: the worker ends by itself if it is idle. Never waits."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def kill(self) -> None:
        """Kill the process and its process group. Never waits."""
        process = self._process
        if process is None or process.returncode is not None:
            return  # the system may have reused the number
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()

    @enable_ki_protection
    async def end(self, backend: Backend) -> None:
        """Kill it and wait for its end. Shields itself; no checkpoint if it has ended.

        Raises:
            BaseException: asyncio's own cancellation, which ignores shields; after the end.
        """
        self.hang_up()
        self.kill()
        process = self._process
        natively: BaseException | None = None
        while process is not None and process.poll() is None:
            try:
                with backend.cancel_scope(shield=True):
                    await _wait_for_end(backend, process)
            except backend.Cancelled as error:  # noqa: ASYNC103 - raised below
                natively = error
        if natively is not None:
            try:
                raise natively
            finally:
                del natively  # or this frame and its exception keep each other alive

    def wait(self, deadline: float) -> None:
        """Wait for its end until a time of :func:`time.monotonic`, then kill it. Blocks."""
        if self._process is None:
            return
        try:
            self._process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def ending(self) -> str:
        """Return how it ended, once it has."""
        code = None if self._process is None else self._process.returncode
        if code is None:
            return "it did not start"
        if code >= 0:
            return f"exit status {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    # -- the frames

    async def call(
        self,
        backend: Backend,
        request: bytes,
        around: tuple[tuple[str, bytes], ...],
        context: tuple[int, protocol.StepOfCall] | None,
    ) -> None:
        """Send a call of a step, with what its observers enter around the body.

        Raises:
            BrokenProcessError: The process is gone.
        """
        self.calls += 1
        surroundings: protocol.Surroundings | None = current_surroundings()
        if surroundings == self._surroundings:
            surroundings = None
        else:
            self._surroundings = surroundings
        call = protocol.Call(self.calls, surroundings, around, context)
        await self.send(backend, protocol.CALL, pickle.dumps(call))
        await self.send(backend, protocol.REQUEST, request)

    async def send(self, backend: Backend, kind: int, payload: bytes) -> None:  # noqa: ASYNC910 - if the socket takes it
        """Send a frame. Not a checkpoint if the socket takes it at once.

        Raises:
            BrokenProcessError: The process is gone.
        """
        for data in (protocol.HEADER.pack(kind, len(payload)), payload):
            rest = memoryview(data)
            while rest:
                assert self._socket is not None
                try:
                    sent = self._socket.send(rest[:CHUNK])
                except BlockingIOError:
                    await backend.wait_writable(self._socket)
                except OSError as error:
                    raise BrokenProcessError(str(error)) from error
                else:
                    rest = rest[sent:]
                    if rest:
                        await backend.checkpoint()

    async def receive(self, backend: Backend) -> tuple[int, bytearray]:
        """Wait for a frame. A checkpoint.

        Returns:
            Its kind and its payload.

        Raises:
            BrokenProcessError: The process is gone.
        """
        await backend.checkpoint()
        kind, length = protocol.HEADER.unpack(await self._read(backend, protocol.HEADER.size))
        return kind, await self._read(backend, length)

    async def _read(self, backend: Backend, size: int) -> bytearray:  # noqa: ASYNC910 - see above
        data = bytearray()
        while len(data) < size:
            assert self._socket is not None
            try:
                chunk = self._socket.recv(min(size - len(data), CHUNK))
            except BlockingIOError:
                await backend.wait_readable(self._socket)
                continue
            except OSError as error:
                raise BrokenProcessError(str(error)) from error
            if not chunk:
                msg = "its socket is at its end"
                raise BrokenProcessError(msg)
            data += chunk
            if len(data) < size:
                await backend.checkpoint()
        return data


@final
class ProcessPool:
    """The worker processes of one event loop.

    Attributes:
        slots: Limits the number of working processes to one for each processor.
    """

    __slots__ = ("__weakref__", "_closing", "_idle", "_owner", "_used", "_watched", "slots")

    def __init__(self, queue: WaitQueue) -> None:
        self.slots = LoopSlots(queue, processors())
        self._idle: list[WorkerProcess] = []
        self._used: set[WorkerProcess] = set()
        #: Processes that end because their sockets are closed.
        self._closing: list[WorkerProcess] = []
        self._owner = os.getpid()
        self._watched = False

    async def lend(self, backend: Backend) -> WorkerProcess:
        """Return a worker that is ready. A checkpoint if one has to be started.

        Raises:
            BrokenProcessError: It ended before it was ready.
            OSError: The system did not start it.
            WorkflowRuntimeError: No process can be started here.
        """
        check_startable()
        self._tidy()
        while self._idle:
            worker = self._idle.pop()
            self._used.add(worker)
            if worker.is_alive():
                return worker  # noqa: ASYNC910
            await self.drop(backend, worker)
        if not self._watched:
            self._watched = True
            await backend.call_at_end(self.close)
        worker = WorkerProcess()
        self._used.add(worker)
        try:
            await worker.start(backend)
        except BaseException:
            self._used.discard(worker)
            raise
        return worker

    def give_back(self, worker: WorkerProcess) -> None:
        """Keep a worker whose step has ended for the next step. Never waits."""
        self._used.discard(worker)
        worker.idle_since = time.monotonic()
        self._idle.append(worker)

    async def drop(self, backend: Backend, worker: WorkerProcess) -> None:
        """End a worker and wait for that. Shields itself."""
        try:
            await worker.end(backend)
        finally:
            self._used.discard(worker)

    def _tidy(self) -> None:
        now = time.monotonic()
        while self._idle and self._idle[0].idle_since < now - IDLE_TIME:
            worker = self._idle.pop(0)
            worker.hang_up()
            self._closing.append(worker)
        self._closing = [worker for worker in self._closing if not _has_ended(worker)]

    def close(self) -> None:
        """End all processes, because the event loop has ended. Blocks until they have ended."""
        if os.getpid() != self._owner:
            return  # this process was forked; they belong to its parent
        for worker in self._used:  # of an event loop that was abandoned
            worker.hang_up()
            worker.kill()
        for worker in self._idle:
            worker.hang_up()
        deadline = time.monotonic() + GRACE
        for worker in (*self._used, *self._idle, *self._closing):
            worker.wait(deadline)
        self._used.clear()
        self._idle.clear()
        self._closing.clear()
        self._watched = False


def _has_ended(worker: WorkerProcess) -> bool:
    return worker._process is None or worker._process.poll() is not None


def _open_pool(queue: WaitQueue) -> ProcessPool:
    pool = ProcessPool(queue)
    # A loop that is closed by hand, or never, does not call the functions of call_at_end().
    finalize(queue.loop(), pool.close)
    return pool


_pools = PerLoop(_open_pool)


def process_slots_of(loop: object) -> LoopSlots | None:
    """Return the slots of the processes of an event loop; None if no step has run in one."""
    pool = _pools.on(loop)
    return None if pool is None else pool.slots


@final
class ProcessPlace:
    """A worker process for one call of a step, as an asynchronous context manager.

    Entering waits for a slot and for a process that is ready. A checkpoint; cancelled, nothing is
    taken. Leaving returns the process to the pool, or ends it if it is still working.
    """

    __slots__ = ("_backend", "_pool", "is_at_work", "worker")

    def __init__(self) -> None:
        self._backend = current_backend()
        self._pool = _pools.here(self._backend)
        self.is_at_work = False
        self.worker: WorkerProcess | None = None

    async def __aenter__(self) -> ProcessPlace:
        backend, pool = self._backend, self._pool
        await backend.checkpoint_if_cancelled()
        await pool.slots.acquire(backend)
        try:
            self.worker = await pool.lend(backend)
        except BaseException:
            pool.slots.release()
            raise
        return self

    async def replace(self) -> WorkerProcess:
        """Replace a process that died while it was idle."""
        dead, self.worker = self.worker, None
        if dead is not None:
            await self._pool.drop(self._backend, dead)
        self.worker = await self._pool.lend(self._backend)
        return self.worker

    @enable_ki_protection
    async def __aexit__(self, *_: object) -> None:
        try:
            worker, self.worker = self.worker, None
            if worker is not None and not self.is_at_work:
                self._pool.give_back(worker)
            elif worker is not None:
                await self._pool.drop(self._backend, worker)  # noqa: ASYNC102 - it shields itself
        finally:
            self._pool.slots.release()

    async def die(self) -> str:
        """End the process and return how it ended."""
        worker = self.worker
        if worker is None:
            return "it did not start"
        worker.hang_up()
        await self._pool.drop(self._backend, worker)
        return worker.ending()


async def _wait_for_end(backend: Backend, process: subprocess.Popen[bytes]) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or an old one
        await backend.run_in_thread(process.wait, abandon_on_cancel=False)
        return
    try:
        await backend.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
