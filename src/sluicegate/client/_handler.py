"""The handler of a run on a server."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, final
from uuid import uuid4

from sluicegate._errors import WorkflowCancelledError, WorkflowRuntimeError, unknown_name
from sluicegate._events import Event
from sluicegate._exceptions import is_cancellation
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.cleanup import shielded_scope
from sluicegate._questions import APPLIED, REPEATED, Acknowledgement
from sluicegate._scope import leave_nursery, settle
from sluicegate.client._data import read_questions, read_run
from sluicegate.client._errors import ClientError, ConflictError
from sluicegate.client._events import cancelled, envelope_of, result_of
from sluicegate.client._feed import not_started, quoted
from sluicegate.client._stream import checked_after, read_log


if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from contextlib import AbstractAsyncContextManager

    from sluicegate._loop import Nursery
    from sluicegate.client._data import RemoteQuestion, RemoteRun
    from sluicegate.client._feed import Feed, Start
    from sluicegate.client._session import Session
    from sluicegate.client._stream import RemoteStream

R = TypeVar("R")

#: Seconds for which the owner of a run waits until the server has cancelled it, before it closes the connection.
LEAVE_SECONDS = 5.0

#: Names of a client of LlamaIndex Workflows that a handler does not have, and their replacements.
_OLDER = {
    "handler_id": "`handler.run_id`",
    "last_sequence": "`stream.cursor`",
}


@final
class RemoteHandler(Generic[R]):
    """One run of a workflow on a server, in the shape of a :class:`~sluicegate.WorkflowHandler`.

    ``client.run(...)`` returns one that is not started. Start it by awaiting it (in place) or with ``async with``
    (the block owns the run). The request that starts it owns the run on the server, and this block owns
    the request: the run is cancelled when the block is left by an exception or a cancellation, and when
    this process dies.

    ``await client.submit(...)`` and ``client.attach(run_id)`` return one of a run that the server owns. It
    only reads; leaving it does not affect the run.

    Methods that ask the server are async, unlike their counterparts in a
    :class:`~sluicegate.WorkflowHandler`, and raise a :class:`ClientError` if it refuses the request or
    cannot be reached.
    """

    __slots__ = (
        "__weakref__",
        "_feed",
        "_is_observed",
        "_manager",
        "_nursery",
        "_reason",
        "_run_id",
        "_session",
        "_start",
        "_state",
    )

    def __init__(self, session: Session, run_id: str, start: Start | None) -> None:
        self._session = session
        self._run_id = run_id
        self._start = start
        #: "unstarted", "owned", or "refused" (cancelled unstarted); "attached" if the server owns the run.
        self._state = "attached" if start is None else "unstarted"
        self._feed: Feed | None = None
        self._manager: AbstractAsyncContextManager[Nursery] | None = None
        self._nursery: Nursery | None = None
        self._is_observed = False
        self._reason = ""

    # -- starting ----------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, R]:
        """Run in place and return the result, or wait for a run that was started before.

        A checkpoint. In place, a cancellation cancels the run. If the call only waits, a cancellation
        does not affect the run.

        Returns:
            ``StopEvent.result`` as JSON data, or the event itself if its class is a subclass of StopEvent.

        Raises:
            InvalidRequestError: The fields do not fit the workflow's start event.
            RunFailedError: A step of the run failed.
            WorkflowTimeoutError: The run did not end within its timeout.
            WorkflowCancelledError: The run was cancelled.
            ServerUnreachableError: The connection was lost and could not be made again in time.
            ClientError: The server has refused the request, or the result cannot be read.
        """
        return self._await().__await__()

    async def _await(self) -> R:
        if self._state == "unstarted":
            async with self:
                return await self._wait_for_result(cast("Feed", self._feed))
        if self._feed is not None:
            return await self._wait_for_result(self._feed)
        if self._state == "refused":
            await current_backend().checkpoint()
            raise cancelled(self._reason, self._run_id)
        return cast("R", (await self._wait_for_end()).result())

    async def _wait_for_result(self, feed: Feed) -> R:
        await feed.wait_until_over()
        self._is_observed = True
        return self._result_in(feed)

    def _result_in(self, feed: Feed) -> R:
        if feed.failure is not None:
            raise feed.failure
        if feed.last is None:
            msg = f"the server has no end of the run {self._run_id}; expected `await handler.details()`"
            raise ClientError(msg)
        try:
            return cast("R", result_of(feed.last, self._run_id))
        except WorkflowCancelledError as error:
            if feed.losses:
                error.add_note(
                    "the connection was lost before, and the server cancels a run whose request has "
                    "gone; `client.submit(...)` starts a run that the server owns"
                )
            raise

    async def _wait_for_end(self) -> RemoteRun:
        """Wait for the end of a run that the server owns, and return its description."""
        while True:
            found = await self.details()
            if found.is_over:
                return found
            stream = self._session.open_stream(self._run_id, after="now")
            async with stream:
                async for _ in stream:
                    pass

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Start the run and own it; wait until the server has started it. A checkpoint.

        The handler of a run that the server owns can be entered, too, without effect.

        Raises:
            InvalidRequestError: The fields do not fit the workflow's start event.
            ClientError: The server has refused the request, or was not reached.
            WorkflowRuntimeError: The run was started before.
        """
        backend = current_backend()
        if self._state == "attached":
            await backend.checkpoint()
            return self
        if self._state != "unstarted":
            msg = (
                f"the run {self._run_id} was started before, and runs once; expected a new "
                "`client.run(...)` for another run"
            )
            raise WorkflowRuntimeError(msg)
        self._feed = feed = self._session.feed(self._run_id, start=self._start)
        self._state = "owned"
        self._manager = manager = backend.open_owner()
        self._nursery = nursery = await manager.__aenter__()
        nursery.start_soon(feed.follow, name=f"follow the run {self._run_id}")
        try:
            await feed.wait_until_begun()
        except BaseException as error:
            await self._leave(error)  # noqa: ASYNC102 - it shields itself
            raise
        if not feed.has_begun and feed.failure is not None:
            await self._leave(None)
            raise feed.failure
        return self

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Wait for the run, after cancelling it if the block failed; raise an unobserved failure.

        An exit with an exception or a cancellation asks the server to cancel the run and waits until it
        has unwound there, for at most 5 seconds; then it closes the connection, which cancels the run, too.

        Raises:
            BaseException: The run's failure, if it was not observed and the block itself did not
                fail; a cancellation from outside.
        """
        if self._state == "attached":
            await current_backend().checkpoint()  # noqa: ASYNC102 - nothing is to be done
            return
        await self._leave(error)  # noqa: ASYNC102 - it shields itself

    async def _leave(self, error: BaseException | None) -> None:
        feed, manager, nursery = self._feed, self._manager, self._nursery
        assert feed is not None
        assert manager is not None
        assert nursery is not None
        backend = current_backend()
        raised: BaseException | None = None
        reason = None if error is None else f"its block was left by {type(error).__name__}"
        if error is None:
            feed.log.detach_all()
            try:
                await feed.wait_until_over()
            except BaseException as interruption:  # noqa: ASYNC103, BLE001 - raised by settle()
                raised = interruption
                reason = f"its owner was interrupted by {type(interruption).__name__}"
        if reason is not None and not feed.log.closed:
            nursery.start_soon(self._cancel_for_owner, feed, reason, name=f"cancel {self._run_id}")
        left = await leave_nursery(manager)
        if left is not None and (raised is None or not is_cancellation(left, backend.Cancelled)):
            raised = left
        self._manager = self._nursery = None
        settle(self._unobserved(feed, error), error, raised, backend.Cancelled)

    async def _cancel_for_owner(self, feed: Feed, reason: str) -> None:
        """Let the server cancel the run, and end the feed: in a task that no cancellation of the owner hits."""
        backend = current_backend()
        try:
            with shielded_scope(LEAVE_SECONDS):
                # Also before the server has answered: the run may have begun.
                await self._cancel(reason, retries=0)
                await feed.wait_until_over()
        except ClientError:
            pass  # closing the connection cancels the run as well
        finally:
            backend.cancel(feed.scope, reason)

    def _unobserved(self, feed: Feed, error: BaseException | None) -> BaseException | None:
        """Return the failure that the block must raise, if any."""
        if self._is_observed or error is not None:
            return None
        self._is_observed = True
        try:
            self._result_in(feed)
        except WorkflowCancelledError:
            return None  # as in the block of a run in this process
        except Exception as failure:  # noqa: BLE001 - raised by the block
            return failure
        return None

    # -- reading and control -----------------------------------------------------------------------

    @enable_ki_protection
    def stream_events(self, *, after: int | str = 0, expose_internal: bool = False) -> RemoteStream:
        """Return a reader of the run's events. Not a checkpoint: it connects in the background.

        Each reader gets every event that the server has kept. Readers of a run that a block owns share
        the connection of the block while it has what they need.

        Args:
            after: Start after this position: the ``cursor`` of a reader, also of one in another process, or
                of a local one; 0 is the beginning, ``"now"`` the end.
            expose_internal: Include the engine's internal events.

        Raises:
            WorkflowRuntimeError: The run has not been started, or the client is closed.
            ValueError: ``after`` is no such position.
        """
        start = checked_after(after)
        self._check_started("stream_events()")
        if self._feed is not None and not expose_internal:
            shared = read_log(self._feed, start)
            if shared is not None:
                return shared
        return self._session.open_stream(
            self._run_id, after="-1" if start == "0" else start, internal=expose_internal
        )

    async def send_event(
        self,
        event: Event | Mapping[str, Any],
        step: str | None = None,
        *,
        question: str | None = None,
        id: str | None = None,  # noqa: A002 - as in WorkflowHandler
    ) -> Acknowledgement:
        """Send an event into the run, usually an answer. A checkpoint.

        It returns once the run has the event. Cancelled, the event may have been sent or not; with an
        ``id`` of your own you can send it again. The call repeats the request after a broken connection,
        and the event is applied once.

        Args:
            event: Usually a ``HumanResponseEvent``; or, with ``question``, the fields of its answer.
            step: The name of the only step that gets it.
            question: The id of the question that it answers, from :meth:`questions`.
            id: Your idempotency key for this event; by default a new one.

        Returns:
            Whether the event was applied, or had arrived before with the same id.

        Raises:
            InvalidRequestError: No step takes the event, its fields do not fit, or it does not answer the question.
            QuestionClosedError: The question was answered before, or was given up.
            EventConflictError: An event with other content was sent with the same ``id``.
            ConflictError: The run has ended.
            TypeError: Both ``step`` and ``question`` are given, or JSON cannot hold a value.
        """
        if step is not None and question is not None:
            msg = (
                f"send_event was given both step={step!r} and question={question!r}; expected one of "
                "the two, because the question determines which step gets the answer"
            )
            raise TypeError(msg)
        self._check_started("send_event()")
        body: dict[str, Any] = {
            "event": envelope_of(event) if isinstance(event, Event) else dict(event),
            "id": uuid4().hex if id is None else id,
        }
        given = {"step": step, "question": question}
        body |= {name: value for name, value in given.items() if value is not None}
        path = f"/events/{quoted(self._run_id)}"
        answer = await self._session.transport.request("POST", path, body=body)
        return REPEATED if id is not None and answer.get("is_repeated") else APPLIED

    async def cancel(self, reason: str = "handler.cancel() was called") -> None:
        """Cancel the run, and wait until it has unwound on the server. A checkpoint.

        Cancelling a run that has ended has no effect. Cancelled itself, the server may have cancelled
        the run or not. An unstarted run never starts.

        Args:
            reason: The reason in ``WorkflowCancelledError`` and the terminal event.

        Raises:
            NotFoundError: The server does not know the run.
        """
        if self._state == "unstarted":
            self._state, self._reason = "refused", reason
        if self._state == "refused":
            await current_backend().checkpoint()
        else:
            await self._cancel(reason)

    async def _cancel(self, reason: str, *, retries: int | None = None) -> None:
        with suppress(ConflictError):  # it has ended
            await self._session.transport.request(
                "POST",
                f"/handlers/{quoted(self._run_id)}/cancel",
                params={"reason": reason},
                retries=retries,
                is_long=True,
            )

    async def details(self) -> RemoteRun:
        """Return the server's description of the run: its status, its times, how it ended. A checkpoint.

        Raises:
            NotFoundError: The server does not know the run, or not any more.
        """
        self._check_started("details()")
        data = await self._session.transport.request("GET", f"/handlers/{quoted(self._run_id)}")
        return read_run(data, self._session.classes)

    async def status(self) -> str:
        """Return the state of the run, as :attr:`sluicegate.WorkflowHandler.status` has it. A checkpoint.

        Raises:
            NotFoundError: The server does not know the run, or not any more.
        """
        if self._state == "unstarted":
            await current_backend().checkpoint()
            return "unstarted"
        return (await self.details()).status

    async def questions(self) -> tuple[RemoteQuestion, ...]:
        """Return the open questions of the run, oldest first. A checkpoint.

        Raises:
            NotFoundError: The server does not know the run, or not any more.
        """
        self._check_started("questions()")
        path = f"/handlers/{quoted(self._run_id)}/questions"
        body = await self._session.transport.request("GET", path)
        return read_questions(body, self._session.classes, self._run_id)

    async def snapshot(self) -> dict[str, Any]:
        """Return the state of the run as plain JSON data, for ``workflow.resume()``. A checkpoint.

        Raises:
            NotFoundError: The server does not know the run, or not any more.
        """
        self._check_started("snapshot()")
        return cast("dict[str, Any]", await self._part("snapshot"))

    async def state(self) -> Any:
        """Return the state that the steps of the run share, as JSON data. A checkpoint.

        Raises:
            NotFoundError: The server does not know the run, or not any more.
        """
        self._check_started("state()")
        return await self._part("state")

    async def timeline(self) -> dict[str, Any]:
        """Return what has happened in the run, as the page of :mod:`sluicegate.timeline` reads it. A checkpoint.

        Raises:
            NotFoundError: The server does not know the run, or has not recorded it.
        """
        self._check_started("timeline()")
        return cast("dict[str, Any]", await self._part("timeline"))

    async def _part(self, name: str) -> Any:
        path = f"/handlers/{quoted(self._run_id)}/{name}"
        return (await self._session.transport.request("GET", path))[name]

    async def fork(self, *, at: int | None = None, run_id: str | None = None) -> RemoteHandler[R]:
        """Copy a run of a store up to a record, and continue the copy on the server. A checkpoint.

        Cancelled, the copy may have been made or not.

        Args:
            at: The number of the last record that the copy has; by default all of them.
            run_id: An id for the copy; by default a new one.

        Returns:
            The handler of the copy, as of :meth:`Client.attach`.

        Raises:
            ConflictError: The server has no store, or the copy cannot be made.
            NotFoundError: The server does not know the run.
        """
        self._check_started("fork()")
        copy_id = uuid4().hex if run_id is None else run_id
        params: dict[str, Any] = {"new_id": copy_id}
        if at is not None:
            params["at"] = at
        path = f"/handlers/{quoted(self._run_id)}/fork"
        # Not repeated: the second request could find the copy that the first has made.
        await self._session.transport.request("POST", path, params=params, retries=0)
        return RemoteHandler(self._session, copy_id, None)

    @property
    def run_id(self) -> str:
        """The identifier of the run: the client chooses it before the run begins."""
        return self._run_id

    def _check_started(self, use: str) -> None:
        if self._state in ("unstarted", "refused"):
            raise not_started(use, self._run_id)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(unknown_name("RemoteHandler", name, _OLDER))

    def __repr__(self) -> str:
        return f"<RemoteHandler of the run {self._run_id}, {self._state}>"

    def __del__(self) -> None:
        if getattr(self, "_state", "") == "unstarted":
            warnings.warn(
                str(not_started("a run", self._run_id)), RuntimeWarning, stacklevel=2, source=self
            )
