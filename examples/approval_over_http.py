"""Human in the loop over HTTP: a server runs the workflows, and a browser answers.

    python examples/approval_over_http.py        # needs pip install "sluicegate[serve]"

The server owns the runs, so a client that disconnects does not affect its run, and can come back. The
program plays both sides. `hypercorn --worker-class trio examples.approval_over_http:app` is the server alone.
"""

import json
from functools import partial
from http.client import HTTPConnection

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

import sluicegate
from sluicegate import (
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate.serve import asgi_app


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


app = asgi_app({"expenses": Expenses(timeout=60, timeout_excludes_waiting=True)})


def call(port: int, request: str, body: object = None, *, after: int = 0, until: str = "") -> str:
    """Act as the client: send a request and print the response, up to the line ``until``."""
    print(request, body or "")
    connection, line = HTTPConnection("127.0.0.1", port, timeout=20), ""
    headers = {"content-type": "application/json", "last-event-id": str(after)}
    connection.request(*request.split(), None if body is None else json.dumps(body), headers)
    for line in map(bytes.decode, connection.getresponse()):
        print("   ", line.strip())
        if until and line.startswith(until):
            break
    connection.close()  # disconnects if the response has not ended
    return line


def play_client(port: int) -> None:
    claim = {"start_event": {"purpose": "a lock", "amount": 1200}}
    run = json.loads(call(port, "POST /workflows/expenses/run-nowait", claim))["handler_id"]
    call(port, f"GET /events/{run}", until="data")

    def answer(approved: object, by: str) -> None:
        verdict = {"type": "Verdict", "value": {"approved": approved, "by": by}}
        call(port, f"POST /events/{run}", {"event": verdict})

    answer("perhaps", "ann")
    answer(True, "ann")
    call(port, f"GET /events/{run}", after=1)
    answer(False, "bob")


async def main() -> None:
    config = Config.from_mapping(bind="127.0.0.1:0", errorlog=None)
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(partial(serve, app, config, mode="asgi"))
        await trio.to_thread.run_sync(play_client, int(url.rpartition(":")[2]))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
