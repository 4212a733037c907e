"""The store of runs: starts, finds, answers, resumes, lists and deletes them."""

from __future__ import annotations

import logging
import time
from math import isfinite
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, final
from uuid import uuid4

import attrs

from sluicegate._data.codec import Codec
from sluicegate._engine.journal_records import Base, encode_record
from sluicegate._engine.run import name_run
from sluicegate._engine.runner import execute
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import Event
from sluicegate._exceptions import raise_first
from sluicegate._handler import WorkflowHandler, attached_handler, run_of
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._questions import Acknowledgement
from sluicegate._scope import leave_nursery
from sluicegate._workflow import Workflow, graph_in, run_without_owner
from sluicegate.durable._errors import (
    RunEndedError,
    StoreClosedError,
    StoreError,
    UnknownRunError,
    UnknownWorkflowError,
)
from sluicegate.durable._exported import open_folder, write_run
from sluicegate.durable._hub import Hub
from sluicegate.durable._memory import MemoryStore
from sluicegate.durable._part import Part
from sluicegate.durable._port import BASE, ENDED, WAITING, Lease, NewRun, RunFilter
from sluicegate.durable._runs import (
    check_event,
    encode_cancel,
    encode_event,
    encode_message,
    new_run,
    open_questions_of,
    rebuild,
    records_of,
    release,
    saved_questions,
)
from sluicegate.durable._sqlite import open_sqlite_journal
from sluicegate.durable._worker import RunWorker, run_interrupted


if TYPE_CHECKING:
    import builtins
    import os
    from collections.abc import Awaitable, Callable, Container, Iterable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sluicegate.durable._port import Journal, RunRow, StoredRecord
    from sluicegate.records import Record


R = TypeVar("R")

LOGGER = logging.getLogger("sluicegate")

#: Seconds after which a task of the store that has failed begins again.
_AGAIN = 1.0
#: How many due runs are looked for at a time.
_DUE_AT_ONCE = 100


@attrs.frozen
class RunSummary:
    """The row of a run in the store.

    Attributes:
        run_id: Its id.
        workflow: The name of its workflow.
        status: ``"running"`` (or interrupted, if ``owner`` is None), ``"idle"`` and ``"parked"`` (it waits
            for an answer or a timer; in the memory of a process, or in the store alone),
            ``"completed"``, ``"failed"``, ``"timed_out"`` or ``"cancelled"``.
        created_at: When it was started, in seconds since the epoch.
        updated_at: When its status last changed.
        wake_at: When its next timer is due; None without one.
        questions: How many questions are open.
        owner: The process that runs it; None if no process does.
        sequence: The number of the last record of its journal.
        messages: The number of events and cancellations for it that are not applied yet.
    """

    run_id: str
    workflow: str
    status: str
    created_at: float
    updated_at: float
    wake_at: float | None
    questions: int
    owner: str | None
    sequence: int
    messages: int

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.status in ENDED


@attrs.frozen
class StoredQuestion:
    """An open question of a run in a store.

    Attributes:
        run_id: The run.
        workflow: The name of its workflow.
        id: The id of the question in the run, for ``runs.send_event(run_id, answer, question=...)``.
        event: The name of the class of the event that asked it; None for a wait without one.
        fields: The fields of that event as JSON data.
        answers: The names of the classes of events that answer it.
        since: When it was asked, in seconds since the epoch.
    """

    run_id: str
    workflow: str
    id: str
    event: str | None
    fields: dict[str, Any] | None
    answers: tuple[str, ...]
    since: float


@final
class RunStore:
    """A store of durable runs, open in this process; :func:`open_run_store` makes it.

    ::

        async with open_run_store("sqlite:///runs.db") as runs:
            print(await runs.run(Order().run(item="book"), run_id="order-17"))

    The methods belong to the event loop in which the block was entered. Leaving the block detaches the
    runs that are still entered, waits until they have unwound, and closes the store.
    """

    def __init__(
        self,
        hub: Hub,
        manager: AbstractAsyncContextManager[Journal],
        workflows: Iterable[Workflow[Any]],
        name: str,
    ) -> None:
        self._hub = hub
        self._manager = manager
        self._name = name
        self._is_entered = False
        self._owner: AbstractAsyncContextManager[Any] | None = None
        self._serving: Any = None
        self._has_ended = False
        for workflow in workflows:
            self._know(workflow)

    # -- opening and closing ----------------------------------------------------------------------

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Open the store. A checkpoint.

        Raises:
            StoreError: It cannot be opened; the message says why.
            WorkflowRuntimeError: It was opened before.
        """
        hub, backend = self._hub, current_backend()
        if self._is_entered:
            msg = "this run store was opened before; expected a new `open_run_store(...)`"
            raise WorkflowRuntimeError(msg)
        self._is_entered = True
        hub.journal = await self._manager.__aenter__()
        hub.loop, hub.thread = backend.current_loop(), get_ident()
        hub.is_open = True
        self._owner = backend.open_owner()
        hub.call_soon = backend.caller_into(hub.loop)
        hub.nursery = nursery = await self._owner.__aenter__()
        nursery.start_soon(self._serve, name="run store")
        return self

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Detach the runs that are entered, wait for them, and close the store. A checkpoint.

        Raises:
            StoreError: The last writes could not be stored.
        """
        hub, backend = self._hub, current_backend()
        assert self._owner is not None
        hub.is_open = False
        failure: BaseException | None = None
        with backend.cancel_scope(shield=True):
            while hub.parts:
                for part in tuple(hub.parts):
                    part.detach("its store was closed")
                await hub.wait_for_parts()  # noqa: ASYNC102 - as long as their steps unwind
        self._has_ended = True
        if self._serving is not None:
            backend.cancel(self._serving, "the run store is closed")
        raised = await leave_nursery(self._owner)  # noqa: ASYNC102 - as a nursery's own __aexit__
        try:
            await self._manager.__aexit__(None, None, None)  # noqa: ASYNC102 - it shields itself
        except Exception as fault:  # noqa: BLE001 - raised below, by its rank
            failure = fault
        raise_first([] if failure is None else [failure], error, raised, backend.Cancelled, str)

    async def _serve(self) -> None:
        """Run the tasks of the store, until it is closed."""
        backend, hub = current_backend(), self._hub
        with backend.cancel_scope() as self._serving:
            if self._has_ended:
                return
            async with backend.open_nursery() as nursery:
                for work in (hub.follow_store, hub.note_others, hub.tend_runs, hub.send_posted):
                    nursery.start_soon(self._keep_going, work, name=f"run store: {work.__name__}")

    async def _keep_going(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the tasks of the store; begin again after a fault of the store."""
        backend = current_backend()
        while True:
            try:
                await work()
            except StoreClosedError:
                return
            except StoreError as error:
                LOGGER.error("the run store cannot be used at the moment: %s", error)  # noqa: TRY400 - it says all
            await backend.sleep(_AGAIN)

    @property
    def is_open(self) -> bool:
        """Whether it is open, in this event loop or another."""
        return self._hub.is_open

    # -- workflows --------------------------------------------------------------------------------

    def _know(self, workflow: Workflow[Any]) -> None:
        if not isinstance(cast("object", workflow), Workflow):
            msg = (
                f"the store was given {brief(workflow)}; expected a workflow object: `MyWorkflow()`"
            )
            raise TypeError(msg)
        self._hub.workflows[graph_in(workflow).name] = workflow

    def _workflow_of(self, row: RunRow) -> Workflow[Any]:
        workflow = self._hub.workflows.get(row.workflow)
        if workflow is None:
            known = ", ".join(sorted(self._hub.workflows)) or "none"
            msg = (
                f"the run {row.run_id!r} is of {row.workflow}, and this process knows {known}; expected "
                f"`open_run_store(..., workflows=[{row.workflow}()])`"
            )
            raise UnknownWorkflowError(msg, row.workflow)
        return workflow

    async def _row(self, run_id: str) -> RunRow:
        self._hub.check_open()
        row = await self._hub.journal.get(run_id)
        if row is None:
            msg = (
                f"the store has no run {run_id!r}; expected an id of one of `await runs.list()`, which "
                "`sluicegate runs list` prints"
            )
            raise UnknownRunError(msg)
        return row

    # -- starting and resuming ----------------------------------------------------------------------

    def run(self, handler: WorkflowHandler[R], *, run_id: str | None = None) -> WorkflowHandler[R]:
        """Make a run durable. Not a checkpoint; the run begins when its owner starts it.

        Start the handler as any other: await it, enter it with ``async with``, give it to a nursery or
        use it in a :func:`workflow_scope`. The run lives in the store until its end is recorded; only
        a part of it lives in its owner. If an exception or a cancellation ends the owner, the part is
        detached: the run continues with the next owner. ``handler.cancel()`` cancels the run itself.

        ``run_id`` is the idempotency key. If the store has a run of this id that began with the same
        event, the handler attaches to it: it continues the run if no other process does. Otherwise it
        follows the events that the other process stores, and takes over when that process ends. The
        result of an ended run is returned immediately.

        Args:
            handler: A handler that is not started: ``workflow.run(...)`` or ``workflow.resume(...)``.
            run_id: Your id of the run; by default the handler's own.

        Returns:
            The same handler.

        Raises:
            SnapshotError: The start event or the state cannot be kept, or a field of an event of the
                workflow is annotated with a class that cannot; the message names the field.
            StoreClosedError: The store is not open here.
            WorkflowRuntimeError: The run has been started, or is in a store already.
            TypeError: ``handler`` is not a handler.
            ValueError: ``run_id`` is empty.
        """
        self._hub.check_open()
        if not isinstance(cast("object", handler), WorkflowHandler):
            msg = (
                f"runs.run() was given {brief(handler)}; expected the handler of a run: "
                "`runs.run(workflow.run(...))`"
            )
            raise TypeError(msg)
        run = run_of(handler)
        if run.part is not None or handler.status != "unstarted":
            state = "is in a store already" if run.part is not None else "was started before"
            msg = (
                f"the run {run.run_id} {state}; expected a new one: "
                "`runs.run(workflow.run(...), run_id=...)`"
            )
            raise WorkflowRuntimeError(msg)
        if run_id is not None:
            name_run(run, _checked_id(run_id))
        run.graph.check_events(run.options.classes)
        self._know(cast("Workflow[Any]", run.workflow))
        run.part = Part(self._hub, run, new=new_run(run, self._hub.wall()))
        return handler

    def resume(self, run_id: str, workflow: Workflow[R]) -> WorkflowHandler[R]:
        """Return a handler that continues a run of the store. Not a checkpoint.

        Start it as any other. It is like :meth:`run` with the id and the start event of the run, which
        you need not know: it continues a run that no process runs, and follows one that another process
        runs. A waiting run stays in the store until its answer arrives or its timer is due.

        Args:
            run_id: The run.
            workflow: Its workflow, as it is now.

        Returns:
            The handler. Awaiting it raises :class:`UnknownRunError` if there is no such run, and
            :class:`SnapshotError` if its journal does not fit the workflow.

        Raises:
            StoreClosedError: The store is not open here.
        """
        self._hub.check_open()
        self._know(workflow)
        run = run_without_owner(workflow, _checked_id(run_id))
        run.part = Part(self._hub, run)
        return WorkflowHandler(run)

    async def attach(self, run_id: str, workflow: Workflow[R] | None = None) -> WorkflowHandler[R]:
        """Return a handler that follows a run of the store, wherever it runs. A checkpoint.

        ::

            async with await runs.attach("order-17") as handler:
                async for event in handler.stream_events(after=cursor):
                    ...

        It never runs a step. Leaving the block does not cancel the run; ``handler.cancel()`` does.
        Awaiting the handler waits for the end of the run. Its stream has the events of the durable stream
        from the first one on; those written as live are shown in the process that runs the run. Leaving the
        block, or dropping the handler, ends the following.

        Args:
            run_id: The run.
            workflow: Its workflow, if this process does not know it yet.

        Raises:
            UnknownRunError: There is no such run.
            UnknownWorkflowError: This process does not know its workflow.
        """
        row = await self._row(run_id)
        if workflow is not None:
            self._know(workflow)
        run = run_without_owner(self._workflow_of(row), run_id)
        run.part = Part(self._hub, run, row=row, only_follows=True)
        handler = attached_handler(run)
        self._hub.nursery.start_soon(_follow, run, name=f"{row.workflow}.follow")
        return handler

    async def submit(self, handler: WorkflowHandler[Any], *, run_id: str | None = None) -> str:
        """Store a run for a worker, in this process or another, to run. A checkpoint.

        Once this has returned, the run is stored and some :meth:`worker` begins it. Submitting again
        with the same id and start event changes nothing.

        Args:
            handler: A handler that is not started: ``workflow.run(...)``. It cannot be started afterwards.
            run_id: Your id of the run; by default the handler's own.

        Returns:
            The id of the run.

        Raises:
            RunConflictError: The store has another run of this id.
            SnapshotError: The start event or the state cannot be kept.
        """
        self.run(handler, run_id=run_id)
        run = run_of(handler)
        assert isinstance(run.part, Part)
        handler.cancel("it was submitted to a store")  # or a scope around the call would start it
        await run.part.submit()
        return run.run_id

    def worker(self, *workflows: Workflow[Any], max_runs: int | None = None) -> RunWorker:
        """Return a worker: ``async with runs.worker(Order(), Refund()):``.

        Inside the block it runs every run of these workflows that needs an owner: new ones
        (:meth:`submit`), those that a process has left unfinished, and those whose answer has arrived
        or whose timer is due. Several workers, in any number of processes, may share a store.

        Leaving the block normally takes no further runs and waits until each of its runs has ended or rests
        in the store. Leaving it by an exception or a cancellation detaches them at once.

        Args:
            *workflows: The workflows; runs of others are left to other workers.
            max_runs: How many runs it has at a time; None for any number.

        Raises:
            StoreClosedError: The store is not open here.
            ValueError: No workflow is given, or ``max_runs`` is below 1.
        """
        self._hub.check_open()
        if not workflows or not (max_runs is None or max_runs >= 1):
            msg = (
                f"worker({', '.join(map(brief, workflows))}, max_runs={max_runs}); expected at least one "
                "workflow, and max_runs of at least 1: `runs.worker(Order(), max_runs=100)`"
            )
            raise ValueError(msg)
        for workflow in workflows:
            self._know(workflow)
        return RunWorker(self._hub, workflows, max_runs)

    async def wait_for_due(
        self, workflows: Iterable[Workflow[Any]], *, besides: Container[str] = ()
    ) -> builtins.list[RunSummary]:
        """Wait until runs need an owner, and return them. A checkpoint.

        It is for an owner that is no :meth:`worker`: it continues each run with :meth:`resume`. Runs are
        due if no process runs them and nothing keeps them from continuing, if their answer has arrived, or if
        their timer has expired. Those that this process owns are left out.

        Args:
            workflows: The workflows; runs of others are left alone.
            besides: Ids of further runs to leave out.

        Returns:
            At least one run.

        Raises:
            StoreClosedError: The store is not open here.
            StoreError: It cannot be read.
        """
        hub, names = self._hub, list[str]()
        hub.check_open()
        for workflow in workflows:
            self._know(workflow)
            names.append(graph_in(workflow).name)
        most = _DUE_AT_ONCE
        with hub.watching("") as watch:
            while True:
                watch.has_changed = False
                due = await hub.journal.due(hub.wall(), most, workflows=names)
                owned = hub.owned()
                found = [
                    row for row in due.runs if row.run_id not in owned and row.run_id not in besides
                ]
                if found:
                    return [_summary_of(row) for row in found]
                if len(due.runs) >= most:  # those that are left out hide the others
                    most *= 2
                    continue
                await watch.wait(due.next_at)

    async def resume_all(self, workflows: Iterable[Workflow[Any]]) -> builtins.list[RunSummary]:
        """Run everything that is due, and return when each such run has ended or rests. A checkpoint.

        Runs of these workflows are due if a process has left them unfinished, or if their answer has arrived
        or their timer has expired. A cancellation detaches them.

        Args:
            workflows: The workflows; runs of others are left alone.

        Returns:
            The runs that it has continued, as they are now.
        """
        self._hub.check_open()
        given = tuple(workflows)
        for workflow in given:
            self._know(workflow)
        run_ids = await run_interrupted(self._hub, given)
        rows = [await self._hub.journal.get(run_id) for run_id in run_ids]
        return [_summary_of(row) for row in rows if row is not None]

    # -- from outside -------------------------------------------------------------------------------

    async def send_event(
        self,
        run_id: str,
        event: Event,
        step: str | None = None,
        *,
        question: str | None = None,
        id: str | None = None,  # noqa: A002 - the name that handler.send_event() has for it
    ) -> Acknowledgement:
        """Send an event to a run, wherever it is. A checkpoint.

        Once this has returned, the event is stored, and is applied once. The run need not be in any
        process: it is woken by the event.

        Args:
            run_id: The run.
            event: Usually a ``HumanResponseEvent``.
            step: The name of the only step that gets it.
            question: The id of the question that it answers; see :meth:`questions`.
            id: Your idempotency key for this event. A repeated id with the same content is acknowledged
                again and not applied.

        Returns:
            The acknowledgement, which need not be awaited; its ``is_repeated`` says whether the
            event had arrived before.

        Raises:
            UnknownRunError: There is no such run.
            RunEndedError: It has ended.
            QuestionClosedError: The run waits, and the question is not open.
            EventConflictError: An event with other content was sent with the same ``id``.
            WorkflowRuntimeError: No step takes the event, or it does not answer the question. This is
                raised only if this process knows the workflow; otherwise the owner of the run logs it.
            SnapshotError: The event cannot be kept.
            TypeError: Both ``step`` and ``question`` are given.
        """
        if step is not None and question is not None:
            msg = f"send_event was given both step={step!r} and question={question!r}; expected one of them"
            raise TypeError(msg)
        part = self._hub.live.get(run_id)
        if isinstance(part, Part):
            acknowledgement = part.send_event(event, step, question, id)
            await acknowledgement
            return acknowledgement
        row = await self._row(run_id)
        data = self._checked_event(row, event, step, question, id)
        return await self._send(row, "event", id, data)

    async def _send(self, row: RunRow, kind: str, key: str | None, data: bytes) -> Acknowledgement:
        is_new = await self._hub.journal.send(row.run_id, kind, key or uuid4().hex, data)
        return Acknowledgement(is_repeated=not is_new)

    def _checked_event(
        self, row: RunRow, event: Event, step: str | None, question: str | None, key: str | None
    ) -> bytes:
        """Return an event as a message, checked as far as the workflow is known."""
        if not isinstance(cast("object", event), Event):
            msg = (
                f"send_event was given {brief(event)}; expected an instance of a subclass of Event"
            )
            raise TypeError(msg)
        workflow = self._hub.workflows.get(row.workflow)
        if workflow is None:
            return encode_message(Codec.of((type(event),)), event, step, question, key)
        run = run_without_owner(workflow, row.run_id)
        asked = None
        if row.summary.status in WAITING and row.owner is None and not row.messages:
            asked = open_questions_of(run, row.summary.questions, self._hub.wall())
        if not row.is_ended:
            check_event(run, event, step, question, asked)
        return encode_event(run, event, step, question, key)

    async def cancel(
        self,
        run_id: str,
        reason: str = "runs.cancel() was called",
        *,
        after: Literal["now", "steps"] = "now",
    ) -> None:
        """Cancel a run, wherever it is. A checkpoint.

        Once this has returned, the cancellation is stored. The process that runs it ends it within
        a quarter of a second; a run without an owner ends when the next owner claims it, without a step.

        Args:
            run_id: The run.
            reason: The reason in ``WorkflowCancelledError`` and the terminal event.
            after: ``"now"``, or ``"steps"`` to let the running steps finish.

        Raises:
            UnknownRunError: There is no such run.
            RunEndedError: It has ended.
            ValueError: ``after`` is neither ``"now"`` nor ``"steps"``.
        """
        if after not in ("now", "steps"):
            msg = f"cancel(after={brief(after)}); expected 'now' or 'steps'"
            raise ValueError(msg)
        row = await self._row(run_id)
        if row.is_ended:
            msg = (
                f"the run {run_id!r} of {row.workflow} is over ({row.summary.status}), so it cannot be "
                "cancelled; expected a run under way"
            )
            raise RunEndedError(msg)
        await self._send(row, "cancel", None, encode_cancel(reason, after))

    # -- looking ------------------------------------------------------------------------------------

    async def get(self, run_id: str) -> RunSummary:
        """Return the stored summary of a run. A checkpoint.

        Raises:
            UnknownRunError: There is no such run.
        """
        return _summary_of(await self._row(run_id))

    async def list(
        self,
        *,
        status: str | Iterable[str] | None = None,
        workflow: str | Iterable[str] | None = None,
        asking: bool | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        newest_first: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> builtins.list[RunSummary]:
        """Return runs in the order of their creation. A checkpoint.

        Args:
            status: Runs of this status, or of one of several.
            workflow: Runs of the workflow of this name, or of several.
            asking: Runs that have open questions (True), or none (False).
            created_after: Runs created at or after this time, in seconds since the epoch.
            created_before: Runs created before this time.
            newest_first: Whether to reverse the order.
            limit: The most runs.
            after: The id of the last run of the page before.

        Raises:
            UnknownRunError: There is no run ``after``.
        """
        which = RunFilter(
            statuses=_names(status),
            workflows=_names(workflow),
            asking=asking,
            created_after=created_after,
            created_before=created_before,
        )
        number = None if after is None else (await self._row(after)).number
        self._hub.check_open()
        rows = await self._hub.journal.find(
            which, after=number, limit=limit, newest_first=newest_first
        )
        return [_summary_of(row) for row in rows]

    async def counts(self, *, workflow: str | Iterable[str] | None = None) -> dict[str, int]:
        """Return how many runs have each status; a status without runs is left out. A checkpoint.

        Args:
            workflow: Runs of the workflow of this name, or of several.
        """
        self._hub.check_open()
        return await self._hub.journal.count(RunFilter(workflows=_names(workflow)))

    async def questions(
        self,
        run_id: str | None = None,
        *,
        workflow: str | Iterable[str] | None = None,
        limit: int = 100,
    ) -> builtins.list[StoredQuestion]:
        """Return the open questions of all runs, of oldest runs first. A checkpoint.

        Those of a busy run are as its owner has last stored them, at most 0.1 s ago. If its process
        has died since, the next owner stores them.

        Args:
            run_id: Only those of this run.
            workflow: Those of the runs of a workflow of this name, or of several.
            limit: The most runs to read.

        Raises:
            UnknownRunError: There is no run ``run_id``.
        """
        if run_id is not None:
            rows = [await self._row(run_id)]
        else:
            self._hub.check_open()
            which = RunFilter(workflows=_names(workflow), asking=True)
            rows = await self._hub.journal.find(which, limit=limit)
        return [
            StoredQuestion(
                row.run_id,
                row.workflow,
                each.id,
                each.kind,
                each.shown,
                tuple(each.answers),
                each.since,
            )
            for row in rows
            for each in saved_questions(row.summary.questions)
        ]

    async def snapshot(self, run_id: str, *, at: int | None = None) -> dict[str, Any]:
        """Return the snapshot of a run, wherever it is. A checkpoint.

        The next life of the run would continue from it; see :meth:`WorkflowHandler.snapshot`.

        Args:
            run_id: The run.
            at: The number of the last record that counts; by default the last one.

        Raises:
            UnknownRunError: There is no such run.
            UnknownWorkflowError: This process does not know its workflow.
            SnapshotError: Its journal does not fit the workflow as it is now.
            ValueError: The records up to ``at`` are no longer kept.
        """
        row = await self._row(run_id)
        run = run_without_owner(self._workflow_of(row), run_id)
        records = await self._records(row, at)
        past = rebuild(run.graph, run.options.classes, records, self._hub.wall(), has_crashed=False)
        return past.snapshot

    async def records(self, run_id: str) -> builtins.list[Record]:
        """Return what happened in a run, as an observer would have received it. A checkpoint.

        They are made from the journal, with its times; no step runs. Make a recording of them, with its
        causes, critical path and timeline: ``Recording.from_records([await runs.records(run_id)])``.
        Lives of the run follow each other: what was in progress when one ended was cancelled or dropped then, and is
        queued again when the next one begins. The journal has no resources, no waits for a place, a limiter
        or a thread, no live events of the stream, and of a child only its beginning and its end.

        Without ``keep_history``, the records begin with the newest snapshot: a run that has rested, or was
        continued by another process, has none from before that.

        Args:
            run_id: The run.

        Raises:
            UnknownRunError: There is no such run.
            UnknownWorkflowError: This process does not know its workflow.
            SnapshotError: Its journal does not fit the workflow as it is now.
        """
        row = await self._row(run_id)
        run = run_without_owner(self._workflow_of(row), run_id)
        stored = await self._hub.journal.read(run_id, after=0)
        return records_of(run.graph, run.options.classes, stored)

    async def _records(self, row: RunRow, at: int | None) -> builtins.list[StoredRecord]:
        if at is None:
            return await self._hub.journal.read(row.run_id)
        records = await self._hub.journal.read(row.run_id, after=0)
        bases = [r.sequence for r in records if r.kind == BASE and r.sequence <= at]
        if not bases or at > row.sequence:
            first = next((r.sequence for r in records if r.kind == BASE), 0)
            msg = (
                f"the journal of {row.run_id!r} has the records {first} to {row.sequence}, and {at} was "
                "asked for; expected a number in between, or `open_run_store(..., keep_history=True)` "
                "to keep older records"
            )
            raise ValueError(msg)
        return [record for record in records if bases[-1] <= record.sequence <= at]

    async def fork(self, run_id: str, *, at: int | None = None, new_id: str | None = None) -> str:
        """Store a copy of a run, as it was after one of its records. A checkpoint.

        The copy is a separate run, which :meth:`resume` or a worker continues; it has the state, the
        pending events and the open questions that the run had then. Steps that were running begin again.

        Args:
            run_id: The run, which may have ended and does not change.
            at: The number of the record; by default the last one. Older records are kept with
                ``keep_history=True``.
            new_id: The id of the copy; by default a new one.

        Returns:
            The id of the copy.

        Raises:
            UnknownRunError: There is no such run.
            UnknownWorkflowError: This process does not know its workflow.
            WorkflowRuntimeError: The store has a run ``new_id`` already.
            ValueError: The records up to ``at`` are no longer kept.
        """
        row = await self._row(run_id)
        found = await self.snapshot(run_id, at=at)
        copy_id = f"{run_id}-{uuid4().hex[:8]}" if new_id is None else _checked_id(new_id)
        wall, journal = self._hub.wall(), self._hub.journal
        base = encode_record(Base(at=wall, snapshot={**found, "run_id": copy_id}, engine=release()))
        key = f"a copy of {run_id!r} at record {at or row.sequence} #"
        lease = await journal.create(NewRun(copy_id, row.workflow, key, wall, base), _ignore)
        if not isinstance(lease, Lease):
            msg = f"the store has a run {copy_id!r} already; expected another new_id"
            raise WorkflowRuntimeError(msg)
        await journal.release(lease)
        return copy_id

    async def export(
        self,
        folder: str | os.PathLike[str],
        *,
        status: str | Iterable[str] | None = None,
        workflow: str | Iterable[str] | None = None,
    ) -> builtins.list[Path]:
        """Write runs into files, for :func:`sluicegate.testing.replay`. A checkpoint for each run.

        A file has a line about the run, then its newest snapshot and the records after it, a JSON object
        a line. Keep those of each version that you release, and your tests tell before a deployment
        whether new code can continue its runs. The files contain the data of the runs. They are
        written in the thread of the event loop.

        Args:
            folder: Where they are written, as ``<workflow>-<run id>.jsonl``; it is made if need be.
            status: Runs of this status, or of one of several.
            workflow: Runs of the workflow of this name, or of several.

        Returns:
            The paths.

        Raises:
            StoreError: The store cannot be read.
            OSError: A file cannot be written; those before are complete.
        """
        place = open_folder(folder)
        return [
            write_run(place, row, await self._hub.journal.read(row.run_id))
            for row in await self._find_all(status, workflow)
        ]

    async def _find_all(
        self, status: str | Iterable[str] | None, workflow: str | Iterable[str] | None
    ) -> builtins.list[RunRow]:
        which = RunFilter(statuses=_names(status), workflows=_names(workflow))
        found: builtins.list[RunRow] = []
        while True:
            self._hub.check_open()
            after = found[-1].number if found else None
            rows = await self._hub.journal.find(which, after=after, limit=500)
            found += rows
            if len(rows) < 500:
                return found

    # -- keeping the store ----------------------------------------------------------------------------

    async def delete(self, run_id: str) -> None:
        """Delete a run with its journal. A checkpoint.

        Raises:
            UnknownRunError: There is no such run.
            RunOwnedError: A process runs it; cancel it first.
        """
        self._hub.check_open()
        if not await self._hub.journal.delete(run_id):
            await self._row(run_id)

    async def prune(self, *, older_than: float, statuses: Iterable[str] = ENDED) -> int:
        """Delete runs that have ended, or that have other statuses, long ago. A checkpoint.

        Args:
            older_than: Runs whose status has not changed for so many seconds.
            statuses: Runs of these statuses; by default those that have ended.

        Returns:
            How many were deleted.
        """
        self._hub.check_open()
        return await self._hub.journal.prune(self._hub.wall() - older_than, tuple(statuses))

    async def check(self) -> builtins.list[str]:
        """Check the store for damage; return a line for each fault found. A checkpoint."""
        self._hub.check_open()
        return await self._hub.journal.check()

    def __repr__(self) -> str:
        state = "open" if self._hub.is_open else "closed"
        return f"<RunStore {state}, {len(self._hub.live)} runs here, {self._name}>"


@enable_ki_protection
async def _follow(run: Any) -> None:
    """Follow a run; its end and any failure are reported by its handler."""
    backend = current_backend()
    try:
        await execute(run)
    except backend.Cancelled:
        if backend.is_cancelled():
            raise


def _ignore(_error: StoreError) -> None:
    """The lease of a copy is given up at once."""


def _checked_id(run_id: object) -> str:
    if not isinstance(run_id, str):
        msg = f"run_id is {brief(run_id)}; expected a str"
        raise TypeError(msg)
    if not run_id:
        msg = "run_id is ''; expected a text that identifies the run"
        raise ValueError(msg)
    return run_id


def _names(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    return None if given is None else (given,) if isinstance(given, str) else tuple(given)


def _summary_of(row: RunRow) -> RunSummary:
    told = row.summary
    return RunSummary(
        row.run_id,
        row.workflow,
        told.status,
        row.created_at,
        told.updated_at,
        told.wake_at,
        0 if told.questions == b"[]" else len(saved_questions(told.questions)),
        row.owner,
        row.sequence,
        row.messages,
    )


def open_run_store(
    store: str | AbstractAsyncContextManager[Journal],
    *,
    durability: Literal["fsync", "process"] = "fsync",
    release_idle: float | None = 60.0,
    timeouts: Literal["alive", "wall"] = "alive",
    max_crashes: int = 3,
    keep_history: bool = False,
    lease: float = 10.0,
    max_stall: float = 60.0,
    workflows: Iterable[Workflow[Any]] = (),
    wall: Callable[[], float] = time.time,
) -> RunStore:
    """Open a store of durable runs.

    ::

        async with open_run_store("sqlite:///runs.db") as runs:
            print(await runs.run(Order().run(item="book"), run_id="order-17"))

    Args:
        store: ``"sqlite:///runs.db"`` (a relative path), ``"sqlite:////var/lib/runs.db"`` (an absolute
            one), ``"memory:"`` for tests, or a context manager that opens an implementation of
            :class:`Journal`: ``MemoryStore().open()``.
        durability: ``"fsync"``: commits survive a power loss. ``"process"``: they survive the
            end of the process only, at many times the speed.
        release_idle: Seconds after which a run that waits for an answer or a timer is released from
            memory; None for never. It is loaded again when the answer arrives or the timer is due. Steps
            that waited midway then begin again, as after a crash.
        timeouts: Whether the timeout of a workflow counts the time in which the run is in memory
            (``"alive"``), or all the time since it was started (``"wall"``).
        max_crashes: After how many crashes of the process during the same step, with the same event, the
            step fails with :class:`PoisonStepError` and is not run again.
        keep_history: Whether to keep the records that no life of a run needs, so that :meth:`RunStore.fork`
            and :meth:`RunStore.snapshot` can go back to any of them.
        lease: Seconds after which another machine takes over the runs of a process that has vanished.
        max_stall: Seconds for which the event loop may be blocked before its runs are taken over.
        workflows: Workflows whose runs are read or answered here; those that are run or given to
            a worker need not be listed.
        wall: The time, in seconds since the epoch; for tests in virtual time.

    Returns:
        The store, to be entered with ``async with``.

    Raises:
        ValueError: The url or an option is not valid.
        TypeError: ``store`` is neither a url nor a store, or something else than a workflow is listed.
    """
    for name, value in (("lease", lease), ("max_stall", max_stall)):
        if not (isfinite(value) and value > 0):
            msg = f"open_run_store({name}={brief(value)}); expected seconds above 0"
            raise ValueError(msg)
    if release_idle is not None and not release_idle >= 0:
        msg = (
            f"open_run_store(release_idle={brief(release_idle)}); expected seconds, 0 for at once, or None "
            "for never"
        )
        raise ValueError(msg)
    if type(max_crashes) is not int or max_crashes < 1:
        msg = f"open_run_store(max_crashes={brief(max_crashes)}); expected an int of at least 1"
        raise ValueError(msg)
    for name, choice, known in (
        ("durability", durability, ("fsync", "process")),
        ("timeouts", timeouts, ("alive", "wall")),
    ):
        if choice not in known:
            msg = f"open_run_store({name}={brief(choice)}); expected {known[0]!r} or {known[1]!r}"
            raise ValueError(msg)
    if isinstance(store, str):
        manager = _journal_at(store, durability, lease, max_stall, wall)
    elif hasattr(store, "__aenter__"):
        manager = store
    else:
        msg = (
            f"open_run_store() was given {brief(store)}; expected a url: "
            "`open_run_store('sqlite:///runs.db')`"
        )
        raise TypeError(msg)
    hub = Hub(
        wall=wall,
        timeouts=timeouts,
        release_idle=release_idle,
        max_crashes=max_crashes,
        keeps_history=keep_history,
    )
    return RunStore(hub, manager, workflows, brief(store))


def _journal_at(
    url: str,
    durability: Literal["fsync", "process"],
    lease: float,
    max_stall: float,
    wall: Callable[[], float],
) -> AbstractAsyncContextManager[Journal]:
    scheme, colon, rest = url.partition(":")
    path = rest.removeprefix("///")
    if scheme == "memory" and not rest.strip("/"):
        return MemoryStore(clock=wall, durability=durability, lease=lease).open()
    if scheme == "sqlite" and rest.startswith("///") and path not in ("", ":memory:"):
        return open_sqlite_journal(
            path, durability=durability, lease=lease, max_stall=max_stall, clock=wall
        )
    meant = rest.lstrip("/") if colon else url
    shown = "runs.db" if meant in ("", ":memory:") else meant
    msg = (
        f"open_run_store({brief(url)}) names no known kind of store; expected 'sqlite:///{shown}', with "
        "a fourth slash before an absolute path, or, for tests, 'memory:'"
    )
    raise ValueError(msg)
