"""Waiting in the middle of a step: a suspension, and the event that ends it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from penstock._backends import current_backend, enable_ki_protection
from penstock._errors import WorkflowTimeoutError


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from penstock._backends import Waiter
    from penstock._engine.machine import Machine
    from penstock._events import Event


_NOTHING = object()


class Wait:
    """A step that waits for an event in its middle: ``ctx.wait_for_event``."""

    __slots__ = ("event", "kind", "requirements", "waiter")

    def __init__(self, kind: type[Event], requirements: Mapping[str, Any], waiter: Waiter) -> None:
        self.kind = kind
        self.requirements = requirements
        self.waiter = waiter
        #: The event, once it is there.
        self.event: Event | None = None

    @property
    def is_over(self) -> bool:
        """Whether the event is there."""
        return self.event is not None

    def fits(self, event: Event) -> bool:
        """Whether ``event`` is what this waits for."""
        return isinstance(event, self.kind) and all(
            event.get(name, _NOTHING) == value for name, value in self.requirements.items()
        )

    def take(self, event: Event) -> bool:
        """Take ``event`` if it fits and none has been taken yet."""
        if self.event is not None or not self.fits(event):
            return False
        self.event = event
        self.waiter.wake()
        return True

    def __repr__(self) -> str:
        needs = ", ".join(f"{name}={value!r}" for name, value in self.requirements.items())
        return f"{self.kind.__name__}({needs})"


@enable_ki_protection
async def wait_for(
    wait: Wait,
    step: object,
    *,
    machine: Machine,
    ask: Callable[[], None],
    timeout: float | None,  # noqa: ASYNC109 - whose message tells what was waited for
) -> Event:
    """See :meth:`penstock.Context.wait_for_event`; ``ask`` is called once the wait is known."""
    backend = current_backend()
    await backend.checkpoint_if_cancelled()
    deadline = inf if timeout is None else backend.current_time() + timeout
    machine.begin_wait(step, wait)
    is_taken = False
    try:
        ask()
        if wait.is_over:
            await backend.checkpoint()
        with backend.cancel_scope(deadline=deadline):
            while not wait.is_over:
                await wait.waiter.wait()
        is_taken = wait.is_over
    finally:
        machine.end_wait(wait, is_taken=is_taken)
    if wait.event is None:
        msg = f"no {wait!r} came within {timeout:g} s"
        raise WorkflowTimeoutError(msg, timeout)
    return wait.event
