"""Who owns the connections: a step, a block, or the single call; never the garbage collector."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import anyio
import anyio.to_thread
import pytest
import trio

from sluicegate.llms import StreamClosedError
from sluicegate.llms.openai import OpenAI

from .conftest import Step, guard


pytestmark = pytest.mark.anyio


def connections(server):
    """Count the connections that the server has seen."""
    return len({exchange.client for exchange in server.exchanges})


async def read(llm, **options):
    """Read a stream to its end."""
    async for _ in await llm.astream_complete("Hi", max_tokens=3, **options):
        pass


def is_idle(llm):
    """Tell whether the object has no client at all."""
    return not llm._clients._runs or all(
        run._client is None and not run.holds for run in llm._clients._runs.values()
    )


async def test_calls_in_a_step_share_a_connection(server, llm):
    """Calls and streams of a step use one connection, closed when the step ends."""
    with guard():
        async with Step().running() as step:
            for _ in range(3):
                await llm.acomplete("Hi")
                await read(llm)
            assert not is_idle(llm)

    assert connections(server) == 1
    assert is_idle(llm)
    assert step.resources == []


async def test_calls_in_a_block_share_a_connection(server, llm):
    """Steps inside of `async with llm` share what belongs to the block."""
    with guard():
        async with llm:
            for _ in range(3):
                async with Step().running():
                    await read(llm)
            assert not is_idle(llm)

    assert connections(server) == 1
    assert is_idle(llm)


async def test_a_call_without_owner_owns_itself(server, llm):
    """Outside of steps and blocks each call closes what it opened."""
    with guard():
        for _ in range(2):
            await llm.acomplete("Hi")
            await read(llm)
            assert is_idle(llm)

    assert connections(server) == 4


@pytest.mark.parametrize("cancelled", [False, True])
async def test_forgotten_in_a_step(llm, server, cancelled):
    """A model made in a step, used and forgotten leaves nothing, in a cancelled scope too."""
    with guard():
        async with Step().running(cancelled=cancelled) as step:
            mine = OpenAI("any", base_url=server.base_url)
            await mine.acomplete("Hi")
            await (await mine.astream_complete("Hi", model="any?stall=3")).__anext__()
            assert len(step.resources) == 2  # the connections and the stream
        assert (await server.exchanges[-1].wait_over()).outcome == "disconnected"

    assert is_idle(mine)


async def test_steps_at_the_same_time(server, llm):
    """Two steps with empty lists that compare equal are two owners; the last one closes."""
    first, second = Step(), Step()
    with guard():
        async with first.running():
            await read(llm)
            async with second.running():
                await read(llm)
            assert not is_idle(llm)
            await read(llm)

    assert is_idle(llm)
    assert connections(server) == 1


async def test_a_stream_outlives_the_call_that_opened_it(server, llm):
    """An open stream keeps its connection when everyone else lets go."""
    with guard():
        stream = await llm.astream_complete("Hi")
        async with llm:
            await llm.acomplete("Hi")
        async with stream:
            assert [response async for response in stream]

    assert is_idle(llm)


async def test_aclose(server, llm):
    """`aclose` closes open streams and connections of this loop; a later call opens new ones."""
    with guard():
        async with Step().running() as step:
            stream = await llm.astream_complete("Hi", model="any?stall=3")
            await anext(stream)
            await llm.aclose()
            assert (await server.exchanges[-1].wait_over()).outcome == "disconnected"
            assert step.resources == []
            with pytest.raises(StreamClosedError):
                await anext(stream)
            await read(llm)
            await llm.aclose()
            await llm.aclose()

    assert is_idle(llm)


async def test_aclose_within_a_block(server, llm):
    """`aclose` in the middle of `async with llm` ends what is open then, and the block the rest."""
    with guard():
        async with llm:
            await read(llm)
            await llm.aclose()
            assert is_idle(llm)
            await read(llm)

    assert is_idle(llm)


async def test_blocks_of_two_loops_that_overlap(llm):
    """A block of one loop never closes the client of another, in whichever order they end."""
    entered, go_on = threading.Event(), threading.Event()

    async def elsewhere():
        async with llm:
            await llm.acomplete("Hi")
            entered.set()
            await trio.to_thread.run_sync(go_on.wait)
            await llm.acomplete("Hi")

    thread = threading.Thread(target=trio.run, args=[elsewhere])
    with guard():
        async with llm:
            await llm.acomplete("Hi")
            thread.start()
            await anyio.to_thread.run_sync(entered.wait)
        go_on.set()
        await anyio.to_thread.run_sync(thread.join)

    assert is_idle(llm)


async def test_aclose_in_a_cancelled_scope(server, llm):
    """`aclose` does all of its work in a scope that is cancelled."""
    with guard():
        stream = await llm.astream_complete("Hi", model="any?stall=3")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await llm.aclose()
        assert (await server.exchanges[-1].wait_over()).outcome == "disconnected"
        await stream.aclose()

    assert is_idle(llm)


async def test_a_missing_key_leaves_nothing_held():
    """A request that cannot be made holds nothing."""
    llm = OpenAI()
    for call in (llm.acomplete, llm.astream_complete):
        with pytest.raises(Exception, match="OPENAI_API_KEY"):
            await call("Hi")

    assert is_idle(llm)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_loops_one_after_the_other(server, llm):
    """One object serves other event loops at the same time, of the other kind too."""

    def elsewhere():
        trio.run(in_block)
        anyio.run(in_block)

    async def in_block():
        async with llm:
            await llm.acomplete("Hi")
            await read(llm)

    with guard():
        async with llm:
            await read(llm)
            await anyio.to_thread.run_sync(elsewhere)
            await read(llm)

    assert connections(server) == 3
    assert is_idle(llm)


PROGRAM = textwrap.dedent(
    """
    import gc, logging
    import anyio
    from sluicegate._loop.cleanup import current_cleanup
    from sluicegate.llms.openai import OpenAI

    class Step(list):
        add, discard = list.append, lambda self, it: self.remove(it) if it in self else None

    async def step():
        llm = OpenAI(model="any")
        generator = await llm.astream_complete("Give me the first 3 paragraphs of Moby Dick.")
        async for response in generator:
            if how == "break" and len(response.text) > 20:
                break
            if how == "raise":
                raise LookupError
        return str(response)

    async def main():
        current_cleanup.set(cleanup := Step())
        try:
            await step()
        except LookupError:
            pass
        finally:
            for resource in cleanup[::-1]:
                await resource.aclose()
        gc.collect()

    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it complains about slow imports
    for how in ("full", "break", "raise"):
        anyio.run(main, **%s)
        gc.collect()
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    "options",
    [
        {"backend": "trio"},
        {"backend": "asyncio"},
        {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    ],
    ids=["trio", "asyncio", "uvloop"],
)
async def test_a_program_that_closes_nothing(server, options):
    """
    A step that closes nothing prints no warning, with every warning on and Python's own checks:
    read to the end, left by `break`, left by an exception.
    """
    if "backend_options" in options:
        pytest.importorskip("uvloop")
    done = await anyio.run_process(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM % options],
        env=os.environ | {"OPENAI_BASE_URL": server.base_url},
        stderr=subprocess.STDOUT,
        check=False,
    )

    assert (done.stdout.decode(), done.returncode) == ("", 0)
