"""Following a run: one task that owns the connection, reads the events, and connects again by cursor."""

from __future__ import annotations

from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import attrs
import msgspec

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._loop import current_backend
from sluicegate._sse import EventDecoder, EventTooLargeError
from sluicegate._streams import EventLog
from sluicegate.client._errors import ClientError, ServerUnreachableError, UnavailableError
from sluicegate.client._events import read_envelope
from sluicegate.client._http import LOGGER, MOST_DELAY, Backoff, StreamedResponse


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._events import Event
    from sluicegate._loop import Waiter
    from sluicegate._sse import ServerSentEvent
    from sluicegate.client._events import Classes, Envelope
    from sluicegate.client._http import Transport

#: How many events a reader may be behind before the connection is read no further.
WINDOW = 64
#: The most characters of one event.
MOST_EVENT = 64 * 1024 * 1024


@attrs.frozen(eq=False)
class Item:
    """An entry of a feed's log.

    Attributes:
        event: An event; None in the last entry of a feed that ended without one.
        cursor: The cursor behind it.
        missed: How many events the server has dropped before it, since the feed began.
        failure: Why the feed ended, if not at the end of the run.
    """

    event: Event | None
    cursor: str
    missed: int
    failure: BaseException | None = None


@attrs.frozen
class Start:
    """The request that starts a run and owns it.

    Attributes:
        path: The path.
        body: The body, encoded.
    """

    path: str
    body: bytes


class Feed:
    """The events of a run, as the task that follows it receives them.

    Args:
        transport: Sends the requests.
        classes: Makes the events.
        run_id: The run.
        after: The cursor behind which it begins; ``"-1"`` for the oldest event, ``"now"`` for the end.
        start: The request that starts the run, if this feed owns it.
        internal: Whether the engine's internal events are wanted.
        history: How many events are kept for late readers.
        reconnect_for: Seconds for which it tries to connect again.
    """

    def __init__(
        self,
        transport: Transport,
        classes: Classes,
        run_id: str,
        *,
        after: str = "-1",
        start: Start | None = None,
        internal: bool = False,
        history: int = 1,
        reconnect_for: float,
    ) -> None:
        backend = current_backend()
        self._transport = transport
        self._classes = classes
        self._run_id = run_id
        self._start = start
        self._is_internal = internal
        self._reconnect_for = reconnect_for
        self.cursor: str = after
        self.missed: int = 0
        self.log: EventLog = EventLog(window=WINDOW, history=history)
        self.log.thread = get_ident()
        #: Only its owner cancels a feed that owns its run: when the owner is left, the run is cancelled first.
        self.scope: Any = backend.cancel_scope(shield=start is not None)
        #: Whether the server has answered with the stream.
        self.has_begun: bool = False
        #: The terminal event of the run.
        self.last: Event | None = None
        self.failure: BaseException | None = None
        #: How often the connection was lost.
        self.losses: int = 0
        #: When the response was opened that is read; ``inf`` if it was not.
        self._opened_at = inf
        self._has_left = False
        self._waiters: list[Waiter] = []

    # -- following ---------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Receive events until the run has ended, the feed has failed, or its scope is cancelled.

        A checkpoint. It raises nothing but a cancellation from outside; ``failure`` has what went wrong.
        """
        msg = f"the run {self._run_id} is no longer read, because its block or the client was left"
        self.failure = current_backend().ClosedResourceError(msg)
        try:
            with self.scope:
                await self._connect_until_over()
                self.failure = None
        except Exception as error:  # noqa: BLE001 - raised by each reader
            if self.last is None:
                self.failure = error
        finally:
            self._end()

    def _end(self) -> None:
        self._has_left = True
        if not self.log.closed:
            self.log.close(cast("Any", Item(None, self.cursor, self.missed, self.failure)))
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    async def wait_until_begun(self) -> None:
        """Wait until the server has answered, or the feed has failed. A checkpoint."""
        await self._wait(lambda: self.has_begun or self.log.closed)

    async def wait_until_over(self) -> None:
        """Wait for the end of the run, or the failure of the feed. A checkpoint."""
        await self._wait(lambda: self.log.closed)

    async def wait_until_left(self) -> None:
        """Wait until nothing is left of the feed, its connection included. A checkpoint."""
        await self._wait(lambda: self._has_left)

    async def _wait(self, is_ready: Callable[[], bool]) -> None:
        backend = current_backend()
        await backend.checkpoint()
        waiter = backend.waiter()
        self._waiters.append(waiter)
        try:
            while not is_ready():
                await waiter.wait()
        finally:
            self._waiters.remove(waiter)

    async def _connect_until_over(self) -> None:
        """Read one response after another, with increasing delays between them."""
        backend = current_backend()
        backoff = Backoff(self._run_id)
        heard = backend.current_time()
        while True:
            before, self._opened_at = self.cursor, inf
            try:
                if await self._read_response():
                    return
                msg = f"the stream of the run {self._run_id} ended before the run"
                problem: ClientError = ServerUnreachableError(msg)
            except (ServerUnreachableError, UnavailableError) as error:
                problem = error
            self.losses += self.has_begun
            now = backend.current_time()
            if self.cursor != before or now - self._opened_at > MOST_DELAY:
                backoff.reset()
                heard = now
            delay = backoff.next_delay(problem)
            if not self.has_begun and backoff.attempts > self._transport.max_retries:
                raise problem
            if now + delay - heard > self._reconnect_for:
                self._give_up(problem)
            LOGGER.info("%s; connecting again in %.1f s", problem, delay, extra=self._extra)
            await backend.sleep(delay)

    async def _read_response(self) -> bool:
        """Send a request and read its answer; return whether the run is over."""
        async with self._open() as response:
            self._opened_at = current_backend().current_time()
            if not is_cursor(self.cursor) and is_cursor(response.cursor):
                self.cursor = response.cursor  # "now" would be later after a lost connection
            if not self.has_begun:
                self.has_begun = True
                self._wake()
            return response.is_empty or await self._read(response)

    @property
    def _extra(self) -> dict[str, str]:
        return {"run_id": self._run_id}

    def _give_up(self, problem: ClientError) -> None:
        cursor = "0" if self.cursor == "-1" else self.cursor
        msg = (
            f"the run {self._run_id} could not be followed for {self._reconnect_for:g} s: {problem}; "
            f"expected the server to be back by then. To read on later: "
            f"client.attach({self._run_id!r}).stream_events(after={cursor!r})"
        )
        raise ServerUnreachableError(msg) from problem

    def _open(self) -> StreamedResponse:
        params = {"include_internal": "true"} if self._is_internal else {}
        if self._start is not None and not self.has_begun:
            return self._transport.open(
                "POST", self._start.path, params=params, body=self._start.body
            )
        params |= {"sse": "true", "after_sequence": self.cursor}
        return self._transport.open("GET", f"/events/{quoted(self._run_id)}", params=params)

    # -- reading -----------------------------------------------------------------------------------

    async def _read(self, response: StreamedResponse) -> bool:
        """Read a response to its end; return whether it had the terminal event."""
        decoder = EventDecoder(MOST_EVENT)
        while piece := await response.receive():
            try:
                events = decoder.feed(piece)
            except EventTooLargeError as error:
                msg = f"the stream of the run {self._run_id} cannot be read: {error}"
                raise ClientError(msg) from error
            for event in events:
                if self._take(event):
                    response.is_complete = True
                    return True
                while self.log.is_full():
                    await self.log.wait_for_room()
        return False

    def _take(self, received: ServerSentEvent) -> bool:
        """Publish an event to the readers; return whether it was the terminal one."""
        envelope = self._envelope(received)
        if self._is_old(received.id):
            # A notice of the server has no id. An event would be one that was read before.
            if envelope.type == "StreamGap":
                missed = envelope.fields.get("missed")
                self.missed += missed if isinstance(missed, int) and missed > 0 else 0
            return False
        if envelope.type == "WorkflowDetachedEvent":
            return False  # the run continues from its store, where this event is not: its cursor is none
        event = self._classes.event(envelope, self._run_id)
        self.cursor = received.id
        item: Any = Item(event, self.cursor, self.missed)
        if not envelope.is_stop:
            self.log.append(item)
            return False
        self.last, self.failure = event, None
        self.log.close(item)
        self._wake()
        return True

    def _envelope(self, received: ServerSentEvent) -> Envelope:
        try:
            envelope = read_envelope(msgspec.json.decode(received.data))
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._no_event(received) from error
        if envelope is None:
            raise self._no_event(received)
        return envelope

    def _no_event(self, received: ServerSentEvent) -> ClientError:
        msg = (
            f"the stream of the run {self._run_id} has {received.data[:200]!r}, which is no event; expected "
            "a server of sluicegate"
        )
        return ClientError(msg)

    def _is_old(self, cursor: str) -> bool:
        """Whether the readers have what is at a cursor: it orders as its number does."""
        if not cursor:
            return True
        if not is_cursor(cursor):
            msg = f"the stream of the run {self._run_id} has the cursor {cursor[:60]!r}; expected digits"
            raise ClientError(msg)
        return is_cursor(self.cursor) and int(cursor) <= int(self.cursor)


def is_cursor(text: str) -> bool:
    """Whether a text can be a cursor: digits, of a bounded number."""
    return text.isascii() and text.isdigit() and len(text) < 100


def quoted(part: str) -> str:
    """Return a part of a path."""
    return quote(part, safe="")


def not_started(use: str, run_id: str) -> WorkflowRuntimeError:
    """Return the exception for the use of a run that was not started."""
    msg = f"""{use} needs a started run, and {run_id} is not; expected one of
    result = await client.run(...)                      # in place
    async with client.run(...) as handler: ...          # owned by a block
    handler = await client.submit(...)                  # owned by the server"""
    return WorkflowRuntimeError(msg)
