"""The rules of this suite, and its backends.

* A test's docstring is the rule that it checks; one that checks a promise of the design names it.
* Loopback only, port 0. No real sleep longer than 10 ms: time is a mock clock's, or does not matter.
  (A timeout that is to strike on a real clock is longer: a busy machine has to get going before.)
* No order of tasks is assumed: Trio shuffles them.
* Exceptions are compared by identity. Warnings are errors.
* What must hold everywhere is marked ``anyio`` and runs on Trio, asyncio and uvloop. What is
  Trio's own (its clock, its instruments) is marked ``trio``.
* ``-m "not slow"`` is the inner loop. ``slow`` marks a test that takes long, ``slow_for("asyncio")`` one
  that takes long on a second event loop (or with another parameter); on uvloop, everything is slow,
  and on asyncio the tests of ``testing`` and ``llms``.
* ``peer("edge 3")`` names the row of a table of other engines' faults that the test answers.
"""

from __future__ import annotations

import gc
import signal
import typing

import pytest


# A shell has what it starts in the background ignore SIGINT; the tests that interrupt want it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGQUIT") and signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


#: Folders whose subject is the same on every event loop.
ON_ONE_LOOP = {"testing", "llms"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark slow what repeats a rule: on another event loop, or with the ids that ``slow_for`` has."""
    for item in items:
        if hasattr(item, "callspec"):
            repeated = {name for mark in item.iter_markers("slow_for") for name in mark.args}
            repeated |= (
                {"uvloop", "asyncio"} if item.path.parent.name in ON_ONE_LOOP else {"uvloop"}
            )
            if repeated & {*item.callspec.id.split("-")}:
                item.add_marker("slow")


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


@pytest.fixture
def at_most(request):
    """Return the limit of a sweep that also takes ``--sweep-limit``, with which `.ci/long` sweeps all."""
    given = request.config.getoption("sweep_limit", default=None)
    return lambda usual: usual if given is None else int(given)
