"""The translation of a run into the events of AG-UI: the rules of the protocol, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluicegate import (
    ChildEvent,
    Context,
    Event,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    observe,
    step,
)
from sluicegate._events import StepStateChanged
from sluicegate.llms import ReasoningDelta, TextDelta, ToolCalled, ToolReturned
from sluicegate.testing import run_virtually


pytest.importorskip("starlette")
ag_ui = pytest.importorskip("ag_ui", reason="pip install ag-ui-protocol")

from sluicegate.serve._ag_ui import Interrupt, Translator, encoded  # noqa: E402
from sluicegate.serve._json_patch import json_patch  # noqa: E402
from tests.serve.ag_ui_programs import Translating, translate_seed  # noqa: E402
from tests.serve.ag_ui_rules import Rules, patched  # noqa: E402


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("seed", range(8))
def test_random_programs_keep_the_rules(seed, backend):
    """Whatever a run does, and however it is interrupted or told, every event fits and all is closed."""
    assert translate_seed(seed, backend) == []


# -- single things ------------------------------------------------------------------------------------


class Found(Event):
    url: str


class Ask(InputRequiredEvent):
    text: str


class Writer(Workflow[str]):
    """Writes a text in pieces, thinks aloud, and calls a tool."""

    @step
    async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
        message = f"text of {ev.get('who', 'it')}"
        await ctx.stream.send(
            ReasoningDelta(message=f"{message}, thought", text="hm", is_last=True)
        )
        await ctx.stream.send(TextDelta(message=message, text="Water, "))
        await ctx.stream.send(TextDelta(message=message, text="held back."))
        await ctx.stream.send(
            ToolCalled(id=f"call of {message}", name="look", arguments='{"at": 1}', message=message)
        )
        await ctx.stream.send(ToolReturned(id=f"call of {message}", content="a lock"))
        await ctx.stream.send(Found(url="..."))
        return StopEvent(result=message)


class Parent(Workflow[list[str]]):
    """Runs two writers at a time."""

    writer = Writer()

    @step
    async def begin(self, ev: StartEvent) -> list[Found]:
        return [Found(url="a"), Found(url="b")]

    @step(num_workers=2)
    async def read(self, ctx: Context, ev: Found) -> Ask:
        stream = "tag" if ev.url == "a" else "forward"
        await ctx.run_child(self.writer, who=ev.url, run_id=f"of {ev.url}", stream=stream)
        await ctx.progress(1, 2, "read")
        return Ask(text=ev.url)

    @step
    async def end(self, evs: list[Ask]) -> StopEvent:
        return StopEvent(result=[ev.text for ev in evs])


def translate(workflow: Workflow[Any], **fields: Any) -> Rules:
    """Run a workflow, and return its one exchange."""
    observer = Translating()

    async def main() -> None:
        await workflow.run(run_id="r", **fields)

    with observe(observer):
        run_virtually(main)
    (rules,) = observer.translations["r"].exchanges
    return rules


def test_a_run_from_beginning_to_end():
    """Steps, text, reasoning, calls of tools and other events come as the protocol has them."""
    rules = translate(Writer())

    assert rules.kinds == [
        *("RUN_STARTED", "STEP_STARTED"),
        *("REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT"),
        *("REASONING_MESSAGE_END", "REASONING_END"),
        *("TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_CONTENT"),
        *("TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT"),
        *("CUSTOM", "TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_FINISHED"),
    ]
    assert rules.texts == {"text of it, thought": "hm", "text of it": "Water, held back."}
    custom = next(event for event in rules.seen if event["type"] == "CUSTOM")
    assert (custom["name"], custom["value"]) == ("Found", {"url": "..."})
    assert rules.seen[-1]["result"] == "text of it"
    assert all(isinstance(event["timestamp"], int) for event in rules.seen[1:])


def test_children_are_subagents():
    """Two children at a time, with the same messages, are told apart by their owner."""
    rules = translate(Parent())

    of = {
        name: [e["type"] for e in rules.seen if e.get("subagentRunId") == name]
        for name in ("of a", "of b")
    }
    assert of["of a"] == of["of b"]
    assert of["of a"][0] == "SUBAGENT_STARTED"
    assert of["of a"][-1] == "SUBAGENT_FINISHED"
    assert {"TEXT_MESSAGE_CONTENT", "CUSTOM", "TOOL_CALL_RESULT", "STEP_STARTED"} <= {*of["of a"]}
    assert rules.texts["text of a"] == rules.texts["text of b"] == "Water, held back."
    steps = [e["stepName"] for e in rules.seen if e["type"] == "STEP_STARTED"]
    assert {"read", "read (2)"} <= {*steps}
    assert rules.kinds.count("ACTIVITY_SNAPSHOT") == 2


@pytest.mark.parametrize(
    ("last", "kind", "fields"),
    [
        (StopEvent(), "RUN_FINISHED", {"outcome": {"type": "success"}}),
        (StopEvent(result=[1]), "RUN_FINISHED", {"result": [1]}),
        (WorkflowCancelledEvent(), "RUN_FINISHED", {"outcome": {"type": "cancelled"}}),
        (
            WorkflowFailedEvent(exception=ValueError("secret"), step_name="write"),
            "RUN_ERROR",
            {"message": "ValueError in the step write", "code": "ValueError"},
        ),
        (
            WorkflowTimedOutEvent(timeout=2.0),
            "RUN_ERROR",
            {"message": "the run did not end within 2 s", "code": "timed_out"},
        ),
    ],
)
def test_how_an_exchange_ends(last, kind, fields):
    """A cancellation is no error, and the text of an exception is not told."""
    translator, rules = Translator("r", "W"), Rules()
    rules.take(translator.start("t", "x"))
    rules.take(translator.published(TextDelta(message="m", text="a")))
    rules.take(translator.published(ToolCalled(id="c", name="look")))
    rules.take(translator.finish(last))

    assert rules.kinds[-2:] == ["TEXT_MESSAGE_END", kind]
    assert {**rules.seen[-1], **fields} == rules.seen[-1] | fields
    assert "secret" not in str(rules.seen)
    if kind == "RUN_FINISHED" and isinstance(last, WorkflowCancelledEvent):
        assert "result" not in rules.seen[-1]
    assert translator.published(Found(url="late")) == []


def test_an_interrupt_and_the_exchange_after_it():
    """An open question ends the exchange; the next one begins with the state and goes on."""
    translator, first = Translator("r", "W"), Rules()
    first.take(translator.start("t", "1"))
    first.take(translator.state({"page": 1}))
    first.take(translator.published(TextDelta(message="m", text="one ")))
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}}
    first.take(translator.interrupt([Interrupt("q1", "r", "go on?", schema, {"type": "Ask"})]))
    second = Rules(first.state)
    second.take(translator.start("t", "2", "1"))
    second.take(translator.published(TextDelta(message="m", text="two")))
    second.take(translator.finish(StopEvent(result=1)))

    (interrupt,) = first.interrupts
    assert (interrupt["id"], interrupt["message"]) == ("q1", "go on?")
    assert interrupt["responseSchema"] == schema
    assert first.kinds[-3:] == ["STATE_SNAPSHOT", "TEXT_MESSAGE_END", "RUN_FINISHED"]
    assert second.kinds[:3] == ["RUN_STARTED", "STATE_SNAPSHOT", "TEXT_MESSAGE_START"]
    assert second.seen[0]["parentRunId"] == "1"
    assert (first.texts["m"], second.texts["m"]) == ("one ", "two")


def test_an_exchange_that_fails_is_closed():
    """A server that stops ends the exchange with an error, and leaves nothing open."""
    translator, rules = Translator("r", "W"), Rules()
    rules.take(translator.start("t", "x"))
    rules.take(translator.published(ReasoningDelta(message="m", text="a")))
    rules.take(translator.stopping(2.0))
    rules.take(translator.fail("the server stops", "stopping"))

    assert rules.kinds[-3:] == ["REASONING_MESSAGE_END", "REASONING_END", "RUN_ERROR"]
    assert rules.is_over
    assert translator.fail("again", "stopping") == []


def test_messages_with_an_identifier_that_another_has():
    """The same identifier with another role, kind or owner is another message."""
    translator, rules = Translator("r", "W"), Rules()
    rules.take(translator.start("t", "x"))
    for event in (
        TextDelta(message="m", text="a"),
        TextDelta(message="m", text="b", role="user"),
        TextDelta(message="m", text="a", role="pirate"),
        ReasoningDelta(message="m", text="c"),
        ToolCalled(id="c", name="look"),
        ToolCalled(id="c", name="look again"),
        ToolReturned(id="c", content="d"),
        ToolReturned(id="c", content="e", is_error=True),
        TextDelta(message="c-result", text="f"),
        ChildEvent(path=("Inner",), event=Found(url="u")),
    ):
        rules.take(translator.published(event))
    rules.take(translator.finish(StopEvent()))

    assert dict(rules.texts) == {"m": "aa", "m#2": "b", "m#3": "c", "c-result#3": "f"}
    assert rules.kinds.count("TOOL_CALL_START") == 1


def test_a_reader_of_the_stream_alone_hears_of_steps():
    """The internal events name them; an end whose beginning was not read is not told."""
    translator, rules = Translator("r", "W"), Rules()
    rules.take(translator.start("t", "x"))
    for name, state in (
        *(("early", "done"), ("write", "running"), ("write", "running")),
        *(("write", "raised"), ("write", "done"), ("late", "running")),
    ):
        event = StepStateChanged(name=name, state=state, input_event_name="StartEvent")
        rules.take(translator.published(event))
    rules.take(translator.finish(StopEvent()))

    steps = [event for event in rules.seen if event["type"].startswith("STEP_")]
    assert [(event["type"], event["stepName"]) for event in steps] == [
        *(("STEP_STARTED", "write"), ("STEP_STARTED", "write (2)")),
        *(("STEP_FINISHED", "write"), ("STEP_FINISHED", "write (2)")),
        *(("STEP_STARTED", "late"), ("STEP_FINISHED", "late")),
    ]
    assert [
        event["metadata"]["sluicegate"]["outcome"]
        for event in steps
        if "outcome" in event["metadata"]["sluicegate"]
    ] == ["failed", "completed"]


@given(text=st.text(max_size=20))
def test_texts_that_json_cannot_hold(text):
    """A lone surrogate becomes a replacement character; a line break cannot end a block."""
    odd = f"{text}\ud800\n\ndata: x"
    translator = Translator("r", "W")
    translator.start("t", odd)
    events = translator.published(TextDelta(message=odd, text=odd))
    events += translator.published(ToolCalled(id=odd, name=odd, arguments=odd))
    events += translator.published(Found(url=odd))
    body = encoded(events, "7").decode()

    assert body.count("\n\n") == len(events)
    assert body.count("id: 7\n") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab/~", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text("ab/~0", max_size=2), inner)
    ),
    max_leaves=15,
)


@given(old=JSON, new=JSON)
@settings(max_examples=500)
def test_a_patch_makes_the_new_value_of_the_old_one(old, new):
    """RFC 6902, applied in order."""
    patch = json_patch(old, new)

    if patch is not None:
        made = patched(old, patch)
        assert (made, repr(made)) == (new, repr(new) if repr(old) == repr(new) else repr(made))
        assert (patch == []) == (repr(sorted_keys(old)) == repr(sorted_keys(new)))


def sorted_keys(value: Any) -> Any:
    """Return a value with the names of its objects in order."""
    if isinstance(value, dict):
        return {name: sorted_keys(value[name]) for name in sorted(value)}
    return [*map(sorted_keys, value)] if isinstance(value, list) else value


def test_small_changes_make_small_patches():
    """One item of a long list costs one operation, and a state that is too deep is sent whole."""
    old: Any = {"items": [*range(1000)], "a": {"b": 1}}

    assert json_patch(old, {**old, "items": [*range(500), *range(501, 1000)]}) == [
        {"op": "remove", "path": "/items/500"}
    ]
    assert json_patch(old, {**old, "items": [*range(1000), 5]}) == [
        {"op": "add", "path": "/items/1000", "value": 5}
    ]
    assert json_patch(old, {**old, "a": {"b": True}}) == [
        {"op": "replace", "path": "/a/b", "value": True}
    ]
    assert json_patch({"a": [*range(3000)]}, {"a": [*range(3000, 0, -1)]}) is None
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert json_patch([deep], [[deep]]) is None
