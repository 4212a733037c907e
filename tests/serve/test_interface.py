"""The interface of a server: OpenAPI, graphs, states, snapshots, timelines, traces, and as a guest."""

from __future__ import annotations

import jsonschema
import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.routing import Mount

from sluicegate.durable import MemoryStore, open_run_store
from sluicegate.otel import OpenTelemetryObserver
from sluicegate.serve import asgi_app, bearer_token
from tests.serve.driver import client_of
from tests.serve.flows import Asking, Essay, Failing, Waiting


pytestmark = pytest.mark.anyio
TOPIC = {"start_event": {"topic": "a"}}


def app_of(**options):
    return asgi_app({"essay": Essay(), "asking": Asking(), "failing": Failing()}, **options)


def refs_in(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        for each in value.values():
            yield from refs_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from refs_in(each)


async def test_openapi_describes_just_these_workflows():
    """Paths for each of them, with the schema of its start event; every reference leads somewhere."""
    async with client_of(app_of()) as client:
        document = (await client.get("/openapi.json")).json
        assert document["openapi"] == "3.1.0"
        assert "/workflows/essay/run" in document["paths"]
        assert "/workflows/none/run" not in document["paths"]
        assert "/handlers/{handler_id}/fork" not in document["paths"]
        assert "security" not in document
        schemas = document["components"]["schemas"]
        assert schemas["essay.Topic"]["required"] == ["topic"]
        assert schemas["asking.Approval"]["required"] == ["yes"]
        for ref in refs_in(document):
            assert ref.removeprefix("#/components/schemas/") in schemas
        for schema in schemas.values():
            jsonschema.Draft202012Validator.check_schema(schema)
        names = [
            each["operationId"] for item in document["paths"].values() for each in item.values()
        ]
        assert len(names) == len(set(names))


async def test_openapi_shows_options_of_the_server():
    """The token, the store, and that only reading is possible."""
    options = {"authenticate": bearer_token("x"), "read_only": True}
    async with client_of(app_of(**options)) as client:
        headers = {"authorization": "Bearer x"}
        document = (await client.get("/openapi.json", headers=headers)).json
        assert document["security"] == [{"token": []}]
        assert {method for item in document["paths"].values() for method in item} == {"get"}
    runs = open_run_store(MemoryStore().open())
    async with client_of(app_of(run_store=runs)) as client:
        document = (await client.get("/openapi.json")).json
        assert "/handlers/{handler_id}/fork" in document["paths"]


async def test_answers_are_as_openapi_describes_them():
    """The data of handlers, questions and errors fit their schemas."""
    async with client_of(app_of()) as client:
        document = (await client.get("/openapi.json")).json

        def check(name, value):
            schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            jsonschema.validate(value, schema)

        for name, body in (("essay", TOPIC), ("failing", {})):
            response = await client.post(f"/workflows/{name}/run", body)
            check("HandlerData", response.json)
        run = await client.post("/workflows/asking/run-nowait", TOPIC)
        check("HandlerData", run.json)
        stream = client.open("GET", f"/events/{run.json['handler_id']}")
        await stream.response.until("Question")
        for question in (await client.get("/questions")).json["questions"]:
            check("Question", question)
        check("Error", (await client.post("/workflows/essay/run", {})).json)
        await client.post(f"/handlers/{run.json['handler_id']}/cancel?reason=x")
        check("HandlerData", (await client.get(f"/handlers/{run.json['handler_id']}")).json)


async def test_graph_has_steps_events_and_who_is_outside():
    """Nodes and edges as other clients of such servers read them; or as the drawing has them."""
    async with client_of(app_of()) as client:
        graph = (await client.get("/workflows/asking/representation")).json["graph"]
        nodes = {node["id"]: node for node in graph["nodes"]}
        assert {name: node["node_type"] for name, node in nodes.items()} == {
            "ask": "step",
            "Topic": "event",
            "Approval": "event",
            "StopEvent": "event",
            "external_step": "external",
        }
        assert nodes["Topic"]["event_types"] == ["Topic", "StartEvent"]
        assert nodes["StopEvent"]["produced_by"] == ["ask"]
        edges = {(edge["source"], edge["target"]) for edge in graph["edges"]}
        assert edges == {
            ("Topic", "ask"),
            ("Approval", "ask"),
            ("ask", "StopEvent"),
            ("external_step", "Approval"),
        }
        ours = (await client.get("/workflows/asking/representation?format=sluicegate")).json
        assert ours["graph"]["workflow"] == "Asking"


async def test_state_snapshot_and_timeline_of_a_run():
    """They are there during a run and after it; the timeline shows no text of an exception."""
    async with client_of(app_of()) as client:
        run_id = (await client.post("/workflows/asking/run-nowait", TOPIC)).json["handler_id"]
        stream = client.open("GET", f"/events/{run_id}")
        await stream.response.until("Question")
        assert (await client.get(f"/handlers/{run_id}/state")).json == {"state": {}}
        snapshot = (await client.get(f"/handlers/{run_id}/snapshot")).json["snapshot"]
        assert Asking().resume(snapshot).cancel() is not None
        timeline = await client.get(f"/handlers/{run_id}/timeline")
        assert timeline.json["timeline"]["runs"][0]["id"] == run_id
        assert (await client.post(f"/handlers/{run_id}/fork")).status == 409
        assert (await client.get(f"/handlers/{run_id}/snapshot?at=3")).status == 409
        failed = (await client.post("/workflows/failing/run", {})).json["handler_id"]
        shown = await client.get(f"/handlers/{failed}/timeline")
        assert "LookupError" in shown.text
        assert "hunter2" not in shown.text
        assert run_id not in shown.text
    async with client_of(app_of(max_records=0)) as client:
        run_id = (await client.post("/workflows/essay/run", TOPIC)).json["handler_id"]
        assert (await client.get(f"/handlers/{run_id}/timeline")).status == 404


@pytest.mark.parametrize("path", ["run", "run-nowait", "run?format=sse"])
async def test_run_continues_the_trace_of_its_request(path):
    """The span of the run is in the trace of ``traceparent``, and the response names it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = OpenTelemetryObserver(provider)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with client_of(asgi_app({"essay": Essay(observers=[observer])})) as client:
        response = await client.post(f"/workflows/essay/{path}", TOPIC, headers=headers)
        await client.get(f"/events/{response.headers['x-run-id']}")
        (span,) = [s for s in exporter.get_finished_spans() if s.name.startswith("invoke_workflow")]
        assert f"{span.context.trace_id:032x}" == trace
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert response.headers["traceparent"].split("-")[1:3] == [
            trace,
            f"{span.context.span_id:016x}",
        ]
        plain = await client.post("/workflows/essay/run", TOPIC)
        assert plain.headers["traceparent"].split("-")[1] != trace
    provider.shutdown()


async def test_application_is_a_guest_of_another():
    """Mounted under a path, with the lifespan of the parent."""
    app = app_of()
    parent = Starlette(routes=[Mount("/flows", app)], lifespan=app.lifespan)
    async with parent.router.lifespan_context(parent), client_of(parent, lifespan=False) as client:
        response = await client.post("/flows/workflows/essay/run-nowait", TOPIC)
        assert response.status == 200
        read = await client.get(f"/flows/events/{response.json['handler_id']}")
        assert "StopEvent" in read.text
        assert (await client.get("/flows/none")).json["detail"].startswith("there is nothing at")
        assert "run-nowait" in repr(
            msgspec.json.encode((await client.get("/flows/openapi.json")).json)
        )
    assert "no lifespan" not in repr(app)


async def test_repr_tells_the_state():
    """The workflows, whether it is open, its runs and streams."""
    app = asgi_app({"waiting": Waiting()})
    assert repr(app) == "<WorkflowApp of waiting: no lifespan, 0 runs, 0 streams>"
    async with client_of(app) as client:
        response = await client.post("/workflows/waiting/run-nowait", {})
        stream = client.open("GET", f"/events/{response.json['handler_id']}")
        await stream.response.until("begun")
        assert repr(app) == "<WorkflowApp of waiting: open, 1 runs, 1 streams>"
        await app.begin_shutdown(0.0)
    assert repr(app) == "<WorkflowApp of waiting: stopping, 0 runs, 0 streams>"
