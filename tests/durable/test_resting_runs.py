"""What is left of a time in memory when a durable run rests, or leaves its process."""

from __future__ import annotations

import logging

import anyio

from sluicegate import Context, StopEvent, Workflow, step
from tests.durable.stored import Answer, Begin, Question, Stores
from tests.helpers import on_each_backend, run_virtually


pytestmark = on_each_backend


class Breaks(Workflow[str]):
    """Its clean-up fails when it is released while it asks."""

    def __init__(self):
        super().__init__(serializable=[Question, Answer])

    @step
    async def ask(self, ev: Begin, ctx: Context) -> StopEvent:
        try:
            answer = await ctx.wait_for_event(Answer, Question(prompt="x"))
        except BaseException:
            msg = "the clean-up failed"
            raise ValueError(msg) from None
        return StopEvent(result=answer.text)


def test_failure_of_the_clean_up_of_a_run_that_rests_is_logged(backend, caplog):
    """It is not lost, and it is no failure of the run, which continues."""

    async def main():
        async with (
            Stores().open(release_idle=0.0) as runs,
            runs.run(Breaks().run(start_event=Begin()), run_id="a") as handler,
        ):
            async for event in handler.stream_events():
                if isinstance(event, Question):
                    await anyio.sleep(30)
                    resting = handler.status, handler.exceptions
                    await handler.send_event(Answer(text="yes"))
            return resting, await handler, handler.exceptions

    with caplog.at_level(logging.ERROR, "sluicegate"):
        resting, result, failures = run_virtually(backend, main)

    assert resting == ("idle", ())
    assert result == "yes"
    assert failures == ()
    (logged,) = caplog.records
    assert logged.getMessage() == "a step of the run a failed while it unwound to rest in its store"
    assert type(logged.exc_info[1]) is ValueError
