"""What a run begins with: a state, or the books of a run before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._engine.snapshot_read import Found, read_snapshot
from sluicegate._engine.snapshot_write import state_alone
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._state.store import StateStore


if TYPE_CHECKING:
    from sluicegate._definition.graph import Graph


class SavedRun:
    """A context's other side before there is a run; see :class:`sluicegate.Context`."""

    __slots__ = ("_classes", "_found", "data", "graph", "is_running", "store")

    def __init__(
        self,
        graph: Graph,
        classes: tuple[type, ...],
        data: dict[str, Any] | None,
        *,
        drops_removed: bool = False,
    ) -> None:
        self.graph = graph
        self._classes = classes
        #: The snapshot, where there is one.
        self.data = data
        found = Found()
        if data is not None:
            found = read_snapshot(data, graph, classes, drops_removed=drops_removed)
        self._found: Found | None = found
        #: Whether a run is to go on.
        self.is_running = found.resumed is not None or found.start_event is not None
        self.store: StateStore[Any] = (
            StateStore(graph.state_type) if found.store is None else found.store
        )

    @property
    def run_id(self) -> str | None:
        """The identifier of the run that the snapshot was taken of."""
        return None if self.data is None else self.data.get("run_id")

    def take(self) -> Found:
        """Return what the run goes on from, once: it becomes a part of that run.

        Raises:
            WorkflowRuntimeError: A run has gone on from it before.
        """
        found, self._found = self._found, None
        if found is None:
            msg = (
                f"the run {self.run_id} has gone on from this context before; expected "
                "Context.from_dict(workflow, snapshot) once more, for another run from there"
            )
            raise WorkflowRuntimeError(msg)
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return the snapshot that it came from, or one of the state alone."""
        alone = state_alone(self.graph, self._classes, self.store)
        if self.data is not None and self.is_running:
            return {**self.data, "state": alone["state"]}
        return alone

    def publish(self, event: object) -> None:
        """Refuse to publish: there is no run yet."""
        msg = (
            f"{type(event).__name__} was published before there is a run; expected a step to do it"
        )
        raise WorkflowRuntimeError(msg)
