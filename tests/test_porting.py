"""What programs written for LlamaIndex Workflows do, and what they meet here."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from typing import Annotated

import attrs
import pytest

import sluicegate
from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    Resource,
    ResourceConfig,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
    step,
    workflow_scope,
)
from tests.helpers import wait_until_idle


class A(Event):
    n: int = 0


class B(Event):
    n: int = 0


class C(Event):
    n: int = 0


# -- collect_events --------------------------------------------------------------------------------


class Collects(Workflow):
    """Gets events of three classes, and waits for those of two."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | B | C | None:
        for letter in ev.order:
            ctx.send_event({"a": A, "b": B, "c": C}[letter]())
        return None

    @step(num_workers=1, retry=Retry(stop=2))
    async def gather(self, ctx: Context, ev: A | B | C) -> StopEvent | None:
        found = ctx.collect_events(ev, [A, B])
        if ctx.retry_info().attempt == 1 and ev.n < 0:
            raise OSError
        return None if found is None else StopEvent(result=[type(each) for each in found])


@pytest.mark.anyio
@pytest.mark.parametrize("order", ["cab", "acb", "bcca"])
async def test_collect_events_leaves_an_event_alone_that_it_does_not_wait_for(order):
    """It returns None for it, and neither keeps nor counts it."""
    assert await Collects().run(order=order) == [A, B]


@pytest.mark.anyio
async def test_an_event_that_is_left_alone_is_lacking_nowhere():
    """P12: a stall names what the buffer lacks, whatever else its step was given."""
    with pytest.raises(WorkflowStalledError) as caught:
        await Collects().run(order="acc")

    assert caught.value.missing == ("Collects.gather lacks 1 x B",)


@pytest.mark.anyio
async def test_a_failed_attempt_gives_back_nothing_that_it_did_not_keep():
    """What a buffer left alone is not taken from it when the attempt fails."""

    class Fails(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> A | B | C | None:
            for event in (A(), C(n=-1), B()):
                ctx.send_event(event)
            return None

        @step(num_workers=1, retry=Retry(stop=2))
        async def gather(self, ctx: Context, ev: A | B | C) -> StopEvent | None:
            found = ctx.collect_events(ev, [A, B])
            if ev.n < 0 and ctx.retry_info().attempt == 1:
                raise OSError
            return None if found is None else StopEvent(result=len(found))

    assert await Fails().run() == 2


# -- what is not declared ----------------------------------------------------------------------------


class Undeclared(Workflow):
    """Sends, returns and lists events that its signatures do not name."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A:
        if ev.how == "send":
            ctx.send_event(B(n=1))
            return A()
        return B(n=1) if ev.how == "return" else [B(n=1)]

    @step
    async def take_a(self, ev: A) -> None: ...

    @step
    async def take_b(self, ev: B) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["send", "return", "list"])
async def test_disable_validation_builds_and_delivers_what_is_not_declared(how):
    """`disable_validation=True` lets a step make any event that some step takes."""
    assert await Undeclared(disable_validation=True).run(how=how) == 1

    with pytest.raises(
        WorkflowValidationError, match="no step makes B, which the step take_b takes"
    ):
        Undeclared()


@pytest.mark.anyio
async def test_objects_with_and_without_validation_do_not_mix():
    """What one object was allowed is still refused by another of the same class."""

    class Both(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A | StopEvent:
            return B()

        @step
        async def take_a(self, ev: A) -> B:
            return B()

        @step
        async def take_b(self, ev: B) -> StopEvent:
            return StopEvent(result="delivered")

    assert await Both(disable_validation=True).run() == "delivered"
    with pytest.raises(
        WorkflowRuntimeError, match="returned or sent a B, which it does not declare"
    ):
        await Both().run()


@pytest.mark.anyio
async def test_what_no_step_takes_is_an_error_even_then():
    """P13: without validation an event still has to go somewhere, and a run to begin and end."""

    class Lost(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return C()

    class NoEnd(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> None: ...

    with pytest.raises(WorkflowRuntimeError, match="C, which no step takes"):
        await Lost(disable_validation=True).run()
    with pytest.raises(WorkflowValidationError, match="no step returns a StopEvent"):
        NoEnd(disable_validation=True)


# -- a list, or one alone ----------------------------------------------------------------------------


class Either(Workflow):
    """Returns a list of A, or one A alone."""

    @step
    async def begin(self, ev: StartEvent) -> list[A] | A:
        return A(n=7) if ev.alone else [A(n=n) for n in range(3)]

    @step
    async def one(self, ev: A) -> B | None:
        return B(n=ev.n) if ev.n == 7 else None

    @step
    async def end(self, ev: B) -> StopEvent:
        return StopEvent(result=("alone", ev.n))

    @step
    async def join(self, evs: list[A]) -> StopEvent:
        return StopEvent(result=("joined", len(evs)))


@pytest.mark.anyio
@pytest.mark.parametrize(("alone", "result"), [(True, ("alone", 7)), (False, ("joined", 3))])
async def test_an_event_returned_alone_goes_to_the_steps_that_take_it_alone(alone, result):
    """`-> list[A] | A`: the members of a list are joined, and a bare A reaches no join."""
    assert await Either().run(alone=alone) == result


@pytest.mark.anyio
async def test_an_event_returned_alone_that_only_a_join_takes_is_an_error():
    """P13: where no step takes it alone, nothing could come from it."""

    class OnlyJoin(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[A] | A:
            return A()

        @step
        async def join(self, evs: list[A]) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowRuntimeError, match="A came to the join join from no fan-out"):
        await OnlyJoin().run()


# -- the context outside of a step ---------------------------------------------------------------------


class Asks(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=answer.response)


@pytest.mark.anyio
async def test_the_context_of_a_handler_sends_events_from_outside():
    """`handler.ctx.send_event(event)` does what `handler.send_event(event)` does."""
    async with Asks().run() as handler:
        await wait_until_idle()
        branch = handler.ctx.send_event(HumanResponseEvent(response="yes"))

        assert branch.is_done
        assert await handler == "yes"
    with pytest.raises(WorkflowRuntimeError, match="is over"):
        handler.ctx.send_event(HumanResponseEvent())


@pytest.mark.anyio
async def test_the_context_of_a_handler_names_a_step():
    """The step that is to get it may be named, and has to take it."""
    seen = []

    class Two(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | A | B:
            await ctx.wait_for_event(HumanResponseEvent)
            return StopEvent(result=seen)

        @step
        async def a(self, ev: A) -> None:
            seen.append("a")

        @step
        async def b(self, ev: A | B) -> None:
            seen.append("b")

    async with workflow_scope():
        handler = Two().run()
        handler.send_event  # noqa: B018
        stream = handler.stream_events()
        await wait_until_idle()
        handler.ctx.send_event(A(), step="b")
        with pytest.raises(WorkflowRuntimeError, match="has no step 'c'"):
            handler.ctx.send_event(A(), step="c")
        await wait_until_idle()
        handler.ctx.send_event(HumanResponseEvent())

        assert await handler == ["b"]
        await stream.aclose()


@attrs.define
class Count:
    n: int = 0


@attrs.define
class Counts(Count):
    more: int = 0


@pytest.mark.anyio
async def test_a_snapshot_keeps_a_state_of_a_derived_class():
    """A state of a class that is named by `serializable` is there again in a run that continues."""

    class Keeps(Workflow):
        @step
        async def begin(self, ctx: Context[Count], ev: StartEvent) -> StopEvent:
            if not isinstance(await ctx.store.get_state(), Counts):
                await ctx.store.set_state(Counts(n=1, more=2))
            await ctx.wait_for_event(HumanResponseEvent)
            return StopEvent(result=await ctx.store.get_state())

    workflow = Keeps(serializable=[Counts])
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = json.loads(json.dumps(handler.snapshot()))
        await handler.cancel("saved")
    async with workflow.resume(saved) as handler:
        await wait_until_idle()
        handler.send_event(HumanResponseEvent())

        assert await handler == Counts(n=1, more=2)


# -- older names ----------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("get", "await ctx.store.get(path)"),
        ("set", "await ctx.store.set(path, value)"),
        ("data", "ctx.store"),
        ("session", "ctx.send_event(event)"),
        ("running_steps", "observers=[...]"),
        ("get_step_context", "`ctx` as an argument"),
        ("nonsense", ""),
    ],
)
async def test_an_older_name_of_the_context_says_the_new_spelling(name, expected):
    """An `AttributeError` that names what takes its place; `hasattr` says no."""

    class Older(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            assert not hasattr(ctx, name)
            with pytest.raises(AttributeError) as caught:
                getattr(ctx, name)
            return StopEvent(result=str(caught.value))

    told = await Older().run()

    assert told.startswith(f"'Context' object has no attribute {name!r}")
    assert expected in told


@pytest.mark.anyio
async def test_older_names_of_workflow_handler_and_decorator_say_the_new_spelling():
    """What was an option, a method or an attribute there is told with the line to write."""
    workflow = Asks()
    with pytest.raises(AttributeError, match=r"expected `ctx\.send_event\(event\)` in a step"):
        workflow.send_event(A())
    async with workflow.run() as handler:
        with pytest.raises(AttributeError, match=r"expected `handler\.is_done\(\)`"):
            handler.done()
        with pytest.raises(AttributeError, match=r"expected `handler\.stop_event`"):
            handler.get_stop_event()
        await handler.cancel("not needed")
    with pytest.raises(
        TypeError, match=r"@step has no option 'pass_context'; expected .*ctx: Context"
    ):
        step(pass_context=True)
    with pytest.raises(
        TypeError, match=r"'retry_policy'; expected `@step\(retry=Retry\(\.\.\.\)\)`"
    ):
        step(retry_policy=None)
    with pytest.raises(TypeError, match=r"@step has no option 'wrong'$"):
        step(wrong=True)
    with pytest.raises(TypeError, match=r"Asks\(\) has no option 'serializer'; expected `serializ"):
        Asks(serializer=None)


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_errors_are_the_built_in_ones_that_people_catch():
    """A fault of the graph is a `ValueError`; what goes wrong in a run is a `RuntimeError`."""

    class Faulty(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A: ...

    with pytest.raises(ValueError, match="the workflow Faulty has"):
        Faulty()
    with pytest.raises(RuntimeError, match="can never end"):
        await Collects().run(order="a")
    for kind in (WorkflowTimeoutError, WorkflowCancelledError, WorkflowStalledError):
        assert issubclass(kind, RuntimeError)
        assert kind("text").args == ("text",)
        assert type(pickle.loads(pickle.dumps(kind("text")))) is kind


# -- names and imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*sorted(name for name in dir(Workflow) if not name.startswith("_")), "_built"]
)
def test_a_step_named_like_a_method_of_every_workflow_is_a_fault(name):
    """P13: it would take the place of the method."""

    async def function(self, ev: StartEvent) -> StopEvent: ...

    function.__name__ = name
    cls = type("Named", (Workflow,), {name: step(function)})

    with pytest.raises(WorkflowValidationError) as caught:
        Workflow.__init__(cls.__new__(cls))

    assert f"Named.{name} is a step, and every workflow has a method of that name" in str(
        caught.value
    )


@pytest.mark.slow
def test_drawing_is_importable_from_the_top_and_imported_when_it_is_used():
    """`from sluicegate import draw_all_possible_flows`; `import sluicegate` does not pay for it."""
    program = (
        "import sys, sluicegate; before = 'sluicegate.drawing' in sys.modules; "
        "sluicegate.draw_all_possible_flows; print(before, 'sluicegate.drawing' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["False", "True"]
    assert sluicegate.draw_all_possible_flows is sluicegate.drawing.draw_all_possible_flows


# -- resources of a function -------------------------------------------------------------------------------


def local_workflow(path):
    """Return a workflow whose resources are all defined in this function."""

    class Connection:
        def __init__(self, name: str) -> None:
            self.name = name

    @attrs.define
    class Inner:
        port: int

    @attrs.define
    class Settings:
        name: str
        inner: Inner
        more: list[Inner]

    @dataclasses.dataclass
    class Plain:
        inner: Inner

    class Client:
        def __init__(self, db: Annotated[Connection, Resource(connect)]) -> None:
            self.db = db

        def session(self, plain: Annotated[Plain, ResourceConfig(path, "plain")]) -> Session:
            return Session(self, plain)

    class Session:
        def __init__(self, client: Client, plain: Plain) -> None:
            self.text = f"{client is not None} {plain.inner.port}"

    def connect(config: Annotated[Settings, ResourceConfig(path)]) -> Connection:
        return Connection(f"{config.name} {config.inner.port} {config.more[0].port}")

    shared = Client(Connection("shared"))

    class Local(Workflow):
        @step
        async def begin(
            self,
            ev: StartEvent,
            client: Annotated[Client, Resource(Client)],
            session: Annotated[Session, Resource(shared.session)],
            settings: Annotated[Settings, ResourceConfig(path)],
        ) -> StopEvent:
            return StopEvent(result=(client.db.name, session.text, settings.inner.port))

    return Local


@pytest.mark.anyio
async def test_resources_see_the_names_of_the_function_that_they_are_defined_in(tmp_path):
    """Factories and configurations of a function are resolved as its steps are, once it is over."""
    path = tmp_path / "settings.json"
    inner = {"port": 3}
    data = {"name": "x", "inner": inner, "more": [inner], "plain": {"inner": inner}}
    path.write_text(json.dumps(data))

    assert await local_workflow(str(path))().run() == ("x 3 3", "True 3", 3)
