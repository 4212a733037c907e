"""Replay: whether the code of a workflow can continue runs that older code has begun."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Any, cast, final

import attrs

from sluicegate._errors import brief
from sluicegate._scope import run
from sluicegate._workflow import Workflow, graph_in
from sluicegate.durable import open_run_store
from sluicegate.durable._exported import ExportedRun, difference_of, read_run
from sluicegate.durable._port import ENDED


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@final
@attrs.frozen
class ReplayedRun:
    """A stored run, as :func:`replay` has found it.

    Attributes:
        run_id: Its id.
        status: Its status in the journal.
        source: The file or store that has it.
        difference: Why the workflow cannot continue it; None if it can. Of a run that has ended: why its
            events cannot be read.
    """

    run_id: str
    status: str
    source: str
    difference: str | None


@final
@attrs.frozen
class ReplayReport:
    """What :func:`replay` has found.

    Attributes:
        workflow: The name of the workflow.
        runs: The runs of the workflow, in the order of their sources.
        others: How many runs of other workflows there were; they were not looked at.
    """

    workflow: str
    runs: tuple[ReplayedRun, ...]
    others: int

    @property
    def differences(self) -> tuple[ReplayedRun, ...]:
        """The runs that do not fit."""
        return tuple(run for run in self.runs if run.difference is not None)

    def __str__(self) -> str:
        found = self.differences
        if not found:
            return f"{self.workflow} can continue all of {len(self.runs)} stored runs"
        lines = [f"{self.workflow} cannot continue {len(found)} of {len(self.runs)} stored runs:"]
        lines += [f"* {run.run_id} ({run.status}, {run.source}): {run.difference}" for run in found]
        return "\n".join(lines)


class ReplayError(AssertionError):
    """Raised by :func:`replay` if a workflow cannot continue stored runs. Its text has all differences.

    Attributes:
        report: What was found.
    """

    def __init__(self, report: ReplayReport) -> None:
        super().__init__(str(report))
        self.report = report


def replay(
    journals: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    workflow: Workflow[Any],
    *,
    raises: bool = True,
) -> ReplayReport:
    """Check that the code of a workflow can continue stored runs, as their owner would after a deployment.

    ::

        def test_runs_of_earlier_versions_continue():
            replay("tests/journals", Order())

    The journal of each run is replayed, and the run is decoded for the workflow as it is now. No step runs,
    and no run changes. A run that has ended is not continued; only its events are decoded. Children are checked
    as far as the journals of their parents go: what they themselves had pending is checked when their
    step calls for them.

    Args:
        journals: A folder of files that :meth:`RunStore.export` wrote, such a file, an SQLite file, or
            the URL of a store; or several of these.
        workflow: The workflow. Runs of others are counted, and not looked at.
        raises: Whether to raise if a run does not fit.

    Returns:
        What was found.

    Raises:
        ReplayError: The workflow cannot continue a run; the text has the difference of each. An
            ``AssertionError``.
        ValueError: There is no run of the workflow.
        StoreError: A file or store cannot be read.
        OSError: As ``StoreError``, of the operating system: a file does not exist.
        TypeError: The workflow is none.
    """
    if not isinstance(cast("object", workflow), Workflow):
        msg = f"replay() was given {brief(workflow)}; expected a workflow object: `MyWorkflow()`"
        raise TypeError(msg)
    name = graph_in(workflow).name
    sources = [journals] if isinstance(journals, str | os.PathLike) else [*journals]
    found = [each for source in sources for each in _runs_in(source, workflow)]
    own = [each for each in found if each.workflow == name]
    if not own:
        others = ", ".join(sorted({run.workflow for run in found})) or "none"
        msg = (
            f"replay() found no run of {name} in {', '.join(map(str, sources))} (runs of: {others}); "
            "expected journals of its runs"
        )
        raise ValueError(msg)
    runs = tuple(
        ReplayedRun(
            run.run_id,
            run.status,
            run.source,
            difference_of(run, workflow, run.status in ENDED),
        )
        for run in own
    )
    report = ReplayReport(name, runs, len(found) - len(own))
    if raises and report.differences:
        raise ReplayError(report)
    return report


def _runs_in(source: str | os.PathLike[str], workflow: Workflow[Any]) -> Sequence[ExportedRun]:
    text = os.fspath(source)
    if ":" in text and not Path(text).exists():
        return _runs_of_store(text, workflow)
    path = Path(text)
    if path.is_dir():
        return [read_run(each) for each in sorted(path.glob("*.jsonl"))]
    if path.suffix == ".jsonl":
        return [read_run(path)]
    if not path.exists():
        msg = f"replay() found no file {text}"
        raise FileNotFoundError(msg)
    return _runs_of_store(f"sqlite:///{path.absolute()}", workflow)


def _runs_of_store(url: str, workflow: Workflow[Any]) -> list[ExportedRun]:
    """Read the runs of a store, in a thread with an event loop: the caller may be in one."""
    found: list[ExportedRun] = []
    errors: list[BaseException] = []

    async def read() -> None:
        async with open_run_store(url, workflows=[workflow]) as runs:
            with TemporaryDirectory() as folder:
                paths = await runs.export(folder)
                found.extend(attrs.evolve(read_run(path), source=url) for path in paths)

    def work() -> None:
        try:
            run(read)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised in the caller's thread
            errors.append(error)

    thread = Thread(target=work, name="replay")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found
