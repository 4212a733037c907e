"""Observers: what they are told, in whose context, and that they change nothing of the run."""

from __future__ import annotations

import contextvars
import logging
from contextlib import contextmanager

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    Observer,
    StartEvent,
    StopEvent,
    Workflow,
    observe,
    step,
)
from sluicegate.records import RunEnded, RunStarted
from tests.helpers import on_each_backend, run_virtually


NAME = contextvars.ContextVar("NAME", default="nothing")

METHODS = (
    "around_run", "around_step", "listen", "run_started", "run_ended", "step_started", "step_ended",
    "event_published",
)  # fmt: skip


class Part(Event):
    number: int


class Note(Event):
    pass


class Adds(Workflow[int]):
    @step
    async def begin(self, ev: StartEvent) -> list[Part]:
        return [Part(number=number) for number in range(3)]

    @step(num_workers=2)
    def double(self, ctx: Context, ev: Part) -> Note:
        ctx.write_event_to_stream(Note())
        return Note()

    @step
    async def join(self, ev: list[Note]) -> StopEvent:
        return StopEvent(result=len(ev))


class Fails(Workflow[int]):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise KeyError("the step's own")


class Sleeps(Workflow[int]):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep_forever()


class Parent(Workflow[int]):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Adds()))


def raising(method, error):
    """Return an observer that raises in one of its methods."""

    def fail(self, about, *rest):
        raise error

    return type("Bad", (Observer,), {method: fail})()


@contextmanager
def raise_on_leaving(error):
    try:
        yield
    finally:
        raise error


@contextmanager
def raise_on_entering(error):
    raise error
    yield


class Around(Observer):
    """Puts a context manager of the test around the run or around each step."""

    def __init__(self, method, make):
        setattr(self, method, lambda about: make())


async def end_of(handler):
    """Return how a run ended: its status, and its result or the exception object."""
    try:
        result = await handler
    except BaseException as error:
        if handler.status not in ("failed", "timed_out"):
            raise
        result = error
    return handler.status, result, [type(event).__name__ async for event in handler.stream_events()]


async def three_ends(observers):
    """Return the ends of a run that completes, one that fails, and one that times out."""
    found = []
    for kind, timeout in ((Adds, None), (Fails, None), (Sleeps, 5)):
        handler = kind(timeout=timeout, observers=observers).run()
        status, result, stream = await end_of(handler)
        found.append((status, repr(result).split(",")[0].split("the run")[0], stream))
    return found


@on_each_backend
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [ValueError("mine"), BaseExceptionGroup("", [GeneratorExit()])])
def test_observer_that_raises_changes_nothing_of_the_run(method, error, backend, caplog):
    """P21: the run ends as it would; the fault is logged once for each run, with its traceback."""

    async def main():
        expected = await three_ends([])
        caplog.clear()
        assert await three_ends([raising(method, error)]) == expected
        return len(expected)

    runs = run_virtually(backend, main)
    faults = [r for r in caplog.records if r.name == "sluicegate" and r.levelno == logging.ERROR]
    expected = 1 if method == "event_published" else runs
    assert len(faults) == expected
    for fault in faults:
        assert f"the observer Bad raised {type(error).__name__} in {method}" in fault.getMessage()
        assert fault.exc_info[1] is error


@on_each_backend
@pytest.mark.parametrize("method", ["around_run", "around_step"])
@pytest.mark.parametrize("make", [raise_on_leaving, raise_on_entering])
def test_context_manager_that_raises_changes_nothing_of_the_run(method, make, backend, caplog):
    """P21: whether it raises when it is entered or when it is left."""

    async def main():
        expected = await three_ends([])
        assert await three_ends([Around(method, lambda: make(OSError("mine")))]) == expected

    run_virtually(backend, main)
    assert "raised OSError" in caplog.text


class Suppress:
    """A context manager that would swallow everything."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return True


@on_each_backend
@pytest.mark.parametrize("method", ["around_run", "around_step"])
def test_context_manager_cannot_suppress_an_exception(method, backend, caplog):
    """P9, P21: the same object leaves, and cancellation too passes a context manager that suppresses."""

    async def main():
        handler = Fails(observers=[Around(method, Suppress)]).run()
        with pytest.raises(KeyError, match="the step's own") as caught:
            await handler
        assert caught.value.__context__ is None
        with anyio.move_on_after(1) as scope:
            await Sleeps(observers=[Around(method, Suppress)]).run()
        assert scope.cancelled_caught

    run_virtually(backend, main)
    assert "an observer cannot suppress an exception" in caplog.text


@on_each_backend
def test_context_of_an_exception_stays_as_it_was(backend):
    """A context manager that raises another exception leaves no trace in the step's."""

    class Linked(Workflow[int]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            try:
                raise LookupError("first")
            except LookupError as first:
                raise KeyError("second") from first

    async def main():
        make = lambda: raise_on_leaving(OSError("mine"))  # noqa: E731
        with pytest.raises(KeyError, match="second") as caught:
            await Linked(observers=[Around("around_step", make)]).run()
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.__context__ is caught.value.__cause__

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("method", METHODS)
def test_strict_observer_fails_the_run(method, backend):
    """In tests a fault of an observer is to be seen."""

    async def main():
        observer = raising(method, ValueError("mine"))
        observer.strict = True
        with pytest.raises(ValueError, match="mine"):
            await Adds(observers=[observer]).run()

    run_virtually(backend, main)


class Binds(Observer):
    """Binds a context variable around the run and around each step, and counts the exits."""

    def __init__(self):
        self.left = []

    @contextmanager
    def around_run(self, run):
        token = NAME.set(run.workflow)
        try:
            yield
        finally:
            NAME.reset(token)
            self.left.append((run.workflow, run.status))

    @contextmanager
    def around_step(self, invocation):
        before = NAME.get()
        token = NAME.set(f"{before}.{invocation.step}")
        try:
            yield
        finally:
            NAME.reset(token)
            self.left.append((invocation.step, invocation.outcome))


@on_each_backend
def test_around_a_step_is_the_context_of_the_step_and_of_nothing_else(backend):
    """What is bound is seen in the step, in its tasks and in its thread; the caller keeps its own."""
    seen = []

    class Looks(Workflow[str]):
        @step
        async def first(self, ev: StartEvent) -> Note:
            async def in_a_task():
                seen.append(("task", NAME.get()))

            async with anyio.create_task_group() as group:
                group.start_soon(in_a_task)
            return Note()

        @step
        def second(self, ev: Note) -> StopEvent:
            seen.append(("thread", NAME.get()))
            return StopEvent(result=NAME.get())

    observer = Binds()

    async def main():
        assert await Looks(observers=[observer]).run() == "Looks.second"
        assert NAME.get() == "nothing"

    run_virtually(backend, main)
    assert seen == [("task", "Looks.first"), ("thread", "Looks.second")]
    assert observer.left == [
        ("first", "completed"),
        ("second", "completed"),
        ("Looks", "completed"),
    ]


@on_each_backend
def test_context_managers_are_left_however_a_step_ends(backend):
    """After a failure, a timeout and a cancellation from outside the outcome is set when they are left."""
    observer = Binds()

    async def main():
        await three_ends([observer])
        with anyio.move_on_after(1):
            await Sleeps(observers=[observer]).run()
        assert NAME.get() == "nothing"

    run_virtually(backend, main)
    assert observer.left[-6:] == [
        ("only", "failed"), ("Fails", "failed"),
        ("only", "cancelled"), ("Sleeps", "timed_out"),
        ("only", "cancelled"), ("Sleeps", "cancelled"),
    ]  # fmt: skip


class Tells(Observer):
    """Notes who is told of what."""

    def __init__(self):
        self.told = []

    def run_started(self, run):
        self.told.append(("run", run.workflow, run.parent and run.parent.step))

    def step_ended(self, invocation):
        self.told.append((invocation.step, invocation.outcome, invocation.attempt))


@on_each_backend
def test_children_are_observed_as_their_parents_are(backend):
    """The child's run names the invocation of the parent's step; an observer is called once for it."""

    async def main():
        tells = Tells()
        with observe(tells):
            await Parent(observers=[tells]).run()
        await Adds().run()  # outside of the block
        return tells.told

    told = run_virtually(backend, main)
    assert told[:2] == [("run", "Parent", None), ("run", "Adds", "only")]
    assert told.count(("double", "completed", 1)) == 3
    assert told[-1] == ("only", "completed", 1)


@on_each_backend
def test_records_begin_with_the_run_and_end_with_it(backend):
    """Each run has its own records, also where one observer listens to several."""

    class Listens(Observer):
        def __init__(self):
            self.runs = []

        def listen(self, run):
            self.runs.append([])
            return self.runs[-1].append

    listens = Listens()

    async def main():
        await three_ends([listens])
        await Parent(observers=[listens]).run()

    run_virtually(backend, main)
    assert len(listens.runs) == 5
    for records in listens.runs:
        assert [type(r) for r in records if isinstance(r, RunStarted | RunEnded)] == [
            RunStarted, RunEnded,
        ]  # fmt: skip
        assert type(records[0]) is RunStarted
        assert type(records[-1]) is RunEnded


@on_each_backend
def test_verbose_tells_a_cancellation_from_an_error(backend, capsys, caplog):
    """And the logger has the same lines, without the option."""

    async def main():
        with anyio.move_on_after(1):
            await Sleeps(verbose=True).run()
        with caplog.at_level(logging.DEBUG, "sluicegate"), pytest.raises(KeyError):
            await Fails().run()

    run_virtually(backend, main)
    told = capsys.readouterr().err
    assert "only #1 is cancelled after" in told
    assert "raises" not in told
    assert "only #1 raises KeyError" in caplog.text


def test_observe_refuses_what_is_no_observer():
    message = r"observe\(3\); expected .* derived from sluicegate\.Observer"
    with pytest.raises(TypeError, match=message), observe(3):
        pass
