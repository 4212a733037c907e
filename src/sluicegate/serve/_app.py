"""The application: its routes, and the owners of its runs."""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from math import inf, isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, final

import msgspec

from sluicegate._asgi import STREAM_HEADERS, EventWriter, HungUpError, while_connected
from sluicegate._context import Context
from sluicegate._cursors import read_after
from sluicegate._errors import (
    EventConflictError,
    QuestionClosedError,
    SnapshotError,
    WorkflowDetachedError,
    WorkflowRuntimeError,
    brief,
    name_of,
)
from sluicegate._events import WorkflowDetachedEvent
from sluicegate._exceptions import single
from sluicegate._handler import run_of
from sluicegate._loop import current_backend
from sluicegate._observers import observe
from sluicegate._workflow import Workflow, graph_in, new_run_id
from sluicegate.drawing import WorkflowGraph
from sluicegate.durable import (
    RunConflictError,
    RunOwnedError,
    RunStore,
    UnknownRunError,
    UnknownWorkflowError,
    open_run_store,
)
from sluicegate.durable._runs import release
from sluicegate.recording import Recorder, Recording
from sluicegate.serve._ag_ui_exchange import (
    ExchangeEncoder,
    Feeds,
    ResumeError,
    RunInput,
    read_exchange,
    read_input,
    resumed_run,
)
from sluicegate.serve._data import STATUSES, question_data, schema_of_event, shown
from sluicegate.serve._graph import graph_data
from sluicegate.serve._guards import Guards
from sluicegate.serve._openapi import openapi_of
from sluicegate.serve._page_data import Page, recorded_data
from sluicegate.serve._requests import (
    MOST_KEY,
    MOST_LISTED,
    MOST_NUMBER,
    Exchange,
    Refusal,
    answer_classes,
    check_keys,
    check_run_id,
    read_event,
    read_run,
    text_in,
    workflow_of,
)
from sluicegate.serve._responses import HEADERS, as_json, raw_headers, respond
from sluicegate.serve._runs import Runs, served, wait_for_end
from sluicegate.serve._stored import StoredRuns, id_for_key, is_refused, row_data, wait_until_known
from sluicegate.serve._streams import (
    AG_UI,
    FORMATS,
    SSE,
    StreamInfo,
    check_flags,
    wanted_format,
)
from sluicegate.serve._traces import trace_of, wait_for_trace


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping

    from starlette.requests import HTTPConnection

    from sluicegate._asgi import Encoder, Message, Receive, Send
    from sluicegate._definition.graph import Graph
    from sluicegate._handler import WorkflowHandler
    from sluicegate._loop import Nursery
    from sluicegate._observers import Observer
    from sluicegate.durable import RunSummary
    from sluicegate.serve._requests import RunRequest
    from sluicegate.serve._runs import ServedRun
    from sluicegate.serve._streams import Format

    Endpoint = Callable[[Exchange, Send], Awaitable[None]]

LOGGER = logging.getLogger("sluicegate")

#: Seconds for which the body of a request may take.
BODY_TIMEOUT = 10.0
#: Seconds that streams have at the end to send what their runs have published.
FLUSH = 1.0
#: Seconds between two looks at which runs are idle, while the server stops.
LOOK_AGAIN = 0.05
#: Seconds between two looks at which runs rest in their store. One that rests at both leaves the process.
RELEASE = 10.0
#: The most characters of a reason.
_MOST_REASON = 1_000

_NO_LIFESPAN = (
    "the server owns no runs, because the lifespan of this application has not been entered; "
    "expected `Starlette(..., lifespan=app.lifespan)`, or `async with app.lifespan():` in the "
    "lifespan of the application in which it is mounted"
)


@final
class WorkflowApp:
    """Workflows as an ASGI application; :func:`asgi_app` makes it."""

    def __init__(
        self,
        workflows: dict[str, Workflow[Any]],
        guards: Guards,
        runs: Runs,
        *,
        on_disconnect: Literal["cancel", "continue"],
        max_body: int,
        heartbeat: float,
        shutdown_grace: float,
        read_only: bool,
        run_store: RunStore | str | None,
        recorder: Recorder | None,
        page: Page | None,
    ) -> None:
        self._workflows = workflows
        self._given_store = run_store
        #: The store while it is open.
        self._stored: StoredRuns | None = None
        self._recorder = recorder
        #: The interface as OpenAPI, once it was asked for.
        self._document: dict[str, Any] | None = None
        self._guards = guards
        self._runs = runs
        self._feeds = Feeds(runs)
        self._on_disconnect = on_disconnect
        self._max_body = max_body
        self._heartbeat = heartbeat
        self._grace = shutdown_grace
        self._is_read_only = read_only
        self._page = page
        #: The endpoints that need no token.
        self._open: list[Endpoint] = [self._health]
        self._open += [endpoint for _, _, endpoint in page.files] if page else []
        self._routes = [
            (method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), endpoint)
            for method, path, endpoint in self._endpoints()
        ]
        #: The nursery of the runs that the server owns; None outside of the lifespan.
        self._nursery: Nursery | None = None
        #: Whether no new run is taken, and whether the grace is over.
        self._is_stopping = False
        self._has_stopped = False
        #: The streams that are being sent, each with its cancel scope.
        self._streams: dict[EventWriter, Any] = {}
        self._streamless: set[Any] = set()
        #: The streams of runs that are followed, because they are not in this process, by their ids.
        self._followers: dict[str, set[EventWriter]] = {}

    def __repr__(self) -> str:
        state = "stopping" if self._is_stopping else "no lifespan" if not self._nursery else "open"
        return (
            f"<WorkflowApp of {', '.join(self._workflows)}: {state}, "
            f"{len(self._runs.active)} runs, {len(self._streams)} streams>"
        )

    @property
    def workflows(self) -> Mapping[str, Workflow[Any]]:
        """The workflows by their names."""
        return MappingProxyType(self._workflows)

    def _endpoints(self) -> list[tuple[str, str, Endpoint]]:
        return [
            ("GET", "/health", self._health),
            ("GET", "/workflows", self._list_workflows),
            ("GET", "/workflows/{name}/schema", self._schema),
            ("GET", "/workflows/{name}/events", self._event_schemas),
            ("GET", "/workflows/{name}/representation", self._representation),
            ("GET", "/openapi.json", self._openapi),
            ("POST", "/workflows/{name}/run", self._run),
            ("POST", "/workflows/{name}/run-nowait", self._run_nowait),
            ("GET", "/events/{handler_id}", self._read),
            ("POST", "/events/{handler_id}", self._answer_run),
            ("GET", "/results/{handler_id}", self._result),
            ("GET", "/handlers", self._list_handlers),
            ("GET", "/handlers/{handler_id}", self._handler),
            ("POST", "/handlers/{handler_id}/cancel", self._cancel),
            ("GET", "/handlers/{handler_id}/questions", self._questions_of_run),
            ("GET", "/questions", self._questions),
            ("GET", "/handlers/{handler_id}/state", self._state),
            ("GET", "/handlers/{handler_id}/snapshot", self._snapshot),
            ("GET", "/handlers/{handler_id}/timeline", self._timeline),
            ("POST", "/handlers/{handler_id}/fork", self._fork),
            *([*self._page.files, *self._page.endpoints] if self._page else []),
        ]

    # -- the application ---------------------------------------------------------------------------

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve, as an ASGI application."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve_request(scope, receive, send)
        else:  # a websocket, which is closed before it is open
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _serve_request(self, scope: Message, receive: Receive, send: Send) -> None:
        has_begun = False
        exchange = Exchange(scope, receive, scope["method"], _path_below(scope))
        more = raw_headers(self._guards.cors_headers(exchange))
        is_http1 = str(scope.get("http_version", "1.1")).startswith("1")

        async def give(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = [*message["headers"], *more]
                if not is_http1:
                    headers = [pair for pair in headers if pair[0] != b"connection"]
                message = {**message, "headers": headers}
            await send(message)
            if message["type"] == "http.response.start" and exchange.method == "HEAD":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise HungUpError  # there is nothing else to send

        try:
            try:
                await self._dispatch(exchange, give)
            except Refusal as refusal:
                if has_begun:
                    raise
                data = {"detail": refusal.detail, **refusal.more}
                await respond(give, data, refusal.status, refusal.headers)
        except HungUpError:
            pass  # an answer would reach no client
        except Exception:
            LOGGER.exception("%s %s failed", exchange.method, exchange.path)
            if has_begun:
                raise
            detail = "the server failed; its log says why"
            with suppress(HungUpError):
                await respond(give, {"detail": detail}, 500)

    async def _dispatch(self, exchange: Exchange, send: Send) -> None:
        self._guards.check(exchange)
        allowed: list[str] = []
        for method, pattern, endpoint in self._routes:
            found = pattern.fullmatch(exchange.path)
            if found is None:
                continue
            if method == ("GET" if exchange.method == "HEAD" else exchange.method):
                exchange.params.update(found.groupdict())
                if endpoint not in self._open:
                    await self._guards.authenticate(exchange)
                if method == "POST" and self._is_read_only:
                    msg = "this server is read-only; expected GET, or `asgi_app(..., read_only=False)`"
                    raise Refusal(403, msg)
                await endpoint(exchange, send)
                return
            allowed.append(method)
        if not allowed:
            msg = f"there is nothing at {exchange.path[:200]}; expected a path of GET /openapi.json"
            raise Refusal(404, msg)
        methods = ", ".join(allowed)
        if exchange.method == "OPTIONS":
            await respond(send, None, 204, {"allow": f"{methods}, OPTIONS"})
            return
        msg = f"{exchange.path[:200]} is not for {exchange.method}; expected {methods}"
        raise Refusal(405, msg, headers={"allow": methods})

    # -- the lifespan ------------------------------------------------------------------------------

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        state = "startup"
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await receive()
                state = "shutdown"
        except Exception as error:
            failed = {"type": f"lifespan.{state}.failed", "message": str(error)}
            await send(failed)  # noqa: ASYNC120
            raise
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:  # noqa: ARG002 - Starlette gives it
        """Own the runs that no request owns until the block is left.

        A server enters it by itself, but not that of an application which is mounted in another::

            parent = Starlette(routes=[Mount("/flows", app)], lifespan=app.lifespan)

        Leaving the block stops the runs as :meth:`begin_shutdown` does, and waits for their clean-up.

        Args:
            app: The parent; it is not used.

        Raises:
            RuntimeError: The lifespan was entered before.
        """
        if self._nursery is not None or self._is_stopping:
            msg = (
                "the lifespan of this application was entered before; expected a new asgi_app(...)"
            )
            raise RuntimeError(msg)
        backend = current_backend()
        async with AsyncExitStack() as stack:
            for workflow in dict.fromkeys(self._workflows.values()):
                await stack.enter_async_context(workflow)
            if self._given_store is not None:
                store = self._given_store
                if isinstance(store, str):
                    store = open_run_store(store, workflows=self._workflows.values())
                if not store.is_open:
                    await stack.enter_async_context(store)
                self._stored = StoredRuns(store, self._workflows)
            try:
                async with backend.open_nursery() as nursery:
                    self._nursery = nursery
                    if self._stored is not None:
                        nursery.start_soon(self._adopt_due, self._stored, name="adopt stored runs")
                        nursery.start_soon(self._release, name="release resting runs")
                    try:
                        yield
                        await self.begin_shutdown()
                    finally:
                        self._is_stopping = self._has_stopped = True
                        self._nursery = self._stored = None
                        backend.cancel(nursery.cancel_scope, "the server stops")
            except BaseExceptionGroup as group:
                raise single(group, backend.Cancelled) from None

    async def begin_shutdown(self, grace: float | None = None) -> bool:
        """Take no new run, let those under way end within a grace, then cancel the rest. A checkpoint.

        Open streams get an event at once, and end with their runs, or with the grace. From the call on, a client
        that disconnects does not cancel its run: the server may be closing the connections. Runs that
        wait for an answer are not waited for once all others have ended.

        With a run store, no run is cancelled: those that wait, and those for which the grace is too short,
        leave this process and continue from the store, here after the restart or at another server.

        Calling it again, with a shorter grace, is possible. Cancelled, it has no further effect, and
        the application takes no new run.

        Args:
            grace: Seconds for which runs may continue; by default that of ``asgi_app(shutdown_grace=...)``.

        Returns:
            Whether nothing was interrupted: every run had ended by itself within the grace, or waits in
            the store.
        """
        backend = current_backend()
        seconds = self._grace if grace is None else grace
        self._is_stopping = True
        for writer in self._streams:
            writer.tell_stopping(seconds)
        with backend.cancel_scope(deadline=backend.current_time() + seconds):
            while any(run.is_busy for run in self._runs.active):
                await self._runs.wait_for_change(LOOK_AGAIN)
        self._has_stopped = True
        has_drained = True
        for run in self._runs.active:
            has_drained = has_drained and run.is_durable and not run.is_busy
            run.leave("the server stops")
        while self._runs.active:
            await self._runs.wait_for_change()
        await self._end_streams()
        return has_drained

    async def _end_streams(self) -> None:
        """End the streams: those of runs that have ended do so by themselves, the stuck ones never."""
        backend = current_backend()
        for writer in self._streams:
            writer.stop()
        waiter = backend.waiter()
        self._streamless.add(waiter)
        try:
            with backend.cancel_scope(deadline=backend.current_time() + FLUSH):
                while self._streams:
                    await waiter.wait()
        finally:
            self._streamless.discard(waiter)
        for scope in self._streams.values():
            backend.cancel(scope, "the server stops")

    @contextmanager
    def _streaming(self, run: ServedRun, writer: EventWriter) -> Generator[None]:
        """Note a stream while it is being sent."""
        followers: set[EventWriter] = set()
        if run.is_followed:
            followers = self._followers.setdefault(run.run_id, followers)
        followers.add(writer)
        with current_backend().cancel_scope() as self._streams[writer]:
            if self._is_stopping:
                writer.tell_stopping(self._grace)
            if self._has_stopped:
                writer.stop()
            try:
                yield
            finally:
                followers.discard(writer)
                if run.is_followed and not followers:
                    self._followers.pop(run.run_id, None)
                del self._streams[writer]
                for waiter in self._streamless:
                    waiter.wake()

    # -- workflows ---------------------------------------------------------------------------------

    def _workflow(self, exchange: Exchange) -> tuple[str, Workflow[Any], Graph]:
        name, workflow = workflow_of(exchange, self._workflows)
        return name, workflow, graph_in(workflow)

    async def _health(self, _: Exchange, send: Send) -> None:
        status = "unhealthy" if self._is_stopping else "healthy"
        await respond(send, {"status": status}, 503 if self._is_stopping else 200)

    async def _list_workflows(self, _: Exchange, send: Send) -> None:
        await respond(send, {"workflows": [*self._workflows]})

    async def _schema(self, exchange: Exchange, send: Send) -> None:
        _, _, graph = self._workflow(exchange)
        stops = graph.stop_events
        stop = schema_of_event(stops[0])
        if len(stops) > 1:
            stop = {"title": "StopEvent", "anyOf": [schema_of_event(cls) for cls in stops]}
        await respond(send, {"start": schema_of_event(graph.start_event), "stop": stop})

    async def _event_schemas(self, exchange: Exchange, send: Send) -> None:
        _, _, graph = self._workflow(exchange)
        await respond(send, {"events": [schema_of_event(cls) for cls in graph.events]})

    async def _representation(self, exchange: Exchange, send: Send) -> None:
        """Show the graph: as nodes and edges, or as the drawing has it."""
        _, workflow, graph = self._workflow(exchange)
        form = exchange.query.get("format", "plain")
        if form not in ("plain", "sluicegate"):
            msg = f"?format={form[:100]}; expected plain or sluicegate"
            raise Refusal(400, msg, field="query.format")
        if form == "sluicegate":
            data = msgspec.json.decode(WorkflowGraph(workflow).to_json())
        else:
            data = graph_data(graph)
        await respond(send, {"graph": data})

    async def _openapi(self, _: Exchange, send: Send) -> None:
        if self._document is None:
            self._document = openapi_of(
                self._workflows,
                FORMATS,
                version=release(),
                needs_token=self._guards.needs_token,
                is_read_only=self._is_read_only,
                has_store=self._given_store is not None,
            )
        await respond(send, self._document)

    # -- starting ----------------------------------------------------------------------------------

    async def _run(self, exchange: Exchange, send: Send) -> None:
        """Start a run, and answer with its stream or its result."""
        form = wanted_format(exchange)
        check_flags(exchange)
        choice = exchange.query.get("on_disconnect", self._on_disconnect)
        if choice not in ("cancel", "continue"):
            msg = f"?on_disconnect={choice[:100]}; expected cancel or continue"
            raise Refusal(400, msg, field="query.on_disconnect")
        if form is AG_UI:
            await self._exchange(exchange, send, is_owner=choice == "cancel")
            return
        name, workflow, request, key = await self._read_request(exchange)
        owner: Literal["request", "server"] = "request" if choice == "cancel" else "server"
        run, is_new = await self._begin(name, workflow, request, key, owner)
        if is_new and owner == "request":
            await self._own(exchange, send, run, form)
            return
        if is_new:
            self._start_in_server(run, exchange.headers)
            await self._wait_until_stored(run)
        if form is not None:
            await self._send_stream(exchange, send, run, form, after=0)
            return
        with run.used():
            gone = await while_connected(exchange.receive, partial(wait_for_end, run.handler))
        if not gone:
            await self._respond_with(send, run)

    async def _run_nowait(self, exchange: Exchange, send: Send) -> None:
        """Start a run that the server owns, and answer at once."""
        name, workflow, request, key = await self._read_request(exchange)
        run, is_new = await self._begin(name, workflow, request, key, "server")
        if is_new:
            self._start_in_server(run, exchange.headers)
            await self._wait_until_stored(run)
            await wait_for_trace(run.handler)
        headers = run.headers()
        if not is_new:
            headers["idempotency-replayed"] = "true"
        await respond(send, run.data(), 200, headers)

    async def _exchange(self, exchange: Exchange, send: Send, *, is_owner: bool) -> None:
        """Start a run for AG-UI, or continue one with the answers of its user, and stream it."""
        name, workflow, graph = self._workflow(exchange)
        body = await exchange.json(self._max_body, BODY_TIMEOUT)
        async with AsyncExitStack() as stack:
            try:
                if body.get("resume"):
                    given = read_input(body)
                    exchange.params["handler_id"] = resumed_run(given)
                    try:
                        run = await stack.enter_async_context(self._found(exchange))
                    except Refusal as refusal:
                        raise ResumeError(refusal.detail, "unknown_interrupt") from None
                    feed = self._feeds.resumed(run, name, given)
                    await self._feeds.answer(run, feed, given.resume)
                else:
                    found, request = read_exchange(graph, body)
                    if found is not None:
                        self._feeds.check_new(name, found.thread_id)
                    run, is_new = await self._begin(name, workflow, request, None, "server")
                    if not is_new:
                        await self._send_stream(exchange, send, run, AG_UI, after=0)
                        return
                    given = RunInput(run.run_id, run.run_id) if found is None else found
                    feed = self._feeds.open(run, given.thread_id)
                    self._start_in_server(run, exchange.headers, feed)
            except ResumeError as error:
                headers = {**HEADERS, **STREAM_HEADERS, "content-type": "text/event-stream"}
                writer = EventWriter(send, error.encoder, status=200, headers=raw_headers(headers))
                await writer.begin()
                await writer.end()
                return
            encoder = ExchangeEncoder(feed, given)
            try:
                await self._send_stream(
                    exchange, send, run, AG_UI, after=feed.cursor, encoder=encoder
                )
            finally:
                if is_owner and not encoder.is_over and not self._is_stopping:
                    run.handler.cancel("the client disconnected")
                self._feeds.leave(run, feed)

    async def _read_request(
        self, exchange: Exchange
    ) -> tuple[str, Workflow[Any], RunRequest, str | None]:
        name, workflow, graph = self._workflow(exchange)
        key = exchange.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= MOST_KEY:
            msg = f"the header Idempotency-Key has {len(key)} characters; expected 1 to {MOST_KEY}"
            raise Refusal(400, msg, field="idempotency-key")
        body = await exchange.json(self._max_body, BODY_TIMEOUT)
        return name, workflow, read_run(graph, body), key

    def _known_run(self, name: str, request: RunRequest, key: str | None) -> ServedRun | None:
        """Return the run that the same request has started before."""
        for each in (key and f"key {key}", request.run_id and f"id {request.run_id}"):
            if each:
                found = self._runs.same_as(name, each, request.data)
                if found is not None:
                    return found
        return None

    async def _begin(
        self,
        name: str,
        workflow: Workflow[Any],
        request: RunRequest,
        key: str | None,
        owner: Literal["request", "server"],
    ) -> tuple[ServedRun, bool]:
        """Return the run of a request, and whether it is a new one, which has no owner yet.

        A checkpoint with a store, which has the run then.
        """
        known = self._known_run(name, request, key)
        if known is not None:
            return known, False
        if self._is_stopping:
            msg = "the server stops; expected the same request at another server, or later"
            raise Refusal(503, msg, headers={"retry-after": "5"})
        if owner == "server" and self._nursery is None:
            raise Refusal(503, _NO_LIFESPAN)
        self._runs.check_room()
        run_id = request.run_id
        if self._given_store is not None:
            if self._stored is None:
                raise Refusal(503, _NO_LIFESPAN)
            if run_id is None and key is not None:
                run_id = id_for_key(name, key)
            return await self._store_run(
                self._stored, name, workflow, request, run_id=run_id, owner=owner
            )
        handler = workflow.run(start_event=request.start_event, run_id=run_id)
        keys = [f"id {handler.run_id}"]
        if key is not None:
            keys.append(f"key {key}")
        run = self._runs.add(name, workflow, handler, owner, keys=keys, data=request.data)
        return run, True

    async def _store_run(
        self,
        stored: StoredRuns,
        name: str,
        workflow: Workflow[Any],
        request: RunRequest,
        *,
        run_id: str | None,
        owner: Literal["request", "server"],
    ) -> tuple[ServedRun, bool]:
        """Return the run of the store, or a new one, which is stored when it starts. A checkpoint."""
        run_id = run_id or new_run_id()
        row: RunSummary | None = None
        stored.starting.add(run_id)
        try:
            with suppress(UnknownRunError):
                row = await stored.store.get(run_id)
            handler = workflow.run(start_event=request.start_event, run_id=run_id)
            if row is None and self._runs.get(run_id) is None:
                return self._runs.add(name, workflow, stored.new(handler), owner), True
            try:
                await stored.store.submit(handler)  # which only compares the two
            except RunConflictError as error:
                raise Refusal(409, str(error), field="handler_id") from None
            run = self._runs.get(run_id)
            if run is None:
                run = self._adopt(stored, row or await stored.store.get(run_id), name)
        finally:
            stored.starting.discard(run_id)
        with run.used():
            await wait_until_known(run.handler)
        return run, False

    async def _wait_until_stored(self, run: ServedRun) -> None:
        """Wait until the store has a run that was just started. A checkpoint.

        Raises:
            Refusal: It has another run of the same id, or cannot be used.
        """
        handler = run.handler
        await wait_until_known(handler)
        if not is_refused(handler):
            return
        await wait_for_end(handler)
        self._end(run)
        for error in handler.exceptions:
            if isinstance(error, RunConflictError):
                raise Refusal(409, str(error), field="handler_id") from None
        msg = "the run store cannot be used at the moment; expected the same request later"
        raise Refusal(503, msg, headers={"retry-after": "5"})

    def _start_in_server(
        self,
        run: ServedRun,
        headers: Mapping[str, str] | None = None,
        *observers: Observer,
    ) -> None:
        """Make the server the owner of a run, and start it. Not a checkpoint.

        Args:
            run: The run.
            headers: Those of the request that starts it, whose trace it continues.
            *observers: Further observers of the run.
        """
        nursery = self._nursery
        if nursery is None:  # it has just been left
            run.handler.cancel("the server stops")
            self._runs.end(run)
            raise Refusal(503, _NO_LIFESPAN)
        with self._observing(*observers), trace_of(headers or {}):
            run.handler.start_soon(nursery, keep_failure=True)
        nursery.start_soon(self._note_end, run, name=f"{run.name}: end of the run")

    @contextmanager
    def _observing(self, *more: Observer) -> Generator[None]:
        """Let the recorder, and further observers, hear of the run that begins in the block."""
        recorder = () if self._recorder is None else (self._recorder,)
        with observe(*recorder, *more):
            yield

    async def _note_end(self, run: ServedRun) -> None:
        """Note the end of a run of the server, whose nursery waits for it anyway."""
        with current_backend().cancel_scope(shield=True):
            await wait_for_end(run.handler)
        self._end(run)
        await current_backend().checkpoint_if_cancelled()

    def _end(self, run: ServedRun) -> None:
        if self._stored is not None:
            self._stored.note_refused(run.handler)
        self._runs.end(run)

    async def _adopt_due(self, stored: StoredRuns) -> None:
        """Continue the runs of the store that need an owner."""

        def take(row: RunSummary) -> None:
            name = stored.name_of(row)
            if name is not None and not self._is_stopping:
                self._adopt(stored, row, name)

        def is_known(run_id: str) -> bool:
            return self._runs.is_active(run_id)

        def has_room() -> bool:
            return self._runs.has_room() and not self._is_stopping

        await stored.adopt(take, is_known, has_room)

    async def _release(self) -> None:
        """Let runs that rest in their store leave this process, which need not know all of them."""
        resting: set[ServedRun] = set()
        while True:
            await current_backend().sleep(RELEASE)
            found = {run for run in self._runs.active if run.can_leave}
            for run in found & resting:
                run.leave("it rests in its store")
            resting = found - resting

    def _adopt(self, stored: StoredRuns, row: RunSummary, name: str) -> ServedRun:
        """Continue a run of the store here. Not a checkpoint."""
        workflow = self._workflows[name]
        self._runs.drop(row.run_id)
        # Their readers have to come back, to see the live events of the run, too.
        for writer in self._followers.get(row.run_id, ()):
            writer.stop()
        handler = stored.store.resume(row.run_id, workflow)
        run = self._runs.add(name, workflow, handler, "server", started_at=row.created_at)
        self._start_in_server(run)
        return run

    async def _own(
        self,
        exchange: Exchange,
        send: Send,
        run: ServedRun,
        form: Format | None,
    ) -> None:
        """Own a run until it has ended, and cancel it if the client hangs up before."""
        backend, handler = current_backend(), run.handler
        has_gone = False

        async def note_end() -> None:
            await wait_for_end(handler)
            self._end(run)

        try:
            with self._observing(), trace_of(exchange.headers):
                async with handler, backend.open_nursery() as nursery:
                    nursery.start_soon(note_end)
                    if run.is_durable:
                        await self._wait_until_stored(run)
                    if form is None:
                        has_gone = await while_connected(
                            exchange.receive,
                            partial(wait_for_end, handler),
                            is_hang_up=self._is_hang_up,
                        )
                    else:
                        has_gone = await self._send_stream(exchange, send, run, form, after=0)
                    if has_gone:
                        handler.cancel("the client disconnected")
        except BaseExceptionGroup as group:
            raise single(group, backend.Cancelled) from None
        finally:
            self._end(run)
        if form is None and not has_gone:
            await self._respond_with(send, run)

    def _is_hang_up(self) -> bool:
        return not self._is_stopping

    async def _respond_with(self, send: Send, run: ServedRun) -> None:
        """Answer with the result of a run that has ended."""
        data = run.data()
        if data["status"] == "running":
            msg = (
                f"the server stops, and the run continues; expected GET /results/{run.run_id} later"
            )
            raise Refusal(503, msg, headers={"retry-after": "5", **run.headers()})
        status = 200 if data["status"] == "completed" else 500
        await respond(send, data, status, run.headers())

    # -- reading -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _found(self, exchange: Exchange) -> AsyncGenerator[ServedRun]:
        """Give the run that a path names: one of memory, or one of the store, which is followed meanwhile."""
        run_id = exchange.params["handler_id"]
        run, row, stored = self._runs.get(run_id), None, self._stored
        if run is None and stored is not None:
            with suppress(UnknownRunError):
                row = await stored.store.get(run_id)
            run = self._runs.get(run_id)
        name = None if row is None or stored is None else stored.name_of(row)
        if run is None and row is not None and stored is not None and name is not None:
            if row.is_over or row.owner is not None or self._is_stopping or self._nursery is None:
                attached: WorkflowHandler[Any] = await stored.store.attach(run_id)
                async with attached as handler:
                    await wait_until_known(handler)
                    if row.is_over:
                        await wait_for_end(handler)
                    yield served(name, self._workflows[name], handler, row)
                return
            if run_id not in stored.starting:
                run = self._adopt(stored, row, name)
                with run.used():
                    await wait_until_known(run.handler)
        if run is None:
            msg = (
                f"there is no run {brief(run_id, 100)}, or it is not kept any more; expected a "
                "handler_id of GET /handlers"
            )
            raise Refusal(404, msg)
        with run.used():
            yield run

    async def _read(self, exchange: Exchange, send: Send) -> None:
        """Stream the events of a run. Reading does not affect it."""
        form = wanted_format(exchange) or SSE
        check_flags(exchange)
        async with self._found(exchange) as run:
            log = run_of(run.handler).log
            special = {"-1": "0", "now": log.end}
            query = exchange.query.get("after_sequence", "-1")
            query = special.get(query, query)
            after = exchange.headers.get("last-event-id") or query
            after = special.get(after, after)
            is_durable = log.numbering is not None
            try:
                read_after(query, is_durable=is_durable)
                position = read_after(after, is_durable=is_durable)
            except ValueError as error:
                msg = f"after_sequence: {error}; -1 is the oldest event kept, now the end"
                raise Refusal(400, msg, field="after_sequence") from None
            if run.is_over and log.is_past(position):
                await respond(send, None, 204, run.headers())
                return
            await self._send_stream(exchange, send, run, form, after=after)

    async def _send_stream(
        self,
        exchange: Exchange,
        send: Send,
        run: ServedRun,
        form: Format,
        *,
        after: str | int,
        encoder: Encoder | None = None,
    ) -> bool:
        """Send the events of a run until the terminal one; return whether the client hung up before."""
        names_class = exchange.flag("include_qualified_name", default=True)
        is_internal = form.is_internal or exchange.flag("include_internal")
        has_gone = False  # nor has it where the server ends the stream
        # A lossy reader: it holds up no step, and keeps no event. It is attached before the first step.
        reader = run.handler.stream_events(after=after, expose_internal=is_internal, lossy=True)
        with reader as stream, run.used():
            await wait_for_trace(run.handler)
            headers = {
                **HEADERS,
                **STREAM_HEADERS,
                "content-type": f"{form.content_type or form.media_type}; charset=utf-8",
                # Where a reader continues that asked for "now" and is cut off before the first event.
                "x-cursor": stream.cursor,
                **run.headers(),
            }
            writer = EventWriter(
                send,
                encoder or form.encoder(StreamInfo(run.run_id, run.name, names_class)),
                status=200,
                headers=raw_headers(headers),
                heartbeat=self._heartbeat,
                before=(WorkflowDetachedEvent,),  # no end of the run, which continues elsewhere
            )

            work = partial(writer.serve, stream)
            with self._streaming(run, writer):
                has_gone = await while_connected(
                    exchange.receive, work, is_hang_up=self._is_hang_up
                )
        return has_gone

    async def _result(self, exchange: Exchange, send: Send) -> None:
        async with self._found(exchange) as run:
            status = 200 if run.is_over else 202
            await respond(send, run.data(), status, run.headers())

    async def _handler(self, exchange: Exchange, send: Send) -> None:
        async with self._found(exchange) as run:
            await respond(send, run.data(), 200, run.headers())

    async def _list_handlers(self, exchange: Exchange, send: Send) -> None:
        """List runs, the newest first, in pages."""
        statuses = exchange.several("status", STATUSES)
        names = exchange.several("workflow_name")
        limit = exchange.number("limit", least=1, most=MOST_LISTED, default=MOST_LISTED)
        after = exchange.query.get("after")
        if self._stored is not None:
            try:
                rows = await self._stored.find(statuses, names, limit, after)
            except UnknownRunError as error:
                raise Refusal(400, str(error), field="query.after") from None
            found = [self._row_data(self._stored, row) for row in rows]
        else:
            found = [run.data() for run in self._runs if names is None or run.name in names]
            if statuses is not None:
                found = [data for data in found if data["status"] in statuses]
            if after is not None:
                ids = [data["handler_id"] for data in found]
                found = found[ids.index(after) + 1 :] if after in ids else []
        is_full = len(found) >= limit
        found = found[:limit]
        following = found[-1]["handler_id"] if is_full else None
        # A page asks often, and mostly nothing has changed.
        data = {"handlers": found, "next": following}
        body = as_json(data)
        etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        if exchange.headers.get("if-none-match") == etag:
            await respond(send, None, 304, {"etag": etag})
        else:
            await respond(send, body, 200, {"etag": etag})

    def _row_data(self, stored: StoredRuns, row: RunSummary) -> dict[str, Any]:
        run = self._runs.get(row.run_id)
        return run.data() if run is not None else row_data(row, stored.name_of(row) or row.workflow)

    async def _state(self, exchange: Exchange, send: Send) -> None:
        """Show the state that the steps of a run share."""
        async with self._found(exchange) as run:
            if run.is_in_memory:
                state = run.handler.ctx.store.snapshot_state()
            else:
                context = Context.from_dict(
                    self._workflows[run.name], await self._snapshot_of(run, None)
                )
                state = context.store.snapshot_state()
            await respond(send, {"state": shown(state)}, 200, run.headers())

    async def _snapshot(self, exchange: Exchange, send: Send) -> None:
        """Show the snapshot of a run, from which ``workflow.resume()`` continues."""
        at = exchange.number("at", least=1, most=MOST_NUMBER, default=0) or None
        async with self._found(exchange) as run:
            found = await self._snapshot_of(run, at)
            await respond(send, {"snapshot": found}, 200, run.headers())

    async def _snapshot_of(self, run: ServedRun, at: int | None) -> dict[str, Any]:
        try:
            if at is None and run.is_in_memory:
                return run.handler.snapshot()
            return await self._store().store.snapshot(run.run_id, at=at)
        except SnapshotError as error:
            raise Refusal(409, str(error)) from None
        except ValueError as error:
            raise Refusal(400, str(error), field="query.at") from None

    def _store(self) -> StoredRuns:
        if self._stored is None:
            msg = "this server has no run store; expected `asgi_app(..., run_store='sqlite:///runs.db')`"
            raise Refusal(409, msg)
        return self._stored

    async def _timeline(self, exchange: Exchange, send: Send) -> None:
        """Show what has happened in a run, as the timeline's page reads it."""
        async with self._found(exchange) as run:
            data = await self._recorded(run.run_id)
            if data is None:
                msg = (
                    f"the run {run.run_id} is not recorded; expected one that this process has run lately, "
                    "with `asgi_app(..., max_records=...)` above 0, or one of a store"
                )
                raise Refusal(404, msg)
            await respond(send, data, 200, run.headers())

    async def _recorded(self, run_id: str) -> dict[str, Any] | None:
        """Return what was recorded of a run here; of one that began elsewhere, what its store tells."""
        # Many records take long, while other runs continue.
        run_in_thread = partial(current_backend().run_in_thread, abandon_on_cancel=True)
        data: dict[str, Any] | None = None
        if self._recorder is not None:
            make = partial(self._recorder.recording_of, run_id)
            data = await run_in_thread(partial(recorded_data, make, run_id))
        if self._stored is not None and (data is None or data["is_part"]):
            with suppress(UnknownRunError, UnknownWorkflowError, SnapshotError):
                records = await self._stored.store.records(run_id)
                make = partial(Recording.from_records, [records], redact=_hidden)
                told = await run_in_thread(partial(recorded_data, make, run_id))
                if told is not None and (data is None or not told["is_part"]):
                    data = told
        return data

    # -- acting ------------------------------------------------------------------------------------

    async def _answer_run(self, exchange: Exchange, send: Send) -> None:
        """Send an event into a run."""
        body = await exchange.json(self._max_body, BODY_TIMEOUT)
        check_keys(body, ("event", "step", "question", "id"))
        step, question, key = (text_in(body, name) for name in ("step", "question", "id"))
        async with self._found(exchange) as run:
            handler = run.handler
            if run.is_over:
                msg = f"the run {run.run_id} has ended ({handler.status}); expected one under way"
                raise Refusal(409, msg)
            asked = handler.questions
            kinds = [cls for each in asked for cls in each.answers]
            only = [cls for each in asked if each.id == question for cls in each.answers]
            event = read_event(body.get("event"), answer_classes(run.graph, kinds), only)
            try:
                acknowledgement = handler.send_event(event, step, question=question, id=key)
                await acknowledgement
            except (QuestionClosedError, EventConflictError, WorkflowDetachedError) as error:
                about = {
                    name: value for name, value in vars(error).items() if name in ("question", "id")
                }
                raise Refusal(409, str(error), error=type(error).__name__, **about) from None
            except (WorkflowRuntimeError, TypeError) as error:
                raise Refusal(409 if handler.is_done() else 400, str(error)) from None
            run.touch()
            answer = {"status": "sent", "is_repeated": acknowledgement.is_repeated}
            await respond(send, answer, 200, run.headers())

    async def _cancel(self, exchange: Exchange, send: Send) -> None:
        """Cancel a run, and wait until it has unwound."""
        reason = exchange.query.get("reason") or "a client asked for it"
        is_purged = exchange.flag("purge")
        async with self._found(exchange) as run:
            if run.is_over and not is_purged:
                msg = (
                    f"the run {run.run_id} has ended ({run.handler.status}); expected one under way, or "
                    "?purge=true to forget it"
                )
                raise Refusal(409, msg)
            if not run.is_over:
                await run.handler.cancel(reason[:_MOST_REASON])
            if is_purged:
                self._runs.end(run)
                self._runs.forget(run)
                if self._stored is not None:
                    await self._delete(self._stored.store, run.run_id)
            status = "deleted" if is_purged else "cancelled"
            await respond(send, {"status": status}, 200, run.headers())

    async def _delete(self, store: RunStore, run_id: str) -> None:
        try:
            with suppress(UnknownRunError):  # another client was faster
                await store.delete(run_id)
        except RunOwnedError as error:
            raise Refusal(409, str(error)) from None

    async def _fork(self, exchange: Exchange, send: Send) -> None:
        """Copy a run, and continue the copy."""
        at = exchange.number("at", least=1, most=MOST_NUMBER, default=0) or None
        new_id = exchange.query.get("new_id")
        if new_id is not None:
            check_run_id(new_id)
        if self._is_stopping:
            raise Refusal(503, "the server stops", headers={"retry-after": "5"})
        stored = self._store()
        self._runs.check_room()
        async with self._found(exchange) as run:
            try:
                copy_id = await stored.store.fork(run.run_id, at=at, new_id=new_id)
            except ValueError as error:
                raise Refusal(400, str(error), field="query.at") from None
            except WorkflowRuntimeError as error:
                raise Refusal(409, str(error)) from None
            name = run.name
        row = await stored.store.get(copy_id)
        # The server may have taken the copy meanwhile.
        copy = self._runs.get(copy_id) or self._adopt(stored, row, name)
        await respond(send, copy.data(), 200, {"x-run-id": copy_id})

    async def _questions_of_run(self, exchange: Exchange, send: Send) -> None:
        async with self._found(exchange) as run:
            await respond(send, {"questions": questions_of(run)}, 200, run.headers())

    async def _questions(self, _: Exchange, send: Send) -> None:
        if self._stored is not None:
            found = await self._stored.questions(MOST_LISTED)
        else:
            found = [
                {"handler_id": run.run_id, "workflow_name": run.name, **question}
                for run in self._runs.active
                for question in questions_of(run)
            ]
        await respond(send, {"questions": found})


def questions_of(run: ServedRun) -> list[dict[str, Any]]:
    """Return the open questions of a run, as data."""
    return [question_data(question) for question in run.handler.questions]


def _path_below(scope: Message) -> str:
    """Return the path below the place where the application is mounted."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return path or "/"


def asgi_app(
    workflows: Mapping[str, Workflow[Any]],
    run_store: RunStore | str | None = None,
    *,
    on_disconnect: Literal["cancel", "continue"] = "cancel",
    max_runs: int = 100,
    max_body: int = 1_048_576,
    keep_ended: int = 1_000,
    keep_ended_for: float = 3_600.0,
    heartbeat: float | None = 15.0,
    shutdown_grace: float = 10.0,
    authenticate: Callable[[HTTPConnection], bool | Awaitable[bool]] | None = None,
    allowed_hosts: Iterable[str] = ("localhost", "127.0.0.1", "[::1]"),
    cors_origins: Iterable[str] = (),
    read_only: bool = False,
    max_records: int = 100_000,
    page: bool = True,
) -> WorkflowApp:
    """Return an ASGI application that serves workflows.

    ::

        app = asgi_app({"essay": Essay()})  # hypercorn -k trio module:app

    It runs under Hypercorn, on Trio and on asyncio, and under uvicorn, alone or mounted in another
    application, whose lifespan then has to enter :meth:`WorkflowApp.lifespan`.

    A run that ``POST /workflows/{name}/run`` starts is owned by its request: if the client hangs up
    before the answer is complete, the run is cancelled. A run of ``.../run-nowait`` is owned by the
    server. Reading events never cancels a run, nor does a slow reader hold it up: it misses
    events, and gets their number.

    Args:
        workflows: The workflows by the names that they have in the paths.
        run_store: The store of all runs, which then survive the server: the url of one, or a store of
            :func:`~sluicegate.durable.open_run_store`, which the lifespan opens unless it is open. Runs that
            another server has left are continued here.
        on_disconnect: What becomes of the run of a request whose client hangs up: ``"cancel"``, or
            ``"continue"``, with which the server owns it. A request may say otherwise:
            ``?on_disconnect=continue``.
        max_runs: How many runs may be under way; a further one is refused with 429.
        max_body: The most bytes of the body of a request.
        keep_ended: How many runs that are over are kept, for their results and events.
        keep_ended_for: Seconds for which they are kept.
        heartbeat: Seconds of silence in a stream after which a heartbeat is sent; None for none.
        shutdown_grace: Seconds for which runs may continue when the server stops.
        authenticate: A function of the request, sync or async, that returns whether it is admitted, such as
            :func:`bearer_token`. By default every request is; ``/health`` is in any case.
        allowed_hosts: The host names, without ports, under which the server is reached; a request
            with another ``Host`` is refused, because a page of another site could be behind it. ``"*"`` for any.
        cors_origins: The origins whose pages may call the server from a browser; ``"*"`` for any.
        read_only: Whether runs can only be looked at: every POST is refused.
        max_records: How many records are kept in memory for timelines; 0 for none.
        page: Whether ``/`` is a page for people, which shows the runs, starts and cancels them, and
            answers their questions. It is sent without authentication, and asks for a bearer token if
            the server refuses its requests.

    Raises:
        TypeError: ``workflows`` is no mapping of names to workflow objects.
        ValueError: A name or an option is not valid.
    """
    given: Any = workflows
    if not hasattr(given, "items") or not given:
        msg = f"asgi_app() was given {brief(given)}; expected workflows by name: `asgi_app({{'essay': Essay()}})`"
        raise TypeError(msg)
    for name, workflow in given.items():
        if not isinstance(workflow, Workflow):
            msg = (
                f"asgi_app({{{name!r}: {brief(workflow)}}}); expected a workflow object: "
                f"`asgi_app({{{name!r}: Essay()}})`"
            )
            raise TypeError(msg)
        if not isinstance(name, str) or re.fullmatch(r"[A-Za-z0-9._~-]+", name) is None:
            msg = f"asgi_app() has the name {name!r}; expected letters, digits and . _ ~ -, as paths need"
            raise ValueError(msg)
    _check_store(workflows, run_store)
    _check_options(
        on_disconnect=on_disconnect,
        counts={"max_runs": max_runs, "max_body": max_body},
        seconds={
            "keep_ended_for": keep_ended_for,
            "shutdown_grace": shutdown_grace,
            **({} if heartbeat is None else {"heartbeat": heartbeat}),
        },
    )
    for option, count in (("keep_ended", keep_ended), ("max_records", max_records)):
        if type(count) is not int or count < 0:
            msg = f"asgi_app({option}={brief(count)}); expected an int of at least 0"
            raise ValueError(msg)
    known = dict(given)
    return WorkflowApp(
        known,
        Guards(authenticate, allowed_hosts, cors_origins),
        Runs(max_runs, keep_ended, keep_ended_for),
        on_disconnect=on_disconnect,
        max_body=max_body,
        heartbeat=heartbeat or inf,
        shutdown_grace=shutdown_grace,
        read_only=read_only,
        run_store=run_store,
        recorder=Recorder(max_records=max_records, redact=_hidden) if max_records else None,
        page=Page(
            known,
            read_only=read_only,
            authenticates=authenticate is not None,
            heartbeat=heartbeat or inf,
        )
        if page
        else None,
    )


def _hidden(_name: str, value: Any) -> Any:
    """Show an exception in a recorded event as its class alone."""
    if type(value) in (list, tuple):
        return [_hidden("", item) for item in cast("list[Any]", value)]
    return name_of(value) if isinstance(value, BaseException) else value


def _check_store(workflows: Mapping[str, Workflow[Any]], run_store: object) -> None:
    """Refuse what is no store, and workflows that a store cannot tell apart.

    Raises:
        TypeError: It is no store.
        ValueError: Two workflows have a class of the same name.
    """
    if run_store is None:
        return
    if not isinstance(run_store, str | RunStore):
        msg = (
            f"asgi_app(run_store={brief(run_store)}); expected a url, or a store of open_run_store(): "
            "`asgi_app(..., run_store='sqlite:///runs.db')`"
        )
        raise TypeError(msg)
    names: dict[str, str] = {}
    for name, workflow in workflows.items():
        kind = graph_in(workflow).name
        if kind in names:
            msg = (
                f"{name!r} and {names[kind]!r} are both workflows of a class {kind}, by whose name stored runs "
                "find their workflow; expected classes of different names"
            )
            raise ValueError(msg)
        names[kind] = name


def _check_options(
    *, on_disconnect: str, counts: dict[str, int], seconds: dict[str, float]
) -> None:
    if on_disconnect not in ("cancel", "continue"):
        msg = f"asgi_app(on_disconnect={brief(on_disconnect)}); expected 'cancel' or 'continue'"
        raise ValueError(msg)
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            msg = f"asgi_app({name}={brief(value)}); expected an int of at least 1"
            raise ValueError(msg)
    for name, limit in seconds.items():
        if not (isfinite(limit) and limit >= 0):
            msg = f"asgi_app({name}={brief(limit)}); expected seconds, 0 or more"
            raise ValueError(msg)
