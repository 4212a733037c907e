"""The page for those who come from LlamaIndex Workflows: a program for each row of its tables.

A program is marked with texts that stand in the first cells of the rows that it shows. So a row that
is added, or changed, without a program is found, and so is a program whose row is gone.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import attrs
import pydantic
import pytest
import trio

import sluicegate
from sluicegate import (
    Context,
    DictState,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Invocation,
    Observer,
    Resource,
    ResourceConfig,
    RestoredError,
    Retry,
    SnapshotError,
    StartEvent,
    StatePathError,
    StepFailedEvent,
    StepStateChanged,
    StopEvent,
    Take,
    UnhandledEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowIdleEvent,
    WorkflowRuntimeError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    WorkflowValidationError,
    catch_error,
    draw_all_possible_flows,
    draw_all_possible_flows_mermaid,
    draw_most_recent_execution,
    draw_most_recent_execution_mermaid,
    step,
)
from sluicegate.llms import ChatMessage, MockLLM, ToolCall, call_tool, structured_chat, tool
from sluicegate.recording import Recorder
from sluicegate.testing import WorkflowTestRunner, run_step, run_workflow, step_through
from tests.helpers import cancelled_class, is_trio, wait_until_idle


PAGE = Path(__file__).parent.parent / "docs" / "coming-from-llamaindex.md"
LINE = re.compile(r"^\|(.*)\|$", re.MULTILINE)

#: Each program, with the texts that stand in the first cells of the rows that it shows.
PROGRAMS: list[tuple[tuple[str, ...], Any]] = []


def shows(*rows: str) -> Any:
    """Mark a program with the rows that it shows."""

    def mark(program: Any) -> Any:
        PROGRAMS.append((rows, program))
        return program

    return mark


def first_cells() -> list[str]:
    """Return the first cell of each row of the page, without those of headings and rules."""
    lines = LINE.findall(PAGE.read_text())
    rules = [number for number, line in enumerate(lines) if set(line) <= set("|- ")]
    left_out = {*rules, *(number - 1 for number in rules)}
    cells = [re.split(r"(?<!\\)\|", line)[0].strip() for line in lines]
    return [cell for number, cell in enumerate(cells) if number not in left_out]


# -- what the programs share -----------------------------------------------------------------------


class A(Event):
    n: int = 0


class SubA(A):
    pass


class B(Event):
    n: int = 0


class Echo(Workflow):
    @step
    async def echo(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(A(n=1))
        return StopEvent(result=ev.get("x"))


class Asks(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        question = InputRequiredEvent(prefix="Who? ")
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=question)
        return StopEvent(result=answer.response)


class Stays(Workflow):
    @step
    async def stay(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep_forever()
        return StopEvent()


def flow(function: Any, *others: Any, **members: Any) -> type[Workflow]:
    """Return a workflow whose steps are functions; the first begins."""
    steps = {each.__name__: step(each) for each in (function, *others)}
    return type("Flow", (Workflow,), {**steps, **members})


async def in_step(function: Any, **fields: Any) -> Any:
    """Return what an async function of a context returns, called in a step."""

    async def only(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await function(ctx))

    return await flow(only)().run(**fields)


def faults_of(cls: Any) -> str:
    with pytest.raises(WorkflowValidationError) as caught:
        cls()
    return str(caught.value)


# -- imports ---------------------------------------------------------------------------------------


@shows(
    "from workflows import Context",
    "from llama_index.core.workflow import",
    "from workflows.events import",
    "from workflows.collect import",
    "from workflows.resource import",
)
async def names_are_importable_from_the_top():
    names = "Context Workflow catch_error step Event StartEvent StopEvent InputRequiredEvent Take"
    names += " HumanResponseEvent StepFailedEvent WorkflowRuntimeError WorkflowHandler Resource"
    for name in f"{names} ResourceConfig WorkflowValidationError WorkflowTimeoutError".split():
        assert name in sluicegate.__all__
        assert getattr(sluicegate, name) is not None


@shows("from workflows.retry_policy import")
async def retries_are_those_of_tenacity():
    tenacity = importlib.import_module("tenacity")

    assert Retry(wait=tenacity.wait_fixed(1)) is not None


@shows("from llama_index.llms.openai import")
async def the_model_client_has_its_own_module():
    pytest.importorskip("openai")
    from sluicegate.llms.openai import OpenAI  # noqa: PLC0415

    assert OpenAI.__name__ == "OpenAI"


@shows("from llama_index.utils.workflow import", "draw_all_possible_flows(workflow, filename=...)")
async def the_drawing_is_a_page():
    path = draw_all_possible_flows(Echo(), filename="flows.html")

    assert path.read_text().startswith("<!DOCTYPE html>")
    assert "https://" not in path.read_text()


# -- the workflow ------------------------------------------------------------------------------------


@shows("timeout=45.0")
async def there_is_no_timeout_by_default():
    async with Asks().run() as handler:
        await anyio.sleep(0)
        handler.send_event(HumanResponseEvent(response="late"))

        assert await handler == "late"


@shows("`verbose`, `num_concurrent_runs`", "@step(skip_graph_checks=...)")
async def options_of_a_workflow():
    async def begin(self: Any, ev: StartEvent) -> StopEvent:
        return StopEvent(result=1)

    async def island(self: Any, ev: A) -> A: ...

    options = {"skip_graph_checks": ["reachability", "dead_end"], "num_concurrent_runs": 2}

    assert await flow(begin, island)(**options).run() == 1
    assert await Echo(verbose=True).run(x=1) == 1


@shows("disable_validation=True")
async def without_validation_undeclared_events_are_delivered():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> None:
        ctx.send_event(A(n=5))

    async def end(self: Any, ev: A) -> StopEvent:
        return StopEvent(result=ev.n)

    assert await flow(begin, end)(disable_validation=True).run() == 5
    assert "no step makes A, which the step end takes" in faults_of(flow(begin, end))


@attrs.define
class Money:
    amount: int


class Live:
    """An object without declared fields."""


@shows(
    "serializer=JsonSerializer(allowed_types=...)",
    "JsonSerializer(allowed_types=[...])",
    "`@step(retry_policy=...)`, `Workflow(serializer=...)`",
)
async def classes_for_snapshots_are_named():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("price", Money(3))
        answer = await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
        return StopEvent(result=((await ctx.store.get("price")).amount, answer.response))

    workflow = flow(begin)(serializable=[Money])
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = json.dumps(handler.snapshot())
        await handler.cancel_run()
    async with workflow.resume(json.loads(saved)) as handler:
        await wait_until_idle()
        handler.send_event(HumanResponseEvent(response="yes"))

        assert await handler == (3, "yes")
    with pytest.raises(TypeError, match=r"no option 'serializer'; expected `serializable="):
        Echo(serializer=None)
    with pytest.raises(TypeError, match=r"no option 'retry_policy'; expected `@step\(retry="):
        step(retry_policy=None)


@shows("run(ctx=..., start_event=..., run_id=..., **fields)")
async def arguments_of_run():
    workflow = Echo()
    handler = workflow.run(run_id="mine", start_event=StartEvent(x=2))

    assert await handler == 2
    assert handler.run_id == "mine"
    assert await workflow.run(ctx=handler.ctx, x=3) == 3


@attrs.define
class Settings:
    name: str = ""


@shows("`validate()`", "validate(validate_resources=True)")
async def validate_reads_no_file():
    async def begin(
        self: Any, ev: StartEvent, s: Annotated[Settings, ResourceConfig("missing.json")]
    ) -> StopEvent:
        return StopEvent()

    workflow = flow(begin)()

    assert workflow.validate() is False
    with pytest.raises(OSError, match=r"missing\.json"):
        await workflow.run()


@shows("add_step(function)", "@step(workflow=MyWorkflow)")
async def functions_become_steps():
    class Open(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A:
            return A(n=2)

    @step(workflow=Open)
    async def double(ev: A) -> B:
        return B(n=2 * ev.n)

    @step(num_workers=4)
    async def end(ev: B) -> StopEvent:
        return StopEvent(result=ev.n)

    Open.add_step(end)

    assert await Open().run() == 4


# -- steps -------------------------------------------------------------------------------------------


@shows(
    "@step(retry_policy=...)",
    "`retry_policy()`: 3 attempts",
    "retry_if_exception_type(OSError)",
    "retry_if_exception_message",
    "wait=wait_fixed(2)",
    "wait_exponential_jitter(max=30)",
    "stop_after_attempt(5)",
    "stop_after_delay(60)",
    "ConstantDelayRetryPolicy",
    "ExponentialBackoffRetryPolicy",
    "a class with `next(elapsed_time",
    "`ctx.retry_info()`",
)
async def retries():
    tenacity = importlib.import_module("tenacity")
    policies = [
        Retry(),
        Retry(wait=0.001),
        Retry(when=OSError),
        Retry(when=tenacity.retry_if_exception_type(OSError)),
        Retry(when=tenacity.retry_if_exception_message(match="busy")),
        Retry(wait=tenacity.wait_fixed(0.001)),
        Retry(wait=tenacity.wait_exponential_jitter(max=0.001)),
        Retry(stop=tenacity.stop_after_attempt(5)),
        Retry(stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(60)),
        Retry(stop=5, wait=0.001),
        Retry(stop=lambda state: state.attempt_number > 3, wait=lambda state: 0.0),
    ]

    async def only(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        ev.seen.append(ctx.retry_info())
        if len(ev.seen) < 3:
            raise OSError("busy")
        return StopEvent(result=ev.seen)

    for policy in policies:
        cls = type("Tries", (Workflow,), {"only": step(retry=policy)(only)})
        seen = await cls().run(seen=[])

        assert [info.attempt for info in seen] == [1, 2, 3]
        assert [len(info.exceptions) for info in seen] == [0, 1, 2]


@shows("accept_event_subclasses")
async def subclasses_go_to_the_nearest_class():
    async def begin(self: Any, ev: StartEvent) -> A:
        return SubA(n=1)

    async def parent(self: Any, ev: A) -> StopEvent:
        return StopEvent(result=type(ev).__name__)

    assert await flow(begin, parent)().run() == "SubA"


@shows("`def` steps")
async def plain_functions_run_in_threads():
    class Threads(Workflow):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(A())
            ctx.from_thread.run(ctx.store.set, "x", 1)
            return StopEvent(result=ctx.from_thread.run(ctx.store.get, "x"))

    assert await Threads().run() == 1


@shows("`-> list[E]`, `evs: list[E]`", "Collect(All())")
async def fan_outs_and_joins():
    async def begin(self: Any, ev: StartEvent) -> list[A]:
        return [A(n=1), A(n=2)]

    async def work(self: Any, ev: A) -> B:
        return B(n=ev.n * 10)

    async def join(self: Any, evs: list[B]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))

    assert await flow(begin, work, join)().run() == [10, 20]

    async def sends(self: Any, ctx: Context, ev: StartEvent) -> A | B | None:
        for event in (A(n=1), B(n=2), A(n=3)):
            ctx.send_event(event)
        return None

    async def both(self: Any, a: A, b: B, c: A) -> StopEvent:
        return StopEvent(result=(a.n, b.n, c.n))

    assert await flow(sends, both)().run() == (1, 2, 3)


@shows(r"`-> list[A] \| A`")
async def a_member_returned_alone():
    async def begin(self: Any, ev: StartEvent) -> list[A] | A:
        return A(n=1)

    async def alone(self: Any, ev: A) -> StopEvent:
        return StopEvent(result="alone")

    async def join(self: Any, evs: list[A]) -> StopEvent:
        return StopEvent(result="joined")

    assert await flow(begin, alone, join)().run() == "alone"


@shows("a step that returns `None` without")
async def an_undeclared_none_ends_its_branch():
    async def begin(self: Any, ev: StartEvent) -> list[A]:
        return [A(n=n) for n in range(4)]

    async def odd(self: Any, ev: A) -> B:
        return B(n=ev.n) if ev.n % 2 else None  # type: ignore[return-value]

    async def join(self: Any, evs: list[B]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))

    cls = flow(begin, odd, join)

    assert await cls().run() == [1, 3]
    with pytest.raises(WorkflowRuntimeError, match="odd returned None"):
        await cls(strict_none=True).run()


@shows("a fault of a signature is raised by the decorator")
async def faults_are_told_together():
    class Faulty(Workflow):
        @step
        async def no_event(self) -> StopEvent: ...
        @step
        async def no_return(self, ev: StartEvent): ...

    assert "has 2 faults" in faults_of(Faulty)


@shows("Collect(Take(2))")
async def the_first_two_win():
    async def begin(self: Any, ev: StartEvent) -> list[A]:
        return [A(n=n) for n in range(3)]

    async def work(self: Any, ev: A) -> B:
        if ev.n == 2:
            await anyio.sleep_forever()
        return B(n=ev.n)

    async def first(self: Any, evs: Annotated[list[B], Take(2)]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))

    assert await flow(begin, work, first)().run() == [0, 1]


@shows("@catch_error", "`StepFailedEvent`")
async def failures_are_caught():
    class Catches(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[A | B]:
            return [A(n=1), B(n=2)]

        @step
        async def both(self, a: A, b: B) -> StopEvent:
            raise OSError("broken")

        @catch_error(for_steps=["both"], max_recoveries=2)
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            kinds = [type(part).__name__ for part in ev.input_event]
            return StopEvent(result=(ev.step_name, kinds, ev.attempts, len(ev.exceptions)))

    assert await Catches().run() == ("both", ["A", "B"], 1, 1)


# -- the context ---------------------------------------------------------------------------------------


@shows("`ctx.send_event(event, step=None)`", "self.send_event(event)")
async def sent_events_are_members_of_the_fan_out():
    async def begin(self: Any, ev: StartEvent) -> list[A]:
        return [A(n=1)]

    async def work(self: Any, ctx: Context, ev: A) -> B:
        branch = ctx.send_event(B(n=99), step="join")
        assert not branch.is_cancelled
        return B(n=ev.n)

    async def join(self: Any, evs: list[B]) -> StopEvent:
        with pytest.raises(AttributeError, match=r"expected `ctx\.send_event\(event\)`"):
            self.send_event(A())
        return StopEvent(result=sorted(ev.n for ev in evs))

    assert await flow(begin, work, join)().run() == [1, 99]


@shows("ctx.collect_events")
async def events_are_collected():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> A | B | SubA | None:
        for event in (B(n=0), A(n=1), A(n=2)):
            ctx.send_event(event)
        return None

    @step(num_workers=1)
    async def gather(self: Any, ctx: Context, ev: A | B) -> StopEvent | None:
        found = ctx.collect_events(ev, [A, A], buffer_id="pairs")
        return None if found is None else StopEvent(result=sorted(each.n for each in found))

    assert await flow(begin, gather=gather)().run() == [1, 2]


@shows("ctx.wait_for_event(E", "waiter_id")
async def an_answer_goes_to_the_wait_that_it_fits():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        question = InputRequiredEvent()
        needs = {"name": "ann"}
        answer = await ctx.wait_for_event(HumanResponseEvent, question, requirements=needs)
        with pytest.raises(WorkflowTimeoutError):
            await ctx.wait_for_event(HumanResponseEvent, timeout=0.001)
        return StopEvent(result=answer.response)

    async with flow(begin)().run() as handler:
        await wait_until_idle()
        handler.send_event(HumanResponseEvent(name="ann", response="yes"))

        assert await handler == "yes"


@shows("of an event that is not a `HumanResponseEvent`")
async def a_plain_event_is_waited_for():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=(await ctx.wait_for_event(A)).n)

    async with flow(begin)().run() as handler:
        await wait_until_idle()
        handler.send_event(A(n=3))

        assert await handler == 3

    @step(waits_for=[A])
    async def declared(self: Any, ctx: Context, ev: B) -> StopEvent:
        return StopEvent(result=(await ctx.wait_for_event(A)).n)

    async def first(self: Any, ctx: Context, ev: StartEvent) -> B:
        await anyio.sleep(0.001)
        return B()

    async with flow(first, declared=declared)().run() as handler:
        handler.send_event(A(n=4))

        assert await handler == 4


@shows("ctx.write_event_to_stream(ev)", "ctx.stream_events()", "ctx.streaming_queue")
async def the_stream_is_read_from_the_handler():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(A(n=1))
        await ctx.stream.send(A(n=2))
        for name in ("stream_events", "streaming_queue", "get_result"):
            with pytest.raises(AttributeError, match="expected `"):
                getattr(ctx, name)
        return StopEvent()

    async with flow(begin)().run() as handler:
        seen = [event.n async for event in handler.stream_events() if isinstance(event, A)]

    assert seen == [1, 2]


@shows("ctx.is_running", "Context.get_step_context()")
async def a_context_is_handed_on():
    async def helper(ctx: Context) -> tuple[bool, int, str]:
        return ctx.is_running, ctx.retry_info().attempt, ctx.step_name

    assert await in_step(helper) == (True, 1, "only")


@shows(
    "`ctx.to_dict()`, `Context.from_dict(workflow, data)`",
    "`ctx.to_dict()` during a run",
    "WorkflowCheckpointer",
    "the journal",
)
async def a_context_is_written_and_read():
    workflow = Asks()
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = json.loads(json.dumps(handler.ctx.to_dict()))
        assert set(handler.snapshot()) == set(saved)
        await handler.cancel_run()
    async with workflow.run(ctx=Context.from_dict(workflow, saved)) as handler:
        await wait_until_idle()
        handler.ctx.send_event(HumanResponseEvent(response="again"))

        assert await handler == "again"
    assert Context(workflow).to_dict()["workflow"] == "Asks"


@shows("two runs at once from one `Context(workflow)`")
async def two_runs_share_the_store_of_a_context():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            state.count = state.get("count", 0) + 1
            return StopEvent(result=state.count)

    workflow = flow(begin)()
    ctx = Context(workflow)

    assert [await workflow.run(ctx=ctx), await workflow.run(ctx=ctx)] == [1, 2]


@shows("handler.ctx.send_event(...)", "await handler.send_event(ev, step=None)")
async def answers_from_outside_are_plain_calls():
    for how in ("handler", "context", "thread"):
        async with Asks().run() as handler:
            await wait_until_idle()
            answer = HumanResponseEvent(response=how)
            if how == "handler":
                handler.send_event(answer)
            elif how == "context":
                handler.ctx.send_event(answer)
            else:
                await anyio.to_thread.run_sync(handler.from_thread.send_event, answer)

            assert await handler == how


@shows("ctx.running_steps()", "the instrumentation dispatcher")
async def observers_are_told_what_goes_on():
    told: list[str] = []

    class Tells(Observer):
        def step_started(self, invocation: Invocation) -> None:
            told.append(invocation.step)

    await Echo(observers=[Tells()]).run()

    assert told == ["echo"]
    with pytest.raises(WorkflowTimeoutError) as caught:
        await Stays(timeout=0.001).run()
    assert caught.value.active_steps == ("stay",)


# -- the state -------------------------------------------------------------------------------------------


@attrs.define
class Base:
    name: str = ""


@attrs.define
class State(Base):
    count: int = 0


@attrs.define
class Derived(State):
    more: str = ""


@shows("Context[State]", "`ctx.store.get`, `.set`", "async with ctx.store.edit_state() as state")
async def the_state_is_typed():
    async def begin(self: Any, ctx: Context[State], ev: StartEvent) -> StopEvent:
        await ctx.store.set("count", 1)
        async with ctx.store.edit_state() as state:
            state.count += 1
        await ctx.store.set_state(Base(name="merged"))
        merged = await ctx.store.get_state()
        await ctx.store.set_state(Derived(count=5, more="x"))
        taken = await ctx.store.get_state()
        await ctx.store.clear()
        return StopEvent(
            result=(merged.name, merged.count, taken.more, await ctx.store.get("count"))
        )

    assert await flow(begin)().run() == ("merged", 2, "x", 0)


@shows("`DictState`", "await ctx.set(key, value)", 'ctx.data["key"]')
async def the_state_is_a_dict_by_default():
    async def use(ctx: Context) -> Any:
        for name in ("get", "set", "data"):
            with pytest.raises(AttributeError, match=r"expected `await ctx\.store"):
                getattr(ctx, name)
        await ctx.store.set("a.b", 1)
        state = await ctx.store.get_state()
        return isinstance(state, DictState), await ctx.store.get("a.b")

    assert await in_step(use) == (True, 1)


@shows('ctx.store.set("live.slot", 7)', "`ValueError` for a path that does not exist")
async def paths_lead_into_data():
    async def use(ctx: Context) -> Any:
        await ctx.store.set("live", Live())
        with pytest.raises(StatePathError):
            await ctx.store.set("live.slot", 7)
        with pytest.raises(ValueError, match="nowhere"):
            await ctx.store.get("nowhere")
        with pytest.raises(LookupError):
            await ctx.store.get("nowhere")

    await in_step(use)


@shows("ctx.store.to_dict(serializer)", "JsonSerializer", "PickleSerializer")
async def snapshots_are_json_and_keep_types():
    async def begin(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("pair", (1, {2, 3}))
        return StopEvent()

    workflow = flow(begin)()
    handler = workflow.run()
    await handler
    saved = json.loads(json.dumps(handler.ctx.to_dict()))
    again = Context.from_dict(workflow, saved)

    assert await again.store.get("pair") == (1, {2, 3})


# -- resources -------------------------------------------------------------------------------------------


@shows(
    "Annotated[T, Resource(factory)]",
    "`cache=True`",
    "`cache=False`",
    "a factory that requests resources",
)
async def resources_have_scopes():
    made: list[str] = []

    def connection(ctx: Context) -> Any:
        made.append("open")
        yield "connection"
        made.append("closed")

    def client(db: Annotated[str, Resource(connection)]) -> list[str]:
        return [db]

    async def begin(
        self: Any,
        ev: StartEvent,
        a: Annotated[Any, Resource(client)],
        b: Annotated[Any, Resource(client)],
        c: Annotated[Any, Resource(client, cache=False)],
    ) -> StopEvent:
        return StopEvent(result=(a is b, a is c, a == c))

    assert await flow(begin)().run() == (True, False, True)
    assert made == ["open", "closed"]

    def short(text: Annotated[str, Resource(str, cache=False)]) -> str:
        return text

    async def asks(self: Any, ev: StartEvent, a: Annotated[str, Resource(short)]) -> StopEvent: ...

    assert "which has only that of the step" in faults_of(flow(asks))


@shows("ResourceConfig(config_file", "`label`, `description`")
async def configurations_are_read():
    Path("settings.toml").write_text('[app]\nname = "x"\n')

    async def begin(
        self: Any, ev: StartEvent, s: Annotated[Settings, ResourceConfig("settings.toml", "app")]
    ) -> StopEvent:
        return StopEvent(result=s.name)

    assert await flow(begin)().run() == "x"
    with pytest.raises(TypeError):
        ResourceConfig("settings.toml", label="x")  # type: ignore[call-arg]


# -- the handler -----------------------------------------------------------------------------------------


@shows(
    "`await handler`",
    "`handler.ctx`, `handler.run_id`",
    "handler.get_stop_event()",
    "handler.done()",
)
async def a_handler_after_the_end():
    async with Echo().run(x=1, run_id="r") as handler:
        assert await handler == 1
    assert handler.is_done()
    assert handler.run_id == "r"
    assert handler.status == "completed"
    assert handler.exceptions == ()
    assert handler.stop_event.result == 1
    assert handler.ctx.run_id == "r"
    for name in ("done", "cancelled", "exception", "get_stop_event", "stop_event_result"):
        with pytest.raises(AttributeError, match="expected `"):
            getattr(handler, name)


@shows("handler.stream_events(expose_internal=False)", "`StepStateChanged(name, step_state")
async def streams_are_read_as_often_as_one_likes():
    async with Echo().run() as handler:
        first = [event async for event in handler.stream_events(expose_internal=True)]
        again = [event async for event in handler.stream_events()]
    changes = [event for event in first if isinstance(event, StepStateChanged)]

    assert [type(event) for event in again] == [A, StopEvent]
    assert [(change.name, change.state) for change in changes] == [
        ("echo", "running"),
        ("echo", "done"),
    ]


@shows("handler.cancel_run(timeout=5.0)", "WorkflowCancelledByUser", "`WorkflowTimedOutEvent`")
async def runs_end_with_a_terminal_event():
    ends: list[Event] = []
    async with Stays().run() as handler:
        stream = handler.stream_events()
        await handler.cancel_run()
        ends += [event async for event in stream]
        with pytest.raises(WorkflowCancelledError):
            await handler
    async with Stays(timeout=0.001).run() as handler:
        ends += [event async for event in handler.stream_events()]
        with pytest.raises(WorkflowTimeoutError):
            await handler

    async def begin(self: Any, ev: StartEvent) -> StopEvent:
        raise OSError

    async with flow(begin)().run() as handler:
        ends += [event async for event in handler.stream_events()]
        with pytest.raises(OSError):
            await handler

    assert [type(event) for event in ends] == [
        WorkflowCancelledEvent,
        WorkflowTimedOutEvent,
        WorkflowFailedEvent,
    ]
    assert ends[0].reason
    assert isinstance(ends[2].exception, OSError)


@shows("handler.exception()")
async def all_failures_are_kept():
    async def begin(self: Any, ev: StartEvent) -> StopEvent:
        raise OSError("first")

    handler = flow(begin)().run()
    with pytest.raises(OSError, match="first") as caught:
        await handler

    assert handler.exceptions == (caught.value,)


# -- events ------------------------------------------------------------------------------------------------


class Declared(Event):
    x: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    _hidden: str = "h"


class Fielded(Event):
    tags: list[str] = pydantic.Field(default_factory=list, description="the newest last")


class Model(pydantic.BaseModel):
    event: Fielded


class Open(Event, open=True):
    x: int = 1


class Validated(Event, validate=True):
    x: int


@shows(
    "`Event`, `StartEvent`, `StopEvent`",
    "`Field(default=..., default_factory=...",
    "`Field(gt=0)`",
    "an event as the field of a pydantic model",
    "any keyword beside the declared fields",
    "an event class that defines `__init__`",
    "PrivateAttr",
    '`ev["x"]`',
    "ev.model_dump()",
)
async def events_are_attrs_classes():
    event = Declared(x=2)

    assert (event["x"], event.get("x"), "x" in event) == (2, 2, True)
    assert event.to_dict()["x"] == 2
    assert attrs.evolve(event, x=3).x == 3
    with pytest.raises(AttributeError):
        event.x = 4  # type: ignore[misc]
    with pytest.raises(ValueError, match="x"):
        Declared(x=-1)
    with pytest.raises(TypeError, match="has no field 'y'"):
        Declared(y=1)
    with pytest.raises(TypeError, match="x"):
        Validated(x="text")
    with pytest.raises(TypeError, match="hidden"):
        Declared(_hidden="x")
    assert Open(y=5).y == 5
    assert Fielded().tags == []
    assert isinstance(Model(event={"tags": ["a"]}).event, Fielded)
    with pytest.raises(TypeError, match="gt"):
        type("Refused", (Event,), {"__annotations__": {"x": int}, "x": pydantic.Field(gt=0)})
    with pytest.raises(AttributeError, match="to_dict"):
        event.model_dump()
    assert StartEvent(anything=1).anything == 1
    with pytest.raises(TypeError, match="__attrs_post_init__"):
        type("Own", (Event,), {"__init__": lambda self: None})


@shows("`WorkflowIdleEvent`", "UnhandledEvent(event_type")
async def internal_events_tell_of_idle_runs():
    async with Asks().run() as handler:
        seen: list[Event] = []
        async for event in handler.stream_events(expose_internal=True):
            seen.append(event)
            if isinstance(event, WorkflowIdleEvent):
                handler.send_event(HumanResponseEvent(response="yes"))

    assert any(isinstance(event, WorkflowIdleEvent) for event in seen)
    assert UnhandledEvent(event=A()).event.n == 0


@shows("UnreconstructedException")
async def exceptions_come_back_as_stand_ins():
    async def use(ctx: Context) -> None:
        await ctx.store.set("error", OSError("broken"))

    async def begin(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await use(ctx))

    workflow = flow(begin)()
    handler = workflow.run()
    await handler
    again = Context.from_dict(workflow, json.loads(json.dumps(handler.ctx.to_dict())))

    assert isinstance(await again.store.get("error"), RestoredError)


# -- errors ------------------------------------------------------------------------------------------------


@shows(
    "WorkflowConfigurationError",
    "WorkflowStepDoesNotExistError",
    "WorkflowTimeoutError",
    "asyncio.TimeoutError",
)
async def errors_are_those_that_people_catch():
    assert issubclass(WorkflowValidationError, ValueError)
    assert issubclass(WorkflowRuntimeError, RuntimeError)
    assert issubclass(WorkflowTimeoutError, (TimeoutError, trio.TooSlowError))
    async with Asks().run() as handler:
        await wait_until_idle()
        with pytest.raises(WorkflowRuntimeError, match="has no step 'nowhere'"):
            handler.send_event(HumanResponseEvent(), step="nowhere")
        handler.send_event(HumanResponseEvent(response=""))
        await handler


@shows("ContextSerdeError")
async def a_bad_snapshot_is_an_error():
    with pytest.raises(SnapshotError):
        Context.from_dict(Echo(), {"sluicegate": "nonsense"})


class Named(StartEvent):
    name: str


@shows("`WorkflowRuntimeError` of `run()`")
async def wrong_arguments_of_run_are_type_errors():
    async def begin(self: Any, ev: Named) -> StopEvent:
        return StopEvent()

    workflow = flow(begin)()
    with pytest.raises(TypeError, match="has no field 'nam'"):
        workflow.run(nam="x")
    with pytest.raises(TypeError, match="Named"):
        workflow.run(start_event=StartEvent())


# -- older names, drawing, testing ---------------------------------------------------------------------------


@shows("@step(pass_context=True)")
async def the_context_comes_by_its_annotation():
    with pytest.raises(TypeError, match="a parameter `ctx: Context`"):
        step(pass_context=True)


@shows("draw_all_possible_flows_mermaid")
async def the_flowchart_is_written_and_returned():
    chart = draw_all_possible_flows_mermaid(Echo, filename="flows.mermaid")

    assert chart.startswith("flowchart TD\n")
    assert Path("flows.mermaid").read_text() == chart


@shows("draw_most_recent_execution(handler)")
async def the_execution_of_a_recorded_run_is_drawn():
    handler = Echo(observers=[Recorder()]).run()
    await handler
    path = draw_most_recent_execution(handler, filename="run.html")
    chart = draw_most_recent_execution_mermaid(handler, filename="run.mermaid")

    assert "echo<br>1 completed" in chart
    assert path.read_text().startswith("<!DOCTYPE html>")


@shows(
    "draw_agent_workflow",
    "`notebook`, `max_label_length`",
    "get_workflow_representation",
    "CollectionReleaseEvent",
)
async def these_names_do_not_exist():
    for name in ("draw_agent_workflow", "get_workflow_representation", "WorkflowDone"):
        assert not hasattr(sluicegate, name)
        assert not hasattr(sluicegate.drawing, name)
    with pytest.raises(TypeError):
        draw_all_possible_flows(Echo, notebook=True)  # type: ignore[call-arg]


@shows("WorkflowTestRunner")
async def workflows_are_tested():
    result = await WorkflowTestRunner(Echo()).run(start_event=StartEvent(x=1))

    assert result.result == 1


@shows("`stepwise`, `run_step`")
async def workflows_are_stepped_through():
    outcome = await run_step(Echo(), "echo", StartEvent(x=1))

    assert outcome.returned.result == 1
    async with step_through(Echo(), x=1) as stepped:
        names = [invocation.step async for invocation in stepped]

    assert names == ["echo"]


# -- asyncio and AnyIO -----------------------------------------------------------------------------------------


async def on_both(ours: Any, theirs: Any) -> list[Any]:
    """Return what two ways give in a step: the portable one, and on asyncio asyncio's own."""
    found = [await in_step(lambda _ctx: ours())]
    if not is_trio():
        found.append(await in_step(lambda _ctx: theirs()))
    return found


@shows("asyncio.sleep(1)", "asyncio.create_task(f())", "asyncio.gather(f(1), f(2))")
async def sleep_and_tasks():
    async def ours() -> list[int]:
        found: dict[int, int] = {}

        async def work(n: int) -> None:
            await anyio.sleep(0)
            found[n] = 10 * n

        async with anyio.create_task_group() as group:
            group.start_soon(work, 1)
            group.start_soon(work, 2)
        return [found[1], found[2]]

    async def theirs() -> list[int]:
        async def work(n: int) -> int:
            await asyncio.sleep(0)
            return 10 * n

        assert await asyncio.create_task(work(3)) == 30
        return list(await asyncio.gather(work(1), work(2)))

    for found in await on_both(ours, theirs):
        assert found == [10, 20]


@shows("asyncio.wait_for(f(), 5)", "except asyncio.CancelledError")
async def timeouts_and_cancellation():
    seen: list[str] = []

    async def ours() -> str:
        try:
            with anyio.fail_after(0.001):
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    seen.append("cancelled")
                    raise
        except TimeoutError:
            return "late"
        return ""

    async def theirs() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(100)
        except TimeoutError:
            return "late"
        return ""

    assert {*await on_both(ours, theirs)} == {"late"}
    assert seen == ["cancelled"]

    class Late(Workflow):
        @step(timeout=0.001)
        async def begin(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep_forever()
            except cancelled_class():
                seen.append("the step too")
                raise
            return StopEvent()

    with pytest.raises(TimeoutError):
        await Late().run()
    assert seen == ["cancelled", "the step too"]


@shows("asyncio.shield(f())", "asyncio.Event()", "asyncio.Queue(10)")
async def shields_locks_and_queues():
    async def ours() -> int:
        event, lock, semaphore = anyio.Event(), anyio.Lock(), anyio.Semaphore(3)
        send, receive = anyio.create_memory_object_stream[int](10)
        with anyio.CancelScope(shield=True):
            event.set()
            await event.wait()
            async with lock, semaphore, anyio.Condition():
                await send.send(7)
        async with send, receive:
            return await receive.receive()

    async def theirs() -> int:
        queue: asyncio.Queue[int] = asyncio.Queue(10)
        async with asyncio.Lock(), asyncio.Semaphore(3), asyncio.Condition():
            await asyncio.shield(queue.put(7))
        return await queue.get()

    assert {*await on_both(ours, theirs)} == {7}


@shows("asyncio.to_thread(f)", "asyncio.run_coroutine_threadsafe")
async def threads():
    async def ours() -> int:
        def work() -> int:
            anyio.from_thread.run(anyio.sleep, 0)
            return 5

        return await anyio.to_thread.run_sync(work)

    async def theirs() -> int:
        loop = asyncio.get_running_loop()

        async def value() -> int:
            return 5

        return await asyncio.to_thread(
            lambda: asyncio.run_coroutine_threadsafe(value(), loop).result()
        )

    assert {*await on_both(ours, theirs)} == {5}


@shows("asyncio.create_subprocess_exec", "asyncio.open_connection")
async def processes_and_sockets():
    async def ours() -> bytes:
        return (await anyio.run_process([sys.executable, "-c", "print(3)"])).stdout.strip()

    assert await in_step(lambda _ctx: ours()) == b"3"

    async def serve(stream: Any) -> None:
        async with stream:
            await stream.send(b"hello")

    async def connects() -> bytes:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                found = await stream.receive()
            group.cancel_scope.cancel()
        await listener.aclose()
        return found

    assert await in_step(lambda _ctx: connects()) == b"hello"


@shows("asyncio.run(main())")
async def entries():
    async def main() -> Any:
        return await Echo().run(x=4)

    def in_a_thread() -> list[Any]:
        backend = "trio" if is_trio_outside else "asyncio"
        return [sluicegate.run(main, backend=backend), anyio.run(main, backend=backend)]

    is_trio_outside = is_trio()

    assert await anyio.to_thread.run_sync(in_a_thread) == [4, 4]


# -- what has no counterpart ---------------------------------------------------------------------------------


@shows("`runtime=`, `BasicRuntime`", "workflow_name=", "resource_manager=", "Workflow.events")
async def these_options_say_what_to_do():
    for name in ("runtime", "workflow_name", "resource_manager"):
        with pytest.raises(TypeError, match=f"no option '{name}'; expected"):
            Echo(**{name: None})
    for name in ("events", "start_event_class", "stop_event_class", "runtime", "workflow_name"):
        with pytest.raises(AttributeError, match="expected "):
            getattr(Echo(), name)

    def factory() -> str:
        return "real"

    async def begin(self: Any, ev: StartEvent, x: Annotated[str, Resource(factory)]) -> StopEvent:
        return StopEvent(result=x)

    result = await run_workflow(flow(begin)(), resources={factory: "fake"})

    assert result.result == "fake"


@shows("WorkflowServer")
async def a_run_belongs_to_a_nursery():
    async with anyio.create_task_group() as group:
        handler = Asks().run().start_soon(group)
        await wait_until_idle()
        handler.send_event(HumanResponseEvent(response="yes"))

        assert await handler == "yes"


class Final(StopEvent):
    total: int


@shows("StopEvent._get_result")
async def a_stop_event_of_ones_own_is_the_result():
    async def begin(self: Any, ev: StartEvent) -> Final:
        return Final(total=3)

    assert (await flow(begin)().run()).total == 3


# -- agents and tools ---------------------------------------------------------------------------------


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    if b < 0:
        raise OSError("below zero")
    return a + b


@shows(
    "FunctionAgent",
    "FunctionTool.from_defaults",
    "achat_with_tools",
    "get_tool_calls_from_response",
    "tool.acall",
)
async def a_model_calls_tools_in_a_loop():
    asked = ToolCall(id="1", name="plus", arguments='{"a": 2}')
    llm = MockLLM([asked, "3"])
    tools = [tool(add, name="plus", description="Adds.")]

    async def loop(self: Any, ev: StartEvent) -> StopEvent:
        messages = [ChatMessage(content="2 + 1?")]
        while True:
            response = await llm.achat(messages, tools=tools)
            messages.append(response.message)
            if not response.tool_calls:
                return StopEvent(result=response.text)
            messages += [(await call_tool(c, tools)).message for c in response.tool_calls]

    assert await flow(loop)().run() == "3"
    assert llm.requests[1][-1] == ChatMessage("tool", "3", tool_call_id="1")


@shows("a tool with a parameter `ctx: Context`")
async def the_context_of_a_tool_is_bound():
    async def keep(ctx: Context, text: str) -> str:
        await ctx.store.set("text", text)
        return await ctx.store.get("text")

    async def work(ctx: Context) -> Any:
        return await tool(functools.partial(keep, ctx)).call({"text": "x"})

    assert await in_step(work) == "x"


@shows("an exception of a tool is a `ToolOutput`")
async def a_tool_s_failure_is_the_step_s_unless_it_is_listed():
    call = ToolCall(name="add", arguments='{"a": 1, "b": -1}')
    with pytest.raises(OSError, match="below zero"):
        await call_tool(call, [tool(add)])
    result = await call_tool(call, [tool(add, errors=(OSError,))])

    assert (result.is_error, result.text) == (True, "OSError: below zero")


@shows("astructured_predict")
async def a_model_s_reply_is_a_value():
    class Model(pydantic.BaseModel):
        n: int

    made = await structured_chat(MockLLM(['{"n": 1}']), Model, [ChatMessage(content="n?")])

    assert made.value == Model(n=1)


# -- the rows and their programs ----------------------------------------------------------------------


def test_each_row_of_the_page_has_a_program_and_each_program_a_row():
    """What the page says of a name is shown by a program that runs."""
    cells = first_cells()
    marks = [row for rows, _ in PROGRAMS for row in rows]

    assert len(cells) > 120
    assert [cell for cell in cells if not any(mark in cell for mark in marks)] == []
    assert [mark for mark in marks if not any(mark in cell for cell in cells)] == []


@pytest.mark.anyio
@pytest.mark.parametrize("program", [p for _, p in PROGRAMS], ids=lambda p: p.__name__)
async def test_the_program_of_a_row_runs(program, tmp_path, monkeypatch):
    """On Trio and on asyncio, as the second cell of the row has it."""
    monkeypatch.chdir(tmp_path)
    await program()


def test_every_name_that_newcomers_are_told_exists():
    """What the page for those who come from there gives as a name of sluicegate is one."""
    page = Path(__file__).parent.parent / "docs" / "coming-from-llamaindex.md"
    told: set[str] = set()
    for line in page.read_text().partition("## What has no counterpart")[0].splitlines():
        if line.startswith("| ") and line.count(" | ") == 1:
            new = " ".join(re.findall(r"`([^`]*)`", line.rpartition(" | ")[2]))
            told |= {*re.findall(r"\b[A-Z]\w+(?:Event|Error|Changed|State|Config)\b", new)}
            for name in re.findall(r"(?:ctx|handler)\.(\w+)", new):
                assert hasattr(Context, name) or hasattr(WorkflowHandler, name), name

    told -= {"RetryCallState", "TooSlowError"}  # of tenacity and of Trio

    assert len(told) > 12
    homes = (sluicegate, sluicegate.llms, builtins)
    assert [name for name in told if not any(hasattr(home, name) for home in homes)] == []
