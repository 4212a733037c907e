"""Running: a whole workflow under test, from its start event to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from sluicegate._errors import brief
from sluicegate._workflow import Workflow
from sluicegate.testing._answering import is_class_of
from sluicegate.testing._session import Expectations, Session, hand_over


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
    """Refuse what is no workflow object.

    Raises:
        TypeError: It is none; the message shows ``call``.
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
        TypeError: As :meth:`Workflow.run`, or something given cannot be used.
        ValueError: A name or a factory fits nothing in the workflow.
        WorkflowRuntimeError: As :meth:`Workflow.run`.
    """
    handler = workflow.run(start_event=start_event, ctx=ctx, **fields)
    try:
        session = Session(handler._runner, expected)
        session.replace(recorded, resources)
    except BaseException:
        handler.cancel("it could not be tested")  # it is not to warn that it was never started
        raise
    hand_over(handler, session)
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

    The workflow object is used as it is; nothing of it is changed, and other runs of it may go on
    meanwhile. A checkpoint; cancelled, the run has unwound.

    Args:
        workflow: The workflow.
        start_event: The event to begin with; else it is made from ``fields``.
        ctx: As for :meth:`sluicegate.Workflow.run`.
        answers: What is said when the run asks (publishes an ``InputRequiredEvent``): a mapping
            from the class of the question to the answer or to a function of the question, one
            function for all questions, or answers in order. A function may be async. An answer
            None leaves its question open. A question without an answer ends the run at once. So
            does a run that waits for an event from outside with no question open, after what is
            left of answers in order has been sent. ``answers=None`` lets it wait.
        recorded: For names of steps, what they are to have returned: a list of results, one for
            each invocation, or a function of the event (of the events, where the step takes
            several), which may be async. The step itself is not called, and its resources and its
            limiter are not used; its timeout, its retries and its declared types hold. A result
            that is an exception is raised.
        resources: For factories of resources (or ``ResourceConfig`` objects), the values to give
            in their place; these are neither entered nor closed.
        expose_internal: Whether the engine's own events are collected.
        exclude_events: Classes of events that are not collected.
        until: Ends the run as soon as it has published such an event: a class of events, several,
            or a function of an event that returns True. The run is then ``"cancelled"``.
        raises: What the run is to fail with; the failure is then in the result.
        **fields: The fields of the start event. Those that have the name of a parameter here go
            into ``start_event``.

    Returns:
        What the run did.

    Raises:
        Exception: The run's failure, unless ``raises`` names its class: that very object.
        AssertionError: A question had no answer; answers or recorded results, given as a list,
            were too few or, in a run that completed, too many; the run completed and ``raises``
            or ``until`` was given.
        TypeError: The fields do not fit the start event, or an argument is of the wrong kind.
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
    """Run what a session watches to its end. A checkpoint; cancelled, the run has unwound."""
    try:
        async with handler:
            await session.watch()
            _ = handler.exceptions  # looked at, so that the block leaves them to conclude()
    finally:
        session.end()


@final
class WorkflowTestRunner(Generic[R]):
    """Runs one workflow under test, again and again.

    Args:
        workflow: The workflow.

    Raises:
        TypeError: It is no workflow object.
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
        """Run it to its end; see :func:`run_workflow`, also for what is raised. A checkpoint.

        Args:
            start_event: The event to begin with.
            ctx: As for :meth:`sluicegate.Workflow.run`.
            expose_internal: Whether the engine's own events are collected.
            exclude_events: Classes of events that are not collected.
            **more: Further arguments of :func:`run_workflow`, the fields of the start event among
                them.
        """
        return await run_workflow(
            self._workflow,
            start_event=start_event,
            ctx=ctx,
            expose_internal=expose_internal,
            exclude_events=exclude_events or (),
            **more,
        )
