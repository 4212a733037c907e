"""The operations of a run's contexts and branches.

A context calls these operations in the thread of the event loop, or in the worker thread of its
``def`` step. In a worker thread, the check that rejects other threads calls the operation in the
loop instead, after a check for cancellation; so each operation is implemented once.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast, final

from sluicegate._context import Branch
from sluicegate._engine.control import open_store, receive, snapshot
from sluicegate._engine.ending import fail, refuse_run
from sluicegate._engine.idle import (
    check_drained,
    check_stuck,
    idle_changed,
    rest,
    start_soon,
)
from sluicegate._engine.invocation import Worker, is_step_of
from sluicegate._engine.journal import StepJournal
from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.run import check_thread, content_key
from sluicegate._engine.step_queue import Absence
from sluicegate._engine.waits import Wait
from sluicegate._errors import SnapshotError, WorkflowRuntimeError, WorkflowTimeoutError, brief
from sluicegate._events import InputRequiredEvent, InternalEvent, StopEvent, tagged
from sluicegate._exceptions import note_once
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._loop.limits import leaves_nothing
from sluicegate._loop.threads import call_of_this_thread
from sluicegate._streams import check_publishable


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sluicegate._context import ChildStream, Context, Report
    from sluicegate._definition.graph import Graph, Route
    from sluicegate._definition.retries import Attempts, RetryInfo
    from sluicegate._definition.steps import Step
    from sluicegate._engine.journal import ChildRecord
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.run import Run
    from sluicegate._engine.run_journal import RunJournal
    from sluicegate._events import Event
    from sluicegate._loop import Backend
    from sluicegate._state.store import StateStore
    from sluicegate._streams import EventLog


LOGGER = logging.getLogger("sluicegate")

#: Levels of nested runs that fit into any stack.
_SHALLOW = 20


def in_own_thread(run: Run, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an operation in the run's thread on behalf of a caller in another thread.

    Raises:
        WorkflowRuntimeError: The caller is not the thread of a step of this loop; or that thread
            has been abandoned.
        BaseException: The exception of the operation; the backend's Cancelled, if the step is cancelled.
    """
    call = call_of_this_thread()
    if call is None or call.loop_thread != run.thread:
        check_thread(run, what)
        return function(*arguments)
    return call.run_sync(partial(function, *arguments))


@final
class StepOperations:
    """The operations that all contexts and branches of one run call.

    The context documents each of them. The operations hold the run; the run holds them only while
    it is active.
    """

    __slots__ = ("run",)

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def run_id(self) -> str:
        """The identifier of the run; callable in every thread."""
        return self.run.run_id

    @property
    def fencing_token(self) -> int:
        """See :attr:`sluicegate.Context.fencing_token`; callable in every thread."""
        journal = self.run.journal
        return 0 if journal is None else journal.writer.life

    @property
    def graph(self) -> Graph:
        """The graph of the workflow."""
        return self.run.graph

    @property
    def log(self) -> EventLog:
        """The stream of the run; for every thread."""
        return self.run.log

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open. In the thread of a step it looks for a cancellation.

        Raises:
            BaseException: The backend's Cancelled: a step that only polls ends as well.
            WorkflowRuntimeError: The thread has been abandoned.
        """
        run = self.run
        if get_ident() != run.thread and (call := call_of_this_thread()) is not None:
            call.check()
        return not run.outcome.status

    @property
    def store(self) -> StateStore[Any]:
        """The state of the run. In the thread of a step it looks for a cancellation."""
        run = self.run
        if get_ident() != run.thread and (call := call_of_this_thread()) is not None:
            store: StateStore[Any] = call.run_sync(lambda: self.store)
            return store
        return run.state_store or open_store(run)

    def deadline(self) -> float:
        """See :attr:`sluicegate.Context.deadline`.

        A thread that may be abandoned has the deadline that applied when it began.
        """
        backend, _ = self.run.live()
        call = call_of_this_thread()
        if call is None:
            return backend.current_effective_deadline()
        return call.find_deadline(backend.current_effective_deadline)

    @enable_ki_protection
    def snapshot(self) -> dict[str, Any]:
        """See :meth:`sluicegate.Context.to_dict`."""
        run = self.run
        if get_ident() != run.thread and run.thread and not run.outcome.is_over:
            found: dict[str, Any] = in_own_thread(run, "snapshot", self.snapshot)
            return found
        return snapshot(run)

    # -- events ------------------------------------------------------------------------------

    @enable_ki_protection
    def send(self, context: Context[Any], event: Event, target: str | None) -> Branch:
        """See :meth:`sluicegate.Context.send_event`."""
        run = self.run
        if get_ident() != run.thread:
            sent: Branch = in_own_thread(run, "send_event", self.send, context, event, target)
            return sent
        step = context._step
        assert step is not None
        if run.outcome.status:
            # The run is unwinding, and the step with it.
            return spent_branch(reason="the run is over")
        if run.probe is not None and not run.probe.sent(context, event, target):
            return spent_branch()
        if run.records is not None:
            run.records.enter_step()
        machine = run.machine
        assert machine is not None
        route = machine.check_sendable(step.index, event, target)
        journal = journal_of(context)
        if journal.replayed.sent:
            known = journal.find_sent(content_key(run, event))
            if known is not None:  # it is out, from before the snapshot
                journal.note_sent(event, known, partial(content_key, run))
                return Branch(self, known, context)
        if run.journal is not None:
            return self._send_durably(run.journal, context, event, route, target)
        node = machine.open_branch(context._node, is_kept_back=step.holds_sends)
        if step.holds_sends:
            journal.held.append((route, event, node, target))
        else:
            journal.note_sent(event, node, partial(content_key, run))
            machine.send(route, event, node, target)
            start_soon(run)
        return Branch(self, node, context)

    def _send_durably(
        self,
        journal: RunJournal,
        context: Context[Any],
        event: Event,
        route: Route,
        target: str | None,
    ) -> Branch:
        """Record an event that a step sends, and send it; one that is kept back has no record yet."""
        _, machine = self.run.live()
        step, done = cast("Step", context._step), journal_of(context)
        node = machine.open_branch(context._node, is_kept_back=step.holds_sends)
        if step.holds_sends:
            journal.codec.encode(event, "an event")  # refused here, and not at the end of the step
            journal.name_branch(node)
            done.held.append((route, event, node, target))
            return Branch(self, node, context)
        try:
            record = journal.sent(context.redelivery.key, event, node, target)
        except BaseException:
            machine.release(node)
            raise
        with record:
            done.note_sent(event, node, partial(content_key, self.run))
            machine.send(route, event, node, target)
        start_soon(self.run)
        return Branch(self, node, context)

    def send_from_outside(self, event: Event, target: str | None) -> Branch:
        """See :meth:`sluicegate.Context.send_event`, called outside of a step."""
        receive(self.run, event, target)
        return spent_branch()

    @enable_ki_protection
    def publish(self, event: Event | None) -> None:
        """See :meth:`sluicegate.Context.write_event_to_stream`."""
        run = self.run
        if get_ident() != run.thread and run.thread:
            in_own_thread(run, "write_event_to_stream", self.publish, event)
            return
        if event is None:
            return
        records = run.records
        if records is not None:
            records.enter_step()
        if type(event) not in run.graph.published or run.log.closed:
            check_publishable(event, run.log)
            if not isinstance(event, InputRequiredEvent):
                run.graph.published.add(type(event))
            elif run.machine is not None:
                _note_published(run, run.machine, event)
        if run.journal is None:
            run.log.append(event)  # as below; it is a call less for each event of a stream
            number = run.log.next - 1
        else:
            number = run.journal.shown(event)
        if records is not None:
            records.streamed(number, event)
        if run.probe is not None:
            run.probe.published(event)

    def open_report(self, context: Context[Any]) -> Report:
        """Open the progress reports of an invocation; see :meth:`sluicegate.Context.progress`."""
        from sluicegate._engine.progress import open_report  # noqa: PLC0415 - few steps need it

        run = self.run
        return open_report(run, context, None if run.records is None else run.records.caller())

    @enable_ki_protection
    def put_on_stream(self, event: Event) -> float | None:
        """Put an event on the stream that is known to be fit for it; return the time."""
        run = self.run
        if run.journal is None:
            run.log.append(event)
            number = run.log.next - 1
        else:
            number = run.journal.shown(event)
        if run.records is not None:
            run.records.streamed(number, event)
        if run.probe is not None:
            run.probe.published(event)
        return None if run.backend is None else run.backend.current_time()

    def report_ended(self, step: Step) -> None:
        """Log that ``step`` has returned None without declaring it; once in a run."""
        LOGGER.warning(
            "the step %s of the run %s returned None, which its signature does not declare: its "
            "branch ends there; expected one of its events, or `| None` in the signature",
            step.label,
            self.run.run_id,
        )

    @enable_ki_protection
    def collect(
        self, context: Context[Any], event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None:
        """See :meth:`sluicegate.Context.collect_events`."""
        run = self.run
        if get_ident() != run.thread:
            found: list[Event] | None = in_own_thread(
                run, "collect_events", self.collect, context, event, expected, key
            )
            return found
        assert run.machine is not None
        assert context._step is not None
        journal = journal_of(context)
        reported = journal.find_reported(key)
        if reported is not None and reported[1] is not None:
            return [*reported[1]]
        buffer = run.machine.buffer(context._step.index, key)
        if expected and buffer.class_for(event, expected) is None:
            return None  # it does not wait for such an event
        if run.journal is not None:
            delivery = context.redelivery
            given = None if event is delivery.event else event
            run.journal.collected(delivery.key, key, expected, given, again=reported is not None)
        if reported is None:
            entry, complete = buffer.add(event, expected)
            if run.records is not None:
                run.records.collecting(event)
        else:  # its event is out, but what another attempt gave back may be enough by now
            complete = buffer.take(expected)
            if complete is None:
                return None
            journal.reported.remove(reported)
            entry = None
        journal.collected.append((key, entry, complete))
        if complete is None:
            return None
        events = [kept.event for kept in complete]
        if run.records is not None:
            run.records.collected(key, events)
        return events

    # -- waiting -----------------------------------------------------------------------------

    @enable_ki_protection
    async def wait_for(  # noqa: C901, PLR0912, PLR0915 - one frame: thousands may wait
        self,
        context: Context[Any],
        kind: type[Event],
        requirements: Mapping[str, Any],
        waiter_event: Event | None,
        timeout: float | None,  # noqa: ASYNC109 - whose message tells what was waited for
    ) -> Event:
        """See :meth:`sluicegate.Context.wait_for_event`.

        Where the step may give up its place, its worker has no place while it waits.
        """
        run = self.run
        if get_ident() != run.thread:
            check_thread(run, "wait_for_event")
        backend, machine = run.backend, run.machine
        assert backend is not None
        assert machine is not None
        journal = context.journal or journal_of(context)
        if journal.has_cut:
            _go_on(run, context, journal)
        wait = Wait(kind, requirements, backend.waiter())
        if await _prepare(run, backend, machine, wait, journal, waiter_event, timeout):
            assert wait.event is not None
            return wait.event
        worker = _lending_worker(run, backend, machine, wait, context, timeout)
        if run.probe is not None:
            run.probe.wait_began(context, kind)
        records, number = run.records, 0
        if records is not None:
            until = None if timeout is None else wait.due
            number = records.wait_started(records.caller(), "event", kind.__name__, until)
        is_taken = is_late = False
        try:
            await backend.checkpoint_if_cancelled()
            if records is not None:
                records.enter_step()
            if run.journal is not None:
                _note_wait(run.journal, machine, context, wait)
            machine.begin_wait(context, wait)
            if wait.is_away:
                assert worker is not None
                worker.absence = wait
                if worker.turn is not None:
                    worker.turn.give_up()
            try:
                _ask(run, wait, waiter_event)
                if wait.is_over:
                    await backend.checkpoint()
                if timeout is None:  # thousands may wait, and a scope is expensive as well
                    while not wait.is_over:
                        await wait.waiter.wait()
                else:
                    with backend.cancel_scope(deadline=wait.due):
                        while not wait.is_over:
                            await wait.waiter.wait()
                if wait.event is None:
                    is_late = True
                elif worker is not None and (wait.is_away or worker.turn is not None):
                    await worker.come_back(wait)
                is_taken = wait.is_over
            finally:
                if not is_late and worker is not None:
                    worker.is_back(machine, wait)
                if records is not None:
                    records.enter_step()
                is_over = bool(run.outcome.status)
                noted = run.journal and run.journal.wait_ends(wait, is_taken=is_taken)
                if noted is None:
                    machine.end_wait(wait, is_taken=is_taken, is_over=is_over)
                else:
                    with noted:
                        machine.end_wait(wait, is_taken=is_taken)
            if wait.event is None:
                if worker is not None:
                    await worker.reclaim(machine, wait)
                msg = f"no {wait!r} came within {timeout:g} s"
                raise WorkflowTimeoutError(msg, timeout)
        finally:
            if machine.startable:
                start_soon(run)  # an event that it did not take has gone to a step
            if run.probe is not None:
                run.probe.wait_ended(context, kind)
            if records is not None:
                records.wait_ended(
                    number, "done" if is_taken else "timed_out" if is_late else "cancelled", wait
                )
            idle_changed(run)
        journal.received.append(wait)
        return wait.event

    @enable_ki_protection
    def cancel_branch(self, node: BranchNode, reason: str) -> None:
        """See :meth:`sluicegate.Branch.cancel`."""
        run = self.run
        if get_ident() != run.thread:
            in_own_thread(run, "Branch.cancel", self.cancel_branch, node, reason)
            return
        machine = run.machine
        if machine is not None and not run.outcome.status:
            if run.records is not None:
                run.records.enter_step()
            if run.journal is None or node.is_over or node.is_cancelled:
                machine.cancel(node, reason)
            else:
                with run.journal.cut(node, reason):
                    machine.cancel(node, reason)
            start_soon(run)  # the join of a fan-out that it was the last of
            if not machine.alive:
                rest(run)

    @enable_ki_protection
    async def wait_for_branch(self, node: BranchNode, step: Any) -> None:
        """See :meth:`sluicegate.Branch.wait`."""
        run = self.run
        check_thread(run, "Branch.wait")
        backend = current_backend()
        if node.is_over:
            await backend.checkpoint()
        else:
            await _wait_in_step(run, backend, node, step)
        if node.cancel_record is not None and node.cancel_record.errors:
            node.cancel_record.is_reported = True
            first, *others = node.cancel_record.errors
            for other in others:
                note_once(first, f"and another failure in the same branch: {brief(other)}")
            try:
                raise first
            finally:
                del first, others  # or this frame and its exceptions form a circle

    async def once(
        self,
        context: Context[Any],
        key: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        recorded: tuple[type[Exception], ...],
    ) -> Any:
        """See :meth:`sluicegate.Context.once`."""
        from sluicegate._engine.once import call_once  # noqa: PLC0415 - few steps need it

        check_thread(self.run, "once")
        journal = journal_of(context)
        _go_on(self.run, context, journal)
        return await call_once(self.run, context, journal, key, function, arguments, recorded)

    @enable_ki_protection
    async def sleep(self, context: Context[Any], seconds: float) -> None:
        """See :meth:`sluicegate.Context.sleep`.

        Where the step may give up its place, its worker has no place while it sleeps.
        """
        from sluicegate._engine.sleeps import sleep  # noqa: PLC0415 - few steps need it

        run = self.run
        check_thread(run, "sleep")
        worker = worker_of(run.live()[0], context)
        if worker is not None and (worker.absence is not None or not _may_leave(run, worker)):
            worker = None
        await sleep(run, context, journal_of(context), seconds, worker)

    def delivery_key(self, context: Context[Any]) -> str:
        """See :attr:`sluicegate.Context.delivery_key`."""
        run = self.run
        if get_ident() != run.thread:
            key: str = in_own_thread(run, "delivery_key", self.delivery_key, context)
            return key
        return f"{run.run_id}/{delivery_number(run, context)}"

    # -- children and attempts -------------------------------------------------------------------

    @enable_ki_protection
    async def run_child(  # noqa: C901, PLR0912, PLR0915 - one frame: runs nest deeply
        self, context: Context[Any], handler: Any, stream: ChildStream, run_id: str | None
    ) -> Any:
        """See :meth:`sluicegate.Context.run_child`."""
        run = self.run
        check_thread(run, "run_child")
        child: Run = handler._run
        _check_depth(run, handler, child)
        record = _find_child(run, context, handler, run_id)
        if record.run is None:
            return await _end_again(context, record, handler)
        if run.journal is not None:
            base = snapshot(child)
            run.journal.child_begins(context.redelivery.key, record, child, base)
            assert child.journal is not None
            child.journal.above = run.journal, child.graph.name, stream
        if stream != "off":
            if run.journal is None:
                child.log.forward = partial(_forward, run, child.graph.name, stream)
            child.log.outer = run.log
        child.parent = run
        run.children = run.children or {}
        run.children[child] = context
        run.busy_children += 1
        _offer_place(run, child, context)
        if run.probe is not None:
            run.probe.child_began(context, child)
        records, wait = run.records, 0
        if records is not None:
            records.child_started(records.caller(), child.run_id, child.graph.name)
            wait = records.wait_started(records.caller(), "child", child.run_id)
        idle_changed(run)  # it may be idle for another child of the same step
        result: Any = None
        failure: Exception | None = None
        try:
            result = await handler
        except Exception as error:  # noqa: BLE001 - raised when the step has its place again
            failure = error
        except BaseException:
            if records is not None:
                records.wait_ended(wait, "cancelled")
            record.note_end(None)
            _end_child(run, child, context)
            if child.lender is not None:
                child.lender.is_back(run.live()[1], child.absence)
            idle_changed(run)
            raise
        if records is not None:
            records.wait_ended(wait)
        record.note_end(failure)
        _end_child(run, child, context)
        idle_changed(run)
        try:
            if child.absence is not None and child.absence.is_away:
                _, machine = run.live()
                await child.lender.reclaim(machine, child.absence)
                idle_changed(run)
            if failure is not None:
                raise failure
        finally:
            child.lender = child.absence = None
            del failure, record  # or this frame and its exception keep each other alive
        return result

    def retry_info(self, context: Context[Any]) -> RetryInfo:
        """See :meth:`sluicegate.Context.retry_info`."""
        run = self.run
        if get_ident() != run.thread:
            info: RetryInfo = in_own_thread(run, "retry_info", self.retry_info, context)
            return info
        backend, _ = run.live()
        now = backend.current_time()
        attempts: Attempts | None = (
            context.redelivery.attempts if context.redelivery is not None else None
        )
        if attempts is None:
            from sluicegate._definition.retries import Attempts  # noqa: PLC0415 - few steps need it

            attempts = Attempts(now if context.began_at is None else context.began_at)
        return attempts.info(now)


# -- waiting ---------------------------------------------------------------------------------


def _lending_worker(  # noqa: PLR0917
    run: Run,
    backend: Backend,
    machine: Machine,
    wait: Wait,
    context: Context[Any],
    timeout: float | None,
) -> Worker | None:
    """Return the worker of a step that gives up its place while it waits; None if it keeps it."""
    worker = worker_of(backend, context)
    if worker is None:
        return None
    if not wait.is_outside:
        # Whether no timer of the step's own can let it continue.
        near = run.clock.is_nearer
        wait.is_strict = timeout is None and not near(backend.current_effective_deadline())
        return None
    step: Any = worker.step
    is_free = step.options.limiter is None and run.state_store is None
    if worker.absence is None and (
        step.options.release_while_waiting if is_free else _may_leave(run, worker)
    ):
        wait.queue = machine.queues[step.index]
        return worker
    return None


async def _prepare(  # noqa: ASYNC910, PLR0917 - a checkpoint only where an earlier attempt had the event
    run: Run,
    backend: Backend,
    machine: Machine,
    wait: Wait,
    journal: StepJournal,
    waiter_event: Event | None,
    timeout: float | None,  # noqa: ASYNC109 - as above
) -> bool:
    """Fill in what a wait is for; return whether an earlier attempt has had its event.

    A replayed wait continues with the time that the earlier attempt left it, never with more. It takes
    over the question of that attempt, and an answer that reached a parent before the wait began.
    """
    wait.asks = isinstance(waiter_event, InputRequiredEvent)
    wait.question = waiter_event
    wait.since = backend.current_time()
    replayed = journal.replayed
    left: float | None = None
    if replayed.received or replayed.left:
        if await _receive_again(run, backend, journal, wait):
            return True
        if times := replayed.left.get(wait.content_key(partial(content_key, run))):
            left = times.pop(0)
    if timeout is not None:
        wait.due = backend.current_time() + (timeout if left is None else min(left, timeout))
    if run.parent is not None:
        _claim_early(run, machine, wait)
    is_outside = run.graph.answerable.get(wait.kind)
    wait.is_outside = run.graph.is_answerable(wait.kind) if is_outside is None else is_outside
    if machine.questions is not None:
        _adopt_question(run, machine, wait, journal)
    return False  # noqa: ASYNC910


async def _receive_again(run: Run, backend: Backend, journal: StepJournal, wait: Wait) -> bool:  # noqa: ASYNC910 - not where there is none
    """Give a wait what an attempt before this one has had; return whether there was anything.

    A checkpoint if there was. Cancelled there, it puts the event back, so the next attempt gets it.
    """
    events = journal.replayed.received.get(wait.content_key(partial(content_key, run)))
    if not events:
        return False  # noqa: ASYNC910
    event = wait.event = events.pop(0)
    journal.received.append(wait)
    try:
        await backend.checkpoint()
    except BaseException:  # cancelled, it has taken no event
        journal.received.remove(wait)
        events.insert(0, event)
        raise
    return True


def _note_wait(journal: RunJournal, machine: Machine, context: Context[Any], wait: Wait) -> None:
    """Record a wait that is about to begin, and the early event that ends it at once."""
    early = machine.early.find(wait) if machine.early else None
    content = wait.content_key(journal.codec.content_key)
    journal.wait_begins(context.redelivery.key, wait, early, content)


def _adopt_question(run: Run, machine: Machine, wait: Wait, journal: StepJournal) -> None:
    """Have a wait take over a question: of the run before, or one that its step has published."""
    asked = journal.asked
    if not wait.asks and asked is not None and machine.find_question(asked.number):
        journal.asked = None
        machine.adopt_question(wait, asked)
        return
    if any(asked.kind is not None for asked in machine.open_questions):
        key = wait.content_key(partial(content_key, run))
        for asked in machine.open_questions:
            if asked.kind is not None and asked.key == key:
                machine.adopt_question(wait, asked)
                return


def _claim_early(inner: Run, machine: Machine, wait: Wait) -> None:
    """Take over an answer that came to a parent before anybody in here waited for it."""
    if inner.outcome.status:  # the answer would end with it
        return
    run = inner.parent
    while run is not None and not (machine.early and machine.early.has(wait)):
        outer = run.machine
        assert outer is not None
        number = outer.early.find(wait) if inner.journal is not None and outer.early else None
        event = outer.take_early(wait)
        if event is not None:
            if inner.journal is not None and run.journal is not None and number is not None:
                inner.journal.claimed(run.journal, number, event)
            machine.keep_early(event)
        run = run.parent


def _ask(run: Run, wait: Wait, question: Event | None) -> None:
    """Publish the question of a wait that has begun, and let the place of the step be used.

    A durable run that comes back from its store has one stream, so it asks nothing twice.
    """
    if wait.is_shown and run.journal is not None:
        pass
    elif isinstance(question, InputRequiredEvent):
        check_publishable(question, run.log)
        if run.records is not None:
            run.records.enter_step()
        run.operations.put_on_stream(question)  # it is open for as long as the wait is
        wait.is_shown = run.journal is not None
    else:
        run.operations.publish(question)
    if run.machine is not None and run.machine.startable:
        start_soon(run)  # the place that the step has given up
    if run.machine is not None and run.machine.strict:
        check_stuck(run)
    idle_changed(run)
    if run.draining is not None:
        check_drained(run)


def _note_published(run: Run, machine: Machine, question: Event) -> None:
    """Take note of a question that a step has put on the stream itself."""
    worker = current_cleanup.get()
    if run.journal is not None:
        delivery = worker.delivery if isinstance(worker, Worker) else None
        run.journal.asked(0 if delivery is None else delivery.key, question)
    asked = machine.note_question(question, run.live()[0].current_time())
    if isinstance(worker, Worker) and worker.context is not None:
        journal_of(worker.context).asked = asked  # a wait of the step may be for its answer


async def _wait_in_step(  # noqa: ASYNC910, C901 - it is not over yet, so there is one
    run: Run, backend: Backend, node: BranchNode, sender: Any
) -> None:
    """Wait in a step until a branch has ended. A checkpoint.

    While the step's own task waits, the machine counts the step as resting, so that it can find a
    stall in which all workers wait for branches. After a cancellation, a failure of the branch that no
    other step waits for fails the run.
    """
    worker = current_cleanup.get()
    if run.machine is None or not (isinstance(worker, Worker) and is_step_of(run)):
        msg = (
            f"Branch.wait() was called outside of the steps of {run.graph.name}; expected "
            "`await branch.wait()` in a step of the run, or in a task that one started"
        )
        raise WorkflowRuntimeError(msg)
    _check_awaitable(node, worker, sender)
    cancel_record = node.begin_tracking(node.live)
    waiter = backend.waiter()
    cancel_record.waiters.append(waiter)
    # A timer of the step's own, or another task of it, may yet free its worker.
    has_timer = run.clock.is_nearer(backend.current_effective_deadline())
    rests = not has_timer and backend.current_task() is worker.task
    step = worker.context or worker
    machine = run.machine
    if run.journal is not None and worker.delivery is not None:
        run.journal.awaits(worker.delivery.key, node)
    if rests:
        machine.begin_branch_wait(step, node)
    is_reported = False
    if run.probe is not None:
        run.probe.wait_began(worker.context, None)
    records = run.records
    number = 0 if records is None else records.wait_started(records.caller(), "branch")
    try:
        check_stuck(run)
        idle_changed(run)
        check_drained(run)
        while not node.is_over:
            await waiter.wait()
        is_reported = True
    finally:
        cancel_record.waiters.remove(waiter)
        if rests:
            machine.end_branch_wait(step, node)
        if run.probe is not None:
            run.probe.wait_ended(worker.context, None)
        if records is not None:
            records.wait_ended(number, "done" if is_reported else "cancelled")
        if not (is_reported or cancel_record.is_reported or cancel_record.waiters):
            for error in cancel_record.errors:
                fail(run, error)  # no task is left to catch it


def _check_awaitable(node: BranchNode, worker: Worker, sender: Context[Any]) -> None:
    """Check that a step can wait for a branch.

    Raises:
        WorkflowRuntimeError: The step is a part of the branch, or the branch is held back until the
            step has succeeded; either wait would never end.
    """
    if worker.node is not None and node in worker.node.upward():
        msg = (
            "a step waits for the branch that it is itself a part of, which cannot end before "
            "the step does; expected the step that sent the event to wait"
        )
        raise WorkflowRuntimeError(msg)
    journal = sender.journal if sender is worker.context else None
    if journal is not None and any(held[2] is node for held in journal.held):
        assert worker.step is not None
        msg = (
            f"the step {worker.step.name} waits for an event that is kept back until the step "
            "has succeeded, because it has retries; expected `@step(retry=..., "
            "send_at_once=True)`"
        )
        raise WorkflowRuntimeError(msg)


def _find_child(run: Run, context: Context[Any], handler: Any, run_id: str | None) -> ChildRecord:
    """Return the record of a child that a step calls for: a known one, or a new one.

    A handler made for a child that has already ended is discarded.
    """
    from sluicegate._engine.children import begin_child  # noqa: PLC0415 - few steps need it

    child: Run = handler._run

    def name(number: int) -> str:
        return f"{run.run_id}/{delivery_number(run, context)}.{number}"

    journal = journal_of(context)
    _go_on(run, context, journal)
    try:
        now = None if run.journal is None else run.journal.now
        record = begin_child(journal, child, run_id, name, now=now)
    except SnapshotError as error:
        handler.cancel("its snapshot does not fit")
        if run.journal is not None:  # other code may continue it, so that is no failure of the step
            refuse_run(run, error)
        raise
    if record.run is None:
        handler.cancel("it has ended before")
    return record


async def _end_again(context: Context[Any], record: ChildRecord, handler: Any) -> Any:
    """Return the result of an ended child to a step, or raise its failure. A checkpoint.

    Cancelled, or refused, the child has ended with it for a later call.
    """
    from sluicegate._engine.children import put_back, result_of  # noqa: PLC0415 - as above

    try:
        await current_backend().checkpoint()
        return result_of(record, handler._run)
    except BaseException as error:
        if error is not record.failure:
            put_back(journal_of(context), record)
        raise


def _end_child(run: Run, child: Run, context: Context[Any]) -> None:
    """Detach a child run that has ended from its parent."""
    if child.rests_in_parent:
        child.rests_in_parent = False
        run.live()[1].end_rest(context, is_strict=False)
    else:
        run.busy_children -= 1
    del run.children[child]
    child.log.forward = child.log.outer = child.parent = None
    if run.records is not None:
        run.records.child_ended(child.run_id, child.outcome.status)
    if run.probe is not None:
        run.probe.child_ended(context, child)


def _offer_place(run: Run, child: Run, context: Context[Any]) -> None:
    """Have a step give up its place as soon as the child that it waits for is idle."""
    backend, machine = run.live()
    worker = worker_of(backend, context)
    if worker is None or worker.absence is not None:
        return
    if worker.turn is not None and worker.turn.is_of_task:
        return  # a task of the child is the one to notice that it is idle
    if _may_leave(run, worker):
        index = cast("Step", worker.step).index
        child.absence = Absence(machine.queues[index], backend.waiter())
        child.lender = worker


def _may_leave(run: Run, worker: Worker) -> bool:
    """Whether a step may give up its place, so far as it holds nothing that others wait for.

    They would wait for it with its place, and it for a place.
    """
    options = cast("Step", worker.step).options
    limiter: Any = options.limiter
    return (
        options.release_while_waiting
        and (run.state_store is None or not run.state_store.is_written_by(worker.task))
        and (limiter is None or worker.turn is not None or leaves_nothing(limiter))
    )


def _check_depth(run: Run, handler: Any, child: Run) -> None:
    """Refuse a child, while there is still room for it, whose frames would not fit in the stack.

    Under Trio a child runs in the task of its step, and its frames lie on top of the parent's.
    """
    levels, above = 1, run.parent
    while above is not None:
        levels, above = levels + 1, above.parent
    if levels < _SHALLOW:
        return
    frames, frame = 0, sys._getframe()
    while frame is not None:
        frames, frame = frames + 1, cast("Any", frame.f_back)
    most = sys.getrecursionlimit()
    if frames + 2 * levels > most * 3 // 4:  # each parent is notified by a nested call
        handler.cancel("it is nested too deep")
        msg = (
            f"{child.graph.name} would be a child at level {levels} of nested runs, "
            f"for which Python's stack of {most} frames is too small; expected fewer levels "
            "(a loop in one workflow, or children side by side), or "
            f"`sys.setrecursionlimit({most * 2})` before the run"
        )
        raise WorkflowRuntimeError(msg)


def _forward(run: Run, name: str, stream: ChildStream, event: Event) -> None:
    """Publish an event of a child on the stream of its parent, as its step asked."""
    if run.log.closed or isinstance(event, StopEvent | InternalEvent):
        return
    if stream == "tag":
        event = tagged(name, event)
    if run.records is not None:
        run.records.enter_step()
    run.operations.put_on_stream(event)


def worker_of(backend: Backend, context: Context[Any]) -> Worker | None:
    """Return the worker of a step that itself calls its context; None if a task of it does."""
    worker: Any = current_cleanup.get()
    if (
        worker.__class__ is Worker  # no call: thousands may wait
        and worker.context is context
        and worker.step is not None
        and (worker.step.runs_in == "thread" or backend.current_task() is worker.task)
    ):
        found: Worker = worker
        return found
    return None


def _go_on(run: Run, context: Context[Any], journal: StepJournal) -> None:
    """Note that a step continues after a sleep, which it may have cancelled itself."""
    if journal.has_cut:
        from sluicegate._engine.sleeps import forget_cut  # noqa: PLC0415 - few steps need it

        forget_cut(run, context, journal)


def delivery_number(run: Run, context: Context[Any]) -> int:
    """Return the number of a step's delivery, the same for all its attempts.

    In a run without a store it gets one when it is first asked for.
    """
    journal = journal_of(context)
    if not journal.key:
        run.made += 1
        journal.key = run.made
    return journal.key


def journal_of(context: Context[Any]) -> StepJournal:
    if context.journal is None:
        context.journal = StepJournal(context.redelivery)
    journal: StepJournal = context.journal
    return journal


def spent_branch(reason: str | None = None) -> Branch:
    """Return a branch of which nothing is left."""
    node = BranchNode(None, ())
    node.is_over = True
    node.begin_tracking().reason = reason
    return Branch(None, node, None)
