"""Waiting in the middle of a step: a suspension, and the event that ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate._errors import WorkflowTimeoutError
from sluicegate._loop import enable_ki_protection


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._engine.invocation import Worker
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.waits import Wait
    from sluicegate._events import Event
    from sluicegate._loop import Backend


@enable_ki_protection
async def wait_for(  # noqa: C901, PLR0912 - one frame: thousands may wait
    wait: Wait,
    step: object,
    *,
    backend: Backend,
    machine: Machine,
    ask: Callable[[], None],
    is_over: Callable[[], bool],
    timeout: float | None,  # noqa: ASYNC109 - whose message tells what was waited for
    worker: Worker | None,
) -> Event:
    """See :meth:`sluicegate.Context.wait_for_event`.

    ``ask`` is called once the wait is known. A ``worker`` gives up its place meanwhile.
    """
    await backend.checkpoint_if_cancelled()
    machine.begin_wait(step, wait)
    if wait.is_away:
        assert worker is not None
        worker.absence = wait
        if worker.turn is not None:
            worker.turn.give_up()
    is_taken = is_late = False
    try:
        ask()
        if wait.is_over:
            await backend.checkpoint()
        del ask  # thousands may wait, and a scope is dear as well
        if timeout is None:
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
        machine.end_wait(wait, is_taken=is_taken, is_over=is_over())
    if wait.event is None:
        if worker is not None:
            await worker.reclaim(machine, wait)
        msg = f"no {wait!r} came within {timeout:g} s"
        raise WorkflowTimeoutError(msg, timeout)
    return wait.event
