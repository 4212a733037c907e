"""The records of a run: what happened, when, and because of what.

The engine makes a record of each fact, in the order in which the facts happen, and gives it to the
observers that ask for records (:meth:`sluicegate.Observer.listen`). Without such an observer, it
builds none.

A record holds numbers, names and one reading of the event loop's clock, ``at``, in seconds. What
stands once for the whole run, such as its identifier and the offset from that clock to the time of
day, is in the first record, :class:`RunStarted`. The numbers of invocations, events, waits,
cancellations, resources and edits each count from 1 within a run. Numbers of invocations follow the
order in which their deliveries were queued.

From the records alone a reader can rebuild the run. An event has an :class:`EventEmitted`, which
names the invocation that made it; an invocation has an :class:`InvocationQueued`, which names the
events that it was given; a :class:`WaitEnded` names the event that ended the wait. So each event has
its cause, and each invocation has its events.

Some records hold a value: the event itself, or the exception. They are the live objects, not copies,
and the engine calls none of their methods: a reader renders them. So a record that holds an
exception also keeps the frames of its traceback alive.

The classes are frozen msgspec structs. A field may be added within a version; :data:`VERSION` grows
when the meaning of one changes. The tag of a record in JSON, ``record``, is the name of its class.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


__all__ = [
    "VERSION",
    "CancellationDelivered",
    "CancellationRequested",
    "ChildEnded",
    "ChildStarted",
    "EventEmitted",
    "EventStreamed",
    "EventsCollected",
    "InvocationEnded",
    "InvocationQueued",
    "InvocationStarted",
    "QuestionAnswered",
    "QuestionAsked",
    "Record",
    "ResourceClosed",
    "ResourceFailed",
    "ResourceOpened",
    "RunEnded",
    "RunStarted",
    "SnapshotTaken",
    "StateEditEnded",
    "StateEditStarted",
    "WaitEnded",
    "WaitStarted",
]

#: The version of the records, which :class:`RunStarted` contains.
VERSION = 1

#: Where an event comes from: a step returned or sent it; the owner, another run or the program sent
#: it; it was in the snapshot from which the run was resumed; the engine made it, as it makes the
#: event of a failure for the step that handles failures.
Origin = Literal["step", "outside", "snapshot", "engine"]

#: How an invocation ended. ``completed``: it has returned, even if its run had ended by then and took
#: no result. ``dropped``: its branch or its run ended before it began.
InvocationOutcome = Literal["completed", "failed", "cancelled", "dropped"]

#: What an invocation waits for. ``place``: its step has other invocations at work, as many as it may
#: have; ``limiter``: the limiter of its step; ``thread``, ``process``: a free one for its body;
#: ``state``: another edit of the state to end; ``sleep``: the time ``until`` which it sleeps.
WaitKind = Literal[
    "event", "branch", "child", "place", "limiter", "thread", "process", "state", "sleep"
]

#: How a wait ended.
WaitOutcome = Literal["done", "timed_out", "cancelled"]

#: Who asked for a cancellation. ``owner``: ``handler.cancel()``, or the block that owns the run was
#: left; ``deadline``: the timeout of the run; ``outside``: a cancel scope around the run, or a durable
#: run has left this process or its memory; ``stop``: a step returned a stop event while others ran; ``failure``: a
#: step failed; ``stall``: nothing could happen any more; ``drain``: ``handler.cancel(after="steps")``;
#: ``branch``: ``branch.cancel()``; ``race``: a join has its first n events and needs no more.
CancelledBy = Literal[
    "owner", "deadline", "outside", "stop", "failure", "stall", "drain", "branch", "race"
]


class Record(msgspec.Struct, frozen=True, tag_field="record", tag=True):
    """The base class of all records.

    Attributes:
        at: The time on the clock of the run's event loop, in seconds: ``trio.current_time()``, or
            ``loop.time()`` under asyncio. Only differences mean something; with
            :attr:`RunStarted.wall_offset` added it is the time of day.
    """

    at: float


class RunStarted(Record, frozen=True, gc=False, kw_only=True):
    """A run has begun, or continues from a snapshot. The first record of each run.

    Attributes:
        version: The version of the records, :data:`VERSION`.
        run_id: The identifier of the run.
        workflow: The name of the workflow's class.
        steps: The names of its steps, in order, each with how many invocations may run at a time.
        backend: ``"trio"`` or ``"asyncio"``; empty if the records were made from the journal of a
            durable run.
        wall_offset: Seconds from the clock of the event loop to the time since the epoch.
        parent_run: The run whose step runs this one as a child; None for none.
        parent_invocation: The number of that step's invocation; None if it is unknown.
        is_resumed: Whether the run continues from a snapshot.
        elapsed: Seconds that it had run before the snapshot; 0 for a new run.
        timeout: Seconds that the run may take; None for no limit.
        queued: Seconds that it waited because its workflow had as many runs as it may have.
    """

    version: int = VERSION
    run_id: str
    workflow: str
    steps: dict[str, int]
    backend: str
    wall_offset: float
    parent_run: str | None = None
    parent_invocation: int | None = None
    is_resumed: bool = False
    elapsed: float = 0.0
    timeout: float | None = None
    queued: float = 0.0


class RunEnded(Record, frozen=True, kw_only=True):
    """A run has ended, and all of its tasks have. The last record of each run.

    Attributes:
        status: ``"completed"``, ``"failed"``, ``"timed_out"``, ``"cancelled"``, or of a durable run
            ``"detached"``, if it continues elsewhere, and ``"parked"``, if it has left the memory until it is
            woken: these are not the end of the run.
        error: The exception that ``await handler`` raises; None if the run has completed.
        event: The number of the stop event; None if the run has not completed.
    """

    status: str
    error: BaseException | None = None
    event: int | None = None


class EventEmitted(Record, frozen=True):
    """An event was returned or sent by a step, or came from outside.

    An event object that a step emits twice has two records with two numbers.

    Attributes:
        event: The number of the event.
        event_type: The name of its class.
        origin: Where it comes from.
        source: The number of the invocation that made it; None unless ``origin`` is ``"step"`` or
            ``"engine"``.
        targets: The names of the steps that it goes to; none for a stop event, a question, and an
            event that only waits take or that is kept until a wait takes it.
        value: The event itself.
    """

    event: int
    event_type: str
    origin: Origin
    source: int | None
    targets: tuple[str, ...]
    value: Any


class EventsCollected(Record, frozen=True, gc=False):
    """``ctx.collect_events`` has returned a complete set of events.

    Attributes:
        invocation: The number of the invocation that got them; None if it is unknown.
        events: Their numbers, in the order in which they were returned.
        buffer: The name of the buffer.
    """

    invocation: int | None
    events: tuple[int, ...]
    buffer: str


class EventStreamed(Record, frozen=True):
    """An event was published on the stream of the run.

    Attributes:
        sequence: Its number on the stream, as ``stream.sequence`` shows it.
        event_type: The name of its class.
        invocation: The number of the invocation that published it; None if the engine did, or if a
            child run published it.
        value: The event itself.
    """

    sequence: int
    event_type: str
    invocation: int | None
    value: Any


class InvocationQueued(Record, frozen=True, gc=False):
    """A step is to run: it has its event, or a join has its set of events.

    Attributes:
        invocation: The number of the invocation.
        step: The name of the step.
        events: The numbers of the events that it is given; several for a join.
        attempt: The number of the attempt at these events, from 1.
        previous: The invocation that was the attempt before; None for the first.
        not_before: When it may begin at the earliest, on the clock of ``at``: an attempt waits for
            the delay of its retry. None if it may begin at once.
    """

    invocation: int
    step: str
    events: tuple[int, ...]
    attempt: int = 1
    previous: int | None = None
    not_before: float | None = None


class InvocationStarted(Record, frozen=True, gc=False):
    """A worker has taken an invocation. It may first wait for its limiter, or for a thread.

    Attributes:
        invocation: The number of the invocation.
        worker: The number of the task that runs it; a task runs one invocation after another.
    """

    invocation: int
    worker: int


class InvocationEnded(Record, frozen=True):
    """An invocation has ended, and its result is in the state of the run.

    Attributes:
        invocation: The number of the invocation.
        outcome: How it ended.
        error: The exception that it raised; None if it has completed or was dropped.
    """

    invocation: int
    outcome: InvocationOutcome
    error: BaseException | None = None


class WaitStarted(Record, frozen=True, gc=False):
    """An invocation waits.

    Attributes:
        wait: The number of the wait.
        invocation: The number of the invocation; None if a task waits that belongs to none.
        kind: The kind of thing it waits for.
        subject: More precisely: the class of the event, the run of the child, or an empty string.
        until: When it gives up, or a sleep ends, on the clock of ``at``; None for never.
    """

    wait: int
    invocation: int | None
    kind: WaitKind
    subject: str = ""
    until: float | None = None


class WaitEnded(Record, frozen=True, gc=False):
    """A wait is over.

    Attributes:
        wait: The number of the wait.
        outcome: Whether it got what it waited for, its time was over, or it was cancelled.
        event: The number of the event that ended it; None if none did.
    """

    wait: int
    outcome: WaitOutcome = "done"
    event: int | None = None


class QuestionAsked(Record, frozen=True):
    """A question was published. A person or another program is to answer it.

    Attributes:
        question: Its identifier, as ``handler.questions`` shows it.
        event_type: The name of its class.
        invocation: The number of the invocation that asked; None if it is unknown.
        value: The question itself.
    """

    question: str
    event_type: str
    invocation: int | None
    value: Any


class QuestionAnswered(Record, frozen=True, gc=False):
    """A question was answered, or is not open any more because its wait has ended.

    Attributes:
        question: Its identifier.
        event: The number of the answer; None if it was closed without one.
    """

    question: str
    event: int | None = None


class CancellationRequested(Record, frozen=True, gc=False):
    """A run or a branch was cancelled. Its steps get the exception at their next checkpoint.

    Attributes:
        cancellation: Its number.
        by: Who asked for it.
        reason: Why, in the words of who asked.
        scope: The thing that was cancelled.
        invocation: The number of the invocation that asked for it; None if none did.
        invocations: The numbers of the invocations in it that had begun and not ended.
    """

    cancellation: int
    by: CancelledBy
    reason: str
    scope: Literal["run", "branch"]
    invocation: int | None = None
    invocations: tuple[int, ...] = ()


class CancellationDelivered(Record, frozen=True, gc=False):
    """A cancellation was raised in a step, which unwinds from now until it ends.

    Nothing is delivered to a step in a thread, which ends by itself or asks.

    Attributes:
        invocation: The number of the invocation.
        cancellation: The number of the cancellation; None if it came from a scope of the step's own,
            such as its timeout.
    """

    invocation: int
    cancellation: int | None = None


class ResourceOpened(Record, frozen=True, gc=False):
    """A resource has been opened.

    One with the lifetime ``"workflow"`` is in the records of the run that needed it first.

    Attributes:
        resource: Its number.
        name: The name of its factory.
        lifetime: How long it lives: ``"step"``, ``"run"`` or ``"workflow"``.
        invocation: The number of the invocation that needed it first; None if none did.
        took: Seconds that its factory took.
    """

    resource: int
    name: str
    lifetime: str
    invocation: int | None = None
    took: float = 0.0


class ResourceClosed(Record, frozen=True, gc=False):
    """A resource has been closed.

    There is none for a resource that needs no closing, and none for one with the lifetime
    ``"workflow"``, which outlives the run that opened it.

    Attributes:
        resource: Its number.
        took: Seconds that closing it took.
    """

    resource: int
    took: float = 0.0


class ResourceFailed(Record, frozen=True):
    """A resource could not be opened, or failed to close.

    If a cancellation ended its factory, ``error`` is that cancellation.

    Attributes:
        resource: Its number; of one that could not be opened, a new number.
        name: The name of its factory.
        during: When it failed.
        error: The exception.
    """

    resource: int
    name: str
    during: Literal["opening", "closing"]
    error: BaseException


class ChildStarted(Record, frozen=True, gc=False):
    """A step runs another workflow, whose records are those of its own run.

    Attributes:
        invocation: The number of the invocation that runs it; None if it is unknown.
        run_id: The identifier of the child's run.
        workflow: The name of its workflow's class.
    """

    invocation: int | None
    run_id: str
    workflow: str


class ChildEnded(Record, frozen=True, gc=False):
    """The run of a child has ended.

    Attributes:
        run_id: The identifier of the child's run.
        status: How it ended, as in :class:`RunEnded`.
    """

    run_id: str
    status: str


class StateEditStarted(Record, frozen=True, gc=False):
    """An edit of the run's state has begun; until it ends, no other edit begins.

    Attributes:
        edit: Its number.
        invocation: The number of the invocation that edits; None if none does.
    """

    edit: int
    invocation: int | None = None


class StateEditEnded(Record, frozen=True, gc=False):
    """An edit of the run's state has ended.

    Attributes:
        edit: Its number.
        outcome: Whether its changes are in the state; after an exception in its block they are not.
    """

    edit: int
    outcome: Literal["committed", "discarded"]


class SnapshotTaken(Record, frozen=True, gc=False):
    """A snapshot of the run was taken.

    Attributes:
        took: Seconds that it took, in which no task of the loop ran.
    """

    took: float = 0.0
