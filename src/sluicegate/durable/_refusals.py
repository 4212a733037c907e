"""The refusals that all stores have in common, with their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate._errors import EventConflictError
from sluicegate.durable._errors import (
    JournalConflictError,
    RunEndedError,
    RunOwnedError,
    StaleLeaseError,
    UnknownRunError,
)
from sluicegate.durable._port import BASE


if TYPE_CHECKING:
    from collections.abc import Sequence

    from sluicegate.durable._port import Batch


def describe(batch: Batch) -> str:
    """Return a short text about a batch."""
    records = batch.records
    if not records:
        return f"a batch without records of the run {batch.run_id!r}"
    return f"the records {records[0].sequence}-{records[-1].sequence} of the run {batch.run_id!r}"


def continued(batch: Batch, sequence: int, base: int, shown: int) -> tuple[int, int, int]:
    """Check that a batch continues the journal; return the three numbers as they are after it.

    Args:
        batch: The batch.
        sequence: The last record in the journal.
        base: The newest base.
        shown: The last number in the durable stream.

    Raises:
        JournalConflictError: It does not.
    """
    for record in batch.records:
        sequence += 1
        shown += record.shown > 0
        if record.sequence != sequence or record.shown not in (0, shown):
            msg = (
                f"{describe(batch)} do not continue its journal: record {record.sequence} with "
                f"shown={record.shown}; expected record {sequence} with shown=0 or "
                f"shown={shown + (not record.shown)}"
            )
            raise JournalConflictError(msg)
        if record.kind == BASE:
            base = sequence
    return sequence, base, shown


def check_consumed(batch: Batch, missing: Sequence[int]) -> None:
    """Check the messages that a batch consumes.

    Args:
        batch: The batch.
        missing: Those of them that are not in the inbox of the run.

    Raises:
        JournalConflictError: Some are not there, or one is consumed twice.
    """
    if missing or len({*batch.consumes}) != len(batch.consumes):
        msg = (
            f"{describe(batch)} would consume the messages {[*batch.consumes]}; expected messages in the "
            f"inbox of the run, each once, and these are not: {[*missing]}"
        )
        raise JournalConflictError(msg)


def stale(run_id: str, fence: int, newest: int | None) -> StaleLeaseError:
    """Return the refusal of a lost lease.

    Args:
        run_id: The run.
        fence: The fence of the lease.
        newest: The fence of the newest lease; None if the run does not exist.
    """
    if newest is None:
        why = "another process has taken it over, or it was deleted"
    elif newest == fence:
        why = "it was released, or the run was deleted and created again"
    else:
        why = f"another process has claimed it with the fence {newest}"
    msg = f"the lease of the run {run_id!r} with the fence {fence} is lost: {why}"
    return StaleLeaseError(msg, run_id, fence)


def unknown(run_id: str) -> UnknownRunError:
    """Return the refusal to use a run that is not there."""
    return UnknownRunError(f"there is no run {run_id!r} in the store")


def ended(run_id: str, status: str) -> RunEndedError:
    """Return the refusal to send to a run that has ended."""
    return RunEndedError(f"the run {run_id!r} has ended: {status}")


def owned(run_id: str, owner: str | None) -> RunOwnedError:
    """Return the refusal to delete a run that is owned."""
    msg = (
        f"the run {run_id!r} is owned by {owner!r}, and not deleted; expected a run that has ended, or "
        "one without an owner"
    )
    return RunOwnedError(msg)


def conflict(run_id: str, key: str) -> EventConflictError:
    """Return the refusal of a message whose key belongs to another one."""
    msg = (
        f"the run {run_id!r} has already received a message with the id {key!r} and different "
        "content; expected the same content, or another id"
    )
    return EventConflictError(msg, key)
