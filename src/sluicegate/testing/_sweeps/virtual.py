"""Runs programs in virtual time, on either event loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, cast

import trio

from sluicegate.testing._sweeps.asyncio_time import VirtualLoop
from sluicegate.testing._sweeps.trio_time import PatientClock, mock_clock, seeded_trio


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


T = TypeVarTuple("T")
R = TypeVar("R")


def refuse_running_loop(call: str) -> None:
    """Check that no event loop is running.

    Raises:
        RuntimeError: One is running in this thread.
    """
    is_running = trio.lowlevel.in_trio_run()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        is_running = True
    if is_running:
        msg = (
            f"{call}() was called inside a running event loop, and it starts its own; "
            f"expected the call in a plain function, def test_it(): {call}(...)"
        )
        raise RuntimeError(msg)


def run_virtually(
    async_fn: Callable[[*T], Awaitable[R]],
    *args: *T,
    backend: str = "trio",
    seed: int | None = None,
) -> R:
    """Run an async function in a new event loop, with virtual time.

    Sleeps and timeouts take no time: the clock jumps when nothing can run. It pauses while a thread
    works, for at most 0.2 real seconds. Input from elsewhere, such as a process or another host, is
    waited for only if no timer is set: otherwise the timer fires first.

    Args:
        async_fn: The function.
        *args: Its arguments.
        backend: ``"trio"``, or ``"asyncio"`` (through AnyIO).
        seed: The schedule; the same seed makes the same choices among runnable tasks. None leaves
            the choice to the event loop; 0 takes tasks in the order of their start.

    Returns:
        The result of the function.

    Raises:
        Exception: The exception of the function.
        RuntimeError: An event loop is already running in this thread.
        ValueError: There is no such backend.
    """
    refuse_running_loop("run_virtually")
    if backend == "trio":
        clock = mock_clock()
        instruments = [PatientClock(clock)]
        if seed is None:
            return trio.run(async_fn, *args, clock=clock, instruments=instruments)
        with seeded_trio(seed):
            return trio.run(async_fn, *args, clock=clock, instruments=instruments)
    if backend != "asyncio":
        msg = f"backend={backend!r} is not a known event loop; expected backend='trio' or 'asyncio'"
        raise ValueError(msg)
    import anyio  # noqa: PLC0415 - imported on demand

    return anyio.run(
        async_fn,
        *args,
        backend="asyncio",
        backend_options={"loop_factory": lambda: VirtualLoop(seed or 0)},
    )


def jump_clock(seconds: float) -> None:
    """Advance virtual time while nothing else happens, as a blocking call would.

    Args:
        seconds: The number of virtual seconds.

    Raises:
        RuntimeError: No event loop with virtual time is running.
    """
    loop: object = None
    if trio.lowlevel.in_trio_run():
        loop = trio.lowlevel.current_clock()
    else:
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
    if not hasattr(loop, "jump"):
        msg = (
            "jump_clock() was called in real time; expected virtual time: "
            "run_virtually(function), or a loop_factory=VirtualLoop"
        )
        raise RuntimeError(msg)
    cast("VirtualLoop", loop).jump(seconds)
