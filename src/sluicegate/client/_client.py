"""The client of a workflow server."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, final, overload
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from sluicegate._annotations import is_seconds
from sluicegate._errors import WorkflowRuntimeError, brief, unknown_name
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.cleanup import shielded_scope
from sluicegate._scope import leave_nursery, settle
from sluicegate.client._data import read_questions, read_run
from sluicegate.client._events import Classes, envelope_of, json_bytes
from sluicegate.client._feed import Start, quoted
from sluicegate.client._handler import RemoteHandler
from sluicegate.client._http import Transport, make_http_client
from sluicegate.client._session import Session


if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager

    from sluicegate._events import Event, StartEvent
    from sluicegate._loop import Nursery
    from sluicegate._workflow import Workflow
    from sluicegate.client._data import RemoteQuestion, RemoteRun
    from sluicegate.client._library import httpx

R = TypeVar("R")

#: Closing the connections takes microseconds; a peer that delays it must not delay the end of a program.
_CLOSE_SECONDS = 1.0

#: Names of the client of LlamaIndex Workflows, and their replacements.
_OLDER = {
    "cancel_handler": "`await client.attach(run_id).cancel(reason)`",
    "get_handler": "`await client.attach(run_id).details()`",
    "get_handlers": "`await client.list_runs()`",
    "get_result": "`await client.attach(run_id).details()`",
    "get_workflow_events": "`client.attach(run_id).stream_events(after=cursor)`",
    "get_workflow_events_schema": "`await client.event_schemas(name)`",
    "get_workflow_graph": "`await client.graph(name)`",
    "get_workflow_schema": "`await client.schema(name)`",
    "run_workflow": "`await client.run(name, ...)`",
    "run_workflow_nowait": "`await client.submit(name, ...)`",
    "send_event": "`await client.attach(run_id).send_event(event)`",
    "wait_for_handler": "`await client.attach(run_id)`",
}


@final
class Client:
    """A client of a server of :func:`sluicegate.serve.asgi_app`, open for the length of a block.

    ::

        async with Client("http://127.0.0.1:8000", workflows={"essay": Essay}) as client:
            async with client.run("essay", topic="locks") as handler:
                async for event in handler.stream_events():
                    print(event)
                print(await handler)

    It works on Trio and asyncio, and may be used by several tasks. Leaving the block ends its readers and closes its
    connections.

    Args:
        url: The URL of the server, with the path at which it is mounted.
        token: Sent as ``Authorization: Bearer <token>``.
        workflows: The workflows on the server, or their classes, by the name that they have there. Their
            events are known then, and ``client.run(Essay, ...)`` has the type of its result.
        events: Further classes of events, such as those that steps publish. Events of other classes
            arrive as :class:`RemoteEvent`; no class is ever looked up by a name from the server.
        headers: Further headers of each request.
        timeout: Seconds that the server may take to answer a request.
        idle_timeout: Seconds that a stream may be silent before it counts as lost. The server sends
            heartbeats, every 15 seconds by default. None for no limit.
        max_retries: How often a request is repeated if the server cannot be reached or is busy, with
            increasing delays. No repetition does anything twice.
        reconnect_for: Seconds for which a reader whose connection is lost tries to connect again.
        http: An ``AsyncClient`` of httpx2 or httpx to use, for proxies, certificates or transports of your own. The
            client does not close it.

    Raises:
        ValueError: The URL or an option is not valid.
        TypeError: ``workflows`` or ``events`` have something else than classes.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        workflows: Mapping[str, Workflow[Any] | type[Workflow[Any]]] | None = None,
        events: Iterable[type[Event]] = (),
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        idle_timeout: float | None = 60.0,
        max_retries: int = 2,
        reconnect_for: float = 60.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        _check_access(url, token)
        _check_seconds(timeout=timeout, idle_timeout=idle_timeout, reconnect_for=reconnect_for)
        if type(max_retries) is not int or max_retries < 0:
            msg = f"Client(max_retries={brief(max_retries)}); expected an int of at least 0"
            raise ValueError(msg)
        if not (workflows is None or isinstance(workflows, Mapping)):
            msg = (
                f"Client(workflows={brief(workflows)}); expected a dict with their names on the server: "
                '`workflows={"essay": Essay}`'
            )
            raise TypeError(msg)
        self._address = url
        self._workflows = {**(workflows or {})}
        self._classes = Classes(self._workflows.values(), events)
        self._headers = {**(headers or {})}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._timeout = timeout
        self._idle_timeout = inf if idle_timeout is None else idle_timeout
        self._max_retries = max_retries
        self._reconnect_for = reconnect_for
        self._given_http = http
        self._http: httpx.AsyncClient | None = None
        self._session: Session | None = None
        self._manager: AbstractAsyncContextManager[Nursery] | None = None

    # -- the block -----------------------------------------------------------------------------------

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Open the client. Not a checkpoint; no connection is made yet.

        Raises:
            WorkflowRuntimeError: It is open.
        """
        if self._manager is not None:
            msg = "this client is open; expected another `Client(...)` for another block"
            raise WorkflowRuntimeError(msg)
        backend = current_backend()
        self._manager = manager = backend.open_owner()
        nursery = await manager.__aenter__()
        self._http = self._given_http or make_http_client(self._address)
        transport = Transport(
            self._address,
            self._http,
            self._headers,
            timeout=self._timeout,
            idle_timeout=self._idle_timeout,
            max_retries=self._max_retries,
        )
        self._session = Session(transport, self._classes, self._reconnect_for)
        self._session.nursery = nursery
        return self

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End the readers and close the connections. A checkpoint; runs that the server owns continue."""
        manager, session = self._manager, self._session
        assert manager is not None
        assert session is not None
        nursery = session.nursery
        assert nursery is not None
        session.stop()
        if self._given_http is None:
            # In a separate task, which no native cancellation of this one hits.
            nursery.start_soon(self._close, session, name="close the client")
        raised = await leave_nursery(manager)  # noqa: ASYNC102 - as a nursery's own __aexit__
        self._manager = self._session = self._http = None
        backend = current_backend()
        settle(None, error, raised, backend.Cancelled)
        await backend.checkpoint_if_cancelled()  # noqa: ASYNC102 - nothing is left to be done

    async def _close(self, session: Session) -> None:
        assert self._http is not None
        with shielded_scope(_CLOSE_SECONDS):
            await session.wait_for_readers()
            await self._http.aclose()

    def _open(self) -> Session:
        if self._session is None:
            msg = (
                f"{self!r} is not open; expected its use in `async with Client(url) as client: ...`"
            )
            raise WorkflowRuntimeError(msg)
        return self._session

    # -- runs ------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        workflow: str,
        start_event: StartEvent | None = None,
        /,
        *,
        run_id: str | None = None,
        **fields: Any,
    ) -> RemoteHandler[Any]: ...

    @overload
    def run(
        self,
        workflow: Workflow[R] | type[Workflow[R]],
        start_event: StartEvent | None = None,
        /,
        *,
        run_id: str | None = None,
        **fields: Any,
    ) -> RemoteHandler[R]: ...

    def run(
        self,
        workflow: str | Workflow[Any] | type[Workflow[Any]],
        start_event: StartEvent | None = None,
        /,
        *,
        run_id: str | None = None,
        **fields: Any,
    ) -> RemoteHandler[Any]:
        """Create a run without starting it; a request will own it. Not a checkpoint.

        Args:
            workflow: The name of the workflow on the server, or one of ``workflows``.
            start_event: The start event; by default the server makes it from ``fields``.
            run_id: Your identifier of the run; by default a new one.
            **fields: The fields of the workflow's start event.

        Returns:
            A handler; await it or enter it.

        Raises:
            TypeError: JSON cannot hold a field, or both a start event and fields are given.
            ValueError: ``run_id`` cannot be a part of a path.
            WorkflowRuntimeError: The client is not open, or does not know the name of the workflow.
        """
        session = self._open()
        name, run_id, body = self._request(workflow, start_event, run_id, fields)
        start = Start(f"/workflows/{quoted(name)}/run", json_bytes(body))
        return RemoteHandler(session, run_id, start)

    @overload
    async def submit(
        self,
        workflow: str,
        start_event: StartEvent | None = None,
        /,
        *,
        run_id: str | None = None,
        **fields: Any,
    ) -> RemoteHandler[Any]: ...

    @overload
    async def submit(
        self,
        workflow: Workflow[R] | type[Workflow[R]],
        start_event: StartEvent | None = None,
        /,
        *,
        run_id: str | None = None,
        **fields: Any,
    ) -> RemoteHandler[R]: ...

    async def submit(
        self,
        workflow: str | Workflow[Any] | type[Workflow[Any]],
        start_event: StartEvent | None = None,
        /,
        *,
        run_id: str | None = None,
        **fields: Any,
    ) -> RemoteHandler[Any]:
        """Start a run that the server owns: it continues when this client has gone. A checkpoint.

        If the same request is sent twice with the same ``run_id``, the run is started once. Cancelled,
        it may have been started or not; with a ``run_id`` of your own you can find out.

        Args:
            workflow: The name of the workflow on the server, or one of ``workflows``.
            start_event: The start event; by default the server makes it from ``fields``.
            run_id: Your identifier of the run; by default a new one.
            **fields: The fields of the workflow's start event.

        Returns:
            Its handler, as of :meth:`attach`.

        Raises:
            InvalidRequestError: The fields do not fit the workflow's start event.
            ConflictError: There is a run with this id, which began with something else.
            ClientError: The server has refused the request, or was not reached.
            TypeError: JSON cannot hold a field, or both a start event and fields are given.
            ValueError: ``run_id`` cannot be a part of a path.
            WorkflowRuntimeError: The client is not open, or does not know the name of the workflow.
        """
        session = self._open()
        name, run_id, body = self._request(workflow, start_event, run_id, fields)
        path = f"/workflows/{quoted(name)}/run-nowait"
        await session.transport.request("POST", path, body=body)
        return RemoteHandler(session, run_id, None)

    def attach(self, run_id: str) -> RemoteHandler[Any]:
        """Return a handler of a run that the server owns. Not a checkpoint: the server is not asked.

        Args:
            run_id: The id of the run.

        Raises:
            ValueError: ``run_id`` cannot be a part of a path.
            WorkflowRuntimeError: The client is not open.
        """
        return RemoteHandler(self._open(), _checked_id(run_id), None)

    def _request(
        self,
        workflow: object,
        start_event: StartEvent | None,
        run_id: str | None,
        fields: dict[str, Any],
    ) -> tuple[str, str, dict[str, Any]]:
        if start_event is not None and fields:
            msg = f"run() was given both a start event and {', '.join(fields)}; expected one or the other"
            raise TypeError(msg)
        value = fields if start_event is None else envelope_of(start_event)["value"]
        chosen = uuid4().hex if run_id is None else _checked_id(run_id)
        # In an envelope, no field is taken for something else. Each workflow takes this name.
        start = {"type": "StartEvent", "value": value}
        return self._name_of(workflow), chosen, {"start_event": start, "handler_id": chosen}

    def _name_of(self, workflow: object) -> str:
        if isinstance(workflow, str):
            return workflow
        for name, known in self._workflows.items():
            if _class_of(known) is _class_of(workflow):
                return name
        named = f"{{'name': {getattr(workflow, '__name__', type(workflow).__name__)}}}"
        msg = (
            f"run() was given {brief(workflow)}, whose name on the server the client does not know; "
            f"expected the name, or Client(url, workflows={named})"
        )
        raise WorkflowRuntimeError(msg)

    # -- the server --------------------------------------------------------------------------------------

    async def is_healthy(self) -> bool:
        """Whether the server takes new runs; False while it stops. A checkpoint.

        Raises:
            ServerUnreachableError: There is no server.
        """
        body = await self._open().transport.request("GET", "/health", allow=(503,))
        return body.get("status") == "healthy"

    async def list_workflows(self) -> tuple[str, ...]:
        """Return the names of the workflows on the server. A checkpoint.

        Raises:
            ClientError: The server has refused the request, or was not reached.
        """
        body = await self._open().transport.request("GET", "/workflows")
        return tuple(body["workflows"])

    async def schema(self, workflow: str) -> dict[str, Any]:
        """Return the JSON Schemas of a workflow's start event and its result. A checkpoint.

        Returns:
            A dict with the keys ``"start"`` and ``"stop"``.

        Raises:
            NotFoundError: There is no such workflow.
        """
        path = f"/workflows/{quoted(workflow)}/schema"
        return await self._open().transport.request("GET", path)

    async def event_schemas(self, workflow: str) -> tuple[dict[str, Any], ...]:
        """Return the JSON Schemas of a workflow's events; ``"title"`` is the name of the class. A checkpoint.

        Raises:
            NotFoundError: There is no such workflow.
        """
        path = f"/workflows/{quoted(workflow)}/events"
        body = await self._open().transport.request("GET", path)
        return tuple(body["events"])

    async def graph(
        self,
        workflow: str,
        *,
        format: Literal["workflows", "sluicegate"] = "workflows",  # noqa: A002
    ) -> dict[str, Any]:
        """Return the graph of a workflow as JSON data. A checkpoint.

        Args:
            workflow: Its name on the server.
            format: ``"workflows"`` for the nodes and edges of LlamaIndex Workflows, ``"sluicegate"`` for those of
                ``sluicegate draw --format json``.

        Raises:
            NotFoundError: There is no such workflow.
        """
        params = {} if format == "workflows" else {"format": format}
        path = f"/workflows/{quoted(workflow)}/representation"
        body = await self._open().transport.request("GET", path, params=params)
        return cast("dict[str, Any]", body["graph"])

    async def list_runs(
        self, *, status: str | Iterable[str] = (), workflow: str | Iterable[str] = ()
    ) -> tuple[RemoteRun, ...]:
        """Return the runs that the server knows, the newest first. A checkpoint.

        Args:
            status: Only those with one of these statuses: ``"running"``, ``"completed"``, ``"failed"``
                (which includes those that timed out), ``"cancelled"``.
            workflow: Only those of one of these workflows.

        Raises:
            InvalidRequestError: There is no such status.
        """
        params = {"status": _several(status), "workflow_name": _several(workflow)}
        body = await self._open().transport.request("GET", "/handlers", params=params)
        return tuple(read_run(data, self._classes) for data in body["handlers"])

    async def questions(self) -> tuple[RemoteQuestion, ...]:
        """Return the open questions of all runs. A checkpoint.

        Raises:
            ClientError: The server has refused the request, or was not reached.
        """
        body = await self._open().transport.request("GET", "/questions")
        return read_questions(body, self._classes)

    async def openapi(self) -> dict[str, Any]:
        """Return the server's OpenAPI document. A checkpoint.

        Raises:
            ClientError: The server has refused the request, or was not reached.
        """
        return await self._open().transport.request("GET", "/openapi.json")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(unknown_name("Client", name, _OLDER))

    def __repr__(self) -> str:  # without the token
        state = "closed" if self._session is None else "open"
        return f"<Client of {_without_secret(self._address)}, {state}>"


def _class_of(workflow: object) -> object:
    return workflow if isinstance(workflow, type) else type(workflow)


def _several(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _checked_id(run_id: object) -> str:
    is_part = isinstance(run_id, str) and run_id.isprintable() and "/" not in run_id
    if isinstance(run_id, str) and is_part and run_id not in ("", ".", ".."):
        return run_id
    msg = f"run_id is {brief(run_id)}; expected a text without slashes, because it is a part of a path"
    raise ValueError(msg)


def _without_secret(url: str) -> str:
    scheme, place, *rest = urlsplit(url)
    return urlunsplit((scheme, place.rpartition("@")[2], *rest))


def _check_access(url: object, token: object) -> None:
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
        msg = f'Client({brief(url)}); expected a URL: Client("http://127.0.0.1:8000")'
        raise ValueError(msg)
    if token is None:
        return
    if not (isinstance(token, str) and token and token.isascii() and token.isprintable()):
        msg = "Client(token=...) was given something else than a text of ASCII; expected the server's token"
        raise ValueError(msg)


def _check_seconds(**given: object) -> None:
    for name, value in given.items():
        if not (is_seconds(value) or (value is None and name == "idle_timeout")):
            msg = f"Client({name}={brief(value)}); expected seconds above 0"
            raise ValueError(msg)
