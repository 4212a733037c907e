"""Building: a workflow of a program, whose bodies tell a ledger of everything they do."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import anyio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Take,
    Workflow,
    catch_error,
    step,
)
from tests.random_programs.programs import (
    MODULUS,
    Ask,
    AwaitBranch,
    CancelBranch,
    Child,
    Collect,
    Edit,
    Fan,
    Fatal,
    Flaky,
    Grouped,
    Handled,
    Hop,
    LimitedHop,
    Pair,
    Race,
    Stage,
    ThreadHop,
    Twins,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Tick(Event):
    """Published by each body when it begins."""

    key: str


class Question(InputRequiredEvent):
    key: str
    plain: bool


class Answer(HumanResponseEvent):
    key: str
    number: int


class Word(Event):
    """Answers a question, and is of no kind that is made for answers."""

    key: str
    number: int


class PlannedError(Exception):
    """Raised by a body that is to fail."""


class Ledger:
    """What the bodies of one run have done, kept outside of the engine."""

    def __init__(self, seconds: Callable[[float], float]) -> None:
        self.begun: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.at_work: Counter[tuple[str, str]] = Counter()
        self.deviations: list[str] = []
        self.raised: list[PlannedError] = []
        #: Clean-up that was begun, and that came to its end.
        self.cleaning = self.cleaned = 0
        self.ticks = 0
        self.on_tick: Callable[[int], None] = lambda _number: None
        self._seconds = seconds
        self._lock = threading.Lock()

    async def sleep(self, seconds: float) -> None:
        """Sleep, clean up behind a shield, and tick."""
        try:
            if seconds:
                await anyio.sleep(self._seconds(seconds))
            else:
                await anyio.lowlevel.checkpoint()
        finally:
            self.cleaning += 1
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.cleaned += 1
        self.tick()

    def tick(self) -> None:
        """Count a moment at which the run may be interrupted; in the loop only."""
        self.ticks += 1
        self.on_tick(self.ticks)

    def fail(self, key: str) -> PlannedError:
        """Return the exception that a body is to raise."""
        error = PlannedError(key)
        self.raised.append(error)
        return error

    @contextmanager
    def body(self, ctx: Context, name: str, path: str, most: int = 10**9) -> Iterator[str]:
        """Enter a body and publish that it begins; at most ``most`` of a run work at a time."""
        key = f"{name}@{path}"
        with self._lock:
            self.begun[key] += 1
            self.running[key] += 1
            self._work(ctx.run_id, name, 1, most)
        try:
            ctx.write_event_to_stream(Tick(key=key))
            yield key
        except BaseException:
            self._leave(ctx, name, key)
            raise
        self.done[key] += 1
        self._leave(ctx, name, key)

    def _leave(self, ctx: Context, name: str, key: str) -> None:
        with self._lock:
            self._work(ctx.run_id, name, -1)
            self.running[key] -= 1
            if not self.running[key]:
                del self.running[key]

    def _work(self, scope: str, name: str, change: int, most: int = 10**9) -> None:
        self.at_work[scope, name] += change
        if self.at_work[scope, name] > most:
            number = self.at_work[scope, name]
            self.deviations.append(f"{number} bodies of {name} at a time, expected {most}")

    @contextmanager
    def limited(self, most: int) -> Iterator[None]:
        """A body with the shared limiter."""
        self._work("", "limited", 1, most)
        try:
            yield
        finally:
            self._work("", "limited", -1)

    @contextmanager
    def waiting(self, ctx: Context, name: str) -> Iterator[None]:
        """A body that waits for a person has given its worker's place to another."""
        self._work(ctx.run_id, name, -1)
        try:
            yield
        finally:
            self._work(ctx.run_id, name, 1)


class Builder:
    """Makes the steps and the events of a workflow."""

    def __init__(
        self,
        name: str,
        stages: tuple[Stage, ...],
        limiter: Any,
        scale: float,
        known: tuple[type, ...] = (),
    ) -> None:
        #: The classes that the children may keep, beside those that annotations name.
        self._known = known
        self._name = name
        self._scale = scale
        self._limiter = limiter
        self._members: dict[str, Any] = {"ledger": None}
        self._events = 0
        self.children: list[Workflow[Any]] = []
        first = self._event()

        async def begin(self: Any, ev: StartEvent) -> Any:
            return first(value=ev.value, path=ev.path)

        last_of = self._add_all(stages, f"{name}", first)

        async def end(self: Any, ev: Any) -> StopEvent:
            return StopEvent(result=ev.value)

        self._step("begin", begin, {"ev": StartEvent}, first)
        self._step("end", end, {"ev": last_of}, StopEvent)

    def kind(self) -> type[Workflow[Any]]:
        """Make the class."""
        return type(f"Program_{self._name}", (Workflow,), self._members)

    def _event(self, base: type[Event] = Event) -> Any:
        self._events += 1
        fields = {"__annotations__": {"value": int, "path": str}, "__module__": __name__}
        return type(f"{self._name}_E{self._events}", (base,), fields)

    def _step(
        self, name: str, function: Any, takes: dict[str, Any], returns: Any, **options: Any
    ) -> None:
        function.__name__ = name
        function.__qualname__ = name
        function.__annotations__ = {**takes, "return": returns}
        handles = options.pop("handles", None)
        decorate = (
            step(**options) if handles is None else catch_error(for_steps=[handles], **options)
        )
        self._members[name] = decorate(function)

    def _add_all(self, stages: tuple[Stage, ...], prefix: str, taken: Any) -> Any:
        for number, stage in enumerate(stages):
            taken = self._add(stage, f"{prefix}{number}", taken)
        return taken

    def _add(self, stage: Stage, name: str, taken: Any) -> Any:
        given = self._event()
        adders: dict[type[Stage], Any] = {
            Hop: self._add_hop,
            ThreadHop: self._add_thread_hop,
            Grouped: self._add_grouped,
            LimitedHop: self._add_limited_hop,
            Fan: self._add_fan,
            Race: self._add_race,
            Pair: self._add_pair,
            Twins: self._add_twins,
            Collect: self._add_collect,
            AwaitBranch: self._add_branch,
            CancelBranch: self._add_branch,
            Ask: self._add_ask,
            Flaky: self._add_flaky,
            Handled: self._add_handled,
            Child: self._add_child,
            Edit: self._add_edit,
            Fatal: self._add_fatal,
        }
        adders[type(stage)](stage, name, taken, given)
        return given

    # -- one method for each kind of stage ------------------------------------------------------

    def _add_hop(self, stage: Hop, name: str, taken: Any, given: Any) -> None:
        async def hop(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers):
                await self.ledger.sleep(stage.seconds)
            event = given(value=(ev.value + stage.add) % MODULUS, path=ev.path)
            if not stage.sends:
                return event
            ctx.send_event(event)
            return None

        returns = given | None if stage.sends else given
        self._step(name, hop, {"ctx": Context, "ev": taken}, returns, num_workers=stage.workers)

    def _add_thread_hop(self, stage: ThreadHop, name: str, taken: Any, given: Any) -> None:
        def hop(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers):
                time.sleep(0.0002)
            return given(value=(ev.value + 1) % MODULUS, path=ev.path)

        self._step(name, hop, {"ctx": Context, "ev": taken}, given, num_workers=stage.workers)

    def _add_grouped(self, stage: Grouped, name: str, taken: Any, given: Any) -> None:
        async def hop(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers):
                async with anyio.create_task_group() as group:
                    group.start_soon(self.ledger.sleep, stage.seconds)
                    group.start_soon(self.ledger.sleep, 0)
                    await self.ledger.sleep(stage.seconds)
            return given(value=(ev.value + 1) % MODULUS, path=ev.path)

        takes = {"ctx": Context, "ev": taken}
        self._step(name, hop, takes, given, num_workers=stage.workers)

    def _add_limited_hop(self, stage: LimitedHop, name: str, taken: Any, given: Any) -> None:
        async def hop(self: Any, ctx: Context, ev: Any) -> Any:
            ledger = self.ledger
            with ledger.body(ctx, name, ev.path, stage.workers), ledger.limited(2):
                await ledger.sleep(stage.seconds)
            return given(value=(ev.value + 1) % MODULUS, path=ev.path)

        takes = {"ctx": Context, "ev": taken}
        self._step(name, hop, takes, given, num_workers=stage.workers, limiter=self._limiter)

    def _add_fan(self, stage: Fan, name: str, taken: Any, given: Any) -> None:
        member = self._event()

        async def split(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path):
                await self.ledger.sleep(stage.seconds)
            return [
                member(value=(ev.value * 10 + number) % MODULUS, path=f"{ev.path}.{number}")
                for number in stage.members()
            ]

        self._step(name, split, {"ctx": Context, "ev": taken}, list[member])
        first = member
        if stage.drops:
            kept = first = self._event()

            async def drop(self: Any, ctx: Context, ev: Any) -> Any:
                with self.ledger.body(ctx, f"{name}d", ev.path, stage.workers):
                    await self.ledger.sleep(stage.seconds)
                if stage.is_dropped(int(ev.path.rpartition(".")[2])):
                    return None
                return kept(value=ev.value, path=ev.path)

            takes = {"ctx": Context, "ev": member}
            self._step(f"{name}d", drop, takes, kept | None, num_workers=stage.workers)
        last = self._add_all(stage.body, f"{name}_", first)
        self._step(
            f"{name}j",
            _join(f"{name}j", stage, given, lambda evs: sum(ev.value for ev in evs)),
            {"ctx": Context, "evs": list[last]},
            given,
        )

    def _add_race(self, stage: Race, name: str, taken: Any, given: Any) -> None:
        runner, winner = self._event(), self._event()

        async def split(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path):
                await self.ledger.sleep(0)
            return [runner(value=ev.value, path=f"{ev.path}.{n}") for n in range(stage.count)]

        async def race(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, f"{name}m", ev.path, stage.workers):
                await self.ledger.sleep(stage.seconds * (1 + int(ev.path.rpartition(".")[2])))
            return winner(value=ev.value, path=ev.path)

        def result(evs: list[Any]) -> int:
            return evs[0].value + len(evs)

        takes = {"ctx": Context, "ev": taken}
        self._step(name, split, takes, list[runner])
        takes = {"ctx": Context, "ev": runner}
        self._step(f"{name}m", race, takes, winner, num_workers=stage.workers)
        self._step(
            f"{name}j",
            _join(f"{name}j", stage, given, result),
            {"ctx": Context, "evs": Annotated[list[winner], Take(stage.take)]},
            given,
        )

    def _add_pair(self, stage: Pair, name: str, taken: Any, given: Any) -> None:
        left, right = self._event(), self._event()

        async def part(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path):
                ctx.send_event(right(value=ev.value + 1, path=ev.path))
                await self.ledger.sleep(stage.seconds)
            return left(value=ev.value, path=ev.path)

        async def meet(self: Any, ctx: Context, one: Any, other: Any) -> Any:
            with self.ledger.body(ctx, f"{name}j", one.path):
                await self.ledger.sleep(stage.seconds)
            return given(value=(one.value + other.value) % MODULUS, path=one.path)

        self._step(name, part, {"ctx": Context, "ev": taken}, left | right)
        self._step(f"{name}j", meet, {"ctx": Context, "one": left, "other": right}, given)

    def _add_twins(self, stage: Twins, name: str, taken: Any, given: Any) -> None:
        twin = self._event()

        async def part(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path):
                ctx.send_event(twin(value=ev.value, path=ev.path))
                await self.ledger.sleep(stage.seconds)
            return twin(value=ev.value + 1, path=ev.path)

        async def meet(self: Any, ctx: Context, first: Any, second: Any) -> Any:
            with self.ledger.body(ctx, f"{name}j", first.path):
                await self.ledger.sleep(stage.seconds)
            return given(value=(3 * first.value + second.value) % MODULUS, path=first.path)

        self._step(name, part, {"ctx": Context, "ev": taken}, twin)
        self._step(f"{name}j", meet, {"ctx": Context, "first": twin, "second": twin}, given)

    def _add_collect(self, stage: Collect, name: str, taken: Any, given: Any) -> None:
        item = self._event()

        async def send(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path):
                for number in range(stage.count):
                    ctx.send_event(item(value=ev.value + number, path=f"{ev.path}.{number}"))
                    await self.ledger.sleep(stage.seconds)

        async def collect(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, f"{name}c", ev.path, stage.workers):
                found = ctx.collect_events(ev, [item] * stage.count)
                await self.ledger.sleep(stage.seconds)
            if found is None:
                return None
            value = sum(event.value for event in found) % MODULUS
            return given(value=value, path=ev.path.rpartition(".")[0])

        self._step(name, send, {"ctx": Context, "ev": taken}, item | None)
        takes = {"ctx": Context, "ev": item}
        self._step(f"{name}c", collect, takes, given | None, num_workers=stage.workers)

    def _add_branch(
        self, stage: AwaitBranch | CancelBranch, name: str, taken: Any, given: Any
    ) -> None:
        side = self._event()
        cancels = isinstance(stage, CancelBranch)

        async def send(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers):
                branch = ctx.send_event(side(value=0, path=ev.path))
                if cancels:
                    await self.ledger.sleep(stage.seconds)
                    branch.cancel()
                else:
                    await branch.wait()
                    self.ledger.tick()
            return given(value=(ev.value + (5 if cancels else 3)) % MODULUS, path=ev.path)

        async def branch(self: Any, ctx: Context, ev: Any) -> None:
            with self.ledger.body(ctx, f"{name}b", ev.path):
                await self.ledger.sleep(50 if cancels else stage.seconds)

        takes = {"ctx": Context, "ev": taken}
        self._step(name, send, takes, given | side, num_workers=stage.workers)
        self._step(f"{name}b", branch, {"ctx": Context, "ev": side}, None, num_workers=100)

    def _add_ask(self, stage: Ask, name: str, taken: Any, given: Any) -> None:
        kind: Any = Word if stage.plain else Answer

        async def ask(self: Any, ctx: Context, ev: Any) -> Any:
            ledger = self.ledger
            with ledger.body(ctx, name, ev.path, stage.workers) as key:
                with ledger.waiting(ctx, name):
                    question = Question(key=key, plain=stage.plain)
                    answer = await ctx.wait_for_event(kind, question, requirements={"key": key})
                await ledger.sleep(stage.seconds)
            return given(value=(ev.value + answer.number) % MODULUS, path=ev.path)

        takes = {"ctx": Context, "ev": taken}
        self._step(name, ask, takes, given, num_workers=stage.workers, waits_for=[kind])

    def _add_flaky(self, stage: Flaky, name: str, taken: Any, given: Any) -> None:
        async def flaky(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers) as key:
                await self.ledger.sleep(stage.seconds)
                if ctx.retry_info().retry_number < stage.failures:
                    raise self.ledger.fail(key)
            return given(value=(ev.value + 11) % MODULUS, path=ev.path)

        retry = Retry(stop=stage.failures + 1, wait=stage.delay * self._scale, when=PlannedError)
        takes = {"ctx": Context, "ev": taken}
        self._step(name, flaky, takes, given, num_workers=stage.workers, retry=retry)

    def _add_handled(self, stage: Handled, name: str, taken: Any, given: Any) -> None:
        async def fail(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers) as key:
                await self.ledger.sleep(stage.seconds)
                raise self.ledger.fail(key)

        async def handle(self: Any, ctx: Context, ev: StepFailedEvent) -> Any:
            failed: Any = ev.input_event
            with self.ledger.body(ctx, f"{name}h", failed.path):
                await self.ledger.sleep(stage.seconds)
            return given(value=(failed.value + 7) % MODULUS, path=failed.path)

        takes: dict[str, Any] = {"ctx": Context, "ev": taken}
        self._step(name, fail, takes, given, num_workers=stage.workers)
        takes = {"ctx": Context, "ev": StepFailedEvent}
        self._step(f"{name}h", handle, takes, given, handles=name, max_recoveries=100)

    def _add_child(self, stage: Child, name: str, taken: Any, given: Any) -> None:
        child = Builder(f"{name}_", stage.body, self._limiter, self._scale, self._known)
        workflow = child.kind()(serializable=self._known)
        self.children += [workflow, *child.children]

        async def run_child(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path):
                result = await ctx.run_child(workflow, value=ev.value, path=ev.path)
                self.ledger.tick()
            return given(value=(result + 13) % MODULUS, path=ev.path)

        self._step(name, run_child, {"ctx": Context, "ev": taken}, given)

    def _add_edit(self, stage: Edit, name: str, taken: Any, given: Any) -> None:
        async def edit(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers):
                async with ctx.store.edit_state() as state:
                    edits = state.get("edits", 0)
                    await self.ledger.sleep(stage.seconds)
                    state.edits = edits + 1
            return given(value=(ev.value + 17) % MODULUS, path=ev.path)

        takes = {"ctx": Context, "ev": taken}
        self._step(name, edit, takes, given, num_workers=stage.workers)

    def _add_fatal(self, stage: Fatal, name: str, taken: Any, given: Any) -> None:
        async def fail(self: Any, ctx: Context, ev: Any) -> Any:
            with self.ledger.body(ctx, name, ev.path, stage.workers) as key:
                await self.ledger.sleep(stage.seconds)
                if stage.hits(ev.path):
                    raise self.ledger.fail(key)
            return given(value=ev.value, path=ev.path)

        takes = {"ctx": Context, "ev": taken}
        self._step(name, fail, takes, given, num_workers=stage.workers)


def _join(name: str, stage: Stage, given: Any, result: Callable[[list[Any]], int]) -> Any:
    async def join(self: Any, ctx: Context, evs: Any) -> Any:
        path = evs[0].path.rpartition(".")[0] if evs else "r"  # only the outermost may be empty
        with self.ledger.body(ctx, name, path):
            await self.ledger.sleep(stage.seconds)
        return given(value=result(evs) % MODULUS, path=path)

    return join
