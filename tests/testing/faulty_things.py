"""A catalogue of what goes wrong when concurrent code is cancelled, or runs in another order.

Each entry is a class with two twins: ``healthy`` does it right, ``faulty`` differs by one typical
mistake. Its docstring names the mistake, ``caught_by`` the invariant that finds it, ``on`` the
backends on which it can go wrong, ``options`` what the sweep has to be told. Who is never cancelled
sees no difference between the twins; what is found by ``fuzz`` goes well in the order of spawning.

``test_sweep_finds.py`` sweeps them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from typing import Any, ClassVar

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import trio

from tests.helpers import Fan


BOTH = ("trio", "asyncio")
ASYNCIO = ("asyncio",)
TRIO = ("trio",)

CATALOGUE: list[type[Fault]] = []


class Fault:
    """An entry. One instance is made per run; ``self`` is what the twins share and change.

    ``use`` is how the operation under test is called, ``check`` looks at ``self`` after the run.
    """

    caught_by: ClassVar[str]
    on: ClassVar[tuple[str, ...]] = BOTH
    options: ClassVar[dict[str, Any]] = {}
    fuzzed: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        CATALOGUE.append(cls)

    def __init__(self, trial) -> None:
        self.trial = trial
        self.prepare()

    def prepare(self):
        """Make what the twins use."""

    async def use(self, operation):
        await operation()

    def check(self):
        """Raise if the run has left something wrong behind."""


async def work(seconds=1):
    """Wait, as for a peer."""
    await anyio.sleep(seconds)


async def one_turn():
    """Let the others run once."""
    await anyio.lowlevel.checkpoint()


def cancelled():
    return anyio.get_cancelled_exc_class()


# -- what happens to the cancellation itself --------------------------------------------------------


class RetryLoopSwallows(Fault):
    """A retry loop takes the cancellation for one more failure."""

    caught_by = "swallowed"

    async def healthy(self):
        for _ in range(3):
            with contextlib.suppress(OSError):
                await work()
                return

    async def faulty(self):
        for _ in range(3):
            with contextlib.suppress(BaseException):
                await work()
                return


class ExitSaysTrue(Fault):
    """An ``__aexit__`` returns True for whatever left its block."""

    caught_by = "swallowed"

    class Logged:
        def __init__(self, kinds) -> None:
            self.kinds = kinds

        async def __aenter__(self):
            return self

        async def __aexit__(self, kind, error, trace):
            return isinstance(error, self.kinds)

    async def healthy(self):
        async with self.Logged(Exception):
            await work()

    async def faulty(self):
        async with self.Logged(BaseException):
            await work()


class DeadlineBecomesResult(Fault):
    """A timeout wrapper takes its caller's cancellation for its own timeout: the default it is."""

    caught_by = "swallowed"

    async def healthy(self):
        try:
            with anyio.fail_after(5):
                return await work()
        except TimeoutError:
            return "default"

    async def faulty(self):
        try:
            with anyio.fail_after(5):
                return await work()
        except (TimeoutError, cancelled()):
            return "default"


class InterruptEaten(Fault):
    """A main loop takes Ctrl-C for the end of its work and returns as if it were done."""

    caught_by = "swallowed"
    options = {"kinds": "interrupt"}

    async def healthy(self):
        try:
            await work()
        except (KeyboardInterrupt, cancelled()):
            self.trial.state.stopping = True
            raise

    async def faulty(self):
        with contextlib.suppress(KeyboardInterrupt, cancelled()):
            await work()


class CancellationTranslated(Fault):
    """A driver turns everything into its own error, the cancellation too."""

    caught_by = "raises"

    async def healthy(self):
        try:
            await work()
        except OSError as error:
            raise ValueError("the query failed") from error

    async def faulty(self):
        try:
            await work()
        except BaseException as error:
            raise ValueError("the query failed") from error


class CleanUpOfTheUnmade(Fault):
    """A ``finally`` closes what was never opened: the ``try`` begins one line too early."""

    caught_by = "raises"

    async def open(self):
        await work()
        return contextlib.ExitStack()

    async def healthy(self):
        connection = await self.open()
        try:
            await work()
        finally:
            connection.close()

    async def faulty(self):
        try:
            connection = await self.open()
            await work()
        finally:
            connection.close()


# -- what never ends -----------------------------------------------------------------------------------


class SpinningServer(Fault):
    """A server loop continues after every exception; each further await raises at once."""

    caught_by = "ends"

    async def use(self, operation):
        send, self.requests = anyio.create_memory_object_stream[int]()
        with send, self.requests:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(operation)
                await send.send(1)
                send.close()

    async def healthy(self):
        while True:
            try:
                await self.requests.receive()
            except anyio.EndOfStream:
                return

    async def faulty(self):
        while True:
            try:
                await self.requests.receive()
            except anyio.EndOfStream:
                return
            except BaseException:
                continue


class CleanUpHangs(Fault):
    """A shielded clean-up waits for a worker that the same cancellation has ended."""

    caught_by = "ends"

    async def worker(self):
        await work(2)
        self.idle.set()

    async def use(self, operation):
        self.idle = anyio.Event()
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self.worker)
            try:
                await work()
            finally:
                await operation()

    async def healthy(self):
        with anyio.move_on_after(5, shield=True):
            await self.idle.wait()

    async def faulty(self):
        with anyio.CancelScope(shield=True):
            await self.idle.wait()


class Turnstile:
    """A lock that is handed over in order; ``acquire`` is what the twins below do with it."""

    def __init__(self) -> None:
        self.held = False
        self.waiters: deque[anyio.Event] = deque()

    def release(self):
        if self.waiters:
            self.waiters.popleft().set()
        else:
            self.held = False

    def queue_up(self):
        waiter = anyio.Event()
        self.waiters.append(waiter)
        return waiter


class DeadWaiter(Fault):
    """Who gives up waiting stays in the queue; the next release goes to the dead."""

    caught_by = "ends"
    options = {"target": "b"}

    def prepare(self):
        self.lock = Turnstile()

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            for name in "abc":
                nursery.start_soon(self.customer, name, operation)
                await one_turn()

    async def customer(self, name, acquire):
        with self.trial.target(name):
            if self.lock.held:
                await acquire()
            self.lock.held = True
            try:
                await work()
            finally:
                self.lock.release()

    async def healthy(self):
        waiter = self.lock.queue_up()
        try:
            await waiter.wait()
        except BaseException:
            if waiter in self.lock.waiters:
                self.lock.waiters.remove(waiter)
            else:
                self.lock.release()
            raise

    async def faulty(self):
        await self.lock.queue_up().wait()


class HandedToTheDead(DeadWaiter):
    """The lock was handed over, then the new holder was cancelled: nobody passes it on."""

    caught_by = "ends"
    on = ASYNCIO
    options = {"target": "b", "kinds": "native"}

    async def use(self, operation):
        async with asyncio.TaskGroup() as nursery:
            for name in "abc":
                nursery.create_task(self.customer(name, operation))
                await one_turn()

    async def faulty(self):
        waiter = self.lock.queue_up()
        try:
            await waiter.wait()
        except BaseException:
            if waiter in self.lock.waiters:
                self.lock.waiters.remove(waiter)
            raise


class FlightNeverLands(Fault):
    """A cache with single flight: the first caller is cancelled, the second waits for ever."""

    caught_by = "ends"
    options = {"target": "first"}

    def prepare(self):
        self.value = self.flight = None

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self.caller, "first", operation)
            nursery.start_soon(self.caller, "second", operation)

    async def caller(self, name, get):
        with self.trial.target(name):
            while self.value is None:
                if self.flight is None:
                    await get()
                else:
                    await self.flight.wait()

    async def healthy(self):
        self.flight = flight = anyio.Event()
        try:
            await work()
            self.value = 42
        finally:
            self.flight = None
            flight.set()

    async def faulty(self):
        self.flight = flight = anyio.Event()
        await work()
        self.value = 42
        self.flight = None
        flight.set()


class TurnNotPassedOn(Fault):
    """An ordered pipeline: who is cancelled before its turn leaves the followers waiting."""

    caught_by = "ends"
    options = {"target": "b"}

    def prepare(self):
        self.ends = {name: anyio.Event() for name in "abc"}

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            for name, before in (("a", None), ("b", self.ends["a"]), ("c", self.ends["b"])):
                nursery.start_soon(operation, name, before)

    async def healthy(self, name, before):
        with self.trial.target(name):
            try:
                await self.write(before)
            finally:
                self.ends[name].set()

    async def faulty(self, name, before):
        with self.trial.target(name):
            await self.write(before)
            self.ends[name].set()

    async def write(self, before):
        await work()
        if before is not None:
            await before.wait()


# -- what is not given back --------------------------------------------------------------------------


class LockKept(Fault):
    """A lock is taken and given back, but not when the work between is cancelled."""

    caught_by = "check"

    def prepare(self):
        self.lock = anyio.Lock()

    async def healthy(self):
        async with self.lock:
            await work()

    async def faulty(self):
        await self.lock.acquire()
        await work()
        self.lock.release()

    def check(self):
        assert not self.lock.locked(), "the lock is still held"


class WorkerNotGivenBack(Fault):
    """A worker pool: cancelled between taking the worker and the ``try`` that gives it back."""

    caught_by = "check"

    def prepare(self):
        self.idle = ["worker"]

    async def healthy(self):
        worker = self.idle.pop()
        try:
            await work()  # it wakes up
            await work()  # it works
        finally:
            self.idle.append(worker)

    async def faulty(self):
        worker = self.idle.pop()
        await work()
        try:
            await work()
        finally:
            self.idle.append(worker)

    def check(self):
        assert self.idle == ["worker"], "the pool has lost its worker"


class SlotGivenBackTwice(Fault):
    """A semaphore is released by who never acquired it: ``acquire`` stands inside the ``try``."""

    caught_by = "check"

    def prepare(self):
        self.slots = anyio.Semaphore(1)

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(operation)
            nursery.start_soon(operation)

    async def healthy(self):
        await self.slots.acquire()
        try:
            await work()
        finally:
            self.slots.release()

    async def faulty(self):
        try:
            await self.slots.acquire()
            await work()
        finally:
            self.slots.release()

    def check(self):
        assert self.slots.value == 1, f"{self.slots.value} slots of 1"


class RoomNotGivenBack(Fault):
    """A bounded queue: room is reserved for an item that is then never put."""

    caught_by = "check"

    def prepare(self):
        self.items: list[str] = []
        self.reserved = 0

    async def healthy(self):
        self.reserved += 1
        try:
            await work()
            self.items.append("item")
        finally:
            self.reserved -= 1

    async def faulty(self):
        self.reserved += 1
        await work()
        self.items.append("item")
        self.reserved -= 1

    def check(self):
        assert self.reserved == 0, "room is reserved for nobody"


class FirstOfTwoLeftOpen(Fault):
    """A manager opens two things in ``__aenter__``; cancelled at the second, it leaves the first."""

    caught_by = "check"

    def prepare(self):
        self.opened: list[str] = []

    async def open(self, name):
        await work()
        self.opened.append(name)

    async def healthy(self):
        await self.open("file")
        try:
            await self.open("index")
        except BaseException:
            self.opened.remove("file")
            raise
        self.opened.clear()

    async def faulty(self):
        await self.open("file")
        await self.open("index")
        self.opened.clear()

    def check(self):
        assert not self.opened, f"left open: {self.opened}"


class ClosedTwice(Fault):
    """A failing request closes its connection, and so does the ``finally`` around it."""

    caught_by = "check"

    def prepare(self):
        self.closed = 0

    def close(self):
        self.closed += 1

    async def healthy(self):
        try:
            await work()
        finally:
            self.close()

    async def faulty(self):
        try:
            await work()
        except BaseException:
            self.close()
            raise
        finally:
            self.close()

    def check(self):
        assert self.closed <= 1, f"closed {self.closed} times"


class AnswerStaysPending(Fault):
    """A multiplexer: a request that is given up keeps its place among the pending ones."""

    caught_by = "check"

    def prepare(self):
        self.pending: dict[int, anyio.Event] = {}

    async def healthy(self):
        self.pending[1] = anyio.Event()
        try:
            await work()
        finally:
            del self.pending[1]

    async def faulty(self):
        self.pending[1] = anyio.Event()
        await work()
        del self.pending[1]

    def check(self):
        assert not self.pending, f"still pending: {list(self.pending)}"


class SubscriberStays(Fault):
    """A broadcast: who stops listening stays subscribed, and its queue grows for ever."""

    caught_by = "check"

    def prepare(self):
        self.queues: list[deque[str]] = []

    async def healthy(self):
        self.queues.append(queue := deque())
        try:
            await work()
        finally:
            self.queues.remove(queue)

    async def faulty(self):
        self.queues.append(queue := deque())
        try:
            await work()
        except Exception:
            self.queues.remove(queue)
            raise
        self.queues.remove(queue)

    def check(self):
        assert not self.queues, "a queue that nobody reads"


class BarrierCountsTheDead(Fault):
    """A barrier: who is cancelled while waiting is still counted as having arrived."""

    caught_by = "check"
    options = {"target": "first"}

    def prepare(self):
        self.arrived = self.present = 0
        self.opened_for = None
        self.open = anyio.Event()

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self.party, "first", operation)
            await work()
            nursery.start_soon(self.party, "second", operation)
            await work()
            nursery.cancel_scope.cancel()

    async def party(self, name, wait):
        with self.trial.target(name):
            self.present += 1
            try:
                await wait()
            finally:
                self.present -= 1

    def arrive(self):
        self.arrived += 1
        if self.arrived == 2:
            self.opened_for = self.present
            self.open.set()

    async def healthy(self):
        self.arrive()
        try:
            await self.open.wait()
        except BaseException:
            self.arrived -= 1
            raise

    async def faulty(self):
        self.arrive()
        await self.open.wait()

    def check(self):
        assert self.opened_for in (None, 2), f"a barrier of 2 opened for {self.opened_for}"


class NameStaysTaken(Fault):
    """A name is registered in the event loop and stays taken: the next run cannot have it."""

    caught_by = "fresh"
    names: ClassVar[anyio.lowlevel.RunVar[frozenset[str]]] = anyio.lowlevel.RunVar(
        "names", frozenset()
    )

    def register(self):
        if "server" in self.names.get():
            raise RuntimeError("the name is taken")
        self.names.set(frozenset({"server"}))

    async def healthy(self):
        self.register()
        try:
            await work()
        finally:
            self.names.set(frozenset())

    async def faulty(self):
        self.register()
        await work()
        self.names.set(frozenset())


# -- what is half done, lost, or said twice ----------------------------------------------------------


class ItemTakenAndLost(Fault):
    """An item is taken from a queue before the await at which its reader may be cancelled."""

    caught_by = "check"

    def prepare(self):
        self.queue = deque([1, 2])
        self.done: list[int] = []

    async def use(self, operation):
        while self.queue:
            await operation()

    async def healthy(self):
        await work()
        self.done.append(self.queue.popleft())

    async def faulty(self):
        item = self.queue.popleft()
        await work()
        self.done.append(item)

    def check(self):
        assert [*self.done, *self.queue] == [1, 2], "an item is lost"


class HandedOverAndLost(Fault):
    """A mailbox hands an item to a waiting reader, who is cancelled before it runs."""

    caught_by = "check"
    on = ASYNCIO
    options = {"target": "reader", "kinds": "native"}

    def prepare(self):
        self.items: list[str] = []
        self.got: list[str] = []
        self.waiting = None

    def put(self, item):
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(item)
        else:
            self.items.append(item)

    async def use(self, operation):
        async with asyncio.TaskGroup() as nursery:
            nursery.create_task(self.reader(operation))
            await work()
            self.put("item")

    async def reader(self, get):
        with self.trial.target("reader"):
            self.waiting = asyncio.get_running_loop().create_future()
            self.got.append(await get())

    async def healthy(self):
        try:
            return await self.waiting
        except asyncio.CancelledError:
            if not self.waiting.cancelled():
                self.items.append(self.waiting.result())
            raise

    async def faulty(self):
        return await self.waiting

    def check(self):
        assert [*self.got, *self.items] == ["item"], "the item is lost"


class AnyioStreamLosesItem(Fault):
    """The same in a library: AnyIO's memory stream under a native cancel, asyncio's queue not."""

    caught_by = "check"
    on = ASYNCIO
    options = {"target": "reader", "kinds": "native"}

    def prepare(self):
        self.got: list[str] = []

    async def read(self, get):
        with self.trial.target("reader"):
            self.got.append(await get())

    async def healthy(self):
        queue: asyncio.Queue[str] = asyncio.Queue()
        async with asyncio.TaskGroup() as nursery:
            nursery.create_task(self.read(queue.get))
            await work()
            queue.put_nowait("item")
        if not queue.empty():
            self.got.append(queue.get_nowait())

    async def faulty(self):
        send, receive = anyio.create_memory_object_stream[str](1)
        with send, receive:
            async with asyncio.TaskGroup() as nursery:
                nursery.create_task(self.read(receive.receive))
                await work()
                send.send_nowait("item")
            if receive.statistics().current_buffer_used:
                self.got.append(receive.receive_nowait())

    def check(self):
        assert self.got == ["item"], "the item is lost"


class BytesReadAndLost(Fault):
    """A stream reader keeps the beginning of a line in a local variable."""

    caught_by = "check"
    options = {"target": "reader"}

    def prepare(self):
        self.wire = deque("abc")
        self.buffer = ""
        self.line = None

    async def receive(self):
        await work()
        return self.wire.popleft()

    async def use(self, operation):
        with self.trial.target("reader"):
            self.line = await operation()

    async def healthy(self):
        while len(self.buffer) < 3:
            self.buffer += await self.receive()
        line, self.buffer = self.buffer, ""
        return line

    async def faulty(self):
        line = ""
        while len(line) < 3:
            line += await self.receive()
        return line

    def check(self):
        seen = (self.line or "") + self.buffer + "".join(self.wire)
        assert seen == "abc", f"of 'abc' is left {seen!r}"


class HalfOfAWrite(Fault):
    """A two-phase write is cancelled between its phases, and nothing is taken back."""

    caught_by = "check"

    def prepare(self):
        self.from_, self.to = 10, 0

    async def healthy(self):
        self.from_ -= 10
        try:
            await work()
        except BaseException:
            self.from_ += 10
            raise
        self.to += 10

    async def faulty(self):
        self.from_ -= 10
        await work()
        self.to += 10

    def check(self):
        assert self.from_ + self.to == 10, "money has vanished"


class TransactionLeftOpen(Fault):
    """A store rolls back on ``Exception``; a cancellation is none."""

    caught_by = "check"

    def prepare(self):
        self.state = "idle"

    async def healthy(self):
        self.state = "open"
        try:
            await work()
        except BaseException:
            self.state = "rolled back"
            raise
        self.state = "committed"

    async def faulty(self):
        self.state = "open"
        try:
            await work()
        except Exception:
            self.state = "rolled back"
            raise
        self.state = "committed"

    def check(self):
        assert self.state != "open", "the transaction is still open"


class AnswerOfAnother(Fault):
    """A connection goes back to its pool with an answer unread; the next user reads it."""

    caught_by = "check"
    options = {"target": "first"}

    class Connection(deque):
        """What was asked and not yet answered."""

    def prepare(self):
        self.pool = [self.Connection()]
        self.second = "second"

    async def use(self, operation):
        with self.trial.target("first"):
            await operation("first")
        self.second = await operation("second")

    async def request(self, connection, question):
        connection.append(question)
        await work()
        return connection.popleft()

    async def healthy(self, question):
        connection = self.pool.pop()
        try:
            return await self.request(connection, question)
        except BaseException:
            connection = self.Connection()
            raise
        finally:
            self.pool.append(connection)

    async def faulty(self, question):
        connection = self.pool.pop()
        try:
            return await self.request(connection, question)
        finally:
            self.pool.append(connection)

    def check(self):
        assert self.second == "second", f"the second was told {self.second!r}"


class PartIsTakenForAll(Fault):
    """A fan-out whose join takes what is there, though one of the tasks did not end."""

    caught_by = "check"
    options = {"target": "b", "raises": LookupError}

    def prepare(self):
        self.results: dict[str, int] = {}
        self.total = None

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            for name in "abc":
                nursery.start_soon(self.part, name)
        self.total = await operation()

    async def part(self, name):
        with self.trial.target(name):
            await work()
            self.results[name] = 1

    async def healthy(self):
        return sum(self.results[name] for name in "abc")

    async def faulty(self):
        return sum(self.results.values())

    def check(self):
        assert self.total in (None, 3), f"a sum of 3 parts is {self.total}"


class SaidAfterTheEnd(Fault):
    """A run publishes its end while a task of it may still publish."""

    caught_by = "check"

    def prepare(self):
        self.events: list[str] = []

    async def child(self):
        try:
            await work(0.5)
        finally:
            self.events.append("child ended")

    async def healthy(self):
        try:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(self.child)
                await work()
        finally:
            self.events.append("end")

    async def faulty(self):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self.child)
            try:
                await work()
            finally:
                self.events.append("end")

    def check(self):
        assert "end" not in self.events[:-1], f"said after the end: {self.events}"


class StepKeepsItsSlot(Fault):
    """The same in a workflow: a step takes a slot, and its run is cancelled."""

    caught_by = "check"

    def prepare(self):
        self.free = 3

    async def use(self, operation):
        await Fan(operation).run()

    async def healthy(self, ctx, number):
        self.free -= 1
        try:
            await work()
        finally:
            self.free += 1

    async def faulty(self, ctx, number):
        self.free -= 1
        await work()
        self.free += 1

    def check(self):
        assert self.free == 3, f"{self.free} slots of 3"


# -- clean-up ----------------------------------------------------------------------------------------


class MissingShield(Fault):
    """An await in a ``finally`` without a shield is cancelled like everything else."""

    caught_by = "check"
    options = {"kinds": "scope"}

    def prepare(self):
        self.begun = self.flushed = False

    async def flush(self):
        await work(0.1)
        self.flushed = True

    async def healthy(self):
        self.begun = True
        try:
            await work()
        finally:
            with anyio.CancelScope(shield=True):
                await self.flush()

    async def faulty(self):
        self.begun = True
        try:
            await work()
        finally:
            await self.flush()

    def check(self):
        assert self.flushed == self.begun, "not flushed"


class SecondCancellation(Fault):
    """A clean-up awaits first and tidies up after; a second native cancel strikes between."""

    caught_by = "check"
    on = ASYNCIO
    options = {"kinds": "native", "twice": True}

    def prepare(self):
        self.under_way = 0

    async def healthy(self):
        self.under_way += 1
        try:
            await work()
        finally:
            self.under_way -= 1
            await work()

    async def faulty(self):
        self.under_way += 1
        try:
            await work()
        except BaseException:
            await work()
            self.under_way -= 1
            raise
        self.under_way -= 1
        await work()

    def check(self):
        assert self.under_way == 0, "still under way"


class ErrorNotThoughtOf(Fault):
    """A count is taken back for the cancellation only; any other failure leaves it."""

    caught_by = "check"
    options = {"kinds": "error", "error": OSError, "raises": OSError}

    def prepare(self):
        self.under_way = 0

    async def healthy(self):
        self.under_way += 1
        try:
            await work()
        except BaseException:
            self.under_way -= 1
            raise
        self.under_way -= 1

    async def faulty(self):
        self.under_way += 1
        try:
            await work()
        except cancelled():
            self.under_way -= 1
            raise
        self.under_way -= 1

    def check(self):
        assert self.under_way == 0, "still under way"


# -- what is left in the event loop --------------------------------------------------------------------


class HeartbeatLeft(Fault):
    """A heartbeat in a task that nobody owns beats on after its session."""

    caught_by = "task"

    async def beat(self):
        while not self.stop.is_set():
            await work(10)

    async def use(self, operation):
        self.stop = anyio.Event()
        await operation()

    async def healthy(self):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self.beat)
            await work()
            nursery.cancel_scope.cancel()

    async def faulty(self):
        ended = anyio.Event()

        async def beat():
            await self.beat()
            ended.set()

        if self.trial.backend == "trio":
            trio.lowlevel.spawn_system_task(beat)
        else:
            self.task = asyncio.create_task(beat())
        await work()
        self.stop.set()
        await ended.wait()


class ShieldedTaskLeft(Fault):
    """``asyncio.shield`` keeps a task alive; who was shielded has to wait for it."""

    caught_by = "task"
    on = ASYNCIO
    options = {"kinds": "native"}

    async def healthy(self):
        self.task = asyncio.create_task(work())
        try:
            await asyncio.shield(self.task)
        except asyncio.CancelledError:
            await self.task
            raise

    async def faulty(self):
        self.task = asyncio.create_task(work())
        await asyncio.shield(self.task)


class WaitOwnsNothing(Fault):
    """A fan-out joined by ``asyncio.wait``, which does not cancel what it waits for."""

    caught_by = "task"
    on = ASYNCIO

    async def healthy(self):
        async with asyncio.TaskGroup() as nursery:
            self.tasks = [nursery.create_task(work()) for _ in range(3)]

    async def faulty(self):
        self.tasks = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.wait(self.tasks)


class ThreadLeft(Fault):
    """A thread is told to stop after the work, but not when the work is cancelled."""

    caught_by = "thread"

    def start(self):
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.stop.wait, args=(0.5,))
        self.thread.start()

    def join(self):
        self.stop.set()
        self.thread.join()

    async def healthy(self):
        self.start()
        try:
            await work()
        finally:
            self.join()

    async def faulty(self):
        self.start()
        await work()
        self.join()


class GeneratorLeft(Fault):
    """The user of an async generator is cancelled and leaves it suspended at its ``yield``."""

    caught_by = "generator"

    async def numbers(self):
        for number in range(3):
            await one_turn()
            yield number

    async def use(self, operation):
        self.made = self.numbers()
        await operation()

    async def healthy(self):
        async with contextlib.aclosing(self.made):
            async for _ in self.made:
                await work()

    async def faulty(self):
        async for _ in self.made:
            await work()


class ChannelLeft(Fault):
    """A Trio channel is closed after the work only; its other end never learns of the end."""

    caught_by = "channel"
    on = TRIO

    async def healthy(self):
        self.send, self.receive = trio.open_memory_channel[int](1)
        async with self.send, self.receive:
            await work()

    async def faulty(self):
        self.send, self.receive = trio.open_memory_channel[int](1)
        await work()
        await self.send.aclose()
        await self.receive.aclose()


class StreamLeft(Fault):
    """The same with AnyIO's memory stream, which warns when it is collected."""

    caught_by = "channel"

    async def healthy(self):
        send, receive = anyio.create_memory_object_stream[int](1)
        with send, receive:
            await work()

    async def faulty(self):
        send, receive = anyio.create_memory_object_stream[int](1)
        await work()
        send.close()
        receive.close()


class SocketLeft(Fault):
    """A socket is closed after the work only; the collector finds it and warns."""

    caught_by = "warning"

    async def healthy(self):
        with socket.socket():
            await work()

    async def faulty(self):
        open_socket = socket.socket()
        await work()
        open_socket.close()


class CoroutineNotAwaited(Fault):
    """A coroutine is made before an await and awaited after it, or never."""

    caught_by = "warning"

    async def healthy(self):
        await work()
        await work(2)

    async def faulty(self):
        later = work(2)
        await work()
        await later


class CachedCancellation(Fault):
    """A cached task is cancelled with its first caller; every later one gets the cancellation."""

    caught_by = "check"
    on = ASYNCIO
    options = {"target": "first", "kinds": "native"}

    async def use(self, operation):
        self.cached = asyncio.create_task(work())
        self.second = None
        await asyncio.wait([asyncio.create_task(self.first(operation))])
        self.second = asyncio.create_task(operation())
        await asyncio.wait([self.second])

    async def first(self, get):
        with self.trial.target("first"):
            await get()

    async def healthy(self):
        await asyncio.shield(self.cached)

    async def faulty(self):
        await self.cached

    def check(self):
        assert not self.second.cancelled(), "the second caller got the cancellation of the first"


# -- what goes well only in one order --------------------------------------------------------------


class CheckThenAct(Fault):
    """A balance is read before an await and changed after it."""

    caught_by = "check"
    fuzzed = True

    def prepare(self):
        self.balance = 10

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(operation)
            nursery.start_soon(self.late, operation)

    async def late(self, withdraw):
        await one_turn()
        await withdraw()

    async def healthy(self):
        if self.balance >= 10:
            self.balance -= 10
            await one_turn()

    async def faulty(self):
        if self.balance >= 10:
            await one_turn()
            self.balance -= 10

    def check(self):
        assert self.balance >= 0, f"overdrawn: {self.balance}"


class LostWakeUp(Fault):
    """A consumer looks, waits a turn, and only then says that it wants to be woken."""

    caught_by = "ends"
    fuzzed = True

    def prepare(self):
        self.items: list[int] = []
        self.ready = anyio.Event()

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(operation)
            nursery.start_soon(self.produce)

    async def produce(self):
        await one_turn()
        self.items.append(1)
        self.ready.set()

    async def healthy(self):
        while not self.items:
            self.ready = anyio.Event()
            await self.ready.wait()

    async def faulty(self):
        while not self.items:
            await one_turn()
            self.ready = anyio.Event()
            await self.ready.wait()


class LockOrder(Fault):
    """Two tasks take two locks in opposite orders."""

    caught_by = "ends"
    fuzzed = True

    def prepare(self):
        self.a, self.b = anyio.Lock(), anyio.Lock()

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self.both, self.a, self.b)
            nursery.start_soon(operation)

    async def both(self, first, second):
        async with first, second:
            await one_turn()

    async def healthy(self):
        await one_turn()
        await self.both(self.a, self.b)

    async def faulty(self):
        await one_turn()
        await self.both(self.b, self.a)


class NotYetStarted(Fault):
    """A client takes for granted that a server spawned before it has begun before it."""

    caught_by = "raises"
    fuzzed = True

    def prepare(self):
        self.port = None

    async def serve(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        self.port = 80
        task_status.started()
        await work()

    async def call(self):
        if self.port is None:
            raise ConnectionError("nobody listens")

    async def healthy(self):
        async with anyio.create_task_group() as nursery:
            await nursery.start(self.serve)
            nursery.start_soon(self.call)

    async def faulty(self):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self.serve)
            nursery.start_soon(self.call)


class OrderTakenForGranted(Fault):
    """Results are taken in the order in which they come for the order of the questions."""

    caught_by = "check"
    fuzzed = True

    def prepare(self):
        self.answers: dict[int, int] = {}

    async def use(self, operation):
        async with anyio.create_task_group() as nursery:
            for number in range(3):
                nursery.start_soon(operation, number)

    async def healthy(self, number):
        await work()
        self.answers[number] = number

    async def faulty(self, number):
        await work()
        self.answers[len(self.answers)] = number

    def check(self):
        assert self.answers == {0: 0, 1: 1, 2: 2}, f"answers mixed up: {self.answers}"
