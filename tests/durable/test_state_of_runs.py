"""The state of durable runs: journalled by what changed, over lives and versions of its class."""

from __future__ import annotations

import json
from typing import Any

import anyio
import attrs
import pytest

from sluicegate import (
    Context,
    SnapshotError,
    StopEvent,
    Workflow,
    WorkflowDetachedError,
    step,
)
from tests.durable.stored import Answer, Begin, Question, Stores, kill, reach
from tests.helpers import on_each_backend, run_virtually


pytestmark = on_each_backend


async def asked(handler, prompt):
    """Wait until a run has asked a question, and was released."""
    with anyio.fail_after(60):
        while [repr(q.event) for q in handler.questions] != [repr(Question(prompt=prompt))]:
            await anyio.sleep(0.01)
    await anyio.sleep(5)  # of virtual time, in which it is released


async def patches(runs, run_id):
    """Return the patches in the journal of a run that keeps its history."""
    records = await runs._hub.journal.read(run_id, after=0)
    return [json.loads(record.data)["p"] for record in records if record.kind == "state"]


class Rounds(Workflow[Any]):
    """Asks three times, and notes in its state what was answered; the answers that came first are noted again."""

    def __init__(self) -> None:
        super().__init__(serializable=[Question, Answer])

    @step
    async def ask(self, ev: Begin, ctx: Context) -> StopEvent:
        for prompt in "123":
            answer = await ctx.wait_for_event(Answer, waiter_event=Question(prompt=prompt))
            async with ctx.store.edit_state() as state:
                state.answers = [*state.get("answers", []), answer.text]
        return StopEvent(result=await ctx.store.get("answers"))


def test_a_state_that_begins_in_a_later_life(backend):
    """The first change is written whole, in whatever life it comes, and the later ones by what they add."""

    async def main():
        async with (
            Stores().open(keep_history=True) as runs,
            runs.run(Rounds().run(), run_id="a") as handler,
        ):
            found = []
            for prompt in "123":
                await asked(handler, prompt)
                await reach(runs, "a", "parked")
                found.append(await patches(runs, "a"))
                await handler.send_event(Answer(text=prompt))
            return found, await handler

    found, result = run_virtually(backend, main)

    grown = [["{", {"answers": ["+", [text]]}] for text in "12"]
    first = ["=", {"answers": ["1"]}]
    assert found == [[], [first], [first, *grown]]
    assert result == ["1", "1", "2", "1", "2", "3"]


async def killed(stores, workflow, answers, prompt):
    """Have a process answer and continue a run until it asks a question, and end it there."""
    async with stores.open(release_idle=None) as runs:
        with pytest.raises(WorkflowDetachedError):
            async with runs.run(workflow.run(), run_id="a") as handler:
                for text in answers:
                    await handler.send_event(Answer(text=text))
                with anyio.fail_after(60):
                    while [repr(q.event) for q in handler.questions] != [
                        repr(Question(prompt=prompt))
                    ]:
                        await anyio.sleep(0.01)
                await anyio.sleep(1)  # of virtual time, in which its records are durable
                kill(runs)
                await handler


@pytest.mark.parametrize("make", [Rounds, lambda: rounds_with(version(2))], ids=["dict", "typed"])
def test_a_state_over_lives_that_were_killed(backend, make):
    """What each life has recorded is there in the next, also where the state or its class is new in it."""

    async def main():
        stores = Stores()
        first = Rounds() if make is Rounds else rounds_with(version(1))
        await killed(stores, first, [], "1")
        await killed(stores, make(), ["1"], "2")
        async with stores.open(workflows=[make()]) as runs:
            return (await runs.snapshot("a"))["state"]

    state = run_virtually(backend, main)

    if make is Rounds:
        assert state == {"answers": ["1"]}
    else:
        lists = {"one": ["1", "1", "2"], "two": ["1", "2"]}
        assert state == {"$": "State", "v": lists}


def rounds_with(state_type):
    """Return a workflow that adds to each list in its typed state after each answer."""

    class Typed(Workflow[Any]):
        @step
        async def ask(self, ev: Begin, ctx: Context[state_type]) -> StopEvent:
            for prompt in "12":
                async with ctx.store.edit_state() as state:
                    for field in attrs.fields(state_type):
                        getattr(state, field.name).append(prompt)
                await ctx.wait_for_event(Answer, waiter_event=Question(prompt=prompt))
            return StopEvent(result=repr(await ctx.store.get_state()))

    return Typed(serializable=[Question, Answer])


def version(number):
    """Return a version of a class of states: each has one list more."""
    fields = {name: attrs.Factory(list) for name in ("one", "two")[:number]}
    made = attrs.make_class(
        "State",
        {name: attrs.field(type=list[str], default=default) for name, default in fields.items()},
    )
    made.__module__, made.__qualname__ = __name__, "State"
    return made


def test_a_state_whose_class_got_a_field(backend):
    """Patches of a new version of the class refer to the fields that it has, also in the lives after."""

    async def main():
        stores = Stores()
        async with stores.open() as runs:
            with anyio.CancelScope() as scope:  # ends the part of the run in this process
                async with runs.run(rounds_with(version(1)).run(), run_id="a") as handler:
                    await asked(handler, "1")
                    scope.cancel()
        new = rounds_with(version(2))
        async with (
            stores.open(keep_history=True) as runs,
            runs.run(new.run(), run_id="a") as handler,
        ):
            await handler.send_event(Answer(text="x"))
            await asked(handler, "2")
            await reach(runs, "a", "parked")
            shown = await patches(runs, "a")
            await handler.send_event(Answer(text="x"))
            return shown, await handler

    shown, result = run_virtually(backend, main)

    assert shown == [
        ["o", {"one": ["+", ["1"]], "two": ["+", ["1"]]}],
        ["o", {"one": ["+", ["2"]], "two": ["+", ["2"]]}],
    ]
    assert result == "State(one=['1', '1', '2', '1', '2'], two=['1', '2', '1', '2'])"


class Keeping(Workflow[Any]):
    """Puts a live object in its state."""

    @step
    async def put(self, ev: Begin, ctx: Context) -> StopEvent:
        await ctx.store.set("tags", ["a"])
        with pytest.raises(SnapshotError, match=r"state\.lock is a Lock, which cannot be kept"):
            await ctx.store.set("lock", anyio.Lock())
        async with ctx.store.edit_state() as state:
            state.count = 1
            state.tags.append(object())
        return StopEvent()


def test_a_value_that_cannot_be_kept_fails_its_step(backend):
    """The block raises, the step fails with the path of the value, and the state is as it was before."""

    async def main():
        async with Stores().open() as runs:
            with pytest.raises(SnapshotError, match=r"state\.tags\[1\] is a object"):
                await runs.run(Keeping().run(), run_id="a")
            return await patches(runs, "a")

    assert run_virtually(backend, main) == [["=", {"tags": ["a"]}]]
