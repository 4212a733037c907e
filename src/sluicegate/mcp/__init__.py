"""MCP: workflows as the tools of a server, and the tools of other servers in the steps of a workflow.

Requires the MCP SDK: ``pip install "sluicegate[mcp]"`` installs it.
"""

from __future__ import annotations


try:
    from sluicegate.mcp._client import McpTools
    from sluicegate.mcp._server import mcp_server, run_stdio
except ModuleNotFoundError as _error:
    if _error.name is None or _error.name.partition(".")[0] == "sluicegate":
        raise
    _msg = 'sluicegate.mcp needs the MCP SDK; expected `pip install "sluicegate[mcp]"`'
    raise ModuleNotFoundError(_msg, name=_error.name) from _error


__all__ = ["McpTools", "mcp_server", "run_stdio"]
