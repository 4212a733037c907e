"""The commands that look at a workflow without running it: draw and check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluicegate._definition.checks import find_faults, list_faults
from sluicegate._definition.graph import Graph, graph_of
from sluicegate._definition.silent_ends import silent_end
from sluicegate._events import StopEvent
from sluicegate.cli._targets import UsageError, build, is_workflow_class, load, workflows_in
from sluicegate.drawing import WorkflowGraph


if TYPE_CHECKING:
    import argparse


#: The forms that can be printed, by the name that ``--form`` takes.
FORMS = {
    "html": WorkflowGraph.to_html,
    "svg": WorkflowGraph.to_svg,
    "mermaid": WorkflowGraph.to_mermaid,
    "dot": WorkflowGraph.to_dot,
    "text": WorkflowGraph.to_text,
    "json": WorkflowGraph.to_json,
}


def draw(arguments: argparse.Namespace) -> int:
    """Write the picture of a workflow, and print its path; or print the picture itself."""
    workflow, _ = _workflow_of(arguments.target)
    graph = WorkflowGraph(workflow)
    if arguments.output == "-":
        sys.stdout.write(FORMS[arguments.form or "html"](graph))
    else:
        path = Path(arguments.output or f"{graph.name}.{_SUFFIXES[arguments.form or 'html']}")
        try:
            if arguments.form and arguments.output:
                path.write_bytes(FORMS[arguments.form](graph).encode())
            else:
                graph.save(path)
            print(path)  # noqa: T201
        except BrokenPipeError:
            raise
        except OSError as error:
            msg = f"cannot write {path}: {error.strerror or error}"
            raise UsageError(msg) from error
        except ValueError as error:
            msg = f"{error}, or --form"
            raise UsageError(msg) from error
    if graph.faults:
        count = len(graph.faults)
        told = "1 fault" if count == 1 else f"{count} faults"
        note = f"sluicegate: {graph.name} has {told}; see `sluicegate check {arguments.target}`"
        print(note, file=sys.stderr)  # noqa: T201
    return 0


_SUFFIXES = {name: {"mermaid": "mmd", "text": "txt"}.get(name, name) for name in FORMS}


def check(arguments: argparse.Namespace) -> int:
    """Check a workflow, or every workflow of a file or module."""
    target: str = arguments.target
    if ":" in target and not target.endswith(".py"):
        workflow, is_built = _workflow_of(target)
        return _check(type(workflow) if is_built else workflow, is_built, arguments)
    found = workflows_in(target)
    return max(_check(cls, is_built, arguments) for cls, is_built in found)


def _check(cls: Any, is_built: bool, arguments: argparse.Namespace) -> int:
    """Print "ok" and a summary, or every fault; and the steps that can end silently."""
    graph = graph_of(cls)
    skipped = set(arguments.skip)
    # An object was checked when it was built; the checks that it skipped are skipped here too.
    found = find_faults(graph)
    faults = [f for f in found if f.check not in skipped and not (is_built and f.check)]
    if faults:
        print(list_faults(graph, [fault.text for fault in faults]))  # noqa: T201
    else:
        print(f"ok: {_summary(cls, graph)}")  # noqa: T201
        for fault in found:
            print(f"  switched off: {fault.check}: {fault.text}")  # noqa: T201
    silent = [text for text in map(silent_end, graph.steps) if text]
    for text in silent:
        print(f"  note: {text}")  # noqa: T201
    return 1 if faults or (silent and arguments.strict) else 0


def _workflow_of(target: str) -> tuple[Any, bool]:
    """Return the class that a target names, or the object that it builds; and whether it did."""
    found = load(target)
    if is_workflow_class(found):
        return found, False
    return build(target, found), True


def _summary(cls: Any, graph: Graph) -> str:
    made = {kind for step in graph.steps for kind in (*step.returns, *step.fans_out)}
    stops = sorted(kind.__name__ for kind in made if issubclass(kind, StopEvent))
    return (
        f"{graph.name}, {WorkflowGraph(cls).summary()}, "
        f"begins with {graph.start_event.__name__}, ends with {' or '.join(stops)}"
    )
