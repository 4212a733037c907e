"""Checking: run a program, interrupt it as its plan says, resume its snapshots, list deviations."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio
import attrs

from sluicegate import (
    ChildEvent,
    StopEvent,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowFailedEvent,
    WorkflowRuntimeError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
)
from sluicegate.testing import run_virtually
from tests.helpers import leaves_of, live_tasks
from tests.random_programs.building import (
    Answer,
    Builder,
    Ledger,
    PlannedError,
    Question,
    Tick,
    Word,
)
from tests.random_programs.programs import Expected, Program, expect, make


if TYPE_CHECKING:
    from sluicegate import Workflow, WorkflowHandler


Kind = Literal["none", "cancel", "graceful", "scope", "timeout", "body"]

#: Which event ends the stream of a run that was interrupted so, if the interruption was in time.
INTERRUPTED_BY = {
    "cancel": WorkflowCancelledEvent,
    "graceful": WorkflowCancelledEvent,
    "scope": WorkflowCancelledEvent,
    "body": WorkflowCancelledEvent,
    "timeout": WorkflowTimedOutEvent,
}

#: A virtual hour of a thousand bodies; a program that takes longer hangs.
LONGEST = 1_000_000.0
#: On a real clock: how much of a second a program's second is, and when it hangs.
REAL_SCALE = 0.0005
REAL_LONGEST = 20.0


class BodyError(Exception):
    """Raised in the block that owns the run."""


@attrs.frozen
class Plan:
    """How a program is run, and what interrupts it."""

    kind: Kind
    tick: int
    by: Literal["step", "driver"]
    owner: Literal["block", "nursery"]
    timeout: float | None
    #: At which tick a snapshot is taken while the run continues.
    snapshot_tick: int
    reader_delay: float


def make_plan(program: Program, expected: Expected) -> Plan:
    """Make up how the program of a seed is run."""
    chance = random.Random(f"plan {program.seed}")
    kind: Kind = chance.choice(("none", "cancel", "graceful", "scope", "timeout", "body"))
    ticks = sum(expected.bodies.values()) + 2
    return Plan(
        kind=kind,
        tick=chance.randint(1, ticks),
        by=chance.choice(("step", "driver")),
        owner=chance.choice(("block", "nursery")),
        timeout=chance.choice((0.125, 0.5, 1.0, 2.0, 4.0)) if kind == "timeout" else None,
        snapshot_tick=chance.randint(1, ticks),
        reader_delay=chance.choice((0.0, 0.0, 0.125)),
    )


@attrs.define
class Saved:
    """A snapshot, and which bodies were done for certain by then."""

    snapshot: dict[str, Any]
    done: Counter[str]


class Watched:
    """One run under watch: its readers, its interruption, and how it ended."""

    def __init__(
        self, handler: WorkflowHandler[Any], ledger: Ledger, plan: Plan, scale: float
    ) -> None:
        self.handler = handler
        self.ledger = ledger
        self.plan = plan
        self.scale = scale
        self.over = anyio.Event()
        self.scope = anyio.CancelScope()
        self.fired_at: Counter[str] | None = None
        self.saved: list[Saved] = []
        self.streams: list[list[Any]] = [[], []]
        self.left: BaseException | None = None
        self.raised: BaseException | None = None
        self.deviations: list[str] = []
        self.snapshots = True
        ledger.on_tick = self._on_tick

    @property
    def terminal(self) -> Any:
        """The event that ended the stream."""
        return self.streams[0][-1] if self.streams[0] else None

    def deviate(self, what: str) -> None:
        """Write down a deviation."""
        self.deviations.append(what)

    def _on_tick(self, number: int) -> None:
        if self.snapshots and number == self.plan.snapshot_tick:
            self.save(Counter(self.ledger.done))
        if number == self.plan.tick and self.plan.kind not in ("none", "timeout"):
            self.fired_at = Counter(self.ledger.done)
            if self.plan.by == "driver" or self.plan.kind == "body":
                self.over.set()
            else:
                self._interrupt()

    def save(self, done: Counter[str]) -> None:
        """Take a snapshot, unless the run is completed and a step of it still unwinds."""
        snapshot = json.loads(json.dumps(self.handler.snapshot()))
        if snapshot["status"] not in ("running", "idle"):
            done = self.fired_at or Counter()  # what is done after the end is not recorded
        if snapshot["status"] != "completed":
            self.saved.append(Saved(snapshot, done))

    def _interrupt(self) -> None:
        if self.plan.kind == "scope":
            self.scope.cancel()
        else:
            after: Any = "steps" if self.plan.kind == "graceful" else "now"
            self.handler.cancel("planned", after=after)

    async def run(self) -> None:
        """Run to the end."""
        before = live_tasks()
        async with anyio.create_task_group() as readers:
            try:
                with self.scope:
                    await self._own(readers)
            except Exception as error:
                self.left = error
        left = live_tasks() - before
        if left:
            self.deviate(f"tasks left: {left}")

    async def _own(self, readers: Any) -> None:
        if self.plan.owner == "block":
            async with self.handler:
                self._attach(readers)
                await self._drive()
        else:
            async with anyio.create_task_group() as group:
                self.handler.start_soon(group)
                self._attach(readers)
                await self._drive()

    def _attach(self, readers: Any) -> None:
        readers.start_soon(self._read, 0, self.handler.stream_events(), 0.0)
        readers.start_soon(self._read, 1, self.handler.stream_events(), self.plan.reader_delay)

    async def _drive(self) -> None:
        await self.over.wait()
        if self.fired_at is not None and not self.scope.cancel_called:
            if self.plan.kind == "body":
                raise BodyError
            if self.plan.by == "driver":
                self._interrupt()
        try:
            await self.handler
        except (PlannedError, WorkflowCancelledError, WorkflowTimeoutError) as error:
            self.raised = error

    async def _read(self, number: int, stream: Any, delay: float) -> None:
        events = self.streams[number]
        async for event in stream:
            events.append(event)
            if isinstance(event, StopEvent):
                self.over.set()
                if self.ledger.running:
                    self.deviate(f"running at the end of the stream: {dict(self.ledger.running)}")
            if number == 0:
                self._answer(event.event if isinstance(event, ChildEvent) else event)
            if delay:
                await anyio.sleep(delay * self.scale)
        if stream.missed and self.snapshots:  # a resumed run counts on from the first one's events
            self.deviate(f"reader {number} missed {stream.missed}")

    def _answer(self, event: Any) -> None:
        if isinstance(event, Question):
            path = event.key.partition("@")[2]
            with suppress(WorkflowRuntimeError):  # the run is over, or unwinds
                kind = Word if event.plain else Answer
                self.handler.send_event(kind(key=event.key, number=len(path)))


async def check(seed: int, *, scale: float, longest: float) -> list[str]:
    """Run the program of a seed in every way that its plan has; return the deviations."""
    program = make(seed)
    expected = expect(program)
    plan = make_plan(program, expected)
    builder = Builder("s", program.stages, anyio.CapacityLimiter(2), scale)
    timeout = None if plan.timeout is None else plan.timeout * scale
    kind = builder.kind()
    watched = await _run(
        kind(timeout=timeout),
        builder,
        plan,
        scale,
        longest,
        expected,
        program=program,
    )
    problems = judge(watched, expected, interrupted=True)
    if not isinstance(watched.terminal, StopEvent) or type(watched.terminal) is not StopEvent:
        watched.save(watched.fired_at or Counter())
    free = attrs.evolve(plan, kind="none", tick=0, timeout=None)
    for saved in watched.saved:
        for _ in range(2):
            again = await _run(kind(), builder, free, scale, longest, expected, saved=saved)
            problems += [f"resumed: {p}" for p in judge(again, expected, saved=saved)]
    return problems


async def _run(
    workflow: Workflow[Any],
    builder: Builder,
    plan: Plan,
    scale: float,
    longest: float,
    expected: Expected,
    *,
    program: Program | None = None,
    saved: Saved | None = None,
) -> Watched:
    ledger = Ledger(lambda seconds: seconds * scale)
    for each in (workflow, *builder.children):
        each.ledger = ledger  # type: ignore[attr-defined]
    if saved is None:
        assert program is not None
        handler = workflow.run(value=program.value, path="r")
    else:
        handler = workflow.resume(saved.snapshot)
    watched = Watched(handler, ledger, plan, scale)
    watched.snapshots = saved is None
    try:
        with anyio.fail_after(longest):
            await watched.run()
    except TimeoutError:
        watched.deviate(f"it hangs; running: {dict(ledger.running)}, streams: {watched.streams}")
        return watched
    if type(watched.terminal) is StopEvent:
        edits = await handler.ctx.store.get("edits", 0)
        most, least = expected.edits + expected.edits, expected.edits
        if not least <= edits <= (least if saved is None else most):
            watched.deviate(f"{edits} edits, expected {least}")
    return watched


def judge(
    watched: Watched,
    expected: Expected,
    *,
    interrupted: bool = False,
    saved: Saved | None = None,
    ends: dict[str, Any] = INTERRUPTED_BY,
) -> list[str]:
    """Compare what a run did with what it must do; ``ends`` has the end of each interruption."""
    ledger, plan, terminal = watched.ledger, watched.plan, watched.terminal
    problems = [*watched.deviations, *dict.fromkeys(ledger.deviations)]
    if ledger.running:
        problems.append(f"still running: {dict(ledger.running)}")
    if ledger.cleaning != ledger.cleaned:
        problems.append(f"{ledger.cleaning - ledger.cleaned} clean-ups were broken off")
    raised = {id(error) for error in ledger.raised}

    # How it ended, and what left it.
    if type(terminal) is StopEvent:
        if expected.fatal:
            problems.append("completed, although a body fails for good")
        elif terminal.result != expected.value:
            problems.append(f"result {terminal.result}, expected {expected.value}")
    elif isinstance(terminal, WorkflowFailedEvent):
        error = terminal.exception
        if id(error) not in raised or str(error) not in expected.fatal:
            problems.append(f"failed with {error!r}")
        for seen in (watched.raised, *(() if watched.left is None else leaves_of(watched.left))):
            if seen is not None and seen is not error and not isinstance(seen, BodyError):
                problems.append(f"{seen!r} left, and not {error!r}")
    elif not interrupted or type(terminal) is not ends.get(plan.kind):
        problems.append(f"ended with {terminal!r}")
    if watched.left is not None and not isinstance(terminal, WorkflowFailedEvent):
        # A child that had failed before its parent was cancelled fails the parent's step for good.
        known = expected.fatal & expected.inside_children
        kinds = {type(leaf) for leaf in leaves_of(watched.left) if str(leaf) not in known}
        if kinds - ({BodyError} if plan.kind == "body" else set()):
            problems.append(f"{watched.left!r} left")
    for error in watched.handler.exceptions:
        if id(error) not in raised and not isinstance(error, WorkflowTimeoutError):
            problems.append(f"{error!r} is in handler.exceptions")

    # What the readers got.
    first, second = watched.streams
    if first != second:
        problems.append(f"the readers differ: {first} and {second}")
    seen_ticks: Counter[str] = Counter()
    for event in first:
        inner = event.event if isinstance(event, ChildEvent) else event
        if isinstance(inner, Tick):
            seen_ticks[inner.key] += 1
    for key in {*seen_ticks, *ledger.begun}:
        # Behind a durable event that is not committed yet, live ones wait; the part may be left then.
        fewer = key in expected.in_threads or isinstance(terminal, WorkflowDetachedEvent)
        if seen_ticks[key] > ledger.begun[key] or (
            seen_ticks[key] < ledger.begun[key] and not fewer
        ):
            problems.append(
                f"{seen_ticks[key]} events of {key}, which began {ledger.begun[key]} times"
            )

    # What ran.
    completed = type(terminal) is StopEvent
    for key in {*ledger.begun, *expected.bodies}:
        begun = ledger.begun[key]
        if begun > expected.most(key):
            problems.append(f"{key} began {begun} times, expected {expected.most(key)}")
        elif completed and saved is None and begun < expected.bodies[key]:
            problems.append(f"{key} began {begun} times, expected {expected.bodies[key]}")
    if saved is not None:
        for key, count in saved.done.items():
            again = key in expected.inside_children | expected.in_threads
            if count and ledger.begun[key] and not again:
                problems.append(f"{key} was done, and began again")
    return problems


def run_seed(seed: int, backend: str) -> list[str]:
    """Run the program of a seed on ``trio``, ``asyncio`` (both in virtual time) or ``uvloop``."""
    if backend == "uvloop":
        call = partial(check, seed, scale=REAL_SCALE, longest=REAL_LONGEST)
        return anyio.run(call, backend="asyncio", backend_options={"use_uvloop": True})
    call = partial(check, seed, scale=1.0, longest=LONGEST)
    return run_virtually(call, backend=backend, seed=seed)
