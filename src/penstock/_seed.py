"""What a run begins with: a state, or the books of a run before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock._engine.resuming import read_snapshot
from penstock._engine.snapshots import state_alone
from penstock._errors import WorkflowRuntimeError
from penstock._store import StateStore


if TYPE_CHECKING:
    from penstock._engine.resuming import Resumed
    from penstock._events import Event
    from penstock._graph import Graph


class Seed:
    """A context's other side before there is a run; see :class:`penstock.Context`."""

    __slots__ = ("_classes", "data", "graph", "resumed", "run_id", "start_event", "store")

    def __init__(
        self, graph: Graph, classes: tuple[type, ...], data: dict[str, Any] | None
    ) -> None:
        self.graph = graph
        self._classes = classes
        #: The snapshot, where there is one.
        self.data = data
        self.run_id: str | None = None
        self.start_event: Event | None = None
        self.resumed: Resumed | None = None
        store: StateStore[Any] | None = None
        if data is not None:
            self.run_id, store, self.start_event, self.resumed = read_snapshot(data, graph, classes)
        self.store: StateStore[Any] = StateStore(graph.state_type) if store is None else store

    @property
    def is_running(self) -> bool:
        """Whether a run is to go on."""
        return self.resumed is not None or self.start_event is not None

    def snapshot(self) -> dict[str, Any]:
        """Return the snapshot that it came from, or one of the state alone."""
        if self.data is not None and self.is_running:
            return self.data
        return state_alone(self.graph, self._classes, self.store)

    def publish(self, event: object) -> None:
        """Refuse to publish: there is no run yet."""
        msg = (
            f"{type(event).__name__} was published before there is a run; expected a step to do it"
        )
        raise WorkflowRuntimeError(msg)
