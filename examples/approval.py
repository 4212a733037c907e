"""An expense that waits for its approval for as long as that takes, whatever happens to its processes.

    python examples/approval.py ask 17 480        # asks, and waits; stop it, kill it, start it again
    python examples/approval.py answer 17 yes     # in any process, now or in a week
    python examples/approval.py ask 17 480        # goes on where it was, and pays once

The run is kept in `approvals.db`. After a week without an answer the expense is refused.
"""

import argparse
from functools import partial

import anyio
import anyio.lowlevel

from sluicegate import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowTimeoutError,
    step,
)
from sluicegate.durable import open_run_store


WEEK = 7 * 24 * 3600.0


class Expense(StartEvent):
    number: str
    amount: int


class Approve(InputRequiredEvent):
    text: str


class Approved(HumanResponseEvent):
    is_approved: bool


class Approval(Workflow[str]):
    """Asks a person, and pays where the answer is yes."""

    @step
    async def decide(self, ctx: Context, ev: Expense) -> StopEvent:
        question = Approve(text=f"expense {ev.number}: pay {ev.amount}?")
        try:
            answer = await ctx.wait_for_event(Approved, question, timeout=WEEK)
        except WorkflowTimeoutError:
            return StopEvent(result="refused: nobody has answered for a week")
        if not answer.is_approved:
            return StopEvent(result="refused")
        receipt = await ctx.once("pay", pay, ev.amount, ctx.delivery_key)
        return StopEvent(result=f"paid: {receipt}")


async def pay(amount: int, key: str) -> str:
    """Stand in for a bank, which would drop a second request with the same key."""
    print(f"paying {amount}", flush=True)
    await anyio.lowlevel.checkpoint()
    return f"receipt for {key}"


async def ask(store: str, number: str, amount: int) -> None:
    """Run the expense to its end; a second call goes on with the first."""
    workflow = Approval()
    async with (
        open_run_store(store, release_idle=0) as runs,
        runs.run(workflow.run(number=number, amount=amount), run_id=f"expense-{number}") as handler,
    ):
        async for event in handler.stream_events():
            if isinstance(event, Approve):
                print(event.text, flush=True)
        print(await handler, flush=True)


async def answer(store: str, number: str, says: str) -> None:
    """Answer the question, whether or not a process waits for it."""
    workflow = Approval()
    async with open_run_store(store, workflows=[workflow]) as runs:
        await runs.send_event(f"expense-{number}", Approved(is_approved=says == "yes"), id="answer")
    print("answered", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--store", default="sqlite:///approvals.db")
    actions = parser.add_subparsers(dest="action", required=True)
    asks = actions.add_parser("ask")
    asks.add_argument("number")
    asks.add_argument("amount", type=int)
    answers = actions.add_parser("answer")
    answers.add_argument("number")
    answers.add_argument("says", choices=["yes", "no"])
    options = parser.parse_args()
    if options.action == "ask":
        work = partial(ask, options.store, options.number, options.amount)
    else:
        work = partial(answer, options.store, options.number, options.says)
    anyio.run(work, backend=options.backend)


if __name__ == "__main__":
    main()
