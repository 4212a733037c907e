"""What a run does for its contexts and branches: see sluicegate._context.RunOperations."""

from __future__ import annotations

import sys
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

from sluicegate._context import Branch
from sluicegate._engine.invocation import Worker, is_step_of
from sluicegate._engine.journal import StepJournal
from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.run import Run
from sluicegate._engine.stalls import is_stuck
from sluicegate._engine.step_queue import Absence
from sluicegate._engine.waiting import wait_for
from sluicegate._engine.waits import Wait
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import (
    ChildEvent,
    InputRequiredEvent,
    InternalEvent,
    StopEvent,
)
from sluicegate._exceptions import note_once
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._loop.limits import leaves_nothing
from sluicegate._streams import check_publishable


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sluicegate._context import ChildStream, Context
    from sluicegate._definition.retries import Attempts, RetryInfo
    from sluicegate._definition.steps import Step
    from sluicegate._engine.entered import StepResources
    from sluicegate._engine.machine import Machine
    from sluicegate._events import Event
    from sluicegate._loop import Backend
    from sluicegate._state.store import StateStore


#: Levels of nested runs that fit into any stack.
_SHALLOW = 20


class Operations(Run):
    """The part of a run that its steps call."""

    __slots__ = ()

    if TYPE_CHECKING:  # what the run has, and these operations use

        def start_soon(self) -> None: ...
        def stall(self) -> None: ...
        def rest(self) -> None: ...
        def fail(self, error: BaseException) -> None: ...
        def idle_changed(self) -> None: ...
        def check_drained(self) -> None: ...
        @property
        def is_idle(self) -> bool: ...

    def check_thread(self, what: str) -> None:
        """Refuse a call from a foreign thread, and tell the way."""
        if self.thread and get_ident() != self.thread:
            has_way = what in ("send_event", "cancel")
            way = f"`handler.from_thread.{what}(...)`, or " if has_way else ""
            msg = (
                f"{what} was called from another thread than the one that runs {self.graph.name}; "
                f"expected {way}trio.from_thread.run_sync(...{what}, ...) or its AnyIO counterpart"
            )
            raise WorkflowRuntimeError(msg)

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        return not self.outcome.status

    @property
    def store(self) -> StateStore[Any]:
        """The state of the run."""
        if self.state_store is None:
            from sluicegate._state.store import StateStore  # noqa: PLC0415 - not everybody needs it

            self.state_store = StateStore(self.graph.state_type)
        return self.state_store

    def deadline(self) -> float:
        """See :attr:`sluicegate.Context.deadline`."""
        backend, _ = self.live()
        return backend.current_effective_deadline()

    # -- events ------------------------------------------------------------------------------

    @enable_ki_protection
    def send(self, context: Context[Any], event: Event, target: str | None) -> Branch:
        """See :meth:`sluicegate.Context.send_event`."""
        self.check_thread("send_event")
        step = context._step
        assert step is not None
        if self.outcome.status:
            # The run is unwinding, and the step with it.
            return spent_branch(reason="the run is over")
        if self.probe is not None and not self.probe.sent(context, event, target):
            return spent_branch()
        assert self.machine is not None
        route = self.machine.check_sendable(step.index, event, target)
        journal = _journal_of(context)
        if journal.replayed.sent:
            known = journal.find_sent(self.content_key(event))
            if known is not None:  # it is out, from before the snapshot
                journal.note_sent(event, known, self.content_key)
                return Branch(self, known, context)
        node = self.machine.open_branch(context._node, is_kept_back=step.holds_sends)
        if step.holds_sends:
            journal.held.append((route, event, node, target))
        else:
            journal.note_sent(event, node, self.content_key)
            self.machine.send(route, event, node, target)
            self.start_soon()
        return Branch(self, node, context)

    def content_key(self, value: Any) -> int:
        """Return what values of equal content share, also in another process."""
        return self.graph.codec(self.options.classes).content_key(value)

    @enable_ki_protection
    def release_held(self, journal: StepJournal) -> None:
        """Let out what an attempt sent that has succeeded."""
        assert self.machine is not None
        for route, event, node, target in journal.held:
            self.machine.send(route, event, node, target)
        journal.held.clear()

    @enable_ki_protection
    def publish(self, event: Event | None) -> None:
        """See :meth:`sluicegate.Context.write_event_to_stream`."""
        if get_ident() != self.thread:
            self.check_thread("write_event_to_stream")
        if event is None:
            return
        if type(event) not in self.graph.published or self.log.closed:
            check_publishable(event, self.log)
            if not isinstance(event, InputRequiredEvent):
                self.graph.published.add(type(event))
            elif self.machine is not None:
                self._note_published(self.machine, event)
        self.log.append(event)  # as below; it is a call less for each event of a stream
        if self.observer is not None:
            self.observer.event_published(self.run_id, event)
        if self.probe is not None:
            self.probe.published(event)

    def _note_published(self, machine: Machine, question: Event) -> None:
        """Take note of a question that a step has put on the stream itself."""
        asked = machine.note_question(question, self.live()[0].current_time())
        worker = current_cleanup.get()
        if isinstance(worker, Worker) and worker.context is not None:
            _journal_of(worker.context).asked = asked  # a wait of the step may be for its answer

    @enable_ki_protection
    def _publish(self, event: Event) -> float | None:
        """Put an event on the stream, and return when."""
        self.log.append(event)
        if self.observer is not None:
            self.observer.event_published(self.run_id, event)
        if self.probe is not None:
            self.probe.published(event)
        return None if self.backend is None else self.backend.current_time()

    @enable_ki_protection
    def collect(
        self, context: Context[Any], event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None:
        """See :meth:`sluicegate.Context.collect_events`."""
        self.check_thread("collect_events")
        assert self.machine is not None
        assert context._step is not None
        journal = _journal_of(context)
        reported = journal.find_reported(key)
        if reported is not None and reported[1] is not None:
            return [*reported[1]]
        buffer = self.machine.buffer(context._step.index, key)
        if expected and buffer.class_for(event, expected) is None:
            return None  # it does not wait for such an event
        if reported is None:
            entry, complete = buffer.add(event, expected)
        else:  # its event is out, but what another attempt gave back may be enough by now
            complete = buffer.take(expected)
            if complete is None:
                return None
            journal.reported.remove(reported)
            entry = None
        journal.collected.append((key, entry, complete))
        return None if complete is None else [kept.event for kept in complete]

    # -- waiting -----------------------------------------------------------------------------

    @enable_ki_protection
    async def wait_for(  # noqa: C901, PLR0912 - one frame: thousands may wait
        self,
        context: Context[Any],
        kind: type[Event],
        requirements: Mapping[str, Any],
        waiter_event: Event | None,
        timeout: float | None,  # noqa: ASYNC109 - whose message tells what was waited for
    ) -> Event:
        """See :meth:`sluicegate.Context.wait_for_event`."""
        self.check_thread("wait_for_event")
        backend, machine = self.backend, self.machine
        assert backend is not None
        assert machine is not None
        journal = context._journal or _journal_of(context)
        wait = Wait(kind, requirements, backend.waiter())
        wait.asks = isinstance(waiter_event, InputRequiredEvent)
        wait.question = waiter_event
        wait.since = backend.current_time()
        replayed = journal.replayed
        left: float | None = None
        if replayed.received or replayed.left:
            if await self._receive_again(backend, journal, wait):
                assert wait.event is not None
                return wait.event
            if times := replayed.left.get(wait.content_key(self.content_key)):
                left = times.pop(0)
        if timeout is not None:
            wait.due = backend.current_time() + (timeout if left is None else min(left, timeout))
        if self.parent is not None:
            self._claim_early(machine, wait)
        is_outside = self.graph.answerable.get(kind)
        wait.is_outside = self.graph.is_answerable(kind) if is_outside is None else is_outside
        if machine.questions is not None:
            self._adopt_question(machine, wait, journal)
        worker = _worker_of(backend, context)
        if worker is not None and not wait.is_outside:
            # Whether no timer of the step's own can let it go on.
            near = self.clock.is_nearer
            wait.is_strict = timeout is None and not near(backend.current_effective_deadline())
            worker = None
        elif worker is not None:
            step: Any = worker.step
            is_free = step.options.limiter is None and self.state_store is None
            if worker.absence is None and (
                step.options.release_while_waiting if is_free else self._may_leave(worker)
            ):
                wait.queue = machine.queues[step.index]
            else:
                worker = None
        if self.probe is not None:
            self.probe.wait_began(context, kind)
        try:
            event = await wait_for(
                wait,
                context,
                backend=backend,
                machine=machine,
                ask=partial(self._ask, waiter_event),
                is_over=self.outcome.has_ended,
                timeout=timeout,
                worker=worker,
            )
        finally:
            if machine.startable:
                self.start_soon()  # what it did not take has gone to a step
            if self.probe is not None:
                self.probe.wait_ended(context, kind)
            self.idle_changed()
        journal.received.append(wait)
        return event

    async def _receive_again(self, backend: Backend, journal: StepJournal, wait: Wait) -> bool:  # noqa: ASYNC910 - not where there is none
        """Give a wait what an attempt before this one has had; return whether there was anything."""
        events = journal.replayed.received.get(wait.content_key(self.content_key))
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

    def _adopt_question(self, machine: Machine, wait: Wait, journal: StepJournal) -> None:
        """Have a wait take over a question: of the run before, or one that its step has published."""
        asked = journal.asked
        if not wait.asks and asked is not None and machine.find_question(asked.number):
            journal.asked = None
            machine.adopt_question(wait, asked)
            return
        if any(asked.kind is not None for asked in machine.open_questions):
            key = self.content_of(wait)
            for asked in machine.open_questions:
                if asked.kind is not None and asked.key == key:
                    machine.adopt_question(wait, asked)
                    return

    def content_of(self, wait: Wait) -> int:
        """Return a number that stands for what a wait is for, in every process."""
        return wait.content_key(self.content_key)

    def note_rest(self) -> None:
        """Take note that a step waits for a place to continue, or that a worker went home."""
        if self.machine is not None and self.machine.strict:
            self.check_stuck()
        self.idle_changed()
        if self.draining is not None:
            self.check_drained()

    def _claim_early(self, machine: Machine, wait: Wait) -> None:
        """Take over an answer that came to a parent before anybody in here waited for it."""
        run = self.parent
        while run is not None and not (machine.early and machine.early.has(wait)):
            outer: Machine = run.machine
            event = outer.early.take(wait) if outer.early else None
            if event is not None:
                machine.keep_early(event)
            run = run.parent

    def _ask(self, question: Event | None) -> None:
        if isinstance(question, InputRequiredEvent):
            check_publishable(question, self.log)
            if self.machine is not None:
                self.machine.has_asked = True
            self._publish(question)  # it is open for as long as the wait is
        else:
            self.publish(question)
        if self.machine is not None and self.machine.startable:
            self.start_soon()  # the place that the step has given up
        if self.machine is not None and self.machine.strict:
            self.check_stuck()
        self.idle_changed()
        if self.draining is not None:
            self.check_drained()

    def check_stuck(self) -> None:
        """End a run in which nothing can let any step go on."""
        machine = self.machine
        if machine is not None and machine.strict and is_stuck(machine) and self._are_alone():
            self.stall()

    def _are_alone(self) -> bool:
        """Whether no step has started tasks that may yet do something."""
        backend, _ = self.live()
        owners = {worker.task: worker for worker in self.workers if worker.step is not None}
        engine = {worker.task for worker in self.workers} | {self.host}
        return not backend.have_own_tasks(owners, current_cleanup, self.nursery, engine)

    @enable_ki_protection
    def cancel_branch(self, node: BranchNode, reason: str) -> None:
        """See :meth:`sluicegate.Branch.cancel`."""
        self.check_thread("Branch.cancel")
        machine = self.machine
        if machine is not None and not self.outcome.status:
            machine.cancel(node, reason)
            self.start_soon()  # the join of a fan-out that it was the last of
            if not machine.alive:
                self.rest()

    @enable_ki_protection
    async def wait_for_branch(self, node: BranchNode, step: Any) -> None:
        """See :meth:`sluicegate.Branch.wait`."""
        self.check_thread("Branch.wait")
        backend = current_backend()
        if node.is_over:
            await backend.checkpoint()
        else:
            await self._wait_in_step(backend, node, step)
        if node.cancel_record is not None and node.cancel_record.errors:
            node.cancel_record.is_reported = True
            first, *others = node.cancel_record.errors
            for other in others:
                note_once(first, f"and another failure in the same branch: {brief(other)}")
            try:
                raise first
            finally:
                del first, others  # or this frame and its exceptions form a circle

    async def _wait_in_step(  # noqa: ASYNC910 - it is not over yet, so there is one
        self, backend: Backend, node: BranchNode, sender: Any
    ) -> None:
        worker = current_cleanup.get()
        if self.machine is None or not (isinstance(worker, Worker) and is_step_of(self)):
            msg = (
                f"Branch.wait() was called outside of the steps of {self.graph.name}; expected "
                "`await branch.wait()` in a step of the run, or in a task that one started"
            )
            raise WorkflowRuntimeError(msg)
        self._check_awaitable(node, worker, sender)
        cancel_record = node.begin_tracking(node.live)
        waiter = backend.waiter()
        cancel_record.waiters.append(waiter)
        # A timer of the step's own, or another task of it, may yet free its worker.
        has_timer = self.clock.is_nearer(backend.current_effective_deadline())
        rests = not has_timer and backend.current_task() is worker.task
        step = worker.context or worker
        machine = self.machine
        if rests:
            machine.begin_branch_wait(step, node)
        is_reported = False
        if self.probe is not None:
            self.probe.wait_began(worker.context, None)
        try:
            self.check_stuck()
            self.idle_changed()
            self.check_drained()
            while not node.is_over:
                await waiter.wait()
            is_reported = True
        finally:
            cancel_record.waiters.remove(waiter)
            if rests:
                machine.end_branch_wait(step, node)
            if self.probe is not None:
                self.probe.wait_ended(worker.context, None)
            if not (is_reported or cancel_record.is_reported or cancel_record.waiters):
                for error in cancel_record.errors:
                    self.fail(error)  # nobody is left to catch it

    def _check_awaitable(self, node: BranchNode, worker: Worker, sender: Context[Any]) -> None:
        if worker.node is not None and node in worker.node.upward():
            msg = (
                "a step waits for the branch that it is itself a part of, which cannot end before "
                "the step does; expected the step that sent the event to wait"
            )
            raise WorkflowRuntimeError(msg)
        journal = sender._journal if sender is worker.context else None
        if journal is not None and any(held[2] is node for held in journal.held):
            assert worker.step is not None
            msg = (
                f"the step {worker.step.name} waits for an event that is kept back until the step "
                "has succeeded, because it has retries; expected `@step(retry=..., "
                "send_at_once=True)`"
            )
            raise WorkflowRuntimeError(msg)

    # -- children and attempts -------------------------------------------------------------------

    @enable_ki_protection
    async def run_child(self, context: Context[Any], handler: Any, stream: ChildStream) -> Any:
        """See :meth:`sluicegate.Context.run_child`."""
        self.check_thread("run_child")
        child = handler._runner
        self._check_depth(handler)
        if stream != "off":
            child.log.forward = partial(self._forward, child.graph.name, stream)
            child.log.outer = self.log
        child.parent = self
        self.children = self.children or {}
        self.children[child] = context
        self.busy_children += 1
        self._offer_place(child, context)
        if self.probe is not None:
            self.probe.child_began(context, child)
        self.idle_changed()  # it may be idle for another child of the same step
        result: Any = None
        failure: Exception | None = None
        try:
            result = await handler
        except Exception as error:  # noqa: BLE001 - raised when the step has its place again
            failure = error
        except BaseException:
            self._end_child(child, context)
            if child.lender is not None:
                child.lender.is_back(self.live()[1], child.absence)
            self.idle_changed()
            raise
        self._end_child(child, context)
        self.idle_changed()
        try:
            if child.absence is not None and child.absence.is_away:
                _, machine = self.live()
                await child.lender.reclaim(machine, child.absence)
                self.idle_changed()
            if failure is not None:
                raise failure
        finally:
            child.lender = child.absence = None
            del failure  # or this frame and its exception keep each other alive
        return result

    def _end_child(self, child: Any, context: Context[Any]) -> None:
        if child.rests_in_parent:
            child.rests_in_parent = False
            self.live()[1].end_rest(context, is_strict=False)
        else:
            self.busy_children -= 1
        del self.children[child]
        child.log.forward = child.log.outer = child.parent = None
        if self.probe is not None:
            self.probe.child_ended(context, child)

    def _offer_place(self, child: Any, context: Context[Any]) -> None:
        """Have a step give up its place as soon as the child that it waits for is idle."""
        backend, machine = self.live()
        worker = _worker_of(backend, context)
        if worker is None or worker.absence is not None:
            return
        if worker.turn is not None and worker.turn.is_of_task:
            return  # a task of the child is the one to notice that it is idle
        if self._may_leave(worker):
            index = cast("Step", worker.step).index
            child.absence = Absence(machine.queues[index], backend.waiter())
            child.lender = worker

    def _may_leave(self, worker: Worker) -> bool:
        """Whether a step may give up its place, so far as it holds nothing that others wait for.

        They would wait for it with its place, and it for a place.
        """
        options = cast("Step", worker.step).options
        limiter: Any = options.limiter
        return (
            options.release_while_waiting
            and (self.state_store is None or not self.state_store.is_written_by(worker.task))
            and (limiter is None or worker.turn is not None or leaves_nothing(limiter))
        )

    def _check_depth(self, handler: Any) -> None:
        """Refuse a child, while there is still room for it, whose frames would not fit in the stack.

        Under Trio a child runs in the task of its step, and its frames lie on top of the parent's.
        """
        levels, run = 1, self.parent
        while run is not None:
            levels, run = levels + 1, run.parent
        if levels < _SHALLOW:
            return
        frames, frame = 0, sys._getframe()
        while frame is not None:
            frames, frame = frames + 1, cast("Any", frame.f_back)
        most = sys.getrecursionlimit()
        if frames + 2 * levels > most * 3 // 4:  # parents are told of what happens, by calls
            handler.cancel("it is nested too deep")
            msg = (
                f"{handler._runner.graph.name} would be a child at level {levels} of nested runs, "
                f"for which Python's stack of {most} frames is too small; expected fewer levels "
                "(a loop in one workflow, or children side by side), or "
                f"`sys.setrecursionlimit({most * 2})` before the run"
            )
            raise WorkflowRuntimeError(msg)

    def _forward(self, name: str, stream: ChildStream, event: Event) -> None:
        if self.log.closed or isinstance(event, StopEvent | InternalEvent):
            return
        if stream == "tag":
            path: tuple[str, ...] = (name,)
            if isinstance(event, ChildEvent):
                path, event = (name, *event.path), event.event
            event = ChildEvent(path=path, event=event)
        self._publish(event)

    def retry_info(self, context: Context[Any]) -> RetryInfo:
        """See :meth:`sluicegate.Context.retry_info`."""
        backend, _ = self.live()
        now = backend.current_time()
        attempts: Attempts | None = (
            context._redelivery.attempts if context._redelivery is not None else None
        )
        if attempts is None:
            from sluicegate._definition.retries import Attempts  # noqa: PLC0415 - not everybody needs it

            attempts = Attempts(now if context._began_at is None else context._began_at)
        return attempts.info(now)

    def step_resources(self, context: Context[Any]) -> StepResources:
        """Return what gives a step its resources, and closes its own when it ends."""
        from sluicegate._engine.entered import StepResources  # noqa: PLC0415 - not everybody needs it

        assert self.resources is not None
        return StepResources(self.resources, context)

    @enable_ki_protection  # it takes what waits out of the inboxes, and puts it back
    def snapshot(self) -> dict[str, Any]:
        """See :meth:`sluicegate.WorkflowHandler.snapshot`."""
        from sluicegate._engine.snapshot_write import take_snapshot  # noqa: PLC0415 - not everybody needs it

        if not self.outcome.is_over:
            self.check_thread("snapshot")
        return take_snapshot(self)  # type: ignore[arg-type]

    def new_seed(self, step: str) -> str:
        """Return what the jitter of a delivery's retries comes of: reproducible, and its own."""
        self.retried += 1
        return f"{self.run_id}/{step}/{self.retried}"

    def number_invocation(self) -> int:
        """Count an invocation that an observer is told of."""
        self.invocations += 1
        return self.invocations


def _worker_of(backend: Backend, context: Context[Any]) -> Worker | None:
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


def _journal_of(context: Context[Any]) -> StepJournal:
    if context._journal is None:
        context._journal = StepJournal(context._redelivery)
    journal: StepJournal = context._journal
    return journal


def spent_branch(reason: str | None = None) -> Branch:
    """Return a branch of which nothing is left."""
    node = BranchNode(None, ())
    node.is_over = True
    node.begin_tracking().reason = reason
    return Branch(None, node, None)
