"""The command that runs a workflow."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext, suppress
from signal import Signals as Signal
from typing import TYPE_CHECKING, Any

from sluicegate._definition.graph import graph_of
from sluicegate._engine.dump import text_of_runs
from sluicegate._errors import WorkflowDetachedError, WorkflowTimeoutError
from sluicegate._events import (
    InputRequiredEvent,
    WorkflowFailedEvent,
    untagged,
)
from sluicegate._exceptions import single
from sluicegate._loop import current_backend
from sluicegate._loop.signals import Signals
from sluicegate._observers import observe
from sluicegate.cli._failure import report
from sluicegate.cli._input import start_event
from sluicegate.cli._output import Printer
from sluicegate.cli._questions import Questions, is_terminal
from sluicegate.cli._targets import UsageError, workflow_at
from sluicegate.cli._watch import Watch


if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from sluicegate._events import StartEvent
    from sluicegate._handler import WorkflowHandler
    from sluicegate.cli._targets import AnyWorkflow
    from sluicegate.durable import RunSummary
    from sluicegate.recording import Recorder
    from sluicegate.timeline.live import LivePage

    StartRun = Callable[[], AbstractAsyncContextManager[WorkflowHandler[Any]]]


COMPLETED = 0
FAILED = 1
TIMED_OUT = 124


def run(arguments: argparse.Namespace) -> int:
    """Run a workflow, print its events and its result, and return the exit code.

    Raises:
        UsageError: The target or the input is wrong, or a question could not be answered.
        KeyboardInterrupt: Ctrl-C, after the run has unwound.
        SystemExit: SIGTERM or SIGHUP, after the run has unwound.
        BrokenPipeError: The reader of the output has gone; the run has been cancelled.
    """
    workflow, begin = prepare(arguments)
    return carry_out(workflow, lambda: workflow.run(start_event=begin), arguments)


def prepare(arguments: argparse.Namespace) -> tuple[AnyWorkflow, StartEvent]:
    """Return the workflow and the start event that the arguments name.

    Raises:
        UsageError: The target or the input is wrong.
    """
    workflow = workflow_at(arguments.target, arguments.timeout)
    return workflow, start_event(graph_of(type(workflow)).start_event, arguments)


def carry_out(
    workflow: AnyWorkflow,
    start: StartRun,
    arguments: argparse.Namespace,
    row: Callable[[], Awaitable[RunSummary | None]] | None = None,
) -> int:
    """Carry out a run in a new event loop as the arguments say; print and return as :func:`run` does.

    Args:
        workflow: The workflow.
        start: Returns the block that owns the run.
        arguments: The arguments of the command.
        row: Returns the row of a stored run, None before it has one; itself None without a store.

    Raises:
        UsageError: A question could not be answered.
        KeyboardInterrupt: Ctrl-C, after the run has unwound.
        SystemExit: SIGTERM or SIGHUP, after the run has unwound.
        BrokenPipeError: The reader of the output has gone; its owner has left the run.
    """
    style = arguments.events or _default_style(watched=arguments.watch)
    watch = Watch() if arguments.watch else None
    signals = Signals(text_of_runs if watch is None else watch.dump)
    recorder, page = _live() if arguments.live else (None, None)
    try:
        with page or nullcontext(), watch or nullcontext():
            if page is not None:
                print(f"sluicegate: the timeline is at {page.address}", file=sys.stderr)  # noqa: T201
            # Made here: the watch puts what is printed above its tree.
            printer = Printer(style, prompts=is_terminal(sys.stdin))
            execution = _Execution(
                workflow, start, printer, watch=watch, recorder=recorder, row=row
            )
            signals.run(execution.main, arguments.backend, {})
            printer.end_line()
    except SystemExit:
        if signals.received is not None and signals.received != signal.SIGINT:
            with suppress(OSError):  # the terminal may be gone
                print(f"sluicegate: ended by {Signal(signals.received).name}", file=sys.stderr)  # noqa: T201
        raise
    return execution.conclude(Printer(style, prompts=False))


def _default_style(*, watched: bool) -> str:
    """Return how events are printed: on a terminal with a tree, that shows what happens."""
    if not is_terminal(sys.stdout):
        return "jsonl"
    return "none" if watched and is_terminal(sys.stderr) else "pretty"


def _live() -> tuple[Recorder, LivePage]:
    from sluicegate.recording import Recorder  # noqa: PLC0415 - few runs are shown on a page
    from sluicegate.timeline.live import LivePage  # noqa: PLC0415

    recorder = Recorder()
    return recorder, LivePage(recorder)


class _Execution:
    """One run of the command line, and its outcome."""

    def __init__(
        self,
        workflow: AnyWorkflow,
        start: StartRun,
        printer: Printer,
        *,
        watch: Watch | None,
        recorder: Recorder | None,
        row: Callable[[], Awaitable[RunSummary | None]] | None,
    ) -> None:
        self._row = row
        self._recorder = recorder
        self._workflow = workflow
        self._start = start
        self._printer = printer
        self._watch = watch
        self._questions: Questions | None = None
        self._failed_in: str | None = None
        self._status = ""
        self._error: BaseException | None = None
        self._result: Any = None

    async def main(self) -> None:
        """Run to the end and keep the outcome. Ctrl-C and a closed output are raised."""
        watcher = None if self._watch is None else self._watch.observer
        with observe(*(one for one in (watcher, self._recorder) if one is not None)):
            await self._run()

    async def _run(self) -> None:
        async with self._workflow, self._start() as handler:
            self._questions = Questions(self._workflow, handler, self._watch)
            await self._read(handler, self._questions)
            self._status = handler.status
            try:
                self._result = handler.result()
            except Exception as error:  # noqa: BLE001 - reported by conclude()
                self._error = error

    async def _read(self, handler: WorkflowHandler[Any], questions: Questions) -> None:
        """Print the stream to its end, while another task answers its questions."""
        backend = current_backend()
        try:
            async with backend.open_nursery() as nursery:
                nursery.start_soon(questions.serve, name="answers")
                if self._row is not None:
                    nursery.start_soon(questions.ask_stored, self._row, name="questions")
                async for event in handler.stream_events():
                    if isinstance(event, WorkflowFailedEvent):
                        self._failed_in = event.step_name
                    self._printer.event(event)
                    asked = untagged(event)
                    if self._row is None and isinstance(asked, InputRequiredEvent):
                        questions.ask(asked)
                backend.cancel(nursery.cancel_scope, "the run is over")
        except BaseExceptionGroup as group:
            # Only one of the tasks raises: Ctrl-C, or a closed output.
            raise single(group, backend.Cancelled) from None

    def conclude(self, printer: Printer) -> int:
        """Print the result or the failure, and return the exit code.

        Args:
            printer: Prints it; not the one of the run, whose output the watch has taken.

        Raises:
            UsageError: A question could not be answered, or the store has refused the run.
        """
        if self._questions is not None and self._questions.failure is not None:
            raise self._questions.failure
        if self._error is None:
            printer.result(self._result)
            return COMPLETED
        if self._status == "detached":
            if not isinstance(self._error, WorkflowDetachedError):  # its store has refused it
                raise UsageError(str(self._error)) from self._error
            why = f": {self._error.__cause__}" if self._error.__cause__ is not None else ""
            print(f"sluicegate: {self._error}{why}", file=sys.stderr)  # noqa: T201
            return FAILED
        if self._status == "timed_out" and isinstance(self._error, WorkflowTimeoutError):
            print(f"sluicegate: {self._error}", file=sys.stderr)  # noqa: T201
            return TIMED_OUT
        name = type(self._workflow).__name__
        sys.stderr.write(report(name, self._failed_in, self._error))
        return FAILED
