"""Human in the loop over HTTP: a server runs the workflows, and a browser answers.

    python examples/approval_over_http.py        # needs pip install "sluicegate[local]"

POST /runs starts a run in the server's nursery, GET /runs/{id}/events streams its events, POST
/runs/{id}/answer answers. A client that disconnects does not affect the run. The program plays both
sides.
"""

import json
from functools import partial
from http.client import HTTPConnection
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

import sluicegate
from sluicegate import (
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    decode_event,
    step,
)


class Claim(StartEvent):
    purpose: str
    amount: int


class Verdict(HumanResponseEvent):
    approved: bool
    by: str


class Expenses(Workflow[str]):
    @step
    async def ask(self, ctx: sluicegate.Context, ev: Claim) -> StopEvent:
        question = InputRequiredEvent(text=f"{ev.amount} for {ev.purpose}?")
        verdict = await ctx.wait_for_event(Verdict, question)
        return StopEvent(result=f"{'paid' if verdict.approved else 'refused'} by {verdict.by}")


class ServerSentEvents(StreamingResponse):
    """Streams the events of a reader. The reader is closed with the response; the run continues."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Any) -> None:
        with self.body_iterator as reader:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in reader:
                data = json.dumps(event.to_dict(), default=repr)
                text = f"id: {reader.cursor}\nevent: {type(event).__name__}\ndata: {data}\n\n"
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body"})


def make_app(nursery: trio.Nursery) -> Starlette:
    runs: dict[str, sluicegate.WorkflowHandler[str]] = {}
    workflow = Expenses(timeout=60, timeout_excludes_waiting=True)

    async def start(request: Request) -> JSONResponse:
        handler = workflow.run(start_event=decode_event(Claim, await request.json()))
        # A failure stays with the handler and ends its stream; it must not end the server.
        runs[handler.run_id] = handler.start_soon(nursery, keep_failure=True)
        return JSONResponse({"run_id": handler.run_id}, 201)

    async def events(request: Request) -> ServerSentEvents:
        after = request.headers.get("last-event-id", "0")
        # A tab that stays open but stops reading must not hold up the run.
        handler = runs[request.path_params["id"]]
        return ServerSentEvents(handler.stream_events(after=after, lossy=True))

    async def answer(request: Request) -> JSONResponse:
        runs[request.path_params["id"]].send_event(decode_event(Verdict, await request.json()))
        return JSONResponse({"status": "taken"}, 202)

    async def refuse(status: int, _: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status)

    refusals = {
        KeyError: 404,
        ValueError: 422,
        TypeError: 422,
        sluicegate.WorkflowRuntimeError: 409,
    }
    app = Starlette(exception_handlers={k: partial(refuse, v) for k, v in refusals.items()})
    app.router.add_route("/runs", start, methods=["POST"])
    app.router.add_route("/runs/{id}/events", events)
    app.router.add_route("/runs/{id}/answer", answer, methods=["POST"])
    return app


def call(port: int, request: str, body: object = None, *, after: int = 0, until: str = "") -> str:
    """Act as the client: send a request and print the response, up to the line ``until``."""
    print(request, body or "")
    connection, line = HTTPConnection("127.0.0.1", port, timeout=20), ""
    connection.request(*request.split(), json.dumps(body), {"last-event-id": str(after)})
    for line in map(bytes.decode, connection.getresponse()):
        print("   ", line.strip())
        if until and line.startswith(until):
            break
    connection.close()  # disconnects if the response has not ended
    return line


def play_client(port: int) -> None:
    run = json.loads(call(port, "POST /runs", {"purpose": "a lock", "amount": 1200}))["run_id"]
    call(port, f"GET /runs/{run}/events", until="data")
    call(port, f"POST /runs/{run}/answer", {"approved": "perhaps", "by": "ann"})
    call(port, f"POST /runs/{run}/answer", {"approved": True, "by": "ann"})
    call(port, f"GET /runs/{run}/events", after=1)
    call(port, f"POST /runs/{run}/answer", {"approved": False, "by": "bob"})


async def main() -> None:
    config = Config.from_mapping(bind="127.0.0.1:0", errorlog=None)
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(partial(serve, make_app(nursery), config, mode="asgi"))
        await trio.to_thread.run_sync(play_client, int(url.rpartition(":")[2]))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
