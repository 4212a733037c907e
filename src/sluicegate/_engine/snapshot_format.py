"""The format of snapshots, as msgspec structs: plain JSON data, for which there is a JSON Schema.

A reader ignores fields that it does not know, so a later release may add optional ones to the same
format. A field that holds its default is left out. Events are in the codec's form, and branches and
join members refer to a branch by its number: its place in ``branches`` from 1, or 0 for none.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from sluicegate._errors import SnapshotError, brief, brief_text


#: The version of the format. Others are refused.
FORMAT: Final = 3

Count = Annotated[int, Meta(ge=0)]
#: At most more than any run takes, so that it can be added to a time.
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
#: A number that identifies the content of an event or of a wait.
Content = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
#: Of an event that was sent: the number of its branch, why that was cancelled, or null once it ended.
Sent = Count | str | None
#: For each place of a join of one event each: the events in it, each with its branch.
Places = list[list[tuple[Any, Count]]]
#: An event that came from outside: the event or its content, the step and the question it names.
FromOutside = tuple[Any, str | None, str | None]
Id = tuple[str, str | None, str | None]


class _Part(Struct, omit_defaults=True, kw_only=True):
    """A JSON object of a snapshot."""


class StepShape(_Part):
    """A step, as far as a snapshot depends on it: a change of it is refused."""

    takes: list[str]
    way: Literal["one", "list", "slot"]
    first: Count | None
    makes: list[str]
    fans_out: list[str]


class SavedAttempts(_Part):
    """The attempts that failed: each with its number, the seconds since the first, and its text."""

    elapsed: Seconds
    idle: Seconds
    count: Count
    failures: list[tuple[Count, Seconds, str]]


class SavedResult(_Part):
    """The result or the exception of a ``ctx.once`` call."""

    value: Any
    is_failure: bool = False


class SavedChild(_Part):
    """A child that a step in progress has begun, and finds again by ``key``.

    ``run`` says where the child is; one that has failed can be continued at the failed step. One
    that has ended has a ``status``, and its stop event in ``result``, or its exception in ``error``.
    """

    workflow: str
    key: Content
    #: The number of the child among those of its delivery.
    number: Annotated[int, Meta(ge=1)]
    run_id: str
    status: Literal["completed", "failed", "timed_out"] | None = None
    result: Any = None
    error: Any = None
    run: Snapshot | None = None
    #: The number of the child in the journal of a durable run, the records that came after ``run``,
    #: when that was taken, and whether the process has died since.
    child: Count = 0
    tail: list[dict[str, Any]] = []
    at: float = 0.0
    has_crashed: bool = False


class SavedDelivery(_Part):
    """An event on its way to a step."""

    event: Any
    branch: Count = 0
    #: Whether the step has begun with it before; the other fields say what it did.
    has_begun: bool = False
    #: The number of the delivery in the run, the same in all attempts; 0 if it has none.
    key: Count = 0
    #: How many processes have died while it was running.
    crashes: Count = 0
    #: Seconds until the next attempt of a retry.
    due: Seconds | None = None
    seed: str = ""
    attempts: SavedAttempts | None = None
    received: dict[Content, list[Any]] = {}
    left: dict[Content, list[Seconds]] = {}
    sent: dict[Content, list[Sent]] = {}
    collected: list[tuple[str, list[Any] | None]] = []
    once: dict[str, SavedResult] = {}
    #: Of each length: the seconds, how many sleeps are over, and the seconds that the others have left.
    sleeps: list[tuple[Seconds, Count, list[Seconds]]] = []
    #: The children that the step has run, and the number of the latest one.
    children: list[SavedChild] = []
    child_number: Count = 0


class SavedBuffer(_Part):
    """A buffer of ``ctx.collect_events``."""

    expected: Annotated[list[str], Meta(min_length=1)]
    events: list[Any]


class SavedStep(_Part):
    """The pending work of one step."""

    deliveries: list[SavedDelivery] = []
    places: Places = []
    unmatched: Places = []
    buffers: dict[str, SavedBuffer] = {}


class SavedBranch(_Part):
    """A branch: an event that was sent or belongs to a fan-out, and everything it causes."""

    parent: Count
    joins: dict[str, list[Any] | None] = {}
    places: dict[str, Places] = {}
    held: bool = False
    recoveries: dict[str, Count] | None = None
    #: The number of the branch in the run, if records of the run refer to it.
    number: Count = 0


class SavedQuestion(_Part):
    """An open question; ``kind`` and ``key`` say which wait it belongs to, if it belongs to one."""

    number: Annotated[int, Meta(ge=1)]
    #: How many seconds ago it was asked.
    age: Seconds
    event: Any = None
    kind: str | None = None
    key: Content | None = None
    #: The answer that has come for the wait, which has not begun again; the question is not open then.
    answer: Any = None
    #: Whether the stream of a durable run has the event.
    shown: bool = False


class SavedProgress(_Part):
    """The progress of a run that has begun."""

    retried: Count
    questions: list[SavedQuestion]
    has_asked: bool
    early: list[Any]
    steps: dict[str, SavedStep]
    branches: list[SavedBranch]
    #: How many deliveries have a number; of a durable run also how many branches, and the number of
    #: the latest wait or question.
    made: Count = 0
    opened: Count = 0
    asked: Count = 0


class Snapshot(_Part):
    """A snapshot. ``elapsed``, ``sequence`` and either ``start`` or ``run`` are there until its end."""

    sluicegate: Literal[3]
    workflow: str
    shape: dict[str, StepShape]
    status: Literal[
        "unstarted", "running", "idle", "completed", "failed", "timed_out", "cancelled", "detached"
    ]
    state: Any
    run_id: str | None = None
    elapsed: Seconds | None = None
    #: The number of the last event on the stream.
    sequence: Count | None = None
    #: The trace context of the run, as W3C Trace Context defines it.
    carrier: dict[str, str] = {}
    #: Events that came before the run began.
    arrived: list[FromOutside] = []
    #: The events from outside that came with an id, by that.
    ids: dict[str, Id] = {}
    start: Any = None
    run: SavedProgress | None = None


P = TypeVar("P", bound=_Part)


def snapshot_schema() -> dict[str, Any]:
    """Return the JSON Schema of a snapshot."""
    return msgspec.json.schema(Snapshot)


def to_plain(part: _Part) -> dict[str, Any]:
    """Return a part as plain JSON data."""
    return cast("dict[str, Any]", msgspec.to_builtins(part))


def read_part(data: object, kind: type[P]) -> P:
    """Return plain data as a part, without the fields that this version does not know.

    Raises:
        SnapshotError: The data are not of this form; the message names the place.
    """
    found = _converted(data, kind)
    if not isinstance(found, str):
        return found
    expected, _, place = found.partition(" - at ")
    path = _path(data, kind, found, place)
    if expected.startswith("Object missing required field"):
        expected = f"a key {expected.split('`')[1]!r}"
    elif ", got" not in expected:
        value = path[-1] if place.startswith("`key`") else _at(data, path)
        if expected.startswith("Invalid enum value"):
            expected = "one of the known words"
        expected = f"{expected}, not {brief(value, 60)}"
    expected = expected.replace("`", "").replace(", got ", ", not ").removeprefix("Expected ")
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    refuse(shown[1:] or "its top", expected)
    return None


def refuse(path: str, expected: str) -> NoReturn:
    """Raise the error for a damaged snapshot."""
    msg = f"the snapshot is damaged at {brief_text(path)}; expected {brief_text(expected, 400)}"
    raise SnapshotError(msg)


def _converted(data: object, kind: type[P]) -> P | str:
    """Return plain data as a part, or what msgspec finds wrong."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return str(error)
    except RecursionError:
        return "Expected data that are nested less deeply, got more"


def _path(data: Any, kind: type[_Part], complaint: str, place: str) -> list[str | int]:
    """Return the path of a complaint, in which msgspec writes ``[...]`` for the key of a dict.

    The key is found by halves: a dict with fewer keys has the same complaint, if the first key that
    is wrong is among them.
    """
    path: list[str | int] = []
    tokens: list[tuple[str, str]] = re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place)
    if place.startswith("`key`"):
        tokens.append(("", "..."))
    for name, index in tokens:
        if index != "...":
            path.append(name or int(index))
            continue
        found: dict[str, Any] = _at(data, path)
        while len(found) > 1:
            items = list(found.items())
            half, rest = (dict(items[: len(items) // 2]), dict(items[len(items) // 2 :]))
            found = half if _converted(_with(data, path, half), kind) == complaint else rest
        data = _with(data, path, found)
        path.extend(found)
    return path


def _at(data: Any, path: list[str | int]) -> Any:
    for part in path:
        data = data[part]
    return data


def _with(data: Any, path: list[str | int], value: object) -> Any:
    """Return a copy of plain data with another value at a path."""
    if not path:
        return value
    copied = data.copy()
    copied[path[0]] = _with(data[path[0]], path[1:], value)
    return copied
