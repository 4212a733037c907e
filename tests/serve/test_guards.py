"""What a server refuses: a clear 4xx with the fix, before anything is held."""

from __future__ import annotations

import hmac

import anyio
import pytest

from sluicegate.serve import asgi_app, bearer_token
from tests.helpers import on_each_backend, run_virtually
from tests.serve.driver import client_of
from tests.serve.flows import Essay, Waiting


anyio_test = pytest.mark.anyio
TOPIC = {"start_event": {"topic": "a"}}


def app_of(**options):
    return asgi_app({"essay": Essay(), "waiting": Waiting()}, **options)


# -- bodies ----------------------------------------------------------------------------------------


@anyio_test
@pytest.mark.parametrize(
    ("body", "field", "told"),
    [
        (b"{", None, "not JSON"),
        (b"\xff", None, "not JSON"),
        (b"[]", None, "no JSON object"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None, "JSON"),
        (b'{"start_event": {}}', "start_event.topic", "topic"),
        (b'{"start_event": {"topic": 5}}', "start_event.topic", "Topic.topic is 5"),
        (b'{"start_event": {"topic": "a", "x": 1}}', "start_event.x", "x"),
        (b'{"start_event": 3}', "start_event", "an object with the fields"),
        (b'{"start_event": {"type": "Other", "value": {}}}', "start_event.type", "StartEvent"),
        (b'{"start_event": {"type": "Topic", "value": 1}}', "start_event.value", "an object"),
        (b'{"start": {"topic": "a"}}', "start", "start_event, handler_id"),
        (b'{"kwargs": {"topic": "a"}, "handler_id": "a/b"}', "handler_id", "letters"),
        (b'{"kwargs": {"topic": "a"}, "handler_id": 3}', "handler_id", "a text"),
        (b'{"kwargs": {"topic": "a"}, "context": {"a": 1}}', "context", "start event"),
    ],
)
async def test_body_that_does_not_fit_is_refused_with_the_field(body, field, told):
    """400, the path of the field, and what was expected."""
    async with client_of(app_of()) as client:
        for path in ("/workflows/essay/run", "/workflows/essay/run-nowait"):
            response = await client.post(path, body=body)
            assert response.status == 400, response.text
            assert told in response.json["detail"]
            assert response.json.get("field") == field
        assert (await client.get("/handlers")).json["handlers"] == []


@anyio_test
async def test_open_fields_are_taken_as_another_client_writes_them():
    """A member ``_data`` has the fields of an event that declares none of that name."""
    async with client_of(app_of()) as client:
        body = {"start_event": {"_data": {"topic": "a"}}}
        response = await client.post("/workflows/essay/run", body)
        assert response.json["result"]["value"] == {"result": "A"}


@anyio_test
async def test_body_is_json_by_its_type():
    """A form of another site's page is no JSON, and so is refused; and so is a compressed body."""
    async with client_of(app_of()) as client:
        for headers in (
            {"content-type": "text/plain"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-encoding": "gzip"},
        ):
            response = await client.post("/workflows/essay/run", TOPIC, headers=headers)
            assert response.status == 415
            assert "expected" in response.json["detail"]
        charset = {"content-type": "Application/JSON; charset=utf-8"}
        assert (await client.post("/workflows/essay/run", TOPIC, headers=charset)).status == 200


@anyio_test
async def test_large_body_is_refused_by_its_length_and_by_its_size():
    """By the declared length nothing is read; without one, reading stops at the limit."""
    async with client_of(app_of(max_body=100)) as client:
        declared = client.open(
            "POST", "/workflows/essay/run", body=b"{}", headers={"content-length": "100000000"}
        )
        await declared.ended.wait()
        assert (declared.response.status, len(declared._messages)) == (413, 1)
        chunked = client.open("POST", "/workflows/essay/run", parts=[b" " * 60] * 50, body=b"")
        await chunked.ended.wait()
        assert (chunked.response.status, len(chunked._messages)) == (413, 48)
        assert chunked.response.headers["connection"] == "close"


@on_each_backend
def test_slow_body_is_given_up(backend):
    """A client that sends a byte and waits gets a 408 after ten seconds."""

    async def main():
        async with client_of(app_of()) as client:
            began = anyio.current_time()
            slow = client.open("POST", "/workflows/essay/run", parts=[b"{", b"}"], body=b"")
            slow._messages.pop()
            await slow.ended.wait()
            assert slow.response.status == 408
            assert anyio.current_time() - began == pytest.approx(10)

    run_virtually(backend, main)


@anyio_test
async def test_client_that_leaves_before_its_body_is_complete_gets_no_answer():
    """Nothing was started, and nothing is left."""
    async with client_of(app_of()) as client:
        slow = client.open("POST", "/workflows/essay/run", parts=[b"{", b"}"], body=b"")
        slow._messages.pop()
        await anyio.lowlevel.checkpoint()
        slow.hang_up()
        await slow.ended.wait()
        assert (slow.error, slow.response.status) == (None, 0)


# -- paths, methods, parameters ------------------------------------------------------------------------


@anyio_test
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET /nothing", 404),
        ("GET /workflows/none/schema", 404),
        ("POST /workflows/none/run", 404),
        ("GET /handlers/none", 404),
        ("GET /events/none", 404),
        ("POST /handlers/none/cancel", 404),
        ("DELETE /workflows", 405),
        ("PUT /events/none", 405),
        ("OPTIONS /events/none", 204),
        ("GET /workflows/essay/run", 405),
        ("POST /workflows/essay/run?on_disconnect=maybe", 400),
        ("POST /workflows/essay/run?format=xml", 400),
        ("GET /workflows/essay/representation?format=png", 400),
        ("GET /handlers?status=done", 400),
        ("GET /handlers?limit=many", 400),
        ("POST /handlers/none/fork?at=x", 400),
    ],
)
async def test_path_method_or_parameter_that_is_wrong(request_, status):
    """404, 405 with the methods that there are, or 400 with the parameter."""
    async with client_of(app_of()) as client:
        method, path = request_.split()
        response = await client.call(method, path)
        assert response.status == status, response.text
        if status in (405, 204):
            assert response.headers["allow"]
        if status != 204:
            assert response.json["detail"]
        if status == 400:
            assert response.json["field"].startswith("query.")


# -- who asks ------------------------------------------------------------------------------------------


@anyio_test
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
async def test_host_must_be_the_server_s(host, status):
    """A page of another site whose name leads here is refused."""
    async with client_of(app_of()) as client:
        response = await client.get("/workflows", headers={"host": host})
        assert response.status == status
    async with client_of(app_of(allowed_hosts=["*"])) as client:
        assert (await client.get("/workflows", headers={"host": host})).status == 200


@anyio_test
async def test_page_of_another_origin_may_not_post():
    """It may with ``cors_origins``, and read the answers; a page of the server itself may always."""
    here, app, evil = "http://localhost", "https://app.example", "https://evil.example"
    async with client_of(app_of()) as client:

        async def post(origin):
            return await client.post("/workflows/essay/run", TOPIC, headers={"origin": origin})

        assert (await post(here)).status == 200
        assert (await post(evil)).status == 403
        assert (await post("null")).status == 403
        response = await client.get("/workflows", headers={"origin": evil})
        assert "access-control-allow-origin" not in response.headers
    async with client_of(app_of(cors_origins=[app])) as client:
        response = await client.post("/workflows/essay/run", TOPIC, headers={"origin": app})
        assert (response.status, response.headers["access-control-allow-origin"]) == (200, app)
        assert (
            await client.post("/workflows/essay/run", TOPIC, headers={"origin": evil})
        ).status == 403
        asked = await client.call("OPTIONS", "/workflows/essay/run", headers={"origin": app})
        assert "idempotency-key" in asked.headers["access-control-allow-headers"]
    with pytest.raises(ValueError, match="an origin"):
        app_of(cors_origins=["app.example"])


@anyio_test
async def test_bearer_token_is_required_but_for_health():
    """401 with the scheme, whatever is wrong; several tokens are possible."""
    async with client_of(app_of(authenticate=bearer_token("secret", "next"))) as client:
        for wrong in (
            None,
            "Bearer wrong",
            "Bearer ",
            "Basic secret",
            "secret",
            "Bearer s\xe9cret",
        ):
            headers = {} if wrong is None else {"authorization": wrong}
            response = await client.get("/workflows", headers=headers)
            assert response.status == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "secret" not in response.text
        for right in ("Bearer secret", "bearer  next"):
            headers = {"authorization": right}
            assert (await client.get("/workflows", headers=headers)).status == 200
        assert (await client.get("/health")).status == 200
        assert (await client.post("/workflows/essay/run", {})).status == 401
    for bad in ((), ("",), ("a\nb",)):
        with pytest.raises(ValueError, match="at least one token"):
            bearer_token(*bad)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    """Every token is compared, by ``hmac.compare_digest``, also after a match."""
    seen = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append(b) or a == b)

    class Request:
        headers = {"authorization": "Bearer one"}

    assert bearer_token("one", "two")(Request())
    assert seen == [b"one", b"two"]


@anyio_test
async def test_authenticate_may_be_async_and_sees_the_request():
    """It gets the headers, the path and the client."""
    seen = []

    async def authenticate(request):
        await anyio.lowlevel.checkpoint()
        seen.append((request.url.path, request.client.host))
        return request.headers.get("x-user") == "ann"

    async with client_of(app_of(authenticate=authenticate)) as client:
        assert (await client.get("/workflows", headers={"x-user": "bob"})).status == 401
        assert (await client.get("/workflows", headers={"x-user": "ann"})).status == 200
    assert seen == [("/workflows", "127.0.0.1")] * 2


@anyio_test
async def test_too_many_headers_are_refused():
    """431, by their number and by their size."""
    async with client_of(app_of()) as client:
        many = {f"x-{n}": "a" for n in range(10_000)}
        assert (await client.get("/workflows", headers=many)).status == 431
        assert (await client.get("/workflows", headers={"x": "a" * 40_000})).status == 431


@anyio_test
async def test_read_only_server_refuses_every_post():
    """It shows what there is, and starts, answers and cancels nothing."""
    async with client_of(app_of(read_only=True)) as client:
        assert (await client.get("/workflows")).status == 200
        for path in ("/workflows/essay/run", "/events/x", "/handlers/x/cancel"):
            response = await client.post(path, {})
            assert (response.status, "read-only" in response.json["detail"]) == (403, True)


# -- how much ------------------------------------------------------------------------------------------


@anyio_test
async def test_runs_under_way_are_bounded():
    """429 with ``Retry-After``, for both kinds of runs, until one has ended."""
    app = app_of(max_runs=2)
    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.post("/workflows/waiting/run-nowait", {})).status == 200
        for path in ("/workflows/essay/run", "/workflows/essay/run-nowait"):
            response = await client.post(path, TOPIC)
            assert (response.status, response.headers["retry-after"]) == (429, "1")
        app.workflows["waiting"].go_on.set()
        for data in (await client.get("/handlers")).json["handlers"]:
            await client.get(f"/events/{data['handler_id']}")
        assert (await client.post("/workflows/essay/run", TOPIC)).status == 200


@anyio_test
async def test_ended_runs_are_kept_by_their_number():
    """The oldest are forgotten, with the keys that started them."""
    async with client_of(app_of(keep_ended=2)) as client:
        ids = []
        for number in range(4):
            headers = {"idempotency-key": f"k{number}"}
            response = await client.post("/workflows/essay/run", TOPIC, headers=headers)
            ids.append(response.json["handler_id"])
        listed = (await client.get("/handlers")).json["handlers"]
        assert [data["handler_id"] for data in listed] == ids[:1:-1]
        assert (await client.get(f"/results/{ids[0]}")).status == 404
        again = await client.post("/workflows/essay/run", TOPIC, headers={"idempotency-key": "k0"})
        assert again.json["handler_id"] not in ids


@on_each_backend
def test_ended_runs_are_kept_for_some_time(backend):
    """After it they are forgotten."""

    async def main():
        async with client_of(app_of(keep_ended_for=60)) as client:
            run_id = (await client.post("/workflows/essay/run", TOPIC)).json["handler_id"]
            await anyio.sleep(59)
            assert (await client.get(f"/results/{run_id}")).status == 200
            await anyio.sleep(2)
            assert (await client.get(f"/results/{run_id}")).status == 404

    run_virtually(backend, main)


@anyio_test
async def test_idempotency_key_starts_a_run_once():
    """The same key and data give the same run, whoever owns it; other data are refused."""
    async with client_of(app_of()) as client:
        headers = {"idempotency-key": "k"}
        first = await client.post("/workflows/essay/run-nowait", TOPIC, headers=headers)
        second = await client.post("/workflows/essay/run-nowait", TOPIC, headers=headers)
        third = await client.post("/workflows/essay/run", TOPIC, headers=headers)
        ids = {each.json["handler_id"] for each in (first, second, third)}
        assert len(ids) == 1
        assert "idempotency-replayed" not in first.headers
        assert second.headers["idempotency-replayed"] == "true"
        other = {"start_event": {"topic": "b"}}
        assert (await client.post("/workflows/essay/run", other, headers=headers)).status == 409
        named = {**TOPIC, "handler_id": "mine"}
        for _ in range(2):
            response = await client.post("/workflows/essay/run", named)
            assert response.json["handler_id"] == "mine"
        assert (
            await client.post("/workflows/essay/run", {**other, "handler_id": "mine"})
        ).status == 409
        long = {"idempotency-key": "k" * 256}
        assert (await client.post("/workflows/essay/run", TOPIC, headers=long)).status == 400


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (lambda: asgi_app({}), TypeError, "workflows by name"),
        (lambda: asgi_app(Essay()), TypeError, "workflows by name"),
        (lambda: asgi_app({"essay": Essay}), TypeError, "Essay()"),
        (lambda: asgi_app({"a/b": Essay()}), ValueError, "as paths need"),
        (lambda: app_of(on_disconnect="stop"), ValueError, "'cancel' or 'continue'"),
        (lambda: app_of(max_runs=0), ValueError, "max_runs"),
        (lambda: app_of(max_body=1.5), ValueError, "max_body"),
        (lambda: app_of(keep_ended=-1), ValueError, "keep_ended"),
        (lambda: app_of(keep_ended_for=float("inf")), ValueError, "keep_ended_for"),
        (lambda: app_of(heartbeat=-1.0), ValueError, "heartbeat"),
        (lambda: app_of(shutdown_grace=float("nan")), ValueError, "shutdown_grace"),
    ],
)
def test_options_are_checked(given, error, told):
    """A wrong option is refused at once, with what was expected."""
    with pytest.raises(error, match="expected") as caught:
        given()
    assert told in str(caught.value)
