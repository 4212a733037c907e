"""The workflows that test_features_swept.py cancels everywhere, with what each must keep to.

A scenario is an async function of a trial. Its check, added by ``@checked_by``, sees every run of
it: whole ones, those that were struck, and the fresh one after each of these. Rules that every run
has to keep stand in :func:`sound`.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from itertools import pairwise
from types import SimpleNamespace
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import attrs
import trio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    RateLimiter,
    Resource,
    Retry,
    StartEvent,
    StateStore,
    StepFailedEvent,
    StopEvent,
    Take,
    Workflow,
    WorkflowRuntimeError,
    catch_error,
    step,
)
from sluicegate._loop.limits import ConcurrencyLimit
from sluicegate.llms import MockLLM
from sluicegate.testing import run_step, run_workflow, step_through, workflow_scenario
from tests.helpers import Done, Item, Note


class Question(InputRequiredEvent):
    text: str


class Answer(HumanResponseEvent):
    text: str


def checked_by(check):
    """Give a scenario the check that each of its runs has to pass."""

    def add(scenario):
        scenario.check = check
        return scenario

    return add


# -- what holds for every run ---------------------------------------------------------------------


async def host(trial, workflow: Workflow[Any], *, answers: Any = (), **fields: Any) -> Any:
    """Run a workflow with a reader beside it, as :func:`workflow_scenario` does."""
    scenario = trial.state.scenario = workflow_scenario(workflow, answers=answers, **fields)
    return await scenario(trial)


@contextmanager
def one_failure():
    """Let an exception of the nursery out as itself, where it is only one."""
    try:
        yield
    except BaseExceptionGroup as group:
        failures = set(leaves_of(group))
        others = {f for f in failures if not is_cancellation(f)}
        if len(others) == 1:
            raise others.pop() from None
        raise


def leaves_of(error):
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves_of(part)]
    return [error]


def is_cancellation(error) -> bool:
    return isinstance(error, trio.Cancelled | anyio.get_cancelled_exc_class())


async def sound(outcome) -> None:
    """The rules of any run, where there was one; and nobody is left in the line of its store."""
    scenario = getattr(outcome.state, "scenario", None)
    if scenario is not None:
        await scenario.check(outcome)
        if outcome.state.handler is not None:
            store = outcome.state.handler.ctx.store
            assert store._writer is None
            assert not store._queue


def result_of(outcome) -> Any:
    """Return the run's result, if it got that far."""
    handler = outcome.state.handler
    return handler.result() if handler.status == "completed" else None


def sees(check):
    """A check for runs of a workflow: the rules of any run, and then those of this one."""

    async def both(outcome):
        await sound(outcome)
        if getattr(outcome.state, "handler", None) is not None:
            verdict = check(outcome)
            if verdict is not None:
                await verdict

    return both


# -- state ----------------------------------------------------------------------------------------


@attrs.define
class Account:
    total: int = 0
    log: list[int] = attrs.Factory(list)
    places: dict[str, Any] = attrs.Factory(dict)


class Bank(Workflow[Any]):
    """Three steps change the state at a time, each over a checkpoint in its block."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.left: list[int] = []

    @step
    async def begin(self, ctx: Context[Account], ev: StartEvent) -> list[Item]:
        await ctx.store.set("places", {"a": {"b": [0, 0]}})
        return [Item(number=n) for n in (1, 2, 4)]

    @step(num_workers=3)
    async def pay(self, ctx: Context[Account], ev: Item) -> Done:
        async with ctx.store.edit_state() as state:
            state.total += ev.number
            await anyio.lowlevel.checkpoint()
            state.log.append(ev.number)
            await anyio.sleep(1)
            state.places["a"]["b"][0] += ev.number
        self.left.append(ev.number)
        return Done(number=ev.number)

    @step
    async def end(self, ctx: Context[Account], evs: list[Done]) -> StopEvent:
        state = await ctx.store.get_state()
        await ctx.store.set("places.a.b.1", state.total)
        return StopEvent(result=sorted(state.log))


def bank_is_whole(outcome):
    handler = outcome.state.handler
    state = handler.ctx.store.snapshot_state()
    bank = outcome.state.workflow
    assert state.total == sum(state.log)
    # Committed is what left its block; the last line of a block is no checkpoint.
    assert state.log == bank.left
    nested = state.places["a"]["b"] if state.places else [0, 0]
    assert nested[0] == state.total
    assert nested[1] in (0, 7)
    if (result := result_of(outcome)) is not None:
        assert result == [1, 2, 4]
        assert nested == [7, 7]


@checked_by(sees(bank_is_whole))
async def edits_in_steps(trial):
    trial.state.workflow = Bank()
    return await host(trial, trial.state.workflow)


def store_is_whole(outcome):
    store = outcome.state.store
    state = store.snapshot_state()
    assert store._writer is None
    assert not store._queue
    assert state.total == sum(state.log)
    assert state.log == outcome.state.left
    if not outcome.struck:
        assert sorted(state.log) == [1, 2, 3]
        assert state.places == {"n": {"m": 3}, "kept": 1}


@checked_by(store_is_whole)
async def edits_of_a_store(trial):
    """Editors, a writer by path and a reader on a store without any run."""
    store: StateStore[Account] = StateStore(Account)
    trial.state.store, trial.state.left = store, []
    await store.set("places", {"kept": 1})

    async def edit(number: int) -> None:
        with trial.target("editor"):
            async with store.edit_state() as state:
                state.log.append(number)
                await anyio.sleep(1)
                state.total += number
            trial.state.left.append(number)

    async def put() -> None:
        for number in range(1, 4):
            await store.set("places.n", {"m": number})
            await anyio.sleep(0.5)

    async def look() -> None:
        for _ in range(4):
            seen = await store.get_state()
            assert seen.total == sum(seen.log)
            await anyio.sleep(0.5)

    with one_failure():
        async with anyio.create_task_group() as tasks:
            for number in (1, 2, 3):
                tasks.start_soon(edit, number)
            tasks.start_soon(put)
            tasks.start_soon(look)


# -- resources ------------------------------------------------------------------------------------


class Log:
    """What was opened and closed, in order; and how many real openings failed."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.saw: dict[str, BaseException | None] = {}
        self.tries = 0

    @asynccontextmanager
    async def hold(self, name: str, *, shielded: bool = False):
        with anyio.CancelScope(shield=shielded):
            await anyio.sleep(0.5)
        self.opened.append(name)
        error: BaseException | None = None
        try:
            yield name
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.closed.append(name)
            self.saw[name] = error
            await anyio.sleep(0.5)
            self.closed.append(f"{name} whole")


def closed_in_reverse(log: Log, names) -> None:
    """Each of these was closed once for each opening; and those of one scope the last first."""
    opened = [name for name in log.opened if name in names]
    closed = [name for name in log.closed if name in names]
    assert closed == opened[::-1], (log.opened, log.closed)


#: A grace that no jump of the clock is beyond.
NEVER = 1e12

#: The log of the trial; factories are known by identity, and so are functions of the module.
log_of_trial: ContextVar[Log] = ContextVar("log_of_trial")


async def pool():
    return log_of_trial.get().hold("pool")


def connection(pool: Annotated[str, Resource(pool, scope="workflow", grace=NEVER)]):
    return log_of_trial.get().hold(f"connection of {pool}")


async def session(
    connection: Annotated[str, Resource(connection, grace=NEVER)], ctx: Context
) -> AsyncIterator[str]:
    assert ctx.run_id
    async with log_of_trial.get().hold("session"), anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        yield f"session of {connection}"
        tasks.cancel_scope.cancel()


def cursor(session: Annotated[str, Resource(session, grace=NEVER)]):
    return log_of_trial.get().hold("cursor")


class Queries(Workflow[Any]):
    """Resources of each scope: each needs the one before, and one holds a nursery."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(2)]

    @step(num_workers=2)
    async def work(
        self,
        ev: Item,
        session: Annotated[str, Resource(session, grace=NEVER)],
        cursor: Annotated[str, Resource(cursor, scope="step", grace=NEVER)],
    ) -> Done:
        log = log_of_trial.get()
        assert "session" in log.opened
        assert "session" not in log.closed
        await anyio.sleep(1)
        assert "cursor" in log.opened
        return Done(number=ev.number)

    @step
    async def end(
        self,
        evs: list[Done],
        connection: Annotated[str, Resource(connection, grace=NEVER)],
    ) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


#: The resources of a run and its workflow, which are closed in the reverse order.
KEPT = ("pool", "connection of pool", "session")


def resources_are_closed(outcome):
    log = outcome.state.log
    closed_in_reverse(log, KEPT)
    for name in KEPT:
        # Shielded, so that closing goes to its end however it came to be closed.
        assert log.opened.count(name) == log.closed.count(f"{name} whole") <= 1, log.closed
    assert log.opened.count("cursor") == log.closed.count("cursor")
    if outcome.at.kind in {None, "scope", "deadline"}:  # what hits a task goes through shields
        assert log.opened.count("cursor") == log.closed.count("cursor whole")
    if (result := result_of(outcome)) is not None:
        assert result == [0, 1]
        assert log.opened.count("cursor") == 2
    if not outcome.struck:
        assert set(log.saw.values()) == {None}


@checked_by(sees(resources_are_closed))
async def resources_of_all_scopes(trial):
    log_of_trial.set(Log())
    trial.state.log = log_of_trial.get()
    async with Queries() as workflow:
        return await host(trial, workflow)


class Unlucky(Exception):
    """Raised by a factory, the first time."""


async def below():
    # It opens whatever comes, and then nobody may want it any more.
    return log_of_trial.get().hold("below", shielded=True)


async def above(below: Annotated[str, Resource(below, grace=NEVER)]):
    log = log_of_trial.get()
    log.tries += 1
    await anyio.sleep(0.5)
    if log.tries == 1:
        raise Unlucky
    return log.hold("above")


class Tries(Workflow[Any]):
    """Two steps ask for a resource whose factory fails at first; both are told, and try again."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(2)]

    @step(num_workers=2, retry=Retry(stop=3, wait=1))
    async def work(self, ev: Item, above: Annotated[str, Resource(above, grace=NEVER)]) -> Done:
        await anyio.lowlevel.checkpoint()
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


def tried_again(outcome):
    log = outcome.state.log
    closed_in_reverse(log, ("below", "above"))
    assert log.opened.count("below") <= 1
    assert log.opened.count("above") <= 1
    if not outcome.struck:
        assert log.tries == 2  # one making for both, and one further


@checked_by(sees(tried_again))
async def factory_that_fails(trial):
    log_of_trial.set(Log())
    trial.state.log = log_of_trial.get()
    return await host(trial, Tries())


# -- threads --------------------------------------------------------------------------------------


class Threads(Workflow[Any]):
    """Steps in threads, which come back into the loop; ``at_work`` counts those in there."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.at_work = 0
        self.most = 0
        self.left: list[int] = []
        self.loop_parts: list[str] = []

    @step
    def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        ctx.write_event_to_stream(Note(number=0))
        return [Item(number=n) for n in range(2)]

    @step(num_workers=2)
    def work(self, ctx: Context, ev: Item) -> Done:
        self.at_work += 1
        try:
            ctx.from_thread.run(self.part, ev.number)
            ctx.from_thread.run_sync(self.loop_parts.append, f"sync {ev.number}")
            ctx.from_thread.check_cancelled()
            ctx.from_thread.run(ctx.store.set, f"n{ev.number}", ev.number)
        finally:
            self.at_work -= 1
            self.left.append(ev.number)
        return Done(number=ev.number)

    async def part(self, number: int) -> None:
        self.loop_parts.append(f"begin {number}")
        try:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
        finally:
            self.loop_parts.append(f"end {number}")

    @step
    async def end(self, ctx: Context, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted((await ctx.store.get_state()).to_dict().values()))


def threads_are_waited_for(outcome):
    workflow = outcome.state.workflow
    assert workflow.at_work == 0
    parts = workflow.loop_parts
    for number in range(2):
        assert parts.count(f"begin {number}") == parts.count(f"end {number}")
    if (result := result_of(outcome)) is not None:
        assert result == [0, 1]
        assert sorted(workflow.left) == [0, 1]


@checked_by(sees(threads_are_waited_for))
async def steps_in_threads(trial):
    trial.state.workflow = Threads()
    return await host(trial, trial.state.workflow)


# -- limits ---------------------------------------------------------------------------------------


class OnePlace:
    """Stands for the capacity limiter of the event loop that runs."""

    now: Any = None

    async def __aenter__(self) -> None:
        await self.now.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.now.__aexit__(*exc_info)

    def acquire_on_behalf_of(self, borrower: object) -> Any:
        return self.now.acquire_on_behalf_of(borrower)

    def release_on_behalf_of(self, borrower: object) -> None:
        self.now.release_on_behalf_of(borrower)

    def statistics(self) -> Any:
        return self.now.statistics()


one_place = OnePlace()


class Limited(Workflow[Any]):
    """Three items through one place, and at most one begins in a second."""

    def __init__(self, seen: Any, **options: Any) -> None:
        super().__init__(**options)
        self.seen = seen

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(3)]

    @step(num_workers=3, limiter=one_place)
    async def ask(self, ev: Item) -> Done:
        seen = self.seen
        seen.inside += 1
        seen.most = max(seen.most, seen.inside)
        try:
            async with seen.rate:
                seen.entries.append(anyio.current_time())
            await anyio.sleep(0.1)
        finally:
            seen.inside -= 1
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


async def places_are_back(outcome):
    seen, places = outcome.state.seen, one_place.statistics()
    assert places.borrowed_tokens == 0
    assert places.tasks_waiting == 0
    assert seen.inside == 0
    assert seen.most <= 1
    entries = seen.entries
    assert all(later - first >= 0.99 for first, later in pairwise(entries))
    # The limiter lets the next one in at once, or by the next token.
    began = anyio.current_time()
    await seen.rate.acquire()
    assert anyio.current_time() - began <= 1.0
    if (result := result_of(outcome)) is not None:
        assert result == [0, 1, 2]


@checked_by(sees(places_are_back))
async def limiters_of_a_step(trial):
    one_place.now = trio.CapacityLimiter(1) if trial.backend == "trio" else anyio.CapacityLimiter(1)
    seen = SimpleNamespace(inside=0, most=0, entries=[], rate=RateLimiter(1))
    trial.state.seen = seen
    return await host(trial, Limited(seen))


async def lines_move_on(outcome):
    seen = outcome.state.seen
    assert not seen.inside
    assert seen.slots.inside == 0
    assert seen.slots.waiting == 0
    assert all(later - first >= 0.99 for first, later in pairwise(seen.entries))
    if not outcome.struck:
        assert seen.entries == [0.0, 1.0, 2.0]
    # Nobody is kept longer than until the next token, whoever was cancelled before.
    if seen.ended is not None and outcome.at.kind != "deadline":
        assert seen.ended <= 2.5


@checked_by(lines_move_on)
async def entries_of_limits(trial):
    """Three tasks in line for a rate and then for a slot, without any run."""
    seen = trial.state.seen = SimpleNamespace(inside=[], entries=[], ended=None)
    began = anyio.current_time()
    rate, concurrency = RateLimiter(1), ConcurrencyLimit(1)
    seen.slots = await concurrency.acquire()
    seen.slots.release()

    async def enter(number: int) -> None:
        with trial.target("entry"):
            await rate.acquire()
            seen.entries.append(round(anyio.current_time() - began, 3))
            slots = await concurrency.acquire()
            seen.inside.append(number)
            try:
                await anyio.sleep(0.1)
            finally:
                seen.inside.remove(number)
                slots.release()

    with one_failure():
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(enter, number)
    seen.ended = anyio.current_time() - began


class OneAtATime(Workflow[int]):
    def __init__(self, **options: Any) -> None:
        super().__init__(num_concurrent_runs=1, **options)
        self.inside = 0
        self.most = 0

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await anyio.sleep(1)
        finally:
            self.inside -= 1
        return StopEvent(result=ev.number)


async def gate_is_open(outcome):
    workflow = outcome.state.workflow
    assert workflow.inside == 0
    assert workflow.most <= 1
    for handler in outcome.state.handlers:
        assert handler.is_done()
    began = anyio.current_time()
    assert await workflow.run(number=9) == 9
    assert anyio.current_time() - began == 1.0
    if not outcome.struck:
        assert sorted(outcome.value) == [0, 1, 2]


@checked_by(gate_is_open)
async def runs_at_a_time(trial):
    """Three runs of an object that lets in one; each belongs to a task of its own."""
    workflow = OneAtATime()
    trial.state.workflow, trial.state.handlers, results = workflow, [], []

    async def run(number: int) -> None:
        handler = workflow.run(number=number)
        trial.state.handlers.append(handler)
        with trial.target("run"):
            async with handler:
                results.append(await handler)

    with one_failure():
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(run, number)
    return results


# -- children -------------------------------------------------------------------------------------


class Child(Workflow[str]):
    """Asks a person; ``steps`` counts those of its steps that have not unwound."""

    def __init__(self, books: Any, **options: Any) -> None:
        super().__init__(**options)
        self.books = books

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.books.begun += 1
        try:
            answer = await ctx.wait_for_event(
                ToChild, Question(text=ev.name), requirements={"to": ev.name}
            )
            await anyio.sleep(0.5)
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
            finally:
                self.books.ended += 1
        return StopEvent(result=f"{ev.name}: {answer.text}")


class Parent(Workflow[list[str]]):
    def __init__(self, books: Any, **options: Any) -> None:
        super().__init__(**options)
        self.child = Child(books)

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(2)]

    @step(num_workers=2)
    async def run_it(self, ctx: Context, ev: Item) -> Done | None:
        name = f"child {ev.number}"
        async with ctx.store.edit_state() as state:
            state[name] = None
        told = await ctx.run_child(self.child, name=name)
        await ctx.store.set(name, told)
        return Done(number=ev.number)

    @step
    async def end(self, ctx: Context, evs: list[Done]) -> StopEvent:
        state = await ctx.store.get_state()
        return StopEvent(result=sorted(state.to_dict().values()))


class ToChild(HumanResponseEvent):
    to: str
    text: str


class Books:
    """How many steps have begun, and how many have unwound."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0


def children_are_over(outcome):
    books = outcome.state.books
    # A native cancellation of who awaits hits nobody's clean-up: steps have tasks of their own.
    assert books.begun == books.ended
    if (result := result_of(outcome)) is not None:
        assert result == ["child 0: yes", "child 1: yes"]
        assert books.begun == 2
    if not outcome.struck:
        asked = [event.text for event in outcome.state.events if isinstance(event, Question)]
        assert sorted(asked) == ["child 0", "child 1"]


@checked_by(sees(children_are_over))
async def children_that_ask(trial):
    books = trial.state.books = Books()
    answers = {Question: lambda question: ToChild(text="yes", to=question.text)}
    return await host(trial, Parent(books), answers=answers)


class LoopLimiter:
    """A capacity limiter of one in whatever event loop runs."""

    def __init__(self) -> None:
        self.limiter: Any = None

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self.limiter.acquire_on_behalf_of(borrower)

    def release_on_behalf_of(self, borrower: object) -> None:
        self.limiter.release_on_behalf_of(borrower)

    async def __aenter__(self) -> None:
        raise AssertionError

    async def __aexit__(self, *exception: object) -> None:
        raise AssertionError


ONE_AT_A_TIME = LoopLimiter()


class Heard(Event):
    number: int


class Council(Workflow[list[int]]):
    """More members than workers: those that wait give their places, and a place in a limiter."""

    def __init__(self, books: Any, **options: Any) -> None:
        super().__init__(**options)
        self.books = books

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(5)]

    @step(num_workers=2, waits_for=[ToChild])
    async def ask(self, ctx: Context, ev: Item) -> Done:
        await self.hear(ctx, f"asked {ev.number}")
        return Done(number=ev.number)

    @step(num_workers=2, limiter=ONE_AT_A_TIME, waits_for=[ToChild])
    async def ask_again(self, ctx: Context, ev: Done) -> Heard | None:
        with anyio.move_on_after(0.7):
            await self.hear(ctx, f"again {ev.number}")
        return Heard(number=ev.number)

    async def hear(self, ctx: Context, name: str) -> None:
        self.books.begun += 1
        try:
            needs = {"to": name}
            await ctx.wait_for_event(ToChild, Question(text=name), requirements=needs)
            await anyio.sleep(0.3)
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
            finally:
                self.books.ended += 1

    @step
    async def end(self, evs: list[Heard]) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


def places_are_given_back(outcome):
    books = outcome.state.books
    assert books.begun == books.ended
    assert not ONE_AT_A_TIME.limiter.statistics().borrowers
    if (result := result_of(outcome)) is not None:
        assert result == [*range(5)]


@checked_by(sees(places_are_given_back))
async def places_given_up(trial):
    books = trial.state.books = Books()
    ONE_AT_A_TIME.limiter = anyio.CapacityLimiter(1)
    answers = {Question: lambda question: ToChild(text="yes", to=question.text)}
    return await host(trial, Council(books), answers=answers)


# -- people ---------------------------------------------------------------------------------------


class Early(HumanResponseEvent):
    text: str


class Form(Workflow[list[str]]):
    """Asks by an event that a step returns, and in the middle of a step; gets one answer early."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Question:
        await anyio.sleep(1)
        return Question(text="name")

    @step
    async def listen(self, ctx: Context, ev: Answer) -> StopEvent:
        first = ev.text
        early = await ctx.wait_for_event(Early, Question(text="early"))
        await anyio.sleep(0.5)
        return StopEvent(result=[first, early.text])


def answers_arrive(outcome):
    if (result := result_of(outcome)) is not None:
        assert result == ["ann", "known"]
    if not outcome.struck:
        texts = [event.text for event in outcome.state.events if isinstance(event, Question)]
        assert texts == ["name", "early"]


class Desk:
    """Those who answer a run from outside, each from a task of the scenario, or a thread."""

    def __init__(self, trial, *, by_thread: bool) -> None:
        self.trial = trial
        self.by_thread = by_thread

    async def send(self, event: Event, after: float) -> None:
        await anyio.sleep(after)
        handler = self.trial.state.handler
        if self.by_thread:
            await anyio.to_thread.run_sync(_send, handler.from_thread, event)
        else:
            _send(handler, event)


async def answered(trial, *, by_thread: bool):
    desk = Desk(trial, by_thread=by_thread)
    with one_failure():
        async with anyio.create_task_group() as tasks:
            # From a thread it comes while another question is open, which stays open.
            tasks.start_soon(desk.send, Early(text="known"), 1.5 if by_thread else 0.5)
            tasks.start_soon(desk.send, Answer(text="ann"), 2)
            return await host(trial, Form(), answers=None)


@checked_by(sees(answers_arrive))
async def answers_early_and_late(trial):
    return await answered(trial, by_thread=False)


@checked_by(sees(answers_arrive))
async def answers_from_threads(trial):
    return await answered(trial, by_thread=True)


def _send(way: Any, answer: Event) -> None:
    try:
        way.send_event(answer)
    except WorkflowRuntimeError:  # the run was over before
        return


# -- snapshots ------------------------------------------------------------------------------------


class Pages(Workflow[list[int]]):
    """A fan-out, a join, a state, a retry with a delay, and a question: all that a snapshot keeps."""

    def __init__(self, **options: Any) -> None:
        super().__init__(serializable=[Answer], **options)

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        await ctx.store.set("pages", [])
        return [Item(number=n) for n in range(3)]

    @step(num_workers=2, retry=Retry(stop=3, wait=2))
    async def work(self, ctx: Context, ev: Item) -> Done:
        if ev.number == 1 and ctx.step.attempt == 1:
            msg = "the first attempt"
            raise OSError(msg)
        await anyio.sleep(1)
        async with ctx.store.edit_state() as state:
            if ev.number not in state.pages:
                state.pages.append(ev.number)
        return Done(number=ev.number)

    @step
    async def join(self, ctx: Context, evs: list[Done]) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Question(text="publish?"))
        pages = await ctx.store.get("pages")
        assert answer.text == "yes"
        return StopEvent(result=[len(evs), *sorted(pages)])


PAGES = [3, 0, 1, 2]


async def resumes_to_the_same(outcome):
    """A snapshot of the run as it was struck goes on to the result of the whole run."""
    handler = outcome.state.handler
    if handler.status == "completed":
        assert handler.result() == PAGES
        return
    saved = json.loads(json.dumps(handler.snapshot()))
    questions = await _go_on(Pages().resume(saved))
    # An answer that was accepted is not asked for again.
    assert questions == (0 if getattr(outcome.state, "is_answered", False) else 1)


async def _go_on(handler) -> int:
    """Let a run go on to its end; return how often it had to be answered."""
    questions = 0
    async with handler:
        while not handler.is_done():
            await anyio.sleep(10)
            if handler.status == "idle":
                questions += 1
                handler.send_event(Answer(text="yes"))
        assert await handler == PAGES
    return questions


@checked_by(sees(resumes_to_the_same))
async def snapshot_where_struck(trial):
    def answer(_: Event) -> Answer:
        trial.state.is_answered = not trial.state.handler._run.outcome.status
        return Answer(text="yes")

    return await host(trial, Pages(), answers={Question: answer})


@checked_by(resumes_to_the_same)
async def resumed_in_the_middle(trial):
    """Half a run, its snapshot, and the rest of it as the run that is struck."""
    workflow = Pages()
    first = trial.state.handler = workflow.run()
    async with first:
        await anyio.sleep(1.5)
        saved = json.loads(json.dumps(first.snapshot()))
        await first.cancel("enough")
    trial.state.handler = second = workflow.resume(saved)
    async with second:
        second.send_event(Answer(text="yes"))
        trial.state.is_answered = True
        return await second


# -- what a step does once -------------------------------------------------------------------------


class Chapter(Workflow[int]):
    """A child of two steps, which sleeps in the second one."""

    def __init__(self, books: Any) -> None:
        super().__init__()
        self.books = books

    @step
    async def first(self, ev: StartEvent) -> Item:
        await anyio.sleep(0.5)
        self.books.done.append(f"first {ev.number}")
        return Item(number=ev.number)

    @step
    async def second(self, ctx: Context, ev: Item) -> StopEvent:
        await ctx.sleep(1 + ev.number)
        return StopEvent(result=ev.number)


class Volume(Workflow[Any]):
    """Two children at once, an effect that two tasks want, and a timer."""

    def __init__(self, books: Any, **options: Any) -> None:
        super().__init__(**options)
        self.books = books

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        found: list[int] = []

        async def call(number: int) -> None:
            found.append(await ctx.run_child(Chapter(self.books), number=number))

        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(call, number)
                group.start_soon(ctx.once, "print", self.print)
        await ctx.sleep(1)
        return StopEvent(result=[*sorted(found), await ctx.once("print", self.print)])

    async def print(self) -> str:
        await anyio.sleep(0.7)
        self.books.done.append("printed")
        return "printed"


class VolumeBooks:
    """What the steps of a volume have done."""

    def __init__(self) -> None:
        self.done: list[str] = []


async def goes_on_where_it_was(outcome):
    """A snapshot of the run as it was struck goes on; nothing that was done is done again."""
    books, handler = outcome.state.books, outcome.state.handler
    run = handler._run
    assert not run.sleeping
    if handler.status != "completed":
        saved = json.loads(json.dumps(handler.snapshot()))
        async with Volume(books).resume(saved) as again:
            assert await again == [0, 1, "printed"]
    else:
        assert handler.result() == [0, 1, "printed"]
    assert sorted(books.done) == ["first 0", "first 1", "printed"]


@checked_by(sees(goes_on_where_it_was))
async def effects_and_children(trial):
    books = trial.state.books = VolumeBooks()
    return await host(trial, Volume(books))


# -- language models ------------------------------------------------------------------------------


class Tells(Workflow[str]):
    def __init__(self, llm: MockLLM, **options: Any) -> None:
        super().__init__(**options)
        self.llm = llm

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(2)]

    @step(num_workers=2)
    async def ask(self, ctx: Context, ev: Item) -> Done:
        stream = await self.llm.astream_complete("one two three")
        async for piece in stream:
            await ctx.stream.send(Note(number=len(piece.text)))
            if ev.number == 1:
                break  # the stream is closed for it, when the step ends
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        reply = await self.llm.acomplete("and so on")
        return StopEvent(result=reply.text)


def streams_are_closed(outcome):
    assert outcome.state.llm.open_streams == 0
    if (result := result_of(outcome)) is not None:
        assert result == "and so on"
        assert len(outcome.state.llm.requests) == 3


@checked_by(sees(streams_are_closed))
async def replies_that_stream(trial):
    llm = trial.state.llm = MockLLM(delay=0.1)
    return await host(trial, Tells(llm))


# -- sluicegate.testing -----------------------------------------------------------------------------


class Polite(Workflow[str]):
    def __init__(self, books: Books, **options: Any) -> None:
        super().__init__(**options)
        self.books = books

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(2)]

    @step
    async def work(self, ctx: Context, ev: Item) -> Done:
        self.books.begun += 1
        try:
            answer = await ctx.wait_for_event(Answer, Question(text=f"{ev.number}"))
            await ctx.store.set(f"n{ev.number}", answer.text)
            await anyio.sleep(0.2)
        finally:
            self.books.ended += 1
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=f"{len(evs)} done")


def books_are_even(outcome):
    books = outcome.state.books
    assert books.begun == books.ended
    if outcome.completed:
        assert outcome.value == "2 done"


@checked_by(books_are_even)
async def whole_run_under_test(trial):
    books = trial.state.books = Books()
    result = await run_workflow(Polite(books), answers=lambda question: Answer(text=question.text))
    assert result.state.to_dict() == {"n0": "0", "n1": "1"}
    return result.result


@checked_by(books_are_even)
async def stepped_run(trial):
    books = trial.state.books = Books()
    names = []
    async with step_through(Polite(books), answers={Question: Answer(text="x")}) as steps:
        async for invocation in steps:
            names.append(invocation.step)
    assert names == ["begin", "work", "work", "end"]
    return steps.result.result


@checked_by(books_are_even)
async def step_under_test(trial):
    books = trial.state.books = Books()
    outcome = await run_step(Polite(books), "work", Item(number=7), answers=[Answer(text="x")])
    assert outcome.state.n7 == "x"
    return f"{1 + (outcome.result.number == 7)} done"


# -- for the fuzz: what depends most on who goes first --------------------------------------------


class FirstTwo(Workflow[list[int]]):
    """The first two of four; the losers need a while to clean up."""

    def __init__(self, books: Books, **options: Any) -> None:
        super().__init__(**options)
        self.books = books

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(4)]

    @step(num_workers=4)
    async def work(self, ev: Item) -> Done:
        self.books.begun += 1
        try:
            await anyio.sleep(1 if ev.number < 2 else 100)
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
            finally:
                self.books.ended += 1
        return Done(number=ev.number)

    @step
    async def first(self, evs: Annotated[list[Done], Take(2)]) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


def losers_are_over(outcome):
    books = outcome.state.books
    assert books.begun == books.ended
    assert result_of(outcome) in (None, [0, 1])


@checked_by(sees(losers_are_over))
async def first_two_of_four(trial):
    books = trial.state.books = Books()
    return await host(trial, FirstTwo(books))


class Pipe(Workflow[int]):
    """Three senders that are held back by their readers, one event at a time."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(3)]

    @step(num_workers=3)
    async def send(self, ctx: Context, ev: Item) -> Done:
        for number in range(3):
            await ctx.stream.send(Note(number=ev.number * 10 + number))
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


def pipe_is_in_order(outcome):
    notes = [event.number for event in outcome.state.events if isinstance(event, Note)]
    for sender in range(3):
        own = [number for number in notes if number // 10 == sender]
        assert own == sorted(own)
    if not outcome.struck:
        assert len(notes) == 9


@checked_by(sees(pipe_is_in_order))
async def senders_held_back(trial):
    return await host(trial, Pipe(stream_buffer=1), readers=2)


class Mended(Workflow[list[int]]):
    """Half of the items fail twice; what fails for good is handled, once for each item."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tries: Counter[int] = Counter()
        self.handled: list[int] = []

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(4)]

    @step(num_workers=2, retry=Retry(stop=2, wait=1))
    async def work(self, ctx: Context, ev: Item) -> Done | Note:
        ctx.send_event(Note(number=ev.number))  # kept back until the attempt has succeeded
        self.tries[ev.number] += 1
        await anyio.lowlevel.checkpoint()
        if ev.number % 2:
            raise OSError(ev.number)
        return Done(number=ev.number)

    @step
    async def note(self, ctx: Context, ev: Note) -> None:
        async with ctx.store.edit_state() as state:
            state.notes = [*state.get("notes", []), ev.number]

    @catch_error(for_steps=["work"])
    async def mend(self, ev: StepFailedEvent) -> Done:
        self.handled.append(ev.input_event.number)
        await anyio.lowlevel.checkpoint()
        return Done(number=-ev.input_event.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


def mended_once(outcome):
    workflow = outcome.state.workflow
    assert len(set(workflow.handled)) == len(workflow.handled)
    assert all(count <= 2 for count in workflow.tries.values())
    notes = outcome.state.handler.ctx.store.snapshot_state().get("notes", [])
    assert len(set(notes)) == len(notes)
    assert set(notes) <= {0, 2}
    if (result := result_of(outcome)) is not None:
        assert result == [-3, -1, 0, 2]


@checked_by(sees(mended_once))
async def failures_that_are_handled(trial):
    return await host(trial, Mended())
