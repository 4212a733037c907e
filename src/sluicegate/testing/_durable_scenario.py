"""A durable run of a workflow as a scenario for sweeps: ``sweep(durable_scenario(...), kinds="crash")``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._events import InputRequiredEvent, untagged
from sluicegate._loop import current_backend
from sluicegate._workflow import Workflow
from sluicegate.durable import RunEndedError
from sluicegate.testing._running import check_workflow


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._events import Event
    from sluicegate._handler import WorkflowHandler
    from sluicegate.testing._sweeps.crash import CrashLedger
    from sluicegate.testing._sweeps.trial import Outcome, Trial


@final
class DurableScenario:
    """A durable run of a workflow as a scenario; see :func:`durable_scenario`."""

    def __init__(
        self,
        workflow: Workflow[Any] | Callable[[CrashLedger], Workflow[Any]],
        answer: Callable[[Any], Event | None] | None,
        check: Callable[[Outcome], Any] | None,
        fields: dict[str, Any],
    ) -> None:
        self._given = workflow
        self._answer_of = answer
        self._check = check
        self._fields = fields
        self._whole: Any = None
        name = getattr(workflow, "__name__", f"{type(workflow).__name__}()")
        self.__name__: str = f"durable_scenario({name}, ...)"

    async def __call__(self, trial: Trial) -> Any:
        """Run the workflow, or continue the run of the previous life. A checkpoint.

        Raises:
            Exception: The run has failed.
        """
        crash = trial.crash
        given: Any = self._given
        is_one = isinstance(self._given, Workflow)
        workflow: Any = given if is_one else given(crash.ledger)
        check_workflow(workflow, "durable_scenario")
        async with crash.open_runs() as runs:
            handler: WorkflowHandler[Any] = runs.run(workflow.run(**self._fields), run_id="run")
            async with handler, current_backend().open_nursery() as nursery:
                if self._answer_of is not None:
                    nursery.start_soon(self._answer, handler, self._answer_of, name="answers")
                return await handler

    @staticmethod
    async def _answer(
        handler: WorkflowHandler[Any], answer_of: Callable[[Any], Event | None]
    ) -> None:
        number = 0
        async for event in handler.stream_events(after="0"):
            asked = untagged(event)
            if not isinstance(asked, InputRequiredEvent):
                continue
            number += 1
            answer = answer_of(asked)
            if answer is not None:
                # An earlier life may have answered it, or the run has ended.
                with suppress(WorkflowRuntimeError, RunEndedError):
                    await handler.send_event(answer, id=f"answer {number}")

    def check(self, outcome: Outcome) -> Any:
        """Check that a run that was cut off has the result of the undisturbed one.

        Raises:
            AssertionError: It has another.
        """
        if not outcome.struck:
            self._whole = outcome.value
        elif outcome.completed and outcome.value != self._whole:
            msg = f"the result is {outcome.value!r}, and {self._whole!r} without a crash"
            raise AssertionError(msg)
        return None if self._check is None else self._check(outcome)


def durable_scenario(
    workflow: Workflow[Any] | Callable[[CrashLedger], Workflow[Any]],
    *,
    answer: Callable[[Any], Event | None] | None = None,
    check: Callable[[Outcome], Any] | None = None,
    **fields: Any,
) -> DurableScenario:
    """Make a durable run of a workflow a scenario: ``sweep(durable_scenario(Order(), item="book"), kinds="crash")``.

    Each life opens the store of ``trial.crash`` and starts or continues the run, as a process would.
    After a crash the run has to end with the result that it has without one.

    Args:
        workflow: The workflow; or a function that makes it for a life, given the ledger in which
            the workflow notes its external effects.
        answer: Returns the answer to a question that the run asks, or None to leave it open.
        check: Called with the outcome of every run, beside the check of the result; ``outcome.ledger``
            has what was noted.
        **fields: The fields of the start event.

    Returns:
        The scenario.

    Raises:
        TypeError: When it runs: ``workflow`` returned something other than a workflow.
    """
    return DurableScenario(workflow, answer, check, fields)
