"""A stage runs a scenario once, observes every step of its tasks, and strikes it at one moment.

A *strand* wraps the coroutine of each task. The event loop notifies the stage when a strand has
parked and when it is about to resume. The stage counts these moments; at one of them it cancels
the scenario, or a part of it. :mod:`.trio_stage` and :mod:`.asyncio_stage` implement this for their
event loops.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from math import inf
from typing import Any, Final, Generic, TypeVar

import attrs

from sluicegate.testing._sweeps.crash import Crash, Loss
from sluicegate.testing._sweeps.frames import CodePlace, await_places, tell_await
from sluicegate.testing._sweeps.leftovers import for_others
from sluicegate.testing._sweeps.trial import (
    CRASH,
    At,
    InjectedError,
    Mode,
    Outcome,
    Scenario,
    Trial,
)


#: The steps that a scenario may take after it was struck, in addition to a multiple of those before.
SPIN_STEPS: Final = 20_000

#: The cancellation reason that distinguishes our cancellation from the scenario's own.
REASON: Final = "struck by sluicegate.testing"

#: The virtual seconds that an undisturbed run may take.
LONGEST: Final = 1e8

#: How often a run whose time is up still waits for a thread, each time for 0.2 real seconds.
THREAD_PATIENCE: Final = 10

TaskT = TypeVar("TaskT")

LOGGER: Final = logging.getLogger("sluicegate")


def _say_nothing(_record: logging.LogRecord) -> bool:
    """Filter out the log records of a life that was cut off."""
    return False


class Strand(Coroutine[Any, Any, Any], Generic[TaskT]):
    """Wraps the coroutine of one task, and observes everything that is sent or thrown into it."""

    __slots__ = ("block", "coro", "has_begun", "named", "seen", "stage", "task")

    task: TaskT

    def __init__(self, stage: Stage[TaskT], coro: Any) -> None:
        self.stage = stage
        self.coro = coro
        #: The block of the whole task, if the task is a target.
        self.named: Block | None = None
        #: The innermost open block of this task that is a target.
        self.block: Block | None = None
        self.has_begun = False
        #: Where the cancellation reached it; None if it has not.
        self.seen: list[CodePlace] | None = None

    def __getattr__(self, name: str) -> Any:
        # Event loops and inspect look at the frame of a task's coroutine.
        return getattr(self.coro, name)

    def tell(self) -> str:
        """Describe the task and the place where it waits."""
        if not self.has_begun:
            return f"{self.stage.name_of(self)!r} before its first step"
        return f"{self.stage.name_of(self)!r} at {tell_await(list(await_places(self.coro)))}"

    def send(self, value: Any) -> Any:
        """See :class:`collections.abc.Coroutine`."""
        if not self.has_begun:
            self._begin()
        elif value is not None:
            value = self.stage.sent(self, value)
        return self._step(self.coro.send, value)

    def throw(self, error: Any, value: Any = None, trace: Any = None) -> Any:
        """See :class:`collections.abc.Coroutine`."""
        if not isinstance(error, BaseException):
            return self.coro.throw(error, value, trace)
        if not self.has_begun:
            self._begin()
        return self._step(self.coro.throw, self.stage.sent(self, error))

    def close(self) -> None:
        """See :class:`collections.abc.Coroutine`."""
        self.coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coro.__await__()  # type: ignore[no-any-return]

    def _begin(self) -> None:
        self.has_begun = True
        self.stage.strand_begins(self)
        if self.named is not None:
            self.named.__enter__()

    def _step(self, resume: Callable[[Any], Any], value: Any) -> Any:
        stage = self.stage
        stage.steps += 1
        named = self.named
        try:
            sent = resume(value)
        except StopIteration:
            stage.strand_ended(self)
            stage.note_kept(self)
            if named is not None:
                named.__exit__(None, None, None)
                stage.note_swallowed(named, self, stage.name_of(self))
            raise
        except BaseException as error:
            stage.strand_ended(self)
            if named is None or not named.__exit__(type(error), error, error.__traceback__):
                raise
            raise StopIteration from None  # noqa: ASYNC104 - caught by its own block
        stage.strand_yielded(self)
        return sent


class Block(ABC):
    """A part of a scenario that can be struck: a named block, a whole task, or the scenario.

    It is entered and left in its own task. Exceptions pass through it, except its own cancellation
    by a scope or a timeout. A whole task may be struck before it is entered, and between the steps
    of tasks, when no task is current.

    Args:
        stage: The run.
        strand: The task of the block.
    """

    def __init__(self, stage: Stage[Any], strand: Strand[Any]) -> None:
        self.stage = stage
        self.strand = strand
        self.is_struck = False
        #: Whether it has caught its own cancellation.
        self.has_caught = False

    @abstractmethod
    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> bool:
        return self.leave(*exc_info)

    @abstractmethod
    def leave(self, *exc_info: Any) -> bool:
        """Leave it, like ``__exit__``."""

    @abstractmethod
    def strike(self) -> None:
        """Cancel the block. Called between the steps of tasks."""


@attrs.frozen(kw_only=True)
class Staging:
    """The settings of all runs of a scenario."""

    scenario: Scenario
    takes_trial: bool
    modes: tuple[Mode, ...]
    target: str | None
    error: BaseException | type[BaseException] = InjectedError
    within: float
    check: Callable[[Outcome], Any] | None
    fresh: bool
    raises: tuple[type[BaseException], ...]
    allow: frozenset[str]
    loses: Loss = "pending"


class Stage(ABC, Generic[TaskT]):
    """One run of a scenario.

    Args:
        staging: The settings.
        at: Where and how to strike. If the position is never reached, the run is not struck.
    """

    def __init__(self, staging: Staging, at: At) -> None:
        self.staging = staging
        self.at = at
        #: The number of moments so far.
        self.moments = 0
        #: The number of steps that the scenario's tasks have made so far.
        self.steps = 0
        #: The task whose moment it was when the scenario was struck.
        self.struck: Strand[TaskT] | None = None
        #: The tasks of the blocks that were struck.
        self.hit: set[Strand[TaskT]] = set()
        #: Where the other tasks were then; shown if the run fails.
        self.beside: list[tuple[str, list[CodePlace]]] = []
        #: A description of where it was struck; empty if it was not.
        self.where = ""
        #: The virtual time at which it was struck, or began.
        self.since = 0.0
        #: Whether moments count: only between the beginning and the end of the scenario.
        self.is_counting = False
        #: Why the run had to be given up, and the tasks alive then; empty if it was not.
        self.stuck = ""
        self.alive: list[str] = []
        #: The limits: a name for the part that has to end, its virtual seconds, its last step.
        self._doing = "it"
        self._seconds = LONGEST
        self._patience = THREAD_PATIENCE
        self._last_step, self._most_steps = SPIN_STEPS * 50, SPIN_STEPS * 51
        self._spins_since: float = -1.0
        #: The names of the tasks and blocks that could be targets.
        self.names: set[str] = set()
        #: The tasks that the cancellation reached, there, and that ended without an exception.
        self.kept: list[tuple[str, list[CodePlace]]] = []
        #: The error raised in place of an await.
        self.injected: BaseException | None = None
        #: Whether the second cancellation was reached.
        self.is_struck_again = False
        #: The life of the scenario that a crash would cut off.
        self.crash = Crash(staging.loses, self.now)
        #: The named block or task that swallowed its cancellation.
        self.swallowed = ""
        self.strands: dict[TaskT, Strand[TaskT]] = {}
        self.host: Strand[TaskT] | None = None
        self.whole: Block | None = None
        #: The blocks that could be struck when a task parked, if nothing has happened since.
        self._instant: tuple[Block, ...] = ()

    # -- notifications from the event loop -------------------------------------------------------------

    def parked(self, strand: Strand[TaskT]) -> None:
        """Called when a task has made a step and waits."""
        if self.is_counting:
            self._instant = self._moment(strand, "park")
        if self.steps > self._last_step and not self.stuck:
            now = self.now()
            if now == self._spins_since:
                self.give_up("keeps running while no virtual time passes")
            elif self.steps > self._most_steps:
                self.give_up("keeps running while virtual time passes")
            self._spins_since, self._last_step = now, self.steps + SPIN_STEPS

    def waking(self, strand: Strand[TaskT]) -> None:
        """Called when a task is about to resume."""
        if self.is_counting:
            if not strand.has_begun:
                self._name(strand)
            self._moment(strand, "wake")
        self._instant = ()

    def _name(self, strand: Strand[TaskT]) -> None:
        name = self.name_of(strand)
        self.names.add(name)
        if strand.named is None and self.is_target(name):
            strand.named = self.new_block(strand)

    def strand_begins(self, strand: Strand[TaskT]) -> None:
        """Called at a task's first step, which for an eager task is the first notification."""
        if self.is_counting:
            self._name(strand)

    def time_may_pass(self) -> None:
        """Called when something other than a task's step happened."""
        self._instant = ()

    def strand_ended(self, strand: Strand[TaskT]) -> None:
        """Called when a task has made its last step."""
        self._instant = ()
        self.strands.pop(strand.task, None)

    def note_kept(self, strand: Strand[TaskT]) -> None:
        """Called when a task has ended without an exception."""
        if strand.seen is not None and self.is_counting:
            self.kept.append((self.name_of(strand), strand.seen))

    def note_seen(self, strand: Strand[TaskT]) -> None:
        """Called when the cancellation has reached a task."""
        if strand.seen is None:
            strand.seen = list(await_places(strand.coro))

    def strand_yielded(self, strand: Strand[TaskT]) -> None:
        """Called when a coroutine has yielded, before the event loop handles the value."""

    # -- moments -------------------------------------------------------------------------------

    def _moment(self, strand: Strand[TaskT], mode: Mode) -> tuple[Block, ...]:
        """Count the moment, if it is one, and return the blocks that it can strike."""
        blocks = self._targets_of(strand)
        if not blocks or mode not in self.staging.modes or not self.can_strike(strand, mode):
            return ()
        if blocks == self._instant:  # one task has parked and another resumes: one moment
            return blocks
        self.moments += 1
        at = self.at
        if self.moments == at.position:
            moment = f"{strand.tell()}, {'blocked' if mode == 'park' else 'about to resume'}"
            others = {block.strand.tell() for block in blocks if block.strand is not strand}
            if self.staging.target is not None and others:
                moment = f"{', '.join(sorted(others))}; when {moment}"
            self.where = moment
            self.since = self.now()
            self.allow_time("it", self.staging.within, self.steps * 50)
            self.struck = strand
            self.hit = {block.strand for block in blocks}
            self.beside = [
                (self.name_of(other), list(await_places(other.coro)))
                for other in self.strands.values()
                if other is not strand and other.has_begun
            ]
            for block in blocks:
                block.is_struck = True
                block.strike()
        elif at.again and self.moments == at.position + at.again:
            self.is_struck_again = True
            self.where += f"; a second time when {strand.tell()}"
            if at.kind == CRASH:
                blocks[0].strike()
            else:
                self.strike_again()
        return blocks

    def _targets_of(self, strand: Strand[TaskT]) -> tuple[Block, ...]:
        """Return the blocks to strike at a moment of this task: its own, or else all targets."""
        # The second time, the whole scenario is struck; a crash spares no part of it.
        if self.staging.target is None or self.where or self.at.kind == CRASH:
            return () if self.whole is None else (self.whole,)
        own = strand.block or strand.named
        if own is not None:
            return (own,)
        if self.at.kind == "error":
            return ()
        opened = (other.block or other.named for other in self.strands.values())
        return tuple(block for block in opened if block is not None)

    def cut(self) -> None:
        """Cut off this life of the scenario; its later actions are not observed."""
        self.is_counting = False
        self.crash.cut()
        LOGGER.addFilter(_say_nothing)

    def is_target(self, name: str) -> bool:
        """Whether a task or block of this name is a target."""
        return self.staging.target is not None and fnmatchcase(name, self.staging.target)

    @contextmanager
    def open_target(self, name: str) -> Generator[None]:
        """Enter a block that may be a target; see :meth:`Trial.target`."""
        strand = self.strands.get(self.current_task())
        if self.is_counting:
            self.names.add(name)
        if not self.is_counting or strand is None or not self.is_target(name):
            yield
            return
        block, outer = self.new_block(strand), strand.block
        with block:
            strand.block = block
            try:
                yield
            finally:
                strand.block = outer
        self.note_swallowed(block, strand, name)

    def note_swallowed(self, block: Block, strand: Strand[TaskT], name: str) -> None:
        """Called when a target has ended without an exception."""
        if block.is_struck and strand.seen is not None and not block.has_caught:
            self.swallowed = name

    def seconds_to_pass(self, shielded: Iterable[float]) -> float:
        """Return by how many seconds the clock may advance to a deadline.

        Shielded clean-up that only waits for its turn takes no time, and must not be reported as
        too slow. So the clock advances only half of the way to the first of its deadlines.

        Args:
            shielded: The deadlines of shielded clean-up.
        """
        now = self.now()
        left = (when - now for when in shielded if now < when < inf)
        return min(LONGEST / 2, min(left, default=inf) / 2)

    def let_pass(self, seconds: float) -> None:
        """Advance the clock to a deadline; the scenario's seconds count from there."""
        self.pass_time(seconds)
        self.since = self.now()
        self.allow_time("it", self.staging.within, self.steps * 50)

    def allow_time(self, doing: str, seconds: float, steps: int) -> None:
        """Set the limits after which the run is given up.

        Args:
            doing: A description of what has to end.
            seconds: The virtual seconds from now within which it has to end.
            steps: The steps of tasks, counted from the beginning, within which it has to end;
                ``SPIN_STEPS`` are added.
        """
        self._doing, self._seconds, self._last_step = doing, seconds, steps + SPIN_STEPS
        self._most_steps = self.steps + SPIN_STEPS * 51
        self.set_alarm(self.now() + seconds)

    def alarmed(self) -> None:
        """Give up because the time is up; wait for a thread, which is slow on a busy machine."""
        if self._patience and self.waits_for_thread():
            self._patience -= 1
            self.set_alarm(self.now() + self._seconds)
        elif not self.stuck:
            if self._seconds == LONGEST:
                self.give_up("did not end: no task can ever resume")
            else:
                self.give_up(f"did not end within {self._seconds:g} virtual seconds")

    def give_up(self, why: str) -> None:
        """End a run that does not end by itself; note the tasks that are alive, and abandon them."""
        self.stuck = f"{self._doing} {why}"
        self.alive = [strand.tell() for strand in self.strands.values()]
        self.is_counting = False
        LOGGER.removeFilter(_say_nothing)
        self.abandon()

    # -- the scenario --------------------------------------------------------------------------

    async def attempt(self, *, strikes: bool, crash: Crash | None = None) -> Outcome:
        """Run the scenario once, to its end.

        Args:
            strikes: Whether this run may be struck.
            crash: The life that it is; by default a first one.
        """
        LOGGER.removeFilter(_say_nothing)
        self.crash = Crash(self.staging.loses, self.now) if crash is None else crash
        trial = Trial(self.at.backend, self.open_target, self.crash)
        staging = self.staging
        call = staging.scenario(trial) if staging.takes_trial else staging.scenario()
        assert self.host is not None
        self.whole = whole = self.new_block(self.host)
        self.since = self.now()
        what = "it" if strikes else "the fresh run after it failed: it"
        self.allow_time(what, LONGEST, self.steps + SPIN_STEPS * 49)
        value: Any = None
        error: BaseException | None = None
        try:
            with self.outermost(), whole:
                self.is_counting = strikes
                try:
                    value = await call
                    self.note_kept(self.host)
                finally:
                    self.is_counting = False
        except BaseException as raised:  # noqa: ASYNC103, BLE001 - judged below
            other = for_others(raised, (*staging.raises, *self._ours()))
            if other is not None:
                raise other from None  # noqa: ASYNC104 - found inside it
            error = raised
        is_cancelled = self.is_all_cancelled(error) and strikes
        struck = bool(self.where) and strikes
        return Outcome(
            at=self.at if strikes else At(self.at.backend, seed=self.at.seed),
            struck=struck,
            where=self.where if strikes else "",
            value=value,
            error=None if is_cancelled else error,
            cancelled=is_cancelled,
            state=trial.state,
            seconds=self.now() - self.since,
            ledger=tuple(self.crash.ledger),
            lives=self.crash.life,
        )

    def _ours(self) -> tuple[type[BaseException], ...]:
        """Return the classes of exceptions that this stage itself may have raised."""
        if not self.where:
            return ()
        if self.at.kind == "interrupt":
            return (KeyboardInterrupt,)
        return () if self.injected is None else (type(self.injected),)

    def new_error(self) -> BaseException:
        """Return the error that an await is to raise."""
        error = self.staging.error
        self.injected = error(REASON) if isinstance(error, type) else error
        # A user's exception object is raised in every run: drop what the last run attached to it.
        self.injected.__traceback__ = self.injected.__context__ = None
        return self.injected

    # -- per event loop ------------------------------------------------------

    @abstractmethod
    def now(self) -> float:
        """Return the virtual time."""

    @abstractmethod
    def current_task(self) -> TaskT:
        """Return the current task."""

    @abstractmethod
    def name_of(self, strand: Strand[TaskT]) -> str:
        """Return the name of a task."""

    @abstractmethod
    def new_block(self, strand: Strand[TaskT]) -> Block:
        """Return a block that this run's kind of disturbance can strike."""

    @abstractmethod
    def can_strike(self, strand: Strand[TaskT], mode: Mode) -> bool:
        """Whether this run's kind of disturbance is possible at this moment."""

    @abstractmethod
    def strike_again(self) -> None:
        """Cancel the whole scenario a second time."""

    @abstractmethod
    def outermost(self) -> AbstractContextManager[None]:
        """Return a context manager that catches the second cancellation, and exceptions that leave the block."""

    @abstractmethod
    def is_all_cancelled(self, error: BaseException | None) -> bool:
        """Whether the cancellation, and nothing else, ended the scenario."""

    @abstractmethod
    def sent(self, strand: Strand[TaskT], sent: Any) -> Any:
        """Observe a value or exception that is sent into a coroutine, and return it or another."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Advance the clock."""

    @abstractmethod
    def waits_for_thread(self) -> bool:
        """Whether a task waits for a thread."""

    @abstractmethod
    def set_alarm(self, when: float) -> None:
        """Set the time at which :meth:`alarmed` is called."""

    @abstractmethod
    def abandon(self) -> None:
        """End the event loop, whatever is left in it."""
