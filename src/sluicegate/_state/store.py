"""The state of a run: one committed state, with any number of readers and one writer at a time.

A write replaces the state with the next one. So an error needs no undo, and an older state that a
reader holds stays as it was.
"""

from __future__ import annotations

import inspect
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from sluicegate._annotations import class_of
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._loop import Backend, Waiter, current_backend, enable_ki_protection
from sluicegate._state.drafts import (
    MISSING,
    DictState,
    class_fields,
    copies_of,
    detached,
    frozen_error,
    listed,
    look,
    make_dict_state,
    path_error,
    put_memo,
    replaced,
    split_path,
)


if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import TypeVar as TypeVarWithDefault

    StateT = TypeVarWithDefault("StateT", default=Any)
else:
    StateT = TypeVar("StateT")


#: Seconds for which a loop of store calls may keep the event loop to itself (P3 allows 1 ms).
TURN = 0.0005


class EditRecords(Protocol):
    """What makes the records of the edits in an observed run."""

    def for_edit(self, store: object) -> EditRecords | None:
        """Return what records an edit that the caller begins; None if nothing does."""
        ...

    def edit_waits(self) -> int:
        """Record that an edit waits for another to end; return the number of the wait."""
        ...

    def wait_ended(self, number: int, outcome: Any = "done") -> int:
        """Record that the edit waits no longer."""
        ...

    def edit_started(self) -> int:
        """Record that an edit has begun; return its number."""
        ...

    def edit_ended(self, number: int, *, is_committed: bool) -> None:
        """Record that an edit has ended."""
        ...


class StateChange:
    """One change of a state, just before it takes effect.

    Attributes:
        old: The state before it; None if there was none.
        new: The state after it, which shares unchanged values with the old one.
        path: The path that was set, if the rest of the state is unchanged.
        copies: If a draft became the new state: the copies that it made, by the id of the old object.
    """

    __slots__ = ("copies", "new", "old", "path")

    def __init__(
        self,
        old: object,
        new: object,
        *,
        path: list[str] | None = None,
        copies: dict[int, Any] | None = None,
    ) -> None:
        self.old: Any = old
        self.new: Any = new
        self.path: list[str] | None = path
        self.copies: dict[int, Any] | None = copies


class StateJournal(Protocol):
    """Records the changes of a state."""

    def __call__(self, change: StateChange, /) -> None:
        """Record a change before it takes effect; if this raises, the change has no effect."""
        ...


class StateStore(Generic[StateT]):
    """The state of a run, ``ctx.store``: all tasks read the committed state, one task writes at a time.

    Writers queue in order; readers never wait and never see a partial
    write. A committed state never changes, so values that were read stay valid. :meth:`get`
    returns the committed value itself, which you must not modify.

    Every awaited method first checks for cancellation, and lets other tasks run at least
    every 0.5 ms; if it is cancelled, it has changed nothing. Call it in any task of the event loop's thread.
    A task that an open :meth:`edit_state` block waits for must not write, because both would deadlock.

    In a durable run, a write that cannot be kept raises ``SnapshotError`` with the path of the value, and
    changes nothing.

    Args:
        state_type: An attrs class, a dataclass or a pydantic model that can be created without
            arguments; None for a :class:`DictState`.
        state: The initial state, from :meth:`snapshot_state`; None for a new one.
        is_restored: Whether it comes from a snapshot, which was checked when it was read.

    Raises:
        TypeError: The class is none of these, or lacks defaults (the message names the fields);
            its annotations cannot be resolved; or ``state`` is of another class, or one of its fields
            does not fit the annotation.
    """

    __slots__ = (
        "_committed",
        "_edit",
        "_is_committed",
        "_pace",
        "_queue",
        "_shape",
        "_type",
        "_writer",
        "is_restored",
        "journal",
        "records",
    )

    def __init__(
        self,
        state_type: type | None = None,
        state: object | None = None,
        *,
        is_restored: bool = False,
    ) -> None:
        kind: Any = class_of(state_type) or DictState
        self._type: type = kind
        self._shape = class_fields(kind) if isinstance(kind, type) else None
        if self._shape is None and kind is not DictState:
            msg = f"{kind!r} cannot be a state; expected an attrs class, a dataclass, a pydantic model"
            raise TypeError(msg)
        if self._shape is not None:
            self._shape.hints  # noqa: B018 - raises if an annotation cannot be resolved
        self._committed: Any = None
        if state is None:
            self._committed = self._new()
        else:
            self._committed = self._of_type(state) if is_restored else self._accepted(state)
        self._shape = self._shape and class_fields(type(self._committed))
        self._pace = 0.0
        #: The task that writes now, and the tasks that wait for their turn, oldest first.
        self._writer: object = None
        self._queue: deque[tuple[object, Waiter]] = deque()
        #: While an observed run uses the state: what makes the records of its edits.
        self.records: EditRecords | None = None
        #: Whether it comes from a snapshot that has a state.
        self.is_restored: bool = is_restored
        #: In a durable run: records the changes.
        self.journal: StateJournal | None = None
        #: Of the edit that runs now, if it is recorded: where, and its number.
        self._edit: tuple[EditRecords, int] | None = None
        #: Whether its changes are in the state.
        self._is_committed = False

    def _new(self) -> Any:
        if self._type is DictState:
            return DictState()
        required = [
            name
            for name, p in inspect.signature(self._type).parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        if self._shape is not None and required:
            msg = (
                f"{self._type.__name__} cannot be made without {listed(required)}; expected a "
                f"default for each, such as `{required[0]}: int = 0`"
            )
            raise TypeError(msg)
        return self._type()

    def _of_type(self, state: Any) -> Any:
        kind: type = state.__class__
        if kind is not self._type and (self._shape is None or not issubclass(kind, self._type)):
            call = f"set_state({self._type.__name__}(...))"
            msg = f"{brief(state)} is not a {self._type.__name__}; expected {call}"
            raise TypeError(msg)
        return detached(state)

    def _accepted(self, state: Any) -> Any:
        kind: type = state.__class__
        if self._shape is None:
            return self._of_type(state)
        if kind is not self._type and issubclass(self._type, kind):
            parent = class_fields(kind)
            if parent is not None:
                return self._merged(detached(state), parent)
        made = self._of_type(state)
        shape = class_fields(kind) or self._shape
        old = self._committed if isinstance(self._committed, kind) else None
        shape.check(made, shape.fields, old, is_whole=True)
        return made

    def _merged(self, state: Any, parent: Any) -> Any:
        """Return the state with the fields of an object of a base class of its class."""
        before = self._new() if self._committed is None else self._committed
        cls = cast("Any", type(before))
        shape = self._shape
        assert shape is not None
        made = shape.fill(cls.__new__(cls), before)
        for name in parent.fields:
            value = parent.load(state, name)
            if value is not MISSING:
                shape.store(made, name, value)
                if shape.is_pydantic:
                    made.__pydantic_fields_set__.add(name)
        shape.check(made, parent.fields, before, is_whole=True)
        return made

    async def get(self, path: str, default: Any = MISSING) -> Any:
        """Return the value at a path: the committed value itself, not a copy; read-only.

        Args:
            path: Names of items or attributes, and indexes, separated by dots: ``user.tags.0``.
            default: The value to return if the path leads nowhere.

        Raises:
            StatePathError: The path leads nowhere and there is no default; or it is not a valid
                path: empty, with an empty or negative part, or with one that begins with ``__``.
        """
        await self._breathe(current_backend())
        holder, parts = self._committed, split_path(path)
        for depth, part in enumerate(parts):
            found = look(holder, part)
            if found is MISSING:
                if default is not MISSING:
                    return default
                raise path_error(parts, depth, holder, f"expected get({brief(path)}, default=...)")
            holder = found
        return holder

    async def set(self, path: str, value: object) -> None:
        """Set the value at a path. It makes a shallow copy of each container on the path.

        Inside dictionaries and ``DictState``, it creates missing dictionaries on the path.

        Args:
            path: As for :meth:`get`; an index, and a field of a class, must exist already.
            value: The new value. It belongs to the state from now on.

        Raises:
            StatePathError: The path leads nowhere, is not valid, or ends in an object without
                fields.
            TypeError: The value does not fit the annotation of a field; or an object is frozen.
            Exception: The exception of a validator of an attrs class.
            WorkflowRuntimeError: This task is inside its own :meth:`edit_state` block.
        """
        parts = split_path(path)
        await self._acquire()
        try:
            made = replaced(self._committed, parts, 0, detached(value))
            if self.journal is None:
                self._committed = made
            else:
                self._write_down(StateChange(self._committed, made, path=parts))
            self._is_committed = True
        finally:
            self._release()

    async def clear(self) -> None:
        """Reset the state to an empty ``DictState``, or to a new object of the state's class.

        Raises:
            WorkflowRuntimeError: This task is inside its own :meth:`edit_state` block.
        """
        await self._acquire()
        try:
            made = self._new()
            if self.journal is None:
                self._committed = made
            else:
                self._write_down(StateChange(self._committed, made))
            self._shape = self._shape and class_fields(self._type)
            self._is_committed = True
        finally:
            self._release()

    async def get_state(self) -> StateT:
        """Return a copy of the state. The caller may keep and change it; the store is unaffected.

        A field is copied on its first read (see :meth:`edit_state`). A frozen state is returned
        itself.
        """
        await self._breathe(current_backend())
        if self._shape is not None and self._shape.is_frozen:
            return cast("StateT", self._committed)
        return cast("StateT", self._draft())

    async def set_state(self, state: StateT) -> None:
        """Replace the state. The new object then belongs to the store.

        An object of a derived class replaces the state. From an object of a base class of the state,
        only its fields are merged into the state.

        Raises:
            TypeError: The object is of an unrelated class, or a field does not fit its annotation.
            WorkflowRuntimeError: This task is inside its own :meth:`edit_state` block.
        """
        await self._acquire()
        try:
            made = self._accepted(state)
            if self.journal is None:
                self._committed = made
            else:
                self._write_down(StateChange(self._committed, made, copies=copies_of(state)))
            self._shape = self._shape and class_fields(type(made))
            self._is_committed = True
        finally:
            self._release()

    def edit_state(self) -> AbstractAsyncContextManager[StateT]:
        """Return a block that edits the state atomically: an error rolls back all changes.

        The block gets a draft of the state. A field is copied when the block first reads it,
        with the lists, dicts, sets, deques, tuples and objects with fields (attrs, dataclass,
        pydantic, msgspec) in it; unread fields cost nothing. Other objects (locks, clients), frozen objects,
        and those that compare by identity (``eq=False``) are not copied, so changes to them cannot be
        rolled back. Meanwhile other tasks read the previous state, and writers wait.

        In a durable run, the commit writes down what changed before it takes effect, at a cost that does
        not depend on unread fields. Changes inside a frozen object are not seen; assign a new one.

        Entering waits for the other writers; a cancellation there leaves nothing behind. Exiting is not
        a checkpoint. An error or a cancellation in the block rolls it back and propagates.

        Raises:
            TypeError: The state's class is frozen; or, on exit, a changed field does not fit
                its annotation, and the state is unchanged.
            WorkflowRuntimeError: This task is inside such a block already.
            SnapshotError: On exit, in a durable run: a changed value cannot be kept. The message has its
                path, and the state is unchanged.
        """
        if self._shape is not None and self._shape.is_frozen:
            raise TypeError(frozen_error(self._type))
        return _Edit(self)

    def snapshot_state(self) -> object:
        """Return the committed state itself, read-only. Not a checkpoint; needs no event loop."""
        return self._committed

    def __repr__(self) -> str:
        state = "being written" if self._writer is not None else "at rest"
        return f"<StateStore of {self._type.__name__}, {state}, {len(self._queue)} waiting>"

    # -- the turns of the writers

    @property
    def is_busy(self) -> bool:
        """Whether a task changes the state, or waits to change it."""
        return self._writer is not None or bool(self._queue)

    def is_written_by(self, task: object) -> bool:
        """Whether a task is inside its own :meth:`edit_state` block. The engine uses this."""
        return self._writer is not None and self._writer is task

    async def _breathe(self, backend: Backend) -> None:
        if perf_counter() - self._pace > TURN:
            await backend.checkpoint()
            self._pace = perf_counter()
        else:
            await backend.checkpoint_if_cancelled()

    @enable_ki_protection
    async def _acquire(self) -> None:
        backend = current_backend()
        task = backend.current_task()
        if self._writer is task:
            msg = (
                "this task is inside its own `async with ctx.store.edit_state() as state:`, and "
                "would wait for itself; expected a change of the draft: `state.name = value`"
            )
            raise WorkflowRuntimeError(msg)
        await self._breathe(backend)
        records = None if self.records is None else self.records.for_edit(self)
        if self._writer is None:
            self._writer = task
        else:
            await self._wait_for_turn(backend, task, records)
        if records is not None:
            self._edit = records, records.edit_started()

    @enable_ki_protection
    async def _wait_for_turn(
        self, backend: Backend, task: object, records: EditRecords | None
    ) -> None:
        turn = task, backend.waiter()
        self._queue.append(turn)
        wait = 0 if records is None else records.edit_waits()
        try:
            while self._writer is not task:
                await turn[1].wait()
        except BaseException:  # if it already has its turn, pass that to the next one
            if records is not None:
                records.wait_ended(wait, "cancelled")
            if self._writer is task:
                self._release()
            else:
                self._queue.remove(turn)
            raise
        if records is not None:
            records.wait_ended(wait)

    @enable_ki_protection
    def _release(self) -> None:
        if self._edit is not None:
            records, number = self._edit
            self._edit = None
            records.edit_ended(number, is_committed=self._is_committed)
        self._is_committed = False
        self._writer = None
        if self._queue:
            self._writer, waiter = self._queue.popleft()
            waiter.wake()

    # -- drafts

    def _draft(self) -> Any:
        old = self._committed
        if self._shape is not None:
            return self._shape.draft(old)
        made = make_dict_state(old._data.copy(), old._data)
        put_memo(made, {})
        return made

    def _commit(self, draft: Any) -> None:
        made = detached(draft)
        if self._shape is not None:
            self._shape.check(made, self._shape.fields, self._committed, is_whole=False)
        if self.journal is None:
            self._committed = made
        else:
            self._write_down(StateChange(self._committed, made, copies=copies_of(draft)))
        self._is_committed = True

    @enable_ki_protection
    def _write_down(self, change: StateChange) -> None:
        """Record a change and apply it: both, or neither if recording fails."""
        assert self.journal is not None
        self.journal(change)
        self._committed = change.new


class _Edit:
    """The context manager of ``edit_state``."""

    __slots__ = ("_draft", "_store")

    def __init__(self, store: StateStore[Any]) -> None:
        self._store = store

    @enable_ki_protection
    async def __aenter__(self) -> Any:
        await self._store._acquire()
        try:
            self._draft = self._store._draft()
        except BaseException:  # no other code would release the turn
            self._store._release()
            raise
        return self._draft

    @enable_ki_protection
    async def __aexit__(self, kind: object, _error: object, _trace: object) -> None:
        try:
            if kind is None:
                self._store._commit(self._draft)
        finally:
            del self._draft
            self._store._release()
