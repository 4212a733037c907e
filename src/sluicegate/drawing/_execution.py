"""Executions: the counts of a run that a picture can show."""

from __future__ import annotations

import attrs


def shown_seconds(seconds: float) -> str:
    """Return a time for reading: ``"1.5 s"``, ``"3 ms"``, ``"2 min 5 s"``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.1f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@attrs.frozen
class StepCounts:
    """The outcomes of the invocations of one step, as counts.

    Those that are still running are ``started - completed - failed - cancelled``.

    Attributes:
        started: The invocations that began; a retry is the same invocation.
        completed: Those that returned; a return of None counts as well.
        failed: Those that raised, after their last attempt; a timeout of the step counts as well.
        cancelled: Those that a cancellation ended.
        retried: The attempts after the first, over all invocations.
        seconds: The time from the start to the end of each invocation, summed. Invocations that
            overlap are all counted in full.
    """

    started: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    seconds: float = 0.0

    @property
    def running(self) -> int:
        """The invocations that have not ended."""
        return max(self.started - self.completed - self.failed - self.cancelled, 0)

    def summary(self) -> str:
        """Return the counts that are not 0, and the time: ``"3 completed, 1 failed, 1.5 s"``."""
        if not self.started:
            return "never ran"
        counts = {
            "completed": self.completed,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "running": self.running,
            "retried": self.retried,
        }
        told = [f"{count:,} {name}" for name, count in counts.items() if count]
        return ", ".join([*told, shown_seconds(self.seconds)])


@attrs.frozen
class Passage:
    """How many events of one class went one way.

    Attributes:
        source: The name of the step that made the events; None for events from outside: the start
            event, answers, and other events of ``handler.send_event()``.
        event: The ``__name__`` of their class. The failure of a step, on its way to a handler, is
            an event ``"StepFailedEvent"`` of the step that failed.
        target: The name of the step that took them, or in which ``ctx.wait_for_event()`` returned
            them; None if they left the run: stop events and questions. An event that two steps take
            is in two passages.
        count: How many there were.
    """

    source: str | None
    event: str
    target: str | None
    count: int = 1


@attrs.frozen
class Execution:
    """The counts of a run, or of several runs of one workflow together.

    ``WorkflowGraph(workflow, execution=...)`` shows them: counts and times in the boxes, counts at
    the arrows. An execution needs no run and no recording, so the counts can come from anywhere::

        Execution(
            workflow="Writer",
            steps={
                "draft": StepCounts(started=2, completed=1, failed=1, retried=1, seconds=1.5),
                "polish": StepCounts(started=1, completed=1, seconds=0.25),
            },
            passages=(
                Passage(None, "StartEvent", "draft", 1),
                Passage("draft", "Draft", "polish", 1),
                Passage("polish", "StopEvent", None, 1),
            ),
            published=(Passage("draft", "Progress", None, 3),),
            outcome="completed",
            seconds=1.8,
        )

    Attributes:
        workflow: The ``__name__`` of the workflow class.
        steps: The counts of each step by its name; a step that never started may be missing.
        passages: The events that went from step to step, into the run and out of it; passages
            with the same source, event and target are added up. A passage that the workflow does
            not declare is drawn as observed only.
        published: The events that steps wrote to the stream, without questions. The targets are
            not read.
        outcome: ``"completed"``, ``"failed"``, ``"timed_out"``, ``"cancelled"``, ``"detached"`` (a
            durable run continues elsewhere), ``"parked"`` (it has left the memory until it is woken) or
            ``"running"``; empty for several runs together.
        seconds: How long the run took, by the event loop's clock; None if that is not known.
        run_id: The identifier of the run; empty for several runs together.
        children: The runs of child workflows, one execution for each workflow class, with the
            counts of all its runs together. They are matched with the children in the picture by
            ``workflow``.
    """

    workflow: str
    steps: dict[str, StepCounts] = attrs.field(factory=dict[str, StepCounts])
    passages: tuple[Passage, ...] = ()
    published: tuple[Passage, ...] = ()
    outcome: str = ""
    seconds: float | None = None
    run_id: str = ""
    children: tuple[Execution, ...] = ()

    def summary(self) -> str:
        """Return how the run ended and how long it took: ``"run 3f2a failed after 1.8 s"``."""
        words = [f"run {self.run_id}" if self.run_id else "", self.outcome.replace("_", " ")]
        if self.seconds is not None:
            words.append(f"after {shown_seconds(self.seconds)}")
        return " ".join(word for word in words if word)
