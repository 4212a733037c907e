"""Network clients with owners: one for each run of an event loop, open while it is in use."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sluicegate._loop import current_backend
from sluicegate._loop.cleanup import current_cleanup, shielded_scope


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._loop.cleanup import CleanupList, Closable


# A client is a pool of connections that belong to one event loop: it must be closed in that loop,
# before the loop ends, and cannot be used in another. A model object may outlive loops, be shared
# by many steps, or be made in a step and dropped, so the client cannot simply be a field of it.
#
# Instead holds on the client are counted: one for every call and every open stream, for every
# `async with llm`, and for every step that has made a call, until the step ends. Closing the last
# hold closes the client. So
#
# * calls in a loop share connections within a step and within `async with`;
# * a step that makes a model object and drops it leaves nothing open;
# * a call outside of both closes its connection itself: safe, and slower than with an owner.
#
# The alternative, a client that lives until the loop ends, would keep connections of dropped objects
# until then.

#: Closing takes microseconds; a peer that delays it must not delay a shutdown.
_CLOSE_SECONDS = 1.0


class Client(Protocol):
    """A network client that is closed in the loop in which it was used."""

    async def close(self) -> None:
        """Close every connection."""
        ...


_C = TypeVar("_C", bound=Client)


class _Run(Generic[_C]):
    """The client of one run of an event loop, and the holds on it."""

    def __init__(self, make: Callable[[], _C], *, owned: bool) -> None:
        self._make = make
        self._owned = owned
        self._client: _C | None = None
        self.holds: set[Hold[_C]] = set()
        self.block_holds: list[Hold[_C]] = []  # they are interchangeable
        self.step_holds: dict[int, Hold[_C]] = {}  # by the id of the step's clean-up list

    def client(self) -> _C:
        if self._client is None:
            self._client = self._make()
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._owned:
            with shielded_scope(_CLOSE_SECONDS):
                await client.close()


class Hold(Generic[_C]):
    """One reason to keep a client open."""

    def __init__(self, run: _Run[_C], cleanup: CleanupList | None = None) -> None:
        self._run = run
        self._cleanup = cleanup
        self._user: Callable[[], Closable | None] = _no_stream
        run.holds.add(self)

    @property
    def client(self) -> _C:
        """The client, made on first use."""
        return self._run.client()

    def used_by(self, stream: Closable) -> None:
        """Set the stream to close before the client is closed."""
        self._user = weakref.ref(stream)

    @property
    def user(self) -> Closable | None:
        """The stream that uses the client, if any."""
        return self._user()

    async def aclose(self) -> None:
        """Release the hold; the last one closes the client. May be called twice."""
        if self not in self._run.holds:
            return
        self._run.holds.remove(self)
        if self._cleanup is not None:
            self._run.step_holds.pop(id(self._cleanup), None)
            self._cleanup.discard(self)
            self._cleanup = None
        if not self._run.holds:
            await self._run.close()


def _no_stream() -> None:
    """Refer to no stream."""


class Clients(Generic[_C]):
    """
    The clients of one model object, by event-loop run.

    Args:
        make: Makes a client, in the event loop that will use it.
        owned: Whether to close the client; not so if the user has passed it.
    """

    def __init__(self, make: Callable[[], _C], *, owned: bool = True) -> None:
        self._make = make
        self._owned = owned
        self._runs: weakref.WeakKeyDictionary[object, _Run[_C]] = weakref.WeakKeyDictionary()

    def hold(self) -> Hold[_C]:
        """
        Hold the client of the running loop until the result is closed.

        In a step the step also holds it, until the step ends.
        """
        return Hold(self._current())

    def enter_block(self) -> None:
        """Hold the client of the running loop until the result of `leave_block` is closed."""
        run = self._current()
        run.block_holds.append(Hold(run))

    def leave_block(self) -> Hold[_C] | None:
        """Return the hold of `enter_block`, to be closed; ``None`` after `aclose` has closed it."""
        run = self._runs.get(current_backend().current_loop())
        return run.block_holds.pop() if run is not None and run.block_holds else None

    def _current(self) -> _Run[_C]:
        key = current_backend().current_loop()
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(self._make, owned=self._owned)
        cleanup = current_cleanup.get()
        # The hold keeps the list alive, so its id cannot be reused.
        if cleanup is not None and id(cleanup) not in run.step_holds:
            run.step_holds[id(cleanup)] = step_hold = Hold(run, cleanup)
            cleanup.add(step_hold)
        return run

    async def aclose(self) -> None:
        """Close the open streams of the running loop, and then its client, despite holds."""
        run = self._runs.pop(current_backend().current_loop(), None)
        if run is None:
            return
        for hold in list(run.holds):
            if hold.user is not None:
                await hold.user.aclose()
        for hold in list(run.holds):
            await hold.aclose()
        await run.close()
