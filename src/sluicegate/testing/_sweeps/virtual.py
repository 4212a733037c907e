"""Virtual time: programs that run in it, on either event loop."""

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
    """Refuse to start an event loop inside one.

    Raises:
        RuntimeError: One runs in this thread.
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
            f"{call}() was called inside a running event loop; it starts event loops of its own: "
            f"expected it in a plain function, def test_it(): {call}(...)"
        )
        raise RuntimeError(msg)


def run_virtually(
    async_fn: Callable[[*T], Awaitable[R]],
    *args: *T,
    backend: str = "trio",
    seed: int | None = None,
) -> R:
    """Run an async function in an event loop of its own, with virtual time.

    Sleeps and timeouts take no time: the clock jumps as soon as nothing can run. While a thread
    works it stands still, for 0.2 real seconds at most. What else comes from outside, from a
    process or another host, is waited for only where no timer is set: a timeout comes before it.

    Args:
        async_fn: The function.
        *args: Its arguments.
        backend: ``"trio"``, or ``"asyncio"`` (through AnyIO).
        seed: The schedule; the same seed makes the same choices among tasks that could run. None
            leaves them to the event loop; 0 takes tasks in the order of their start.

    Returns:
        What the function returns.

    Raises:
        Exception: What the function raises.
        RuntimeError: An event loop runs already in this thread.
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
        msg = f"backend={backend!r} is no event loop here; expected backend='trio' or 'asyncio'"
        raise ValueError(msg)
    import anyio  # noqa: PLC0415 - not everybody needs it

    return anyio.run(
        async_fn,
        *args,
        backend="asyncio",
        backend_options={"loop_factory": lambda: VirtualLoop(seed or 0)},
    )


def jump_clock(seconds: float) -> None:
    """Let virtual time pass while nothing else happens, as in a call that blocks.

    Args:
        seconds: How much.

    Raises:
        RuntimeError: The running event loop has no virtual time, or none runs.
    """
    loop: object = None
    if trio.lowlevel.in_trio_run():
        loop = trio.lowlevel.current_clock()
    else:
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
    if not hasattr(loop, "jump"):
        msg = (
            "jump_clock() was called where time is real; expected it under virtual time: "
            "run_virtually(function), or a loop_factory=VirtualLoop"
        )
        raise RuntimeError(msg)
    cast("VirtualLoop", loop).jump(seconds)
