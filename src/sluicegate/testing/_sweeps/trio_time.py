"""Virtual time on Trio, and a reproducible schedule."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from sluicegate.testing._sweeps.frames import waits_for_thread


if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from trio.testing import MockClock


#: The real seconds for which the clock pauses while a thread works; the thread may wait for us.
PATIENCE: Final = 0.2


class _InOrder(random.Random):
    """Makes Trio, which takes the last task of a batch first, keep the order of spawning."""

    def shuffle(self, x: Any) -> None:
        x.reverse()


@contextmanager
def seeded_trio(seed: int) -> Generator[None]:
    """Make Trio choose among runnable tasks by a seed, in every run that begins in this block.

    This is the only place that uses Trio's private switch for deterministic scheduling: the flag
    and the random generator of ``trio._core._run``, which pytest-trio and Hypothesis set as well.
    Both are restored at the end. Seed 0 runs tasks in the order in which they were spawned.

    Raises:
        RuntimeError: This version of Trio has no such switch.
    """
    run: Any = cast("Any", trio)._core._run
    try:
        saved = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r
    except AttributeError:
        msg = (
            f"trio {trio.__version__} has no trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING, "
            "which sluicegate.testing needs to repeat a schedule; expected Trio 0.32 or later"
        )
        raise RuntimeError(msg) from None
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r = random.Random(seed) if seed else _InOrder()  # noqa: S311 - reproducible
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING, run._r = saved


def mock_clock() -> MockClock:
    """Return a mock clock that jumps when nothing can run."""
    from trio.testing import MockClock  # noqa: PLC0415 - it imports pytest, if installed

    return MockClock(autojump_threshold=0)


class PatientClock(trio.abc.Instrument):
    """Prevents a mock clock from jumping while a task waits for a thread.

    Args:
        clock: The clock of the run that has this instrument.
    """

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        #: Tasks that wait for a thread.
        self.waiting: set[trio.lowlevel.Task] = set()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Note that a task resumes: its wait is over."""
        if task in self.waiting:
            self.waiting.discard(task)
            if not self.waiting:
                self._clock.autojump_threshold = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Note that a task waits, perhaps for a thread."""
        self.note(task, task.coro)

    def note(self, task: trio.lowlevel.Task, coro: object) -> None:
        """Note that a task waits in the coroutine ``coro``."""
        if waits_for_thread(coro):
            self.waiting.add(task)
            self._clock.autojump_threshold = PATIENCE


def shielded_deadlines(runner: Any) -> Iterator[float]:
    """Yield the deadlines of the scopes that are shielded, or inside of one that is.

    The only place that knows how Trio keeps its deadlines.
    """
    for _, _, scope in runner.deadlines._heap:
        status: Any = scope._cancel_status
        while status is not None:
            if status._scope.shield:
                yield scope.deadline
                break
            status = status._parent
