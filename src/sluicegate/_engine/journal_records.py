"""The records of a durable run's journal: the inputs of its machine and the decisions made for each.

A journal begins with a :class:`Base`, a snapshot. The records after it are in the order in which the
inputs were applied, and applying them to the machine of that snapshot gives the machine that made
them (see :mod:`sluicegate._engine.replay`). They are JSON objects; ``t`` names the kind, events are in
the form of the run's codec, times are seconds since the epoch, and ``c`` is the number of the child
run, 0 for the run itself. A field that holds its default is left out, and a reader ignores fields that
it does not know.

These names are shared: ``k`` is the number of a delivery, ``b`` that of a branch, ``w`` that of a wait
in the order in which the run's waits began, ``e`` an event, ``made`` the number of the latest delivery
after the input (-1 where that is not known), ``to`` the steps to which the events of each class went, ``joins`` the joins in which
the list that a step returned ends, ``got`` the waits that took one of the events, and ``raised`` whether the input raised an error after it had changed the machine.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec
from msgspec import Struct


#: The version of the format. A later one is refused.
VERSION = 1


class _Record(Struct, omit_defaults=True, kw_only=True, tag_field="t"):
    """A record.

    Attributes:
        at: When it was made.
        c: The number of the child run that made it; 0 for the run itself.
    """

    at: float
    c: int = 0


class Input(_Record, kw_only=True):
    """An input that can make deliveries."""

    made: int = 0
    to: dict[str, list[str]] = {}
    joins: list[str] = []
    got: list[int] = []
    raised: bool = False


class Base(_Record, kw_only=True, tag="base"):
    """A snapshot: the beginning of a life of the run, or the run when it is parked.

    Attributes:
        snapshot: The snapshot.
        v: The version of the records.
        engine: The release that wrote it.
        shown: How many events the durable stream has.
        children: How many children have been started.
    """

    snapshot: dict[str, Any]
    v: int = VERSION
    engine: str = ""
    shown: int = 0
    children: int = 0


class Started(Input, kw_only=True, tag="start"):
    """The start event of the snapshot was applied."""


class In(Input, kw_only=True, tag="in"):
    """An event from outside.

    Attributes:
        step: The step that it names.
        q: The question that it names.
        id: The idempotency key with which it came, and ``of`` the run that keeps the key.
        key: The entry that the run keeps under the key: the content, the step and the question named.
    """

    e: Any
    step: str | None = None
    q: str | None = None
    id: str | None = None
    of: int = 0
    key: tuple[str, str | None, str | None] | None = None


class Begun(_Record, kw_only=True, tag="begun"):
    """A worker has taken a delivery; ``n`` is the number of the attempt."""

    k: int
    n: int = 1


class Sent(Input, kw_only=True, tag="sent"):
    """A step has sent an event."""

    k: int
    b: int
    e: Any
    target: str | None = None


class Held(Struct, omit_defaults=True, array_like=True):
    """An event that a step with retries has sent, and that goes out with its result."""

    b: int
    e: Any
    target: str | None = None
    #: Why its branch was cancelled before.
    cancelled: str | None = None


class Done(Input, kw_only=True, tag="done"):
    """A step has ended with a result: an event, a list of events, or null.

    Attributes:
        r: The result.
        is_list: Whether it is a list of events.
        handed: Whether the worker has taken the delivery of the resulting event, without a ``begun``.
    """

    k: int
    r: Any = None
    is_list: bool = False
    held: list[Held] = []
    handed: bool = False


class Failed(Input, kw_only=True, tag="failed"):
    """An attempt has failed; the record includes the decision to retry or give up.

    Attributes:
        error: The text of the exception.
        n: The number of the attempt.
        since: Seconds from the beginning of the first attempt to this failure.
        do: ``retry`` it, hand it to a ``handler``, or cancel the ``branch`` that a step waits for.
        delay: Seconds until the next attempt.
        seed: The seed of the jitter of its delays.
        handler: The step that handles the failure.
        e: The event that it gets.
        b: The branch that is cancelled.
    """

    k: int
    error: str
    n: int
    since: float
    do: Literal["retry", "handler", "branch"]
    delay: float = 0.0
    seed: str = ""
    handler: str = ""
    e: Any = None
    b: int = 0


class Due(Input, kw_only=True, tag="due"):
    """The delay of an attempt is over."""

    k: int


class Collected(_Record, kw_only=True, tag="coll"):
    """A step has given an event to a buffer; without ``e``, the one that it was given itself.

    Attributes:
        buffer: The name of the buffer.
        expected: The classes of the events that complete it.
        again: Whether its event was in the buffer before, from an earlier attempt.
    """

    k: int
    buffer: str
    expected: list[str]
    e: Any = None
    again: bool = False


class Wait(_Record, kw_only=True, tag="wait"):
    """A step waits for an event.

    Attributes:
        kind: The class of the event.
        key: The number of its content, by which a later attempt finds it again.
        q: The question that it publishes, and whether that is one (``asks``).
        due: When it times out.
        early: The number of the event that had arrived before.
        asked: The number of the question that it takes over.
    """

    k: int
    w: int
    kind: str
    key: str
    q: Any = None
    asks: bool = False
    since: float = 0.0
    due: float | None = None
    outside: bool = True
    early: int | None = None
    asked: int | None = None


class Waited(Input, kw_only=True, tag="waited"):
    """A wait is over; ``taken`` says whether its step took the event."""

    w: int
    taken: bool = False


class Claimed(_Record, kw_only=True, tag="claimed"):
    """A wait of a child took over an event that had arrived early at a run above.

    Attributes:
        of: The run above.
        early: The number of the event there.
    """

    of: int
    early: int
    e: Any


class Asked(_Record, kw_only=True, tag="asked"):
    """A step has put a question on the stream, for which it does not wait."""

    k: int
    e: Any


class Awaits(_Record, kw_only=True, tag="awaits"):
    """A step waits for the end of a branch."""

    k: int
    b: int


class Cut(Input, kw_only=True, tag="cut"):
    """A step has cancelled a branch."""

    b: int
    why: str


class Once(_Record, kw_only=True, tag="once"):
    """A function of ``ctx.once`` has returned, or, where that is recorded, raised."""

    k: int
    key: str
    v: Any = None
    failed: bool = False


class Sleep(_Record, kw_only=True, tag="sleep"):
    """A step sleeps until ``due``.

    Attributes:
        seconds: How long, by which a later attempt finds it again.
        again: Whether it continues a sleep of an earlier attempt.
    """

    k: int
    seconds: float
    due: float
    again: bool = False


class Woken(_Record, kw_only=True, tag="woken"):
    """A step has cancelled its own sleep and continued.

    Attributes:
        seconds: The length of the sleep.
        n: Its number among the sleeps of this length of the attempt, from 0.
    """

    k: int
    seconds: float
    n: int


class State(_Record, kw_only=True, tag="state"):
    """The state has changed; ``p`` is the patch."""

    p: Any


class Published(_Record, kw_only=True, tag="pub"):
    """An event of the durable stream."""

    e: Any


class Child(_Record, kw_only=True, tag="child"):
    """A step has started a child, or continues one that an earlier attempt started.

    Attributes:
        child: The number of the child in the journal.
        number: Its number among the children of the delivery.
        key: The content by which a later attempt finds it again.
        id: The identifier of its run.
        workflow: The name of its workflow.
        base: The snapshot with which it begins.
    """

    k: int
    child: int
    number: int
    key: str
    id: str
    workflow: str
    base: dict[str, Any]


class Cancelled(_Record, kw_only=True, tag="cancel"):
    """The run was asked to end: at once, or once its running steps have ended."""

    why: str
    after: Literal["now", "steps"] = "now"


class End(_Record, kw_only=True, tag="end"):
    """The run has ended, and nothing of it is left.

    Attributes:
        status: How.
        e: The event that ends the stream.
        error: The exception that the step of a child is given.
    """

    status: Literal["completed", "failed", "timed_out", "cancelled"]
    e: Any = None
    error: Any = None


Record: TypeAlias = (
    Base
    | Started
    | In
    | Begun
    | Sent
    | Done
    | Failed
    | Due
    | Collected
    | Wait
    | Waited
    | Claimed
    | Asked
    | Awaits
    | Cut
    | Once
    | Sleep
    | Woken
    | State
    | Published
    | Child
    | Cancelled
    | End
)

_TAGS: dict[type, str] = {kind: kind.__struct_config__.tag for kind in get_args(Record)}
#: The kinds of records.
KINDS = frozenset(_TAGS.values())

encode_record = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(Record).decode


def read_record(data: object) -> Record:
    """Return plain data as a record.

    Raises:
        msgspec.ValidationError: They are none.
    """
    return cast("Record", msgspec.convert(data, Record))


def to_plain(record: _Record) -> dict[str, Any]:
    """Return a record as plain data."""
    return cast("dict[str, Any]", msgspec.to_builtins(record))


def kind_of(record: _Record) -> str:
    """Return the tag of a record."""
    return _TAGS[type(record)]
