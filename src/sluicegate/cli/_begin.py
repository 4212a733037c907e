"""The command that begins a run: with or without a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.cli import _run
from sluicegate.cli._targets import UsageError


if TYPE_CHECKING:
    import argparse


def begin(arguments: argparse.Namespace) -> int:
    """Run a workflow, in the store that the arguments may name, and return the exit code.

    Raises:
        UsageError: As for :func:`sluicegate.cli._run.run`; or ``--id`` is given without a store.
    """
    if arguments.store is not None:
        from sluicegate.cli._resume import run_stored  # noqa: PLC0415 - few runs need a store

        return run_stored(arguments)
    if arguments.run_id is not None:
        msg = f"--id {arguments.run_id} names a stored run; expected --store sqlite:///runs.db, too"
        raise UsageError(msg)
    return _run.run(arguments)
