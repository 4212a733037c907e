"""The grammar of the commands for stored runs: ``sluicegate runs ...`` and ``sluicegate worker``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.cli._options import (
    TARGET,
    add_backend,
    add_command,
    add_drawing,
    add_running,
    add_target,
    count,
    duration,
    seconds,
)


if TYPE_CHECKING:
    import argparse

    from sluicegate.cli._options import Commands


#: The statuses of runs; `sluicegate.durable` is not imported to read a command line.
ENDED = ("completed", "failed", "timed_out", "cancelled")
STATUSES = ("running", "idle", "parked", *ENDED)

STORE = """\
--store is the address of the store: sqlite:///runs.db is a file in the current directory,
sqlite:////var/lib/runs.db one with its whole path."""

_RUNS = f"""\
Inspect and control the runs of a store, whether or not a process runs them.

{STORE}

example:
  sluicegate runs list --store sqlite:///runs.db --status failed
"""

_LIST = """\
List the runs of a store, the newest first, and count them by status. Reads no journal.

A run with the status "running" and no owner was interrupted: a worker continues it.

example:
  sluicegate runs list --store sqlite:///runs.db --status failed --newer-than 1d
  sluicegate runs list --store sqlite:///runs.db --asking --json
"""

_SHOW = f"""\
Show a run: its status, its open questions, its next timer, its owner and its last error.

Events and snapshots have values of your classes, so --events and --snapshot need the workflow.
{TARGET}

example:
  sluicegate runs show order-17 --store sqlite:///runs.db
  sluicegate runs show order-17 flows.py:Order --events --store sqlite:///runs.db
"""

_TIMELINE = f"""\
Draw the timeline of a run, running or ended, from its journal: when each invocation was queued, ran and waited, and what
caused it. The time between two processes, or at rest, is a gap. Without --keep-history where the run was run, the
timeline begins with the last process that had it.

{TARGET}

example:
  sluicegate runs timeline order-17 flows.py:Order --store sqlite:///runs.db -o order-17.html
  sluicegate runs timeline order-17 flows.py:Order --store sqlite:///runs.db --text
"""

_RESUME = f"""\
Run a stored run here until it ends: print its events, ask its questions, print its result, as
`sluicegate run` does. If another process runs it, follow it. Ctrl-C does not cancel the run: it stays
in the store.

{TARGET}

example:
  sluicegate runs resume order-17 flows.py:Order --store sqlite:///runs.db

exit codes: those of `sluicegate run`
"""

_CANCEL = """\
Cancel a run. Once the command has ended, the cancellation is stored, and the process that runs it ends it. A run
without an owner ends when the next owner claims it.

example:
  sluicegate runs cancel order-17 --reason "customer has called" --store sqlite:///runs.db
"""

_ANSWER = f"""\
Answer a question of a run. Once the command has ended, the answer is stored, and is applied once.

QUESTION is the id of the question, such as q1; needed if several are open. The answer is --event, or a line of standard
input: a text fills the field "response", or the only field, of the class that answers; fields are a JSON
object. If several classes answer, {{"event": "ClassName", "field": ...}} names one.

{TARGET}

example:
  sluicegate runs answer order-17 flows.py:Order --event yes --store sqlite:///runs.db
  sluicegate runs answer order-17 flows.py:Order q2 --event '{{"approved": true}}' --store sqlite:///runs.db
"""

_FORK = f"""\
Store a copy of a run, as it was after one of its records, and print its id. The run does not change.

{TARGET}

example:
  sluicegate runs fork order-17 flows.py:Order --as order-17-again --store sqlite:///runs.db
"""

_PRUNE = """\
Delete runs whose status has not changed for a time. Runs that a process owns are kept.

example:
  sluicegate runs prune --older-than 30d --store sqlite:///runs.db
  sluicegate runs prune --older-than 90d --status failed --dry-run --store sqlite:///runs.db
"""

_WORKER = f"""\
Run the runs of a store: new ones, those left by a dead process, and those whose answer or timer is due.
Several workers on one machine may share a store. Runs of other workflows are not touched.

SIGTERM, SIGINT or SIGHUP drains: the worker takes no further runs and gives its current runs --grace seconds to end or
to reach a wait. A second signal ends the drain. Another worker continues the runs that are left.

{TARGET}
{STORE}

example:
  sluicegate worker flows.py:Order flows.py:Refund --store sqlite:///runs.db

exit codes:
  0 drained   2 wrong usage, or the store cannot be used
  130, 143 or 129: ended by the signal before all runs had ended or waited
"""


def add_runs(commands: Commands) -> None:
    """Add ``sluicegate runs`` and its commands."""
    runs = add_command(commands, "runs", "inspect and control stored runs", _RUNS)
    inner = runs.add_subparsers(dest="runs_command", metavar="COMMAND", required=True)
    _add_list(inner)
    _add_show(inner)
    _add_timeline(inner)
    resume = _add(inner, "resume", "run a stored run here until it ends", _RESUME)
    add_target(resume)
    add_running(resume)
    add_store_options(resume)
    _add_cancel(inner)
    _add_answer(inner)
    _add_fork(inner)
    _add_prune(inner)


def _add(
    commands: Commands, name: str, summary: str, description: str, *, takes_id: bool = True
) -> argparse.ArgumentParser:
    command = add_command(commands, name, summary, description)
    if takes_id:
        command.add_argument("run_id", metavar="ID", help="the id of the run")
    _add_store(command)
    return command


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument("--store", metavar="URL", required=True, help="such as sqlite:///runs.db")


def _add_list(commands: Commands) -> None:
    command = _add(commands, "list", "list and count runs", _LIST, takes_id=False)
    command.add_argument(
        "--status",
        choices=STATUSES,
        action="append",
        help="only runs with this status; can be repeated",
    )
    command.add_argument(
        "--workflow",
        metavar="NAME",
        action="append",
        help="only runs of this workflow; can be repeated",
    )
    command.add_argument("--asking", action="store_true", help="only runs that ask something")
    command.add_argument(
        "--older-than", metavar="AGE", type=duration, help="begun before that: 12h, 30d"
    )
    command.add_argument(
        "--newer-than", metavar="AGE", type=duration, help="begun since then: 15m, 1d"
    )
    command.add_argument(
        "--limit", metavar="N", type=count, default=50, help="the most runs shown; default: 50"
    )
    command.add_argument(
        "--json", action="store_true", help="a line of JSON for each run, without the counts"
    )


def _add_show(commands: Commands) -> None:
    command = _add(commands, "show", "show a run", _SHOW)
    add_target(command, nargs="?", help="its workflow, for --events and --snapshot")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="the same as JSON")
    what.add_argument(
        "--events", action="store_true", help="its durable stream, a line of JSON for each event"
    )
    what.add_argument("--snapshot", action="store_true", help="its snapshot, as JSON")


def _add_timeline(commands: Commands) -> None:
    command = _add(commands, "timeline", "draw the timeline of a run", _TIMELINE)
    add_target(command)
    add_drawing(command, "ID.html")


def _add_cancel(commands: Commands) -> None:
    command = _add(commands, "cancel", "cancel a run", _CANCEL)
    command.add_argument(
        "--reason",
        metavar="TEXT",
        default="sluicegate runs cancel",
        help="the reason in the terminal event",
    )
    command.add_argument(
        "--after-steps",
        action="store_true",
        help="let the running steps finish, and start no others",
    )


def _add_answer(commands: Commands) -> None:
    command = _add(commands, "answer", "answer a question of a run", _ANSWER)
    add_target(command)
    command.add_argument(
        "question", metavar="QUESTION", nargs="?", help="the id of the question, such as q1"
    )
    command.add_argument("--event", metavar="ANSWER", help="default: a line of standard input")
    command.add_argument(
        "--id", metavar="KEY", dest="key", help="a repeated answer with this key is applied once"
    )


def _add_fork(commands: Commands) -> None:
    command = _add(commands, "fork", "store a copy of a run", _FORK)
    add_target(command)
    command.add_argument(
        "--at", metavar="N", type=count, help="as it was after record N; default: the last one"
    )
    command.add_argument("--as", metavar="NEW", dest="new_id", help="the id of the copy")


def _add_prune(commands: Commands) -> None:
    command = _add(commands, "prune", "delete old runs", _PRUNE, takes_id=False)
    command.add_argument(
        "--older-than",
        metavar="AGE",
        type=duration,
        required=True,
        help="age of the last change: 12h, 30d, 8w",
    )
    command.add_argument(
        "--status",
        choices=STATUSES,
        action="append",
        help=f"can be repeated; default: {', '.join(ENDED)}",
    )
    command.add_argument("--dry-run", action="store_true", help="count them only")


def add_worker(commands: Commands) -> None:
    """Add ``sluicegate worker``."""
    worker = add_command(commands, "worker", "run the runs of a store", _WORKER)
    worker.add_argument(
        "targets",
        metavar="TARGET",
        nargs="+",
        help="module:name or path/to/file.py:name; several can be given",
    )
    _add_store(worker)
    worker.add_argument(
        "--max-runs", metavar="N", type=count, help="the most runs at a time; default: any number"
    )
    add_grace(worker)
    add_release_idle(worker)
    add_backend(worker)
    add_store_options(worker)


def add_grace(command: argparse._ActionsContainer) -> None:
    """Add the option of a program that drains."""
    command.add_argument(
        "--grace",
        metavar="SECONDS",
        type=seconds,
        default=30.0,
        help="how long a drain may take; default: 30",
    )


def add_release_idle(command: argparse._ActionsContainer) -> None:
    """Add the option of a program that runs many runs of a store."""
    command.add_argument(
        "--release-idle",
        metavar="AGE",
        type=duration,
        default=60.0,
        help="time until a waiting run is released from memory; default: 60s",
    )


def add_store_options(command: argparse._ActionsContainer) -> None:
    """Add the options of ``open_run_store``."""
    command.add_argument(
        "--durability",
        choices=("fsync", "process"),
        default="fsync",
        help="whether commits survive a power loss (fsync, default) or only the end of the process",
    )
    command.add_argument(
        "--timeouts",
        choices=("alive", "wall"),
        default="alive",
        help="whether timeouts of runs count the time in memory (default) or all time",
    )
    command.add_argument(
        "--max-crashes",
        metavar="N",
        type=count,
        default=3,
        help="crashes during a step until it fails; default: 3",
    )
    command.add_argument(
        "--keep-history",
        action="store_true",
        help="keep all records, so that runs can be forked at any of them",
    )
