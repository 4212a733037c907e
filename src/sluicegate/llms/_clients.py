"""Network clients with owners: one for each run of an event loop, open while somebody holds it."""

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
# by many steps, or be made in a step and forgotten, so the client cannot simply be a field of it.
#
# Instead it is counted who holds it: every call and every open stream, every `async with llm`, and
# every step that has made a call, until the step ends. The last to let go closes it. So
#
# * calls in a loop share connections within a step and within `async with`;
# * a step that makes its own model object and forgets it leaves nothing behind;
# * a call outside of both closes its connection itself: safe first, fast where it has an owner.
#
# The other design, a client that lives until the loop ends, needs a hook at the end of the loop
# that Trio does not have for libraries, and keeps connections of forgotten objects until then.

#: Closing is a matter of microseconds; a peer that makes it longer does not hold up a shutdown.
_CLOSE_SECONDS = 1.0


class Client(Protocol):
    """A network client that is closed in the loop it was used in."""

    async def close(self) -> None:
        """Close every connection."""
        ...


_C = TypeVar("_C", bound=Client)


class _Run(Generic[_C]):
    """The client of one run of an event loop, and who holds it."""

    def __init__(self, make: Callable[[], _C], *, owned: bool) -> None:
        self._make = make
        self._owned = owned
        self._client: _C | None = None
        self.holds: set[Hold[_C]] = set()
        self.block_holds: list[Hold[_C]] = []  # any of them stands for any block
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
        self._user: Callable[[], Closable | None] = _nobody
        run.holds.add(self)

    @property
    def client(self) -> _C:
        """The client, made when it is first asked for."""
        return self._run.client()

    def used_by(self, stream: Closable) -> None:
        """Say which stream is to be closed when the client is closed under it."""
        self._user = weakref.ref(stream)

    @property
    def user(self) -> Closable | None:
        """The stream that holds the client, if one does."""
        return self._user()

    async def aclose(self) -> None:
        """Let go; who lets go last closes the client. May be called twice."""
        if self not in self._run.holds:
            return
        self._run.holds.remove(self)
        if self._cleanup is not None:
            self._run.step_holds.pop(id(self._cleanup), None)
            self._cleanup.discard(self)
            self._cleanup = None
        if not self._run.holds:
            await self._run.close()


def _nobody() -> None:
    """Refer to no stream."""


class Clients(Generic[_C]):
    """
    The clients of one model object, by event-loop run.

    Args:
        make: Makes a client, in the loop that it is for.
        owned: Otherwise what `make` gives is somebody else's to close.
    """

    def __init__(self, make: Callable[[], _C], *, owned: bool = True) -> None:
        self._make = make
        self._owned = owned
        self._runs: weakref.WeakKeyDictionary[object, _Run[_C]] = weakref.WeakKeyDictionary()

    def hold(self) -> Hold[_C]:
        """
        Hold the client of the running loop until the result is closed.

        In a step this also has the step hold it, until the step ends.
        """
        return Hold(self._current())

    def enter_block(self) -> None:
        """Hold the client of the running loop until the result of `leave_block` is closed."""
        run = self._current()
        run.block_holds.append(Hold(run))

    def leave_block(self) -> Hold[_C] | None:
        """Give what `enter_block` held, to be closed; ``None`` after `aclose` has closed it."""
        run = self._runs.get(current_backend().current_loop())
        return run.block_holds.pop() if run is not None and run.block_holds else None

    def _current(self) -> _Run[_C]:
        key = current_backend().current_loop()
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(self._make, owned=self._owned)
        cleanup = current_cleanup.get()
        # The hold keeps the list alive, so its id cannot come to mean another one.
        if cleanup is not None and id(cleanup) not in run.step_holds:
            run.step_holds[id(cleanup)] = step_hold = Hold(run, cleanup)
            cleanup.add(step_hold)
        return run

    async def aclose(self) -> None:
        """Close the client of the running loop, and the open streams before it, held or not."""
        run = self._runs.pop(current_backend().current_loop(), None)
        if run is None:
            return
        for hold in list(run.holds):
            if hold.user is not None:
                await hold.user.aclose()
        for hold in list(run.holds):
            await hold.aclose()
        await run.close()
