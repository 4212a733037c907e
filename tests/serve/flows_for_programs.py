"""Workflows that the tests serve in a program of its own."""

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


class Begin(StartEvent):
    #: A file: what the run has done is noted in it.
    ledger: str = ""
    #: Another one: the run waits until it exists.
    gate: str = ""


class Noted(Event):
    n: int


class Gated(Workflow[str]):
    """Waits for a file, and notes what becomes of it."""

    @step
    async def work(self, ctx: Context, ev: Begin) -> StopEvent:
        ctx.write_event_to_stream(Noted(n=1))
        note(ev.ledger, "began")
        try:
            while not Path(ev.gate).exists():
                await current_backend().sleep(0.01)
            note(ev.ledger, "ended")
        except current_backend().Cancelled:
            note(ev.ledger, "cancelled")
            raise
        finally:
            with current_backend().cancel_scope(shield=True):
                await current_backend().checkpoint()
                note(ev.ledger, "cleaned up")
        return StopEvent(result="through")


class Topic(StartEvent):
    topic: str = "locks"


class Approval(InputRequiredEvent):
    prompt: str


class Approved(HumanResponseEvent):
    yes: bool


class Asking(Workflow[str]):
    """Asks, and ends with the answer."""

    @step
    async def ask(self, ev: Topic) -> Approval:
        return Approval(prompt=f"publish {ev.topic}?")

    @step
    async def decide(self, ev: Approved) -> StopEvent:
        return StopEvent(result="published" if ev.yes else "dropped")


def note(path, text):
    if path:
        with Path(path).open("a") as file:
            file.write(f"{text}\n")
