"""A timeline that is served on loopback while its runs are active."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self, final

from sluicegate.timeline._page import live_html, timeline_data


if TYPE_CHECKING:
    from sluicegate.recording import Recorder

#: Seconds for a browser that has the page open to fetch the last state.
LAST_POLL = 2.0


@final
class LivePage:
    """Serves the timeline of a recorder on 127.0.0.1 while the context is entered.

    At the end it waits until a browser that shows the page has fetched the last state, at most
    two seconds, and closes the port. Entering and leaving block.

    Args:
        recorder: The recorder in memory, whose runs are shown.

    Attributes:
        address: The URL of the page, once the context is entered.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._has_ended = False
        self._is_polled = False
        self._last_answered = threading.Event()
        self.address: str = ""

    def __enter__(self) -> Self:
        self._server = server = _Server(self)
        self.address = f"http://127.0.0.1:{server.server_port}/"
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.05,), name="sluicegate live page", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._has_ended = True
        try:
            if self._is_polled:
                self._last_answered.wait(LAST_POLL)
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def answer(self, path: str) -> tuple[str, bytes, bool] | None:
        """Return the media type and the text of a path, and whether it is the last state."""
        ended = self._has_ended  # before the records are read, so that the last state has them all
        if path == "/":
            return "text/html; charset=utf-8", live_html(self._recorder.recording).encode(), False
        if path != "/data":
            return None
        self._is_polled = True
        state = {"ended": ended, "data": timeline_data(self._recorder.recording)}
        return "application/json", json.dumps(state, separators=(",", ":")).encode(), ended

    def has_answered(self, *, is_last: bool) -> None:
        """Take note that an answer has been written."""
        if is_last:
            self._last_answered.set()


@final
class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for them

    def __init__(self, page: LivePage) -> None:
        self.page = page
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone, or a slow one, is no matter of the run."""


@final
class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 1.0  # a browser opens connections in advance, and sends nothing

    def do_GET(self) -> None:
        # Another site may let its own name lead here; then the browser sends that name.
        port = self.server.server_port
        if self.headers.get("Host") not in {f"127.0.0.1:{port}", f"localhost:{port}"}:
            self._send(421, "text/plain", b"expected the address that sluicegate printed\n")
            return
        found = self.server.page.answer(self.path)
        if found is None:
            self._send(404, "text/plain", b"not found\n")
            return
        kind, body, is_last = found
        self._send(200, kind, body)
        self.server.page.has_answered(is_last=is_last)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002 - as in the base
        """Answer what is no GET."""
        self._send(405 if code == 501 else code, "text/plain", b"only GET is answered\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response_only(status)
        for name, value in [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            *([("Allow", "GET")] if status == 405 else []),
        ]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
