"""What sweep and fuzz find: every fault of the catalogue, and nothing in what is healthy."""

from __future__ import annotations

import asyncio
import contextlib
import re

import anyio
import anyio.to_thread
import pytest
import trio

from sluicegate.testing import ScenarioFailure, fuzz, sweep
from tests.testing.faulty_things import (
    BOTH,
    CATALOGUE,
    HandedToTheDead,
    one_turn,
    work,
)


#: What a failure's ``problem`` says, for each invariant.
SAYS = {
    "swallowed": "^the cancellation was swallowed",
    "raises": "left the scenario$",
    "ends": "^it did not end within|^undisturbed, it did not end|^it keeps running",
    "check": "^the check failed",
    "fresh": "^the fresh run after it failed",
    "task": "^still running",
    "thread": "^threads still working",
    "generator": "^async generators left open",
    "channel": "ends of memory channels$|: Unclosed <MemoryObject",
    "warning": "^(Resource|Runtime)Warning: ",
}

EACH = [
    pytest.param(fault, backend, id=f"{fault.__name__}-{backend}")
    for fault in CATALOGUE
    for backend in fault.on
]
on_each = pytest.mark.parametrize(("fault", "backend"), EACH)


def run(fault, twin, backend, **more):
    """Sweep one twin of a fault, or fuzz it."""

    async def scenario(trial):
        thing = trial.state.thing = fault(trial)
        await thing.use(getattr(thing, twin))

    def check(outcome):
        if hasattr(outcome.state, "thing"):
            outcome.state.thing.check()

    options = {**fault.options, "backends": backend, "check": check, **more}
    if fault.fuzzed:
        return fuzz(scenario, seeds=options.pop("seeds", 30), **options)
    return sweep(scenario, **options)


def test_the_catalogue_covers_every_invariant():
    """There are enough faults, and some for each thing that is looked at."""
    assert len(CATALOGUE) >= 40
    assert {fault.caught_by for fault in CATALOGUE} == set(SAYS)


@pytest.mark.slow
@on_each
def test_a_fault_is_found(fault, backend, monkeypatch):
    """The faulty twin fails by what its entry says, and so does the one run that is replayed."""
    if fault.caught_by == "thread":
        monkeypatch.setattr("sluicegate.testing._sweeps.leftovers.GRACE", 0.05)
    with pytest.raises(ScenarioFailure) as found:
        run(fault, "faulty", backend)
    failure = found.value
    assert re.search(SAYS[fault.caught_by], failure.problem), failure.problem
    # It took a cancellation, or another order: the undisturbed run came first, and passed.
    needed = r"@\d+" if fault.fuzzed else r":[a-z]+:\d+(\+\d+)?"
    assert re.fullmatch(backend + needed, failure.at)

    with pytest.raises(ScenarioFailure) as again:
        run(fault, "faulty", backend, at=failure.at)
    assert again.value.at == failure.at
    assert re.search(SAYS[fault.caught_by], again.value.problem), again.value.problem


@on_each
def test_its_healthy_twin_passes(fault, backend):
    """Without the mistake there is nothing to be found."""
    report = run(fault, "healthy", backend)
    assert report.runs > 1
    assert not report.sampled


@pytest.mark.parametrize("fault", [HandedToTheDead])
def test_a_race_is_found_only_by_who_cancels_what_is_already_woken(fault):
    """What is lost between a wake-up and the next step is invisible to a cancellation that parks."""
    run(fault, "faulty", "asyncio", modes="park")
    with pytest.raises(ScenarioFailure):
        run(fault, "faulty", "asyncio", modes="wake")


# -- what must not be reported ---------------------------------------------------------------------


async def a_clean_up_with_a_timeout_of_its_own(trial):
    try:
        await work()
    finally:
        with anyio.move_on_after(5, shield=True):
            await anyio.sleep_forever()


async def a_timeout_beside_the_cancellation(trial):
    with anyio.move_on_after(1) as inner:
        await work(2)
    assert inner.cancelled_caught
    await work()


async def a_child_that_ends_by_itself(trial):
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(one_turn)
        nursery.start_soon(work)
        await work(2)


async def a_nursery_that_cancels_itself(trial):
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(anyio.sleep_forever)
        await work()
        nursery.cancel_scope.cancel()


async def a_cancelled_wait_that_is_gone_about(trial):
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await work()
        finally:
            trial.state.seen = True
    await work()


async def a_thread_awaited_to_its_end(trial):
    await anyio.to_thread.run_sync(int, "1")
    await work()


async def a_generator_that_is_closed(trial):
    async def numbers():
        for number in range(3):
            await one_turn()
            yield number

    async with contextlib.aclosing(numbers()) as made:
        async for _ in made:
            await work()


async def a_failure_that_is_handled(trial):
    # Not under a native cancel: AnyIO's task group drops one that comes as a child fails.
    async def fail():
        await work()
        raise OSError

    try:
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(fail)
            await work(2)
    except* OSError:
        pass
    await work()


async def streams_closed_by_with(trial):
    send, receive = anyio.create_memory_object_stream[int](1)
    async with anyio.create_task_group() as nursery:
        with receive, send:
            nursery.start_soon(send.send, 1)
            assert await receive.receive() == 1


async def an_asyncio_timeout_inside(trial):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(work, 2)
    await work()


async def a_task_cancelled_and_awaited(trial):
    async with asyncio.TaskGroup() as nursery:
        task = nursery.create_task(anyio.sleep_forever())
        await work()
        task.cancel()


async def trio_channels_closed_by_async_with(trial):
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:

        async def produce():
            async with send:
                for number in range(3):
                    await send.send(number)

        nursery.start_soon(produce)
        async with receive:
            assert [number async for number in receive] == [0, 1, 2]


TRICKY = [
    pytest.param(scenario, backend, id=f"{scenario.__name__}-{backend}")
    for backends, scenarios in {
        BOTH: [
            a_clean_up_with_a_timeout_of_its_own,
            a_timeout_beside_the_cancellation,
            a_child_that_ends_by_itself,
            a_nursery_that_cancels_itself,
            a_cancelled_wait_that_is_gone_about,
            a_thread_awaited_to_its_end,
            a_generator_that_is_closed,
            a_failure_that_is_handled,
            streams_closed_by_with,
        ],
        ("asyncio",): [an_asyncio_timeout_inside, a_task_cancelled_and_awaited],
        ("trio",): [trio_channels_closed_by_async_with],
    }.items()
    for scenario in scenarios
    for backend in backends
]


@pytest.mark.parametrize(("scenario", "backend"), TRICKY)
def test_what_is_healthy_and_tricky_is_not_reported(scenario, backend):
    """A false alarm would teach users to look away; every kind of cancellation is tried."""
    kinds = ["scope", "deadline"]
    if backend == "asyncio" and scenario is not a_failure_that_is_handled:
        kinds += ["native", "timeout"]
    report = sweep(scenario, backends=backend, kinds=kinds)
    assert report.positions > 2
    fuzz(scenario, backends=backend, seeds=5, cancel=kinds)
