"""Messages, replies, and how pieces are put together and put on the wire."""

from __future__ import annotations

import copy
import json
import pickle

import anyio
import attrs
import pytest

from sluicegate import Context, Event, HumanResponseEvent, StartEvent, StopEvent, Workflow, step
from sluicegate.llms import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    MockLLM,
    ToolCall,
    Usage,
)
from sluicegate.llms._assembly import Assembly, Piece
from sluicegate.llms._wire import from_messages, from_prompt, max_tokens_name, to_piece


def chunk(delta=None, **choice):
    """Make a chunk of a stream as a server sends it."""
    return {"model": "m", "choices": [{"index": 0, "delta": delta or {}} | choice]}


def assemble(*chunks):
    assembly = Assembly()
    for data in chunks:
        assembly.add(to_piece(data, raw=data))
    return assembly


def test_str_of_a_completion_is_its_text():
    """str() of a completion is all of its text so far, and the delta is text too."""
    response = CompletionResponse(text="all of it")

    assert str(response) == "all of it"
    assert response.delta == ""


def test_str_of_a_chat_reply_names_the_speaker():
    """str() of a chat reply is "assistant: " and the text."""
    response = ChatResponse(message=ChatMessage(role="assistant", content="Hello."))

    assert str(response) == "assistant: Hello."
    assert response.text == "Hello."


def test_roles_are_checked_strings():
    """A role may be written as text, is a MessageRole afterwards, and cannot be invented."""
    message = ChatMessage("system", "x")

    assert message.role is MessageRole.SYSTEM
    assert message.role == "system"
    with pytest.raises(ValueError, match="captain"):
        ChatMessage("captain", "x")


def test_no_content_is_no_text():
    """A message without content, as a model's wish for a tool is one, has the empty text."""
    assert ChatMessage("assistant", None) == ChatMessage("assistant")
    assert str(ChatMessage("assistant", None)) == "assistant: "


def test_replies_are_frozen():
    """Replies can be kept and shared: no one changes them."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        CompletionResponse(text="x").text = "y"


def test_arguments_of_tools_are_parsed():
    """`parsed` reads the JSON; nothing at all means no arguments."""
    assert ToolCall(name="f", arguments='{"a": [1]}').parsed == {"a": [1]}
    assert ToolCall(name="f").parsed == {}


def test_arguments_that_are_not_json():
    """Arguments that are not JSON raise an error with the tool's name and the text."""
    with pytest.raises(ValueError, match=r"tool 'f' are not valid JSON.*\{\"a\""):
        _ = ToolCall(name="f", arguments='{"a"').parsed


def test_text_of_mixed_content():
    """The text of a message in parts is that of its text parts."""
    parts = [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": "u"}}]

    assert str(ChatMessage(content=parts)) == "user: Look: "
    assert parts == from_messages([ChatMessage(content=parts)], None)[0]["content"]


def test_text_grows():
    """Each piece has its own delta and all of the text until then."""
    assembly = assemble(chunk({"role": "assistant", "content": "One"}))
    first = assembly.completion()
    assembly.add(to_piece(chunk({"content": " two"}), None))

    assert (first.text, first.delta) == ("One", "One")
    assert (assembly.completion().text, assembly.completion().delta) == ("One two", " two")


def test_chunks_that_say_nothing():
    """Chunks without choices, without delta, or with null in any place change nothing."""
    odd = [
        {"choices": []},
        {"choices": None},
        {},
        {"choices": [{"index": 0}]},
        {"choices": [{"index": 0, "delta": None, "finish_reason": None}], "usage": None},
        chunk({"content": None, "tool_calls": None, "reasoning": None}),
        chunk({"tool_calls": [None, {"index": 0, "function": None}]}),
        {"choices": "nonsense", "usage": "nonsense", "model": 7},
    ]
    response = assemble(chunk({"content": "x"}), *odd).completion()

    assert (
        response.text,
        response.delta,
        response.finish_reason,
        response.usage,
    ) == ("x", "", None, None)


def test_usage_and_finish_reason_stay():
    """What is known once stays known in the replies that follow."""
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "completion_tokens_details": {"reasoning_tokens": 2},
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    response = assemble(
        chunk({"content": "x"}), chunk(finish_reason="stop"), {"choices": [], "usage": usage}
    ).completion()

    assert response.finish_reason == "stop"
    assert attrs.astuple(response.usage) == (3, 4, 7, 2, 1)
    assert response.additional_kwargs["total_tokens"] == 7


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_under_either_name(name):
    """Reasoning is collected beside the text, whatever the server calls it."""
    response = assemble(chunk({name: "Hm"}), chunk({name: "m."}), chunk({"content": "A"})).chat()

    assert (response.reasoning, response.reasoning_delta, response.text) == ("Hmm.", "", "A")


def test_tool_calls_are_put_together():
    """Calls come in pieces, by index; id and name may be repeated and are not doubled."""

    def part(index, **function):
        return {"index": index, "id": f"id{index}", "function": {"name": f"f{index}"} | function}

    response = assemble(
        chunk({"tool_calls": [part(0, arguments=""), part(1, arguments='{"b"')]}),
        chunk({"tool_calls": [part(0, arguments='{"a": 1}')]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": ": 2}"}}]}),
        chunk(finish_reason="tool_calls"),
    ).chat()

    assert [
        ToolCall(id="id0", name="f0", arguments='{"a": 1}'),
        ToolCall(id="id1", name="f1", arguments='{"b": 2}'),
    ] == list(response.tool_calls)
    assert response.message.tool_calls[1].parsed == {"b": 2}


def test_other_choices_are_left_to_raw():
    """With several choices asked for, the reply is the first one's."""
    other = {"choices": [{"index": 1, "delta": {"content": "other"}}]}

    assert assemble(chunk({"content": "x"}), other).completion().text == "x"


def test_a_whole_reply_has_no_delta():
    """A reply that came in one is all text and no delta, and keeps what the server sent."""
    data = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    response = assemble(data).whole().completion()

    assert (response.text, response.delta, response.finish_reason) == ("x", "", "stop")
    assert response.raw is data


def test_a_conversation_with_tools_on_the_wire():
    """A model's tool calls and their results go back in the shape that OpenAI documents."""
    call = ToolCall(id="c1", name="f", arguments="{}")
    wire = from_messages(
        [
            ChatMessage("user", "Go", name="ada"),
            ChatMessage("assistant", tool_calls=[call]),
            ChatMessage("tool", "42", tool_call_id="c1", additional_kwargs={"extra": 1}),
        ],
        None,
    )

    assert wire == [
        {"role": "user", "content": "Go", "name": "ada"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1", "extra": 1},
    ]


def test_system_prompt():
    """The system prompt goes first, unless the messages have one of their own."""
    assert from_prompt("Hi", "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    own = [ChatMessage("developer", "Be long."), ChatMessage(content="Hi")]
    assert len(from_messages(own, "Be brief.")) == 2


def test_a_prompt_in_the_place_of_messages():
    """Text where messages belong, or messages where text belongs, is refused with the right line."""
    with pytest.raises(TypeError, match=r"\[ChatMessage\(role=\"user\""):
        from_messages("Hi", None)
    with pytest.raises(TypeError, match=r"\[ChatMessage\(role=\"user\""):
        from_messages(ChatMessage(content="Hi"), None)
    with pytest.raises(TypeError, match="achat"):
        from_prompt([ChatMessage(content="Hi")], None)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "max_tokens"),
        ("o3-mini", "max_completion_tokens"),
        ("gpt-5", "max_completion_tokens"),
        ("olmo", "max_tokens"),
    ],
)
def test_name_of_the_token_limit(model, name):
    """Reasoning models have another name for the limit, everyone else the old one."""
    assert name == max_tokens_name(model)


def test_pieces_are_plain():
    """An empty piece changes nothing but the delta."""
    assembly = assemble(chunk({"content": "x"}))
    assembly.add(Piece())

    assert (assembly.completion().text, assembly.completion().delta) == ("x", "")


# -- kept and copied -------------------------------------------------------------------------------


def replies():
    call = ToolCall(id="1", name="look", arguments="{}")
    message = ChatMessage("assistant", "Hi", tool_calls=[call], additional_kwargs={"a": [1]})
    parts = ChatMessage(content=[{"type": "text", "text": "Hi"}])
    assembly = Assembly()
    assembly.add(Piece(text="Hi", usage=Usage(total_tokens=3)))
    return [ChatMessage(), message, parts, call, Usage(), assembly.chat(), assembly.completion()]


@pytest.mark.parametrize("value", replies(), ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "copied", [lambda v: pickle.loads(pickle.dumps(v)), copy.copy, copy.deepcopy, attrs.evolve]
)
def test_messages_and_replies_are_pickled_and_copied(value, copied):
    """They are values: they go to other processes, and into copies of a state."""
    found = copied(value)

    assert found == value
    assert type(found) is type(value)
    if not isinstance(value, ToolCall | Usage):
        assert found.additional_kwargs == value.additional_kwargs


class Answered(HumanResponseEvent):
    pass


class Said(Event):
    reply: ChatResponse


@attrs.define
class Conversation:
    history: list[ChatMessage] = attrs.field(factory=list)


class Agent(Workflow[list]):
    """Keeps its history in its state, and is asked in the middle of it."""

    @step
    async def ask(self, ctx: Context[Conversation], ev: StartEvent) -> Said:
        llm = MockLLM([ToolCall(id="1", name="look", arguments="{}")])
        async with ctx.store.edit_state() as state:
            state.history = [message for message in replies() if isinstance(message, ChatMessage)]
            reply = await llm.achat(state.history)
            state.history.append(reply.message)
        return Said(reply=reply)

    @step
    async def wait(self, ctx: Context[Conversation], ev: Said) -> StopEvent:
        await ctx.wait_for_event(Answered)
        state = await ctx.store.get_state()
        return StopEvent(result=[*state.history, ev.reply])


@pytest.mark.anyio
async def test_a_history_is_kept_in_a_snapshot():
    """An agent that keeps its messages and replies is resumed with them."""
    agent = Agent(serializable=[Answered])
    async with agent.run() as handler:
        while handler.status != "idle":
            await anyio.sleep(0)
        snapshot = json.loads(json.dumps(handler.snapshot()))
        handler.send_event(Answered())
        expected = await handler
    async with agent.resume(snapshot) as handler:
        handler.send_event(Answered())
        found = await handler

    assert found == expected
    assert [type(value) for value in found] == [ChatMessage] * 4 + [ChatResponse]


@pytest.mark.parametrize("arguments", ["[" * 200_000, "{" + "x" * 100_000])
def test_arguments_that_cannot_be_read_are_an_error_of_bounded_size(arguments):
    """Nested too deeply is not JSON either; and not all of it is shown."""
    with pytest.raises(ValueError, match="arguments for tool 'f' are not valid JSON") as caught:
        _ = ToolCall(name="f", arguments=arguments).parsed

    assert len(str(caught.value)) < 1000
