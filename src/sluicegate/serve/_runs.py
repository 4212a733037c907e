"""The runs of a server: those under way, with their owners, and those that ended lately."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import attrs

from sluicegate._engine.ending import leave_run
from sluicegate._errors import brief
from sluicegate._handler import mark_observed, run_of
from sluicegate._loop import current_backend
from sluicegate._workflow import graph_in
from sluicegate.serve._data import ending_of, handler_data
from sluicegate.serve._requests import Refusal
from sluicegate.serve._traces import trace_header


if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from sluicegate._definition.graph import Graph
    from sluicegate._handler import WorkflowHandler
    from sluicegate._workflow import Workflow
    from sluicegate.durable import RunSummary

LOGGER = logging.getLogger("sluicegate")


@attrs.define(eq=False)
class ServedRun:
    """A run that the server knows.

    Attributes:
        handler: Its handler.
        name: The name of its workflow on the server.
        graph: The graph of the workflow.
        owner: Who owns it: the request that started it, or the server.
        started_at: When it was started, in seconds since the epoch.
        updated_at: When it last changed.
        completed_at: When it ended; None before.
        forget_at: When it is forgotten, on the event loop's clock; None before its end.
        keys: The idempotency keys that started it.
        users: How many requests are about it now.
        is_leaving: Whether it leaves this process, to rest in its store.
        is_followed: Whether it is not in this process, and its stored events are followed.
    """

    handler: WorkflowHandler[Any]
    name: str
    graph: Graph
    owner: Literal["request", "server"]
    started_at: float
    updated_at: float
    completed_at: float | None = None
    forget_at: float | None = None
    keys: list[tuple[str, str]] = attrs.Factory(list[tuple[str, str]])
    users: int = 0
    is_leaving: bool = False
    is_followed: bool = False

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.handler.run_id

    @property
    def is_over(self) -> bool:
        """Whether it has ended and unwound."""
        return self.handler.is_done()

    @property
    def is_durable(self) -> bool:
        """Whether a store has it."""
        return run_of(self.handler).part is not None

    @property
    def is_in_memory(self) -> bool:
        """Whether its state is in this process."""
        part = run_of(self.handler).part
        return part is None or part.is_live

    @property
    def is_busy(self) -> bool:
        """Whether it is under way, and does not wait for an answer."""
        return not self.is_over and self.handler.status != "idle"

    def headers(self) -> dict[str, str]:
        """Return the headers of a response about it."""
        # A run of a store may have any id.
        return {"x-run-id": quote(self.handler.run_id, safe=":~"), **trace_header(self.handler)}

    @contextmanager
    def used(self) -> Generator[None]:
        """Keep it in this process for the length of the block."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    @property
    def can_leave(self) -> bool:
        """Whether it rests in its store, and no request is about it."""
        return self.owner == "server" and not (self.users or self.is_busy or self.is_in_memory)

    def leave(self, reason: str) -> None:
        """Cancel it, or, with a store, let it leave this process. Not a checkpoint."""
        self.is_leaving = True
        leave_run(run_of(self.handler), reason)

    def touch(self) -> None:
        """Note that it has changed."""
        self.updated_at = time.time()

    def data(self) -> dict[str, Any]:
        """Return its data for clients."""
        handler = self.handler
        found = handler_data(
            handler.run_id,
            self.name,
            status="running",
            times=(self.started_at, self.updated_at, self.completed_at),
            is_idle=handler.status == "idle",
            questions=len(handler.questions),
        )
        if handler.is_done():
            found |= ending_of(terminal_event(handler))
        return found


def terminal_event(handler: WorkflowHandler[Any]) -> Any:
    """Return the last event on the stream of a run that has ended."""
    return run_of(handler).log.last


@attrs.define(eq=False)
class Runs:
    """The runs of a server.

    Attributes:
        max_runs: How many may be under way.
        keep_ended: How many that are over are kept.
        keep_ended_for: For how many seconds.
    """

    max_runs: int
    keep_ended: int
    keep_ended_for: float
    _active: dict[str, ServedRun] = attrs.Factory(dict[str, ServedRun])
    _ended: OrderedDict[str, ServedRun] = attrs.Factory(OrderedDict[str, ServedRun])
    #: The runs by the keys that started them, with what their requests consisted of.
    _keys: dict[tuple[str, str], tuple[ServedRun, Any]] = attrs.Factory(
        dict[tuple[str, str], tuple[ServedRun, Any]]
    )
    #: Those that wait until no run is under way.
    _waiters: set[Any] = attrs.Factory(set[Any])

    def __iter__(self) -> Iterator[ServedRun]:
        """Iterate over all runs, the newest first."""
        self._forget_old()
        known = [*self._active.values(), *self._ended.values()]
        return iter(sorted(known, key=lambda run: run.started_at, reverse=True))

    @property
    def active(self) -> list[ServedRun]:
        """Those under way."""
        return list(self._active.values())

    def get(self, run_id: str) -> ServedRun | None:
        """Return a run; None if it is not known, or not any more."""
        self._forget_old()
        found = self._active.get(run_id)
        if found is not None and found.is_leaving and found.is_durable:
            return None
        return found or self._ended.get(run_id)

    def is_active(self, run_id: str) -> bool:
        """Whether a run is under way here."""
        return run_id in self._active

    def has_room(self) -> bool:
        """Whether another run is allowed; those that rest in a store do not count."""
        if len(self._active) < self.max_runs:
            return True
        return sum(run.is_in_memory for run in self._active.values()) < self.max_runs

    def check_room(self) -> None:
        """Refuse another run while as many as allowed are under way."""
        if not self.has_room():
            msg = (
                f"{len(self._active)} runs are under way, as many as this server takes; expected the "
                "same request later, or `asgi_app(..., max_runs=...)` on the server"
            )
            raise Refusal(429, msg, headers={"retry-after": "1"})

    def same_as(self, name: str, key: str, data: Any) -> ServedRun | None:
        """Return the run that a request with a key started before.

        Raises:
            Refusal: Another request has used the key.
        """
        self._forget_old()
        found = self._keys.get((name, key))
        if found is None:
            return None
        if found[1] != data:
            msg = (
                f"the key {brief(key)} was used for a run of {name} with other data; expected "
                "another key for another run"
            )
            raise Refusal(409, msg)
        return found[0]

    def add(
        self,
        name: str,
        workflow: Workflow[Any],
        handler: WorkflowHandler[Any],
        owner: Literal["request", "server"],
        *,
        keys: Iterable[str] = (),
        data: Any = None,
        started_at: float | None = None,
    ) -> ServedRun:
        """Note a run that is about to begin."""
        if self.get(handler.run_id) is not None:
            handler.cancel("it was never started")
            msg = f"there is a run {handler.run_id!r}; expected another handler_id, or none for a new one"
            raise Refusal(409, msg, field="handler_id")
        now = time.time()
        began = now if started_at is None else started_at
        run = ServedRun(handler, name, graph_in(workflow), owner, began, now)
        self._active[run.run_id] = run
        for key in keys:
            self._keys[name, key] = run, data
            run.keys.append((name, key))
        return run

    def end(self, run: ServedRun) -> None:
        """Note that a run has ended, or has left this process."""
        if self._active.get(run.run_id) is not run:
            return
        del self._active[run.run_id]
        handler = run.handler
        mark_observed(handler)
        for waiter in self._waiters:
            waiter.wake()
        if handler.status == "detached":  # it continues from its store
            self._ended.pop(run.run_id, None)
            return
        now = time.time()
        run.updated_at = run.completed_at = now
        run.forget_at = current_backend().current_time() + self.keep_ended_for
        self._ended[run.run_id] = run
        self._log(run)
        self._forget_old()

    def _log(self, run: ServedRun) -> None:
        status = run.handler.status
        error = run.handler.exceptions[0] if run.handler.exceptions else None
        more = {"run_id": run.run_id, "workflow": run.name}
        if status in ("failed", "timed_out") and error is not None:
            LOGGER.error(
                "the run %s of %s: %s", run.run_id, run.name, status, exc_info=error, extra=more
            )
        else:
            LOGGER.info("the run %s of %s: %s", run.run_id, run.name, status, extra=more)

    def drop(self, run_id: str) -> None:
        """Forget a run that is over here, because it continues."""
        run = self._ended.get(run_id)
        if run is not None:
            self.forget(run)

    def forget(self, run: ServedRun) -> None:
        """Forget a run that is over."""
        self._ended.pop(run.run_id, None)
        for key in run.keys:
            self._keys.pop(key, None)

    def _forget_old(self) -> None:
        if not self._ended:
            return
        now = current_backend().current_time()
        while self._ended:
            oldest = next(iter(self._ended.values()))
            is_old = oldest.forget_at is not None and oldest.forget_at <= now
            if not is_old and len(self._ended) <= self.keep_ended:
                return
            self.forget(oldest)

    async def wait_for_change(self, seconds: float = inf) -> None:
        """Wait until a run ends, or for so many seconds. A checkpoint."""
        backend = current_backend()
        waiter = backend.waiter()
        self._waiters.add(waiter)
        try:
            with backend.cancel_scope(deadline=backend.current_time() + seconds):
                await waiter.wait()
        finally:
            self._waiters.discard(waiter)
        await backend.checkpoint_if_cancelled()


def served(
    name: str, workflow: Workflow[Any], handler: WorkflowHandler[Any], row: RunSummary
) -> ServedRun:
    """Return a run of the store that is not in this process, as one that is."""
    return ServedRun(
        handler,
        name,
        graph_in(workflow),
        "server",
        row.created_at,
        row.updated_at,
        row.updated_at if row.is_over else None,
        is_followed=True,
    )


async def wait_for_end(handler: WorkflowHandler[Any]) -> None:
    """Wait until a run has ended, however it has. A checkpoint."""
    try:
        await handler
    except Exception:
        if not handler.is_done():
            raise
    mark_observed(handler)
