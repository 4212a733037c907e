"""P23: which exception leaves, how a group is judged, and that a failure survives its book-keeping.

The kinds of exception below refuse whatever can be refused, and some lie. Each is raised wherever
the code of a user's can raise, on both event loops.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    Observer,
    Resource,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowFailedEvent,
    WorkflowRuntimeError,
    catch_error,
    step,
    workflow_scope,
)
from sluicegate._engine.outcome import Outcome
from sluicegate._errors import brief
from sluicegate._exceptions import (
    add_note,
    is_cancellation,
    is_first_urgent,
    leaves_of,
    matches,
    note_once,
    notes_of,
    raise_first,
    refusal_or_urgent,
    set_trace,
    single,
    trace_of,
    urgent_leaf,
)
from tests.helpers import (
    Catch,
    Mine,
    MineBase,
    Single,
    cancelled_class,
    case,
    nothing_left,
    on_each_backend,
    run_virtually,
)


tenacity = pytest.importorskip("tenacity")


# -- exceptions that refuse -----------------------------------------------------------------------


@dataclass(frozen=True)
class Frozen(Exception):
    status: int = 503


class Slots(Exception):
    __slots__ = ("code",)


class NoNote(Exception):
    def add_note(self, note):
        raise RuntimeError("no notes")


class LateNoNote(Exception):
    """Takes one note and no second."""

    noted = False

    def add_note(self, note):
        if self.noted:
            raise RuntimeError("no more notes")
        self.noted = True
        super().add_note(note)


class NotesRaise(Exception):
    @property
    def __notes__(self):
        raise RuntimeError("no notes")


class NotesLie(Exception):
    __notes__ = 7  # no list


class NoAttributes(Exception):
    def __getattribute__(self, name):
        raise RuntimeError(name)


class NoSetting(Exception):
    def __setattr__(self, name, value):
        raise RuntimeError(name)


class NoTrace(Exception):
    def with_traceback(self, trace):
        raise RuntimeError("no traceback")

    @property
    def __traceback__(self):
        raise RuntimeError("no traceback")

    @__traceback__.setter
    def __traceback__(self, value):
        raise RuntimeError("no traceback")


class NoChain(Exception):
    @property
    def __cause__(self):
        raise RuntimeError("no cause")

    @property
    def __context__(self):
        raise RuntimeError("no context")

    @__cause__.setter
    def __cause__(self, value):
        raise RuntimeError("no cause")


class NoComparison(Exception):
    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    def __hash__(self):
        raise RuntimeError("not to be hashed")


class EqualsAll(Exception):
    def __eq__(self, other):
        return True

    __hash__ = None


class NoTruth(Exception):
    def __bool__(self):
        raise RuntimeError("no truth")


class Empty(Exception):
    def __len__(self):
        return 0


class NoText(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")

    def __str__(self):
        raise MineBase("no str")


class BaseText(Exception):
    def __repr__(self):
        raise MineBase("no repr")


class SaysUrgent(Exception):
    @property
    def __class__(self):
        return KeyboardInterrupt


class SaysCancelled(Exception):
    @property
    def __class__(self):
        return cancelled_class()


class GroupOfItself(ExceptionGroup):
    @property
    def exceptions(self):
        return (self, self)


class GroupWithoutParts(ExceptionGroup):
    @property
    def exceptions(self):
        raise RuntimeError("no parts")

    def split(self, condition):
        raise RuntimeError("not to be split")

    derive = subgroup = split


def deep(leaf=None, levels=3_000):
    """Return a group that is that deep."""
    error = Mine("deep") if leaf is None else leaf
    for _ in range(levels):
        error = BaseExceptionGroup("deep", [error])
    return error


def wide(levels=60):
    """Return a group with one leaf that can be reached in 2 ** levels ways."""
    error = Mine("wide")
    for _ in range(levels):
        error = ExceptionGroup("wide", [error, error])
    return error


HOSTILE = {
    "frozen dataclass": Frozen,
    "slots": Slots,
    "add_note raises": NoNote,
    "add_note raises the second time": LateNoNote,
    "__notes__ raises": NotesRaise,
    "__notes__ is no list": NotesLie,
    "__getattribute__ raises": NoAttributes,
    "__setattr__ raises": NoSetting,
    "with_traceback raises": NoTrace,
    "__cause__ raises": NoChain,
    "__eq__ raises": NoComparison,
    "__eq__ is always true": EqualsAll,
    "__bool__ raises": NoTruth,
    "__len__ is 0": Empty,
    "__repr__ raises": NoText,
    "__repr__ raises a BaseException": BaseText,
    "__class__ is KeyboardInterrupt": SaysUrgent,
    "__class__ is the cancellation": SaysCancelled,
    "group that contains itself": lambda: GroupOfItself("itself", [Mine("in a group")]),
    "group without parts": lambda: GroupWithoutParts("none", [Mine("in a group")]),
    "group 3,000 deep": deep,
    "group of 2 ** 60 ways": wide,
}

each_hostile = pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)


@pytest.fixture(autouse=True)
def _collected():
    yield
    RAISED.clear()
    gc.collect()


class Item(Event):
    number: int = 0


class Flow(Workflow):
    """Raises ``error`` at one of the places where the code of a user's runs."""

    def __init__(self, error: BaseException, **options: Any) -> None:
        super().__init__(**options)
        self.error = error
        RAISED.append(error)
        self.called = 0


class InStep(Flow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise self.error


class AfterAwait(Flow):
    @step(timeout=5)
    async def only(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(1)
        raise self.error


class InThread(Flow):
    @step
    def only(self, ev: StartEvent) -> StopEvent:
        raise self.error


class InRetry(Flow):
    @step(retry=Retry(stop=3, wait=1))
    async def only(self, ev: StartEvent) -> StopEvent:
        self.called += 1
        raise self.error


class InHandler(Flow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise Mine

    @catch_error
    async def handle(self, ev: StepFailedEvent) -> StopEvent:
        raise self.error


async def make_part(ctx: Context) -> int:
    """Raise the error of the workflow, from the factory of a resource."""
    raise RAISED[-1]


async def enter_part():
    """Give a resource whose clean-up raises the error of the workflow."""
    yield 1
    raise RAISED[-1]


RAISED: list[BaseException] = []


class InFactory(Flow):
    @step
    async def only(
        self, ev: StartEvent, part: Annotated[int, Resource(make_part, scope="step")]
    ) -> StopEvent:
        raise AssertionError


class InRunFactory(Flow):
    @step
    async def only(self, ev: StartEvent, part: Annotated[int, Resource(make_part)]) -> StopEvent:
        raise AssertionError


class InClosing(Flow):
    @step
    async def only(
        self, ev: StartEvent, part: Annotated[int, Resource(enter_part, scope="step")]
    ) -> StopEvent:
        return StopEvent()


class InRunClosing(Flow):
    @step
    async def only(self, ev: StartEvent, part: Annotated[int, Resource(enter_part)]) -> StopEvent:
        return StopEvent()


class InBranch(Flow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
        branch = ctx.send_event(Item())
        await branch.wait()
        return StopEvent() if ev is None else Item()

    @step
    async def work(self, ev: Item) -> None:
        raise self.error


class InChild(Flow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.run_child(InStep(self.error))
        return StopEvent()


PLACES = [
    InStep,
    AfterAwait,
    InThread,
    InRetry,
    InHandler,
    InBranch,
    InChild,
    InFactory,
    InRunFactory,
    InClosing,
    InRunClosing,
]


@on_each_backend
@pytest.mark.parametrize("place", PLACES)
def test_failure_survives_its_own_book_keeping(backend, place):
    """P23: it arrives as itself wherever it is raised, it is recorded, and the stream ends."""

    async def check(error):
        with nothing_left():
            handler = place(error).run()
            async with handler:
                events = [event async for event in handler.stream_events()]
                with Catch() as caught:
                    await handler

        assert caught.error is error
        assert [type(e) for e in events] == [WorkflowFailedEvent]
        assert events[0].exception is error
        assert len(handler.exceptions) == 1
        assert handler.exceptions[0] is error
        assert handler.status == "failed"
        assert handler.is_done()
        assert "WorkflowHandler" in repr(handler)
        with Catch() as again:
            handler.result()
        assert again.error is error

    for name, make in HOSTILE.items():
        with case(name):
            run_virtually(backend, check, make())


@on_each_backend
@each_hostile
def test_failure_that_refuses_everything_is_tried_again_and_handled(backend, make):
    """P23: it is retried and handed to the handler, the object itself."""
    error = make()
    seen = []

    class Handled(Workflow):
        @step(retry=Retry(stop=3, wait=1))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            seen.append(ctx.retry_info().last_exception)
            raise error

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            seen.append(ev.exception)
            return StopEvent(result=len(ev.exceptions))

    async def main():
        assert await Handled().run() == 3
        assert anyio.current_time() == pytest.approx(2)

    run_virtually(backend, main)
    assert seen[0] is None
    assert len(seen) == 4
    assert all(one is error for one in seen[1:])


@on_each_backend
@pytest.mark.parametrize("form", ["block", "scope"])
def test_failure_that_refuses_everything_is_raised_by_the_owner(backend, form):
    """P9, P23: the owner raises what no one has seen, as itself."""

    async def check(error):
        handler = InStep(error).run()
        with Catch() as left:
            if form == "block":
                async with handler:
                    pass
            else:
                async with workflow_scope():
                    handler.stream_events().close()
        assert left.error is error

    for name, make in HOSTILE.items():
        with case(name):
            run_virtually(backend, check, make())


@on_each_backend
@each_hostile
def test_failed_run_that_refuses_everything_can_be_kept(backend, make):
    """P23: a snapshot of the failed run is taken, and a run continues from it."""
    flow = InStep(make())

    async def main():
        handler = flow.run()
        with Catch():
            await handler
        seen = Catch()
        with seen:
            await flow.resume(handler.snapshot())
        assert seen.error is flow.error

    run_virtually(backend, main)


# -- groups ---------------------------------------------------------------------------------------


URGENT = [KeyboardInterrupt, SystemExit]


@on_each_backend
@pytest.mark.parametrize("kind", URGENT)
@pytest.mark.parametrize("form", ["in place", "block", "scope", "nursery"])
def test_urgent_leaf_of_a_group_comes_out_bare(backend, kind, form):
    """P8, P17, P23: by whatever nursery it comes; the rest is kept and counted in its note."""
    urgent, error, late = kind("now"), Mine("beside"), SystemExit("late")
    group = BaseExceptionGroup("of a nursery", [error, BaseExceptionGroup("in it", [urgent, late])])
    handlers = []

    async def fail(ctx):
        raise group

    async def main():
        handler = Single(fail).run()
        handlers.append(handler)
        if form == "in place":
            await handler
        elif form == "block":
            async with handler:
                async for _ in handler.stream_events():
                    pass
        elif form == "scope":
            async with workflow_scope():
                async for _ in handler.stream_events():
                    pass
        else:
            async with anyio.create_task_group() as nursery:
                handler.start_soon(nursery)
                async for _ in handler.stream_events():
                    pass

    with Catch() as left:
        run_virtually(backend, main)

    (handler,) = handlers
    bare = left.error
    if form == "nursery" and isinstance(bare, BaseExceptionGroup):
        (bare,) = bare.exceptions  # the test's own nursery makes a group of it, on Trio
    assert bare is urgent
    assert handler.exceptions == (urgent, error, late)
    assert any("2 more failures" in note for note in urgent.__notes__)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kinds", "when", "attempts"),
    [
        ([Mine, Mine], Mine, 2),
        ([Mine, ValueError], Mine, 1),
        ([Mine, ValueError], (Mine, ValueError), 2),
        ([Mine, ValueError], Exception, 2),
        ([Mine, "cancelled"], Mine, 2),
        ([Mine, "cancelled"], Exception, 2),
        ([Mine, MineBase], Exception, 1),
        ([Mine, ValueError], ExceptionGroup, 2),
        ([Mine, Mine], tenacity.retry_if_exception_type(Mine), 2),
        ([Mine, ValueError], tenacity.retry_if_exception_type(Mine), 1),
        ([Mine, ValueError], tenacity.retry_if_not_exception_type(Mine), 1),
        ([ValueError, "cancelled"], tenacity.retry_if_not_exception_type(Mine), 2),
    ],
)
async def test_group_is_tried_again_if_all_its_leaves_would_be(kinds, when, attempts):
    """P23: all leaves have to match, but for cancellations; what is raised is the group itself."""
    leaves = [await a_cancellation() if kind == "cancelled" else kind() for kind in kinds]
    group = BaseExceptionGroup("in a nursery", [BaseExceptionGroup("in it", leaves)])
    begun = []

    class Retried(Workflow):
        @step(retry=Retry(stop=2, when=when))
        async def only(self, ev: StartEvent) -> StopEvent:
            begun.append(1)
            raise group

    with Catch() as left:
        await Retried().run()

    assert left.error is group
    assert len(begun) == attempts


@pytest.mark.anyio
async def test_group_goes_to_the_handler_if_all_its_leaves_would():
    """P23: the handler gets the group itself, with the cancellations that are in it."""
    group = BaseExceptionGroup("in a nursery", [Mine(), await a_cancellation()])

    class Handled(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            raise group

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result=ev.exception)

    assert await Handled().run() is group


async def a_cancellation():
    """Return an exception of the backend's cancellation."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except cancelled_class() as error:
            return error


@on_each_backend
def test_group_passes_the_timeout_of_its_step_untouched(backend):
    """P23: what the step's nursery raised while it was cancelled is raised as the same object."""
    raised = []

    class Slow(Workflow):
        @step(timeout=3)
        async def only(self, ev: StartEvent) -> StopEvent:
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    group.start_soon(self.fail)
            except BaseException as error:
                raised.append(error)
                raise
            return StopEvent()

        async def fail(self):
            try:
                await anyio.sleep_forever()
            finally:
                raise Mine("late")

    async def main():
        with Catch() as left:
            await Slow().run()
        assert left.error is raised[0]

    run_virtually(backend, main)


# -- the net --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("broken", ["note", "fail", "_count_others", "interrupt"])
@pytest.mark.parametrize("fault", [RuntimeError, MineBase, KeyboardInterrupt])
async def test_run_ends_whatever_fails_in_its_book_keeping(monkeypatch, broken, fault):
    """P4, P23: the stream ends and the outcome holds the original, though the engine's notes fail."""
    error = Mine("original")

    def fail(*_args, **_options):
        raise fault("in the engine")

    monkeypatch.setattr(Outcome, broken, fail)
    handler = InStep(error).run()
    with Catch(), anyio.move_on_after(9):
        await handler

    assert handler.is_done()
    assert handler.status == "failed"
    assert handler.exceptions[0] is error
    events = [event async for event in handler.stream_events()]
    assert type(events[-1]) is WorkflowFailedEvent


# -- the rules by themselves ----------------------------------------------------------------------


def test_note_is_added_to_whatever_takes_an_attribute():
    """A note reaches a frozen exception, too; an exception that keeps no list gets none."""
    for make in (Frozen, Slots, NoNote, NoSetting, NoAttributes):
        error = make()
        note_once(error, "a")
        note_once(error, "a")
        add_note(error, "b")
        assert notes_of(error) == ["a", "b"]
    assert Frozen().__dict__.get("__notes__") is None
    odd = Mine()
    odd.__notes__ = ("x",)
    add_note(odd, "y")
    assert odd.__notes__ == ("x",)
    odd.__notes__ = [NoComparison(), "x"]
    note_once(odd, "x")
    assert len(odd.__notes__) == 2


def test_group_is_read_whatever_it_says_of_itself():
    """Each leaf counts once, at any depth; what the class makes of ``exceptions`` does not count."""
    leaf = Mine()
    assert leaves_of(deep(leaf, 10_000)) == [leaf]
    assert leaves_of(GroupOfItself("", [leaf, leaf])) == [leaf]
    assert leaves_of(GroupWithoutParts("", [leaf])) == [leaf]
    urgent = KeyboardInterrupt()
    assert urgent_leaf(deep(urgent, 10_000)) is urgent
    assert single(BaseExceptionGroup("", [leaf, urgent]), trio.Cancelled) is urgent
    assert single(ExceptionGroup("", [leaf]), trio.Cancelled) is leaf
    assert not is_cancellation(wide(), asyncio.CancelledError)
    assert matches(wide(), Mine, asyncio.CancelledError)
    assert "Mine('wide')" in brief(wide())
    error = NoAttributes()
    assert set_trace(error, None) is error
    assert trace_of(error) is None


@pytest.mark.parametrize(
    ("failures", "error", "raised", "left"),
    [
        # an urgent one, bare, before all else
        ("F", "E", "U", "U"),
        ("FV", "E", "C", "V"),
        (["group of FV"], "E", None, "V"),
        ("V", "U", "C", "V"),
        # the body's own exception
        ("F", "E", "C", None),
        ("", "E", None, None),
        # the first failure
        ("FG", None, None, "F"),
        ("FG", "C", "C", "F"),
        # a cancellation
        ("", None, "C", "C"),
        ("", "C", "C", None),
        ("", None, None, None),
    ],
)
def test_what_leaves_an_owner(failures, error, raised, left):
    """The second table of ``sluicegate._exceptions``; None is the body's exception, or nothing."""
    known = {
        "F": Mine("F"),
        "G": Mine("G"),
        "E": Mine("E"),
        "U": KeyboardInterrupt("U"),
        "V": SystemExit("V"),
        "C": asyncio.CancelledError("C"),
        None: None,
    }
    known["group of FV"] = BaseExceptionGroup("", [known["F"], known["V"]])
    given = [known[name] for name in failures]

    with Catch() as caught:
        raise_first(given, known[error], known[raised], asyncio.CancelledError, brief)

    assert caught.error is known[left]
    kept = caught.error if caught.error is not None else known[error]
    for failure in given:
        if kept is not None and failure is not kept:
            assert brief(failure) in kept.__notes__


@pytest.mark.parametrize(
    ("failures", "raised", "left"),
    [("", None, "refusal"), ("F", "C", "refusal"), ("FV", None, "V"), ("F", "U", "U")],
)
def test_what_leaves_an_owner_left_elsewhere(failures, raised, left):
    """An urgent exception leaves; else the refusal, caused by the first failure."""
    known = {
        "F": Mine("F"),
        "U": KeyboardInterrupt("U"),
        "V": SystemExit("V"),
        "C": asyncio.CancelledError("C"),
        "refusal": WorkflowRuntimeError("left elsewhere"),
        None: None,
    }
    given = [known[name] for name in failures]

    assert refusal_or_urgent(known["refusal"], given, known[raised], brief) is known[left]
    if left == "refusal" and given:
        assert known["refusal"].__cause__ is given[0]
        assert brief(given[0]) in known["refusal"].__notes__


@pytest.mark.parametrize(
    ("error", "kept", "replaces"),
    [
        (KeyboardInterrupt(), None, True),
        (KeyboardInterrupt(), Mine(), True),
        (BaseExceptionGroup("", [Mine(), SystemExit()]), Mine(), True),
        (SystemExit(), KeyboardInterrupt(), False),
        (Mine(), asyncio.CancelledError(), False),
    ],
)
def test_what_replaces_an_exception_on_its_way_out(error, kept, replaces):
    """Only the first urgent exception replaces one that arrived before."""
    assert is_first_urgent(error, kept) is replaces


def test_observer_is_told_of_what_refuses_everything(capsys):
    """``verbose=True`` tells of each failure in a line, whatever its repr does."""
    for backend in ("trio", "asyncio"):

        async def main():
            for make in HOSTILE.values():
                with Catch():
                    await InStep(make(), verbose=True).run()

        run_virtually(backend, main)
    assert capsys.readouterr().err.count("only #1 raises") == 2 * len(HOSTILE)


# -- in the tick of a cancellation from outside ---------------------------------------------------


async def sleep_a_little():
    await anyio.sleep(1)


async def do_nothing():
    pass


@on_each_backend
@pytest.mark.parametrize("retry", [None, Retry(stop=3), Retry(stop=3, wait=1)], ids=str)
@pytest.mark.parametrize("before", [do_nothing, sleep_a_little, anyio.lowlevel.checkpoint])
@pytest.mark.parametrize("kind", [Mine, MineBase])
@pytest.mark.parametrize("form", ["in place", "block", "scope", "nursery"])
def test_failure_in_the_tick_of_a_cancellation_from_outside(backend, retry, before, kind, form):
    """It goes to ``handler.exceptions``, would it be tried again or not; the cancellation leaves."""
    error = kind()

    class Failing(Workflow):
        @step(retry=retry)
        async def only(self, ev: StartEvent) -> StopEvent:
            await before()
            outside[0].cancel()
            raise error

    async def main():
        handler = Failing().run()
        with nothing_left(), anyio.CancelScope() as scope:
            outside[:] = [scope]
            if form == "in place":
                await handler
            elif form == "block":
                async with handler:
                    await anyio.sleep(10)
            elif form == "scope":
                async with workflow_scope():
                    handler.stream_events().close()
                    await anyio.sleep(10)
            else:
                async with anyio.create_task_group() as group:
                    handler.start_soon(group)
        assert scope.cancelled_caught
        assert handler.status == "cancelled"
        assert handler.exceptions == (error,)

    outside = []
    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("inner", [False, True])
def test_failure_of_a_clean_up_is_no_failure_in_the_tick(backend, inner):
    """An attempt that the cancellation had reached leaves its failure in place of it."""
    error = Mine()

    class Cleaning(Workflow):
        @step(retry=Retry(stop=3, wait=1))
        async def only(self, ev: StartEvent) -> StopEvent:
            if not inner:
                await self.fail()
            async with anyio.create_task_group() as group:
                group.start_soon(self.fail)
            return StopEvent()

        async def fail(self):
            try:
                await anyio.sleep_forever()
            except cancelled_class():
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
            raise error

    async def main():
        handler = Cleaning().run()
        with Catch() as left, anyio.move_on_after(5):
            await handler
        assert leaves_of(left.error) == [error]
        assert handler.status == "cancelled"

    if inner:  # outside of the handling of the cancellation only the step itself is told of it
        error.__context__ = anyio.run(a_cancellation, backend=backend)
    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("how", ["at once", "shielded", "nursery", "thread", "several"])
def test_stop_event_after_an_outside_cancellation_completes_nothing(backend, how):
    """On every loop: applied is applied; the run is cancelled, and the cancellation leaves."""

    class Swallowing(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item())
            if how == "several":
                await anyio.sleep_forever()

        @step
        async def only(self, ev: Item) -> StopEvent:
            if how == "nursery":
                async with anyio.create_task_group() as group:
                    group.start_soon(self.swallow)
                    await self.swallow()
            else:
                await self.swallow()
            return StopEvent(result="swallowed")

        async def swallow(self):
            try:
                await anyio.sleep_forever()
            except cancelled_class():
                with anyio.CancelScope(shield=how == "shielded"):
                    if how == "shielded":
                        await anyio.sleep(3)

    class InThreads(Workflow):
        @step
        def only(self, ev: StartEvent) -> StopEvent:
            go.wait(5)
            return StopEvent(result="swallowed")

    async def main():
        workflow = InThreads() if how == "thread" else Swallowing()
        for form in ("in place", "block"):
            handler = workflow.run()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel, scope)
                    if form == "in place":
                        await handler
                    async with handler:
                        await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert handler.status == "cancelled"
            assert handler.stop_event is None
            with pytest.raises(WorkflowCancelledError):
                handler.result()

    async def cancel(scope):
        go.clear()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        go.set()

    go = threading.Event()
    run_virtually(backend, main)


@on_each_backend
def test_stop_event_before_an_outside_cancellation_is_the_result(backend):
    """One that the engine has applied before wins; the cancellation leaves all the same."""

    class Early(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="early")

    async def main():
        with anyio.CancelScope() as scope:
            async with Early().run() as handler:
                assert await handler == "early"
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert handler.result() == "early"

    run_virtually(backend, main)


# -- GeneratorExit --------------------------------------------------------------------------------


class RaisesExit(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await anyio.lowlevel.checkpoint()
        raise GeneratorExit("from a step")


class RaisesExitInThread(Workflow):
    @step
    def only(self, ev: StartEvent) -> StopEvent:
        raise GeneratorExit("from a thread")


async def make_exit():
    raise GeneratorExit("from a factory")


async def enter_exit():
    yield 1
    raise GeneratorExit("from a clean-up")


class RaisesExitInFactory(Workflow):
    @step
    async def only(self, ev: StartEvent, part: Annotated[int, Resource(make_exit)]) -> StopEvent:
        return StopEvent()


class RaisesExitInClosing(Workflow):
    @step
    async def only(self, ev: StartEvent, part: Annotated[int, Resource(enter_exit)]) -> StopEvent:
        return StopEvent()


class RaisesExitInChild(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(RaisesExit()))


EXITS = [
    RaisesExit,
    RaisesExitInThread,
    RaisesExitInFactory,
    RaisesExitInClosing,
    RaisesExitInChild,
]


@on_each_backend
@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("form", ["in place", "block"])
def test_generator_exit_that_a_step_raises_is_a_failure(backend, kind, form):
    """D7, P8: like any other, it arrives as itself, with a note, and the stream ends."""

    async def main():
        handler = kind().run()
        with nothing_left(), Catch() as left:
            if form == "in place":
                await handler
            async with handler:
                pass
        assert type(left.error) is GeneratorExit
        assert handler.status == "failed"
        assert handler.exceptions == (left.error,)
        assert left.error.__notes__
        assert [type(e) async for e in handler.stream_events()] == [WorkflowFailedEvent]

    run_virtually(backend, main)


# -- code for the other event loop ----------------------------------------------------------------


async def ask_asyncio_queue():
    await asyncio.Queue().get()


async def open_asyncio_timeout():
    async with asyncio.timeout(1):
        pass


async def open_trio_nursery():
    async with trio.open_nursery():
        pass


async def name_asyncio_task():
    asyncio.current_task()


async def in_a_group():
    async with anyio.create_task_group() as group:
        group.start_soon(asyncio.sleep, 1)


@pytest.mark.parametrize(
    ("backend", "function"),
    [
        ("trio", lambda: asyncio.sleep(1)),
        ("trio", lambda: asyncio.sleep(0)),
        ("trio", lambda: asyncio.to_thread(print)),
        ("trio", ask_asyncio_queue),
        ("trio", open_asyncio_timeout),
        ("trio", name_asyncio_task),
        ("trio", in_a_group),
        ("asyncio", lambda: trio.sleep(1)),
        ("asyncio", lambda: trio.Event().wait()),
        ("asyncio", trio.lowlevel.checkpoint),
        ("asyncio", trio.sleep_forever),
        ("asyncio", open_trio_nursery),
        ("asyncio", lambda: trio.to_thread.run_sync(print)),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_code_for_the_other_event_loop_is_named(backend, function):
    """D6: a note says which loop the run is on, and both ways out."""
    other = {"trio": "asyncio", "asyncio": "trio"}[backend]

    class Mixed(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await function()
            return StopEvent()

    async def main():
        await Mixed().run()

    with Catch() as left:
        run_virtually(backend, main)

    assert left.error is not None
    (note,) = [note for note in left.error.__notes__ if "AnyIO" in note]
    assert "the step Mixed.only uses code for" in note
    assert f'sluicegate.run(main, backend="{other}")' in note


@on_each_backend
@pytest.mark.parametrize(
    "function", [asyncio.get_running_loop, trio.current_time, anyio.current_time]
)
def test_event_loop_in_a_thread_is_named(backend, function):
    """D6: a ``def`` step that asks for an event loop is told what to write."""

    class Threaded(Workflow):
        @step
        def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=function())

    async def main():
        await Threaded().run()

    with Catch() as left:
        run_virtually(backend, main)

    assert any("ctx.from_thread.run(async_function)" in note for note in left.error.__notes__)


@on_each_backend
def test_ordinary_failure_gets_no_note_about_event_loops(backend):
    """D6: a message that only looks like it is that of another loop leaves the note out."""

    async def fail(ctx):
        raise RuntimeError("the event loop is fine")

    async def main():
        await Single(fail).run()

    with Catch() as left:
        run_virtually(backend, main)

    assert len(left.error.__notes__) == 1


# -- nested children ------------------------------------------------------------------------------


@on_each_backend
def test_children_that_are_nested_too_deep_are_refused(backend):
    """D7: the error is the engine's own, and says how to continue; nothing is left behind."""

    class Nested(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ev.levels:
                await ctx.run_child(Nested(), levels=ev.levels - 1)
            return StopEvent(result="all")

    async def main():
        assert await Nested().run(levels=30) == "all"
        with nothing_left(), Catch() as left:
            await Nested().run(levels=2_000)
        assert type(left.error) is WorkflowRuntimeError
        assert "of nested runs, for which Python's stack of" in str(left.error)
        assert "sys.setrecursionlimit" in str(left.error)

    run_virtually(backend, main)


@on_each_backend
def test_observer_that_fails_takes_the_place_of_no_failure(backend, caplog):
    """P21, P23: the step's failure arrives as itself, and the observer's is in the log."""

    class Bad(Observer):
        def step_ended(self, invocation):
            raise ValueError("from the observer")

    error = Mine()

    async def main():
        with Catch() as left:
            await InStep(error, observers=[Bad()]).run()
        assert left.error is error
        assert "Bad raised ValueError in step_ended" in caplog.text

    run_virtually(backend, main)
