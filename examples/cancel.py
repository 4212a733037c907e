"""A timeout leaves nothing behind.

    python examples/cancel.py

Twenty steps run, each with a child task and an open file, and each needs a moment to
clean up. The run's timeout cancels them. When the error arrives, every clean-up has
completed, every file is closed, and every task has ended.
"""

import tempfile

import trio

from sluicegate import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowTimeoutError,
    step,
)


class Job(Event):
    number: int


class Done(Event):
    number: int


class Crowd(Workflow[int]):
    def __init__(self, timeout: float) -> None:
        super().__init__(timeout=timeout)
        self.files: list[object] = []
        self.cleaned_up = 0

    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(number=n) for n in range(20)]

    @step(num_workers=20)
    async def work(self, ctx: Context, ev: Job) -> Done:
        with tempfile.TemporaryFile() as file:
            self.files.append(file)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    await trio.sleep(3600)
            finally:
                # Clean-up that needs the network: shielded and awaited.
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.01)
                self.cleaned_up += 1
        return Done(number=ev.number)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


def tasks_alive() -> int:
    """Count the tasks of this program, system tasks of Trio included."""
    todo = [trio.lowlevel.current_root_task()]
    alive = 0
    while todo:
        task = todo.pop()
        alive += 1
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return alive


async def main() -> None:
    crowd = Crowd(timeout=0.1)
    before = tasks_alive()
    try:
        await crowd.run()
    except WorkflowTimeoutError as error:
        print(f"Timed out after {error.timeout} s with {len(error.active_steps)} steps running.")
    print(f"clean-ups done: {crowd.cleaned_up} of {len(crowd.files)}")
    print(f"files open:     {sum(not file.closed for file in crowd.files)}")
    print(f"tasks left:     {tasks_alive() - before}")


if __name__ == "__main__":
    trio.run(main)
