"""The rules of this suite, and its backends.

* A test's docstring is the rule that it checks; one that checks a promise of the design names it.
* Loopback only, port 0. No real sleep longer than 10 ms: time is a mock clock's, or does not matter.
  (A timeout that is to strike on a real clock is longer: a busy machine has to get going before.)
* No order of tasks is assumed: Trio shuffles them.
* Exceptions are compared by identity. Warnings are errors.
* What must hold everywhere is marked ``anyio`` and runs on Trio, asyncio and uvloop. What is
  Trio's own (its clock, its instruments) is marked ``trio``.
"""

from __future__ import annotations

import gc
import signal
import typing

import pytest


# A shell has what it starts in the background ignore SIGINT; the tests that interrupt want it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(
    params=[
        pytest.param(("trio", {}), id="trio"),
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request):
    """Each event loop in turn."""
    if request.param[1].get("use_uvloop"):
        pytest.importorskip("uvloop", reason="uvloop does not exist on this platform")
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _small_heap(request):
    """Keep the collector away from objects older than the module: many tests ask it what they left.

    A sweep does that by itself, and counts what is frozen. The caches of typing keep the classes of
    tests alive. Objects stay frozen for the modules to come, so that no collection visits them again.
    """
    for clear in typing._cleanups:
        clear()
    if request.path.parent.name in ("sweeps", "testing"):
        gc.unfreeze()
        gc.collect()
    else:
        gc.collect()
        gc.freeze()
