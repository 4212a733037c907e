"""Human in the loop: the run asks on the terminal and is idle while you think.

    python examples/human.py

The workflow only returns questions and takes answers. The program around it decides how to ask the
person: here on the terminal, elsewhere on a web page.
"""

import sys

import trio

import sluicegate
from sluicegate import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)


class Question(InputRequiredEvent):
    prompt: str


class Answer(HumanResponseEvent):
    text: str


class Order(Event):
    dish: str


class Waiter(Workflow[str]):
    @step
    async def greet(self, ev: StartEvent) -> Question:
        return Question(prompt=f"Good evening, {ev.name}. Soup or salad?")

    @step
    async def listen(self, ev: Answer) -> Question | Order:
        dish = ev.text.strip().lower()
        if dish not in ("soup", "salad"):
            return Question(prompt=f"We have no {dish or 'nothing'}. Soup or salad?")
        return Order(dish=dish)

    @step
    async def serve(self, ev: Order) -> StopEvent:
        return StopEvent(result=f"One {ev.dish}, here you are.")


async def main() -> None:
    # The timeout of one second excludes the time in which the guest thinks.
    waiter = Waiter(timeout=1, timeout_excludes_waiting=True)
    async with waiter.run(name="guest") as handler:
        async for event in handler.stream_events():
            if isinstance(event, Question):
                print(event.prompt)
                # In a thread, because reading a terminal blocks; abandoned if the run is cancelled.
                line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
                if not line:
                    await handler.cancel("the input has ended")
                    print("No answer. Good night.")
                    return
                handler.send_event(Answer(text=line))
        print(await handler)


if __name__ == "__main__":
    sluicegate.run(main)
