"""The commands that look at a workflow without running it: draw and check."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sluicegate._definition.checks import find_faults, list_faults
from sluicegate._definition.graph import Graph, graph_of
from sluicegate._definition.silent_ends import silent_end
from sluicegate._events import StopEvent
from sluicegate.cli._targets import UsageError, build, is_workflow_class, load
from sluicegate.drawing import draw_all_possible_flows, page_of_all_possible_flows


if TYPE_CHECKING:
    import argparse


def draw(arguments: argparse.Namespace) -> int:
    """Write the page of a workflow, and print its path."""
    cls, _ = _class_of(arguments.target)
    if arguments.output == "-":
        sys.stdout.write(page_of_all_possible_flows(cls))
    else:
        path = arguments.output or f"{cls.__name__}.html"
        try:
            print(draw_all_possible_flows(cls, path))  # noqa: T201
        except BrokenPipeError:
            raise
        except OSError as error:
            msg = f"cannot write {path}: {error.strerror or error}"
            raise UsageError(msg) from error
    faults = len(find_faults(graph_of(cls)))
    if faults:
        told = "1 fault" if faults == 1 else f"{faults} faults"
        note = f"sluicegate: {cls.__name__} has {told}; see `sluicegate check {arguments.target}`"
        print(note, file=sys.stderr)  # noqa: T201
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Print "ok" and a summary, or every fault; and the steps that can end silently."""
    cls, is_built = _class_of(arguments.target)
    graph = graph_of(cls)
    skipped = set(arguments.skip)
    # An object was checked when it was built; the checks that it skipped are skipped here too.
    found = find_faults(graph)
    faults = [f for f in found if f.check not in skipped and not (is_built and f.check)]
    if faults:
        print(list_faults(graph, [fault.text for fault in faults]))  # noqa: T201
    else:
        print(f"ok: {_summary(graph)}")  # noqa: T201
        for fault in found:
            print(f"  switched off: {fault.check}: {fault.text}")  # noqa: T201
    silent = [text for text in map(silent_end, graph.steps) if text]
    for text in silent:
        print(f"  note: {text}")  # noqa: T201
    return 1 if faults or (silent and arguments.strict) else 0


def _class_of(target: str) -> tuple[Any, bool]:
    """Return the class of a target's workflow, and whether an object of it has been built."""
    found = load(target)
    if is_workflow_class(found):
        return found, False
    return type(build(target, found)), True


def _summary(graph: Graph) -> str:
    made = {kind for step in graph.steps for kind in (*step.returns, *step.fans_out)}
    taken = {kind for step in graph.steps for kind in step.accepts}
    stops = sorted(kind.__name__ for kind in made if issubclass(kind, StopEvent))
    steps = "1 step" if len(graph.steps) == 1 else f"{len(graph.steps)} steps"
    return (
        f"{graph.name}, {steps}, {len(made | taken)} events, "
        f"begins with {graph.start_event.__name__}, ends with {' or '.join(stops)}"
    )
