"""A workflow that streams: a language model's words reach the reader while the step still runs.

    python examples/streaming.py [--backend asyncio] [TOPIC]

With OPENAI_API_KEY set it asks OpenAI; with OPENAI_BASE_URL set, the server at that address (vLLM,
Ollama, llama.cpp). With neither, a small local server included in sluicegate replaces the
model: its text is nonsense, but it streams over real HTTP.
"""

import argparse

import sluicegate
from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.drawing import draw_all_possible_flows
from sluicegate.llms.local import stand_in_model
from sluicegate.llms.openai import OpenAI


class Outline(Event):
    request: str


class Text(Event):
    topic: str
    text: str


class Stage(Event):
    """The current stage of the work, for a progress line."""

    name: str


class Token(Event):
    """A few letters of the answer."""

    text: str


class Essay(Workflow[str]):
    @step
    async def plan(self, ctx: Context, ev: StartEvent) -> Outline:
        ctx.write_event_to_stream(Stage(name=f"planning an essay on {ev.topic}"))
        return Outline(request=f"Write two short paragraphs on {ev.topic}.")

    @step(timeout=60)
    async def write(self, ctx: Context, ev: Outline) -> Text:
        ctx.write_event_to_stream(Stage(name="writing"))
        llm = OpenAI(model="gpt-4o-mini")
        answer = await llm.astream_complete(ev.request)
        async for piece in answer:
            # Waits for slow readers: the reply is fetched no faster than it is read.
            await ctx.stream.send(Token(text=piece.delta))
        return Text(topic=ev.request, text=str(answer))

    @step
    async def count(self, ctx: Context, ev: Text) -> StopEvent:
        ctx.write_event_to_stream(Stage(name="counting"))
        return StopEvent(result=f"{len(ev.text.split())} words")


async def main(topic: str) -> None:
    essay = Essay(timeout=120)
    async with essay.run(topic=topic) as handler:
        async for event in handler.stream_events():
            match event:
                case Stage(name=name):
                    print(f"\n-- {name}", flush=True)
                case Token(text=text):
                    print(text, end="", flush=True)
        print(f"\n{await handler}")
    print(f"The graph: {draw_all_possible_flows(Essay, filename='streaming.html')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topic", nargs="?", default="the sea and its pumps")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    options = parser.parse_args()
    with stand_in_model(delay=0.02):
        sluicegate.run(main, options.topic, backend=options.backend)
