"""The commands for stored runs: list, show, timeline, cancel, answer, fork and prune."""

from __future__ import annotations

import re
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate._data.json import encode, json_of
from sluicegate._events import HumanResponseEvent, InputRequiredEvent
from sluicegate._workflow import graph_in, run_without_owner
from sluicegate.cli._output import emit, note, one_line, wants_colour
from sluicegate.cli._questions import (
    Lines,
    answer_classes,
    answers_among,
    is_terminal,
    prompt_of,
    read_answer,
)
from sluicegate.cli._resume import check_workflow, resume
from sluicegate.cli._runs_parser import ENDED
from sluicegate.cli._runs_text import details, look_at, table
from sluicegate.cli._store import in_store
from sluicegate.cli._targets import UsageError, workflow_at
from sluicegate.durable import RunFilter
from sluicegate.durable._runs import events_in, open_questions_of


if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from sluicegate._questions import OpenQuestion
    from sluicegate.cli._store import OpenStore
    from sluicegate.cli._targets import AnyWorkflow
    from sluicegate.records import Record


def runs(arguments: argparse.Namespace) -> int:
    """Run one of the commands for stored runs, and return its exit code.

    Raises:
        UsageError: The store, the run or the input cannot be used as asked.
    """
    if arguments.runs_command == "resume":
        return resume(arguments)
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "list": _list,
        "show": _show,
        "timeline": _timeline,
        "cancel": _cancel,
        "answer": _answer,
        "fork": _fork,
        "prune": _prune,
    }
    commands[arguments.runs_command](arguments)
    return 0


def json_line(value: Any) -> str:
    """Return plain data as one line of JSON."""
    return f"{json_of(value)}\n"


# -- looking --------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> None:
    now = time.time()
    which: dict[str, Any] = {
        "asking": arguments.asking or None,
        "created_after": None if arguments.newer_than is None else now - arguments.newer_than,
        "created_before": None if arguments.older_than is None else now - arguments.older_than,
    }

    async def look(store: OpenStore) -> str:
        statuses, names = arguments.status, arguments.workflow
        found = await store.runs.list(
            status=statuses, workflow=names, newest_first=True, limit=arguments.limit, **which
        )
        if arguments.json:
            return "".join(json_line(attrs.asdict(each)) for each in found)
        counts = await store.journal.count(RunFilter(statuses=statuses, workflows=names, **which))
        return table(found, counts, now, is_coloured=wants_colour(sys.stdout))

    emit(in_store(arguments, look))


def _show(arguments: argparse.Namespace) -> None:
    run_id, wants = arguments.run_id, _detail_of(arguments)
    if wants is None:
        found = in_store(arguments, partial(look_at, run_id=run_id))
        if arguments.json:
            emit(json_line(attrs.asdict(found)))
        else:
            emit(details(found, time.time(), is_coloured=wants_colour(sys.stdout)))
        return
    if arguments.target is None:
        msg = (
            f"{wants} shows values of your classes, so it needs the workflow; expected `sluicegate runs "
            f"show {run_id} module:Name {wants} --store {arguments.store}`"
        )
        raise UsageError(msg)
    workflow = workflow_at(arguments.target)
    read = _stream_of if arguments.events else _snapshot_of
    emit(in_store(arguments, partial(read, run_id=run_id, workflow=workflow), [workflow]))


def _detail_of(arguments: argparse.Namespace) -> str | None:
    return "--events" if arguments.events else "--snapshot" if arguments.snapshot else None


async def _stream_of(store: OpenStore, run_id: str, workflow: AnyWorkflow) -> str:
    """Return the durable stream of a run, a line of JSON for each event."""
    await check_workflow(store, run_id, workflow)
    classes = run_without_owner(workflow, run_id).options.classes
    records = await store.journal.read_shown(run_id)
    events = (event for _, event, _ in events_in(graph_in(workflow), classes, records))
    return "".join(f"{encode(event)}\n" for event in events)


async def _snapshot_of(store: OpenStore, run_id: str, workflow: AnyWorkflow) -> str:
    await check_workflow(store, run_id, workflow)
    return json_line(await store.runs.snapshot(run_id))


def _timeline(arguments: argparse.Namespace) -> None:
    from sluicegate.cli._timeline import draw, output_of  # noqa: PLC0415 - it imports the drawing
    from sluicegate.recording import Recording  # noqa: PLC0415

    run_id = arguments.run_id
    output = output_of(arguments, re.sub(r"[^\w.-]", "_", run_id))
    workflow = workflow_at(arguments.target)

    async def look(store: OpenStore) -> list[Record]:
        await check_workflow(store, run_id, workflow)
        return await store.runs.records(run_id)

    records = in_store(arguments, look, [workflow])
    draw(arguments, Recording.from_records([records]), None, output)


# -- acting ---------------------------------------------------------------------------------------


def _cancel(arguments: argparse.Namespace) -> None:
    run_id = arguments.run_id

    async def cancel(store: OpenStore) -> bool:
        await store.runs.cancel(
            run_id, arguments.reason, after="steps" if arguments.after_steps else "now"
        )
        return (await store.runs.get(run_id)).owner is not None

    is_owned = in_store(arguments, cancel)
    note(f"the cancellation of {run_id!r} is stored{_next_owner(is_owned=is_owned)}")


def _next_owner(*, is_owned: bool) -> str:
    if is_owned:
        return ""
    return "; no process has the run: a worker, or `sluicegate runs resume`, applies it"


def _answer(arguments: argparse.Namespace) -> None:
    run_id = arguments.run_id
    workflow = workflow_at(arguments.target)
    asked, is_owned = in_store(arguments, partial(_question_for, arguments, workflow), [workflow])
    kinds = answers_among(asked.answers) or answer_classes(workflow) or (HumanResponseEvent,)
    answer = read_answer(kinds, _text_of_answer(arguments, asked))

    async def send(store: OpenStore) -> bool:
        told = await store.runs.send_event(run_id, answer, question=asked.id, id=arguments.key)
        return told.is_repeated

    is_repeated = in_store(arguments, send, [workflow])
    done = "had been answered before with this --id" if is_repeated else "is answered"
    note(f"{asked.id} of {run_id!r} {done}{_next_owner(is_owned=is_owned or is_repeated)}")


async def _question_for(
    arguments: argparse.Namespace, workflow: AnyWorkflow, store: OpenStore
) -> tuple[OpenQuestion, bool]:
    """Return the question that is meant, and whether a process has the run.

    Raises:
        UsageError: There is none, or there are several.
    """
    run_id, question = arguments.run_id, arguments.question
    summary = await check_workflow(store, run_id, workflow)
    row = await store.journal.get(run_id)
    saved = b"[]" if row is None else row.summary.questions
    run = run_without_owner(workflow, run_id)
    asked = {each.id: each for each in open_questions_of(run, saved, time.time())}
    if question is None and len(asked) == 1:
        return next(iter(asked.values())), summary.owner is not None
    if question in asked:
        return asked[question], summary.owner is not None
    named = "has no open question" if question is None else f"has no open question {question!r}"
    if summary.is_over:
        msg = f"the run {run_id!r} has ended: {summary.status}"
    elif not asked:
        msg = f"the run {run_id!r} ({summary.status}) {named}"
    else:
        if question is None:
            named = f"has {len(asked)} open questions"
        command = f"sluicegate runs answer {run_id} {arguments.target} {next(iter(asked))}"
        msg = f"the run {run_id!r} {named}; expected one of {', '.join(asked)}: `{command} ...`"
    raise UsageError(msg)


def _text_of_answer(arguments: argparse.Namespace, asked: OpenQuestion) -> str:
    """Return the answer as it was given, or as it is typed."""
    if arguments.event is not None:
        given: str = arguments.event
        return given
    if is_terminal(sys.stdin) and isinstance(asked.event, InputRequiredEvent):
        emit(prompt_of(asked.event), sys.stderr)
    line = Lines(sys.stdin).next()
    if line is None:
        msg = "standard input has ended without an answer; expected a line, or --event ANSWER"
        raise UsageError(msg)
    return line


def _fork(arguments: argparse.Namespace) -> None:
    workflow = workflow_at(arguments.target)

    async def fork(store: OpenStore) -> str:
        await check_workflow(store, arguments.run_id, workflow)
        try:
            return await store.runs.fork(arguments.run_id, at=arguments.at, new_id=arguments.new_id)
        except ValueError as error:  # the record is not kept, or the id is empty
            raise UsageError(str(error)) from error

    emit(f"{one_line(in_store(arguments, fork, [workflow]))}\n")


def _prune(arguments: argparse.Namespace) -> None:
    statuses = tuple(arguments.status or ENDED)

    async def prune(store: OpenStore) -> int:
        if not arguments.dry_run:
            return await store.runs.prune(older_than=arguments.older_than, statuses=statuses)
        before = time.time() - arguments.older_than
        which = RunFilter(statuses=statuses, updated_before=before)
        return sum((await store.journal.count(which)).values())

    found = in_store(arguments, prune)
    told = "1 run" if found == 1 else f"{found} runs"
    emit(f"{told} would be deleted\n" if arguments.dry_run else f"{told} deleted\n")
