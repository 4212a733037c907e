"""Calls with a run store: the state is the id of the run, answers count once, and long runs have ids."""

from __future__ import annotations

import anyio
import pytest
from mcp import types

from sluicegate import Context, StartEvent, StopEvent, Workflow, step
from sluicegate.durable import MemoryStore, open_run_store
from sluicegate.mcp import mcp_server
from sluicegate.testing import sweep
from tests.helpers import limit, nothing_left
from tests.mcp.flows import (
    Book,
    Person,
    Topic,
    client_of,
    error_of,
    messages,
    one_round,
    text_of,
)
from tests.mcp.test_mcp_questions import (
    BOOKED,
    ROOM,
    TO_ROME,
    Ask,
    Reply,
    Request,
    interview,
)


pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr("sluicegate.mcp._calls._LOOK", 0.002)


@pytest.fixture
def store():
    return MemoryStore()


class Slow(Workflow[str]):
    """Works until the test lets it go on, and counts how often it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.has_begun = anyio.Event()
        self.may_end = anyio.Event()

    @step
    async def only(self, ctx: Context, ev: Topic) -> StopEvent:
        self.begun += 1
        self.has_begun.set()
        await self.may_end.wait()
        return StopEvent(result=f"on {ev.topic}")


async def test_rounds_continue_the_run_in_the_store(store):
    """Each round has another server and store; the state is small, and what was done stays done."""
    flows, sizes, asked = [], [], None
    for answers in ({}, {"0?": {"text": "a"}}, {"1?": {"text": "b"}}):
        flow = interview()
        flows.append(flow)
        with nothing_left():
            async with (
                open_run_store(store.open()) as runs,
                client_of(flow, run_store=runs) as client,
            ):
                arguments = {"questions": 2, "padding": 300_000}
                asked = await one_round(client, "Interview", arguments, asked, **answers)
        if isinstance(asked, types.InputRequiredResult):
            sizes.append(len(asked.request_state))

    assert text_of(asked) == "b"
    assert [flow.done for flow in flows] == [["begin"], ["a"], ["b"]]
    assert max(sizes) < 1_000


async def test_all_open_questions_are_asked_in_one_round(store):
    """As without a store; the client of the SDK drives the rounds by itself."""
    person = Person(Which_hotel=ROOM, Which_day={"day": 7}, Book_Ritz={"sure": True})
    async with open_run_store(store.open()) as runs:
        async with client_of(Book(), run_store=runs, elicit=person) as client:
            result = await client.call_tool("Book", TO_ROME)
        (run,) = await runs.list()

    assert result.structured_content == BOOKED
    assert len(person.asked) == 3
    assert run.status == "completed"


async def test_a_replayed_round_counts_once(store):
    """The first answer to a question counts; who sends the round again gets what came of it."""
    flow = interview()
    async with open_run_store(store.open()) as runs, client_of(flow, run_store=runs) as client:
        asked = await one_round(client, "Interview", {"questions": 2})
        first = await one_round(
            client, "Interview", {"questions": 2}, asked, **{"0?": {"text": "a"}}
        )
        again = await one_round(
            client, "Interview", {"questions": 2}, asked, **{"0?": {"text": "a"}}
        )
        other = await one_round(
            client, "Interview", {"questions": 2}, asked, **{"0?": {"text": "x"}}
        )
        end = await one_round(client, "Interview", {"questions": 2}, first, **{"1?": {"text": "b"}})
        late = await one_round(
            client, "Interview", {"questions": 2}, first, **{"1?": {"text": "y"}}
        )

    assert messages(first) == messages(again) == messages(other) == ["1?"]
    assert text_of(end) == text_of(late) == "b"
    assert flow.done == ["begin", "a", "b"]


async def test_rounds_sent_twice_at_a_time_count_once(store):
    """Two deliveries of one round, at the same time, both get the next question."""
    flow, results = interview(), []
    async with open_run_store(store.open()) as runs, client_of(flow, run_store=runs) as client:
        asked = await one_round(client, "Interview", {"questions": 2})

        async def deliver(text):
            answers = {"0?": {"text": text}}
            results.append(await one_round(client, "Interview", {"questions": 2}, asked, **answers))

        with limit():
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(deliver, "a")
                nursery.start_soon(deliver, "b")

    assert [messages(result) for result in results] == [["1?"], ["1?"]]
    assert len(flow.done) == 2


async def test_a_call_with_an_id_is_continued_by_the_next_one(store):
    """A long run outlives the request that began it: the same id and arguments continue it."""
    flow = Slow()
    arguments = {"topic": "locks", "run_id": "essay-1"}
    with limit():
        async with open_run_store(store.open()) as runs, client_of(flow, run_store=runs) as client:
            (tool,) = (await client.list_tools()).tools
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(client.call_tool, "Slow", arguments)
                await flow.has_begun.wait()
                nursery.cancel_scope.cancel()
            interrupted = (await runs.get("essay-1")).status
            flow.may_end.set()
            result = await client.call_tool("Slow", arguments)
            again = await client.call_tool("Slow", arguments)
            conflict = await client.call_tool("Slow", {"topic": "secrets", "run_id": "essay-1"})

    assert "run_id" in tool.input_schema["properties"]
    assert tool.input_schema["required"] == ["topic"]
    assert interrupted == "running"
    assert text_of(result) == text_of(again) == "on locks"
    assert flow.begun == 2  # a step that was interrupted begins again
    assert error_of(conflict) == (
        "another run has the run_id 'essay-1'; expected the arguments with which it began, or another run_id"
    )


async def test_a_run_without_an_id_ends_with_the_request_that_began_it(store):
    """Nobody could find it again, so the store does not keep it running."""
    flow = Slow()
    with limit():
        async with open_run_store(store.open()) as runs, client_of(flow, run_store=runs) as client:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(client.call_tool, "Slow", {"topic": "locks"})
                await flow.has_begun.wait()
                nursery.cancel_scope.cancel()
            (run,) = await runs.list()

    assert run.status == "cancelled"
    assert run.owner is None


async def test_a_round_that_is_cut_off_can_be_sent_again(store):
    """A run that has asked stays in the store when a later request ends early."""

    class Long(Workflow[str]):
        may_end = anyio.Event()
        works = anyio.Event()

        @step
        async def begin(self, ev: StartEvent) -> Ask:
            return Ask(prompt="go?")

        @step
        async def work(self, ev: Reply) -> StopEvent:
            self.works.set()
            await self.may_end.wait()
            return StopEvent(result=ev.text)

    flow = Long()
    with limit():
        async with open_run_store(store.open()) as runs, client_of(flow, run_store=runs) as client:
            asked = await one_round(client, "Long", {})

            async def answer():
                return await one_round(client, "Long", {}, asked, **{"go?": {"text": "a"}})

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(answer)
                await flow.works.wait()
                nursery.cancel_scope.cancel()
            flow.may_end.set()
            result = await answer()

    assert text_of(result) == "a"


async def test_a_declined_question_cancels_the_stored_run(store):
    """The user's refusal is recorded; after a question that was only closed, the run still waits."""
    async with (
        open_run_store(store.open()) as runs,
        client_of(interview(), run_store=runs) as client,
    ):
        asked = await one_round(client, "Interview", {})

        async def answer(action):
            (key,) = asked.input_requests
            result = await client.session.call_tool(
                "Interview",
                {},
                input_responses={key: types.ElicitResult(action=action)},
                request_state=asked.request_state,
                allow_input_required=True,
            )
            (run,) = await runs.list()
            return error_of(result), run.status

        closed = await answer("cancel")
        declined = await answer("decline")

    assert closed[0].startswith("the user did not want to answer: 0?")
    assert closed[1] in ("idle", "parked", "running")
    assert declined[0].startswith("the user declined to answer: 0?")
    assert declined[1] == "cancelled"


async def test_progress_is_not_repeated_in_the_next_round(store):
    """A round reports what was published since the round before."""

    class Telling(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Ask:
            ctx.write_event_to_stream(Topic(topic="first"))
            return Ask(prompt="go?")

        @step
        async def end(self, ctx: Context, ev: Reply) -> StopEvent:
            ctx.write_event_to_stream(Topic(topic="second"))
            return StopEvent(result=ev.text)

    told = []

    async def progress(*values):
        told.append(values[2])

    async with open_run_store(store.open()) as runs, client_of(Telling(), run_store=runs) as client:
        asked = await one_round(client, "Telling", {}, progress=progress)
        await one_round(client, "Telling", {}, asked, progress=progress, **{"go?": {"text": "a"}})

    assert told == [
        '{"event":"Topic","topic":"first","pages":1}',
        '{"event":"Topic","topic":"second","pages":1}',
    ]


async def test_a_run_that_was_deleted_is_an_error(store):
    """The state names a run that is no longer there."""
    async with (
        open_run_store(store.open()) as runs,
        client_of(interview(), run_store=runs) as client,
    ):
        asked = await one_round(client, "Interview", {})
        (run,) = await runs.list()
        await runs.delete(run.run_id)
        error = error_of(await one_round(client, "Interview", {}, asked))

    assert error.startswith(f"the run {run.run_id} is no longer in its store; expected the tool")


async def test_users_share_no_ids(store, monkeypatch):
    """Where the server knows its users, an id that a client gives is one of that user."""
    users = iter(["ann", "bob", "ann"])
    monkeypatch.setattr("sluicegate.mcp._calls.authenticated_principal", lambda _ctx: next(users))
    flow = Slow()
    flow.may_end.set()
    async with open_run_store(store.open()) as runs, client_of(flow, run_store=runs) as client:
        for _ in range(3):
            await client.call_tool("Slow", {"topic": "locks", "run_id": "mine"})
        found = await runs.list()

    assert flow.begun == len(found) == 2
    assert all(run.run_id.startswith("mine@") for run in found)


@pytest.mark.parametrize("run_id", ["", "x" * 201, 5])
async def test_an_id_is_a_short_text(store, run_id):
    """Any other id is an invalid argument."""
    async with open_run_store(store.open()) as runs, client_of(Slow(), run_store=runs) as client:
        error = error_of(await client.call_tool("Slow", {"topic": "a", "run_id": run_id}))

    assert error.startswith("invalid arguments: run_id is ")


async def test_state_of_a_server_that_keeps_runs_differently_is_refused(store):
    """With and without a store, the states differ; the error says to begin again."""
    async with client_of(interview()) as client:
        carried = await one_round(client, "Interview", {})
    async with (
        open_run_store(store.open()) as runs,
        client_of(interview(), run_store=runs) as client,
    ):
        kept = await one_round(client, "Interview", {})
        first = error_of(await one_round(client, "Interview", {}, carried))
    async with client_of(interview()) as client:
        second = error_of(await one_round(client, "Interview", {}, kept))

    assert "a server that keeps runs differently" in first
    assert first == second


class Late(Workflow[str]):
    """Asks, and waits for an hour."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Reply, Ask(prompt="?"), timeout=3_600)
        return StopEvent(result=answer.text)


async def test_a_question_with_a_timeout_is_asked_at_once(store):
    """A stored run that waits until a timer is idle like any other."""
    with limit():
        async with (
            open_run_store(store.open()) as runs,
            client_of(Late(), run_store=runs) as client,
        ):
            asked = await one_round(client, "Late", {})
            again = await one_round(client, "Late", {}, asked)
            result = await one_round(client, "Late", {}, again, **{"?": {"text": "a"}})

    assert messages(asked) == messages(again) == ["?"]
    assert text_of(result) == "a"


async def test_the_failure_of_a_stored_run_is_told_again(store):
    """The second call with the id of a run that has failed gets the class of the original exception."""

    class Fails(Workflow[str]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            raise KeyError("secret")

    errors = []
    for _ in range(2):
        async with (
            open_run_store(store.open()) as runs,
            client_of(Fails(), run_store=runs) as client,
        ):
            errors.append(error_of(await client.call_tool("Fails", {"run_id": "f-1"})))

    assert errors == ["Fails failed: KeyError (run f-1)"] * 2


class Brief(Workflow[str]):
    """Works for a moment."""

    opened: list[str]

    @step
    async def only(self, ctx: Context, ev: Topic) -> StopEvent:
        self.opened.append(ev.topic)
        try:
            await anyio.sleep(0.003)
        finally:
            self.opened.remove(ev.topic)
        return StopEvent(result=ev.topic)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_run_without_an_id_has_ended_wherever_its_request_is_cancelled(backend):
    """At each position, its step has unwound, and the store has no run that is under way or owned."""

    async def scenario(trial):
        flow = Brief()
        flow.opened = []
        async with open_run_store(MemoryStore().open()) as runs:
            serve = mcp_server(flow, run_store=runs).get_request_handler("tools/call").handler
            params = types.CallToolRequestParams(name="Brief", arguments={"topic": "a"})
            with trial.target("request"):
                result = await serve(Request(), params)
                assert text_of(result) == "a"
            assert not flow.opened
            for run in await runs.list():
                assert run.is_over, run
                assert run.owner is None

    report = sweep(scenario, target="request", kinds="scope", backends=backend)

    assert report.runs > 10
