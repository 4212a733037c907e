"""The same engine under asyncio: asyncio's timeouts and cancellations reach every step.

    python examples/under_asyncio.py

It shows three ways to own a run in an asyncio program, and the effect of ``asyncio.timeout``.
"""

import asyncio

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step


class Tick(Event):
    left: int


class Countdown(Workflow[str]):
    def __init__(self, beat: float = 0.02) -> None:
        super().__init__()
        self.beat = beat

    @step
    async def begin(self, ev: StartEvent) -> Tick:
        return Tick(left=ev.seconds)

    @step
    async def tick(self, ctx: Context, ev: Tick) -> Tick | StopEvent:
        if not ev.left:
            return StopEvent(result="lift-off")
        ctx.write_event_to_stream(ev)
        try:
            await asyncio.sleep(self.beat)
        except asyncio.CancelledError:
            print(f"  stopped at {ev.left}")
            raise
        return Tick(left=ev.left - 1)


async def main() -> None:
    countdown = Countdown()

    print("in place:", await countdown.run(seconds=1))

    async with countdown.run(seconds=3) as handler:
        async for event in handler.stream_events():
            print("in a block:", event)

    async with asyncio.TaskGroup() as group:
        handlers = [countdown.run(seconds=n).start_soon(group) for n in (1, 2)]
        print("in a task group:", [await handler for handler in handlers])

    try:
        async with asyncio.timeout(0.2):
            await Countdown(beat=1).run(seconds=3600)
    except TimeoutError:
        print("asyncio.timeout: the run and its step have ended; tasks:", len(asyncio.all_tasks()))


if __name__ == "__main__":
    asyncio.run(main())
