"""The stage on asyncio: a loop with virtual time that notifies the stage before each callback."""

from __future__ import annotations

import asyncio
import queue
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, cast

from sluicegate.testing._sweeps.asyncio_time import (
    VirtualLoop,
    shielded_deadlines,
    task_of,
    workers_of,
)
from sluicegate.testing._sweeps.frames import is_library, waits_for_tasks, waits_for_thread
from sluicegate.testing._sweeps.stage import LONGEST, REASON, Block, Stage, Strand
from sluicegate.testing._sweeps.trial import CRASH


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import anyio

    from sluicegate.testing._sweeps.stage import Staging
    from sluicegate.testing._sweeps.trial import At, Mode


Task = asyncio.Task[Any]

#: The turns of the loop that leftover tasks get after a run.
_LAST_TURNS: Final = 150


class _StageLoop(VirtualLoop):
    """An event loop that notifies its stage of every step."""

    def __init__(self, stage: AsyncioStage) -> None:
        super().__init__(stage.at.seed)
        self._stage = stage

    def _round_begins(self) -> None:
        super()._round_begins()
        self._stage.settle()
        self._stage.time_may_pass()

    def _next_handle(self, ready: Any) -> None:
        self._stage.settle()
        super()._next_handle(ready)
        handle = ready[0]
        strand = (
            None if handle.cancelled() else self._stage.strands.get(cast("Any", task_of(handle)))
        )
        if strand is None:
            self._stage.time_may_pass()
        else:
            self._stage.waking(strand)

    def create_task(self, coro: Any, **options: Any) -> Task:
        """See the parent."""
        strand = Strand[Task](self._stage, coro)
        task = super().create_task(strand, **options)
        if not strand.has_begun:  # else it was started eagerly
            self._stage.begins_as(strand, task)
        return task

    def run_now(self, callback_of: Callable[[], object]) -> None:
        """Call a function, and run the callback that it schedules immediately."""
        callback_of()
        self._ready.pop()._run()

    def cancel_in_order(self, cancel: Callable[[], object]) -> None:
        """Call a function that cancels tasks; see :meth:`_Ready.order_cancelled`."""
        before = len(self._ready)
        cancel()
        self._ready.order_cancelled(before)


class _TaskBlock(Block):
    """A part of a scenario that is struck by cancelling its task natively."""

    stage: AsyncioStage

    def __enter__(self) -> None: ...

    def leave(self, *_: Any) -> bool:
        """See the parent."""
        return False

    def strike(self) -> None:
        """See the parent."""
        if self.stage.at.kind == "error":
            self.stage.inject()
        else:
            self.strand.task.cancel(REASON)


class _AnyioScopeBlock(Block):
    """A part of a scenario inside AnyIO's cancel scope."""

    stage: AsyncioStage
    #: Created in the task, because AnyIO looks up the running event loop.
    scope: anyio.CancelScope | None = None

    def __enter__(self) -> None:
        import anyio  # noqa: PLC0415 - imported on demand

        self.scope = anyio.CancelScope()
        self.scope.__enter__()
        if self.is_struck:
            self.strike()

    def leave(self, *exc_info: Any) -> bool:
        """See the parent."""
        assert self.scope is not None
        is_handled = bool(self.scope.__exit__(*exc_info))
        self.has_caught = self.scope.cancelled_caught
        return is_handled

    def strike(self) -> None:
        """See the parent."""
        scope = self.scope
        if scope is None:
            return
        self.stage.scope_names.add(f"cancel scope {id(scope):x}")
        kind = self.stage.at.kind
        if kind == CRASH:
            self.stage.cut()
        if kind in {"scope", CRASH}:
            self.stage.loop.cancel_in_order(scope.cancel)
        else:
            seconds = self.stage.seconds_to_pass(shielded_deadlines(self.stage.loop))
            scope.deadline = self.stage.now() + seconds
            self.stage.let_pass(seconds)


class _TimeoutBlock(Block):
    """A part of a scenario inside an ``asyncio.timeout``."""

    stage: AsyncioStage

    _timeout: asyncio.Timeout | None = None

    def __enter__(self) -> None:
        self._timeout = asyncio.timeout(None)
        _drive(self._timeout.__aenter__())
        if self.is_struck:
            self.strike()

    def leave(self, *exc_info: Any) -> bool:
        """See the parent."""
        assert self._timeout is not None
        try:
            _drive(self._timeout.__aexit__(*exc_info))
        except TimeoutError:
            self.has_caught = True
            return True
        return False

    def strike(self) -> None:
        """See the parent."""
        loop, timeout = self.stage.loop, self._timeout
        if timeout is not None:
            loop.run_now(lambda: timeout.reschedule(loop.time()))


def _drive(coro: Any) -> None:
    try:
        coro.send(None)
    except StopIteration:
        return
    msg = "asyncio.timeout waits; expected it to enter and exit without waiting"
    raise RuntimeError(msg)


def _stop_workers(loop: asyncio.AbstractEventLoop) -> None:
    """End AnyIO's idle threads, which wait for the root task of a loop, if that never ended."""
    for thread in workers_of(loop):
        with suppress(queue.Full):  # already stopped
            cast("Any", thread).queue.put_nowait(None)


class AsyncioStage(Stage[Task]):
    """One run of a scenario on asyncio."""

    def __init__(self, staging: Staging, at: At) -> None:
        super().__init__(staging, at)
        self.loop = _StageLoop(self)
        #: The messages that the loop's exception handler received.
        self.complaints: list[str] = []
        #: AnyIO's names of the scopes that were struck, as its cancellation messages have them.
        self.scope_names: set[str] = set()
        self._alarm: asyncio.TimerHandle | None = None
        #: The tasks that yielded in the last step: one, and those that it started eagerly.
        self._yielded: list[Strand[Task]] = []
        self._injecting: Strand[Task] | None = None

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        """Run ``main``, which runs the scenario, in a new event loop.

        Raises:
            BaseException: The exception of ``main``.
        """
        loop = self.loop
        loop.set_exception_handler(self._complain)
        try:
            self._run_until_complete(loop.create_task(cast("Any", main())))
        except BaseException:
            self.stuck = self.stuck or "it was ended from outside"
            raise
        finally:
            try:
                self._wind_up()
            finally:
                self._yielded = []
                loop.close()  # does not wait for the executor's threads; LeftoverWatch does
                _stop_workers(loop)

    def _run_until_complete(self, task: Task) -> None:
        try:
            self.loop.run_until_complete(task)
        except RuntimeError:
            if not self.stuck:
                raise

    def _wind_up(self) -> None:
        """Cancel leftover tasks, as ``asyncio.run`` does, let them run, and close generators."""
        loop = self.loop
        self.is_counting = False
        told = len(self.complaints)
        since = -3  # the last turn with a task left; its waiter needs one more turn to notice
        for turn in range(_LAST_TURNS):
            left = asyncio.all_tasks(loop)
            if not left and turn > since + 2:
                break
            since = turn if left else since
            if turn % 50 == 0:
                for task in sorted(left, key=lambda task: getattr(task, "number", 0)):
                    task.cancel()
            loop.call_soon(loop.stop)
            loop.run_forever()
        del self.complaints[told:]
        if not self.stuck:
            self.allow_time("closing the async generators that were left", LONGEST, self.steps)
            self._run_until_complete(loop.create_task(loop.shutdown_asyncgens()))

    def begins_as(self, strand: Strand[Task], task: Task) -> None:
        """Register the task of a strand."""
        strand.task = task
        self.strands[task] = strand
        if self.host is None:
            self.host = strand

    def _complain(self, _loop: object, context: dict[str, Any]) -> None:
        if str(context.get("message")).startswith("Task was destroyed"):
            return  # leftover tasks are found by _judge()
        error = context.get("exception")
        self.complaints.append(
            f"{context.get('message')}" + (f": {error!r}" if error is not None else "")
        )

    def settle(self) -> None:
        """Report the task that made the last step as parked."""
        if self._yielded:
            yielded, self._yielded = self._yielded, []
            for strand in yielded:
                self.parked(strand)

    def inject(self) -> None:
        """Cancel a task's wait, and make the wait raise an error instead."""
        assert self.struck is not None
        self._injecting = strand = self.struck
        strand.task.cancel(REASON)
        strand.task.uncancel()

    # -- see the parent ------------------------------------------------------------------------

    def strand_begins(self, strand: Strand[Task]) -> None:
        """See the parent."""
        task = self.current_task()
        if task not in self.strands:  # started eagerly, during another task's step
            self.begins_as(strand, task)
        super().strand_begins(strand)

    def strand_yielded(self, strand: Strand[Task]) -> None:
        """See the parent."""
        self._yielded.append(strand)

    def now(self) -> float:
        """See the parent."""
        return self.loop.time()

    def current_task(self) -> Task:
        """See the parent."""
        return cast("Task", asyncio.current_task())

    def name_of(self, strand: Strand[Task]) -> str:
        """See the parent."""
        return "the scenario" if strand is self.host else strand.task.get_name()

    def new_block(self, strand: Strand[Task]) -> Block:
        """See the parent."""
        kind = self.at.kind
        if kind in {"scope", "deadline", CRASH}:
            return _AnyioScopeBlock(self, strand)
        return _TimeoutBlock(self, strand) if kind == "timeout" else _TaskBlock(self, strand)

    def can_strike(self, strand: Strand[Task], mode: Mode) -> bool:
        """See the parent. An error can replace only a wait for a plain future."""
        if (
            self.at.kind in {"native", "interrupt"}
            and strand.named is not None
            and not strand.has_begun
        ):
            # The coroutine that AnyIO wraps in one of its functions would never be awaited.
            return not is_library(strand.coro.cr_code)
        if self.at.kind != "error":
            return True
        waits_for: Any = cast("Any", strand.task)._fut_waiter
        is_own = type(waits_for) is asyncio.Future
        waits_for_others = waits_for_tasks(strand.coro) or waits_for_thread(strand.coro)
        return mode == "park" and is_own and not waits_for_others

    def outermost(self) -> AbstractContextManager[None]:
        """See the parent."""
        return nullcontext()

    def strike_again(self) -> None:
        """See the parent."""
        assert self.host is not None
        self.host.task.cancel(REASON)

    def is_all_cancelled(self, error: BaseException | None) -> bool:
        """See the parent."""
        assert self.host is not None
        assert self.whole is not None
        while self.host.task.cancelling():
            self.host.task.uncancel()
        if error is None:
            return self.whole.has_caught
        # A native cancellation of a target, or a second one, propagates through the scenario.
        is_native = self.at.kind in {"native", "interrupt"} and self.host in self.hit
        is_native |= self.is_struck_again
        return is_native and isinstance(error, asyncio.CancelledError)

    def sent(self, strand: Strand[Task], sent: Any) -> Any:
        """See the parent."""
        if self.where and isinstance(sent, asyncio.CancelledError):
            if strand is self._injecting:
                self._injecting = None
                return self.new_error()
            if self._is_ours(strand, sent):
                self.note_seen(strand)
        return sent

    def _is_ours(self, strand: Strand[Task], error: asyncio.CancelledError) -> bool:
        text = str(error.args[0]) if error.args else ""
        if self.at.kind == "timeout":  # asyncio.timeout gives no message
            return not text and strand in self.hit
        return text == REASON or any(
            f"{name} " in f"{text} " or f"{name};" in text for name in self.scope_names
        )

    def pass_time(self, seconds: float) -> None:
        """See the parent."""
        self.loop.jump(seconds)

    def waits_for_thread(self) -> bool:
        """See the parent."""
        return self.loop._is_waiting_for_thread()

    def set_alarm(self, when: float) -> None:
        """See the parent."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_at(when, self.alarmed)

    def abandon(self) -> None:
        """See the parent."""
        self.loop.stop()
