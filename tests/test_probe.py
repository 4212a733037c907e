"""The probe hears everything that a run does, in order; an event that it holds back goes nowhere."""

import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate._engine.probe import Probe
from sluicegate._handler import run_of


class Part(Event):
    pass


class Note(Event):
    pass


class Child(Workflow[str]):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="child")


class Parent(Workflow[str]):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Part | StopEvent:
        branch = ctx.send_event(Part())
        await branch.wait()
        await ctx.run_child(Child())
        ctx.write_event_to_stream(Note())
        reply = await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
        return StopEvent(result=reply.text)

    @step(retry=Retry(stop=2, wait=0))
    async def part(self, ctx: Context, ev: Part) -> None:
        if not ctx.retry_info().retry_number:
            raise OSError


class Listener(Probe):
    def __init__(self, handler):
        self.handler = handler
        self.heard = []
        self.delivers = True

    def run_began(self):
        self.heard.append("run began")

    def run_ended(self):
        self.heard.append("run ended")

    def published(self, event):
        self.heard.append(f"published {type(event).__name__}")
        if isinstance(event, InputRequiredEvent):
            self.handler.send_event(HumanResponseEvent(text="yes"))

    def sent(self, context, event, target):
        self.heard.append(f"sent {type(event).__name__}")
        return self.delivers

    def received(self, event, target):
        self.heard.append(f"received {type(event).__name__}")

    def invocation_began(self, number, step, event, attempt):
        self.heard.append(f"{number} began: {step.name}({type(event).__name__}), attempt {attempt}")

    def invocation_ended(self, number, result, error):
        self.heard.append(f"{number} ended: {type(error or result).__name__}")

    def wait_began(self, context, kind):
        self.heard.append(f"wait began: {'branch' if kind is None else kind.__name__}")

    def wait_ended(self, context, kind):
        self.heard.append(f"wait ended: {'branch' if kind is None else kind.__name__}")

    def child_began(self, context, child):
        self.heard.append(f"child began: {child.graph.name}")

    def child_ended(self, context, child):
        self.heard.append(f"child ended: {child.graph.name}")


def listened(workflow):
    handler = workflow.run()
    run_of(handler).probe = probe = Listener(handler)
    return handler, probe


@pytest.mark.anyio
async def test_a_probe_hears_everything_in_order():
    """Each call has its cause: what was sent, attempted, waited for and received."""
    handler, probe = listened(Parent())
    assert await handler == "yes"
    assert probe.heard == [
        "run began",
        "1 began: begin(StartEvent), attempt 1",
        "sent Part",
        "wait began: branch",
        "2 began: part(Part), attempt 1",
        "2 ended: OSError",
        "3 began: part(Part), attempt 2",
        "3 ended: NoneType",
        "wait ended: branch",
        "child began: Child",
        "child ended: Child",
        "published Note",
        "wait began: HumanResponseEvent",
        "published InputRequiredEvent",
        "received HumanResponseEvent",
        "wait ended: HumanResponseEvent",
        "1 ended: StopEvent",
        "run ended",
    ]


@pytest.mark.anyio
async def test_a_probe_can_hold_back_what_a_step_sends():
    """The branch of an event that is not delivered is over at once."""
    handler, probe = listened(Parent())
    probe.delivers = False
    assert await handler == "yes"
    assert not [line for line in probe.heard if "part(" in line]
