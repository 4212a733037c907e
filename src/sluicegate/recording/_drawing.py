"""The picture of what happened in a run: the graph of its workflow, with counts and times."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluicegate._handler import WorkflowHandler, run_of
from sluicegate.recording._recorder import Recorder, recorders_of
from sluicegate.recording._recording import Recording


if TYPE_CHECKING:
    import os

    from sluicegate._workflow import Workflow
    from sluicegate.drawing import WorkflowGraph
    from sluicegate.recording._model import RecordedRun


def graph_of_execution(
    recorded: Recording | Recorder | WorkflowHandler[Any],
    workflow: type[Workflow[Any]] | Workflow[Any] | None = None,
) -> WorkflowGraph:
    """Return the graph of a workflow with what happened in a run of it.

    It has every form of a picture: ``to_svg()``, ``to_text()``, ``save("run.html")``. As the last
    line of a notebook's cell it is shown.

    Args:
        recorded: A recording, or a recorder: its run that began last is shown. Or the handler of a run
            that has a recorder among its observers.
        workflow: The workflow, which a recording names only; then all that could happen is drawn as well.
            Without it, the steps that ran and the events that passed are. A handler knows its workflow.

    Raises:
        ValueError: The run of the handler was not recorded.
        LookupError: The recording has no run.
        TypeError: ``recorded`` is none of these.
        OSError: The file of the recorder cannot be read.
    """
    from sluicegate.drawing import WorkflowGraph  # noqa: PLC0415 - a recorder does not need it
    from sluicegate.recording._execution import execution_of  # noqa: PLC0415

    run, known = _run_in(recorded)
    execution = execution_of(run)
    cls = workflow if workflow is not None else known
    return (
        WorkflowGraph.of_execution(execution)
        if cls is None
        else WorkflowGraph(cls, execution=execution)
    )


def draw_most_recent_execution(
    recorded: Recording | Recorder | WorkflowHandler[Any],
    filename: str | os.PathLike[str] = "workflow_recent_execution.html",
    *,
    workflow: type[Workflow[Any]] | Workflow[Any] | None = None,
) -> Path:
    """Write a page that shows what happened in a run: the graph of its workflow, with counts and times.

    Steps have how often they ran, for how long, and how many failed, were cancelled or retried; arrows
    how many events passed. What never happened is grey. Other forms: :func:`graph_of_execution`.

    Blocks while it writes the file, so do not call it in an event loop that must respond.

    Args:
        recorded: A recording, or a recorder: its run that began last is shown. Or the handler of a run
            that has a recorder among its observers.
        filename: The path of the page; an existing file is replaced.
        workflow: The workflow, which a recording names only; then all that could happen is drawn as well.

    Returns:
        The path that was written, as given.

    Raises:
        ValueError: The run of the handler was not recorded.
        LookupError: The recording has no run.
        TypeError: ``recorded`` is none of these.
        OSError: The file cannot be written.
    """
    path = Path(filename)
    path.write_bytes(graph_of_execution(recorded, workflow).to_html().encode())
    return path


def draw_most_recent_execution_mermaid(
    recorded: Recording | Recorder | WorkflowHandler[Any],
    filename: str | os.PathLike[str] = "workflow_recent_execution.mermaid",
    *,
    workflow: type[Workflow[Any]] | Workflow[Any] | None = None,
) -> str:
    """Write the picture of :func:`draw_most_recent_execution` as a flowchart for Mermaid, and return it.

    Blocks while it writes the file.

    Args:
        recorded: As for :func:`draw_most_recent_execution`.
        filename: The path of the file; an existing file is replaced.
        workflow: The workflow, which a recording names only.

    Raises:
        ValueError: The run of the handler was not recorded.
        LookupError: The recording has no run.
        TypeError: ``recorded`` is none of these.
        OSError: The file cannot be written.
    """
    chart = graph_of_execution(recorded, workflow).to_mermaid()
    Path(filename).write_bytes(chart.encode())
    return chart


def _run_in(
    recorded: Recording | Recorder | WorkflowHandler[Any],
) -> tuple[RecordedRun, type[Workflow[Any]] | None]:
    """Return the run to draw, and the class of its workflow, if it is at hand."""
    if isinstance(recorded, Recording):
        return recorded.run, None
    if isinstance(recorded, Recorder):
        return recorded.recording.run, None
    if not isinstance(recorded, WorkflowHandler):
        msg = (
            f"there is no execution in a {type(recorded).__name__}; expected a Recording, a Recorder, or "
            "the handler of a recorded run"
        )
        raise TypeError(msg)
    graph = run_of(recorded).graph
    for recorder in recorders_of(recorded.run_id):
        with suppress(LookupError):  # it has forgotten the run
            return recorder.recording.find(recorded.run_id), graph.cls
    msg = (
        f"the run {recorded.run_id} of {graph.name} was not recorded; expected a recorder among its "
        f"observers: `{graph.name}(observers=[Recorder()])`, or `with observe(Recorder()):` around the run"
    )
    raise ValueError(msg)
