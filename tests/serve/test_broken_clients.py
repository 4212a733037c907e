"""Clients that are broken, hostile, or gone at the worst moment: a clear answer, and nothing is left."""

from __future__ import annotations

import json
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.serve import _streams, asgi_app, bearer_token
from tests.serve.driver import Connection, blocks, client_of
from tests.serve.flows import Asking, Essay, Waiting


pytestmark = pytest.mark.anyio

RUN = "/workflows/{}/run"
FORMATS = ["sse", "ndjson", "ag-ui"]


class Echo(Workflow[Any]):
    """Returns what it is given."""

    @step
    async def echo(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Note(value=ev.get("value")))
        return StopEvent(result=ev.get("value"))


class Note(Event):
    value: object


class Mute:
    """An object that cannot be shown."""

    def __repr__(self):
        msg = "hunter2"
        raise ValueError(msg)


def body_for(form, **fields):
    if form == "ag-ui":
        return {"threadId": "t", "runId": "1", "messages": [], "forwardedProps": fields}
    return {"start_event": fields}


def datas(form, text):
    """Return the data in a stream, whatever its format."""
    if form == "ndjson":
        return [json.loads(line) for line in text.splitlines() if line]
    found = []
    for block in text.split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
            else:
                assert line.startswith(("event: ", "id: ", ":")), line
    return found


# -- what is sent ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b'{"value": NaN}', 400),
        (b'{"value": Infinity}', 400),
        (b'{"value": 1e999}', 400),
        (b'{"value": ' + b"9" * 5000 + b"}", 400),
        (b'{"value": "\\ud800"}', 400),
        (b'{"value": "\xff"}', 400),
        (b"\xef\xbb\xbf{}", 400),
        (b'{"value": 1, "value": 2}', 200),  # the last one counts, as in any parser of Python
        (b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"value": "\\u0000"}', 200),
    ],
)
async def test_json_that_is_none_or_odd(raw, status):
    """It is refused, or taken; the server does not fail."""
    async with client_of(asgi_app({"echo": Echo()})) as client:
        response = await client.post(RUN.format("echo"), body=b'{"start_event": ' + raw + b"}")

        assert response.status == status, response.body
        if status == 200:
            assert response.json["result"]["value"]["result"] in (2, "\0")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("depth", [60, 500, 900])
async def test_values_that_are_nested_deeply(form, depth):
    """A run may be given one; it can be streamed, and the lists of the server still work."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    async with client_of(asgi_app({"echo": Echo()})) as client:
        path = f"{RUN.format('echo')}?format={form}"
        response = await client.post(path, body_for(form, value=value))
        if response.status == 200:  # else it was refused, as too deep
            assert len(datas(form, response.text)) >= 2
        else:
            assert response.status == 400
        plain = await client.post(RUN.format("echo"), body_for("sse", value=value))
        assert plain.status in (200, 400)
        assert (await client.get("/handlers")).status == 200


@pytest.mark.parametrize("form", FORMATS)
async def test_events_that_cannot_be_shown(form):
    """Objects without a repr, values that contain themselves: the stream goes on to its end."""
    around: list[Any] = []
    around.append(around)
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    values = [Mute(), [Mute()], {1: {2: Mute()}}, {(1, 2): 3}, float("nan"), b"\xff", around, deep]

    class Showing(Workflow[Any]):
        @step
        async def show(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for value in values:
                ctx.write_event_to_stream(Note(value=value))
            return StopEvent(result=Mute())

    async with client_of(asgi_app({"showing": Showing()})) as client:
        path = f"{RUN.format('showing')}?format={form}"
        response = await client.post(path, body_for(form))

        assert response.status == 200
        assert "hunter2" not in response.text
        shown = [data for data in datas(form, response.text) if "Note" in json.dumps(data)]
        assert len(shown) == len(values)
        assert (await client.get("/handlers")).status == 200


@pytest.mark.parametrize("form", FORMATS)
async def test_names_of_events_inject_nothing(form):
    """A class whose name has line breaks makes no event of its own."""
    hostile = type("A", (Event,), {"__annotations__": {"x": int}})
    hostile.__name__ = "A\r\nevent: B\ndata: {}\n\nid: 9\n"

    class Naming(Workflow[Any]):
        @step
        async def name(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(hostile(x=1))
            return StopEvent()

    async with client_of(asgi_app({"naming": Naming()})) as client:
        path = f"{RUN.format('naming')}?format={form}"
        response = await client.post(path, body_for(form))

        found = datas(form, response.text)
        assert {} not in found
        assert "id: 9\n" not in response.text
        if form == "sse":
            assert len(blocks(response.text)) == 2


# -- ids and headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a\n", "a\r\nx-evil: 1", "a/b", "é", "€", "", "a" * 1001, ".", "a b"]
)
async def test_ids_that_cannot_stand_in_a_path_or_a_header(name):
    """They are refused, with the field."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        given = {"start_event": {"topic": "a"}, "handler_id": name}
        response = await client.post(RUN.format("essay"), given)

        assert (response.status, response.json["field"]) == (400, "handler_id")
        assert (await client.get("/handlers")).json["handlers"] == []


@pytest.mark.parametrize("name", ["a\nb", "é€", "a" * 5000, "%", "..", "\0"])
async def test_ids_of_no_run(name):
    """They are a 404 in every route."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        for method, path in (
            ("GET", f"/events/{name}"),
            ("GET", f"/handlers/{name}"),
            ("GET", f"/results/{name}"),
            ("GET", f"/handlers/{name}/questions"),
            ("POST", f"/handlers/{name}/cancel"),
        ):
            assert (await client.call(method, path)).status == 404
        posted = await client.post(f"/events/{name}", {"event": {"type": "X", "value": {}}})
        assert posted.status == 404


@pytest.mark.parametrize(
    "after", ["-2", "x", "1.5", "\u0663", "9" * 39, "9" * 40, "", "1\n", "0x1", "+1", " 1"]
)
async def test_cursors_that_are_none(after):
    """They are a 400, as a parameter and as a header."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        given = {"start_event": {"topic": "a"}, "handler_id": "r"}
        await client.post("/workflows/essay/run-nowait", given)
        quoted = after.encode().hex()
        query = "".join(f"%{quoted[n : n + 2]}" for n in range(0, len(quoted), 2))
        response = await client.get(f"/events/r?after_sequence={query}")

        assert response.status == 400
        if after.isascii() and after:
            header = await client.get("/events/r", headers={"last-event-id": after})
            assert header.status == 400


@pytest.mark.parametrize("name", ["include_internal", "include_qualified_name", "format", "sse"])
async def test_parameters_that_are_none(name):
    """They are a 400 before anything is started, or read."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        body = {"start_event": {"topic": "a"}, "handler_id": "r"}
        response = await client.post(f"{RUN.format('essay')}?{name}=perhaps", body)
        assert (response.status, response.json["field"]) == (400, f"query.{name}")
        assert (await client.get("/handlers")).json["handlers"] == []

        await client.post(RUN.format("essay"), body)
        assert (await client.get(f"/events/r?after_sequence=now&{name}=perhaps")).status == 400


async def test_head_is_get_without_a_body():
    """For health checks; of a stream it is the head alone, and it starts and cancels nothing."""
    waiting = Waiting()
    async with client_of(asgi_app({"waiting": waiting})) as client:
        await client.post("/workflows/waiting/run-nowait", {"handler_id": "r"})
        await waiting.began.wait()
        for path in ("/health", "/workflows", "/handlers/r", "/events/r"):
            got = await client.call("HEAD", path)
            assert (got.status, got.body) == (200, b""), path
        assert (await client.call("HEAD", "/nothing")).status == 404
        assert (await client.call("HEAD", RUN.format("waiting"))).status == 405
        assert len((await client.get("/handlers")).json["handlers"]) == 1
        waiting.go_on.set()


@pytest.mark.parametrize(
    ("root", "path", "status"),
    [
        ("/flows", "/flows/health", 200),
        ("/flows", "/health", 200),
        ("/flows/", "/flows/health", 200),
        ("/a/b", "/a/b/health", 200),
        ("/flows", "/flowsy/health", 404),
        ("/flows", "/flows/flows/health", 404),
        ("", "//health", 404),
        ("", "/workflows/../health", 404),
    ],
)
async def test_paths_below_a_prefix(root, path, status):
    """A server may leave the prefix on the path, or not; nothing else is cut off."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        assert (await client.get(path, root_path=root)).status == status


async def test_preflights():
    """An allowed origin gets its headers without a token, also those of an error; no other does."""
    app = asgi_app(
        {"essay": Essay()},
        cors_origins=["https://app.example"],
        authenticate=bearer_token("secret"),
    )
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x"}
    async with client_of(app) as client:
        for origin, is_allowed in (
            ("https://app.example", True),
            ("https://evil.example", False),
            ("https://app.example.evil.example", False),
            ("null", False),
        ):
            headers = {"origin": origin, **asks}
            found = await client.call("OPTIONS", RUN.format("essay"), headers=headers)
            assert ("access-control-allow-origin" in found.headers) is is_allowed
            got = await client.get("/workflows", headers={"origin": origin})
            assert got.status == 401
            assert (got.headers.get("access-control-allow-origin") == origin) is is_allowed
            assert "origin" in got.headers["vary"].lower()


# -- at the worst moment -------------------------------------------------------------------------------


class Cut(Connection):
    """A connection whose task is cancelled at a call of the server's functions."""

    def __init__(self, body, at, scope):
        super().__init__(body, None)
        self.left = at
        self.scope = scope

    async def _count(self):
        self.left -= 1
        if not self.left:
            self.scope.cancel()
            await anyio.lowlevel.checkpoint()

    async def receive(self):
        await self._count()
        return await super().receive()

    async def send(self, message):
        await self._count()
        await super().send(message)


@pytest.mark.parametrize("form", [*FORMATS, None])
async def test_a_request_that_is_cancelled_anywhere(form):
    """Whenever the server gives a request up, its run is cancelled, and the server forgets the stream."""
    waiting = Waiting()
    query = "" if form is None else f"?format={form}"
    async with client_of(asgi_app({"waiting": waiting})) as client:
        app = client.app
        for at in range(1, 30):
            data = json.dumps(body_for(form, flood=3, size=1)).encode()
            with anyio.CancelScope() as scope:
                cut = Cut(data, at, scope)
                headers = {"content-type": "application/json"}
                given = client._scope("POST", RUN.format("waiting") + query, headers, {})
                await app(given, cut.receive, cut.send)
            while app._runs.active:  # a run of the server unwinds on its own
                await anyio.lowlevel.checkpoint()
            assert app._streams == {}
            if cut.left > 0:
                break
        assert cut.left > 0, "the sweep did not come to the end"
        assert at > 3


@pytest.mark.parametrize("form", FORMATS)
async def test_an_encoder_that_raises(form, monkeypatch, caplog):
    """The response breaks off, the run is cancelled, the log says why, and the server goes on."""
    waiting = Waiting()

    def fail(*_):
        msg = "the encoder is broken"
        raise LookupError(msg)

    async with client_of(asgi_app({"waiting": waiting})) as client:
        with monkeypatch.context() as patch:
            patch.setattr(_streams.SseEncoder, "event", fail)
            patch.setattr(_streams.NdjsonEncoder, "event", fail)
            patch.setattr("sluicegate.serve._ag_ui_exchange.ExchangeEncoder.event", fail)
            path = f"{RUN.format('waiting')}?format={form}"
            connection = client.open("POST", path, body_for(form))
            await connection.ended.wait()
        await waiting.over.wait()
        while client.app._runs.active:
            await anyio.lowlevel.checkpoint()

        assert isinstance(connection.error, LookupError)
        assert not connection.response.is_complete
        assert waiting.seen == ["cancelled", "cleaned up"]
        assert "the encoder is broken" in caplog.text
        assert (await client.get("/health")).status == 200


@pytest.mark.parametrize("form", FORMATS)
async def test_a_client_that_stops_reading_and_then_leaves(form):
    """A flood does not wait for it, and when it leaves, its run is cancelled and nothing waits for it."""
    waiting = Waiting()
    async with client_of(asgi_app({"waiting": waiting})) as client:
        path = f"{RUN.format('waiting')}?format={form}"
        connection = client.open("POST", path, body_for(form, flood=10**9, size=1))
        await connection.response.until("begun")
        connection.stall()
        before = waiting.sent
        while waiting.sent < before + 3000:
            await anyio.lowlevel.checkpoint()
        connection.hang_up()
        await connection.ended.wait()
        await waiting.over.wait()

        assert waiting.seen == ["cancelled", "cleaned up"]
        assert client.app._streams == {}


async def test_a_body_that_stops_in_the_middle():
    """A client that leaves while it sends its body has started nothing."""
    async with client_of(asgi_app({"asking": Asking()})) as client:
        connection = client.open("POST", RUN.format("asking"), parts=[b'{"start', b""])
        connection._messages[1]["more_body"] = True
        connection.hang_up()
        await connection.ended.wait()

        assert (connection.error, connection.response.status) == (None, 0)
        assert (await client.get("/handlers")).json["handlers"] == []
