"""The graph of a workflow, as users hold it: one object with every form of the picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from sluicegate.drawing._dot import dot_of
from sluicegate.drawing._flow import flow_of
from sluicegate.drawing._json import json_of
from sluicegate.drawing._mermaid import mermaid_of
from sluicegate.drawing._overlay import flow_of_execution, with_execution
from sluicegate.drawing._page import page_of
from sluicegate.drawing._picture import picture_of, svg_of
from sluicegate.drawing._svg import xml_text
from sluicegate.drawing._text import text_of


if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from sluicegate._workflow import Workflow
    from sluicegate.drawing._execution import Execution
    from sluicegate.drawing._flow import Flow


#: The greatest height of a page in a notebook, in pixels; a higher picture is zoomed or scrolled.
NOTEBOOK_HEIGHT = 640


@final
class WorkflowGraph:
    """The graph of a workflow: its steps, and the events that the signatures allow between them.

    It is read once, when it is made, and the workflow is neither built nor run. The same workflow
    gives the same text in every form, in every process.

    As the last line of a notebook's cell, ``WorkflowGraph(Writer)`` shows the picture.

    Args:
        workflow: The workflow class, or an object of it.
        execution: The counts of a run, which the picture then shows: how often each step ran, for
            how long, and how many events passed. Steps that never ran are grey and dashed, failed
            ones red, cancelled ones hatched; what no step declares is drawn as observed only.

    Raises:
        TypeError: ``workflow`` is neither a workflow nor a workflow class.
    """

    __slots__ = ("_flow",)

    def __init__(
        self, workflow: type[Workflow[Any]] | Workflow[Any], *, execution: Execution | None = None
    ) -> None:
        flow = flow_of(workflow)
        self._flow: Flow = flow if execution is None else with_execution(flow, execution)

    @classmethod
    def of_execution(cls, execution: Execution) -> Self:
        """Return the graph of a run whose workflow class is not at hand, such as that of a file.

        It consists of the steps that ran and the events that passed.
        """
        graph = cls.__new__(cls)
        graph._flow = flow_of_execution(execution)
        return graph

    @property
    def name(self) -> str:
        """The name of the workflow class."""
        return self._flow.name

    @property
    def faults(self) -> tuple[str, ...]:
        """The faults for which the workflow cannot be built, as text; they are in the page, too."""
        return self._flow.faults

    def summary(self) -> str:
        """Return how many steps and events it has: ``"2 steps, 3 events and 1 published"``.

        Published events are those that are only written to the stream. The events of child
        workflows are not counted.
        """
        return self._flow.counts()

    def to_html(self) -> str:
        """Return the page: the picture with its legend, zoom and search, the faults and the events.

        It is one file that opens offline. Without JavaScript it is complete, and does not zoom.
        """
        return page_of(self._flow)

    def to_svg(self) -> str:
        """Return the picture as an SVG file, which follows the reader's light or dark mode."""
        return svg_of(self._flow)

    def to_mermaid(self) -> str:
        """Return a flowchart for Mermaid, which GitHub draws in a fenced block called ``mermaid``."""
        return mermaid_of(self._flow)

    def to_dot(self) -> str:
        """Return a graph for Graphviz: ``dot -Tpdf writer.dot -o writer.pdf``."""
        return dot_of(self._flow)

    def to_text(self) -> str:
        """Return the graph as ASCII text, a line for each event that a step makes."""
        return text_of(self._flow)

    def to_json(self) -> str:
        """Return nodes, edges, events and faults as JSON, for other programs.

        ``version`` grows when the meaning of a key changes; new keys may come at any time.

        * ``nodes``: each has an ``id`` and a ``kind``: ``step``, ``start``, ``stop``, ``person``,
          ``outside``, ``failures`` or ``gap``. A step also has ``name``, ``summary``, ``join``,
          ``handles_failures``, ``marks``, ``publishes`` and ``children``, which contain the graphs
          of child workflows.
        * ``edges``: each has the ``source`` and the ``target``, which are ids of nodes, a ``kind``
          (``event``, ``human``, ``fails`` or ``gap``), the ``events`` by name, and ``fans_out``.
        * ``events`` and ``published``: the names with their ``fields``.
        * ``faults``: texts.
        * With an execution: ``execution``, the ``counts`` of each step, the ``count`` of each event
          at an edge, and ``is_undeclared`` at an edge that was observed only.
        """
        return json_of(self._flow)

    def save(self, filename: str | os.PathLike[str]) -> Path:
        """Write the graph into a file, in the form that its suffix names.

        ``.html``, ``.svg``, ``.mmd`` or ``.mermaid``, ``.dot`` or ``.gv``, ``.txt``, ``.json``.
        Blocks while it writes, so do not call it in an event loop that must respond.

        Args:
            filename: The path of the file; an existing file is replaced.

        Returns:
            The path that was written, as given.

        Raises:
            ValueError: There is no form for the suffix; nothing is written.
            OSError: The file cannot be written.
        """
        path = Path(filename)
        form = form_of(path)
        path.write_bytes(form(self).encode())
        return path

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """Return the page in a frame, which keeps its style apart from the notebook's; and text."""
        height = min(picture_of(self._flow).height + 230, NOTEBOOK_HEIGHT)
        frame = (
            f'<iframe title="{xml_text(self.name)}" srcdoc="{xml_text(self.to_html())}" '
            f'sandbox="allow-scripts" style="width: 100%; height: {height:g}px; border: 0; '
            'resize: vertical; overflow: auto"></iframe>'
        )
        return {"text/html": frame, "image/svg+xml": self.to_svg(), "text/plain": self.to_text()}

    def __repr__(self) -> str:
        return f"<WorkflowGraph of {self.name}: {self.summary()}>"


#: The forms by suffix.
FORMS: dict[str, Callable[[WorkflowGraph], str]] = {
    ".html": WorkflowGraph.to_html,
    ".htm": WorkflowGraph.to_html,
    ".svg": WorkflowGraph.to_svg,
    ".mmd": WorkflowGraph.to_mermaid,
    ".mermaid": WorkflowGraph.to_mermaid,
    ".dot": WorkflowGraph.to_dot,
    ".gv": WorkflowGraph.to_dot,
    ".txt": WorkflowGraph.to_text,
    ".json": WorkflowGraph.to_json,
}


def form_of(path: Path) -> Callable[[WorkflowGraph], str]:
    """Return the form that the suffix of a path names.

    Raises:
        ValueError: There is no such form.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        suffix = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        msg = f"{str(path)!r} has {suffix}, which names no form of a picture; expected one of {', '.join(FORMS)}"
        raise ValueError(msg)
    return form
