"""Events from outside: into a run that is early, idle, busy or over, and from any place."""

from __future__ import annotations

import asyncio

import anyio
import pytest
import trio

from penstock import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    step,
)


class Answer(HumanResponseEvent):
    text: str


class Asks(Workflow[str]):
    """Asks once, and ends with the answer."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="well?")

    @step
    async def listen(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


class Waits(Workflow[str]):
    """A step goes on while the answer is awaited by another one."""

    def __init__(self):
        super().__init__()
        self.heard = anyio.Event()

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent | StopEvent:
        ctx.send_event(InputRequiredEvent())
        await self.heard.wait()
        return StopEvent(result="heard while it ran")

    @step
    async def listen(self, ev: Answer) -> None:
        self.heard.set()


async def first_question(handler):
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            return


@pytest.mark.anyio
async def test_idle_run_goes_on_with_the_answer():
    """A run that has asked is idle, and goes on when it is answered."""
    async with Asks().run() as handler:
        await first_question(handler)
        await anyio.wait_all_tasks_blocked()

        assert handler.status == "idle"

        handler.send_event(Answer(text="yes"))

        assert handler.status == "running"
        assert await handler == "yes"


@pytest.mark.anyio
async def test_event_that_comes_before_the_run_has_begun():
    """The handler takes events as soon as its run is started, even before the first step runs."""
    async with Asks().run() as handler:
        handler.send_event(Answer(text="at once"))

        assert await handler == "at once"


@pytest.mark.anyio
async def test_wrong_event_before_the_run_has_begun():
    """What the run would refuse is refused before it has begun as well, and harms it not."""
    async with Asks().run() as handler:
        with pytest.raises(WorkflowRuntimeError, match="no step 'hear'"):
            handler.send_event(Answer(text="x"), step="hear")
        with pytest.raises(WorkflowRuntimeError, match="no step of Asks takes Event"):
            handler.send_event(Event())
        handler.send_event(Answer(text="right"), step="listen")

        assert await handler == "right"


@pytest.mark.anyio
async def test_event_for_a_run_that_is_busy():
    """An answer reaches its step while another step still runs."""
    async with Waits().run() as handler:
        await first_question(handler)
        handler.send_event(Answer(text="now"))

        assert await handler == "heard while it ran"


def test_answer_from_a_callback_of_asyncio():
    """``call_soon`` and its like run outside any task; what they send arrives all the same."""

    async def main():
        async with Asks(timeout=5).run() as handler:
            await first_question(handler)
            asyncio.get_running_loop().call_soon(handler.send_event, Answer(text="called"))
            return await handler

    assert asyncio.run(main()) == "called"


@pytest.mark.trio
async def test_answer_from_a_callback_of_trio():
    """The same for ``TrioToken.run_sync_soon``."""
    async with Asks(timeout=5).run() as handler:
        await first_question(handler)
        trio.lowlevel.current_trio_token().run_sync_soon(handler.send_event, Answer(text="called"))

        assert await handler == "called"


@pytest.mark.anyio
async def test_answer_from_a_thread_goes_through_the_event_loop():
    """A foreign thread is refused, with the way to go; that way works."""

    def wrong(handler):
        with pytest.raises(WorkflowRuntimeError, match=r"from_thread\.run_sync"):
            handler.send_event(Answer(text="wrong"))

    def right(handler):
        anyio.from_thread.run_sync(handler.send_event, Answer(text="right"))

    async with Asks().run() as handler:
        await first_question(handler)
        await anyio.to_thread.run_sync(wrong, handler)
        await anyio.to_thread.run_sync(right, handler)

        assert await handler == "right"


@pytest.mark.anyio
async def test_event_that_nobody_takes_is_refused():
    """What no step takes is refused where it is sent, and the run goes on."""

    class Stray(Event):
        pass

    async with Asks().run() as handler:
        await first_question(handler)
        with pytest.raises(WorkflowRuntimeError, match="expected an event of Answer, StartEvent"):
            handler.send_event(Stray())
        with pytest.raises(
            WorkflowRuntimeError, match="no step 'hear'; expected one of ask, listen"
        ):
            handler.send_event(Answer(text="x"), step="hear")
        with pytest.raises(WorkflowRuntimeError, match="the step ask of Asks does not take Answer"):
            handler.send_event(Answer(text="x"), step="ask")
        handler.send_event(Answer(text="x"), step="listen")

        assert await handler == "x"


@pytest.mark.anyio
async def test_event_for_a_run_that_is_over_is_refused():
    """Nothing is accepted and lost."""
    async with Asks().run() as handler:
        await first_question(handler)
        handler.send_event(Answer(text="x"))
        await handler
        with pytest.raises(WorkflowRuntimeError, match="is over"):
            handler.send_event(Answer(text="y"))
