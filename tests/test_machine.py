"""The machine without an event loop: random graphs and orders, compared with a simple model.

The machine keeps counters of the deliveries in each fan-out and of the workers at each step, and
removes branches that no step holds any more. The model does neither. It has a list of tokens, each
in a chain of frames (fan-outs, branches, recoveries). It searches all of them to find which tokens
wait, which frames are over or cancelled, and what a join gets. The test compares the two after
every call of the machine.
"""

from __future__ import annotations

import gc
import inspect
from collections import Counter, deque
from itertools import permutations
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sluicegate import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Take,
    Workflow,
    WorkflowRuntimeError,
    catch_error,
    step,
)
from sluicegate._definition.checks import find_faults
from sluicegate._definition.graph import Graph, graph_of
from sluicegate._engine.joins import EventBuffer, PairJoin
from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.machine import Delivery, Machine
from sluicegate._engine.stalls import expects_input, missing
from sluicegate._engine.step_queue import StepQueue
from sluicegate._engine.waits import Wait
from tests.helpers import calls_of


def begin(machine, event):
    """Take the start event; return the first delivery."""
    machine.receive(event)
    return machine.next_start()


class Inbox:
    """An event loop's channel, as a deque."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.closed = False

    def put(self, delivery: Any) -> None:
        assert not self.closed
        self.items.append(delivery)

    def take(self) -> Any:
        return self.items.popleft()

    def close(self) -> None:
        self.items.clear()
        self.closed = True


# -- random graphs -----------------------------------------------------------------------------------


class Plan:
    """A workflow class put together from random blocks, and the facts that the model needs."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.members: dict[str, Any] = {}
        #: What each step may return: event classes, "list" for its fan-out, None.
        self.outputs: dict[str, list[Any]] = {}
        #: What the fan-out of a step consists of, and the join that it ends in (or None).
        self.fans: dict[str, tuple[list[type[Event]], str | None]] = {}
        #: Who takes each class: (step, "one" | "list" | "slot"), and the slots of a join.
        self.takers: dict[type[Event], list[tuple[str, str]]] = {}
        self.slots: dict[str, list[type[Event]]] = {}
        self.limits: dict[str, int] = {}
        self.loops: set[str] = set()
        #: Of how many events a join has enough; the handler of a step.
        self.takes: dict[str, int] = {}
        self.handlers: dict[str, str] = {}
        # Mostly there is a fan-out to begin with, or few graphs would have much going on in them.
        first = self.fan(StartEvent, depth=0) if chooser.number(0, 3) else StartEvent
        last = self.chain(first, depth=0)
        self.add("last", [last], "one", [StopEvent, None])
        self.workflow = type("Random", (Workflow,), self.members)

    def event(self) -> type[Event]:
        return type(f"E{len(self.takers)}x{len(self.members)}", (Numbered,), {})

    def add(
        self,
        name: str,
        takes: list[type[Event]],
        how: str,
        outputs: list[Any],
        fans: list[type[Event]] | None = None,
        join: str | None = None,
        first: int = 0,
    ) -> None:
        union = _union(takes)
        if how == "slot":
            params = {f"e{n}": kind for n, kind in enumerate(takes)}
            self.slots[name] = takes
        else:
            hint: Any = list[union] if how == "list" else union  # type: ignore[valid-type]
            if first:
                hint = Annotated[hint, Take(first)]
                self.takes[name] = first
            params = {"ev": hint}
        for kind in takes:
            self.takers.setdefault(kind, []).append((name, how))
        returned = [None if out is None else out for out in outputs if out != "list"]
        if fans:
            returned.append(list[_union(fans)])  # type: ignore[misc]
            self.fans[name] = (fans, join)
        self.outputs[name] = outputs
        self.limits[name] = limit = self.chooser.number(1, 3)
        self.members[name] = step(num_workers=limit)(_method(name, params, _union(returned)))

    def name(self, what: str) -> str:
        return f"{what}{len(self.members)}"

    def chain(self, kind: type[Event], depth: int) -> type[Event]:
        """Add one to three blocks, one after the other."""
        for _ in range(self.chooser.number(1, 3 if depth < 2 else 1)):
            kind = self.block(kind, depth)
        return kind

    def block(self, kind: type[Event], depth: int) -> type[Event]:
        simple = ["plain", "ending", "loop", "choice", "risky"]
        # One of each pairs up what is in one fan-out, or in none; fan-outs may be nested twice.
        what = self.chooser.one_of([*simple, "fan", "fan", "pair", "both"] if depth < 2 else simple)
        return getattr(self, what)(kind, depth)

    def plain(self, kind: type[Event], depth: int) -> type[Event]:
        made = self.event()
        self.add(self.name("plain"), [kind], "one", [made])
        return made

    def ending(self, kind: type[Event], depth: int) -> type[Event]:
        made = self.event()
        self.add(self.name("ending"), [kind], "one", [made, None])
        return made

    def risky(self, kind: type[Event], depth: int) -> type[Event]:
        """A step and the handler of its failures, which returns the same class as the step."""
        made = self.event()
        name, handler = self.name("risky"), self.name("risky") + "caught"
        self.add(name, [kind], "one", [made])
        self.handlers[name] = handler
        self.outputs[handler] = [made, None]
        self.limits[handler] = 1
        method = _method(handler, {"ev": StepFailedEvent}, made | None)
        self.members[handler] = catch_error(for_steps=[name], max_recoveries=3)(method)
        return made

    def loop(self, kind: type[Event], depth: int) -> type[Event]:
        again, made = self.event(), self.event()
        name = self.name("loop")
        self.loops.add(name)
        self.add(name, [kind, again], "one", [made, again])
        return made

    def choice(self, kind: type[Event], depth: int) -> type[Event]:
        left, right, made = self.event(), self.event(), self.event()
        self.add(self.name("choice"), [kind], "one", [left, right])
        self.add(self.name("left"), [left], "one", [made])
        self.add(self.name("right"), [right], "one", [made, None])
        return made

    def fan(self, kind: type[Event], depth: int) -> type[Event]:
        """A list, a block for each class in it, and a join of all their results."""
        name = self.name("fan")
        members = [self.event() for _ in range(self.chooser.number(1, 2))]
        self.members[name] = None  # holds its place; the join is made last
        results = [self.chain(m, depth + 1) if self.chooser.number(0, 3) else m for m in members]
        join, made = self.name("join"), self.event()
        first = self.chooser.number(1, 4) if not self.chooser.number(0, 2) else 0
        self.add(join, results, "list", [made], first=first)
        self.add(name, [kind], "one", ["list"], members, join)
        return made

    def pair(self, kind: type[Event], depth: int) -> type[Event]:
        """A list of two classes, with a join of one event of each inside the join of the list."""
        name = self.name("pairfan")
        members = [self.event(), self.event()]
        self.members[name] = None
        left = self.chain(members[0], depth=2)
        right = self.chain(members[1], depth=2)
        paired, made = self.event(), self.event()
        self.add(self.name("slots"), [left, right], "slot", [paired, None])
        join = self.name("join")
        self.add(join, [paired], "list", [made])
        self.add(name, [kind], "one", ["list"], members, join)
        return made

    def both(self, kind: type[Event], depth: int) -> type[Event]:
        """Two steps that take the same event, and a join of one result of each."""
        left, right, made = self.event(), self.event(), self.event()
        self.add(self.name("left"), [kind], "one", [left])
        self.add(self.name("right"), [kind], "one", [right])
        self.add(self.name("slots"), [left, right], "slot", [made])
        return made


class Numbered(Event):
    n: int = 0


class Unmade(HumanResponseEvent):
    """An answer that no step takes. Some of its values can be indexed, and some cannot."""

    n: int = 0
    tags: Any = None


def _union(kinds: list[Any]) -> Any:
    union = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return union


def _method(name: str, params: dict[str, Any], returns: Any) -> Any:
    async def body(self, *args): ...

    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["self", *params]
    body.__signature__ = inspect.Signature([inspect.Parameter(p, either) for p in names])
    body.__annotations__ = {**params, "return": returns}
    body.__name__ = body.__qualname__ = name
    return body


class Chooser:
    """The source of all random choices, which Hypothesis can shrink."""

    def __init__(self, random: Any) -> None:
        self.random = random

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def one_of(self, options: list[Any]) -> Any:
        return options[self.number(0, len(options) - 1)]


# -- the model -------------------------------------------------------------------------------------------


class Frame:
    """A fan-out with the events that its join has got, a branch, or a recovery by a handler."""

    def __init__(self, parent: Frame | None, *, join: str = "", handler: str = "") -> None:
        self.parent = parent
        self.join = join
        self.handler = handler
        self.got: list[Event] | None = [] if join else None
        self.is_cancelled = parent is not None and parent.is_cancelled
        #: Whether its event is kept back for now.
        self.is_kept = False

    def chain(self):
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.parent

    def fan_outs(self) -> list[Frame]:
        return [frame for frame in self.chain() if frame.join]


class Token:
    """A delivery: it waits at a step, runs there, or is delayed."""

    def __init__(self, at: str, carried: Any, frame: Frame | None) -> None:
        self.at = at
        self.carried = carried
        self.frame = frame
        self.state = "waits"
        #: Whether it has given up its place, and has none again.
        self.is_away = False
        #: What it has sent that is kept back.
        self.kept: list[tuple[Event, BranchNode, Frame]] = []

    @property
    def is_cancelled(self) -> bool:
        return self.frame is not None and self.frame.is_cancelled

    def is_in(self, frame: Frame) -> bool:
        return self.frame is not None and frame in self.frame.chain()


class Model:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tokens: list[Token] = []
        self.frames: list[Frame] = []
        #: The open waits, in the order in which they began; the event of each answered wait.
        self.waits: list[Wait] = []
        self.got: dict[Wait, Event] = {}
        #: The waits whose steps queue for a place, in that order.
        self.returning: list[Wait] = []
        #: The waits whose steps have given up their place.
        self.away: dict[Wait, Token] = {}
        self.early: list[Event] = []
        self.parts: dict[Any, dict[type[Event], list[tuple[Event, Frame | None]]]] = {}
        self.fired: Counter[str] = Counter()

    def open(self, parent: Frame | None, **options: Any) -> Frame:
        self.frames.append(Frame(parent, **options))
        return self.frames[-1]

    def add(self, name: str, carried: Any, frame: Frame | None) -> None:
        if frame is None or not frame.is_cancelled:
            self.tokens.append(Token(name, carried, frame))

    def deliver(self, carried: Event, frame: Frame | None) -> None:
        for wait in [wait for wait in self.waits if wait.fits(carried)]:
            self.answer(wait, carried)
        if frame is not None and frame.is_cancelled:
            return  # by an event before it in the same list, the first of a race
        for name, how in self.plan.takers[type(carried)]:
            if how == "one":
                self.add(name, carried, frame)
            elif how == "list":
                [ending] = [f for f in frame.chain() if f.join == name][:1]
                self.collect(ending, carried)
            else:
                fan_out = next(iter(frame.fan_outs()), None) if frame else None
                parts = self.parts.setdefault((name, fan_out), {})
                parts.setdefault(type(carried), []).append((carried, frame))
                kinds = self.plan.slots[name]
                if all(parts.get(kind) for kind in kinds):
                    pairs = [parts[kind].pop(0) for kind in kinds]
                    one_of_each = tuple(part for part, _ in pairs)
                    self.add(name, one_of_each, self.meet([f for _, f in pairs]))

    def give_first(self, carried: Event, *, in_front: bool = False) -> None:
        """Give an answer from outside to the oldest wait that it fits, or keep it."""
        for wait in self.waits:
            if wait.fits(carried):
                return self.answer(wait, carried)
        self.early.insert(0 if in_front else len(self.early), carried)
        return None

    def answer(self, wait: Wait, carried: Event) -> None:
        self.waits.remove(wait)
        self.got[wait] = carried
        self.reclaim(wait)

    def reclaim(self, wait: Wait) -> None:
        """Queue a step that gave up its place for this wait, because it can continue."""
        if wait in self.away:
            self.returning.append(wait)

    def settle_places(self) -> None:
        """Note which steps have a place again; those that have queued longest come first."""
        let_in = [wait for wait in self.returning if not wait.is_away]
        for wait in let_in:
            name = self.away[wait].at
            line = [other for other in self.returning if self.away[other].at == name]
            assert line[0] is wait, "they return in order"
            self.come_back(wait)

    def come_back(self, wait: Wait) -> None:
        self.away.pop(wait).is_away = False
        if wait in self.returning:
            self.returning.remove(wait)

    def collect(self, ending: Frame, carried: Event) -> None:
        if ending.got is None:
            return
        ending.got.append(carried)
        if len(ending.got) == self.plan.takes.get(ending.join):
            self.fire(ending)
            self.cancel(ending)

    def fire(self, ending: Frame) -> None:
        self.fired[ending.join] += 1
        self.add(ending.join, ending.got, ending.parent)
        ending.got = None

    def meet(self, frames: list[Frame | None]) -> Frame | None:
        """Find the innermost open frame that contains all frames."""
        chains = [list(frame.chain()) if frame else [] for frame in frames]
        shared = [f for f in chains[0] if f in self.frames and all(f in c for c in chains)]
        return next(iter(shared), None)

    def cancel(self, frame: Frame) -> None:
        for inner in self.frames:
            if frame in inner.chain():
                inner.is_cancelled = True
        self.tokens = [t for t in self.tokens if not (t.state == "waits" and t.is_in(frame))]

    def finish(self, token: Token, result: Any) -> None:
        name, frame = token.at, token.frame
        if isinstance(result, list) and not token.is_cancelled:
            inner = self.open(frame, join=self.plan.fans[name][1])
            for carried in result:
                self.deliver(carried, inner)
        elif result is not None and not token.is_cancelled:
            self.deliver(result, frame)
        self.tokens.remove(token)
        self.close_frames()

    def close_frames(self) -> None:
        """Close the frames in which nothing is left, innermost first."""
        for frame in reversed(self.frames):
            inside = any(token.is_in(frame) for token in self.tokens)
            within = any(f is not frame and frame in f.chain() for f in self.frames)
            if not (inside or within or frame.is_kept):
                self.frames.remove(frame)
                if frame.got is not None and not frame.is_cancelled:
                    self.fire(frame)
                return self.close_frames()
        return None

    def waiting(self, name: str) -> list[Token]:
        return [t for t in self.tokens if t.at == name and t.state == "waits"]

    def running(self, name: str) -> list[Token]:
        return [t for t in self.tokens if t.at == name and t.state == "runs"]

    def start(self, name: str, carried: Any) -> Token:
        """Check that ``carried``, given to a worker, is the oldest delivery that waits, and start it."""
        # Steps that got their place earlier in the same call are noted after it.
        queued = [wait for wait in self.returning if wait.is_away]
        assert not any(self.away[wait].at == name for wait in queued), "they come first"
        oldest = self.waiting(name)[0]
        if isinstance(carried, Event):
            assert oldest.carried is carried
        else:
            assert type(oldest.carried) is type(carried)
            assert len(oldest.carried) == len(carried)
            assert all(one is other for one, other in zip(oldest.carried, carried, strict=True))
        assert self.at_work(name) < self.plan.limits[name]
        oldest.state = "runs"
        return oldest

    def at_work(self, name: str) -> int:
        """Count the running tokens that have a place."""
        return sum(not token.is_away for token in self.running(name))


class Woken:
    """A waiter for the end of a branch, which counts how often it was woken."""

    def __init__(self) -> None:
        self.count = 0

    def wake(self) -> None:
        self.count += 1


class Handle:
    """A step's handle on a branch that it has sent."""

    def __init__(self, node: BranchNode, frame: Frame) -> None:
        self.node = node
        self.frame = frame
        self.waiters: list[Woken] = []


class Driver:
    """Runs the machine like the runner does, in a random order, and compares it with the model."""

    def __init__(self, plan: Plan, chooser: Chooser) -> None:
        self.plan = plan
        self.chooser = chooser
        self.model = Model(plan)
        self.graph = Graph(plan.workflow)
        assert find_faults(self.graph) == ()
        self.published: list[Event] = []
        self.inboxes: list[Inbox] = []
        self.machine = Machine(
            self.graph, self.open_inbox, self.published.append, self.cancel_scope
        )
        #: Workers that are about to start, and those that run a step.
        self.starting: list[StepQueue] = []
        self.running: list[tuple[Delivery, Token]] = []
        self.delayed: list[tuple[StepQueue, Token]] = []
        self.handles: list[Handle] = []
        #: Which waits each running step has begun and not ended.
        self.waits: dict[Wait, Token] = {}
        #: What was cancelled while it ran.
        self.told: set[Token] = set()
        self.made = 0
        #: How many were cancelled without a place in this turn; how many have had one, by step.
        self.forced: Counter[str] = Counter()
        self.before: Counter[str] = Counter()

    def open_inbox(self) -> Inbox:
        self.inboxes.append(Inbox())
        return self.inboxes[-1]

    def cancel_scope(self, scope: Token, reason: str) -> None:
        assert scope.state in ("runs", "delayed")
        self.told.add(scope)

    def run(self, turns: int) -> None:
        start = StartEvent()
        self.model.deliver(start, None)
        self.note_delivery(begin(self.machine, start))
        self.compare()
        while self.starting or self.running or self.delayed:
            turns -= 1
            self.turn(hurry=turns <= 0)
            if self.machine.stop is not None:
                return
            self.compare()
        self.check_the_end()

    def turn(self, *, hurry: bool) -> None:
        what = self.chooser.number(0, 15)
        if self.starting and (not self.running or what < 6):
            index = self.chooser.number(0, len(self.starting) - 1)
            self.note_delivery(self.machine.take(self.starting.pop(index)))
        elif self.delayed and (not self.running or what == 6):
            self.retry()
        elif self.handles and what == 7 and not hurry:
            self.use_handle()
        elif self.running and what in (8, 9) and not hurry:
            self.send()
        elif self.running and what == 10 and not hurry:
            self.fail()
        elif self.running and what in (11, 12) and not hurry:
            self.begin_wait()
        elif self.waits and what == 13:
            self.end_wait(self.chooser.one_of(list(self.waits)))
        elif self.waits and what == 14:
            self.receive()
        elif self.running:
            self.finish(hurry=hurry)

    def note_delivery(self, delivery: Delivery | None) -> None:
        """Note the delivery that a worker was given, and the workers to be started beside it."""
        self.model.settle_places()
        if delivery is not None:
            queue, carried, node = delivery
            token = self.model.start(queue.step.name, carried)
            if node is not None and node.cancel_record is not None:
                node.cancel_record.running[token] = None
            self.running.append((delivery, token))
        self.starting += self.machine.startable
        self.machine.startable.clear()

    def ends(self, index: int) -> tuple[StepQueue, Any, BranchNode | None, Token]:
        for wait, waiting in [*self.waits.items()]:
            if waiting is self.running[index][1]:
                self.end_wait(wait, may_be_late=False)
        for wait, waiting in [*self.model.away.items()]:
            if waiting is self.running[index][1]:
                self.force(wait)
        (queue, carried, node), token = self.running.pop(index)
        if node is not None and node.cancel_record is not None:
            del node.cancel_record.running[token]
        return queue, carried, node, token

    def begin_wait(self) -> None:
        """Have a running step wait for an event of any class, in its own task or in another."""
        _, token = self.chooser.one_of(self.running)
        kind = self.chooser.one_of([*self.plan.takers, Unmade])
        needs: dict[str, Any] = {}
        if not self.chooser.number(0, 2):
            needs["n"] = self.made + self.chooser.number(1, 3)
        if not self.chooser.number(0, 3):
            needs["tags"] = self.chooser.one_of([[], [1], "plain"])
        wait = Wait(kind, needs, Woken())
        wait.is_outside = self.graph.is_answerable(kind)
        gives_place = not token.is_away and bool(self.chooser.number(0, 2))
        if gives_place:
            wait.queue = self.machine.queues[self.graph.index[token.at]]
        self.waits[wait] = token
        found = next((early for early in self.model.early if wait.fits(early)), None)
        if found is None:
            self.model.waits.append(wait)
        else:
            self.model.early.remove(found)
            self.model.got[wait] = found
        if gives_place and found is None:
            token.is_away = True
            self.model.away[wait] = token
        self.machine.begin_wait(token, wait)
        assert wait.is_away == token.is_away or not gives_place
        self.note_delivery(None)

    def force(self, wait: Wait) -> None:
        """Cancel a step that has no place, so that it continues at once."""
        event("was cancelled in the line" if wait.is_queued else "was cancelled as it was away")
        name = self.model.away[wait].at
        self.forced[name] += 1
        self.model.come_back(wait)
        self.machine.force_place(wait)

    def end_wait(self, wait: Wait, *, may_be_late: bool = True) -> None:
        """Have a step continue with the event that it waited for, or give up.

        A step without a place is cancelled, or its wait times out and it queues for a place.
        """
        is_late = wait.is_away and wait.event is None and may_be_late and self.chooser.number(0, 1)
        if wait.is_away and not is_late:
            self.force(wait)
        del self.waits[wait]
        got = self.model.got.pop(wait, None)
        is_taken = bool(self.chooser.number(0, 2))
        if got is None:
            self.model.waits.remove(wait)
        elif wait.is_from_outside and not is_taken:
            self.model.give_first(got, in_front=True)
        event("continued with an event" if got is not None else "gave a wait up")
        self.machine.end_wait(wait, is_taken=is_taken)
        if is_late:
            event("waited for too long")
            self.model.reclaim(wait)
            self.machine.reclaim_place(wait)
        self.note_delivery(None)

    def receive(self) -> None:
        """Receive an answer from outside."""
        self.made += 1
        sent = Unmade(n=self.made, tags=self.chooser.one_of([[], [1], "plain"]))
        self.model.give_first(sent)
        self.machine.receive(sent)

    def event(self, kind: type[Event]) -> Event:
        self.made += 1
        return kind() if kind is StopEvent else kind(n=self.made)

    def send(self) -> None:
        """Have a running step send an event that it declares, at once or kept back."""
        (queue, _, node), token = self.chooser.one_of(self.running)
        kinds = [k for k in self.plan.outputs[token.at] if isinstance(k, type)]
        kinds = [k for k in kinds if k is not StopEvent]
        if not kinds or token.at in self.plan.loops:
            return
        sent = self.event(self.chooser.one_of(kinds))
        keeps = not self.chooser.number(0, 3)
        branch = self.machine.open_branch(node, is_kept_back=keeps)
        frame = self.model.open(token.frame)
        if self.chooser.number(0, 2):
            self.handles.append(Handle(branch, frame))
        else:
            branch.is_held = False
        if keeps:
            frame.is_kept = True
            token.kept.append((sent, branch, frame))
        else:
            self.let_out(queue, sent, branch, frame)

    def let_out(self, queue: StepQueue, sent: Event, branch: BranchNode, frame: Frame) -> None:
        route = self.machine.check_sendable(queue.index, sent, None)
        frame.is_kept = False
        if not frame.is_cancelled:
            self.model.deliver(sent, frame)
        self.model.close_frames()
        self.machine.send(route, sent, branch, None)
        self.note_delivery(None)

    def use_handle(self) -> None:
        """Cancel a branch, wait for it, or drop its handle."""
        handle = self.chooser.one_of(self.handles)
        what = self.chooser.number(0, 3)
        if what == 0:
            self.handles.remove(handle)
            handle.node.is_held = False
        elif what == 1:
            if not handle.node.is_over:
                handle.waiters.append(Woken())
                cancel_record = handle.node.begin_tracking(handle.node.live)
                cancel_record.waiters.append(handle.waiters[-1])
        else:
            self.cancel(handle)

    def cancel(self, handle: Handle) -> None:
        inside = [t for t in self.model.tokens if t.is_in(handle.frame)]
        self.told.clear()
        is_new = not (handle.node.is_over or handle.node.is_cancelled)
        self.model.cancel(handle.frame)
        self.model.close_frames()
        self.machine.cancel(handle.node, "the test wants it")
        event("cancelled a branch" if inside else "cancelled nothing")
        assert self.told == {t for t in inside if is_new and t.state in ("runs", "delayed")}
        if is_new and any(t.state == "waits" for t in inside):
            event("cancelled what waits")
        self.note_delivery(None)

    def fail(self) -> None:
        """Have a running step fail: it is retried later, or its handler recovers it."""
        index = self.chooser.number(0, len(self.running) - 1)
        (_, _, node), token = self.running[index]
        name = token.at
        if token.is_cancelled or token.carried in ((), []):
            return
        machine, model = self.machine, self.model
        handler = self.plan.handlers.get(name)
        queue, carried, node, token = self.ends(index)
        for _, branch, frame in token.kept:
            frame.is_kept = False
            machine.release(branch)
        token.kept.clear()
        if handler is not None and self.chooser.number(0, 1):
            failed = StepFailedEvent(
                step_name=name,
                input_event=None,
                exception=ValueError(),
                exceptions=(),
                attempts=1,
                elapsed_seconds=0.0,
            )
            if machine.recoveries(self.graph.index[handler], node) >= 3:
                model.finish(token, None)
                self.note_delivery(machine.drop(queue, node))
                return
            model.add(handler, failed, model.open(token.frame, handler=handler))
            model.tokens.remove(token)
            model.close_frames()
            machine.recover(self.graph.index[handler], failed, node)
            self.note_delivery(machine.drop(queue, node))
            event("recovered")
        else:
            token.state = "delayed"
            model.close_frames()
            again = StartEvent(again=carried)
            token.carried = again
            if node is not None and node.cancel_record is not None:
                node.cancel_record.running[token] = None
            self.delayed.append((queue, token))
            token.node = node  # type: ignore[attr-defined]
            self.note_delivery(machine.delay(queue, again, node))

    def retry(self) -> None:
        index = self.chooser.number(0, len(self.delayed) - 1)
        queue, token = self.delayed.pop(index)
        node = token.node  # type: ignore[attr-defined]
        if node is not None and node.cancel_record is not None:
            del node.cancel_record.running[token]
        self.model.tokens.remove(token)
        if not token.is_cancelled:
            token.state = "waits"
            self.model.tokens.append(token)
        self.model.close_frames()
        self.machine.retry(queue, token.carried)
        self.note_delivery(None)
        event("tried again")

    def finish(self, *, hurry: bool) -> None:
        index = self.chooser.number(0, len(self.running) - 1)
        queue, _, node, token = self.ends(index)
        for sent, branch, frame in token.kept:
            self.let_out(queue, sent, branch, frame)
        result = self.result(token.at, hurry=hurry)
        if not isinstance(result, StopEvent) or token.is_cancelled:
            self.model.finish(token, result)
        delivery = self.machine.finish(queue, node, result)
        if isinstance(result, StopEvent) and not token.is_cancelled:
            assert self.machine.stop is result
            assert delivery is None
            event("stopped")
            return
        assert self.machine.stop is None
        self.note_delivery(delivery)

    def result(self, name: str, *, hurry: bool) -> Any:
        outputs = self.plan.outputs[name]
        if "list" in outputs:
            kinds, _ = self.plan.fans[name]
            size = 0 if hurry else self.chooser.number(0, 6)
            return [self.event(self.chooser.one_of(kinds)) for _ in range(size)]
        if StopEvent in outputs:
            # Rarely stop: the machine is not used after a stop event.
            return None if hurry or self.chooser.number(0, 30) else self.event(StopEvent)
        if name in self.plan.loops:
            return self.event(outputs[not hurry and not self.chooser.number(0, 2)])
        kinds = [kind for kind in outputs if kind is not None]
        if None in outputs and not self.chooser.number(0, 4):
            return None
        return self.event(self.chooser.one_of(kinds))

    def compare(self) -> None:
        """Compare: nothing is lost, no delivery waits without need, and all counts agree."""
        model, machine = self.model, self.machine
        model.settle_places()
        assert machine.alive == len(model.tokens)
        for queue in machine.queues:
            name = queue.step.name
            waiting = [token.carried for token in model.waiting(name)]
            about_to_start = self.starting.count(queue)
            lined_up = [*(queue.ready or ()), *(queue.inbox.items if queue.inbox else ())]
            queued = [wait for wait in model.returning if model.away[wait].at == name]
            assert [*(queue.returning or ())] == queued
            assert queue.away == sum(token.at == name for token in model.away.values())
            too_many = max(queue.running - queue.limit, 0)
            assert queue.pending == len(lined_up) + len(queued) + too_many
            assert queue.in_inbox == (len(queue.inbox.items) if queue.inbox else 0)
            assert len(waiting) == sum(g is None or not g.is_cancelled for _, g in lined_up)
            assert queue.running == model.at_work(name) + about_to_start
            # Only a cancelled invocation runs beyond the limit, and the next to end makes no room.
            most = max(queue.limit, self.before[name] + self.forced[name])
            assert queue.running <= most
            assert queue.limit == self.plan.limits[name]
            self.before[name] = queue.running
            # A delivery waits only while its worker starts or all workers are busy.
            assert about_to_start >= len(waiting) or queue.running >= queue.limit
            assert not queued or queue.running >= queue.limit
        self.forced.clear()
        assert machine.held_up == sum(wait.event is not None for wait in model.returning)
        for (_, _, node), token in self.running:
            around = list(node.upward()) if node is not None else []
            frames = list(token.frame.chain()) if token.frame is not None else []
            joins = [[self.graph.steps[i].name for i in g.joins] for g in around if g.joins]
            assert joins == [[f.join] for f in frames if f.join]
            assert token.is_cancelled == (node is not None and node.is_cancelled)
            assert not any(g.is_over for g in around)
            for handler in () if self.plan.slots else set(self.plan.handlers.values()):
                known = self.machine.recoveries(self.graph.index[handler], node)
                assert known == sum(f.handler == handler for f in frames)
            # A branch that no step holds is removed with the next delivery.
            assert len(around) <= len(frames)
        assert list(machine.waits) == model.waits
        assert {wait: wait.event for wait in machine.answered} == model.got
        assert all(one is other for one, other in zip(machine.early, model.early, strict=True))
        assert machine.resting == Counter(self.waits[wait] for wait in model.waits)
        assert machine.outside_waits == sum(wait.is_outside for wait in model.waits)
        assert (machine.strict, machine.strict_waits, machine.branch_waits) == (0, 0, 0)
        for handle in self.handles:
            assert handle.node.is_over == (handle.frame not in model.frames)
            assert handle.node.is_cancelled == handle.frame.is_cancelled
            expected = 1 if handle.node.is_over else 0
            assert all(waiter.count == expected for waiter in handle.waiters)

    def check_the_end(self) -> None:
        """Nothing is alive, running or pending, and every fan-out is closed."""
        assert self.model.tokens == []
        assert self.model.frames == []
        assert self.machine.alive == 0
        for queue in self.machine.queues:
            assert (queue.running, queue.pending) == (0, 0)
            assert not queue.delayed
        assert all(not inbox.items for inbox in self.inboxes)
        for handle in self.handles:
            assert (handle.node.live, handle.node.is_over) == (0, True)
            cancel_record = handle.node.cancel_record
            assert cancel_record is None or not (
                cancel_record.children or cancel_record.running or cancel_record.queued
            )
        # Also what a fan-out left unpaired when it ended is told, for it leads nowhere.
        lacking = {
            name
            for (name, frame), parts in self.model.parts.items()
            if any(parts.values()) and not (frame is not None and frame.is_cancelled)
        }
        told = {text.split()[0].partition(".")[2] for text in missing(self.machine)}
        assert told == lacking
        assert not expects_input(self.machine)
        assert self.published == []
        event(f"joins fired: {min(sum(self.model.fired.values()), 20)}")
        event(f"events: {self.made // 20 * 20}+")
        self.machine.close()
        assert all(inbox.closed for inbox in self.inboxes)


def check_any_order(random) -> None:
    chooser = Chooser(random)
    plan = Plan(chooser)
    plan.workflow()
    Driver(plan, chooser).run(turns=chooser.number(10, 300))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
def test_machine_agrees_with_the_model_on_any_small_graph_in_any_order(random):
    """P14, P16: no branch is lost, no join is early or fires twice, no limit is exceeded."""
    check_any_order(random)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=True))
def test_machine_agrees_with_the_model_on_any_large_graph_in_any_order(random):
    """P14, P16: the same with evenly distributed choices, which make far more events."""
    check_any_order(random)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_graph_finds_the_join_of_every_fan_out(random):
    """Each fan-out of a random graph ends in its own join, at whatever depth."""
    plan = Plan(Chooser(random))
    graph = graph_of(plan.workflow)

    for i, read in enumerate(graph.steps):
        _, join = plan.fans.get(read.name, (None, None))
        assert graph.joins[i] == (() if join is None else (graph.index[join],))


# -- one by one --------------------------------------------------------------------------------------------


class A(Event):
    n: int = 0


class SubA(A):
    pass


class SubSubA(SubA):
    pass


class B(Event):
    n: int = 0


class Mixed(A, B):
    pass


class C(Event):
    n: int = 0


def machine_of(workflow: type[Workflow], published: list[Event] | None = None) -> Machine:
    publish = [].append if published is None else published.append
    return Machine(graph_of(workflow), Inbox, publish)


class Wide(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[A]: ...
    @step(num_workers=2)
    async def work(self, ev: A) -> B | None: ...
    @step
    async def join(self, evs: list[B]) -> StopEvent: ...


def test_workers_are_started_up_to_the_limit_and_the_rest_waits_in_order():
    """P14: of five events two are taken, by two workers; the others keep their order."""
    machine = machine_of(Wide)
    queue, _, node = begin(machine, StartEvent())
    events = [A(n=n) for n in range(5)]

    first = machine.finish(queue, node, events)

    work = machine.queues[1]
    assert first[:2] == (work, events[0])
    assert machine.startable == [work]
    machine.startable.clear()
    delivery = machine.take(work)
    assert delivery[1] is events[1]
    assert (work.running, work.pending) == (2, 3)
    taken = []
    while delivery is not None:
        delivery = machine.finish(*delivery[::2], None)
        if delivery is not None:
            assert delivery[0] is work
            taken.append(delivery[1].n)
        assert machine.startable == []
    assert taken == [2, 3, 4]
    assert (work.running, work.pending) == (1, 0)


def test_worker_that_is_quicker_takes_the_oldest_and_a_late_one_is_sent_home():
    """P14: the first free worker takes the oldest delivery that waits for a worker to start."""
    machine = machine_of(Wide)
    queue, _, node = begin(machine, StartEvent())
    delivery = machine.finish(queue, node, [A(n=n) for n in range(4)])
    late = machine.startable.pop()

    taken = []
    for _ in range(3):
        delivery = machine.finish(*delivery[::2], None)
        taken.append(delivery[1].n)

    assert taken == [1, 2, 3]
    assert machine.take(late) is None
    assert late.running == 1


def test_join_fires_once_with_everything_when_the_last_branch_has_ended():
    """A branch that ends with None counts as ended, and the join waits for each."""
    machine = machine_of(Wide)
    queue, _, node = begin(machine, StartEvent())
    first = machine.finish(queue, node, [A(n=n) for n in range(3)])
    second = machine.take(machine.startable.pop())
    results = [B(n=0), B(n=2)]

    third = machine.finish(*first[::2], results[0])
    assert third[0] is machine.queues[1]
    assert machine.finish(*second[::2], None) is None
    joined = machine.finish(*third[::2], results[1])

    assert joined == (machine.queues[2], results, None)
    assert machine.alive == 1


def test_empty_list_fires_the_join_with_nothing():
    """An empty list ends its fan-out at once."""
    machine = machine_of(Wide)
    queue, _, node = begin(machine, StartEvent())

    assert machine.finish(queue, node, []) == (machine.queues[2], [], None)


def test_single_successor_is_handed_over_without_an_inbox():
    """P16: a chain passes through no channel, and one delivery is alive all the time."""

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A: ...
        @step
        async def end(self, ev: A) -> A | StopEvent: ...

    def through(count: int) -> Machine:
        machine = Machine(graph_of(Chain), open_inbox, [].append)
        delivery = begin(machine, StartEvent())
        for n in range(count):
            delivery = machine.finish(*delivery[::2], A(n=n))
            assert delivery[1].n == n
            assert machine.alive == 1
            started.extend(machine.startable)
            machine.startable.clear()
        assert machine.finish(*delivery[::2], StopEvent(result=1)) is None
        assert machine.stop.result == 1
        return machine

    def open_inbox() -> Inbox:
        opened.append(Inbox())
        return opened[-1]

    opened: list[Inbox] = []
    started: list[StepQueue] = []
    through(3)  # the ways are looked up when they are first gone
    opened.clear()
    started.clear()

    through(100)

    assert opened == []
    assert started == []


# -- groups ------------------------------------------------------------------------------------------------


class Loop(Workflow):
    @step(num_workers=3)
    async def go(self, ev: StartEvent | A) -> A | None: ...
    @step
    async def stop(self, ev: B) -> StopEvent | B | None: ...


def groups_left() -> int:
    gc.collect()
    return sum(type(found) is BranchNode for found in gc.get_objects())


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_chain_of_sends_leaves_no_chain_of_groups(kept):
    """P16: each step runs, and keeps its handle, until ``kept`` further ones have begun."""
    machine = machine_of(Loop)
    before = groups_left()
    machine.queues[0].limit = 10
    running: deque[tuple[Delivery, BranchNode]] = deque()
    delivery = begin(machine, StartEvent())
    depth = 0
    for n in range(1000):
        queue, _, node = delivery
        branch = machine.open_branch(node)
        event = A(n=n)
        machine.send(machine.check_sendable(0, event, None), event, branch, None)
        running.append((delivery, branch))
        del branch, node
        if len(running) > kept:
            (queue, _, node), handle = running.popleft()
            handle.is_held = False
            del handle
            machine.startable.clear()
            if (delivery := machine.drop(queue, node)) is None:
                delivery = machine.take(queue)
            del node
        else:
            delivery = machine.next_start()
        assert delivery[1].n == n
        if delivery[2] is not None:
            depth = max(depth, len(list(delivery[2].upward())))

    assert depth <= kept + 9 + kept
    assert groups_left() - before <= 2 * kept + 10


def test_handle_that_is_kept_over_a_long_chain_still_cancels_it():
    """P16: nodes in between are removed; the branch at the root keeps its deliveries."""
    machine = machine_of(Loop)
    queue, _, node = begin(machine, StartEvent())
    first = None
    for n in range(100):
        branch = machine.open_branch(node)
        event = A(n=n)
        machine.send(machine.check_sendable(0, event, None), event, branch, None)
        first = first or branch
        branch.is_held = branch is first
        machine.startable.clear()
        queue, _, node = machine.drop(queue, node)
        assert list(node.upward()) == [first]

    machine.cancel(first, "enough")

    assert node.is_cancelled
    assert machine.drop(queue, node) is None
    assert first.is_over
    assert machine.alive == 0


def test_cancelling_counts_off_what_waits_and_tells_what_runs():
    """In a cancelled node, only invocations that still unwind are counted."""
    told: list[tuple[Any, str]] = []
    graph = graph_of(Loop)
    machine = Machine(graph, Inbox, [].append, lambda scope, reason: told.append((scope, reason)))
    queue, _, node = begin(machine, StartEvent())
    branch = machine.open_branch(node)
    event = A()
    route = machine.check_sendable(0, event, None)
    machine.send(route, event, branch, None)
    assert machine.drop(queue, node) == (queue, event, branch)
    for _ in range(5):
        inner = machine.open_branch(branch)
        inner.is_held = False
        machine.send(route, A(), inner, None)
    branch.cancel_record.running["scope"] = None
    assert machine.alive == 6

    machine.cancel(branch, "enough")

    assert told == [("scope", "enough")]
    assert (machine.alive, branch.live, branch.is_over) == (1, 1, False)
    assert not branch.cancel_record.children
    machine.cancel(branch, "again")
    assert len(told) == 1
    machine.startable.clear()
    assert machine.drop(queue, branch) is None
    assert branch.is_over
    assert (machine.alive, queue.pending) == (0, 0)


@pytest.mark.parametrize("order", [(A, B), (B, A)])
def test_one_of_each_comes_in_the_order_of_the_parameters(order):
    """Each parameter gets the event of its class, in any order of arrival."""
    pair_join = PairJoin((A, B))
    first, second = (kind() for kind in order)

    assert pair_join.add(first, None) is None
    complete, nodes = pair_join.add(second, None)

    assert [type(part) for part in complete] == [A, B]
    assert nodes == (None, None)
    assert pair_join.missing() == []


def test_further_parts_wait_for_the_next_round_in_order():
    """Three of one and two of the other make two rounds, and one lacks its partner."""
    pair_join = PairJoin((A, B))
    parts = [A(n=0), A(n=1), A(n=2)]
    for part in parts:
        assert pair_join.add(part, None) is None

    rounds = [pair_join.add(B(n=n), None)[0] for n in range(2)]

    assert [(a.n, b.n) for a, b in rounds] == [(0, 0), (1, 1)]
    assert pair_join.missing() == ["B"]


def test_two_parameters_of_one_class_take_two_events():
    """`one: A, other: A` fires with every second A."""
    pair_join = PairJoin((A, A))

    assert pair_join.add(A(n=1), None) is None
    assert [part.n for part in pair_join.add(A(n=2), None)[0]] == [1, 2]


@pytest.mark.parametrize("kinds", [(A, SubA), (SubA, A)])
@pytest.mark.parametrize("order", [(A, SubA), (SubA, A)])
def test_parameters_whose_classes_overlap_are_filled_whatever_comes_first(kinds, order):
    """One of each is there, so the join fires: a SubA may not take the only place of an A."""
    pair_join = PairJoin(kinds)

    assert pair_join.add(order[0](), None) is None
    added = pair_join.add(order[1](), None)

    assert added is not None
    complete, _ = added
    assert tuple(type(part) for part in complete) == kinds


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(
    places=st.lists(st.sampled_from([A, SubA, SubSubA, B, Mixed]), min_size=1, max_size=3),
    kinds=st.lists(st.sampled_from([A, SubA, SubSubA, B, Mixed]), max_size=10),
)
def test_a_join_runs_as_soon_as_its_places_can_be_taken(places, kinds):
    """It runs with each event that completes it and never before, however classes overlap."""
    pair_join = PairJoin(tuple(places))
    kept: list[Event] = []
    for n, kind in enumerate(kinds):
        if not issubclass(kind, tuple(places)):
            continue
        kept.append(kind(n=n))
        got = pair_join.add(kept[-1], None)
        fits = any(
            all(isinstance(part, place) for part, place in zip(chosen, places, strict=True))
            for chosen in permutations(kept, len(places))
        )

        assert (got is not None) == fits
        if got is not None:
            assert all(isinstance(part, p) for part, p in zip(got[0], places, strict=True))
            kept = [part for part in kept if part not in got[0]]
            # Within one class, the remaining events arrived after the taken ones.
            assert not any(
                type(left) is type(part) and left.n < part.n for left in kept for part in got[0]
            )
            # Parameters of one class are filled in the order in which their events came.
            numbers: dict[tuple[type, type], list[int]] = {}
            for part, place in zip(got[0], places, strict=True):
                numbers.setdefault((type(part), place), []).append(part.n)
            assert all(found == sorted(found) for found in numbers.values())
        assert sorted(e.n for queue in pair_join.queues for e, _ in queue) == [e.n for e in kept]
        assert bool(pair_join.missing()) == bool(kept)
        again = PairJoin(tuple(places))
        again.fill(pair_join.queues)
        assert again.queues == pair_join.queues
        assert not again.is_complete


def test_a_waiting_part_costs_the_same_however_many_wait():
    """P16: the cost of adding depends on the classes, not on the events that wait."""
    pair_join = PairJoin((A, A, B))
    for n in range(50):
        pair_join.add(A(n=n), None)

    def cost(count):
        return calls_of(lambda: [pair_join.add(A(n=n), None) for n in range(count)]) / count

    before = cost(100)
    for n in range(2_000):
        pair_join.add(A(n=n), None)

    assert cost(100) <= 1.1 * before


def add(buffer: EventBuffer, event: Event, expected: list[type[Event]]) -> list[Any] | None:
    """Give an event to a buffer; return the events that are complete then."""
    _, found = buffer.add(event, expected)
    return None if found is None else [entry.event for entry in found]


@settings(max_examples=300, deadline=None)
@given(
    expected=st.lists(st.sampled_from([A, B, C]), max_size=5),
    kinds=st.lists(st.sampled_from([A, B, C]), max_size=30),
)
def test_buffer_agrees_with_lists(expected, kinds):
    """collect_events: all expected ones at once, in their order, each event used once."""
    buffer = EventBuffer()
    kept: list[Event] = []
    has_left = False
    for n, kind in enumerate(kinds):
        given_event = kind(n=n)
        if expected and kind not in expected:
            assert add(buffer, given_event, expected) is None  # it is left alone
            has_left = True
            continue
        got = add(buffer, given_event, expected)
        if not expected:
            assert got == []
            continue
        kept.append(given_event)
        chosen = []
        for wanted in expected:
            fits = [e for e in kept if type(e) is wanted and e not in chosen]
            chosen += fits[:1]
        if len(chosen) == len(expected):
            assert got == chosen
            kept = [e for e in kept if e not in chosen]
            has_left = False
        else:
            assert got is None
    lacking = Counter(expected) - Counter(type(e) for e in kept)
    assert dict(buffer.missing()) == (dict(lacking) if kept or has_left else {})
    assert sorted(e.n for e in buffer.events()) == [e.n for e in kept]


def test_buffer_counts_subclasses_for_the_class_that_is_expected():
    """A SubA is an A, unless SubA itself is expected."""
    plain = EventBuffer()
    assert add(plain, SubA(n=1), [A, A]) is None
    assert [e.n for e in add(plain, A(n=2), [A, A])] == [1, 2]

    exact = EventBuffer()
    assert add(exact, SubA(n=1), [A, SubA]) is None
    assert [e.n for e in add(exact, A(n=2), [A, SubA])] == [2, 1]


# -- what a run waits for -------------------------------------------------------------------------------------


class Listening(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: ...


class Asking(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent: ...
    @step
    async def hear(self, ev: HumanResponseEvent) -> InputRequiredEvent | StopEvent: ...


def test_question_that_is_open_keeps_the_run_waiting():
    """P12: with a question open the run is idle; with none, and nothing alive, it is stalled."""
    published: list[Event] = []
    machine = machine_of(Asking, published)
    question = InputRequiredEvent(prefix="well?")
    queue, _, node = begin(machine, StartEvent())

    assert machine.finish(queue, node, question) is None
    assert published == [question]
    assert machine.alive == 0
    assert expects_input(machine)

    machine.receive(HumanResponseEvent(response="yes"))
    delivery = machine.next_start()
    assert delivery[0] is machine.queues[1]
    assert not expects_input(machine)


def test_nothing_is_expected_where_nobody_was_asked():
    """P12: a workflow without questions and answers expects no input."""
    machine = machine_of(Wide)
    queue, _, node = begin(machine, StartEvent())
    delivery = machine.finish(queue, node, [A()])

    joined = machine.finish(*delivery[::2], None)

    assert joined[1] == []
    assert not expects_input(machine)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "Wide has no step 'nowhere'; expected one of split, work, join"),
        ("work", "the step work of Wide does not take C; expected A"),
    ],
)
def test_event_for_one_step_must_fit_it(target, message):
    """P13: the message for a wrong target names the steps, or the classes that the step takes."""
    machine = machine_of(Wide)
    begin(machine, StartEvent())

    with pytest.raises(WorkflowRuntimeError) as caught:
        machine.receive_at(C(), target)

    assert str(caught.value) == message
    assert machine.alive == 1


def test_refused_fan_out_changes_nothing():
    """P13: where one event of a list is not allowed, none of them is delivered."""
    machine = machine_of(Wide)
    queue, _, node = begin(machine, StartEvent())

    with pytest.raises(WorkflowRuntimeError, match="list of C, which it does not declare"):
        machine.finish(queue, node, [A(), C(), A()])

    assert machine.alive == 1
    assert machine.startable == []
    assert machine.queues[1].pending == 0


# -- waits and early answers ---------------------------------------------------------------------------------


class Tagged(HumanResponseEvent):
    n: Any = 0


class SubTagged(Tagged):
    pass


class Lists:
    """The expected behaviour of waits and early answers, with two lists and linear search."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.early: list[Event] = []
        self.got: dict[Wait, Event] = {}


VALUES = [0, 1, 2, 1.0, True, "1", (1, 2), [1], float("nan"), None]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False))
def test_waits_and_early_answers_agree_with_lists_however_many_there_are(random):
    """A8: the oldest wait that fits takes an answer, and a wait takes the oldest answer that fits."""
    machine, lists = machine_of(Listening), Lists()
    for number in range(200):
        kind = random.choice([HumanResponseEvent, Tagged, SubTagged])
        what = random.random()
        if what < 0.45:
            needs = {"n": random.choice(VALUES)} if random.random() < 0.8 else {}
            wait = Wait(kind, needs, Woken())
            found = next((event for event in lists.early if wait.fits(event)), None)
            if found is None:
                lists.waits.append(wait)
            else:
                lists.early = [event for event in lists.early if event is not found]
                lists.got[wait] = found
            machine.begin_wait(number, wait)
        elif what < 0.8:
            sent = kind(n=random.choice(VALUES))
            taker = next((wait for wait in lists.waits if wait.fits(sent)), None)
            if taker is None:
                lists.early.append(sent)
                machine.keep_early(sent)
            else:
                lists.waits.remove(taker)
                lists.got[taker] = sent
                machine.receive(sent)
        elif lists.got and what < 0.9:
            wait = random.choice(list(lists.got))
            back = lists.got.pop(wait)
            taker = next((wait for wait in lists.waits if wait.fits(back)), None)
            if taker is None:
                lists.early.insert(0, back)
            else:
                lists.waits.remove(taker)
                lists.got[taker] = back
            machine.end_wait(wait, is_taken=False)
        elif lists.waits:
            wait = random.choice(lists.waits)
            lists.waits.remove(wait)
            machine.end_wait(wait, is_taken=False)
        assert list(machine.waits) == lists.waits
        assert len(machine.early) == len(lists.early)
        assert all(one is other for one, other in zip(machine.early, lists.early, strict=True))
        assert [(w, w.event) for w in machine.answered] == [(w, e) for w, e in lists.got.items()]
