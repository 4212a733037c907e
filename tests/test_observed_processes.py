"""What observers enter around the body of a step in a worker process."""

from __future__ import annotations

import logging

import pytest

from sluicegate import RunLogFilter, observe
from tests.observed_in_process import Binds, Crunch, Faults, Shown, leak


pytestmark = [pytest.mark.anyio, pytest.mark.slow_for("asyncio")]


async def test_observers_enter_what_they_like_around_the_body():
    """In the order of the observers, the outermost first, with what each says of the invocation."""
    workflow = Crunch(observers=[Binds("a"), Binds("b")])

    assert await workflow.run() == ("a crunch", "b crunch")


async def test_what_an_observer_leaves_bound_is_not_seen_by_the_next_call():
    """Each call has a copy of the process's context variables, as each step has in the loop."""
    workflow = Crunch(observers=[Binds("a", leak)])

    assert await workflow.run() == ("a crunch",)
    assert await workflow.run() == ("a crunch",)
    assert await Crunch().run() == ()


@pytest.mark.parametrize("where", ["method", "pickle", "import", "call", "enter", "exit"])
async def test_a_fault_of_an_observer_never_reaches_the_step(where, caplog):
    """It is logged with the observer's name; other observers and the step's result are as ever."""
    workflow = Crunch(observers=[Binds("a"), Faults(where), Binds("b")])
    with caplog.at_level(logging.ERROR, "sluicegate"):
        assert await workflow.run() == ("a crunch", "b crunch")

    (record,) = [r for r in caplog.records if r.name == "sluicegate"]
    assert "the observer Faults" in record.getMessage()
    assert record.exc_text or record.exc_info


@pytest.mark.parametrize("where", ["exit", "nowhere"])
async def test_a_failure_of_the_step_leaves_as_itself(where, caplog):
    """A true return of the context manager, or its own exception, does not replace the failure."""
    workflow = Crunch(observers=[Binds("a"), Faults(where)])
    with pytest.raises(Shown) as caught:
        await workflow.run(what="raise")

    assert str(caught.value) == "('a crunch',)"
    assert caught.value.__context__ is None
    assert ("the observer Faults" in caplog.text) == (where == "exit")


async def test_a_log_line_of_a_process_carries_run_and_step(caplog):
    """The line comes to the program's handlers, in the context of its step."""
    lines = []
    handler = logging.Handler()
    handler.addFilter(RunLogFilter())
    handler.emit = lines.append
    logger = logging.getLogger("tests.observed")
    logger.addHandler(handler)
    try:
        with observe(Binds()):
            run = Crunch().run()
            await run
    finally:
        logger.removeHandler(handler)

    (line,) = lines
    assert (line.run_id, line.workflow, line.step) == (run.run_id, "Crunch", "crunch")
    assert (line.invocation, line.attempt) == (2, 1)
