"""A client of a workflow server: it starts a run, watches it, answers its question, and leaves another one.

    python examples/client.py        # needs pip install "sluicegate[serve,client]"

The program plays both sides. With a server of your own it is `Client("http://host:8000")`.
"""

from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    step,
)
from sluicegate.client import Client
from sluicegate.serve import asgi_app


class Claim(StartEvent):
    purpose: str
    amount: int


class Checked(Event):
    receipt: int


class Approval(InputRequiredEvent):
    text: str


class Verdict(HumanResponseEvent):
    approved: bool
    by: str


class Expenses(Workflow[str]):
    @step
    async def check(self, ctx: Context, ev: Claim) -> StopEvent:
        for receipt in (1, 2):
            await ctx.stream.send(Checked(receipt=receipt))
        question = Approval(text=f"{ev.amount} for {ev.purpose}?")
        verdict = await ctx.wait_for_event(Verdict, question)
        return StopEvent(result=f"{'paid' if verdict.approved else 'refused'} by {verdict.by}")


async def use(url: str) -> None:
    known = {"workflows": {"expenses": Expenses}, "events": [Checked, Approval]}
    async with Client(url, **known) as client:
        # This block owns the run: left by an exception, it would cancel it.
        async with client.run(Expenses, purpose="chairs", amount=300) as handler:
            async for event in handler.stream_events():
                print(event)
                if isinstance(event, Approval):
                    [question] = await handler.questions()
                    await handler.send_event(Verdict(approved=True, by="Ada"), question=question.id)
            print(await handler)

        # The server owns this one; another client could attach to it by its id.
        handler = await client.submit(Expenses, purpose="a yacht", amount=9_000_000)
        async with handler.stream_events() as stream:
            print(await stream.receive(), "at", stream.cursor)
        await client.attach(handler.run_id).cancel("no")
        try:
            await handler
        except WorkflowCancelledError as error:
            print("cancelled:", error.reason)


async def main() -> None:
    config = Config()
    config.bind, config.errorlog = ["127.0.0.1:0"], None
    app = asgi_app({"expenses": Expenses()}, shutdown_grace=0)
    async with trio.open_nursery() as nursery:
        [url] = await nursery.start(partial(serve, app, config))
        await use(url)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
