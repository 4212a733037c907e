"""Resources: made once in their scope, given to whoever asks, closed on every way out.

What a factory's annotations name is defined in the tests themselves, so this file keeps its
annotations as objects.
"""

import asyncio
import gc
import json
import threading
import warnings
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import MagicMock

import anyio
import attrs
import msgspec
import pydantic
import pytest
import trio

from sluicegate import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowValidationError,
    step,
)
from sluicegate._definition.resources import Resource, ResourceConfig, is_resource, plan_resource
from sluicegate._engine.entered import StepResources
from sluicegate._engine.resource_scopes import ResourceScope
from sluicegate._loop.cleanup import current_cleanup
from tests.helpers import (
    Catch,
    Item,
    Mine,
    MineBase,
    Note,
    cancelled_class,
    is_trio,
    leaves_of,
    live_tasks,
    nothing_left,
    on_each_backend,
    run_virtually,
    task_names,
    wait_until_idle,
)


def plan(factory, **options):
    """Return the plan of a step's parameter ``x: Annotated[Any, Resource(factory, ...)]``."""
    made = plan_resource("x", Annotated[Any, Resource(factory, **options)])
    assert not isinstance(made, list), made
    return made


def faults(factory, **options):
    """Return what is wrong with such a parameter."""
    made = plan_resource("x", Annotated[Any, Resource(factory, **options)])
    assert isinstance(made, list), made
    return made


class Log(list):
    """What happened, in order; makes factories of managers that write into it."""

    def manager(self, name, *, opening=None, closing=None, needs=None):
        """Return an async generator function that notes its opening, its end and the error."""

        async def factory(needed=None):
            if opening is not None:
                await opening()
            self.append(f"open {name}")
            error = None
            try:
                yield name
            except BaseException as raised:
                error = raised
                raise
            finally:
                self.append(f"closing {name}")
                self.errors[name] = error
                await anyio.sleep(0)
                if closing is not None:
                    await closing()
                self.append(f"closed {name}")

        factory.__name__ = name
        if needs is not None:
            factory.__annotations__ = {"needed": Annotated[Any, needs]}
        return factory

    def __init__(self):
        super().__init__()
        self.errors = {}


def fail_with(error):
    """Return an async function that raises ``error``."""

    async def fail():
        raise error

    return fail


async def forever():
    """Wait until cancelled."""
    await anyio.sleep(100_000)


# -- plans: what a signature says ----------------------------------------------------------------


def test_annotation_tells_whether_it_asks_for_a_resource():
    """An Annotated with a Resource or a ResourceConfig asks; anything else does not."""
    assert is_resource(Annotated[int, Resource(dict)])
    assert is_resource(Annotated[int, "note", ResourceConfig("a.json")])
    assert not is_resource(Annotated[int, "note"])
    assert not is_resource(int)
    assert not is_resource(None)


def test_resource_is_known_by_its_factory_and_its_scope():
    """Resources of one factory object are equal; two closures of one name are two."""

    def factory_for(value):
        def make():
            return value

        return make

    one, other = factory_for(1), factory_for(2)

    assert Resource(one) == Resource(one)
    assert hash(Resource(one)) == hash(Resource(one))
    assert Resource(one) != Resource(other)
    assert plan(one).key == plan(one).key
    assert plan(one).key != plan(other).key
    assert plan(one).key != plan(one, scope="step").key


def test_bound_method_is_known_by_object_and_function():
    """A bound method is a new object at each access, and still one factory."""

    class Maker:
        def make(self):
            return 1

    maker = Maker()

    assert plan(maker.make).key == plan(maker.make).key
    assert plan(maker.make).key != plan(Maker().make).key


def test_factories_that_compare_equal_are_two():
    """Identity counts, not equality; and a factory need not be hashable."""

    @dataclass
    class Caller:
        def __call__(self):
            return 1

    one, other = Caller(), Caller()

    assert one == other
    assert Resource(one) != Resource(other)
    assert len({Resource(one), Resource(one), Resource(other)}) == 2
    assert plan(one).key != plan(other).key


def test_cache_false_is_the_step_s_scope():
    """The name that LlamaIndex Workflows has for it works."""
    assert Resource(dict, cache=False).scope == "step"
    assert Resource(dict).scope == "run"


async def _async_make():
    return 1


def _generate():
    yield 1


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((3,), {}, "cannot be called; expected a function or a class"),
        ((dict,), {"scope": "process"}, "expected 'step', 'run' or 'workflow'"),
        (
            (dict,),
            {"scope": "workflow", "cache": False},
            "asks both to keep the resource and not to keep it",
        ),
        ((dict,), {"grace": 0}, "expected seconds above 0"),
        ((dict,), {"grace": "long"}, "expected seconds above 0"),
        ((_generate,), {"enter": False}, "yields nothing until it is entered"),
    ],
)
def test_arguments_of_a_resource_are_checked(arguments, options, text):
    """A wrong argument is refused where it is written."""
    with pytest.raises(WorkflowValidationError, match=text):
        Resource(*arguments, **options)


def test_called_factory_is_told_from_the_factory():
    """``Resource(make())`` is told the right spelling."""
    coroutine = _async_make()
    with pytest.raises(WorkflowValidationError, match="without calling it"):
        Resource(coroutine)
    coroutine.close()


def _left(x: Annotated[Any, "replaced below"]):
    return x


def _middle(x: Annotated[Any, Resource(_left)]):
    return x


_left.__annotations__["x"] = Annotated[Any, Resource(_middle)]


def test_circle_is_a_fault_that_names_all_of_it():
    """Resources that need each other are refused when the workflow is built."""

    def outside(x: Annotated[Any, Resource(_left)]):
        return x

    (fault,) = faults(outside)

    assert "needs itself: _left -> _middle -> _left; expected" in fault
    assert fault.startswith("takes 'x' from the resource outside, which needs _left, which needs ")


def test_one_resource_needed_twice_is_no_circle():
    """A diamond is fine, and its foot is planned once."""

    def foot():
        return 1

    def left(x: Annotated[Any, Resource(foot)]):
        return x

    def right(x: Annotated[Any, Resource(foot)]):
        return x

    def top(a: Annotated[Any, Resource(left)], b: Annotated[Any, Resource(right)]):
        return a, b

    made = plan(top)
    (_, first), (_, second) = made.needs

    assert sorted(p.name for p in made.walk()) == ["foot", "left", "right", "top"]
    assert first.needs[0][1] is second.needs[0][1]


def test_parameter_that_nothing_fills_is_a_fault():
    """Parameters need a resource, the context or a default; all faults come at once."""

    def make(url: str, *rest, key, size: int = 3, **more):
        return url

    assert [fault.partition(" that nothing")[0] for fault in faults(make)] == [
        "takes 'x' from the resource make, which has a parameter 'url'",
        "takes 'x' from the resource make, which has a parameter 'key'",
    ]


def test_annotation_that_cannot_be_resolved_is_a_fault():
    """Names that only a type checker sees cannot say what to fill in."""

    def make(x: "Annotated[Nowhere, Resource(dict)]"):  # noqa: F821
        return x

    (fault,) = faults(make)

    assert "cannot be resolved (name 'Nowhere' is not defined); expected" in fault


def test_return_annotation_may_be_unknown():
    """What a factory says it returns is not read."""

    def make(x: Annotated[Any, Resource(dict)]) -> "Nowhere":  # noqa: F821
        return x

    assert len(plan(make).needs) == 1


def test_positional_only_parameter_is_a_fault():
    """Factories are called by keyword."""

    def make(x: Annotated[Any, Resource(dict)], /):
        return x

    assert "takes 'x' by position only; expected" in faults(make)[0]


def test_two_markers_are_a_fault():
    """One annotation asks for one thing."""
    made = plan_resource("x", Annotated[Any, Resource(dict), Resource(list)])

    assert isinstance(made, list)
    assert "from the resource dict, and from list as well; expected one" in made[0]


@pytest.mark.parametrize(
    ("outer", "inner", "is_fine"),
    [
        ("step", "step", True),
        ("step", "run", True),
        ("step", "workflow", True),
        ("run", "step", False),
        ("run", "run", True),
        ("run", "workflow", True),
        ("workflow", "step", False),
        ("workflow", "run", False),
        ("workflow", "workflow", True),
    ],
)
def test_resource_needs_only_what_lives_as_long(outer, inner, is_fine):
    """A resource may need others of its own and of wider scopes."""

    def make(x: Annotated[Any, Resource(dict, scope=inner)]):
        return x

    if is_fine:
        assert plan(make, scope=outer).needs[0][1].scope == inner
    else:
        (fault,) = faults(make, scope=outer)

        assert (
            f"has the scope of the {outer} and needs dict, which has only that of the {inner}"
            in fault
        )


def test_context_goes_to_resources_of_a_step_or_a_run():
    """A workflow outlives every run, so a resource of its scope gets no context."""

    def make(ctx: Context):
        return ctx

    def typed(c: Annotated[Context[int], "note"]):
        return c

    def twice(a: Context, b: Context):
        return a, b

    assert plan(make).context_as == "ctx"
    assert plan(typed, scope="step").context_as == "c"
    assert "outlives every run; expected" in faults(make, scope="workflow")[0]
    assert "takes the context twice, as 'a' and 'b'; expected" in faults(twice)[0]


@attrs.frozen
class _Quoted:
    _x: "Annotated[Any, Resource(dict)]"


def test_classes_of_every_kind_are_factories():
    """The parameters of a class are read wherever its annotations stand."""

    class Plain:
        def __init__(self, x: Annotated[Any, Resource(dict)], y: int = 1):
            self.x = x

    @attrs.frozen
    class Attrs:
        _x: Annotated[Any, Resource(dict)]

    @dataclass
    class Data:
        x: Annotated[Any, Resource(dict)]

    class Model(pydantic.BaseModel):
        x: Annotated[Any, Resource(dict)]

    class Caller:
        def __call__(self, x: Annotated[Any, Resource(dict)]):
            return x

    def function(a, x: Annotated[Any, Resource(dict)]):
        return x

    for factory in (Plain, Attrs, _Quoted, Data, Model, Caller(), partial(function, 1)):
        assert [name for name, _ in plan(factory).needs] == ["x"], factory
    assert plan(dict).needs == ()


# -- one scope: what is made, and how often ------------------------------------------------------


@pytest.mark.anyio
async def test_every_kind_of_factory_gives_its_resource():
    """Functions, coroutines, generators, decorated ones and classes; managers are entered."""
    log = []

    @contextmanager
    def decorated():
        yield "decorated"
        log.append("decorated")

    @asynccontextmanager
    async def async_decorated():
        yield "async decorated"
        log.append("async decorated")

    def generator():
        yield "generator"
        log.append("generator")

    async def async_generator():
        yield "async generator"
        log.append("async generator")

    async def coroutine():
        await anyio.sleep(0)
        return "coroutine"

    async def coroutine_of_manager():
        return decorated()

    class Kind:
        async def __aenter__(self):
            return "class"

        async def __aexit__(self, *error):
            log.append("class")

    factories = [
        (lambda: "function", "function"),
        (lambda: coroutine(), "coroutine"),
        (coroutine, "coroutine"),
        (generator, "generator"),
        (async_generator, "async generator"),
        (decorated, "decorated"),
        (async_decorated, "async decorated"),
        (coroutine_of_manager, "decorated"),
        (Kind, "class"),
        (partial(generator), "generator"),
    ]
    with nothing_left():
        async with ResourceScope("run") as scope:
            for factory, expected in factories:
                assert await scope.get(plan(factory)) == expected

    assert log == [
        "generator",
        "class",
        "decorated",
        "async decorated",
        "decorated",
        "async generator",
        "generator",
    ]


@pytest.mark.anyio
async def test_locks_mocks_and_paths_are_given_as_they_are():
    """What has an ``acquire`` is no resource to be entered; ``enter=False`` says so of others."""

    class Manager:
        def __enter__(self):
            raise AssertionError

        def __exit__(self, *error):
            raise AssertionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with ResourceScope("run") as scope:
            for make in (threading.Lock, anyio.Lock, asyncio.Lock, trio.Semaphore, Path, MagicMock):
                made = []

                def factory(make=make, made=made):
                    made.append(make(1) if make is trio.Semaphore else make())
                    return made[0]

                assert await scope.get(plan(factory)) is made[0]
            assert isinstance(await scope.get(plan(Manager, enter=False)), Manager)


@pytest.mark.anyio
async def test_what_needs_no_closing_needs_no_task():
    """Values are made in the asking; a keeper lives only for what is to be closed."""
    before = len(live_tasks())
    async with ResourceScope("run") as scope:
        assert await scope.get(plan(dict)) == {}
        assert await scope.get(plan(_async_make)) == 1
        await wait_until_idle()

        assert len(live_tasks()) == before

        await scope.get(plan(_generate))

        assert len(live_tasks()) == before + 1
        assert "resource _generate" in task_names()


@pytest.mark.anyio
async def test_resource_is_one_object_within_its_scope():
    """Plans of one factory give one object; two closures of one name are two."""

    def factory_for(value):
        async def make():
            return [value]

        return make

    one, other = factory_for("X"), factory_for("Y")
    async with ResourceScope("run") as scope, ResourceScope("run") as second:
        first = await scope.get(plan(one))

        assert first is await scope.get(plan(one))
        assert first == ["X"]
        assert await scope.get(plan(other)) == ["Y"]
        assert await second.get(plan(one)) is not first


@pytest.mark.anyio
async def test_concurrent_requests_make_one():
    """Those who ask while it is being made wait for it: no false circle, no second one."""
    made = []
    go = anyio.Event()

    async def slow():
        made.append(1)
        await go.wait()
        return object()

    async def nested(x: Annotated[Any, Resource(slow)]):
        made.append(2)
        await anyio.sleep(0)
        yield x
        made.append(3)

    got = []

    async def ask(scope, asked):
        got.append(await scope.get(asked))

    async with (
        ResourceScope("run") as scope,
        ResourceScope("run"),
        anyio.create_task_group() as group,
    ):
        for _ in range(3):
            group.start_soon(ask, scope, plan(nested))
            group.start_soon(ask, scope, plan(slow))
        await wait_until_idle()
        go.set()

    assert len(got) == 6
    assert len(set(map(id, got))) == 1
    assert made == [1, 2, 3]


@pytest.mark.anyio
async def test_cancelled_requester_leaves_the_making_alone():
    """Who asked first may be cancelled: the others get the resource, made once."""
    made = []
    go = anyio.Event()

    async def slow():
        made.append("begun")
        await go.wait()
        made.append("done")
        yield "it"

    got = []

    async def ask(scope):
        got.append(await scope.get(plan(slow)))

    async with ResourceScope("run") as scope, anyio.create_task_group() as group:
        with anyio.CancelScope() as first:
            group.start_soon(cancel_soon, first)
            await scope.get(plan(slow))

        assert first.cancelled_caught

        group.start_soon(ask, scope)
        await wait_until_idle()
        go.set()

    assert got == ["it"]
    assert made == ["begun", "done"]


async def cancel_soon(scope):
    """Cancel a scope once everybody waits."""
    await wait_until_idle()
    scope.cancel()


@pytest.mark.anyio
async def test_failing_factory_fails_all_who_wait_with_one_object():
    """Whoever waits gets the same exception; the next to ask has it tried again."""
    error = Mine("no")
    tries = []

    async def make():
        tries.append(1)
        await wait_until_idle(5)
        if len(tries) == 1:
            raise error
        yield "it"

    caught = []

    async def ask(scope):
        with Catch() as catch:
            await scope.get(plan(make))
        caught.append(catch.error)

    async with ResourceScope("run") as scope:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, scope)

        assert all(one is error for one in caught)
        assert len(caught) == 3
        assert error.__notes__ == ["while the resource make was made"]
        assert await scope.get(plan(make)) == "it"
        assert len(tries) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [True, False])
async def test_what_a_failing_factory_needs_stays_open_for_others(is_async):
    """A failure reaches whoever needs the resource, and closes nothing else."""
    log = Log()
    error = Mine("no")
    base = log.manager("base")

    def make(x: Annotated[Any, Resource(base)]):
        raise error

    async def make_async(x: Annotated[Any, Resource(base)]):
        raise error

    failing = make_async if is_async else make

    def dependent(x: Annotated[Any, Resource(failing)]):
        return x

    async with ResourceScope("run") as scope:
        with Catch() as catch:
            await scope.get(plan(dependent))

        assert catch.error is error
        assert len(error.__notes__) == 1
        assert await scope.get(plan(base)) == "base"
        assert log == ["open base"]


@pytest.mark.anyio
async def test_failure_that_nobody_waited_for_is_told():
    """P9: it is kept for the next to ask, and told at the end if no one does."""
    error = Mine("no")
    told = []

    async def make():
        await wait_until_idle()
        raise error

    async def ask_and_give_up(scope):
        with anyio.CancelScope() as given_up:
            given_up.cancel()
            await scope.get(plan(make))

    async with ResourceScope("run", on_failure=told.append) as scope:
        await ask_and_give_up(scope)
        await wait_until_idle(60)
        with Catch() as catch:
            await scope.get(plan(make))

        assert catch.error is error

        await ask_and_give_up(scope)
        await wait_until_idle(60)

        assert told == []

    assert told == [error]


@pytest.mark.anyio
async def test_factory_that_raises_a_stray_cancellation_fails():
    """A cancellation that no one asked for is a failure, and hangs or cancels no one."""

    async def make():
        if is_trio():
            with trio.CancelScope() as inner:
                inner.cancel()
                try:
                    await trio.lowlevel.checkpoint()
                except trio.Cancelled as error:
                    stray.append(error)
            raise stray[0]
        raise asyncio.CancelledError

    stray = []
    async with ResourceScope("run") as scope:
        with pytest.raises(WorkflowRuntimeError, match="though nothing around it was cancelled"):
            await scope.get(plan(make))


async def a_cancellation():
    """Return an exception of the backend's cancellation."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await forever()
        except cancelled_class() as error:
            return error


@pytest.mark.anyio
@pytest.mark.parametrize("at", ["opening", "closing"])
async def test_failure_is_told_without_the_cancellations_beside_it(at):
    """A nursery of the user's may raise both at once; the cancellation concerns no one."""
    error = Mine("x")
    group = BaseExceptionGroup("both", [await a_cancellation(), error])
    factory = Log().manager("a", **{at: fail_with(group)})
    told = []
    async with ResourceScope("run", on_failure=told.append) as scope:
        with Catch() as catch:
            await scope.get(plan(factory))

    (failure,) = [*told, *([catch.error] if catch.error else [])]
    assert leaves_of(failure) == [error]


@pytest.mark.anyio
async def test_factories_get_the_context_of_their_scope():
    """A resource of a run gets the run's, one of a step the step's."""

    def make(ctx: Context):
        return ctx

    run_context, step_context = object(), object()
    async with (
        ResourceScope("run", context=run_context) as scope,
        StepResources(scope, step_context) as resources,
    ):
        assert await resources.get(plan(make)) is run_context
        assert await resources.get(plan(make, scope="step")) is step_context


@pytest.mark.anyio
async def test_factories_run_in_the_variables_of_the_scope():
    """What they open is not closed with the step that happened to ask first."""
    variable = ContextVar("variable", default="outside")

    async def make():
        yield variable.get(), current_cleanup.get()

    def plain():
        return variable.get(), current_cleanup.get()

    async with ResourceScope("run") as scope:
        token = variable.set("step")
        cleanup = current_cleanup.set(object())
        try:
            assert await scope.get(plan(make)) == ("outside", None)
            assert await scope.get(plan(plain)) == ("outside", None)
        finally:
            variable.reset(token)
            current_cleanup.reset(cleanup)

    variables = copy_context()
    variables.run(variable.set, "given")
    async with ResourceScope("run", variables=variables) as scope:
        assert await scope.get(plan(make)) == ("given", None)


@pytest.mark.anyio
async def test_value_of_a_workflow_without_a_block_is_not_the_step_s_either():
    """What it opens while it is made must not be closed with the step that asked first."""

    async def make():
        before = current_cleanup.get()
        await anyio.sleep(0)
        return before, current_cleanup.get()

    def plain():
        return current_cleanup.get()

    workflow = ResourceScope("workflow")
    cleanup = current_cleanup.set(object())
    try:
        assert await workflow.get(plan(make, scope="workflow")) == (None, None)
        assert await workflow.get(plan(plain, scope="workflow")) is None
    finally:
        current_cleanup.reset(cleanup)


# -- the end of a scope --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_closed_in_reverse_order_one_after_the_other():
    """What was opened last is closed first; what another needs outlives it."""
    log = Log()
    base = log.manager("base")
    top = log.manager("top", needs=Resource(base))
    with nothing_left():
        async with ResourceScope("run") as scope:
            await scope.get(plan(top))
            await scope.get(plan(log.manager("last")))

    assert log == [
        "open base",
        "open top",
        "open last",
        "closing last",
        "closed last",
        "closing top",
        "closed top",
        "closing base",
        "closed base",
    ]


async def some_turns():
    """Let others run for a while."""
    await wait_until_idle(5)


class Host:
    """A task that may be cancelled in both ways: by its scope, or natively under asyncio."""

    def __init__(self, function, *, is_native):
        self._function = function
        self._task = None
        self._is_native = is_native and not is_trio()
        self._scope = anyio.CancelScope()
        self.is_cancelled = False

    async def __call__(self):
        if not self._is_native:
            with self._scope:
                await self._function()
            self.is_cancelled = self._scope.cancelled_caught
            return
        self._task = asyncio.create_task(self._function())
        await asyncio.wait([self._task])
        self.is_cancelled = self._task.cancelled()
        if not self.is_cancelled:
            self._task.result()

    def cancel(self):
        if self._task is not None:
            self._task.cancel()
        else:
            self._scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["normally", "failure", "base", "timeout", "cancel", "native"])
async def test_closed_on_every_way_out(way):
    """However the block is left, all is closed, with the exception, in order and undisturbed."""
    log = Log()
    error = MineBase("x") if way == "base" else Mine("x")

    async def block():
        with anyio.CancelScope() as timeout:
            async with ResourceScope("run") as scope:
                await scope.get(plan(log.manager("a", closing=some_turns)))
                await scope.get(plan(log.manager("b", closing=some_turns)))
                if way in ("failure", "base"):
                    raise error
                if way == "timeout":
                    timeout.deadline = anyio.current_time()
                if way != "normally":
                    await forever()

        assert timeout.cancelled_caught == (way == "timeout")

    with nothing_left(), Catch() as catch:
        if way in ("cancel", "native"):
            host = Host(block, is_native=way == "native")
            async with anyio.create_task_group() as group:
                group.start_soon(host)
                await wait_until_idle()
                host.cancel()
                await wait_until_idle(6)
                host.cancel()  # once more, while it closes the first

            assert host.is_cancelled
        else:
            await block()

    is_failure = way in ("failure", "base")
    assert catch.error is (error if is_failure else None)
    assert log == ["open a", "open b", "closing b", "closed b", "closing a", "closed a"]
    for got in log.errors.values():
        if way in ("normally", "failure", "base"):
            assert got is catch.error
        else:
            assert isinstance(got, cancelled_class())


@pytest.mark.anyio
@pytest.mark.parametrize("is_native", [False, True], ids=["scope", "native"])
async def test_cancelled_at_any_moment_it_closes_what_it_opened(is_native):
    """P1, P2: while opening, in the block, or while closing; nothing is left, nothing torn."""

    async def scenario(log):
        base = log.manager("base", opening=some_turns, closing=some_turns)
        top = log.manager("top", opening=some_turns, closing=some_turns, needs=Resource(base))
        async with ResourceScope("run") as scope, anyio.create_task_group() as group:
            group.start_soon(scope.get, plan(base))
            await scope.get(plan(top))
            async with StepResources(scope) as resources:
                if not is_native:  # which goes through the shield of the task that it hits
                    own = log.manager("own", opening=some_turns, closing=some_turns)
                    await resources.get(plan(own, scope="step"))
                await some_turns()

    endings = set()
    for turns in range(100):
        log = Log()
        host = Host(partial(scenario, log), is_native=is_native)
        with nothing_left():
            async with anyio.create_task_group() as group:
                group.start_soon(host)
                await wait_until_idle(turns)
                host.cancel()
        opened = [name for name in ("base", "top", "own") if f"open {name}" in log]

        assert [e for e in log if e.startswith("closed")] == [f"closed {n}" for n in opened[::-1]]
        endings.add((host.is_cancelled, len(opened)))

    everything = 2 if is_native else 3
    assert {(True, 0), (True, 1), (True, everything), (False, everything)} <= endings


@pytest.mark.trio
async def test_engine_is_protected_from_ctrl_c_and_what_users_wrote_is_not():
    """P17: a factory and a manager can be interrupted; the bookkeeping around them cannot."""
    seen = {}

    def note(where):
        seen[where] = trio.lowlevel.currently_ki_protected()

    def plain():
        note("plain")

    async def manager():
        note("open")
        try:
            yield
        finally:
            note("close")

    def on_failure(_error):
        note("callback")

    async with ResourceScope("run", on_failure=on_failure) as scope:
        await scope.get(plan(plain))
        await scope.get(plan(manager))
        await scope.get(plan(Log().manager("a", closing=fail_with(Mine()))))

    assert seen == {"plain": False, "open": False, "close": False, "callback": True}


@on_each_backend
def test_cancellation_leaves_resources_open_while_the_block_unwinds(backend):
    """What a step still uses in its ``finally`` is closed after it."""
    log = Log()

    async def main():
        with anyio.move_on_after(1):
            async with ResourceScope("run") as scope:
                await scope.get(plan(log.manager("a")))
                try:
                    await forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(1)
                    log.append("unwound")

    run_virtually(backend, main)

    assert log == ["open a", "unwound", "closing a", "closed a"]


@on_each_backend
def test_cancellation_while_closing_waits_and_continues(backend):
    """Cancelled while resources are being closed, the scope closes them, and then says so."""
    log = Log()

    async def main():
        with anyio.move_on_after(1) as outer:
            async with ResourceScope("run") as scope:
                await scope.get(plan(log.manager("a", closing=partial(anyio.sleep, 2))))
                await scope.get(plan(log.manager("b", closing=partial(anyio.sleep, 2))))

        assert outer.cancelled_caught

    run_virtually(backend, main)

    assert log == ["open a", "open b", "closing b", "closed b", "closing a", "closed a"]


@pytest.mark.anyio
async def test_owner_may_say_what_ended_the_scope():
    """A failure that does not leave the block as an exception reaches the managers all the same."""
    log = Log()
    error = Mine("kept as an outcome")
    async with ResourceScope("run") as scope:
        await scope.get(plan(log.manager("a")))
        scope.ended_by = error

    assert log.errors["a"] is error


@pytest.mark.anyio
async def test_manager_swallows_nothing():
    """That a manager calls an exception settled does not settle it, nor counts as a failure."""
    error = Mine("x")

    async def swallow():
        with suppress(Mine):
            yield 1

    told = []
    with Catch() as catch:
        async with ResourceScope("run", on_failure=told.append) as scope:
            await scope.get(plan(swallow))
            raise error

    assert catch.error is error
    assert told == []


@pytest.mark.anyio
@pytest.mark.parametrize("is_step", [True, False], ids=["step", "run"])
async def test_manager_cannot_swallow_a_cancellation(is_step):
    """The cancellation continues outward, and it is no failure to have taken it for settled."""

    async def swallow():
        with suppress(BaseException):
            yield 1

    told = []
    with anyio.CancelScope() as outer:
        async with (
            ResourceScope("run", on_failure=told.append) as scope,
            StepResources(scope) as resources,
        ):
            await resources.get(plan(swallow, scope="step" if is_step else "run"))
            outer.cancel()
            await forever()

    assert outer.cancelled_caught
    assert told == []


@pytest.mark.anyio
async def test_failures_to_close_are_all_told_in_order():
    """One that fails does not keep the others from being closed; the callback gets each."""
    log, told = Log(), []
    first, second = Mine("first"), Mine("second")
    async with ResourceScope("run", on_failure=told.append) as scope:
        await scope.get(plan(log.manager("a", closing=fail_with(second))))
        await scope.get(plan(log.manager("b")))
        await scope.get(plan(log.manager("c", closing=fail_with(first))))

    assert told[0] is first
    assert told[1] is second
    assert log == ["open a", "open b", "open c", "closing c", "closing b", "closed b", "closing a"]
    assert first.__notes__ == ["in the resource c"]
    # As in nested blocks, what is around a failure sees it.
    assert log.errors == {"c": None, "b": first, "a": first}


@pytest.mark.anyio
async def test_without_a_callback_the_first_failure_is_raised():
    """The others are in its notes."""
    log = Log()
    first, second = Mine("first"), Mine("second")
    with Catch() as catch:
        async with ResourceScope("workflow") as scope:
            await scope.get(plan(log.manager("a", closing=fail_with(second)), scope="workflow"))
            await scope.get(plan(log.manager("c", closing=fail_with(first)), scope="workflow"))

    assert catch.error is first
    assert first.__notes__ == ["in the resource c", "and a resource failed: Mine('second')"]


@pytest.mark.anyio
async def test_exception_of_the_block_comes_first():
    """A failure to close is a note on it; a cancellation gives way to the failure."""
    log = Log()
    failure, error = Mine("close"), Mine("block")
    with Catch() as catch:
        async with ResourceScope("run") as scope:
            await scope.get(plan(log.manager("a", closing=fail_with(failure))))
            raise error

    assert catch.error is error
    assert error.__notes__ == ["and a resource failed: Mine('close')"]

    with Catch() as catch, anyio.CancelScope() as outer:
        async with ResourceScope("run") as scope:
            await scope.get(plan(log.manager("a", closing=fail_with(failure))))
            outer.cancel()
            await forever()

    assert catch.one is failure


@pytest.mark.anyio
async def test_urgent_failure_comes_before_everything():
    """P8: a KeyboardInterrupt in closing comes out bare."""
    log = Log()
    urgent = KeyboardInterrupt()
    with Catch() as catch:
        async with ResourceScope("run") as scope:
            await scope.get(plan(log.manager("a", closing=fail_with(urgent))))
            raise Mine

    assert catch.error is urgent


@on_each_backend
def test_closing_beyond_its_grace_is_cancelled_and_told(backend):
    """The error names resource and grace; those that come after have a grace of their own."""
    log, told = Log(), []

    async def main():
        begin = anyio.current_time()
        async with ResourceScope("run", on_failure=told.append) as scope:
            await scope.get(plan(log.manager("a", closing=partial(anyio.sleep, 2)), grace=3))
            await scope.get(plan(log.manager("b", closing=forever), grace=7))
            await scope.get(plan(log.manager("c", closing=partial(anyio.sleep, 2)), grace=3))
        return anyio.current_time() - begin

    assert run_virtually(backend, main) == pytest.approx(2 + 7 + 2)
    assert "closed a" in log
    assert "closed c" in log
    (late,) = told
    assert isinstance(late, WorkflowRuntimeError)
    assert "closing the resource b took longer than its grace of 7 s" in str(late)


@pytest.mark.anyio
async def test_what_is_still_being_opened_is_cancelled_and_cleaned_up():
    """The end does not wait for a server that never answers; it waits for the clean-up."""
    log = Log()

    async def opening():
        try:
            await forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle()
            log.append("cleaned up")

    told, caught = [], []

    async def ask(scope, asked):
        try:
            await scope.get(asked)
        except WorkflowRuntimeError as error:
            caught.append(error)

    with nothing_left():
        async with (
            anyio.create_task_group() as group,
            ResourceScope("run", on_failure=told.append) as scope,
        ):
            await scope.get(plan(log.manager("a")))
            group.start_soon(ask, scope, plan(log.manager("b", opening=opening)))
            await wait_until_idle()

    assert log == ["open a", "cleaned up", "closing a", "closed a"]
    assert told == []
    (refused,) = caught
    assert "the run's scope has ended, and b belongs to it" in str(refused)


@pytest.mark.anyio
async def test_clean_up_of_an_opening_that_fails_is_told():
    """P9: also when no one waits for it any more."""
    error = Mine("clean-up")
    told = []

    async def make():
        try:
            await forever()
        finally:
            raise error

    async with ResourceScope("run", on_failure=told.append) as scope:
        with anyio.CancelScope() as given_up:
            given_up.cancel()
            await scope.get(plan(make))

    assert told == [error]


@pytest.mark.anyio
async def test_clean_up_of_an_opening_that_fails_is_told_once():
    """It is raised to whoever waits, and then told to no one else."""
    error = Mine("clean-up")
    told, caught = [], []

    async def make():
        try:
            await forever()
        finally:
            raise error

    async def ask(scope):
        with Catch() as catch:
            await scope.get(plan(make))
        caught.append(catch.error)

    for _ in range(20):  # Trio wakes scope and waiters in any order
        caught.clear()
        async with (
            anyio.create_task_group() as group,
            ResourceScope("run", on_failure=told.append) as scope,
        ):
            group.start_soon(ask, scope)
            group.start_soon(ask, scope)
            await wait_until_idle()

        assert caught == [error, error]
        assert told == []


@pytest.mark.anyio
async def test_opening_that_takes_no_notice_of_the_end_is_closed():
    """What was opened all the same is closed like the rest, undisturbed and first."""
    log = Log()

    async def stubborn():
        with anyio.CancelScope(shield=True):
            await wait_until_idle(40)

    with nothing_left():
        async with ResourceScope("run") as scope:
            await scope.get(plan(log.manager("a")))
            with anyio.CancelScope() as given_up:
                given_up.cancel()
                await scope.get(plan(log.manager("b", opening=stubborn)))

    assert log == ["open a", "open b", "closing b", "closed b", "closing a", "closed a"]


# -- managers with an inner life -----------------------------------------------------------------


def with_nursery(log, name, background):
    """Return a factory whose manager runs ``background`` in a nursery around the resource."""

    async def factory():
        if is_trio():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(background)
                yield name
                log.append(f"leaving {name}")
                nursery.cancel_scope.cancel()
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(background)
                yield name
                log.append(f"leaving {name}")
                group.cancel_scope.cancel()
        log.append(f"left {name}")

    factory.__name__ = name
    return factory


@pytest.mark.anyio
@pytest.mark.parametrize("is_step", [True, False], ids=["step", "run"])
async def test_manager_may_open_a_nursery(is_step):
    """It is entered and left in one task, properly nested, whichever tasks ask for it."""
    log = []
    scope_name = "step" if is_step else "run"
    plans = [plan(with_nursery(log, name, forever), scope=scope_name) for name in "ab"]
    with nothing_left():
        async with ResourceScope("run") as scope, StepResources(scope) as resources:
            if is_step:
                for asked in plans:
                    await resources.get(asked)
            else:
                async with anyio.create_task_group() as group:
                    for asked in plans:
                        group.start_soon(resources.get, asked)
            log.sort()

    assert [entry for entry in log if entry.startswith("left")] in (
        [["left b", "left a"]] if is_step else [["left b", "left a"], ["left a", "left b"]]
    )


@pytest.mark.anyio
@pytest.mark.parametrize("is_step", [True, False], ids=["step", "run"])
async def test_error_of_the_block_that_a_nursery_wraps_is_no_failure_to_close(is_step):
    """The exception that goes in and comes out in a group is the same exception."""
    log, told = [], []
    error = Mine("block")
    asked = plan(with_nursery(log, "a", forever), scope="step" if is_step else "run")
    with Catch() as catch:
        async with (
            ResourceScope("run", on_failure=told.append) as scope,
            StepResources(scope) as resources,
        ):
            await resources.get(asked)
            raise error

    assert catch.error is error
    assert not hasattr(error, "__notes__")
    assert told == []


@pytest.mark.anyio
@pytest.mark.parametrize("is_step", [True, False], ids=["step", "run"])
@pytest.mark.parametrize("is_native", [False, True], ids=["scope", "native"])
async def test_cancellation_goes_through_a_manager_with_a_nursery(is_native, is_step):
    """The cancellation of the block is handed to the manager, and is no failure of it."""
    told = []

    async def block():
        async with (
            ResourceScope("run", on_failure=told.append) as scope,
            StepResources(scope) as resources,
        ):
            for name in "ab":
                factory = with_nursery([], name, forever)
                await resources.get(plan(factory, scope="step" if is_step else "run"))
            await forever()

    host = Host(block, is_native=is_native)
    with nothing_left():
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await wait_until_idle()
            host.cancel()

    assert host.is_cancelled
    assert told == []


@pytest.mark.anyio
async def test_keeper_that_crashes_tells_at_that_moment():
    """A background task of a manager that fails is told while the scope is open."""
    log, told = [], []
    crash = anyio.Event()
    error = Mine("crash")

    async def background():
        await crash.wait()
        raise error

    factory = with_nursery(log, "a", background)
    other = Log()
    async with ResourceScope("run", on_failure=told.append) as scope:
        assert await scope.get(plan(factory)) == "a"

        await scope.get(plan(other.manager("b")))
        crash.set()
        await wait_until_idle()

        (failure,) = told
        assert leaves_of(failure) == [error]
        assert other == ["open b"]
        # The next to ask gets another one, which crashes as well.
        assert await scope.get(plan(factory)) == "a"

        await wait_until_idle()

        assert len(told) == 2

    assert len(told) == 2
    assert other == ["open b", "closing b", "closed b"]


@pytest.mark.anyio
async def test_without_a_callback_a_crash_cancels_the_block():
    """As with a nursery: the block is cancelled, and the failure raised."""
    error = Mine("crash")
    factory = with_nursery([], "a", fail_with(error))
    reached = []
    with Catch() as catch, nothing_left():
        async with ResourceScope("run") as scope:
            with suppress(Mine):
                await scope.get(plan(factory))
            await forever()
            reached.append(1)

    assert catch.one is error
    assert reached == []
    if not is_trio():  # the cancellation has been settled with asyncio as well
        assert asyncio.current_task().cancelling() == 0


@pytest.mark.anyio
@pytest.mark.parametrize("is_step", [True, False], ids=["step", "run"])
async def test_resource_that_ends_by_itself_is_a_failure(is_step):
    """A manager whose own cancel scope ends it leaves a dead resource behind: no silence."""
    inner = []

    async def factory():
        with anyio.CancelScope() as scope:
            inner.append(scope)
            yield 1

    told = []
    with Catch() as catch:
        async with (
            ResourceScope("run", on_failure=told.append) as scope,
            StepResources(scope) as resources,
        ):
            await resources.get(plan(factory, scope="step" if is_step else "run"))
            inner[0].cancel()
            await (forever() if is_step else wait_until_idle())

    (failure,) = [catch.error] if is_step else told
    assert isinstance(failure, WorkflowRuntimeError)
    assert "the resource factory ended by itself while it was in use" in str(failure)


@pytest.mark.parametrize("at", ["open", "closing"])
def test_keeper_that_is_cancelled_natively_is_a_failure(at):
    """Under asyncio anyone may cancel any task: the resource is closed, and it is told."""
    log, told = Log(), []

    def cancel_keeper():
        (keeper,) = [task for task in asyncio.all_tasks() if task.get_name() == "resource a"]
        keeper.cancel()

    async def closing():
        if at == "closing":
            cancel_keeper()
            await forever()

    async def main():
        with nothing_left():
            async with ResourceScope("run", on_failure=told.append) as scope:
                await scope.get(plan(log.manager("a", closing=closing)))
                if at == "open":
                    cancel_keeper()
                    await wait_until_idle()

                    assert len(told) == 1

    run_virtually("asyncio", main)

    (failure,) = told
    assert isinstance(failure, WorkflowRuntimeError)
    assert isinstance(failure.__cause__, asyncio.CancelledError)
    assert ("ended by itself" if at == "open" else "nothing around it") in str(failure)
    assert ("closed a" in log) == (at == "open")


# -- a workflow's scope ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_values_of_a_workflow_need_no_block():
    """What needs no closing is made once, whichever runs ask, and kept with the scope."""
    workflow = ResourceScope("workflow")

    async def make():
        await anyio.sleep(0)
        return object()

    asked = plan(make, scope="workflow")
    async with ResourceScope("run", outer=workflow) as one:
        first = await one.get(asked)
    async with ResourceScope("run", outer=workflow) as two:
        assert await two.get(asked) is first


@pytest.mark.anyio
@pytest.mark.parametrize("factory", [_generate, lambda: anyio.CancelScope()])
async def test_what_has_to_be_closed_needs_the_block(factory):
    """The error shows the block."""
    async with ResourceScope("run", outer=ResourceScope("workflow")) as run:
        with pytest.raises(WorkflowRuntimeError) as caught:
            await run.get(plan(factory, scope="workflow"))

    assert str(caught.value).endswith(
        "is of the workflow's scope and has to be closed; expected `async with workflow:` around "
        "its runs"
    )


@pytest.mark.anyio
async def test_without_a_block_the_next_one_makes_what_the_first_gave_up():
    """Cancelled while making a value, the first leaves it to those who wait."""
    made = []
    go = anyio.Event()

    async def make():
        made.append(1)
        await go.wait()
        return "it"

    asked = plan(make, scope="workflow")
    workflow = ResourceScope("workflow")
    got = []

    async def ask():
        got.append(await workflow.get(asked))

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as first:
            group.start_soon(ask)
            await wait_until_idle()
            group.start_soon(cancel_soon, first)
            group.start_soon(ask)
            await workflow.get(asked)
        go.set()

    assert got == ["it", "it"]
    assert len(made) <= 2


@pytest.mark.anyio
async def test_without_a_block_a_maker_that_is_cancelled_is_followed():
    """The one who makes it is cancelled, and the one who waits makes it."""
    begun = []
    go = anyio.Event()

    async def make():
        begun.append(1)
        await go.wait()
        return "it"

    asked = plan(make, scope="workflow")
    workflow = ResourceScope("workflow")
    got = []

    async def ask(scope):
        with scope:
            got.append(await workflow.get(asked))

    async with anyio.create_task_group() as group:
        maker, other = anyio.CancelScope(), anyio.CancelScope()
        group.start_soon(ask, maker)
        await wait_until_idle()
        group.start_soon(ask, other)
        await wait_until_idle()

        assert len(begun) == 1

        maker.cancel()
        await wait_until_idle()

        assert len(begun) == 2

        go.set()

    assert got == ["it"]


@pytest.mark.anyio
async def test_without_a_block_a_failure_reaches_all_who_wait():
    """One exception object; and the next to ask has it tried again."""
    error = Mine("no")
    tries = []

    async def make():
        tries.append(1)
        await wait_until_idle(5)
        if len(tries) == 1:
            raise error
        return "it"

    asked = plan(make, scope="workflow")
    workflow = ResourceScope("workflow")
    caught = []

    async def ask():
        with Catch() as catch:
            await workflow.get(asked)
        caught.append(catch.error)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)

    assert len(caught) == 3
    assert all(one is error for one in caught)
    assert await workflow.get(asked) == "it"


@pytest.mark.anyio
async def test_block_of_a_workflow_may_come_again():
    """Its resources go with the block, and with them all that was made in it; older values stay."""
    log = Log()
    managed = log.manager("managed")
    workflow = ResourceScope("workflow")

    def user(x: Annotated[Any, Resource(managed, scope="workflow")]):
        return [x]

    old = await workflow.get(plan(dict, scope="workflow"))
    users = []
    for _ in range(2):
        async with workflow:
            users.append(await workflow.get(plan(user, scope="workflow")))

            assert await workflow.get(plan(dict, scope="workflow")) is old

    assert users[0] is not users[1]
    assert log == ["open managed", "closing managed", "closed managed"] * 2


@pytest.mark.anyio
async def test_block_is_entered_once_at_a_time():
    """A second block around the same scope is refused; so is a run's scope that has ended."""
    workflow, run = ResourceScope("workflow"), ResourceScope("run")
    async with workflow:
        with pytest.raises(WorkflowRuntimeError, match="is entered already; expected one"):
            await workflow.__aenter__()
    async with run:
        pass
    with pytest.raises(WorkflowRuntimeError, match="scope has ended; expected one"):
        await run.__aenter__()
    with pytest.raises(WorkflowRuntimeError, match="the run's scope has ended, and dict belongs"):
        await run.get(plan(dict))


@pytest.mark.anyio
async def test_run_takes_what_is_the_workflow_s_from_there():
    """It outlives the run, and is closed with the workflow's block, in the right order."""
    log = Log()
    shared = log.manager("shared")
    own = log.manager("own", needs=Resource(shared, scope="workflow"))
    async with ResourceScope("workflow") as workflow:
        for _ in range(2):
            async with ResourceScope("run", outer=workflow) as run:
                await run.get(plan(own))

    assert log == [
        "open shared",
        *["open own", "closing own", "closed own"] * 2,
        "closing shared",
        "closed shared",
    ]


# -- a step's scope -------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_step_shares_its_resource_among_its_parameters_only():
    """One object within an invocation, another one for the next; closed in reverse order."""
    log = Log()
    base = log.manager("base")

    def listed(x: Annotated[Any, Resource(base, cache=False)]):
        return [x]

    asked = plan(listed, cache=False)
    seen = []
    async with ResourceScope("run") as scope:
        for _ in range(2):
            async with StepResources(scope) as resources:
                seen.append(await resources.get(asked))
                await resources.get(plan(log.manager("top"), scope="step"))

                assert await resources.get(asked) is seen[-1]

    assert seen[0] is not seen[1]
    assert (
        log
        == [
            "open base",
            "open top",
            "closing top",
            "closed top",
            "closing base",
            "closed base",
        ]
        * 2
    )


@on_each_backend
@pytest.mark.parametrize("way", ["normally", "failure", "cancel"])
def test_step_s_resources_are_closed_on_every_way_out(backend, way):
    """In the step's own task, shielded, with the step's exception."""
    log = Log()
    error = Mine("x")

    async def main():
        with nothing_left(), Catch() as catch, anyio.CancelScope() as outer:
            outer.deadline = anyio.current_time() + 1
            async with StepResources(ResourceScope("run")) as resources:
                for name in "ab":
                    manager = log.manager(name, closing=partial(anyio.sleep, 2))
                    await resources.get(plan(manager, scope="step"))
                if way == "failure":
                    raise error
                if way == "cancel":
                    await forever()
        kind = cancelled_class()

        assert catch.error is (error if way == "failure" else None)
        for got in log.errors.values():
            assert isinstance(got, kind) if way == "cancel" else got is catch.error

    run_virtually(backend, main)

    assert log == ["open a", "open b", "closing b", "closed b", "closing a", "closed a"]


@pytest.mark.anyio
async def test_step_s_failures_to_close():
    """The first is raised if the step has not failed; else all are notes on the step's error."""
    log = Log()
    first, second, error = Mine("first"), Mine("second"), Mine("step")
    for raised in (None, error):
        with Catch() as catch:
            async with StepResources(ResourceScope("run")) as resources:
                outer = log.manager("a", closing=fail_with(second))
                inner = log.manager("b", closing=fail_with(first))
                await resources.get(plan(outer, scope="step"))
                await resources.get(plan(inner, scope="step"))
                if raised is not None:
                    raise raised

        assert catch.error is (first if raised is None else error)
        assert "and a resource failed: Mine('second')" in catch.error.__notes__

    assert "and a resource failed: Mine('first')" in error.__notes__


@on_each_backend
def test_step_s_resource_that_closes_too_slowly_fails_the_step(backend):
    """The grace holds in a step as well."""

    async def main():
        with pytest.raises(WorkflowRuntimeError, match="took longer than its grace of 2 s"):
            async with StepResources(ResourceScope("run")) as resources:
                slow = Log().manager("a", closing=forever)
                await resources.get(plan(slow, scope="step", grace=2))

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_crash_in_a_step_s_resource_cancels_the_step_and_is_raised():
    """The manager's nursery is around the step, and acts as it does anywhere."""
    error = Mine("crash")
    log = Log()
    with Catch() as catch:
        async with StepResources(ResourceScope("run")) as resources:
            await resources.get(plan(log.manager("around"), scope="step"))
            crashing = with_nursery([], "a", fail_with(error))
            await resources.get(plan(crashing, scope="step"))
            await forever()

    assert catch.one is error
    assert leaves_of(log.errors["around"]) == [error]


@pytest.mark.anyio
async def test_failing_factory_of_a_step_closes_what_was_open():
    """What is opened before it is closed with its exception."""
    log = Log()
    error = Mine("no")

    def make():
        raise error

    with Catch() as catch:
        async with StepResources(ResourceScope("run")) as resources:
            await resources.get(plan(log.manager("a"), scope="step"))
            await resources.get(plan(make, scope="step"))

    assert catch.error is error
    assert log.errors["a"] is error
    assert error.__notes__ == ["while the resource make was made"]


# -- nothing is kept ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_ended_scope_keeps_no_resource():
    """P16: after the end the resource is collected at once, without the garbage collector."""

    class Kind:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            pass

    gc.collect()
    gc.disable()
    try:
        async with ResourceScope("run") as scope:
            seen = weakref.ref(await scope.get(plan(Kind)))

            assert seen() is not None

        await wait_until_idle(3)

        assert seen() is None
    finally:
        gc.enable()


# -- configuration -----------------------------------------------------------------------------------


@attrs.frozen
class AttrsSettings:
    port: int
    host: str = "localhost"


@dataclass
class DataSettings:
    port: int


class StructSettings(msgspec.Struct):
    port: int


class ModelSettings(pydantic.BaseModel):
    port: int


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working directory with two files of one content."""
    monkeypatch.chdir(tmp_path)
    data = {"db": {"main": {"port": 5}, "bad": {"port": "x"}}, "list": [{"port": 6}]}
    (tmp_path / "app.json").write_text(json.dumps(data))
    (tmp_path / "app.toml").write_text(
        '[db.main]\nport = 5\n[db.bad]\nport = "x"\n[[list]]\nport = 6\n'
    )
    return tmp_path


async def read(kind, path, selector=None):
    """Return what a step gets that asks for a part of a file."""
    asked = plan_resource("x", Annotated[kind, ResourceConfig(path, selector)])
    assert not isinstance(asked, list)
    async with ResourceScope("run") as scope:
        return await scope.get(asked)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["app.json", "app.toml"])
@pytest.mark.parametrize("kind", [AttrsSettings, DataSettings, StructSettings, ModelSettings])
async def test_part_of_a_file_becomes_an_object(files, path, kind):
    """JSON and TOML, into classes of every kind; and what does not fit is named."""
    assert await read(kind, path, "db.main") == kind(port=5)
    assert await read(kind, files / path, "list.0") == kind(port=6)
    with pytest.raises(
        ValueError, match=rf"(?s){path}, at 'db.bad' does not fit .*Settings: .*port"
    ):
        await read(kind, path, "db.bad")


@pytest.mark.anyio
async def test_part_of_a_file_as_built_in_types(files):
    """Plain types need no class, and nested models are validated."""
    assert await read(dict, "app.json", "db.main") == {"port": 5}
    assert await read(list[ModelSettings], "app.json", "list") == [ModelSettings(port=6)]
    assert await read(Any, "app.toml", "db.main.port") == 5
    assert await read(Annotated[int, msgspec.Meta(gt=4)], "app.toml", "db.main.port") == 5


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("nowhere", "there is no 'nowhere' at its top level; expected one of 'db', 'list'"),
        ("db.other", "there is no 'other' at 'db'; expected one of 'main', 'bad'"),
        ("list.7", "there is no '7' at 'list'; expected a number below 1"),
        ("db.main.port.x", "there is no 'x' at 'db.main.port'; expected a shorter selector"),
    ],
)
async def test_selector_that_leads_nowhere_names_the_ways(files, selector, text):
    """The message says how far it got and what there is."""
    with pytest.raises(ValueError, match=text):
        await read(dict, "app.json", selector)


@pytest.mark.anyio
async def test_files_that_cannot_be_read(files):
    """A missing file is an error when it is needed, and says where it was looked for."""
    with pytest.raises(FileNotFoundError) as caught:
        await read(dict, "missing.json")

    assert any(str(files) in note for note in caught.value.__notes__)

    (files / "broken.toml").write_text("x = ")
    with pytest.raises(ValueError, match=r"broken\.toml is not valid TOML: "):
        await read(dict, "broken.toml")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("app.yaml",), r"expected a path that ends in '\.json' or '\.toml'"),
        (("app.json", "a..b"), "has an empty part in its selector"),
        (("app.json", ""), "has an empty part in its selector"),
    ],
)
def test_arguments_of_a_configuration_are_checked(arguments, text):
    """What can never work is refused where it is written."""
    with pytest.raises(WorkflowValidationError, match=text):
        ResourceConfig(*arguments)


@pytest.mark.anyio
async def test_file_is_read_once_in_a_run(files):
    """All parts are of one reading; the next run reads again."""

    def make(port: Annotated[int, ResourceConfig("app.json", "db.main.port")]):
        return port

    async def ask(scope):
        direct = plan_resource("x", Annotated[int, ResourceConfig("app.json", "db.main.port")])
        return await scope.get(plan(make)), await scope.get(direct)

    async with ResourceScope("run") as scope:
        await scope.get(plan_resource("x", Annotated[Any, ResourceConfig("app.json", "list")]))
        (files / "app.json").write_text('{"db": {"main": {"port": 7}}}')

        assert await ask(scope) == (5, 5)

    async with ResourceScope("run") as scope:
        assert await ask(scope) == (7, 7)


@pytest.mark.anyio
async def test_resource_of_a_workflow_may_be_configured(files):
    """The file is then read in the workflow's scope, and needs no block."""

    def make(port: Annotated[int, ResourceConfig("app.json", "db.main.port")]):
        return port

    async with ResourceScope("run", outer=ResourceScope("workflow")) as scope:
        assert await scope.get(plan(make, scope="workflow")) == 5


@pytest.mark.anyio
@pytest.mark.peer("note 3.1")
async def test_resource_that_several_steps_and_runs_ask_for_at_once():
    """Each run makes its own, once, and closes it; no run takes another's for a circle."""
    opened: list[object] = []
    closed: list[object] = []

    @asynccontextmanager
    async def connect(ctx: Context):
        await wait_until_idle(3)
        opened.append(ctx.run_id)
        try:
            yield ctx.run_id
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append(ctx.run_id)

    class Uses(Workflow[set[Any]]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(num_workers=3)
        async def work(self, ev: Item, db: Annotated[str, Resource(connect)]) -> Note:
            return Note(number=ev.number if db else -1)

        @step
        async def end(
            self, evs: list[Note], ctx: Context, db: Annotated[str, Resource(connect)]
        ) -> StopEvent:
            return StopEvent(result=db == ctx.run_id)

    workflow = Uses()
    async with anyio.create_task_group() as group:
        handlers = [workflow.run(run_id=f"run {n}").start_soon(group) for n in range(2)]

    assert [handler.result() for handler in handlers] == [True, True]
    assert sorted(opened) == sorted(closed) == ["run 0", "run 1"]


@pytest.mark.anyio
@pytest.mark.peer("note 3.1")
async def test_factories_of_one_name_are_two():
    """A resource is known by its factory itself, not by what the factory is called."""

    def make(value):
        def factory():
            return value

        return factory

    x, y = make("X"), make("Y")

    class Uses(Workflow[tuple[str, str]]):
        @step
        async def only(
            self,
            ev: StartEvent,
            one: Annotated[str, Resource(x)],
            two: Annotated[str, Resource(y)],
        ) -> StopEvent:
            return StopEvent(result=(one, two))

    assert await Uses().run() == ("X", "Y")


@pytest.mark.anyio
async def test_one_resource_that_fails_to_close_does_not_keep_the_others():
    """P1: everything that a step left open is closed, whatever closing one of them does."""
    closed = []

    class Resource:
        def __init__(self, name):
            self.name = name

        async def aclose(self):
            closed.append(self.name)
            if self.name == "b":
                raise OSError("b does not close")

    class Opens(Workflow[None]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            for name in "abc":
                current_cleanup.get().add(Resource(name))
            return StopEvent()

    with pytest.raises(OSError, match="b does not close"):
        await Opens().run()

    assert closed == ["c", "b", "a"]


@on_each_backend
def test_a_cancelled_run_lets_go_of_its_resources(backend):
    """P1: what opened the resources of a run is not kept by the run, however that ended."""

    async def open_one():
        yield 1

    class Holder(Workflow):
        @step
        async def hold(self, ev: StartEvent, one: Annotated[int, Resource(open_one)]) -> StopEvent:
            await anyio.sleep(100)
            return StopEvent()

    async def main():
        with anyio.move_on_after(1):
            async with Holder().run() as handler:
                await anyio.sleep(100)

        assert handler.status == "cancelled"
        assert handler._run.resources is None

    run_virtually(backend, main)
