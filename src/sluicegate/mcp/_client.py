"""The tools of an MCP server in the steps of a workflow."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Self, cast, final
from urllib.parse import urlsplit

from mcp import Client, StdioServerParameters, types
from mcp.shared.exceptions import MCPError

from sluicegate._annotations import is_seconds
from sluicegate._errors import brief
from sluicegate._exceptions import add_note, single
from sluicegate._loop import current_backend
from sluicegate.llms import Tool, ToolError


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from mcp.shared.dispatcher import ProgressFnT


#: The most pages of a list of tools that are read.
_MOST_PAGES = 1_000
#: The characters that a name in the API of a model may not have, and its greatest length.
_OTHERS = re.compile(r"[^a-zA-Z0-9_-]")
_LONGEST = 64


@final
class McpTools:
    """The tools of an MCP server, while its block is open. It is meant as a resource of steps.

    ::

        def files() -> McpTools:
            return McpTools(["uvx", "mcp-server-files", "/srv"])


        class Tidy(Workflow[str]):
            @step
            async def look(
                self, ev: StartEvent, tools: Annotated[McpTools, Resource(files)]
            ) -> StopEvent:
                return StopEvent(result=await tools.call("list_files", path="/srv"))

    Entering connects to the server, which starts a process if the server is a command, and lists its
    tools. Leaving closes the connection and ends the process; as a resource that happens when the run
    ends, however it ends. A step that is cancelled during a call cancels the request.

    Args:
        server: A command with its arguments, the URL of a server over HTTP, or anything else that the
            SDK's ``Client`` takes: ``StdioServerParameters`` with an environment, a transport, or
            a server in this process.
        only: The names of the tools to offer; by default all.
        timeout: Seconds that the server may take to answer; None for no limit.
        **options: Options of the SDK's ``Client``, such as ``elicitation_callback``.

    Raises:
        TypeError: ``server`` is a text that is no URL, or not a server at all.
        ValueError: ``timeout`` is not above 0.
    """

    def __init__(
        self,
        server: Sequence[str] | str | Any,
        *,
        only: Sequence[str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of each request, passed to the client
        **options: Any,
    ) -> None:
        if not (timeout is None or is_seconds(timeout)):
            msg = f"McpTools(timeout={brief(timeout)}); expected seconds above 0, or None for no limit"
            raise ValueError(msg)
        if isinstance(server, str) and urlsplit(server).scheme not in ("http", "https"):
            msg = (
                f"McpTools({brief(server)}) is no URL; expected one, `McpTools('https://host/mcp')`, or a "
                f"command as a list: `McpTools({server.split()!r})`"
            )
            raise TypeError(msg)
        self._shown = _shown(server)
        if isinstance(server, list | tuple):
            command = [*cast("Sequence[str]", server)]
            if not command:
                msg = "McpTools([]) has no command; expected `McpTools(['program', 'argument'])`"
                raise TypeError(msg)
            server = StdioServerParameters(command=command[0], args=command[1:])
        self._server: Any = server
        self._only = None if only is None else frozenset(only)
        self._timeout = timeout
        self._options = options
        self._client: Client | None = None
        self._stack: AsyncExitStack | None = None
        self._tools: dict[str, Tool] = {}

    # -- the connection ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect, and list the tools. A checkpoint; cancelled, the connection is closed.

        Raises:
            OSError: The command cannot be started.
            MCPError: The server refuses the connection, or lists no tools.
            Exception: The server cannot be reached; this is the error of the SDK's HTTP client.
            ValueError: ``only`` names a tool that the server does not have.
        """
        client = Client(self._server, read_timeout_seconds=self._timeout, **self._options)
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(client)
                await self._list(client)
                self._stack, self._client = stack.pop_all(), client
        except BaseException as error:
            first = single(error, current_backend().Cancelled)
            if isinstance(first, Exception):
                add_note(first, f"while connecting to the MCP server {self._shown}")
            if first is error:
                raise
            raise first from None  # noqa: ASYNC104 - a cancellation is the first only if there is nothing else
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection, and end the server's process. A checkpoint."""
        stack, self._stack, self._client = self._stack, None, None
        if stack is None:
            return
        try:
            await stack.__aexit__(kind, error, trace)  # noqa: ASYNC102 - the SDK shields it
        except BaseExceptionGroup as group:
            first = single(group, current_backend().Cancelled)
            if first is not error:  # else the exception of the block propagates as it is
                raise first from None

    async def _list(self, client: Client) -> None:
        found: dict[str, Tool] = {}
        names: set[str] = set()
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            for each in page.tools:
                if self._only is None or each.name in self._only:
                    found[each.name] = self._tool(each, names)
            cursor = page.next_cursor
            if cursor is None:
                break
        missing = sorted((self._only or frozenset()) - found.keys())
        if missing:
            msg = f"the MCP server {self._shown} has no tool {', '.join(missing)}; expected McpTools(..., only=[...]) with names that it has"
            raise ValueError(msg)
        self._tools = found

    def _tool(self, listed: types.Tool, names: set[str]) -> Tool:
        """Return a tool with a name that models accept, and that no other one has."""
        plain = _OTHERS.sub("_", listed.name)[:_LONGEST]
        name = plain
        for number in count(2):
            if name not in names:
                break
            name = f"{plain[: _LONGEST - len(str(number)) - 1]}_{number}"
        names.add(name)
        return Tool(
            name=name,
            description=listed.description or listed.title or "",
            input_schema=listed.input_schema,
            call=partial(self.call_tool, listed.name),
        )

    # -- calls --------------------------------------------------------------------------------------

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools for a model: ``await llm.achat(messages, tools=tools.tools)``.

        In their names, characters that models do not accept are replaced by ``_``.
        """
        return tuple(self._tools.values())

    def __getitem__(self, name: str) -> Tool:
        try:
            return self._tools[name]
        except KeyError:
            known = ", ".join(self._tools) or "none"
            msg = f"the MCP server {self._shown} offers no tool {brief(name)}; it offers {known}"
            raise KeyError(msg) from None

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool with keywords; see :meth:`call_tool`. A checkpoint."""
        return await self.call_tool(name, arguments)

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        on_progress: ProgressFnT | None = None,
    ) -> Any:
        """Call a tool. A checkpoint; cancelled, it tells the server to cancel the request.

        Args:
            name: The name that the server gives to the tool.
            arguments: The arguments, as JSON data.
            on_progress: An async function that gets each progress of the tool: how much is done, how much
                there is to do, or None, and a text, or None.

        Returns:
            The structured result (of an object with only the key ``result``, its value); else the text;
            else, where there is more than text, the content blocks as JSON data.

        Raises:
            ToolError: The tool reports an error, or the server refuses the arguments; the text is for a model.
            TimeoutError: The server has not answered in time.
            ConnectionError: The connection has ended.
            MCPError: Another error of the protocol.
            RuntimeError: The block is not open.
        """
        client = self._client
        if client is None:
            msg = (
                f"the tool {name} was called outside the block of its server; expected "
                "`async with McpTools(...) as tools:` around it, or a resource of the step"
            )
            raise RuntimeError(msg)
        try:
            result = await client.call_tool(name, dict(arguments), progress_callback=on_progress)
        except MCPError as error:
            raise self._known(name, error) from error
        except BaseExceptionGroup as group:  # of the SDK's nurseries
            raise single(group, current_backend().Cancelled) from None
        return _value_of(name, result)

    def _known(self, name: str, error: MCPError) -> Exception:
        """Return an error of the protocol as the exception that a step knows."""
        if error.code == types.INVALID_PARAMS:
            return ToolError(error.message)
        if error.code == types.REQUEST_TIMEOUT:
            msg = f"the MCP server {self._shown} has not answered {name} within {self._timeout} s"
            return TimeoutError(msg)
        if error.code == types.CONNECTION_CLOSED:
            msg = f"the connection to the MCP server {self._shown} has ended during {name}"
            return ConnectionError(msg)
        return error

    def __repr__(self) -> str:
        state = "closed" if self._client is None else f"{len(self._tools)} tools"
        return f"<McpTools of {self._shown}, {state}>"


def _shown(server: Any) -> str:
    """Return a server for a message, without credentials."""
    if isinstance(server, str):
        parts = urlsplit(server)
        port = "" if parts.port is None else f":{parts.port}"
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
    if isinstance(server, list | tuple):
        return brief(next(iter(cast("Sequence[str]", server)), ""))
    if isinstance(server, StdioServerParameters):
        return brief(server.command)
    return brief(getattr(server, "name", type(server).__name__))


def _value_of(name: str, result: types.CallToolResult) -> Any:
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    if result.is_error:
        raise ToolError("\n".join(texts) or f"the tool {name} has failed")
    data: Any = result.structured_content
    if isinstance(data, dict):
        fields = cast("dict[str, Any]", data)
        return fields["result"] if [*fields] == ["result"] else fields
    if data is not None:
        return data
    if len(texts) == len(result.content):
        return "\n".join(texts)
    return [
        block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content
    ]
