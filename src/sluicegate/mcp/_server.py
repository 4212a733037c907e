"""The server: its tools, the protection of the state that clients carry, and errors of the protocol."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from sluicegate._annotations import is_seconds
from sluicegate._errors import brief
from sluicegate.durable import RunStore
from sluicegate.mcp._calls import AGAIN, Calls
from sluicegate.mcp._tool import tools_of


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from sluicegate._workflow import Workflow
    from sluicegate.mcp._tool import WorkflowTool


def mcp_server(
    *workflows: Workflow[Any] | Mapping[str, Workflow[Any]],
    name: str = "sluicegate",
    version: str = "",
    instructions: str | None = None,
    state_keys: Sequence[bytes | str] | None = None,
    state_ttl: float = 3_600.0,
    run_store: RunStore | None = None,
) -> Server[Any]:
    """Return an MCP server in which each workflow is a tool. Not a checkpoint.

    ::

        server = mcp_server(Essay(), {"review": Review()}, state_keys=[os.environ["MCP_STATE_KEY"]])
        app = server.streamable_http_app()  # an ASGI application
        await run_stdio(server)  # or over standard input and output

    A call of a tool is a run: the arguments are the fields of the start event, the events of the stream
    are progress, and the event that ends the run is the result. The request owns the run. When the
    request is cancelled, the run is cancelled, and its clean-up completes before the request ends.

    If the run waits for answers and nothing else happens in it, the call returns its open questions to
    the client (protocol 2026-07-28: ``input_required``), with the snapshot of the run as sealed state. The
    client calls again with the answers and the state, in any process that has the keys, and the
    run continues from the snapshot. Nothing is kept in between. A client of an earlier protocol is
    asked during the call.

    With ``run_store``, the runs are durable, and the state has only the id of the run.

    Args:
        *workflows: The workflows. A tool is named after the class, or by its key in a mapping.
        name: The name of the server. It is part of the sealed state: another server refuses it.
        version: The version that the server reports.
        instructions: A text about the server for models.
        state_keys: Secrets of at least 32 bytes for the state: the first one seals, and each opens. They
            must be the same in every process that serves these tools. Required if a tool can ask.
        state_ttl: Seconds for which a client may answer.
        run_store: An open store. A call may then give a ``run_id``.

    Returns:
        A server of the MCP SDK.

    Raises:
        ValueError: No workflow is given, a name is invalid, or ``state_keys`` are missing or too short.
        TypeError: Something given is not a workflow, or ``run_store`` is not a run store.
    """
    if not (run_store is None or isinstance(cast("object", run_store), RunStore)):
        msg = (
            f"mcp_server(run_store={brief(run_store)}); expected an open store: "
            "`async with open_run_store('sqlite:///runs.db') as runs:` and run_store=runs"
        )
        raise TypeError(msg)
    if not is_seconds(state_ttl):
        msg = f"mcp_server(state_ttl={brief(state_ttl)}); expected seconds above 0"
        raise ValueError(msg)
    tools = tools_of(workflows, has_store=run_store is not None)
    protection = _protection(name, tools, state_keys, state_ttl)
    calls = Calls(tools, run_store, can_ask=protection is not None)
    listed = types.ListToolsResult(tools=[tool.declared for tool in tools.values()])

    async def list_tools(  # noqa: ASYNC124 - a handler is awaited
        _ctx: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return listed

    @asynccontextmanager
    async def lifespan(_server: Server[Any]) -> AsyncGenerator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            for tool in tools.values():
                await stack.enter_async_context(tool.workflow)
            yield {}

    server: Server[Any] = Server(
        name,
        version=version,
        instructions=instructions,
        lifespan=lifespan,
        get_tool_input_schema=lambda tool: (
            tools[tool].declared.input_schema if tool in tools else None
        ),
        on_list_tools=list_tools,
        on_call_tool=calls.call,
    )
    if protection is not None:
        server.middleware += [_explain_refusals(state_ttl), protection]
    return server


async def run_stdio(server: Server[Any]) -> None:
    """Serve one client over standard input and output, until it closes them. A checkpoint.

    Meanwhile, ``print`` writes to standard error. A cancellation cancels the runs and waits
    for their clean-up.

    Args:
        server: The server.
    """
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


def _protection(
    name: str,
    tools: Mapping[str, WorkflowTool],
    keys: Sequence[bytes | str] | None,
    ttl: float,
) -> RequestStateBoundary | None:
    """Return what seals the state that clients carry; None where no tool can ask."""
    line = 'state_keys=[os.environ["MCP_STATE_KEY"]]'
    if keys is None:
        asking = [tool.name for tool in tools.values() if tool.can_ask]
        if not asking:
            return None
        msg = (
            f"{', '.join(asking)} can ask, and then the client carries the state of the run, which must be "
            f"sealed; expected mcp_server(..., {line}) with a secret of at least 32 bytes, the same in "
            "every process: `python -c 'import secrets; print(secrets.token_hex(32))'` makes one"
        )
        raise ValueError(msg)
    if isinstance(keys, str | bytes | bytearray):
        msg = f"mcp_server(state_keys=...) was given one key; expected a list: {line}"
        raise ValueError(msg)  # noqa: TRY004 - as for every fault of the keys
    try:
        security = RequestStateSecurity(keys=[*keys], ttl=ttl)
    except (TypeError, ValueError) as error:
        msg = f"mcp_server(state_keys=...): {error}"
        raise ValueError(msg) from None
    return RequestStateBoundary(security, default_audience=name)


def _explain_refusals(ttl: float) -> Any:
    """Return middleware that says what a client can do when its state is refused.

    It does not say what is wrong with the state; the log of the SDK does.
    """

    async def explain(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        try:
            return await call_next(ctx)
        except MCPError as error:
            data: object = error.data
            if not isinstance(data, dict) or "invalid_request_state" not in data.values():
                raise
            msg = (
                f"{error.message}: it was altered, is older than {ttl:g} s, or belongs to another call, user "
                f"or server; {AGAIN}"
            )
            raise MCPError(error.code, msg, cast("object", data)) from error

    return explain
