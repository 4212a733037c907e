"""Workflows whose runs the tests of the command line store."""

from __future__ import annotations

from pathlib import Path

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate._loop import current_backend


class Claim(StartEvent):
    amount: int = 0


class Approval(InputRequiredEvent):
    prompt: str


class Decision(HumanResponseEvent):
    approved: bool
    by: str = "somebody"


class Approve(Workflow[str]):
    """Asks, and ends with the answer."""

    @step
    async def ask(self, ev: Claim) -> Approval:
        return Approval(prompt=f"Pay {ev.amount}?")

    @step
    async def decide(self, ev: Decision) -> StopEvent:
        return StopEvent(result=f"{ev.approved} by {ev.by}")


class Interview(Workflow[str]):
    """Asks twice in the middle of its step."""

    def __init__(self, **options):
        super().__init__(serializable=[Approval], **options)

    @step
    async def ask(self, ev: StartEvent, ctx: Context) -> StopEvent:
        told = [
            await ctx.wait_for_event(HumanResponseEvent, waiter_event=Approval(prompt=prompt))
            for prompt in ("one?", "two?")
        ]
        return StopEvent(result=" ".join(each.response for each in told))


class AskTwo(Workflow[str]):
    """Has two questions open at a time."""

    @step
    async def ask(self, ev: StartEvent) -> list[Approval]:
        return [Approval(prompt="one?"), Approval(prompt="two?")]

    @step
    async def decide(self, ev: HumanResponseEvent, ctx: Context) -> StopEvent | None:
        both = ctx.collect_events(ev, [HumanResponseEvent] * 2)
        return None if both is None else StopEvent(result=" ".join(e.response for e in both))


class Break(Workflow):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        msg = "no\x1b[2J way"
        raise ValueError(msg)


class Files(StartEvent):
    ledger: str
    gate: str


class Made(Event):
    ledger: str
    gate: str


class Gated(Workflow[str]):
    """Two steps that note in a file that they began; the second waits until another file is there."""

    @step
    async def first(self, ev: Files) -> Made:
        note(ev.ledger, "first")
        return Made(ledger=ev.ledger, gate=ev.gate)

    @step
    async def second(self, ev: Made) -> StopEvent:
        note(ev.ledger, "second")
        while not Path(ev.gate).exists():
            await current_backend().sleep(0.02)
        return StopEvent(result="through")


def note(path, text):
    with Path(path).open("a") as file:
        file.write(f"{text}\n")
