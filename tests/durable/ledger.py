"""The ledger: what the bodies of a durable run have done, kept outside of the engine.

A *life* is the time of a run in one process. A ledger belongs to one life and refuses entries once
this life is dead; all ledgers of a run share their entries, in memory or in a file. ``faults_in``
holds the entries against the promises, without knowing how the engine keeps its records.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import attrs


if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sluicegate import Context


@attrs.frozen
class Entry:
    """One line of the ledger."""

    life: int
    #: "begin" and "end" of a body, "effect" of a call that must happen once and "used" once that
    #: has returned, "answered", "stopping" and "over" with the status of the run.
    what: str
    #: The step and its key, such as ``work/3``.
    name: str
    #: The bodies whose returned events this body has begun with.
    causes: tuple[str, ...] = ()
    delivery: str = ""
    attempt: str = ""

    @property
    def step(self) -> str:
        """The name of the step alone."""
        return self.name.partition("/")[0]


class DeadLifeError(Exception):
    """Raised when a life writes that has been cut off."""


class Ledger:
    """The entries of one run, in memory."""

    def __init__(self, life: int = 1, entries: list[Entry] | None = None) -> None:
        self.life = life
        self.is_dead = False
        self._entries: list[Entry] = [] if entries is None else entries

    def next_life(self) -> Ledger:
        """Refuse further entries of this life; return the ledger of the next one."""
        self.is_dead = True
        return Ledger(self.life + 1, self._entries)

    def entries(self) -> list[Entry]:
        """Return the entries of all lives."""
        return list(self._entries)

    def write(self, entry: Entry) -> None:
        """Keep an entry."""
        self._entries.append(entry)

    def note(
        self,
        what: str,
        name: str,
        ctx: Context[Any] | None = None,
        causes: Iterable[str] = (),
    ) -> None:
        """Write an entry; a dead life writes none.

        Raises:
            DeadLifeError: This life was cut off.
        """
        if self.is_dead:
            raise DeadLifeError(name)
        delivery, attempt = ("", "") if ctx is None else keys_of(ctx)
        self.write(Entry(self.life, what, name, tuple(filter(None, causes)), delivery, attempt))


class FileLedger(Ledger):
    """The entries of one run in a file that survives the process.

    A written line is in the kernel when ``os.write`` returns, and ``kill -9`` takes nothing from
    there: no fsync is needed, and the disk is left to the store.
    """

    def __init__(self, path: Path, life: int) -> None:
        super().__init__(life)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def write(self, entry: Entry) -> None:
        """Append a line; one call, so that a line of another process cannot come into its middle."""
        os.write(self._file, (json.dumps(attrs.astuple(entry)) + "\n").encode())

    def entries(self) -> list[Entry]:
        """Read the lines of all lives."""
        return read_ledger(self._path)


def read_ledger(path: Path) -> list[Entry]:
    """Read the entries of a file."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Entry(life, what, name, tuple(by), *rest) for life, what, name, by, *rest in lines]


def keys_of(ctx: Context[Any]) -> tuple[str, str]:
    """Return the keys of a delivery and of this attempt at it; empty in a run without a store."""
    delivery = ctx.redelivery
    if delivery is None or not delivery.key:
        return "", ""
    key = f"{ctx.run_id}/{delivery.key}"
    return key, f"{key}/{delivery.number}"


@attrs.frozen(kw_only=True)
class Expected:
    """What the ledger of a run must contain in the end."""

    #: The bodies that begin at least once, and those that may begin or not: ``step/key``.
    bodies: frozenset[str]
    optional: frozenset[str] = frozenset()
    #: Effects inside of ``ctx.once``, each at most once per life, and once if no crash hit it.
    effects: frozenset[str] = frozenset()
    #: Steps that may begin again although the body that they caused has begun.
    loose: frozenset[str] = frozenset()
    #: Bodies whose event is sent anew where the branch of the first one had failed.
    resent: frozenset[str] = frozenset()
    #: The order in which the bodies of a step with one worker begin for the first time.
    ordered: dict[str, list[str]] = attrs.Factory(dict)
    #: How often a body fails at least, where it does.
    failures: dict[str, int] = attrs.Factory(dict)
    #: How many bodies may begin in a life after its "stopping": those that workers had taken.
    late: int = 0


def faults_in(entries: list[Entry], expected: Expected) -> list[str]:
    """Return what the entries of a run that has come to its end show to be wrong."""
    return [
        *_lost_or_invented(entries, expected),
        *_failed_less(entries, expected),
        *_begun_late(entries, expected),
        *_again(entries, expected),
        *_doubled(entries, expected),
        *_reordered(entries, expected),
        *_effects(entries, expected),
    ]


def _lost_or_invented(entries: list[Entry], expected: Expected) -> Iterable[str]:
    begun = {entry.name for entry in entries if entry.what == "begin"}
    yield from (f"{name} never began" for name in sorted(expected.bodies - begun))
    known = expected.bodies | expected.optional
    yield from (f"{name} began, which nothing led to" for name in sorted(begun - known))


def _failed_less(entries: list[Entry], expected: Expected) -> Iterable[str]:
    """A body that fails, or whose life ends in it, has begun and not come to its end."""
    begun = Counter(entry.name for entry in entries if entry.what == "begin")
    ended = Counter(entry.name for entry in entries if entry.what == "end")
    for name, times in expected.failures.items():
        found = begun[name] - ended[name]
        if found < times:
            yield f"{name} failed {found} times, expected {times}"


def _begun_late(entries: list[Entry], expected: Expected) -> Iterable[str]:
    """Once a graceful stop was asked for, a life begins nothing but what its workers have taken."""
    late: dict[int, list[str]] = {}
    for entry in entries:
        if entry.what == "stopping":
            late[entry.life] = []
        elif entry.what == "begin" and entry.life in late:
            late[entry.life].append(entry.name)
    for life, names in late.items():
        if len(names) > expected.late:
            yield f"{', '.join(names)} began in life {life} after its stop, expected {expected.late}"


def _again(entries: list[Entry], expected: Expected) -> Iterable[str]:
    """A body whose event another body has begun with is recorded, so it never begins again."""
    recorded: dict[str, str] = {}
    for entry in entries:
        if entry.what != "begin":
            continue
        if entry.name in recorded and entry.step not in expected.loose:
            yield (
                f"{entry.name} began again in life {entry.life}, although {recorded[entry.name]} "
                "had begun with what it had returned"
            )
        recorded.update(dict.fromkeys(entry.causes, entry.name))


def _doubled(entries: list[Entry], expected: Expected) -> Iterable[str]:
    """A body has one delivery in all lives, and no key names two."""
    deliveries: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.what == "begin" and entry.attempt:
            deliveries[entry.name].add(entry.delivery)
            names[entry.delivery].add(entry.name)
            names[f"attempt {entry.attempt}"].add(entry.name)
    for name, found in deliveries.items():
        if len(found) > 1 and name not in expected.resent:
            yield f"{name} was delivered twice, as {sorted(found)}"
    for key, found in names.items():
        if len(found) > 1:
            yield f"{key} named several events: {sorted(found)}"


def _reordered(entries: list[Entry], expected: Expected) -> Iterable[str]:
    for step, order in expected.ordered.items():
        begun = dict.fromkeys(e.name for e in entries if e.what == "begin" and e.step == step)
        if list(begun) != order:
            yield f"the order of {step} is {list(begun)}, expected {order}"


def _effects(entries: list[Entry], expected: Expected) -> Iterable[str]:
    """``once`` runs its function again only if its life ended before the result was durable."""
    lives: dict[str, Counter[int]] = defaultdict(Counter)
    for entry in entries:
        if entry.what == "effect":
            lives[entry.name][entry.life] += 1
    yield from (f"the effect {name} is missing" for name in expected.effects - set(lives))
    for name, found in lives.items():
        if name not in expected.effects:
            yield f"the effect {name} is unknown"
        if max(found.values()) > 1:
            yield f"the effect {name} happened {max(found.values())} times in one life"
    used = {cause for entry in entries if entry.what == "used" for cause in entry.causes}
    for name in used:
        after = False
        for entry in entries:
            after = after or (entry.what == "used" and name in entry.causes)
            if after and entry.what == "effect" and entry.name == name:
                yield f"the effect {name} happened again after once() had returned"
