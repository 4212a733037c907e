"""Limits on the threads of synchronous steps: how many exist, and how many compute at a time.

They do not use the event loop's default limiter, which the whole program shares: a server whose
steps wait for people still has its 40 threads for its requests.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Self, final

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.limits import MAX_THREADS, PerLoop, WaitQueue


if TYPE_CHECKING:
    from sluicegate._loop import Backend, Waiter


#: How many threads of steps compute at a time, in one event loop. They share the GIL with the
#: loop, so each further one delays it.
MAX_RUNNING = 100


@final
class ThreadPlaces:
    """The threads of the steps of one event loop; used from the loop's thread only.

    A thread that awaits something in the event loop does not count as running, and counts again
    before it continues. So the work that running threads wait for can always get a thread.

    Attributes:
        running: How many threads compute.
        taken: The places of all threads, each with the name of its step.
    """

    __slots__ = ("_beginning", "_returning", "running", "taken")

    def __init__(self, queue: WaitQueue) -> None:
        self.running = 0
        self.taken: dict[ThreadPlace, str] = {}
        self._beginning = queue
        self._returning = WaitQueue(queue.loop)

    async def begin(self, backend: Backend, place: ThreadPlace) -> None:  # noqa: ASYNC910 - not where there is room
        """Wait until a thread is free, and take it."""
        if self._has_room(place.limit) and not self._beginning:
            self._take(backend, place)
            return  # noqa: ASYNC910
        waiter = backend.waiter()
        self._beginning.join(waiter)
        try:
            while not (self._beginning.is_first(waiter) and self._has_room(place.limit)):
                if self._beginning.is_first(waiter) and self._is_stuck(place.limit):
                    raise self._refuse(place)
                await waiter.wait()
            self._take(backend, place)
        finally:
            self._beginning.quit(waiter, is_room=True)

    def _has_room(self, limit: int) -> bool:
        return self.is_free and len(self.taken) < limit

    def _is_stuck(self, limit: int) -> bool:
        return len(self.taken) >= limit and not self.running and not self._returning

    def _take(self, backend: Backend, place: ThreadPlace) -> None:
        self.taken[place] = place.name
        self._run(backend)

    def end(self, backend: Backend, place: ThreadPlace) -> None:
        """Free the place of a thread that has ended."""
        del self.taken[place]
        self.rest(backend)

    def rest(self, backend: Backend) -> None:
        """Count one running thread less."""
        self.running -= 1
        if not self.running:
            backend.release_clock()
        self._wake()

    def _wake(self) -> None:
        """Wake the next waiter: threads that continue come before new ones."""
        if self._returning:
            self._returning.wake_first()
        else:
            self._beginning.wake_first()

    def _run(self, backend: Backend) -> None:
        if not self.running:
            backend.hold_clock()
        self.running += 1

    @property
    def is_free(self) -> bool:
        """Whether a further thread may run at once, ahead of no waiter."""
        return self.running < MAX_RUNNING and not self._returning

    async def resume(self, backend: Backend) -> None:  # noqa: ASYNC910 - not where there is room
        """Wait until a thread may continue, ahead of threads that have not begun; count it.

        Cancelled, it counts the thread at once: the thread continues in any case, if only to
        unwind, and the result that it waited for is not lost.
        """
        if self.is_free:
            self._run(backend)
            return  # noqa: ASYNC910
        waiter: Waiter = backend.waiter()
        self._returning.join(waiter)
        try:
            while self.running >= MAX_RUNNING or not self._returning.is_first(waiter):
                await waiter.wait()
        except backend.Cancelled:  # noqa: ASYNC103 - the thread's next call raises it
            pass  # noqa: ASYNC104
        finally:
            self._returning.quit(waiter, is_room=False)
            self._run(backend)
            self._wake()

    def _refuse(self, place: ThreadPlace) -> WorkflowRuntimeError:
        counted = Counter(self.taken.values()).most_common(5)
        names = ", ".join(f"{name} ({number})" for name, number in counted)
        msg = (
            f"the step {place.name} needs a thread, and all {len(self.taken)} threads wait inside "
            f"calls of their context, in the steps {names}; expected `async def` steps for long "
            "waits, or a higher max_threads: "
            f"`MyWorkflow(max_threads={2 * place.limit})`"
        )
        return WorkflowRuntimeError(msg)


_places = PerLoop(ThreadPlaces)


@final
class ThreadPlace:
    """A place for one thread, as an asynchronous context manager.

    Entering waits for it: a checkpoint only if none is free. Cancelled, no place is taken.

    Args:
        name: The name of the step.
        limit: The maximal number of threads.
    """

    __slots__ = ("_backend", "_places", "is_left", "limit", "name")

    def __init__(self, name: str, limit: int = MAX_THREADS) -> None:
        self._backend = current_backend()
        self._places = _places.here(self._backend)
        self.name = name
        self.limit = limit
        #: Whether its thread was left running; the thread then frees the place when it ends.
        self.is_left = False

    @enable_ki_protection
    async def __aenter__(self) -> Self:  # noqa: ASYNC910 - not where there is room
        await self._places.begin(self._backend, self)
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.is_left:
            self.end()

    @enable_ki_protection
    def end(self) -> None:
        """Free the place; called in the event loop."""
        self._places.end(self._backend, self)

    @enable_ki_protection
    def rest(self) -> None:
        """Note that the thread waits for the event loop."""
        self._places.rest(self._backend)

    @property
    def is_free(self) -> bool:
        """Whether the thread may continue at once."""
        return self._places.is_free

    @enable_ki_protection
    async def resume(self) -> None:  # noqa: ASYNC910 - not where there is room
        """Wait until the thread may continue."""
        await self._places.resume(self._backend)


def thread_places(backend: Any) -> ThreadPlaces:
    """Return the threads of the running event loop."""
    return _places.here(backend)


def thread_places_of(loop: object) -> ThreadPlaces | None:
    """Return the threads of an event loop; None if no step of it has run in a thread."""
    return _places.on(loop)
