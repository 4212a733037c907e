"""The tables of an SQLite store: the statements behind :class:`sluicegate.durable._client.Tables`."""

from __future__ import annotations

from hashlib import blake2b
from math import inf
from typing import TYPE_CHECKING, Any, cast, final

from sluicegate._errors import WorkflowError
from sluicegate.durable import _owner_lock
from sluicegate.durable._port import (
    BASE,
    ENDED,
    WAITING,
    Batch,
    Due,
    Lease,
    Message,
    RunFilter,
    RunRow,
    StoredRecord,
    Summary,
)
from sluicegate.durable._refusals import (
    check_consumed,
    conflict,
    continued,
    ended,
    owned,
    stale,
    unknown,
)


if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sluicegate.durable._client import Outcome, Task
    from sluicegate.durable._port import NewRun, Status


#: Seconds after which it is worth while to ask again whether a process of this machine has ended.
ASK_AGAIN = 1.0

#: The most values in a statement; older SQLites take no more than 999.
_AT_ONCE = 500

_ROW = (
    "number, run_id, workflow, start_key, created_at, status, updated_at, wake_at, "
    "CAST(questions AS BLOB), sequence, base, shown, fence, owner, unread"
)
_OF_OWNER = "FROM runs WHERE owner IS ? AND due_at IS NOT NULL AND workflow"
_DUE = f"SELECT due_at, {_ROW} {_OF_OWNER} = ? AND due_at <= ? ORDER BY due_at, number LIMIT ?"
_NEXT = f"SELECT min(due_at) {_OF_OWNER} = ? AND due_at > ?"
_NEXT_WORKFLOW = f"SELECT min(workflow) {_OF_OWNER} > ?"
_RECORD = "sequence, at, kind, CAST(data AS BLOB), coalesce(shown, 0)"
_UNREAD = (
    "SELECT id, run_id, kind, key, CAST(data AS BLOB), sent_at "
    "FROM runs JOIN messages ON run = number WHERE unread > 0 AND consumed_by IS NULL"
)
# SQLite takes the bytes as text as they are: JSON, which its own tools show.
_INSERT = (
    "INSERT INTO records (run, sequence, at, kind, data, shown) "
    "VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?)"
)
_LEASED = "WHERE number = ? AND fence = ? AND sequence = ? - 1 AND owner = ?"
_ADVANCE = f"UPDATE runs SET sequence = ? {_LEASED}"  # noqa: S608
_ADVANCE_SHOWN = f"UPDATE runs SET sequence = ?, shown = ? {_LEASED} AND shown = ?"  # noqa: S608
#: From when on a run needs an owner, as the column `due_at` has it: 0 is at once.
_DUE_AT = f"""
    CASE
        WHEN status IN {ENDED} THEN NULL
        WHEN status NOT IN {WAITING} OR unread > 0 THEN 0
        ELSE wake_at
    END
"""


def _rows(number: int, records: Iterable[StoredRecord]) -> list[tuple[object, ...]]:
    """Return records of a run as the values of `_INSERT`."""
    return [(number, r.sequence, r.at, r.kind, r.data, r.shown or None) for r in records]


def _row(columns: Sequence[Any]) -> RunRow:
    (number, run_id, workflow, start_key, created_at, status, updated_at, wake_at, questions) = (
        columns[:9]
    )
    summary = Summary(cast("Status", status), updated_at, wake_at, questions)
    return RunRow(number, run_id, workflow, start_key, created_at, summary, *columns[9:])


@final
class SqliteTables:
    """The contents of the file, over one connection. The caller opens the transactions.

    Args:
        connection: The connection.
        locks: The directory of the owners' locks.
        clock: Returns the wall time, by which leases expire.
    """

    def __init__(
        self, connection: sqlite3.Connection, locks: Path, clock: Callable[[], float]
    ) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._locks = locks
        self._clock = clock
        #: The numbers of runs that were written before, so that they need not be looked up. A number
        #: is never used again, so an old one finds no run.
        self._numbers: dict[str, int] = {}

    def forget(self) -> None:
        """Forget what may have been rolled back."""
        self._numbers.clear()

    def _one(self, statement: str, *values: object) -> Any:
        return self._execute(statement, values).fetchone()

    def _find(self, run_id: str, columns: str) -> Any:
        found = self._one(f"SELECT {columns} FROM runs WHERE run_id = ?", run_id)  # noqa: S608
        if found is None:
            raise unknown(run_id)
        return found

    # -- owners

    def begin_owner(self, owner: str, pid: int, lease: float) -> None:
        """Enter an owner, or enter it again, and renew its leases."""
        now = self._clock()
        self._execute(
            "INSERT OR REPLACE INTO owners (owner, machine, pid, opened_at, expires_at, lease) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (owner, _owner_lock.machine(), pid, now, now + lease, lease),
        )

    def renew(self, owner: str) -> int | None:
        """Renew the leases of an owner; return how many it has lost, None if it was removed."""
        self._execute(
            "UPDATE owners SET expires_at = ? + lease WHERE owner = ?", (self._clock(), owner)
        )
        found = self._one("SELECT lost FROM owners WHERE owner = ?", owner)
        return None if found is None else found[0]

    def fences(self, owner: str) -> dict[str, int]:
        """Return the runs that an owner has, with their fences."""
        return dict(self._execute("SELECT run_id, fence FROM runs WHERE owner = ?", (owner,)))

    def end_owner(self, owner: str) -> None:
        """End all leases of an owner."""
        self._execute("UPDATE runs SET owner = NULL WHERE owner = ?", (owner,))
        self._execute("DELETE FROM owners WHERE owner = ?", (owner,))

    def sweep_owners(self) -> None:
        """Remove the owners that have ended and whose runs have all been taken over or ended."""
        for owner, expires_at in self._owners().items():
            if expires_at == -inf and not self._one("SELECT 1 FROM runs WHERE owner = ?", owner):
                self._execute("DELETE FROM owners WHERE owner = ?", (owner,))
                _owner_lock.sweep(self._locks, owner)

    def _owners(self, only: str | None = None) -> dict[str, float]:
        """Return until when the leases of each owner hold; ``-inf`` for those that have ended."""
        now = self._clock()
        owners: dict[str, float] = {}
        for owner, where, expires_at, lease in self._execute(
            "SELECT owner, machine, expires_at, lease FROM owners WHERE owner = coalesce(?, owner)",
            (only,),
        ).fetchall():
            # A clock that was put back must not keep a lease alive for longer than it lasts.
            is_valid = now < expires_at <= now + lease + 1
            has_ended = where == _owner_lock.machine() and _owner_lock.has_ended(self._locks, owner)
            owners[owner] = expires_at if is_valid and not has_ended else -inf
        return owners

    def _is_alive(self, owner: str | None) -> bool:
        return owner is not None and self._owners(owner).get(owner, -inf) > -inf

    # -- writes

    def create(self, new: NewRun, owner: str) -> Lease | RunRow:
        found = self.get(new.run_id)
        if found is not None:
            return found
        cursor = self._execute(
            "INSERT INTO runs (run_id, workflow, start_key, created_at, status, updated_at, "
            "questions, sequence, base, shown, fence, owner, unread, due_at) "
            "VALUES (?, ?, ?, ?, 'running', ?, '[]', 1, 1, 0, 1, ?, 0, 0)",
            (
                new.run_id,
                new.workflow,
                new.start_key,
                new.created_at,
                new.created_at,
                owner,
            ),
        )
        number = cast("int", cursor.lastrowid)
        self._insert(number, [StoredRecord(1, new.created_at, BASE, new.base)])
        self._numbers[new.run_id] = number
        return Lease(new.run_id, owner, 1, 1, 0)

    def claim(self, run_id: str, owner: str) -> Lease | None:
        number, status, fence, before, sequence, shown = self._find(
            run_id, "number, status, fence, owner, sequence, shown"
        )
        if status in ENDED or self._is_alive(before):
            return None
        if before is not None:
            self._execute("UPDATE owners SET lost = lost + 1 WHERE owner = ?", (before,))
        self._execute(
            "UPDATE runs SET owner = ?, fence = fence + 1 WHERE number = ?", (owner, number)
        )
        self._numbers[run_id] = number
        return Lease(run_id, owner, fence + 1, sequence, shown)

    def release(self, lease: Lease) -> None:
        self._execute(
            "UPDATE runs SET owner = NULL WHERE run_id = ? AND fence = ? AND owner = ?",
            (lease.run_id, lease.fence, lease.owner),
        )
        self._numbers.pop(lease.run_id, None)

    def append_all(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Perform tasks that append records only, those of a run together; return their outcomes."""
        by_run: dict[tuple[str, int, str], list[tuple[Task, Batch]]] = {}
        for task in tasks:
            batch = task.batch
            assert batch is not None
            key = (batch.run_id, batch.fence, task.client.owner)
            by_run.setdefault(key, []).append((task, batch))
        errors: dict[Task, WorkflowError] = {}
        rows: list[tuple[object, ...]] = []
        for (run_id, fence, owner), own in by_run.items():
            records = [record for _, batch in own for record in batch.records]
            number = self._numbers.get(run_id)
            if number is not None and self._advance(number, fence, owner, records):
                rows += _rows(number, records)
                continue
            for task, batch in own:  # one of them is refused, or the run was not written before
                try:
                    self.append(batch, owner)
                except WorkflowError as refusal:
                    errors[task] = refusal
        if rows:
            self._executemany(_INSERT, rows)
        return [(task, None, errors.get(task)) for task in tasks]

    def _advance(self, number: int, fence: int, owner: str, records: list[StoredRecord]) -> bool:
        """Note that records follow the last one of a run; return False if they do not, or are a base."""
        if not records:
            return False
        sequence, last = records[0].sequence, records[-1].sequence
        before = after = None
        for expected, record in enumerate(records, sequence):
            if record.sequence != expected or record.kind == BASE:
                return False
            if record.shown:
                if after is None:
                    before = record.shown - 1
                elif record.shown != after + 1:
                    return False
                after = record.shown
        leased = (number, fence, sequence, owner)
        if after is None:
            return self._execute(_ADVANCE, (last, *leased)).rowcount == 1
        return self._execute(_ADVANCE_SHOWN, (last, after, *leased, before)).rowcount == 1

    def append(self, batch: Batch, owner: str) -> None:
        found = self._one(
            "SELECT number, fence, owner, sequence, base, shown FROM runs WHERE run_id = ?",
            batch.run_id,
        )
        if found is None or found[1] != batch.fence or found[2] != owner:
            raise stale(batch.run_id, batch.fence, None if found is None else found[1])
        number, _, _, *before = found
        sequence, base, shown = continued(batch, *before)
        check_consumed(batch, self._missing(number, batch.consumes))
        self._execute(
            "UPDATE runs SET sequence = ?, base = ?, shown = ? WHERE number = ?",
            (sequence, base, shown, number),
        )
        self._insert(number, batch.records)
        if batch.consumes:
            self._consume(number, batch, sequence)
        if batch.summary is not None:
            self._summarise(number, batch.summary)
        elif batch.consumes:
            self._note_due(number)
        if batch.prune_before is not None:
            self._execute(
                "DELETE FROM records WHERE run = ? AND sequence < ? AND shown IS NULL",
                (number, min(batch.prune_before, base)),
            )
        if batch.release:
            self._execute("UPDATE runs SET owner = NULL WHERE number = ?", (number,))
            self._numbers.pop(batch.run_id, None)

    def _insert(self, number: int, records: Iterable[StoredRecord]) -> None:
        self._executemany(_INSERT, _rows(number, records))

    def _missing(self, number: int, messages: Sequence[int]) -> list[int]:
        """Return the messages that are not in the inbox of a run."""
        statement = "SELECT 1 FROM messages WHERE id = ? AND run = ? AND consumed_by IS NULL"
        return [message for message in messages if not self._one(statement, message, number)]

    def _consume(self, number: int, batch: Batch, sequence: int) -> None:
        # The journal has the content now; the digest is kept to recognise the message again.
        self._executemany(
            "UPDATE messages SET consumed_by = ?, data = NULL WHERE id = ?",
            [(sequence, message) for message in batch.consumes],
        )
        self._execute(
            "UPDATE runs SET unread = unread - ? WHERE number = ?", (len(batch.consumes), number)
        )

    def _summarise(self, number: int, summary: Summary) -> None:
        self._execute(
            "UPDATE runs SET status = ?, updated_at = ?, wake_at = ?, questions = CAST(? AS TEXT) "
            "WHERE number = ?",
            (summary.status, summary.updated_at, summary.wake_at, summary.questions, number),
        )
        self._note_due(number)

    def _note_due(self, number: int) -> None:
        self._execute(f"UPDATE runs SET due_at = {_DUE_AT} WHERE number = ?", (number,))  # noqa: S608

    def send(self, run_id: str, kind: str, key: str, data: bytes) -> bool:
        number, status = self._find(run_id, "number, status")
        digest = _digest(kind, data)
        found = self._one("SELECT digest FROM messages WHERE run = ? AND key = ?", number, key)
        if found is not None:
            if found[0] == digest:
                return False
            raise conflict(run_id, key)
        if status in ENDED:
            raise ended(run_id, status)
        self._execute(
            "INSERT INTO messages (run, kind, key, data, digest, sent_at) "
            "VALUES (?, ?, ?, CAST(? AS TEXT), ?, ?)",
            (number, kind, key, data, digest, self._clock()),
        )
        self._execute("UPDATE runs SET unread = unread + 1 WHERE number = ?", (number,))
        self._note_due(number)
        return True

    def delete(self, run_id: str) -> bool:
        found = self._one("SELECT number, owner FROM runs WHERE run_id = ?", run_id)
        if found is None:
            return False
        if self._is_alive(found[1]):
            raise owned(run_id, found[1])
        self._delete([found[0]])
        return True

    def prune(self, updated_before: float, statuses: Sequence[str], limit: int) -> int:
        alive = [owner for owner, until in self._owners().items() if until > -inf]
        found = self._execute(
            f"SELECT number FROM runs WHERE status IN ({_marks(statuses)}) AND updated_at < ? "  # noqa: S608
            f"AND (owner IS NULL OR owner NOT IN ({_marks(alive)})) ORDER BY number LIMIT ?",
            (*statuses, updated_before, *alive, limit),
        ).fetchall()
        self._delete([number for (number,) in found])
        return len(found)

    def _delete(self, numbers: list[int]) -> None:
        for table, column in [("records", "run"), ("messages", "run"), ("runs", "number")]:
            self._executemany(
                f"DELETE FROM {table} WHERE {column} = ?",  # noqa: S608
                [(number,) for number in numbers],
            )

    # -- reads

    def read(self, run_id: str, after: int | None, limit: int | None) -> list[StoredRecord]:
        number, base = self._find(run_id, "number, base")
        found = self._execute(
            f"SELECT {_RECORD} FROM records WHERE run = ? AND sequence > ? "  # noqa: S608
            "ORDER BY sequence LIMIT ?",
            (number, base - 1 if after is None else after, -1 if limit is None else limit),
        )
        return [StoredRecord(*columns) for columns in found]

    def read_shown(self, run_id: str, after: int, limit: int | None) -> list[StoredRecord]:
        (number,) = self._find(run_id, "number")
        found = self._execute(
            f"SELECT {_RECORD} FROM records WHERE run = ? AND shown > ? ORDER BY shown LIMIT ?",  # noqa: S608
            (number, after, -1 if limit is None else limit),
        )
        return [StoredRecord(*columns) for columns in found]

    def inbox(self, run_ids: Sequence[str]) -> list[Message]:
        messages: list[Message] = []
        for first in range(0, len(run_ids), _AT_ONCE):
            chosen = run_ids[first : first + _AT_ONCE]
            found = self._execute(f"{_UNREAD} AND run_id IN ({_marks(chosen)})", (*chosen,))
            messages += [Message(*columns) for columns in found]
        return sorted({message.id: message for message in messages}.values(), key=_id)

    def due(self, now: float, limit: int, workflows: Sequence[str] | None, own: str) -> Due:
        found: list[Any] = []
        later: list[float] = []
        for owner, until in [(None, -inf), *self._owners().items()]:
            if owner == own:
                continue
            is_free = until == -inf
            ask_at = min(until, self._clock() + ASK_AGAIN)
            for workflow in self._due_workflows(owner) if workflows is None else {*workflows}:
                if is_free:
                    found += self._execute(_DUE, (owner, workflow, now, limit))
                (at,) = self._one(_NEXT, owner, workflow, now if is_free else -1)
                if at is not None:
                    later.append(max(at, ask_at))
        found.sort(key=lambda columns: columns[:2])
        return Due([_row(columns[1:]) for columns in found[:limit]], min(later, default=None))

    def _due_workflows(self, owner: str | None) -> list[str]:
        """Return the workflows that have runs which need this owner: one index lookup for each."""
        workflows: list[str] = []
        workflow: str | None = ""
        while workflow is not None:
            (workflow,) = self._one(_NEXT_WORKFLOW, owner, workflow)
            if workflow is not None:
                workflows.append(workflow)
        return workflows

    def get(self, run_id: str) -> RunRow | None:
        found = self._one(f"SELECT {_ROW} FROM runs WHERE run_id = ?", run_id)  # noqa: S608
        return None if found is None else _row(found)

    def find(
        self, which: RunFilter, after: int | None, limit: int, *, newest_first: bool
    ) -> list[RunRow]:
        condition, values = _condition(which)
        order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        if after is not None:
            condition, values = f"{condition} AND number {beyond} ?", [*values, after]
        found = self._execute(
            f"SELECT {_ROW} FROM runs WHERE {condition} ORDER BY number {order} LIMIT ?",  # noqa: S608
            (*values, limit),
        )
        return [_row(columns) for columns in found]

    def count(self, which: RunFilter) -> dict[str, int]:
        condition, values = _condition(which)
        return dict(
            self._execute(
                f"SELECT status, count(*) FROM runs WHERE {condition} GROUP BY status",  # noqa: S608
                values,
            )
        )

    def check(self) -> list[str]:
        wrong = [line for (line,) in self._execute("PRAGMA integrity_check") if line != "ok"]
        if wrong:
            return wrong  # SQLite cannot be asked about more
        return [line for statement in _CHECKS for (line,) in self._execute(statement)]


_CHECKS = [
    """
    SELECT 'the run ' || run_id || ' ends with record ' || sequence || ', and its last one is '
        || coalesce(max_sequence, 'missing')
    FROM runs LEFT JOIN
        (SELECT run, max(sequence) AS max_sequence FROM records GROUP BY run) ON run = number
    WHERE max_sequence IS NOT sequence
    """,
    """
    SELECT 'the run ' || run_id || ' lacks records: it has ' || have || ' from ' || base || ' to '
        || sequence
    FROM runs JOIN (
        SELECT run, count(*) AS have FROM records JOIN runs ON number = run
        WHERE records.sequence >= base GROUP BY run
    ) ON run = number
    WHERE have <> sequence - base + 1
    """,
    """
    SELECT 'the run ' || run_id || ' has no snapshot in record ' || base
    FROM runs LEFT JOIN records ON run = number AND records.sequence = base
    WHERE kind IS NOT 'base'
    """,
    """
    SELECT 'the run ' || run_id || ' has ' || unread || ' messages to consume, and its inbox ' || have
    FROM runs JOIN (
        SELECT number AS run, count(id) AS have FROM runs
        LEFT JOIN messages ON run = number AND consumed_by IS NULL GROUP BY number
    ) ON run = number
    WHERE have <> unread
    """,
    """
    SELECT DISTINCT 'there are records of a run that is not listed: number ' || run FROM records
    WHERE run NOT IN (SELECT number FROM runs)
    """,
]


def _condition(which: RunFilter) -> tuple[str, list[Any]]:
    """Return a filter as a condition, with its values."""
    conditions, values = ["1"], list[Any]()
    for column, chosen in [("status", which.statuses), ("workflow", which.workflows)]:
        if chosen is not None:
            conditions.append(f"{column} IN ({_marks(chosen)})")
            values += chosen
    if which.asking is not None:
        conditions.append(f"questions {'<>' if which.asking else '='} '[]'")
    for comparison, limit in [
        ("created_at >= ?", which.created_after),
        ("created_at < ?", which.created_before),
        ("updated_at < ?", which.updated_before),
    ]:
        if limit is not None:
            conditions.append(comparison)
            values.append(limit)
    return " AND ".join(conditions), values


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _digest(kind: str, data: bytes) -> bytes:
    return blake2b(data, digest_size=16, key=kind.encode()[:64]).digest()


def _id(message: Message) -> int:
    return message.id
