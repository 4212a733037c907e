"""LangGraph: ``StateGraph`` with async nodes and routers, on asyncio."""

import asyncio
import contextlib
import operator
import sys
from functools import partial
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

from benchmarks import _measure
from benchmarks._measure import Numbers, now
from benchmarks.works import cancel as cancelling
from benchmarks.works import short_run as short
from benchmarks.works import timeout as deadlines
from benchmarks.works.concurrent_runs import Burst
from benchmarks.works.fan_out import complete
from benchmarks.works.idle_runs import Idling
from benchmarks.works.slow_reader import risen
from benchmarks.works.state import rows


class Count(TypedDict):
    i: int


class Counted(TypedDict):
    i: int
    rows: Any


class Gathered(TypedDict):
    found: Annotated[list[int], operator.add]


def chain(n: int, rounds: int) -> Numbers:
    """Two nodes with conditional edges; the routers are async, sync ones would run in threads."""

    async def hop(state: Count) -> Count:
        return {"i": state["i"] + 1}

    def router(other: str):
        async def route(state: Count) -> str:
            return other if state["i"] < n else END

        return route

    graph = StateGraph(Count)
    graph.add_node("ping", hop)
    graph.add_node("pong", hop)
    graph.add_edge(START, "ping")
    graph.add_conditional_edges("ping", router("pong"), ["pong", END])
    graph.add_conditional_edges("pong", router("ping"), ["ping", END])
    app = graph.compile()

    async def once() -> int:
        return (await app.ainvoke({"i": 0}, {"recursion_limit": n + 10}))["i"]

    return asyncio.run(_measure.held(once, n.__eq__, rounds=rounds, size=n))


def _fan_out(k: int, node):
    async def produce(state: Gathered) -> dict[str, Any]:
        return {}

    async def spread(state: Gathered) -> list[Send]:
        return [Send("work", {"i": i}) for i in range(k)]

    async def join(state: Gathered) -> dict[str, Any]:
        return {}

    graph = StateGraph(Gathered)
    graph.add_node("produce", produce)
    graph.add_node("work", node)
    graph.add_node("join", join)
    graph.add_edge(START, "produce")
    graph.add_conditional_edges("produce", spread, ["work"])
    graph.add_edge("work", "join")
    graph.add_edge("join", END)
    return graph.compile()


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """``Send``, with ``max_concurrency``."""

    async def work(state: Count) -> Gathered:
        await asyncio.sleep(0)
        return {"found": [state["i"]]}

    app = _fan_out(k, work)

    async def once() -> list[int]:
        return (await app.ainvoke({"found": []}, {"max_concurrency": workers}))["found"]

    done = partial(complete, k=k)
    return asyncio.run(_measure.each(once, done, rounds=rounds, size=k))


def _streamer(pause: float, value):
    async def produce(state: Count) -> dict[str, Any]:
        write = get_stream_writer()
        for i in range(state["i"]):
            await asyncio.sleep(pause)
            write(value(i))
        return {}

    graph = StateGraph(Count)
    graph.add_node("produce", produce)
    graph.add_edge(START, "produce")
    return graph.compile()


def _stream():
    app = _streamer(0, "token {}".format)

    async def stream(m: int, pause_ms: int = 0) -> int:
        got = 0
        async for _ in app.astream({"i": m}, stream_mode="custom"):
            got += 1
            if pause_ms and got % 100 == 0:
                await asyncio.sleep(pause_ms / 1000)
        return got

    return stream


def stream(m: int, rounds: int) -> Numbers:
    """``get_stream_writer`` never waits."""
    return asyncio.run(_measure.each(partial(_stream(), m), m.__eq__, rounds=rounds, size=m))


def slow_reader(m: int) -> Numbers:
    """The same with a slow reader."""
    return asyncio.run(risen(_stream(), m))


def latency(m: int) -> Numbers:
    """``get_stream_writer`` and ``astream``."""

    async def main() -> Numbers:
        app = _streamer(0.001, lambda _: now())
        sent = app.astream({"i": m}, stream_mode="custom")
        times = [now() - moment async for moment in sent]
        assert len(times) == m
        return _measure.spread(times)

    return asyncio.run(main())


def _three_steps(pause: float = 0, mark=lambda: None):
    async def first(state: Count) -> Count:
        return {"i": 1}

    async def second(state: Count) -> Count:
        if pause:
            await asyncio.sleep(pause)
        return {"i": state["i"] + 1}

    async def third(state: Count) -> Count:
        mark()
        return {"i": state["i"] + 1}

    graph = StateGraph(Count)
    graph.add_node("first", first)
    graph.add_node("second", second)
    graph.add_node("third", third)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    graph.add_edge("second", "third")
    return graph.compile()


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """``asyncio.timeout`` around a run: it has a timeout for each round of nodes only."""
    app = _three_steps()

    async def one() -> int:
        async with asyncio.timeout(timeout or None):
            return (await app.ainvoke({"i": 0}))["i"]

    async def bare() -> int:
        return (await app.ainvoke({"i": 0}))["i"]

    return asyncio.run(short.measured(one if timeout else bare, r, rounds)())


def concurrent_runs(r: int) -> Numbers:
    """``asyncio.gather`` of as many calls."""

    async def main() -> Numbers:
        burst = Burst(r)
        app = _three_steps(0.010, burst.mark)
        await app.ainvoke({"i": 0})
        burst.begin()
        answers = await asyncio.gather(*[app.ainvoke({"i": 0}) for _ in range(r)])
        numbers = burst.numbers()
        assert [answer["i"] for answer in answers] == [3] * r
        return numbers

    return asyncio.run(main())


def idle_runs(r: int, inside: int = 0) -> Numbers:
    """``interrupt()`` ends the call and keeps a checkpoint in memory; the node begins anew later."""
    if not inside:
        msg = "it waits inside a node only"
        raise NotImplementedError(msg)

    async def ask(state: Count) -> Count:
        return {"i": interrupt("?")}

    graph = StateGraph(Count)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    app = graph.compile(checkpointer=InMemorySaver())

    async def main() -> Numbers:
        idling = Idling(r)
        threads = [{"configurable": {"thread_id": str(i)}} for i in range(r)]
        await asyncio.gather(*[app.ainvoke({"i": -1}, thread) for thread in threads])
        idling.all_asked()
        idling.waiting()
        answers = await asyncio.gather(
            *[app.ainvoke(Command(resume=i), thread) for i, thread in enumerate(threads)]
        )
        numbers = idling.numbers()
        assert [answer["i"] for answer in answers] == list(range(r))
        return numbers

    return asyncio.run(main())


def cancel(k: int, rounds: int) -> Numbers:
    """The task that has the call is cancelled."""

    async def once() -> tuple[float, int]:
        started = finished = 0

        async def stuck(state: Count) -> Gathered:
            nonlocal started, finished
            started += 1
            try:
                await asyncio.Event().wait()
            finally:
                finished += 1
            return {"found": []}

        task = asyncio.create_task(_fan_out(k, stuck).ainvoke({"found": []}))
        while started < k:
            await asyncio.sleep(0.001)
        start = now()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return now() - start, finished

    return asyncio.run(cancelling.measured(once, k, rounds, lambda: len(asyncio.all_tasks()))())


def timeout(k: int, deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """Its ``step_timeout``."""
    cleaned: list[None]

    async def stuck(state: Count) -> Gathered:
        await deadlines.stuck_on_asyncio(cleaned, cleanup_ms)
        return {"found": []}

    app = _fan_out(k, stuck)
    app.step_timeout = deadline_ms / 1e3

    async def once() -> bool:
        nonlocal cleaned
        cleaned = []
        with contextlib.suppress(TimeoutError):
            await app.ainvoke({"found": []})
        return len(cleaned) == k

    return asyncio.run(deadlines.measured(once, deadline_ms, cleanup_ms, rounds)())


def state(n: int, kib: int) -> Numbers:
    """Its state changes between nodes, so each write is a node."""

    async def add(state: Counted) -> dict[str, Any]:
        return {"i": state["i"] + 1}

    async def again(state: Counted) -> str:
        return "add" if state["i"] < n else END

    graph = StateGraph(Counted)
    graph.add_node("add", add)
    graph.add_edge(START, "add")
    graph.add_conditional_edges("add", again, ["add", END])
    app = graph.compile()

    async def once() -> float:
        start = now()
        answer = await app.ainvoke({"i": 0, "rows": rows(kib)}, {"recursion_limit": n + 10})
        assert answer["i"] == n
        return now() - start

    async def main() -> Numbers:
        await app.ainvoke({"i": n - 2, "rows": rows(kib)})
        return {"us": await once() / n * 1e6}

    return asyncio.run(main())


def importing() -> Numbers:
    """``import langgraph.graph``: the name alone is an empty package."""
    return _measure.importing("langgraph.graph")


if __name__ == "__main__":
    _measure.serve_peer(globals(), sys.argv[1:])
