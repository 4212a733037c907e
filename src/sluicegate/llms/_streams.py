"""Streams of replies: iterators with one owner, closed no later than their step."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import trio

from sluicegate._loop import current_backend
from sluicegate._loop.cleanup import current_cleanup, shielded_scope

from ._assembly import Assembly
from ._types import ChatResponse, CompletionResponse, StreamClosedError


if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ._assembly import Piece


_R = TypeVar("_R", CompletionResponse, ChatResponse)


class Source(Protocol):
    """The source of the pieces of a reply."""

    async def receive(self) -> Piece | None:
        """Wait for the next piece; ``None`` is the end. A cancellation breaks the source."""
        ...

    async def aclose(self) -> None:
        """Release everything at once, even in a cancelled scope. May be called twice."""
        ...


class _Stream(Generic[_R]):
    """
    The base of both kinds of stream: an iterator that releases its connection however it ends.

    It is not an async generator, because a generator that is left early keeps the connection open,
    and the model writing, until it is garbage-collected.

    How it ends:

    * read to its end, failed, or cancelled while waiting: closed before the call returns or raises;
    * left early: closed by `aclose`, by ``async with``, or by the end of the workflow step that
      opened it, whichever comes first. Outside of a step use ``async with``;
    * closed while another task waits for the next reply: that task gets `StreamClosedError`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._assembly = Assembly()
        self._response: _R | None = None
        self._reader: tuple[Any, Any] | None = None
        self._closed = False
        self._at_end = False
        # The step may end in another context, so the list is stored here.
        self._cleanup = current_cleanup.get()
        if self._cleanup is not None:
            self._cleanup.add(self)

    def _so_far(self) -> _R:
        raise NotImplementedError

    @property
    def response(self) -> _R | None:
        """The last reply that the stream yielded, with the whole text so far."""
        return self._response

    @property
    def text(self) -> str:
        """The text so far, which is also ``str(stream)``."""
        return self._assembly.text

    def __str__(self) -> str:
        return self.text

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _R:
        """
        Wait for the next reply. A checkpoint; a cancellation closes the stream.

        Raises:
            StreamClosedError: The stream was closed before its end, by its owner or by the end of
                the step that opened it.
            trio.BusyResourceError: Another task is waiting for the next reply.
        """
        if self._at_end:
            raise StopAsyncIteration
        if self._closed:
            raise StreamClosedError(self._why_closed())
        if self._reader is not None:
            msg = f"another task is waiting for the next reply of {self!r}"
            raise trio.BusyResourceError(msg)

        piece = await self._receive()
        if piece is None:
            self._at_end = True
            await self.aclose()
            raise StopAsyncIteration
        self._assembly.add(piece)
        self._response = self._so_far()
        return self._response

    async def _receive(self) -> Piece | None:
        backend = current_backend()
        scope, left = self._reader = backend.cancel_scope(), backend.event()
        piece = None
        try:
            with scope:
                piece = await self._source.receive()
        except BaseException:  # however reading ends, the connection has to be closed
            self._reader = None
            try:
                await self.aclose()
            finally:
                left.set()
            raise
        self._reader = None
        left.set()
        if scope.cancelled_caught:
            raise StreamClosedError(self._why_closed())
        return piece

    async def aclose(self) -> None:
        """
        Close the connection at once; the server stops writing. May be called twice, from any task.

        It cannot be cancelled: even in a cancelled scope the connection is closed when this
        returns, and the next checkpoint raises the cancellation.
        """
        reader, self._closed = self._reader, True
        try:
            with shielded_scope():
                if reader is not None:
                    scope, left = reader
                    scope.cancel()
                    await left.wait()
                await self._source.aclose()
        finally:
            if self._cleanup is not None:
                self._cleanup.discard(self)
                self._cleanup = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _why_closed(self) -> str:
        return (
            f"{self!r} was closed before its end: by aclose(), by a cancelled or failed read, or by "
            "the end of the workflow step that opened it; read it in the step that opens it"
        )

    def __repr__(self) -> str:
        state = "at its end" if self._at_end else "closed" if self._closed else "open"
        return f"<{type(self).__name__} {state}, {len(self.text)} characters so far>"

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(
                f"{self!r} was dropped without being closed; write "
                "`async with await llm.astream_...(...) as stream:`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


class CompletionStream(_Stream[CompletionResponse]):
    """The stream of `CompletionResponse` from ``await llm.astream_complete(prompt)``."""

    def _so_far(self) -> CompletionResponse:
        return self._assembly.completion()


class ChatStream(_Stream[ChatResponse]):
    """The stream of `ChatResponse` from ``await llm.astream_chat(messages)``."""

    def _so_far(self) -> ChatResponse:
        return self._assembly.chat()
