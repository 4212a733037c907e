"""Where the events of a run go, and what is refused on the way (P13)."""

from __future__ import annotations

from typing import Any

import pytest

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, WorkflowRuntimeError, step
from tests.helpers import Item, Line, Mine, Single, Stuck


async def _fails(ctx):
    raise Mine


class Unheard(Event):
    pass


class Undeclared(Workflow):
    def __init__(self, act, **options):
        super().__init__(**options)
        self.act = act
        self.after: list[Any] = []

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | list[Item] | StopEvent:
        return self.act(self, ctx)

    @step
    async def end(self, ev: Item) -> StopEvent | Unheard:
        return StopEvent()

    @step
    async def other(self, ev: Unheard) -> StopEvent:
        self.after.append("the wrong event was delivered")
        return StopEvent()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("act", "named"),
    [
        (lambda self, ctx: Unheard(), "Unheard"),
        (lambda self, ctx: [Item(number=1), Unheard()], "list of Unheard"),
        (lambda self, ctx: None, "None"),
        (lambda self, ctx: "text", "str"),
        (lambda self, ctx: ctx.send_event(Unheard()), "Unheard"),
        (lambda self, ctx: ctx.send_event(StopEvent()), "StopEvent"),
        (lambda self, ctx: ctx.send_event(Item(number=1), step="nowhere"), "nowhere"),
        (lambda self, ctx: ctx.send_event(Item(number=1), step="other"), "other"),
    ],
)
async def test_undeclared_event_is_refused_where_it_comes_from(act, named):
    """P13: at the ``return`` or at ``send_event``; nothing of it is delivered."""
    workflow = Undeclared(act)
    with pytest.raises(WorkflowRuntimeError) as caught:
        await workflow.run()

    text = str(caught.value)
    assert named in text
    assert "expected" in text
    assert "Undeclared" in text
    assert workflow.after == []


@pytest.mark.anyio
async def test_send_event_raises_at_the_call():
    """P13: the step that sends the wrong event gets the error right there."""
    raised = []

    class Sends(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            try:
                ctx.send_event(Unheard())
            except WorkflowRuntimeError as error:
                raised.append(str(error))
            return Item(number=1)

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent(result="went on")

    assert await Sends().run() == "went on"
    assert "Unheard" in raised[0]
    assert "begin" in raised[0]


def test_wrong_start_event_is_refused_at_run():
    """P13: ``run()`` itself raises, without an event loop, and says what to write."""

    class Begin(StartEvent):
        topic: str

    class Strict(Workflow):
        @step
        async def begin(self, ev: Begin) -> StopEvent:
            return StopEvent()

    workflow = Strict()
    for call, named in (
        (lambda: workflow.run(start_event=StartEvent()), "Begin"),
        (lambda: workflow.run(start_event=Begin(topic="x"), topic="y"), "topic"),
        (lambda: workflow.run(), "topic"),
        (lambda: workflow.run(topc="x"), "topic"),
        (lambda: workflow.run(start_event=Item(number=1)), "Begin"),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert named in str(caught.value)
        assert "expected" in str(caught.value)


def test_run_is_not_started_by_accident():
    """P13: using an unstarted run says how to start one."""
    handler = Single(_fails).run()
    for use in (handler.stream_events, lambda: handler.send_event(Item(number=1))):
        with pytest.raises(WorkflowRuntimeError, match="async with"):
            use()
    handler.cancel()


@pytest.mark.anyio
@pytest.mark.peer("edge 22")
async def test_event_that_no_step_takes_is_an_error_where_it_is_sent():
    """P13: sending an event that no one takes raises in the step that sends it."""

    class Loose(Workflow):
        @step
        async def send(self, ctx: Context, ev: StartEvent) -> Line | StopEvent:
            ctx.send_event(Line(text="lost"))
            return StopEvent()

    with pytest.raises(WorkflowRuntimeError, match=r"Loose\.send .* Line, which no step takes"):
        await Loose(skip_graph_checks=["terminal_event"]).run()


@pytest.mark.anyio
@pytest.mark.peer("edge 22")
async def test_event_from_outside_that_no_step_takes_is_an_error():
    """P13: so does sending it from outside, which leaves the run alone."""
    workflow = Stuck()
    async with workflow.run() as handler:
        await workflow.in_step.wait()
        with pytest.raises(WorkflowRuntimeError, match="no step of Stuck takes Line from outside"):
            handler.send_event(Line(text="lost"))
        assert handler.status == "running"
        handler.cancel()


@pytest.mark.anyio
@pytest.mark.peer("edge 23")
async def test_undeclared_event_is_an_error_at_the_return():
    """P13: returning what the signature does not say fails at once and shows the fix."""

    class Lying(Workflow):
        @step
        async def lie(self, ev: StartEvent) -> StopEvent:
            return Item(number=1)

    with pytest.raises(
        WorkflowRuntimeError, match=r"Lying\.lie .* Item, .* `-> StopEvent \| Item`"
    ):
        await Lying().run()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "shown"), [("text", "a str"), (7, "a int"), (StopEvent, "a class"), ({}, "a dict")]
)
@pytest.mark.peer("edge 25")
async def test_return_of_a_non_event_is_an_error(value, shown):
    """P13: returning anything but an event names the step and what it got."""

    class Odd(Workflow):
        @step
        async def odd(self, ev: StartEvent) -> StopEvent:
            return value

    with pytest.raises(
        WorkflowRuntimeError, match=f"Odd.odd returned or sent {shown}.*expected .*StopEvent"
    ):
        await Odd().run()


@pytest.mark.anyio
async def test_event_that_nobody_takes_is_refused_every_time():
    """P13: the second run hears of it as the first one did."""

    class Base(Event):
        pass

    class Sub(Base):
        pass

    class Wide(Workflow[None]):
        @step
        async def make(self, ev: StartEvent) -> Base:
            return Base()

        @step
        async def take(self, ev: Sub) -> StopEvent:
            return StopEvent()

    workflow = Wide()
    for _ in range(2):
        with pytest.raises(WorkflowRuntimeError, match="which no step takes"):
            await workflow.run()
