"""The store of a command: opened by its address, with errors printed in one line."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from sluicegate._engine.dump import text_of_runs
from sluicegate._errors import WorkflowError, WorkflowValidationError
from sluicegate._loop.signals import Signals
from sluicegate.cli._targets import UsageError
from sluicegate.durable import RunStore, open_journal, open_run_store


if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable

    from sluicegate.cli._targets import AnyWorkflow
    from sluicegate.durable import Journal


T = TypeVar("T")

_SQLITE = "sqlite:///"


@attrs.frozen
class OpenStore:
    """An open store: its runs, and their journal for commands that need no workflow."""

    runs: RunStore
    journal: Journal


@asynccontextmanager
async def open_store(
    arguments: argparse.Namespace,
    workflows: Iterable[AnyWorkflow] = (),
    *,
    creates: bool = False,
    **options: Any,
) -> AsyncGenerator[OpenStore]:
    """Open the store that ``--store`` names.

    Args:
        arguments: The arguments of the command.
        workflows: The workflows whose runs are read.
        creates: Whether a file that does not exist is made.
        **options: Those of ``open_run_store``.

    Raises:
        UsageError: ``--store`` names no store.
        StoreError: The store cannot be opened.
    """
    url: str = arguments.store
    durability: Literal["fsync", "process"] = getattr(arguments, "durability", "fsync")
    try:
        opening = open_journal(url, durability=durability)
    except ValueError as error:
        shown = url.rpartition(":")[2].lstrip("/") or "runs.db"
        msg = (
            f"--store {url!r} names no store; expected --store {_SQLITE}{shown}, with a fourth slash before "
            "an absolute path"
        )
        raise UsageError(msg) from error
    if not creates:
        _check_exists(url)
    async with (
        opening as journal,
        open_run_store(nullcontext(journal), workflows=workflows, **options) as runs,
    ):
        yield OpenStore(runs, journal)


def _check_exists(url: str) -> None:
    path = Path(url.removeprefix(_SQLITE))
    if url.startswith(_SQLITE) and not path.is_file():
        msg = f"there is no file {str(path)!r} for --store {url!r}; expected the address of a store"
        raise UsageError(msg)


def store_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of ``open_run_store`` that the command was given, without the durability."""
    names = ("timeouts", "max_crashes", "keep_history", "release_idle")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def in_store(
    arguments: argparse.Namespace,
    function: Callable[[OpenStore], Awaitable[T]],
    workflows: Iterable[AnyWorkflow] = (),
) -> T:
    """Open the store in a new event loop, and call an async function with it.

    Raises:
        UsageError: The store, or the run, cannot be used as asked.
    """

    async def main() -> T:
        async with open_store(arguments, workflows) as opened:
            return await function(opened)

    with refusals_in_a_line():
        return Signals(text_of_runs).run(main, "trio", {})


@contextmanager
def refusals_in_a_line() -> Generator[None]:
    """Raise the errors of a store, a run or a journal as :class:`UsageError`.

    Raises:
        UsageError: A :class:`WorkflowError` came out of the block.
    """
    try:
        yield
    except WorkflowValidationError:
        raise
    except WorkflowError as error:
        raise UsageError(str(error)) from error
