"""Acknowledgements (D5, D7): what ``await`` means for what a durable run is sent from outside."""

from __future__ import annotations

import anyio
import pytest

from sluicegate import StopEvent, WorkflowDetachedError, step
from sluicegate.durable import StoreError, StoreFullError
from tests.durable.stored import (
    Answer,
    Asking,
    Begin,
    Counting,
    HeldCommits,
    Question,
    Stores,
    kill,
    kinds_of,
    reach,
)
from tests.helpers import on_each_backend, run_virtually, wait_until_idle


pytestmark = on_each_backend


async def asked(handler):
    """Read a run up to its question."""
    with handler.stream_events() as stream:
        while not isinstance(await stream.receive(), Question):
            pass


def test_answer_is_acknowledged_when_it_is_durable(backend):
    """D7: the await returns when the record is durable, and not before; the step begins then, too."""

    async def main():
        async with Stores().open(release_idle=None) as runs:
            workflow = Asking()
            held = HeldCommits(runs)
            async with runs.run(workflow.run(start_event=Begin()), run_id="a") as handler:
                await asked(handler)
                held.is_open = False
                is_done = anyio.Event()

                async def send():
                    await handler.send_event(Answer(text="yes"), id="1")
                    is_done.set()

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(send)
                    await held.held(1)
                    await wait_until_idle()
                    before = is_done.is_set(), list(workflow.ran)
                    held.let_go()
                return before, is_done.is_set(), await handler

    before, is_done, result = run_virtually(backend, main)

    assert before == (False, ["ask"])
    assert is_done
    assert result == "yes"


def test_repeated_answer_is_acknowledged_when_the_first_is_durable(backend):
    """D7: a client that repeats it must not be told earlier than the first one."""

    async def main():
        async with Stores().open(release_idle=None) as runs:
            held = HeldCommits(runs)
            async with runs.run(Asking().run(start_event=Begin()), run_id="a") as handler:
                await asked(handler)
                held.is_open = False
                first = handler.send_event(Answer(text="yes"), id="1")
                again = handler.send_event(Answer(text="yes"), id="1")
                told = []

                async def wait(name, acknowledgement):
                    await acknowledgement
                    told.append(name)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait, "again", again)
                    await held.held(1)
                    await wait_until_idle()
                    before = list(told)
                    held.let_go()
                return first.is_repeated, again.is_repeated, before, told, await handler

    assert run_virtually(backend, main) == (False, True, [], ["again"], "yes")


def test_cancelled_await_does_not_take_the_answer_back(backend):
    """It only waits no more; the run ends with the answer."""

    async def main():
        async with Stores().open(release_idle=None) as runs:
            held = HeldCommits(runs)
            async with runs.run(Asking().run(start_event=Begin()), run_id="a") as handler:
                await asked(handler)
                held.is_open = False
                with anyio.move_on_after(1) as scope:
                    await handler.send_event(Answer(text="yes"))
                held.let_go()
                return scope.cancelled_caught, await handler

    assert run_virtually(backend, main) == (True, "yes")


def test_await_raises_what_the_store_says(backend):
    """D7: an answer that could not be stored was not acknowledged; the run is detached."""

    async def main():
        async with Stores().open(release_idle=None) as runs:
            held = HeldCommits(runs)
            handler = runs.run(Asking().run(start_event=Begin()), run_id="a")
            raised = []
            with pytest.raises(WorkflowDetachedError) as detached:
                async with handler:
                    await asked(handler)
                    held.is_open = False
                    acknowledgement = handler.send_event(Answer(text="yes"))
                    async with anyio.create_task_group() as tasks:

                        async def wait():
                            try:
                                await acknowledgement
                            except StoreError as error:
                                raised.append(error)

                        tasks.start_soon(wait)
                        await held.held(1)
                        held.let_go(full := StoreFullError("the disk is full"))
            return raised, full, detached.value.__cause__

    raised, full, cause = run_virtually(backend, main)

    assert raised == [full]
    assert cause is full


class Gated(Asking):
    """Ends with the answer once the gate is open."""

    gate: anyio.Event

    @step
    async def end(self, ev: Answer) -> StopEvent:
        self.ran.append("end")
        await self.gate.wait()
        return StopEvent(result=ev.text)


def test_acknowledged_answer_survives_a_crash(backend):
    """D7: it is never lost and never applied twice, in whatever process the run goes on."""

    async def main():
        stores = Stores()
        workflow = Gated()
        workflow.gate = anyio.Event()
        async with stores.open(release_idle=None) as runs:
            handler = runs.run(workflow.run(start_event=Begin()), run_id="a")
            with pytest.raises(WorkflowDetachedError):
                async with handler:
                    await asked(handler)
                    await handler.send_event(Answer(text="yes"), id="1")
                    kill(runs)
                    workflow.gate.set()
                    await handler
        async with (
            stores.open(release_idle=None) as runs,
            runs.resume("a", workflow) as handler,
        ):
            await handler.send_event(Answer(text="yes"), id="1")
            return await handler, workflow.ran

    # The step that has the answer begins again with the second life, and only once.
    assert run_virtually(backend, main) == ("yes", ["ask", "end", "end"])


def test_cancellation_is_acknowledged_when_its_end_is_durable(backend):
    """D5: the await of ``handler.cancel()`` waits until the store has the end of the run."""

    async def main():
        async with Stores().open(release_idle=None) as runs:
            held = HeldCommits(runs)
            workflow = Counting()
            workflow.gate = anyio.Event()
            async with runs.run(workflow.run(n=1), run_id="a") as handler:
                while "second" not in workflow.ran:
                    await anyio.sleep(0.1)
                held.is_open = False
                is_done = anyio.Event()

                async def cancel():
                    await handler.cancel("enough")
                    is_done.set()

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cancel)
                    await held.held(2)
                    await wait_until_idle()
                    before = is_done.is_set(), handler.is_done()
                    held.let_go()
                status = handler.status
            await reach(runs, "a", "cancelled")
            return before, is_done.is_set(), status, await kinds_of(runs, "a")

    before, is_done, status, kinds = run_virtually(backend, main)

    assert before == (False, False)
    assert is_done
    assert status == "cancelled"
    assert kinds[-2:] == ["cancel", "end"]
