"""The stage on Trio: an instrument that is called at every step, and a mock clock."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

import trio

from sluicegate.testing._sweeps.frames import waits_for_tasks, waits_for_thread
from sluicegate.testing._sweeps.stage import REASON, Block, Stage, Strand
from sluicegate.testing._sweeps.trial import CRASH
from sluicegate.testing._sweeps.trio_time import (
    PatientClock,
    mock_clock,
    seeded_trio,
    shielded_deadlines,
)


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from sluicegate.testing._sweeps.stage import Staging
    from sluicegate.testing._sweeps.trial import At, Mode


Task = trio.lowlevel.Task


class _TrioScopeBlock(Block):
    """A part of a scenario inside a cancel scope; implements all kinds of disturbance."""

    stage: TrioStage

    def __init__(self, stage: TrioStage, strand: Strand[Task]) -> None:
        super().__init__(stage, strand)
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        self._scope.__enter__()

    def leave(self, *exc_info: Any) -> bool:
        """See the parent."""
        is_handled = bool(self._scope.__exit__(*exc_info))
        self.has_caught = self._scope.cancelled_caught
        return is_handled

    def strike(self) -> None:
        """See the parent."""
        kind = self.stage.at.kind
        if kind in {"scope", CRASH}:
            if kind == CRASH:
                self.stage.cut()
            self._scope.cancel(REASON)
        elif kind == "deadline":
            seconds = self.stage.seconds_to_pass(shielded_deadlines(_runner()))
            self._scope.deadline = self.stage.now() + seconds
            self.stage.let_pass(seconds)
        elif kind == "error":
            self.stage.inject(self.stage.new_error())
        else:
            self.stage.interrupt()


class TrioStage(Stage[Task], trio.abc.Instrument):
    """One run of a scenario on Trio."""

    def __init__(self, staging: Staging, at: At) -> None:
        super().__init__(staging, at)
        self.clock = mock_clock()
        #: System tasks that the scenario has started and that have not ended.
        self.system: set[Task] = set()
        self._alarm = trio.CancelScope()
        self._outer = trio.CancelScope()
        self._in_threads = PatientClock(self.clock)
        self._is_interrupted = False
        #: The exception that our own instrument raised.
        self._failure: BaseException | None = None

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        """Run ``main``, which runs the scenario, in a new event loop.

        Raises:
            BaseException: The exception of ``main``.
        """
        try:
            with seeded_trio(self.at.seed):
                return trio.run(self._with_alarm, main, clock=self.clock, instruments=[self])
        except trio.TrioInternalError:
            if self._failure is not None:
                raise self._failure from None
            if not self.stuck:
                raise
            return None

    async def _with_alarm(self, main: Callable[[], Awaitable[Any]]) -> Any:
        self.host = self.strands[trio.lowlevel.current_task()]
        trio.lowlevel.spawn_system_task(self._watch, name="the sweep's alarm")
        return await main()

    async def _watch(self) -> None:
        while not self.stuck:
            with self._alarm:
                await trio.sleep_forever()
            self._alarm = trio.CancelScope()
            self.alarmed()

    # -- instrument ----------------------------------------------------------------------------

    def task_spawned(self, task: Task) -> None:
        """Wrap the coroutine of a new task before it is used."""
        code = getattr(task.coro, "cr_code", None)
        parent = task.parent_nursery and task.parent_nursery.parent_task
        is_host = self.host is None and code is TrioStage._with_alarm.__code__
        if not is_host and parent not in self.strands:
            if self.is_counting and code is not TrioStage._watch.__code__:
                self.system.add(task)
            return
        strand = Strand(self, task.coro)
        strand.task = task
        self.strands[task] = strand
        task.coro = cast("Any", strand)

    def task_exited(self, task: Task) -> None:
        """Called when a task has ended."""
        self.system.discard(task)

    def before_task_step(self, task: Task) -> None:
        """Called when a task is about to resume."""
        with self._telling():
            self._before(task)

    def after_task_step(self, task: Task) -> None:
        """Called when a task has made a step."""
        with self._telling():
            self._after(task)

    @contextmanager
    def _telling(self) -> Generator[None]:
        # Trio would log an instrument's exception, and continue without the instrument.
        try:
            yield
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised by run()
            self._failure = self._failure or error
            self.give_up("could not be swept further")

    def _before(self, task: Task) -> None:
        self._in_threads.before_task_step(task)
        strand = self.strands.get(task)
        if strand is None:
            self.time_may_pass()
        else:
            self.waking(strand)

    def _after(self, task: Task) -> None:
        strand = self.strands.get(task)
        if strand is None:
            return
        self._in_threads.note(task, strand.coro)
        self.parked(strand)

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio's own name
        """Called when nothing is left to run in this turn."""
        self.time_may_pass()

    # -- see the parent ------------------------------------------------------------------------

    def now(self) -> float:
        """See the parent."""
        return self.clock.current_time()

    def current_task(self) -> Task:
        """See the parent."""
        return trio.lowlevel.current_task()

    def name_of(self, strand: Strand[Task]) -> str:
        """See the parent."""
        return "the scenario" if strand is self.host else strand.task.name

    def new_block(self, strand: Strand[Task]) -> Block:
        """See the parent."""
        return _TrioScopeBlock(self, strand)

    def can_strike(self, strand: Strand[Task], mode: Mode) -> bool:
        """See the parent. An error can replace only a wait that can be aborted."""
        if self.at.kind != "error":
            return True
        can_abort = cast("Any", strand.task)._abort_func is not None
        waits_for_others = waits_for_tasks(strand.coro) or waits_for_thread(strand.coro)
        return mode == "park" and can_abort and not waits_for_others

    @contextmanager
    def outermost(self) -> Generator[None]:
        """See the parent."""
        self._outer = trio.CancelScope()
        try:
            with self._outer:
                yield
        finally:
            if self._is_interrupted:  # an interrupt that came too late must not hit later code
                _runner().ki_pending = False

    def strike_again(self) -> None:
        """See the parent."""
        self._outer.cancel(REASON)

    def is_all_cancelled(self, error: BaseException | None) -> bool:
        """See the parent."""
        if self.at.kind == "interrupt":
            return self._is_interrupted and _is_only(KeyboardInterrupt, error)
        assert self.whole is not None
        return error is None and (self.whole.has_caught or self._outer.cancelled_caught)

    def sent(self, strand: Strand[Task], sent: Any) -> Any:
        """See the parent."""
        error = getattr(sent, "error", None)
        if self.where and isinstance(error, trio.Cancelled | KeyboardInterrupt) and _is_ours(error):
            self.note_seen(strand)
        return sent

    def waits_for_thread(self) -> bool:
        """See the parent."""
        return bool(self._in_threads.waiting)

    def set_alarm(self, when: float) -> None:
        """See the parent."""
        self._alarm.deadline = when

    def abandon(self) -> None:
        """See the parent. A clock that raises makes Trio crash, which ends the run."""
        cast("Any", self.clock).current_time = _no_time

    def pass_time(self, seconds: float) -> None:
        """See the parent."""
        self.clock.jump(seconds)

    # -- other kinds ---------------------------------------------------------------------------

    def inject(self, error: BaseException) -> None:
        """Abort a task's wait, and make the wait raise an error.

        The only place that uses ``Task._attempt_abort``, Trio's own way of aborting a wait without
        a cancellation (Trio uses it for Ctrl-C).
        """

        def raise_error() -> NoReturn:
            raise error

        assert self.struck is not None
        cast("Any", self.struck.task)._attempt_abort(raise_error)

    def interrupt(self) -> None:
        """Do what Trio does at Ctrl-C while its own code runs: interrupt the main task's wait."""
        self._is_interrupted = True
        _runner().ki_pending = True
        assert self.host is not None
        cast("Any", self.host.task)._attempt_delivery_of_pending_ki()


def _is_ours(error: trio.Cancelled | KeyboardInterrupt) -> bool:
    return isinstance(error, KeyboardInterrupt) or error.reason == REASON


def _is_only(kind: type[BaseException], error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_only(kind, part) for part in cast("Any", error).exceptions)
    return isinstance(error, kind)


def _no_time() -> float:
    msg = "this run was abandoned"
    raise RuntimeError(msg)


def _runner() -> Any:
    return cast("Any", trio)._core._run.GLOBAL_RUN_CONTEXT.runner
