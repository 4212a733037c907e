"""Programs: what a random workflow consists of, and what it must do, whatever the schedule.

A program is a list of stages. Each takes a value on a path and gives one on; the path names the
member of a fan-out ("r", "r.0", "r.0.2"). Nothing that a program computes depends on which of its
tasks goes first, so the reference needs no scheduler: it is a recursive function.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import ClassVar

import attrs


#: Values stay below this.
MODULUS = 1_000_003


@attrs.frozen(kw_only=True)
class Stage:
    """One stage. ``seconds`` is how long each body of it sleeps."""

    seconds: float = 0.0
    workers: int = 4
    #: Whether it may stand within a fan-out.
    nests: ClassVar[bool] = True


@attrs.frozen(kw_only=True)
class Hop(Stage):
    """Return the next event, or send it."""

    add: int = 1
    sends: bool = False


@attrs.frozen(kw_only=True)
class ThreadHop(Stage):
    """A plain function, which runs in a worker thread."""


@attrs.frozen(kw_only=True)
class Grouped(Stage):
    """A step that opens a nursery, whose tasks sleep."""


@attrs.frozen(kw_only=True)
class LimitedHop(Stage):
    """A step with a limiter that several steps share."""


@attrs.frozen(kw_only=True)
class Fan(Stage):
    """A fan-out whose members pass the stages of ``body``, and the join of what comes of them.

    Every member whose number is 2, 5, 8, ... ends without an event if ``drops``.
    """

    count: int = 3
    drops: bool = False
    body: tuple[Stage, ...] = ()

    def members(self) -> range:
        """The numbers of the members."""
        return range(self.count)

    def is_dropped(self, number: int) -> bool:
        """Whether that member ends without an event."""
        return self.drops and number % 3 == 2


@attrs.frozen(kw_only=True)
class Race(Stage):
    """A fan-out whose first ``take`` members are enough."""

    count: int = 4
    take: int = 1


@attrs.frozen(kw_only=True)
class Pair(Stage):
    """Two events of two classes that meet in one step."""

    nests = False


@attrs.frozen(kw_only=True)
class Twins(Stage):
    """Two events of one class that meet in one step, in the order in which they were sent."""

    nests = False


@attrs.frozen(kw_only=True)
class Collect(Stage):
    """Events that are sent one by one, and collected by count."""

    nests = False
    count: int = 3


@attrs.frozen(kw_only=True)
class AwaitBranch(Stage):
    """A branch that the step waits for."""


@attrs.frozen(kw_only=True)
class CancelBranch(Stage):
    """A branch that the step cancels."""


@attrs.frozen(kw_only=True)
class Ask(Stage):
    """A question in the middle of a step, answered by an event that is made for that or by any."""

    plain: bool = False


@attrs.frozen(kw_only=True)
class Flaky(Stage):
    """A step that fails ``failures`` times and is retried after ``delay`` seconds."""

    failures: int = 1
    delay: float = 0.0


@attrs.frozen(kw_only=True)
class Handled(Stage):
    """A step that always fails, and a handler that recovers from it."""


@attrs.frozen(kw_only=True)
class Child(Stage):
    """A child workflow."""

    body: tuple[Stage, ...] = ()


@attrs.frozen(kw_only=True)
class Edit(Stage):
    """An edit of the run's state."""


@attrs.frozen(kw_only=True)
class Fatal(Stage):
    """A step that fails for good, for the member whose path ends in ``ending``."""

    ending: str = "r"

    def hits(self, path: str) -> bool:
        """Whether it fails there."""
        return path.endswith(self.ending)


@attrs.frozen
class Program:
    """A program and the value that it starts with."""

    seed: int
    value: int
    stages: tuple[Stage, ...]


@attrs.define
class Expected:
    """What a program must do when nothing interrupts it."""

    value: int = 0
    #: How often each body runs, by its key; bodies of losers may run or not.
    bodies: Counter[str] = attrs.Factory(Counter)
    optional: Counter[str] = attrs.Factory(Counter)
    #: The keys of the bodies that fail for good.
    fatal: set[str] = attrs.Factory(set)
    edits: int = 0
    questions: set[str] = attrs.Factory(set)
    #: The keys of bodies that begin anew with the step that runs their child.
    inside_children: set[str] = attrs.Factory(set)
    #: The keys of bodies that run in worker threads.
    in_threads: set[str] = attrs.Factory(set)

    def most(self, key: str) -> int:
        """How often a body may run."""
        return self.bodies[key] + self.optional[key]


def expect(program: Program) -> Expected:
    """Interpret a program."""
    expected = Expected()
    expected.value = _interpret(program.stages, "s", program.value, "r", expected)
    return expected


def _interpret(
    stages: tuple[Stage, ...], prefix: str, value: int, path: str, expected: Expected
) -> int:
    for number, stage in enumerate(stages):
        value = _pass(stage, f"{prefix}{number}", value, path, expected) % MODULUS
    return value


def _pass(stage: Stage, name: str, value: int, path: str, expected: Expected) -> int:
    key = f"{name}@{path}"
    match stage:
        case Fan():
            expected.bodies[key] += 1
            total = 0
            for number in stage.members():
                member = f"{path}.{number}"
                if stage.drops:
                    expected.bodies[f"{name}d@{member}"] += 1
                if not stage.is_dropped(number):
                    total += _interpret(
                        stage.body, f"{name}_", value * 10 + number, member, expected
                    )
            expected.bodies[f"{name}j@{path}"] += 1
            return total
        case Race():
            expected.bodies[key] += 1
            for number in range(stage.count):
                expected.optional[f"{name}m@{path}.{number}"] += 1
            expected.bodies[f"{name}j@{path}"] += 1
            return value + stage.take
        case Pair() | Twins():
            expected.bodies[key] += 1
            expected.bodies[f"{name}j@{path}"] += 1
            return 2 * value + 1 if isinstance(stage, Pair) else 3 * value + (value + 1)
        case Collect():
            expected.bodies[key] += 1
            for number in range(stage.count):
                expected.bodies[f"{name}c@{path}.{number}"] += 1
            return stage.count * value + sum(range(stage.count))
        case AwaitBranch():
            expected.bodies[key] += 1
            expected.bodies[f"{name}b@{path}"] += 1
            return value + 3
        case CancelBranch():
            expected.bodies[key] += 1
            expected.optional[f"{name}b@{path}"] += 1
            return value + 5
        case Ask():
            expected.bodies[key] += 1
            expected.questions.add(key)
            return value + len(path)
        case Flaky():
            expected.bodies[key] += stage.failures + 1
            return value + 11
        case Handled():
            expected.bodies[key] += 1
            expected.bodies[f"{name}h@{path}"] += 1
            return value + 7
        case Child():
            expected.bodies[key] += 1
            inner = Expected()
            result = _interpret(stage.body, f"{name}_", value, path, inner)
            expected.bodies += inner.bodies
            expected.optional += inner.optional
            expected.questions |= inner.questions
            expected.fatal |= inner.fatal
            expected.in_threads |= inner.in_threads
            expected.inside_children |= {*inner.bodies, *inner.optional, *inner.inside_children}
            return result + 13
        case Edit():
            expected.bodies[key] += 1
            expected.edits += 1
            return value + 17
        case Fatal():
            expected.bodies[key] += 1
            if stage.hits(path):
                expected.fatal.add(key)
            return value
        case Hop():
            expected.bodies[key] += 1
            return value + stage.add
        case ThreadHop():
            expected.in_threads.add(key)
    expected.bodies[key] += 1
    return value + 1


# -- making them up ---------------------------------------------------------------------------------


def make(seed: int) -> Program:
    """Make the program of a seed."""
    chance = random.Random(f"program {seed}")
    stages = _stages(chance, chance.randint(1, 5), depth=0, in_child=False)
    if chance.random() < 0.15:
        place = chance.randint(0, len(stages))
        stages.insert(place, Fatal(seconds=_seconds(chance)))
    return Program(seed, chance.randint(0, 99), tuple(stages))


def _seconds(chance: random.Random) -> float:
    return chance.choice((0.0, 0.0, 0.125, 0.25, 0.5, 1.0))


def _stages(chance: random.Random, count: int, *, depth: int, in_child: bool) -> list[Stage]:
    return [_stage(chance, depth=depth, in_child=in_child) for _ in range(count)]


def _stage(chance: random.Random, *, depth: int, in_child: bool) -> Stage:
    kinds: list[tuple[type[Stage], int]] = [
        (Hop, 4),
        (ThreadHop, 1),
        (LimitedHop, 2),
        (Grouped, 2),
        (Fan, 5 if depth < 2 else 0),
        (Race, 2),
        (Pair, 2),
        (Twins, 2),
        (Collect, 2),
        (AwaitBranch, 2),
        (CancelBranch, 2),
        (Ask, 3),
        (Flaky, 3),
        (Handled, 2),
        (Child, 2 if not in_child and depth < 2 else 0),
        (Edit, 2),
    ]
    usable = [(kind, weight) for kind, weight in kinds if weight and (kind.nests or not depth)]
    kind = chance.choices([k for k, _ in usable], [w for _, w in usable])[0]
    common = {"seconds": _seconds(chance), "workers": chance.randint(1, 4)}
    if kind is Hop:
        return Hop(add=chance.randint(1, 9), sends=chance.random() < 0.3, **common)
    if kind is Ask:
        return Ask(plain=chance.random() < 0.4, **common)
    if kind is Fan:
        body = _stages(chance, chance.randint(1, 2), depth=depth + 1, in_child=in_child)
        if chance.random() < 0.06:
            body.append(Fatal(ending=f".{chance.randint(0, 3)}"))
        least = 0 if depth == 0 and not in_child else 1  # a join of nothing knows no path
        count = chance.randint(least, 5 if depth == 0 else 3)
        return Fan(count=count, drops=chance.random() < 0.3, body=tuple(body), **common)
    if kind is Race:
        count = chance.randint(2, 5)
        return Race(count=count, take=chance.randint(1, count), **common)
    if kind is Collect:
        return Collect(count=chance.randint(2, 4), **common)
    if kind is Flaky:
        delay = chance.choice((0.0, 0.0, 0.25, 1.0))
        return Flaky(failures=chance.randint(1, 3), delay=delay, **common)
    if kind is Child:
        body = _stages(chance, chance.randint(1, 3), depth=0, in_child=True)
        return Child(body=tuple(body), **common)
    return kind(**common)
