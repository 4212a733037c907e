"""Runs a whole workflow under test, from its start event to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from sluicegate._errors import brief
from sluicegate._handler import run_of
from sluicegate._workflow import Workflow
from sluicegate.testing._answering import is_class_of
from sluicegate.testing._session import Expectations, Session


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate._context import Context
    from sluicegate._events import Event, StartEvent
    from sluicegate._handler import WorkflowHandler
    from sluicegate.testing._altering import Recorded, Resources
    from sluicegate.testing._answering import Answers
    from sluicegate.testing._records import WorkflowTestResult
    from sluicegate.testing._session import Raises, Until


R = TypeVar("R")


def check_workflow(workflow: object, call: str) -> None:
    """Check that an argument is a workflow object.

    Raises:
        TypeError: It is not. The message shows ``call``.
    """
    if not isinstance(workflow, Workflow):
        is_class = is_class_of(workflow, Workflow)
        hint = f": {call}({getattr(workflow, '__name__', '')}())" if is_class else ""
        msg = f"{call}() was given {brief(workflow)}; expected a workflow object{hint}"
        raise TypeError(msg)


def open_session(
    workflow: Workflow[R],
    expected: Expectations,
    *,
    recorded: Recorded | None,
    resources: Resources | None,
    start_event: StartEvent | None,
    ctx: Context[Any] | None,
    fields: dict[str, Any],
) -> tuple[WorkflowHandler[R], Session]:
    """Return a run under test, not yet started, and its session.

    Raises:
        TypeError: As :meth:`Workflow.run`, or an argument has the wrong type.
        ValueError: The workflow has no such step or factory.
        WorkflowRuntimeError: As :meth:`Workflow.run`.
    """
    handler = workflow.run(start_event=start_event, ctx=ctx, **fields)
    try:
        session = Session(run_of(handler), expected)
        session.replace(recorded, resources)
    except BaseException:
        handler.cancel("it could not be tested")  # no warning that it was never started
        raise
    return handler, session


async def run_workflow(
    workflow: Workflow[R],
    *,
    start_event: StartEvent | None = None,
    ctx: Context[Any] | None = None,
    answers: Answers = (),
    recorded: Recorded | None = None,
    resources: Resources | None = None,
    expose_internal: bool = True,
    exclude_events: Iterable[type[Event]] = (),
    until: Until = None,
    raises: Raises = (),
    **fields: Any,
) -> WorkflowTestResult[R]:
    """Run a workflow to its end, within this call, and return everything that it did.

    The workflow object is used unchanged, and may have other runs at the same time. A checkpoint;
    when cancelled, it raises after the run has unwound.

    Args:
        workflow: The workflow.
        start_event: The start event; by default it is created from ``fields``.
        ctx: As for :meth:`sluicegate.Workflow.run`.
        answers: The answers to the run's questions (``InputRequiredEvent`` objects that it
            publishes): a mapping from the class of a question to its answer or to a function of
            the question, one function for all questions, or answers in order. A function may be
            async. An answer None leaves its question open. A question without an answer ends the
            run at once. So does a run that waits for an event from outside without an open
            question, after the remaining answers in order have been sent. With ``answers=None``
            the run may wait.
        recorded: For names of steps, the results to return instead of calling the step: a list
            with one result for each invocation, or a function of the event (of the events, if the
            step takes several), which may be async. The step's resources and limiter are not used;
            its timeout, retries and declared types apply. A result that is an exception is raised.
        resources: For factories of resources (or ``ResourceConfig`` objects), the values to use
            instead; they are neither entered nor closed.
        expose_internal: Whether to collect the engine's internal events.
        exclude_events: Classes of events not to collect.
        until: Ends the run when it has published such an event: an event class, several, or a
            function of an event that returns True. The run is then ``"cancelled"``.
        raises: The exception class, or classes, that the run must fail with. The failure is then
            in the result.
        **fields: The fields of the start event. If a field has the name of a parameter here, use
            ``start_event``.

    Returns:
        The result: everything that the run did, and how it ended.

    Raises:
        Exception: The run's failure, unless ``raises`` names its class; the original object.
        AssertionError: A question had no answer; listed answers or recorded results were too few
            or, in a completed run, too many; the run completed and ``raises`` or ``until`` was
            given.
        TypeError: The fields do not fit the start event, or an argument has the wrong type.
        ValueError: A step in ``recorded`` or a factory in ``resources`` is not in the workflow.
        WorkflowRuntimeError: As :meth:`sluicegate.Workflow.run`.
    """
    check_workflow(workflow, "run_workflow")
    expected = Expectations(
        answers=answers,
        expose_internal=expose_internal,
        exclude_events=tuple(exclude_events),
        until=until,
        raises=raises,
    )
    handler, session = open_session(
        workflow,
        expected,
        recorded=recorded,
        resources=resources,
        start_event=start_event,
        ctx=ctx,
        fields=fields,
    )
    await run_session(handler, session)
    return session.conclude()


async def run_session(handler: WorkflowHandler[Any], session: Session) -> None:
    """Run the run of a session to its end. A checkpoint; when cancelled, the run has unwound."""
    try:
        async with handler:
            await session.watch()
            _ = handler.exceptions  # observed here, and raised by conclude()
    finally:
        session.end()


@final
class WorkflowTestRunner(Generic[R]):
    """Runs one workflow under test, any number of times.

    Args:
        workflow: The workflow.

    Raises:
        TypeError: ``workflow`` is not a workflow object.
    """

    def __init__(self, workflow: Workflow[R]) -> None:
        check_workflow(workflow, "WorkflowTestRunner")
        self._workflow = workflow

    async def run(
        self,
        start_event: StartEvent | None = None,
        ctx: Context[Any] | None = None,
        expose_internal: bool = True,
        exclude_events: Iterable[type[Event]] | None = None,
        **more: Any,
    ) -> WorkflowTestResult[R]:
        """Run it to its end. A checkpoint; see :func:`run_workflow`, also for the exceptions.

        Args:
            start_event: The start event.
            ctx: As for :meth:`sluicegate.Workflow.run`.
            expose_internal: Whether to collect the engine's internal events.
            exclude_events: Classes of events not to collect.
            **more: Further arguments of :func:`run_workflow`, including the fields of the start
                event.
        """
        return await run_workflow(
            self._workflow,
            start_event=start_event,
            ctx=ctx,
            expose_internal=expose_internal,
            exclude_events=exclude_events or (),
            **more,
        )
