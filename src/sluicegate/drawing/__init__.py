"""Drawing: a page that shows all possible flows of a workflow, without network or JavaScript."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from sluicegate.drawing._execution import Execution, Passage, StepCounts
from sluicegate.drawing._flow import flow_of
from sluicegate.drawing._page import page_of
from sluicegate.drawing._svg import xml_text


if TYPE_CHECKING:
    import os

    from sluicegate._workflow import Workflow


__all__ = [
    "Execution",
    "Passage",
    "Picture",
    "StepCounts",
    "draw_all_possible_flows",
    "page_of_all_possible_flows",
    "show_all_possible_flows",
]


def draw_all_possible_flows(
    workflow: type[Workflow[Any]] | Workflow[Any],
    filename: str | os.PathLike[str] = "workflow_all_flows.html",
) -> Path:
    """Write a page that shows every flow that the signatures of a workflow's steps allow.

    The page is one file: an SVG picture in HTML that opens offline, prints, and follows the
    reader's light or dark mode. The same workflow gives the same bytes. A workflow with faults
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
    page = page_of_all_possible_flows(workflow)
    path = Path(filename)
    path.write_bytes(page.encode())
    return path


def page_of_all_possible_flows(workflow: type[Workflow[Any]] | Workflow[Any]) -> str:
    """Return the page that :func:`draw_all_possible_flows` writes, as text.

    Raises:
        TypeError: ``workflow`` is neither a workflow nor a workflow class.
    """
    return page_of(flow_of(workflow))


@final
class Picture:
    """A page that a notebook shows below its cell.

    Attributes:
        page: The page, as text.
    """

    __slots__ = ("_name", "page")

    def __init__(self, name: str, page: str) -> None:
        self._name = name
        self.page: str = page

    def _repr_html_(self) -> str:
        """Return the page in a frame, which keeps its style apart from the notebook's."""
        return (
            f'<iframe title="{xml_text(self._name)}" srcdoc="{xml_text(self.page)}" sandbox '
            'style="width: 100%; height: 30em; border: 0; resize: vertical; overflow: auto">'
            "</iframe>"
        )

    def __repr__(self) -> str:
        return f"<Picture of {self._name}>"


def show_all_possible_flows(workflow: type[Workflow[Any]] | Workflow[Any]) -> Picture:
    """Return the page of :func:`draw_all_possible_flows` for a notebook, which shows it inline.

    As the last line of a cell, ``show_all_possible_flows(Writer)`` shows the picture below it.

    Raises:
        TypeError: ``workflow`` is neither a workflow nor a workflow class.
    """
    flow = flow_of(workflow)
    return Picture(flow.name, page_of(flow))
