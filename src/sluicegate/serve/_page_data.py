"""The page at ``/``: its files, the pictures of workflows, and the records of runs.

The files hold nothing of any run, so they are sent without authentication: the page itself asks for
the token. Each has a Content-Security-Policy without ``unsafe-inline`` and ``unsafe-eval``.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import cache
from importlib.resources import files
from math import isfinite
from typing import TYPE_CHECKING, Any, final
from urllib.parse import quote

import attrs

from sluicegate._data.json import json_of
from sluicegate.drawing._flow import flow_of
from sluicegate.drawing._picture import picture_of
from sluicegate.drawing._style import picture_sheet
from sluicegate.durable._runs import release
from sluicegate.recording._execution import execution_of
from sluicegate.serve._requests import Refusal, workflow_of
from sluicegate.serve._responses import HEADERS, as_json, respond_with
from sluicegate.timeline._page import framed_html, timeline_data


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from sluicegate._asgi import Send
    from sluicegate._workflow import Workflow
    from sluicegate.drawing import Execution
    from sluicegate.recording import Recording
    from sluicegate.serve._requests import Exchange

    Endpoint = Callable[[Exchange, Send], Awaitable[None]]

#: The page runs its own scripts, styles and requests, and nothing else; no page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_JSON = {"content-type": "application/json", **HEADERS}


@final
class Page:
    """The page of a server.

    Args:
        workflows: The workflows by their names on the server.
        read_only: Whether runs can only be looked at.
        authenticates: Whether requests need a token.
        heartbeat: Seconds between the heartbeats of a stream; not finite for none.
    """

    def __init__(
        self,
        workflows: Mapping[str, Workflow[Any]],
        *,
        read_only: bool,
        authenticates: bool,
        heartbeat: float,
    ) -> None:
        self._workflows = workflows
        settings = {
            "read_only": read_only,
            "authenticates": authenticates,
            "heartbeat": heartbeat if isfinite(heartbeat) else None,
            "version": release(),
            # By which the page sees that the server was restarted.
            "instance": secrets.token_hex(8),
        }
        self._settings = json_of(settings).encode()
        self._pictures: dict[str, bytes] = {}

    @property
    def files(self) -> list[tuple[str, str, Endpoint]]:
        """The endpoints that hold nothing of any run, and need no token."""
        return [
            ("GET", "/", self._index),
            ("GET", "/assets/config.json", self._config),
            ("GET", "/assets/{name}", self._file),
            ("GET", "/assets/{folder}/{name}", self._file),
        ]

    @property
    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        """The endpoints of the data that only the page reads."""
        return [("GET", "/workflows/{name}/picture", self._picture)]

    async def _index(self, exchange: Exchange, send: Send) -> None:
        path: str = exchange.scope["path"]
        if path.endswith("/"):
            await self._file(exchange, send)
        else:  # it is mounted, and the page names its files from where it is
            where = quote(path.rpartition("/")[2]) + "/"
            await respond_with(send, 307, b"", {"location": where, "cache-control": "no-store"})

    async def _file(self, exchange: Exchange, send: Send) -> None:
        parts = (exchange.params.get("folder"), exchange.params.get("name"))
        found = page_files().get("/".join(filter(None, parts)) or "index.html")
        if found is None:
            msg = f"the page has no file {exchange.path[:200]}; expected one that / refers to"
            raise Refusal(404, msg)
        is_known = exchange.headers.get("if-none-match") == found.headers["etag"]
        body = b"" if is_known else found.body
        await respond_with(send, 304 if is_known else 200, body, found.headers)

    async def _config(self, _: Exchange, send: Send) -> None:
        await respond_with(send, 200, self._settings, _JSON)

    async def _picture(self, exchange: Exchange, send: Send) -> None:
        name, workflow = workflow_of(exchange, self._workflows)
        body = self._pictures.get(name)
        if body is None:
            body = as_json(picture_data(workflow))
            self._pictures[name] = body
        await respond_with(send, 200, body, _JSON)


# -- files ------------------------------------------------------------------------------------------


@attrs.frozen
class PageFile:
    """A file of the page.

    Attributes:
        body: Its content.
        headers: The headers of the response.
    """

    body: bytes
    headers: dict[str, str]


@cache
def page_files() -> dict[str, PageFile]:
    """Return the files of the page by their paths below ``assets/``; that of ``/`` is ``index.html``."""
    folder = files("sluicegate.serve") / "page"
    found: dict[str, PageFile] = {}
    for where, prefix in [(folder, ""), (folder / "vendor", "vendor/")]:
        for entry in where.iterdir():
            suffix = entry.name[entry.name.rfind(".") :]
            if suffix in MEDIA_TYPES:
                found[prefix + entry.name] = _file_of(entry.read_bytes(), suffix)
    found["graph.css"] = _file_of(picture_sheet().encode(), ".css")
    html, policy = framed_html()
    found["timeline.html"] = _file_of(html.encode(), ".html", f"{policy}; frame-ancestors 'self'")
    return found


def _file_of(body: bytes, suffix: str, policy: str = POLICY) -> PageFile:
    headers = {
        "content-type": MEDIA_TYPES[suffix],
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:20]}"',
    }
    return PageFile(body, headers)


# -- data -------------------------------------------------------------------------------------------


def picture_data(workflow: type[Workflow[Any]] | Workflow[Any]) -> dict[str, Any]:
    """Return the picture of a workflow's graph, and the names of the workflows in it by number."""
    flow = flow_of(workflow)
    children = {
        str(child.number): child.flow.name
        for each in flow.walk()
        for node in each.steps
        for child in node.children
        if child.flow is not None
    }
    return {"svg": picture_of(flow).svg, "flows": {"0": flow.name, **children}}


def recorded_data(make_recording: Callable[[], Recording], run_id: str) -> dict[str, Any] | None:
    """Return what was recorded of a run, with its children; None if nothing was.

    ``timeline`` is what the timeline's page reads, ``steps`` the counts of each step by workflow, and
    ``is_part`` whether the run had begun before. It takes time that grows with the records.
    """
    recording = make_recording()
    runs = [one for one in recording.runs if one.run_id == run_id]
    if not runs:
        return None
    return {
        "timeline": timeline_data(recording, shows_errors=False),
        "steps": _counts(map(execution_of, runs)),
        "is_part": runs[0].is_resumed,
    }


def _counts(executions: Iterable[Execution]) -> dict[str, dict[str, Any]]:
    """Return the counts of each step by workflow; a run that was parked has several executions."""
    found: dict[str, dict[str, Any]] = {}
    for execution in executions:
        for each in (execution, *execution.children):
            steps = found.setdefault(each.workflow, {})
            for name, counts in each.steps.items():
                more = {**attrs.asdict(counts), "running": counts.running}
                before = steps.get(name, dict.fromkeys(more, 0))
                steps[name] = {key: before[key] + value for key, value in more.items()}
    return found
