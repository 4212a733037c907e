"""
Short run: a run of three steps, *r* times, one after another; once with a timeout far away.

By hand: three tasks and two channels; with the timeout, under a deadline of the library.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from functools import partial

from benchmarks._measure import Numbers, each, serve
from benchmarks._model import Metric, Work, about
from benchmarks.works import _three_steps


WORKS = tuple(
    Work(
        id=work_id,
        name="short_run",
        title=title,
        size="r",
        sizes=(500,),
        quick=(200,),
        judged=(500,),
        fixed={"timeout": timeout},
        rounds=about(2_500),
        metrics=(Metric("us", "µs/run"),),
    )
    for work_id, title, timeout in (
        ("short_run", "three-step run, one after another", 0),
        ("short_run_timeout", "three-step run with a timeout", 30),
    )
)


def measured(one, r: int, rounds: int):
    """Do *one* *r* times."""

    async def once() -> int:
        return sum([await one() for _ in range(r)])

    return partial(each, once, (3 * r).__eq__, rounds=rounds, size=r)


def with_sluicegate(lib, r: int, rounds: int, timeout: int = 0) -> Numbers:
    """The engine has the timeout."""
    workflow = _three_steps.sluicegate_workflow(lib)(timeout=timeout or None)
    return lib.run(measured(workflow.run, r, rounds))


def on_trio(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """With ``fail_after``."""
    import trio

    async def limited() -> int:
        with trio.fail_after(timeout):
            return await _three_steps.trio_run()

    return trio.run(measured(limited if timeout else _three_steps.trio_run, r, rounds))


def on_anyio(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """With ``fail_after``."""
    import anyio

    async def limited() -> int:
        with anyio.fail_after(timeout):
            return await _three_steps.anyio_run()

    return anyio.run(measured(limited if timeout else _three_steps.anyio_run, r, rounds))


def on_asyncio(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """With ``asyncio.timeout``."""
    import asyncio

    async def limited() -> int:
        async with asyncio.timeout(timeout):
            return await _three_steps.asyncio_run()

    one = partial(limited) if timeout else _three_steps.asyncio_run
    return asyncio.run(measured(one, r, rounds)())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
