"""How a run is steered: cancelled, sent events, and asked how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock._backends import enable_ki_protection
from penstock._engine.diagnosis import at_rest
from penstock._engine.operations import Operations, spent_branch
from penstock._errors import WorkflowRuntimeError
from penstock._events import HumanResponseEvent, UnhandledEvent, WorkflowIdleEvent


if TYPE_CHECKING:
    from typing import Any

    from penstock._backends import Backend, Nursery, Waiter
    from penstock._branch import Branch
    from penstock._engine.clock import Clock
    from penstock._engine.machine import Machine
    from penstock._engine.runner import Runner, RunOptions
    from penstock._engine.worker import Worker
    from penstock._events import Event


class Steering(Operations):
    """The part of a run that its handler and its children call."""

    __slots__ = ("_early", "_is_idle", "_told_idle", "draining", "rests_in_parent")

    if TYPE_CHECKING:  # what the run has, and this uses
        busy_children: int
        clock: Clock
        draining: str | None
        rests_in_parent: bool
        options: RunOptions
        _backend: Backend | None
        _early: list[tuple[Event, str | None]] | tuple[tuple[Event, str | None], ...]
        _is_idle: bool
        _told_idle: bool
        _nursery: Nursery | None
        _parked: Waiter | None
        _queue: Any
        _workers: dict[Worker, None]

        def settle_timeout(self) -> None: ...
        def start_workers(self) -> None: ...
        def rest(self) -> None: ...

    @enable_ki_protection
    def cancel(self, reason: str) -> None:
        """Ask the run to end; it has ended when the outcome says so."""
        self.check_thread("cancel")
        if self.outcome.status:
            return
        if (
            self._machine is not None
            and self._backend is not None
            and self._backend.current_time() > self.clock.deadline
        ):
            self.settle_timeout()
        else:
            self.outcome.cancel(reason)
        for scope in (self._queue, self._nursery and self._nursery.cancel_scope):
            if scope is not None and self._backend is not None:
                self._backend.cancel(scope, reason)

    @enable_ki_protection
    def drain(self, reason: str) -> None:
        """Start nothing more, and end when what runs has ended or waits for somebody."""
        self.check_thread("cancel")
        if self.outcome.status or self.draining is not None:
            return
        if self._machine is None:
            self.cancel(reason)
            return
        self.draining = reason
        self._machine.is_draining = True
        self.check_drained()

    def check_drained(self) -> None:
        """End a run that starts nothing more as soon as nothing of it gets on."""
        machine = self._machine
        if self.draining is None or self.outcome.status or machine is None:
            return
        resting = self.at_rest()
        active = (w for w in self._workers if w.step is not None and not w.is_waiting)
        if any(id(w.context or w) not in resting for w in active):
            return
        self.cancel(self.draining)

    def at_rest(self) -> set[int]:
        """Return the ids of the contexts of all steps that wait in their middle."""
        if self._machine is None:
            return set()
        busy = {id(step) for child, step in self._children.items() if not child.rests_in_parent}
        return at_rest(self._machine) - busy

    def abandon(self, reason: str) -> None:
        """Conclude a run that was cancelled before it could begin."""
        if not self.outcome.is_over:
            self.outcome.cancel(reason)
            self.log.close(self.outcome.conclude())
            self.outcome.announce()

    def send_from_outside(self, event: Event, target: str | None) -> Branch:
        """See :meth:`penstock.Context.send_event`, called outside of a step."""
        self.receive(event, target)
        return spent_branch()

    @enable_ki_protection
    def receive(self, event: Event, target: str | None) -> None:
        """Take an event from outside.

        Raises:
            WorkflowRuntimeError: The run is over, no step takes it, or the wrong thread calls.
        """
        self.check_thread("send_event")
        if self.outcome.status:
            msg = (
                f"the run {self.run_id} of {self.graph.name} is over ({self.outcome.status}), so "
                f"{type(event).__name__} reaches nobody; expected it while the run is under way: "
                "`if not handler.is_done(): ...`"
            )
            raise WorkflowRuntimeError(msg)
        if self._machine is None:
            if target is None:
                self.graph.adopt_from_outside(event)
                self.graph.input(type(event))
            else:
                self.graph.station(event, target)
            early = self._early if isinstance(self._early, list) else [*self._early]
            early.append((event, target))
            self._early = early
            return
        self._receive(self._machine, event, target)
        self.idle_changed()
        if not self._machine.alive:
            self.rest()
        else:
            if self._machine.strict:
                self.check_stuck()
            if self._machine.startable:
                self.start_soon()

    def start_soon(self) -> None:
        """Have what may start be started."""
        if self._parked is None:
            self.start_workers()
        elif self._machine is not None and self._machine.startable:
            self._parked.wake()  # the host does: AnyIO starts tasks from tasks only

    def _receive(self, machine: Machine, event: Event, target: str | None) -> None:
        if target is not None:
            machine.receive_at(event, target)
        elif child := self._child_for(event):
            child.receive(event, None)
        else:
            kept = len(machine.early)
            machine.receive(event)
            if self.log.internal_readers and len(machine.early) > kept:
                self.log.append(UnhandledEvent(event=event))
        self._is_idle = False

    def _child_for(self, event: Event) -> Steering | None:
        if not self._children or not isinstance(event, HumanResponseEvent) or self._expects(event):
            return None
        takers = [child for child in self._children if child.takes(event)]
        # Of several that could use it, one that has asked and got no answer yet.
        asking = (child for child in takers if child.asks(event))
        return next(asking, takers[0] if takers else None)

    def _expects(self, event: Event) -> bool:
        machine = self._machine
        if machine is None or self.outcome.status:
            return False
        return machine.first_wait(event) is not None or bool(self.graph.targets(type(event)))

    def takes(self, event: Event) -> bool:
        """Whether this run, or a child of it, has use for an answer."""
        return self._expects(event) or self._child_for(event) is not None

    def answer_classes(self) -> tuple[type[HumanResponseEvent], ...]:
        """Return the classes of answers that this run, or a child of it, has use for now."""
        taken = [kind for step in self.graph.steps for kind in step.accepts]
        if self._machine is not None:
            taken += [wait.kind for wait in self._machine.waits if not wait.is_over]
        for child in self._children:
            taken += child.answer_classes()
        return tuple(dict.fromkeys(k for k in taken if issubclass(k, HumanResponseEvent)))

    def asks(self, event: Event) -> bool:
        """Whether this run, or a child of it, has asked for an answer that it has not got."""
        machine = self._machine
        if machine is None:
            return False
        if machine.questions or machine.first_wait(event) is not None:
            return True
        return any(child.asks(event) for child in self._children)

    # -- time ------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and the run waits for an event from outside."""
        if self._is_idle or self._machine is None:
            return self._is_idle
        machine = self._machine
        expects = machine.outside_waits or len(self._children) > self.busy_children
        return bool(expects) and not self.busy_children and machine.is_at_rest

    def idle_changed(self) -> None:
        """Tell those who asked whether the run is idle: readers, the clock of its timeout, parents."""
        if self.log.internal_readers and self.is_idle is not self._told_idle:
            self._told_idle = not self._told_idle
            if self._told_idle:
                self.log.append(WorkflowIdleEvent())
        if self.options.excludes_waiting and self._backend is not None:
            self.clock.stand(self._backend, still=self.is_idle)
        if self._parent is not None:
            self._parent.child_idle_changed(self)
            self._parent.check_drained()

    def child_idle_changed(self, child: Runner) -> None:
        """Take note of whether a child of a step waits for an event from outside."""
        is_idle = child.is_idle
        if is_idle is not child.rests_in_parent:
            child.rests_in_parent = is_idle
            machine, context = self._machine, self._children[child]
            assert machine is not None
            if is_idle:
                self.busy_children -= 1
                machine.begin_rest(context, is_strict=False)
            else:
                self.busy_children += 1
                machine.end_rest(context, is_strict=False)
        self.idle_changed()

    def now(self) -> float:
        """Return the time on the backend's clock, where the run is over that of its end."""
        if self._backend is None or self.outcome.is_over:
            return self.clock.ended_at
        return self._backend.current_time()

    def time_taken(self) -> float:
        """Return the seconds that the run has taken so far."""
        return self.clock.taken(None if self.outcome.is_over else self._backend)
