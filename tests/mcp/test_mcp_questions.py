"""Questions as rounds: the run is in the state that the client carries, and nowhere else."""

from __future__ import annotations

import base64
from typing import Any

import anyio
import pytest
from mcp import types
from mcp.server import request_state
from mcp.shared.exceptions import MCPError

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
from sluicegate.mcp import mcp_server
from sluicegate.testing import sweep
from tests.helpers import nothing_left
from tests.mcp.flows import (
    KEY,
    Book,
    Hotel,
    Person,
    Where,
    accepted,
    client_of,
    error_of,
    messages,
    one_round,
    text_of,
)


pytestmark = pytest.mark.anyio

TO_ROME = {"to": "Rome"}
ROOM = {"name": "Ritz", "stars": 5}
BOOKED = {"hotel": "Ritz", "day": 7, "stars": 5}
REFUSED = (
    "Invalid or expired requestState: it was altered, is older than 3600 s, or belongs to another call, user or "
    "server; expected the tool to be called again from the beginning, without requestState"
)


class Ask(InputRequiredEvent):
    pass


class Reply(HumanResponseEvent):
    text: str


class Interview(Workflow[str]):
    """Asks as many questions as you like, one after the other; it keeps what the steps did."""

    done: list[str]

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ask:
        self.done.append("begin")
        await ctx.store.set("asked", 0)
        await ctx.store.set("left", ev.get("questions", 1))
        await ctx.store.set("padding", "x" * ev.get("padding", 0))
        return Ask(prompt="0?")

    @step
    async def go_on(self, ctx: Context, ev: Reply) -> Ask | StopEvent:
        self.done.append(ev.text)
        async with ctx.store.edit_state() as state:
            state.asked += 1
            state.left -= 1
            return Ask(prompt=f"{state.asked}?") if state.left else StopEvent(result=ev.text)


def interview():
    flow = Interview()
    flow.done = []
    return flow


# -- rounds -------------------------------------------------------------------------------------------


async def test_questions_are_asked_in_rounds_all_open_ones_at_a_time():
    """Two questions in one round, a third in the next, and then the result."""
    person = Person(Which_hotel=ROOM, Which_day={"day": 7}, Book_Ritz={"sure": True})
    async with client_of(Book(), elicit=person) as client:
        with nothing_left():
            result = await client.call_tool("Book", TO_ROME)

    assert result.structured_content == BOOKED
    assert {message for message, _ in person.asked[:2]} == {
        "Which hotel in Rome?",
        'Which day?\n{"earliest": 5}',
    }
    assert [message for message, _ in person.asked[2:]] == ["Book Ritz for day 7?"]
    assert dict(person.asked)["Which hotel in Rome?"] == {
        "type": "object",
        "properties": {"name": {"type": "string"}, "stars": {"type": "integer", "default": 3}},
        "required": ["name"],
    }


async def test_nothing_of_a_run_is_kept_between_rounds():
    """Each round is a request of its own, in a server of its own, and no task is left in between."""
    flows = [interview() for _ in range(3)]
    with nothing_left():
        async with client_of(flows[0]) as client:
            first = await one_round(client, "Interview", {"questions": 2})
    with nothing_left():
        async with client_of(flows[1]) as client:
            second = await one_round(
                client, "Interview", {"questions": 2}, first, **{"0?": {"text": "a"}}
            )
    with nothing_left():
        async with client_of(flows[2]) as client:
            third = await one_round(
                client, "Interview", {"questions": 2}, second, **{"1?": {"text": "b"}}
            )

    assert messages(first) == ["0?"]
    assert messages(second) == ["1?"]
    assert text_of(third) == "b"
    assert [flow.done for flow in flows] == [["begin"], ["a"], ["b"]]


class Work(Event):
    pass


class Busy(Workflow[str]):
    """Asks, and works on."""

    worked: list[str]

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Work | Where:
        ctx.send_event(Work())
        return Where(prompt="Which?")

    @step
    async def work(self, ctx: Context, ev: Work) -> None:
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        self.worked.append("all")

    @step
    async def end(self, ev: Hotel) -> StopEvent:
        return StopEvent(result=ev.name)


async def test_a_question_is_asked_only_when_the_run_is_idle():
    """While a step works, the question that another one has asked stays with the run."""
    flow = Busy()
    flow.worked = []
    async with client_of(flow) as client:
        first = await one_round(client, "Busy", {})

        assert flow.worked == ["all"]
        assert messages(first) == ["Which?"]
        result = await one_round(client, "Busy", {}, first, Which=ROOM)

    assert text_of(result) == "Ritz"
    assert flow.worked == ["all"]


async def test_an_open_question_stays_open_if_only_others_are_answered():
    """The client may answer some: the others are asked again, and the answers given are kept."""
    async with client_of(Book()) as client:
        first = await one_round(client, "Book", TO_ROME)
        second = await one_round(client, "Book", TO_ROME, first, Which_day={"day": 7})
        third = await one_round(client, "Book", TO_ROME, second, Which_hotel=ROOM)
        result = await one_round(client, "Book", TO_ROME, third, Book_Ritz={"sure": True})

    assert messages(second) == ["Which hotel in Rome?"]
    assert [*second.input_requests] == [
        key for key, each in first.input_requests.items() if "hotel" in each.params.message
    ]
    assert result.structured_content == BOOKED


async def test_an_answer_that_does_not_fit_is_asked_for_again():
    """The question comes back with the field and what is wrong with it."""
    async with client_of(Book()) as client:
        first = await one_round(client, "Book", TO_ROME)
        second = await one_round(
            client, "Book", TO_ROME, first, Which_day={"day": "soon"}, Which_hotel=ROOM
        )
        third = await one_round(client, "Book", TO_ROME, second, Which_day={"day": 7})

    assert messages(second) == [
        "Day.day is 'soon', which is not int: Expected `int`, got `str`\nWhich day?\n{\"earliest\": 5}"
    ]
    assert messages(third) == ["Book Ritz for day 7?"]


async def test_answers_to_nothing_that_was_asked_are_ignored():
    """A client may send keys that no question has."""
    async with client_of(Book()) as client:
        first = await one_round(client, "Book", TO_ROME)
        second = await client.session.call_tool(
            "Book",
            TO_ROME,
            input_responses={"q99": accepted(name="x")},
            request_state=first.request_state,
            allow_input_required=True,
        )

    assert [*second.input_requests] == [*first.input_requests]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize(("action", "text"), [("decline", "declined"), ("cancel", "did not want")])
async def test_a_user_who_does_not_answer_ends_the_call(mode, action, text):
    """The result is an error that says which question was not answered."""
    person = Person(Which_hotel=types.ElicitResult(action=action), Which_day={"day": 7})
    async with client_of(Book(), elicit=person, mode=mode) as client:
        with nothing_left():
            error = error_of(await client.call_tool("Book", TO_ROME))

    assert error.startswith(f"the user {text} to answer: Which hotel in Rome? (run ")


class Parent(Workflow[str]):
    """A question of its own, and those of a child."""

    book = Book()

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        booked = await ctx.run_child(self.book, to="Rome")
        return StopEvent(result=booked.hotel)


async def test_questions_of_children_are_asked():
    """A child's question has the child's run id in its key, and its answer reaches it in a later round."""
    async with client_of(Parent()) as client:
        first = await one_round(client, "Parent", {})
        second = await one_round(
            client, "Parent", {}, first, Which_day={"day": 7}, Which_hotel=ROOM
        )
        result = await one_round(client, "Parent", {}, second, Book_Ritz={"sure": True})

    assert len(messages(first)) == 2
    assert all("/q" in key for key in first.input_requests)
    assert text_of(result) == "Ritz"


async def test_a_wait_without_a_question_is_asked_for_by_its_class():
    """A step may wait for an event without asking; the client is asked for its fields."""

    class Parcel(Event):
        parcel: str

    class Desk(Workflow[str]):
        @step(waits_for=[Parcel])
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=(await ctx.wait_for_event(Parcel)).parcel)

    person = Person(The_run_waits_for_Parcel={"parcel": "book"})
    async with client_of(Desk(), elicit=person) as client:
        result = await client.call_tool("Desk", {})

    assert text_of(result) == "book"


async def test_a_run_that_waits_without_asking_is_an_error():
    """A step that takes an answer to which there is no question makes the call fail, not hang."""

    class Unasked(Workflow[str]):
        @step
        async def begin(self, ev: StartEvent) -> None:
            return None

        @step
        async def end(self, ev: Reply) -> StopEvent:
            return StopEvent(result=ev.text)

    async with client_of(Unasked()) as client:
        error = error_of(await client.call_tool("Unasked", {}))

    assert error.startswith("Unasked waits for an event from outside, and has asked no question")


# -- earlier protocols, and clients that cannot be asked ------------------------------------------------


async def test_a_client_of_an_earlier_protocol_is_asked_during_the_call():
    """Before 2026-07-28 the server asks while the request is open, again if the answer does not fit."""

    class Fickle(Person):
        async def __call__(self, ctx, params):
            if not self.asked and "day" in params.message:
                await super().__call__(ctx, params)
                return accepted(day="soon")
            return await super().__call__(ctx, params)

    person = Fickle(Which_day={"day": 7}, Which_hotel=ROOM, Book_Ritz={"sure": True})
    async with client_of(Book(), elicit=person, mode="legacy") as client:
        with nothing_left():
            result = await client.call_tool("Book", TO_ROME)

    assert result.structured_content == BOOKED
    assert len(person.asked) >= 3


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_that_cannot_be_asked_gets_an_error_of_the_protocol(mode):
    """The error has the capability that is missing; the run has ended."""
    async with client_of(Book(), mode=mode, elicit=None) as client:
        with nothing_left(), pytest.raises(MCPError, match="Book asks") as caught:
            await client.call_tool("Book", TO_ROME)

    assert caught.value.code == types.MISSING_REQUIRED_CLIENT_CAPABILITY
    assert caught.value.data == {"requiredCapabilities": {"elicitation": {"form": {}}}}


# -- the state ------------------------------------------------------------------------------------------


async def test_the_state_cannot_be_read_or_altered():
    """It is encrypted, and a change of any byte is refused."""
    async with client_of(Book()) as client:
        asked = await one_round(client, "Book", {"to": "a secret place"})
        sealed = asked.request_state
        raw = base64.urlsafe_b64decode(sealed.partition(".")[2] + "==")

        assert b"secret place" not in raw
        for place in range(3, len(sealed), 97):
            other = "A" if sealed[place] != "A" else "B"
            altered = sealed[:place] + other + sealed[place + 1 :]
            with pytest.raises(MCPError) as caught:
                await client.session.call_tool(
                    "Book",
                    {"to": "a secret place"},
                    request_state=altered,
                    allow_input_required=True,
                )

            assert caught.value.message == REFUSED
            assert caught.value.code == types.INVALID_PARAMS


async def _refused(asked, *workflows, name="Book", arguments=TO_ROME, **options):
    async with client_of(*workflows, **options) as client:
        with pytest.raises(MCPError) as caught:
            await client.session.call_tool(
                name, arguments, request_state=asked.request_state, allow_input_required=True
            )
    return caught.value.message


async def test_state_of_elsewhere_is_refused():
    """Other keys, another server, another tool, other arguments, or none of the server's: refused."""
    async with client_of(Book()) as client:
        asked = await one_round(client, "Book", TO_ROME)

    assert (
        await _refused(asked, Book(), state_keys=["another secret of the operator, 32"]) == REFUSED
    )
    assert await _refused(asked, {"Book": Book(), "Book2": Book()}, name="Book2") == REFUSED
    assert await _refused(asked, Book(), arguments={"to": "Oslo"}) == REFUSED
    asked.request_state = "made up"
    assert await _refused(asked, Book()) == REFUSED


async def test_state_of_another_server_with_the_same_keys_is_refused():
    """The name of the server is part of the seal."""
    server = mcp_server(Book(), name="mine", state_keys=[KEY])
    async with client_of(Book()) as client:
        asked = await one_round(client, "Book", TO_ROME)

    assert server.name == "mine"
    async with client_of(Book(), name="mine") as client:
        with pytest.raises(MCPError) as caught:
            await one_round(client, "Book", TO_ROME, asked)

    assert caught.value.message == REFUSED


async def test_state_expires(monkeypatch):
    """After ``state_ttl`` seconds an answer is too late."""
    async with client_of(Book(), state_ttl=60) as client:
        asked = await one_round(client, "Book", TO_ROME)
        now = request_state.time.time()
        monkeypatch.setattr(request_state.time, "time", lambda: now + 59)
        assert messages(await one_round(client, "Book", TO_ROME, asked))
        monkeypatch.setattr(request_state.time, "time", lambda: now + 61)
        with pytest.raises(MCPError, match="is older than 60 s"):
            await one_round(client, "Book", TO_ROME, asked)


async def test_keys_are_rotated():
    """The first key seals, and each of the list opens."""
    new = "the new secret of the operator, 32"
    async with client_of(Book(), state_keys=[KEY]) as client:
        asked = await one_round(client, "Book", TO_ROME)
    async with client_of(Book(), state_keys=[new, KEY]) as client:
        asked = await one_round(client, "Book", TO_ROME, asked, Which_day={"day": 7})
    async with client_of(Book(), state_keys=[new]) as client:
        asked = await one_round(client, "Book", TO_ROME, asked, Which_hotel=ROOM)

    assert messages(asked) == ["Book Ritz for day 7?"]


async def test_a_replayed_round_continues_from_its_snapshot_again():
    """Without a store the state is the run: who sends a round again gets another run from there."""
    flow = interview()
    async with client_of(flow) as client:
        asked = await one_round(client, "Interview", {})
        first = await one_round(client, "Interview", {}, asked, **{"0?": {"text": "a"}})
        second = await one_round(client, "Interview", {}, asked, **{"0?": {"text": "b"}})

    assert (text_of(first), text_of(second)) == ("a", "b")
    assert flow.done == ["begin", "a", "b"]


async def test_state_of_a_workflow_that_has_changed_is_refused(caplog):
    """A snapshot that does not fit the steps any more is an error that says what to do."""
    async with client_of({"talk": interview()}) as client:
        asked = await one_round(client, "talk", {})
    async with client_of({"talk": Changed()}) as client:
        error = error_of(await one_round(client, "talk", {}, asked))

    assert error == (
        "the state is one of an earlier version of talk, or of a server that keeps runs differently; expected the "
        "tool to be called again from the beginning, without requestState"
    )
    assert "the step go_on is gone" in caplog.text


class Changed(Workflow[str]):
    @step
    async def begin(self, ev: StartEvent) -> Ask:
        return Ask()

    @step
    async def renamed(self, ev: Reply) -> StopEvent:
        return StopEvent()


Changed.__name__ = "Interview"


async def test_state_above_256_kib_is_an_error_that_names_the_run_store():
    """A client is not given more to carry; just below the limit it is."""
    async with client_of(interview()) as client:
        asked = await one_round(client, "Interview", {"padding": 255 * 1024})
        with nothing_left():
            error = error_of(await one_round(client, "Interview", {"padding": 299 * 1024 + 500}))

    assert messages(asked) == ["0?"]
    assert error == (
        "the state of Interview takes 300 KiB, and a client is given at most 256 KiB to carry; expected a run "
        "store, which keeps it: mcp_server(..., run_store=runs)"
    )


async def test_a_value_that_cannot_be_kept_fails_the_call(caplog):
    """A live object in the state of the run cannot go to the client; the log says where it is."""

    class Live(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Ask:
            await ctx.store.set("lock", anyio.Lock())
            return Ask()

        @step
        async def end(self, ev: Reply) -> StopEvent:
            return StopEvent()

    async with client_of(Live()) as client:
        error = error_of(await one_round(client, "Live", {}))

    assert error.startswith("Live failed: SnapshotError (run ")
    assert "the state['lock'] is a Lock" in caplog.text


# -- what is left -----------------------------------------------------------------------------------------


class Careful(Workflow[str]):
    """Asks twice in one step, which begins again in each round."""

    opened: list[Any]

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.opened.append(ev)
        try:
            first = await ctx.wait_for_event(Reply, Ask(prompt="a"))
            await anyio.sleep(1)
            second = await ctx.wait_for_event(Reply, Ask(prompt="b"))
            return StopEvent(result=first.text + second.text)
        finally:
            self.opened.remove(ev)


async def round_of(flow, state=None, **answers):
    """Serve one round, without a client."""
    serve = mcp_server(flow, state_keys=[KEY]).get_request_handler("tools/call").handler
    params = types.CallToolRequestParams(
        name="Careful", arguments={}, request_state=state, input_responses=answers
    )
    return await serve(Request(), params)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_nothing_of_a_run_is_left_wherever_a_round_is_cancelled(backend):
    """A round that begins at a snapshot, takes an answer and asks again, unwinds at each position."""

    async def begin():
        flow = Careful()
        flow.opened = []
        return await round_of(flow)

    begun = anyio.run(begin)

    async def scenario(trial):
        flow = Careful()
        flow.opened = []
        try:
            asked = await round_of(flow, begun.request_state, q1=accepted(text="x"))
        finally:
            assert not flow.opened
        assert messages(asked) == ["b"]

    report = sweep(scenario, backends=backend)

    assert report.runs > 10


class Request:
    """What a handler uses of a request's context, where there is no client."""

    protocol_version = "2026-07-28"
    client_capabilities = types.ClientCapabilities(elicitation=types.ElicitationCapability())

    @property
    def session(self):
        return self

    async def report_progress(self, _number: float, *, message: Any) -> None:
        await anyio.lowlevel.checkpoint()
