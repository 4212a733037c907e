"""Drawing: the graph of a workflow as a page, a picture or text, without network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluicegate.drawing._execution import Execution, Passage, StepCounts
from sluicegate.drawing._graph import WorkflowGraph


if TYPE_CHECKING:
    import os

    from sluicegate._workflow import Workflow


__all__ = [
    "Execution",
    "Passage",
    "StepCounts",
    "WorkflowGraph",
    "draw_all_possible_flows",
    "draw_all_possible_flows_mermaid",
]


def draw_all_possible_flows(
    workflow: type[Workflow[Any]] | Workflow[Any],
    filename: str | os.PathLike[str] = "workflow_all_flows.html",
) -> Path:
    """Write a page that shows every flow that the signatures of a workflow's steps allow.

    It is that of :meth:`WorkflowGraph.to_html`, whatever the suffix of ``filename``;
    :meth:`WorkflowGraph.save` writes other forms. The page is one file: an SVG picture in HTML that
    opens offline, prints, and follows the reader's light or dark mode. The same workflow gives the same bytes. A workflow with faults
    is drawn as far as its steps can be read, and the faults are listed below the picture.

    Steps are boxes and events are arrows; a dashed arrow leads from a step to the handler of its
    failures. Below the name of a step are the other parts of its decorator and signature:
    workers, timeouts, retries, limiter, thread or process, resources, state.

    A step that calls ``ctx.run_child`` contains the flow of the child, in a frame with its name;
    each workflow is drawn once, and further uses refer to it. The child is found in the source
    of the step: ``Child(...)``, a name, an annotated parameter, or an attribute that the class
    body or ``__init__`` assigns in this way. For an object, its own attributes are read too.
    If the source does not show which workflow it is, a dashed frame shows the argument's source.

    Events that are only written to the stream are found in the source as well: those made in a
    call of ``ctx.write_event_to_stream``, ``ctx.stream.send`` or ``ctx.stream.send_nowait``, or
    assigned to the name passed to it, or declared as a parameter of that name. Without a source,
    events to the stream and children are missing from the picture.

    Blocks while it writes the file, so do not call it in an event loop that must respond.

    Args:
        workflow: The class, or an object of it; it is neither built nor run.
        filename: The path of the page; an existing file is replaced.

    Returns:
        The path that was written, as given.

    Raises:
        TypeError: ``workflow`` is neither a workflow nor a workflow class.
        OSError: The file cannot be written.
    """
    path = Path(filename)
    path.write_bytes(WorkflowGraph(workflow).to_html().encode())
    return path


def draw_all_possible_flows_mermaid(
    workflow: type[Workflow[Any]] | Workflow[Any],
    filename: str | os.PathLike[str] = "workflow_all_flows.mermaid",
) -> str:
    """Write the flowchart of :meth:`WorkflowGraph.to_mermaid` into a file, and return it.

    The name and the arguments are those of LlamaIndex Workflows. Blocks while it writes the file.

    Args:
        workflow: The class, or an object of it; it is neither built nor run.
        filename: The path of the file; an existing file is replaced.

    Raises:
        TypeError: ``workflow`` is neither a workflow nor a workflow class.
        OSError: The file cannot be written.
    """
    chart = WorkflowGraph(workflow).to_mermaid()
    Path(filename).write_bytes(chart.encode())
    return chart
