"""Watching a run as a tree, drawn with rich: steps, workers, queues, waits and progress."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from sluicegate._engine.dump_values import counted, name_of, seconds, shown, until
from sluicegate.cli._output import printable
from sluicegate.cli._watch_lines import amount, events_of, is_told, waiting


if TYPE_CHECKING:
    from rich.console import RenderableType

    from sluicegate._events import ProgressEvent
    from sluicegate.cli._watched import (
        WatchedInvocation,
        WatchedRun,
        WatchedRuns,
        WatchedStep,
    )


#: The width of a progress bar, in characters.
BAR = 20
#: The greatest number of invocations that are shown of a step, if there is room.
MOST = 8

_STATES = {
    "completed": ("done", "green"),
    "failed": ("failed", "red"),
    "cancelled": ("cancelled", "yellow"),
    "dropped": ("dropped", "dim"),
}
#: How the end of a run is shown if it is none to worry about.
_ENDS = {"completed": "bold green", "detached": "bold yellow", "parked": "bold yellow"}


def draw(watched: WatchedRuns, height: int) -> RenderableType:
    """Return the tree of the runs, with as many invocations as fit into a number of lines."""
    root = Tree("", hide_root=True)
    for most in (MOST, 4, 2, 1, 0):
        root.children = [_run(run, watched, most) for run in watched.top]
        if sum(map(_height, root.children)) <= height:
            break
    return root


def _height(tree: Tree) -> int:
    return 1 + sum(map(_height, tree.children))


def _run(run: WatchedRun, watched: WatchedRuns, most: int) -> Tree:
    tree = Tree(_title(run))
    for step in run.steps.values():
        branch = tree.add(_step(step))
        # The oldest, because that is where the time is.
        for invocation in islice(step.running.values(), most):
            leaf = branch.add(_invocation(invocation, run))
            for child in (watched.runs.get(run_id) for run_id in invocation.children):
                if child is not None:
                    leaf.children.append(_run(child, watched, most))
        hidden = len(step.running) - most
        if most and hidden > 0:
            branch.add(Text(f"... {hidden:,} more at work", "dim"))
        delayed = [i for i in step.queued.values() if i.not_before is not None]
        for invocation in delayed[: max(most, 1)]:
            branch.add(_delayed(invocation, run))
    for asked in run.questions.values():
        tree.add(Text.assemble("asks ", (printable(shown(asked.value, 1)), "magenta")))
    return tree


def _title(run: WatchedRun) -> Text:
    text = Text.assemble((run.begin.workflow, "bold"), (f" {run.run_id}", "dim"))
    text.append(f"  {seconds(run.took)}", "cyan")
    if run.end is not None:
        word = run.end.status.replace("_", " ")
        text.append(f"  {word}", _ENDS.get(run.end.status, "bold red"))
        if run.end.error is not None:
            text.append(f": {name_of(type(run.end.error))}", "red")
    elif run.cancellation is not None and is_told(run.cancellation):
        text.append(f"  unwinds: {printable(run.cancellation.reason)}", "yellow")
    elif run.deadline is not None:
        text.append(f"  timeout {until(run.deadline, run.now())}", "dim")
    return text


def _step(step: WatchedStep) -> Text:
    working = len(step.running)
    text = Text.assemble((step.name, "bold" if working else ""))
    if working:
        text.append(f"  {working:,} of {counted(step.workers, 'worker')}", "cyan")
    delayed = sum(i.not_before is not None for i in step.queued.values())
    if len(step.queued) > delayed:
        text.append(f"  {len(step.queued) - delayed:,} queued", "blue")
    if step.is_fanned and step.done < step.total:
        text.append("  ")
        text.append_text(_bar(step.done, step.total))
        text.append(f" {step.done:,} of {step.total:,}")
    for outcome, (word, style) in _STATES.items():
        number = step.ended.get(outcome, 0)
        if number > 0:
            text.append(f"  {number:,} {word}", style)
    return text


def _invocation(invocation: WatchedInvocation, run: WatchedRun) -> Text:
    now = run.now()
    text = Text.assemble(
        (f"#{invocation.number} ", "dim"),
        printable(events_of(invocation)),
        (f"  {seconds(now - invocation.since)}", "cyan"),
    )
    if invocation.attempt > 1:
        text.append(f"  attempt {invocation.attempt}", "yellow")
    if invocation.is_unwinding:
        text.append("  unwinds", "yellow")
    for wait in invocation.waits.values():
        if wait.kind != "child":  # that is shown below
            text.append(f"  {waiting(wait, now)}", "magenta")
    if invocation.progress is not None:
        text.append_text(_progress(invocation.progress))
    return text


def _progress(report: ProgressEvent) -> Text:
    text = Text("  ")
    if report.total:
        text.append_text(_bar(report.done, report.total))
        text.append(" ")
    text.append(amount(report))
    if report.message:
        text.append(f"  {printable(report.message)}", "italic")
    return text


def _delayed(invocation: WatchedInvocation, run: WatchedRun) -> Text:
    assert invocation.not_before is not None
    due = until(invocation.not_before, run.now())
    return Text.assemble(
        (f"#{invocation.number} ", "dim"),
        printable(events_of(invocation)),
        (f"  attempt {invocation.attempt} {due}", "yellow"),
    )


def _bar(done: float, total: float) -> Text:
    share = min(max(done / total, 0.0), 1.0) if total else 1.0
    full = int(share * BAR)
    return Text.assemble(("█" * full, "green"), ("░" * (BAR - full), "dim"))
