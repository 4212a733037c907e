"""Calls of a model, for who traces them: without a listener, a call costs one look at a variable.

A listener is a function in the context variable :data:`call_listeners`. It is called when a call begins,
and returns an object that is told of each piece of the reply and of the end. What it raises is logged
and never reaches the call.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import attrs


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from ._assembly import Piece
    from ._streams import Source


LOGGER = logging.getLogger("sluicegate")

#: What else ends a call is a cancellation, or a group that contains one.
_FAILURES = (Exception, KeyboardInterrupt, SystemExit)

#: How a call ended. A stream that is closed before its end is cancelled.
CallOutcome: TypeAlias = Literal["completed", "failed", "cancelled"]


@attrs.frozen(kw_only=True)
class ModelCall:
    """One request to a model."""

    provider: str
    """``"openai"`` for every server with OpenAI's API; ``"mock"``."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    """The messages, in OpenAI's form."""

    options: Mapping[str, Any]
    """The options of the request, by their names in OpenAI's API."""

    is_stream: bool
    address: str | None = None
    port: int | None = None


class CallReport(Protocol):
    """Is told of one call, by the tasks that make it and read its reply."""

    def enter(self) -> None:
        """The request is about to be sent, in the current context."""
        ...

    def leave(self) -> None:
        """The request was accepted, or has failed; in the same context as :meth:`enter`."""
        ...

    def received(self, piece: Piece) -> None:
        """A piece of the reply was received; of a reply received whole, the only one."""
        ...

    def end(self, outcome: CallOutcome, error: BaseException | None) -> None:
        """The call has ended. The last method to be called."""
        ...


CallListener: TypeAlias = "Callable[[ModelCall], CallReport]"

#: The listeners to the calls of the current context.
call_listeners: ContextVar[tuple[CallListener, ...]] = ContextVar(
    "sluicegate_model_calls", default=()
)


class WatchedCall:
    """Passes what happens in a call to the listeners.

    As a context manager it is entered around the request. An exception ends the call; otherwise
    :meth:`end` does, for a stream when it was read or closed.
    """

    __slots__ = ("_is_entered", "_reports")

    def __init__(self, reports: list[CallReport]) -> None:
        self._reports = reports
        self._is_entered = False

    def __enter__(self) -> Self:
        if self._reports:
            self._is_entered = True
            self._tell("enter")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.end(exc)
        self._leave()

    def received(self, piece: Piece) -> None:
        """Report a piece of the reply."""
        if self._reports:
            self._tell("received", piece)

    def end(self, error: BaseException | None = None, *, is_abandoned: bool = False) -> None:
        """Report the end, once.

        Args:
            error: The exception that ended it.
            is_abandoned: Whether the reply was not read to its end.
        """
        if not self._reports:
            return
        outcome: CallOutcome = "cancelled" if is_abandoned else "completed"
        if error is not None:
            outcome = "failed" if isinstance(error, _FAILURES) else "cancelled"
        self._leave()  # a reply received whole ends inside the block
        self._tell("end", outcome, error)
        self._reports = []

    def _leave(self) -> None:
        if self._is_entered:
            self._is_entered = False
            self._tell("leave", is_reversed=True)

    def _tell(self, method: str, *arguments: Any, is_reversed: bool = False) -> None:
        for report in reversed(self._reports) if is_reversed else tuple(self._reports):
            try:
                getattr(report, method)(*arguments)
            except Exception:
                LOGGER.exception("a listener to model calls raised in %s; it is muted", method)
                self._reports = [other for other in self._reports if other is not report]


#: A call without a listener.
UNWATCHED = WatchedCall([])


def watch_call(describe: Callable[[], ModelCall]) -> WatchedCall:
    """Return a call that the listeners of the current context hear of.

    Args:
        describe: Describes the request; called only if there is a listener.
    """
    listeners = call_listeners.get()
    if not listeners:
        return UNWATCHED
    call = describe()
    reports: list[CallReport] = []
    for listen in listeners:
        try:
            reports.append(listen(call))
        except Exception:
            LOGGER.exception("a listener to model calls raised when a call began")
    return WatchedCall(reports)


class WatchedSource:
    """A source of pieces that reports them, and its end."""

    def __init__(self, source: Source, call: WatchedCall) -> None:
        self._source = source
        self._call = call

    async def receive(self) -> Piece | None:
        """Wait for the next piece; ``None`` is the end. A checkpoint as the source's."""
        try:
            piece = await self._source.receive()
        except BaseException as error:  # reported, and raised on
            self._call.end(error)
            raise
        if piece is None:
            self._call.end()
        else:
            self._call.received(piece)
        return piece

    async def aclose(self) -> None:
        """Close the source; before the end of the reply, the call counts as cancelled."""
        try:
            await self._source.aclose()
        finally:
            self._call.end(is_abandoned=True)


def watched(source: Source, call: WatchedCall) -> Source:
    """Return the source itself if the call has no listener, else one that reports."""
    return source if call is UNWATCHED else WatchedSource(source, call)
