"""Virtual time on Trio, and a schedule that repeats."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from sluicegate.testing._sweeps.frames import waits_for_thread


if TYPE_CHECKING:
    from collections.abc import Generator

    from trio.testing import MockClock


#: For how many real seconds time stands still while a thread works; it may wait for us, after all.
PATIENCE: Final = 0.2


class _InOrder(random.Random):
    """Leaves a batch of tasks in the order in which they were spawned; Trio takes the last first."""

    def shuffle(self, x: Any) -> None:
        x.reverse()


@contextmanager
def seeded_trio(seed: int) -> Generator[None]:
    """Have Trio choose among runnable tasks by a seed, in every run that begins in this block.

    This is the one place that knows Trio's private switch for deterministic scheduling: the flag
    and the generator of ``trio._core._run``, which pytest-trio and Hypothesis set as well. They
    are put back at the end. Seed 0 runs tasks in the order in which they were spawned.

    Raises:
        RuntimeError: This Trio has no such switch.
    """
    run: Any = cast("Any", trio)._core._run
    try:
        saved = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r
    except AttributeError:
        msg = (
            f"trio {trio.__version__} has no trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING, by "
            "which sluicegate.testing repeats a schedule; expected a Trio from 0.32 on that has it"
        )
        raise RuntimeError(msg) from None
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r = random.Random(seed) if seed else _InOrder()  # noqa: S311 - it is to repeat
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING, run._r = saved


def mock_clock() -> MockClock:
    """Return a mock clock that jumps as soon as nothing can run."""
    from trio.testing import MockClock  # noqa: PLC0415 - it imports pytest, where there is one

    return MockClock(autojump_threshold=0)


class PatientClock(trio.abc.Instrument):
    """Keeps a mock clock from jumping while a task waits for a thread.

    Args:
        clock: The clock of the run that this instrument is in.
    """

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        #: Tasks that wait for a thread.
        self.waiting: set[trio.lowlevel.Task] = set()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task goes on; what it waited for is there."""
        if task in self.waiting:
            self.waiting.discard(task)
            if not self.waiting:
                self._clock.autojump_threshold = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task waits, for a thread perhaps."""
        self.note(task, task.coro)

    def note(self, task: trio.lowlevel.Task, coro: object) -> None:
        """A task waits in the coroutine ``coro``."""
        if waits_for_thread(coro):
            self.waiting.add(task)
            self._clock.autojump_threshold = PATIENCE
