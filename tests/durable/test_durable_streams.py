"""The stream of a durable run (D3): what is live and what is durable, in which order, in any process."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from sluicegate import (
    ChildEvent,
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    SnapshotError,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowDetachedError,
    WorkflowValidationError,
    step,
)
from sluicegate._cursors import read_after
from sluicegate._events import untagged
from sluicegate.recording import Recorder
from tests.durable.stored import HeldCommits, Stores, kill, kinds_of
from tests.helpers import calls_of, limit, on_each_backend, run_virtually, wait_until_idle


pytestmark = on_each_backend


class Told(Event):
    """What a step sends."""

    n: int


class Noted(Event):
    """What a step writes."""

    n: int


class Asked(InputRequiredEvent):
    name: str


class Given(HumanResponseEvent):
    text: str


class Tells(Workflow[str]):
    """Sends and writes in turn, as the test says; then asks."""

    def __init__(self, count=3, *, asks=False, **options):
        super().__init__(serializable=[Told, Asked, Given], **options)
        self.count = count
        self.asks = asks

    @step
    async def tell(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(self.count):
            await ctx.stream.send(Told(n=n))
            ctx.write_event_to_stream(Noted(n=n))
        if self.asks:
            answer = await ctx.wait_for_event(Given, Asked(name="who"))
            return StopEvent(result=answer.text)
        return StopEvent(result="told")


class Kid(Workflow[str]):
    """A child: sends, writes, reports progress, and asks."""

    def __init__(self, **options):
        super().__init__(serializable=[Told, Asked, Given], **options)

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Noted(n=1))
        await ctx.stream.send(Told(n=2))
        answer = await ctx.wait_for_event(Given, Asked(name="kid"))
        ctx.write_event_to_stream(Noted(n=3))
        return StopEvent(result=answer.text)


class Parent(Workflow[str]):
    def __init__(self, how="forward", *, kid=None, known=(Told, Asked, Given), **options):
        super().__init__(serializable=[*known], **options)
        self.how = how
        self.kid = kid or {}

    @step
    async def call(self, ctx: Context, ev: StartEvent) -> StopEvent:
        found = await ctx.run_child(Kid(**self.kid), stream=self.how)
        return StopEvent(result=found)


def text_of(event):
    """Return a short text for an event: its class, its number, and the children that it passed."""
    if isinstance(event, ChildEvent):
        return f"{'/'.join(event.path)}/{text_of(event.event)}"
    number = event.get("n")
    return type(event).__name__ + ("" if number is None else str(number))


async def read_all(stream, into):
    async for event in stream:
        into.append(text_of(event))


async def stored(runs, workflow, run_id="a", after="0"):
    """Return the durable stream of a run, as another process reads it."""
    with limit():
        async with await runs.attach(run_id, workflow) as handler:
            return [text_of(event) async for event in handler.stream_events(after=after)]


# -- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["live", "durable"])
def test_what_a_step_sends_is_kept_if_the_workflow_says_so(backend, how):
    """D3: ``Workflow(stream=...)`` decides for ``ctx.stream.send``; what is written is always live."""

    async def main():
        stores = Stores()
        async with stores.open() as runs:
            seen = []
            async with runs.run(Tells(stream=how).run(), run_id="a") as handler:
                await read_all(handler.stream_events(), seen)
            kinds = await kinds_of(runs, "a")
        async with stores.open() as later:
            return seen, kinds.count("pub"), await stored(later, Tells(stream=how))

    seen, count, kept = run_virtually(backend, main)

    assert seen == ["Told0", "Noted0", "Told1", "Noted1", "Told2", "Noted2", "StopEvent"]
    assert count == (3 if how == "durable" else 0)
    assert kept == (["Told0", "Told1", "Told2", "StopEvent"] if how == "durable" else ["StopEvent"])


def test_run_without_a_store_ignores_it(backend):
    """It pays nothing for it, and shows the same."""

    async def main():
        seen = []
        async with Tells(stream="durable").run() as handler:
            await read_all(handler.stream_events(), seen)
        return seen

    assert run_virtually(backend, main)[:2] == ["Told0", "Noted0"]


def test_bad_option_is_refused(backend):
    """It says what was expected."""
    with pytest.raises(WorkflowValidationError) as raised:
        Tells(stream="disk")

    assert str(raised.value) == (
        "Tells(stream='disk'); expected 'live' or 'durable': `Tells(stream='durable')`"
    )


def test_event_that_cannot_be_kept_fails_its_step(backend):
    """The class has to be known; nothing of the event is on the stream."""

    class Unknown(Workflow):
        @step
        async def tell(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(SnapshotError, match=r"serializable=\[Told\]"):
                ctx.stream.send_nowait(Told(n=1))
            await ctx.stream.send(Told(n=0))
            return StopEvent()

    async def main():
        async with Stores().open() as runs:
            handler = runs.run(Unknown(stream="durable").run(), run_id="a")
            with pytest.raises(SnapshotError, match=r"serializable=\[Told\]"):
                await handler
            return [text_of(event) async for event in handler.stream_events()]

    assert run_virtually(backend, main) == ["WorkflowFailedEvent"]


def test_progress_and_what_is_written_are_live(backend):
    """They are not in the store."""

    class Reports(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.progress(1, 2, "half")
            ctx.write_event_to_stream(Noted(n=1))
            return StopEvent()

    async def main():
        async with Stores().open() as runs:
            seen = []
            async with runs.run(Reports(stream="durable").run(), run_id="a") as handler:
                await read_all(handler.stream_events(), seen)
            return seen, await kinds_of(runs, "a")

    seen, kinds = run_virtually(backend, main)

    assert seen == ["ProgressEvent", "Noted1", "StopEvent"]
    assert "pub" not in kinds


# -- order -----------------------------------------------------------------------------------------


def test_durable_event_is_shown_when_it_is_durable(backend):
    """D3: and what was written behind it waits; ``send`` returns then."""

    class Sends(Workflow):
        sent = 0

        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Noted(n=0))
            ctx.stream.send_nowait(Told(n=1))
            ctx.write_event_to_stream(Noted(n=2))
            await ctx.stream.send(Told(n=3))
            Sends.sent += 1
            return StopEvent()

    async def main():
        async with Stores().open() as runs:
            held = HeldCommits(runs)
            seen = []
            workflow = Sends(stream="durable", serializable=[Told])
            handler = runs.run(workflow.run(), run_id="a")
            async with handler, anyio.create_task_group() as tasks:
                tasks.start_soon(read_all, handler.stream_events(), seen)
                # The beginning of the step is durable; what it sends is held from then on.
                while not handler._run.workers:
                    await anyio.lowlevel.checkpoint()
                await held.hold(2)
                await wait_until_idle()
                before = list(seen), Sends.sent
                held.let_go()
            return before, seen

    (before, sent), seen = run_virtually(backend, main)

    assert before == ["Noted0"]
    assert sent == 0
    assert seen == ["Noted0", "Told1", "Noted2", "Told3", "StopEvent"]


def test_cancelled_wait_for_the_store_leaves_the_event_published(backend):
    """No commit is shielded: the send is over, and the event is in the store once."""

    class Impatient(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with anyio.CancelScope() as scope:
                publish = ctx.stream._publish

                def cancelling(event):
                    publish(event)
                    scope.cancel()

                ctx.stream._publish = cancelling
                await ctx.stream.send(Told(n=1))
            return StopEvent(result=scope.cancelled_caught)

    async def main():
        async with Stores().open() as runs:
            workflow = Impatient(stream="durable", serializable=[Told])
            handler = runs.run(workflow.run(), run_id="a")
            result = await handler
            return result, await stored(runs, workflow)

    result, kept = run_virtually(backend, main)

    assert result is True
    assert kept == ["Told1", "StopEvent"]


def test_back_pressure_applies_to_what_is_kept(backend):
    """P7: a reader that is a buffer behind holds up the sender, before anything is recorded."""

    async def main():
        async with Stores().open() as runs:
            workflow = Tells(10, stream="durable", stream_buffer=2)
            async with runs.run(workflow.run(), run_id="a") as handler:
                with handler.stream_events() as stream:
                    await stream.receive()
                    await anyio.sleep(1)
                    published = handler._run.log.next - 1
                seen = []
                await read_all(handler.stream_events(), seen)
            return published, seen

    published, seen = run_virtually(backend, main)

    assert published <= 4
    assert seen[-1] == "StopEvent"
    assert len(seen) == 21


# -- lives and processes ---------------------------------------------------------------------------


def test_reader_goes_on_in_another_process(backend):
    """D3: by its cursor it gets every durable event behind it, each once, in order; live ones are gone."""

    async def main():
        stores = Stores()
        async with stores.open(release_idle=None) as runs:
            async with runs.run(Tells(asks=True, stream="durable").run(), run_id="a") as handler:
                stream = handler.stream_events()
                first = []
                while "Asked" not in first:
                    first.append(text_of(await stream.receive()))
                    if first[-1] == "Noted1":
                        middle = stream.cursor
                last = stream.cursor
                await runs.send_event("a", Given(text="me"))
                await handler
            behind = {}
            for cursor in ("0", middle, last):
                behind[cursor] = [
                    text_of(event) async for event in handler.stream_events(after=cursor)
                ]
        async with stores.open() as runs:
            elsewhere = {}
            for cursor in ("0", middle, last):
                elsewhere[cursor] = await stored(runs, Tells(), after=cursor)
        return first, middle, last, behind, elsewhere

    first, middle, last, behind, elsewhere = run_virtually(backend, main)

    assert first == ["Told0", "Noted0", "Told1", "Noted1", "Told2", "Noted2", "Asked"]
    assert read_after(middle, is_durable=True)[:3:2] == (2, 1)
    assert int(last) > int(middle)
    assert behind["0"] == [*first, "StopEvent"]
    assert behind[middle] == ["Told2", "Noted2", "Asked", "StopEvent"]
    assert behind[last] == ["StopEvent"]
    assert elsewhere["0"] == ["Told0", "Told1", "Told2", "Asked", "StopEvent"]
    assert elsewhere[middle] == ["Told2", "Asked", "StopEvent"]
    assert elsewhere[last] == ["StopEvent"]


def test_reader_stays_over_the_lives_of_a_run(backend):
    """A run that is released while it waits keeps its readers; their cursors grow over its lives."""

    async def main():
        async with Stores().open(release_idle=0.0) as runs:
            seen, cursors = [], []
            async with runs.run(Tells(asks=True, stream="durable").run(), run_id="a") as handler:
                stream = handler.stream_events()
                async for event in stream:
                    seen.append(text_of(event))
                    cursors.append(int(stream.cursor))
                    if isinstance(event, Asked) and seen.count("Asked") == 1:
                        await anyio.sleep(60)
                        parked = handler._run.machine is None
                        await handler.send_event(Given(text="me"))
            return seen, cursors, parked

    seen, cursors, parked = run_virtually(backend, main)

    assert parked
    # The step begins again with its second life, and does again what it did beside its wait.
    assert seen[:7] == ["Told0", "Noted0", "Told1", "Noted1", "Told2", "Noted2", "Asked"]
    assert seen[-1] == "StopEvent"
    assert seen.count("Asked") == 1
    assert cursors == sorted(set(cursors))


def test_crash_loses_no_event_that_was_seen(backend):
    """D3: killed behind any event, a reader goes on by its cursor: each durable event once, in order."""

    async def killed_behind(number):
        stores = Stores()
        seen = []
        async with stores.open(release_idle=None) as runs:
            handler = runs.run(Tells(asks=True, stream="durable").run(), run_id="a")
            with contextlib.suppress(WorkflowDetachedError):
                async with handler:
                    stream = handler.stream_events()
                    for _ in range(number):
                        seen.append(text_of(await stream.receive()))
                    kill(runs)
                    await handler
            cursor = stream.cursor
        async with stores.open(release_idle=None) as runs:
            rest, numbers = [], []
            async with runs.resume("a", Tells(stream="durable", asks=True)) as handler:
                stream = handler.stream_events(after=cursor)
                if "Asked" in seen:  # it is not asked again
                    await handler.send_event(Given(text="me"))
                async for event in stream:
                    rest.append(text_of(event))
                    numbers.append(read_after(stream.cursor, is_durable=True).durable)
                    if isinstance(event, Asked):
                        await handler.send_event(Given(text="me"))
            everything = await stored(runs, Tells())
        return cursor, seen, rest, numbers, everything

    for number in range(1, 8):
        cursor, seen, rest, numbers, everything = run_virtually(backend, killed_behind, number)
        durable = read_after(cursor, is_durable=True).durable

        assert everything[-1] == "StopEvent"
        assert [text for text in seen if not text.startswith("Noted")] == everything[:durable]
        assert [text for text in rest if not text.startswith("Noted")] == everything[durable:]
        assert numbers == sorted(numbers)
        assert everything.count("Asked") == 1


class Busy(Workflow[str]):
    """Asks in one step, in a child if it is told how that is shown, while another step works."""

    def __init__(self, child):
        super().__init__(serializable=[Asked, Given])
        self.child = child

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Told | Noted | None:
        ctx.send_event(Noted(n=1))
        return Told(n=1)

    @step
    async def work(self, ev: Noted) -> None:
        await anyio.sleep(1000)

    @step
    async def ask(self, ctx: Context, ev: Told) -> StopEvent:
        if self.child:
            return StopEvent(result=await ctx.run_child(Kid(), stream=self.child))
        first = await ctx.wait_for_event(Given, Asked(name="first"))
        second = await ctx.wait_for_event(Given, Asked(name="second"))
        return StopEvent(result=first.text + second.text)


@pytest.mark.parametrize("child", ["", "forward", "tag"])
@pytest.mark.parametrize("how", ["run", "resume", "attach"])
def test_a_question_is_open_when_its_reader_sees_it_again(backend, how, child):
    """Killed just after it has asked, while it works: the summary does not have the question yet."""

    async def find_question(stream):
        """Return the name of the next question."""
        while not isinstance(asked := untagged(await stream.receive()), Asked):
            pass
        return asked.name

    async def main():
        stores, workflow = Stores(), Busy(child)
        async with stores.open(release_idle=None) as runs:
            with contextlib.suppress(WorkflowDetachedError):
                async with runs.run(workflow.run(), run_id="a") as handler:
                    stream = handler.stream_events()
                    if await find_question(stream) == "first":
                        handler.send_event(Given(text="1"))
                        await find_question(stream)
                    kill(runs)
                    await handler
        found = {}
        async with stores.open(release_idle=None) as runs:
            stale = await runs.questions()
            if how == "attach":
                started = await runs.attach("a", workflow)
            elif how == "resume":
                started = runs.resume("a", workflow)
            else:
                started = runs.run(workflow.run(), run_id="a")
            with limit():
                async with started as handler:
                    stream = handler.stream_events(after="0")
                    for _ in range(1 if child else 2):
                        name = await find_question(stream)
                        found[name] = [asked.event.name for asked in handler.questions]
                    if how == "attach":
                        return stale, found, None
                    handler.send_event(Given(text="2"))
                    return stale, found, await handler

    stale, found, result = run_virtually(backend, main)

    assert stale == []  # or the test shows nothing
    if child:
        assert found == {"kid": ["kid"]}
    else:
        assert found == {"first": ["second"], "second": ["second"]}
    assert result == (None if how == "attach" else "2" if child else "12")


# -- children --------------------------------------------------------------------------------------


CHILDREN = {
    "forward": ["Noted1", "Told2", "Asked", "Noted3", "StopEvent"],
    "tag": ["Kid/Noted1", "Kid/Told2", "Kid/Asked", "Kid/Noted3", "StopEvent"],
    "off": ["StopEvent"],
}


@pytest.mark.parametrize("how", CHILDREN)
@pytest.mark.parametrize("sends", ["live", "durable"])
def test_events_of_a_child_are_kept_as_the_whole_run_shows_them(backend, how, sends):
    """Each durable one has one record and one number; live ones stay live on every stream."""

    async def main():
        stores = Stores()
        async with stores.open(release_idle=None) as runs:
            seen, cursors = [], []
            workflow = Parent(how, kid={"stream": sends})
            async with runs.run(workflow.run(), run_id="a") as handler:
                async with anyio.create_task_group() as tasks:

                    async def answer():
                        while not handler.questions:
                            await anyio.sleep(0.1)
                        await handler.send_event(Given(text="me"))

                    tasks.start_soon(answer)
                    stream = handler.stream_events()
                    async for event in stream:
                        seen.append(text_of(event))
                        cursors.append(read_after(stream.cursor, is_durable=True).durable)
                result = await handler
            count = (await kinds_of(runs, "a")).count("pub")
        async with stores.open() as runs:
            return result, seen, cursors, count, await stored(runs, Parent(how))

    result, seen, cursors, count, kept = run_virtually(backend, main)

    live = ("Noted1", "Noted3", *(("Told2",) if sends == "live" else ()))
    durable = [text for text in CHILDREN[how] if not text.endswith(live)]
    assert result == "me"
    assert seen == CHILDREN[how]
    assert kept == durable
    assert count == len(durable) - 1
    assert cursors[-1] == len(durable)
    assert cursors == sorted(cursors)


def test_question_of_a_child_that_the_whole_run_cannot_keep(backend):
    """The child's step fails where it asks, with the line that mends it; nothing is asked."""

    async def main():
        async with Stores().open() as runs:
            handler = runs.run(Parent(known=()).run(), run_id="a")
            with pytest.raises(SnapshotError, match=r"serializable=\[Asked\]"):
                await handler
            return [text_of(event) async for event in handler.stream_events()]

    assert run_virtually(backend, main)[-1] == "WorkflowFailedEvent"


def test_observers_hear_the_numbers_that_readers_see(backend):
    """Also of events that wait for the store."""

    async def main():
        async with Stores().open() as runs:
            recorder = Recorder()
            workflow = Tells(stream="durable", observers=[recorder])
            async with runs.run(workflow.run(), run_id="a") as handler:
                await handler
            (run,) = recorder.recording.runs
            return [streamed.sequence for streamed in run.stream]

    assert run_virtually(backend, main) == [1, 2, 3, 4, 5, 6, 7]


def test_many_events_on_their_way_cost_the_same_each(backend):
    """Handing over an event does not look at those that wait for the store."""

    class Many(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            def send(count):
                for n in range(count):
                    ctx.stream.send_nowait(Told(n=n))

            first = calls_of(send, 200)
            calls_of(send, 1_000)
            return StopEvent(result=[first, calls_of(send, 200)])

    async def main():
        async with Stores().open() as runs:
            workflow = Many(stream="durable", serializable=[Told])
            async with runs.run(workflow.run(), run_id="a") as handler:
                with handler.stream_events(lossy=True):
                    first, last = await handler
                numbers = [e.n for e in await take_all(handler) if isinstance(e, Told)]
            return first, last, numbers

    first, last, numbers = run_virtually(backend, main)

    assert last <= 1.05 * first
    assert numbers == [*range(200), *range(1_000), *range(200)]


async def take_all(handler):
    return [event async for event in handler.stream_events()]
