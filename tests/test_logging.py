"""Log lines of steps: they carry run, workflow, step, invocation and attempt."""

from __future__ import annotations

import io
import logging

import anyio
import pytest
import structlog
from tenacity import stop_after_attempt, wait_none

from sluicegate import (
    Context,
    Event,
    Observer,
    Retry,
    RunLogFilter,
    StartEvent,
    StopEvent,
    Workflow,
    observe,
    step,
)
from tests.helpers import calls_of


pytestmark = pytest.mark.anyio

LOGGER = logging.getLogger("tests.logging")
FORMAT = "%(workflow)s %(step)s %(invocation)s %(attempt)s: %(message)s"


class Draft(Event):
    pass


class Logs(Workflow):
    @step
    async def write(self, ev: StartEvent) -> Draft:
        async def task():
            LOGGER.info("in a task")

        LOGGER.info("in the step")
        async with anyio.create_task_group() as group:
            group.start_soon(task)
        return Draft()

    @step
    def polish(self, ev: Draft) -> StopEvent:
        LOGGER.info("in a thread")
        return StopEvent()


@pytest.fixture
def lines(caplog):
    """What is logged, through the filter."""
    handler = logging.StreamHandler(io.StringIO())
    handler.addFilter(RunLogFilter())
    handler.setFormatter(logging.Formatter(FORMAT))
    LOGGER.addHandler(handler)
    caplog.set_level(logging.INFO, "tests.logging")
    yield lambda: handler.stream.getvalue().splitlines()
    LOGGER.removeHandler(handler)


async def test_a_line_carries_run_and_step_in_tasks_and_threads(lines):
    """Without an observer too; outside of steps the fields have a value that a format can show."""
    LOGGER.info("before")
    await Logs().run()
    LOGGER.info("after")

    assert lines() == [
        "- - - -: before",
        "Logs write - 1: in the step",
        "Logs write - 1: in a task",
        "Logs polish - 1: in a thread",
        "- - - -: after",
    ]


async def test_an_observed_run_has_the_numbers_of_its_invocations(lines):
    """Any observer gives the invocations their numbers, those of the records."""
    with observe(Observer()):
        await Logs().run()

    assert lines() == [
        "Logs write 1 1: in the step",
        "Logs write 1 1: in a task",
        "Logs polish 2 1: in a thread",
    ]


async def test_a_line_of_a_child_is_the_childs_and_an_attempt_has_its_number(lines, caplog):
    """The innermost run counts; the second attempt says 2."""

    class Child(Workflow):
        @step(retry=Retry(wait=wait_none(), stop=stop_after_attempt(2)))
        async def inner(self, ctx: Context, ev: StartEvent) -> StopEvent:
            LOGGER.info("trying")
            if ctx.step.attempt == 1:
                raise OSError
            return StopEvent()

    class Parent(Workflow):
        @step
        async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
            LOGGER.info("first")
            await ctx.run_child(Child())
            LOGGER.info("last")
            return StopEvent()

    await Parent().run()

    assert lines() == [
        "Parent outer - 1: first",
        "Child inner - 1: trying",
        "Child inner - 2: trying",
        "Parent outer - 1: last",
    ]


async def test_the_identifier_of_the_run_is_that_of_its_handler():
    """Of several runs at once, each line has the identifier of its own."""
    found = {}

    class Names(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.sleep(0)
            record = logging.makeLogRecord({"msg": "here"})
            assert RunLogFilter().filter(record) is True
            found[ctx.run_id] = record.run_id
            return StopEvent()

    async def run():
        await Names().run()

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(run)

    assert len(found) == 3
    assert all(key == value for key, value in found.items())


async def test_it_is_a_processor_of_structlog():
    """The fields are in the event of a step, and not in one of others; what is bound goes first."""
    found = []
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[RunLogFilter(), lambda _, __, event: found.append(dict(event)) or event],
        wrapper_class=structlog.BoundLogger,
    )

    class Logs(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            logger.info("hello", attempt="mine")
            return StopEvent(result=ctx.run_id)

    run_id = await Logs().run()
    logger.info("after")

    assert found == [
        {
            "event": "hello",
            "run_id": run_id,
            "workflow": "Logs",
            "step": "work",
            "attempt": "mine",
        },
        {"event": "after"},
    ]


async def test_what_an_observer_binds_around_a_step_is_in_the_lines_of_that_step_only():
    """structlog's context variables, bound in ``around_step``: in tasks and threads; not after the run."""
    found = []
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[
            structlog.contextvars.merge_contextvars,
            lambda _, __, event: found.append(dict(event)) or event,
        ],
        wrapper_class=structlog.BoundLogger,
    )

    class Binds(Observer):
        def around_step(self, invocation):
            return structlog.contextvars.bound_contextvars(step=invocation.step)

    class Logs(Workflow):
        @step
        async def write(self, ev: StartEvent) -> Draft:
            async def task():
                logger.info("in a task")

            async with anyio.create_task_group() as group:
                group.start_soon(task)
            return Draft()

        @step
        def polish(self, ev: Draft) -> StopEvent:
            logger.info("in a thread")
            return StopEvent()

    await Logs(observers=[Binds()]).run()
    logger.info("after")

    assert found == [
        {"event": "in a task", "step": "write"},
        {"event": "in a thread", "step": "polish"},
        {"event": "after"},
    ]


async def test_a_line_without_a_run_costs_little():
    """A program may add the filter to its root handler for good."""
    record = logging.makeLogRecord({"msg": "here"})

    assert calls_of(RunLogFilter().filter, record) <= 12
