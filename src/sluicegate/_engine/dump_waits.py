"""Waits in a dump: what an invocation waits for, and who holds it."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Any, final

from sluicegate._engine.dump_values import class_name, counted, name_of, seconds, shown, until
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._loop.stacks import function_of, is_ours, place_of, user_frames


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from sluicegate._engine.invocation import Worker
    from sluicegate._engine.run import Run
    from sluicegate._engine.waits import Wait
    from sluicegate._loop.stacks import Stacks


#: How many holders a line names.
NAMED = 5


@final
class Alive:
    """Everything that is alive at the moment of a dump, each looked up once.

    Args:
        stacks: The stacks of all threads.
        runs: The runs that have not ended.
    """

    def __init__(self, stacks: Stacks, runs: list[Run]) -> None:
        self.stacks = stacks
        self.runs = runs
        #: The invocations of each run, by the id of the run.
        self.workers = {
            id(run): [w for w in list(run.workers) if hasattr(w, "run")] for run in runs
        }
        self._frames: dict[int, list[FrameType]] = {}
        #: The open waits of each run, by the id of the step's context.
        self._waits: dict[int, dict[int, list[Wait]]] = {}
        #: The tasks of each event loop, by the id of the invocation whose step has started them.
        self._tasks: dict[int, dict[int | None, list[Any]]] = {}

    @staticmethod
    def now(run: Run) -> float:
        """Return the time on the clock of a run's event loop."""
        assert run.backend is not None
        return run.backend.time_of(run.loop, run.host)

    def everyone(self) -> Iterator[Worker]:
        """Yield the invocations of all runs."""
        for workers in self.workers.values():
            yield from workers

    def frames(self, worker: Worker) -> list[FrameType]:
        """Return the frames of an invocation, without those of the task around it or of a child."""
        found = self._frames.get(id(worker))
        if found is None:
            backend, task = worker.run.backend, worker.task
            if backend is None or task is None:
                return []
            whole = self.stacks.of_coroutine(backend.coroutine_of(task))
            found = self._frames[id(worker)] = frames_of(worker, whole)
        return found

    def waits(self, worker: Worker) -> list[Wait]:
        """Return the open waits of an invocation."""
        run, context = worker.run, worker.context
        found = self._waits.get(id(run))
        if found is None:
            found = self._waits[id(run)] = {}
            for wait, step in [] if run.machine is None else list(run.machine.waits.items()):
                found.setdefault(id(step), []).append(wait)
        return [] if context is None else found.get(id(context), [])

    def tasks(self, run: Run, worker: Worker | None) -> list[Any]:
        """Return the tasks that the step of an invocation has started, or those outside of steps."""
        backend, loop = run.backend, run.loop
        if backend is None or run.host is None:
            return []
        found = self._tasks.get(id(loop))
        if found is None:
            found = self._tasks[id(loop)] = {}
            for task in backend.living_tasks(loop, run.host):
                owner = backend.variables_of(task).get(current_cleanup)
                found.setdefault(None if owner is None else id(owner), []).append(task)
        return found.get(None if worker is None else id(worker), [])


def frames_of(worker: Worker, frames: list[FrameType]) -> list[FrameType]:
    """Cut the frames of an invocation out of those of its task."""
    begin: int | None = None
    for place, frame in enumerate(frames):
        name = function_of(frame) if is_ours(frame) else ""
        if name == "run_worker" and frame.f_locals.get("worker") is worker:
            begin = place
        elif begin is not None and name == "execute":
            return frames[begin:place]  # under Trio, a child runs in the task of its step
    return frames[begin:]


def name_of_worker(worker: Worker) -> str:
    """Return the name of the step of an invocation, and its event."""
    step = worker.step
    return "a step" if step is None else f"{step.label} {shown(worker.delivered()[0], 1)}"


def named(things: Iterable[str]) -> str:
    """Return a list of names that is not too long."""
    texts = list(things)
    more = len(texts) - NAMED
    return ", ".join(texts[:NAMED]) + (f" and {more} more" if more > 0 else "")


def waits_of(worker: Worker, frames: list[FrameType], alive: Alive) -> list[str]:
    """Return what an invocation waits for in the engine, each with who holds it."""
    found: list[str] = []
    run = worker.run
    waits = alive.waits(worker)
    if waits:
        now = alive.now(run)
        found += [_event(wait, now) for wait in waits]
    absence = worker.absence
    if absence is not None and absence.is_queued and worker.step is not None:
        found.append(f"can continue, and waits for a place: {_places(worker, alive)}")
    for frame in frames:
        describe = _BY_FUNCTION.get(function_of(frame)) if is_ours(frame) else None
        text = None if describe is None else describe(worker, frame.f_locals, alive)
        if text is not None:
            found.append(text)
    return list(dict.fromkeys(found))


def _event(wait: Wait, now: float) -> str:
    needs = ", ".join(f"{name}={shown(value)}" for name, value in list(wait.requirements.items()))
    whence = "from outside" if wait.is_outside else "from a step"
    due = "" if wait.due == inf else f", gives up {until(wait.due, now)}"
    return f"waits for {name_of(wait.kind)}({needs}) {whence}, for {seconds(now - wait.since)}{due}"


def _places(worker: Worker, alive: Alive) -> str:
    """Return who has the places of a step."""
    assert worker.step is not None
    others = [
        other
        for other in alive.workers.get(id(worker.run), ())
        if other.step is worker.step and not (other.absence is not None and other.absence.is_away)
    ]
    names = named(shown(other.delivered()[0], 1) for other in others)
    return f"{len(others)} of {worker.step.num_workers} taken" + (f" by {names}" if names else "")


# -- by the function of the engine in which it waits


def _turn(worker: Worker, names: dict[str, Any], alive: Alive) -> str | None:
    """Describe a wait for the limiter of a step, for a thread or for a process."""
    step = worker.step
    if not worker.is_waiting or step is None:
        return None
    if worker.run.draining is not None:
        return "does not begin any more, because the run is being drained"
    if "place" in names:
        return None  # it has the outer one, and waits for an inner one
    manager = class_name(names.get("manager"))
    if manager == "ThreadPlace":
        return _threads(worker)
    if manager == "_StepPlace":
        return _processes(worker, alive)
    return _limiter(worker, alive)


def _limiter(worker: Worker, alive: Alive) -> str:
    assert worker.step is not None
    limiter: Any = worker.step.options.limiter
    taken, tasks = _statistics(worker, limiter)
    holders = [name_of_worker(other) for other in alive.everyone() if _holds(other, limiter)]
    holders += [f"the task {name}" for name in tasks]
    held = f", held by {named(holders)}" if holders else ""
    return f"waits for its limiter, a {class_name(limiter).removesuffix('Adapter')}{taken}{held}"


def _holds(worker: Worker, limiter: object) -> bool:
    step = worker.step
    if step is None or step.options.limiter is not limiter or worker.is_waiting:
        return False
    return worker.turn is None or worker.turn.is_held


def _statistics(worker: Worker, limiter: Any) -> tuple[str, list[str]]:
    """Return how many places of a limiter of Trio or AnyIO are taken, and the tasks that are not the engine's."""
    backend = worker.run.backend
    if backend is None or type(limiter).__module__.partition(".")[0] not in ("trio", "anyio"):
        return "", []
    try:
        statistics = limiter.statistics()
    except Exception:  # noqa: BLE001 - AnyIO wants an event loop, which another thread has
        return "", []
    total = getattr(statistics, "total_tokens", None)
    taken = "" if total is None else f": {statistics.borrowed_tokens} of {shown(total)} taken"
    owners = [getattr(statistics, "owner", None), *getattr(statistics, "borrowers", ())]
    return taken, [backend.task_name(o) for o in owners if type(o).__name__ == "Task"]


def _threads(worker: Worker) -> str:
    from sluicegate._loop.thread_places import thread_places_of  # noqa: PLC0415 - in use, if at all

    places = thread_places_of(worker.run.loop)
    most = worker.run.options.max_threads
    if places is None:
        return "waits for a thread"
    steps = Counter(list(places.taken.values()))
    held = ", ".join(f"{name} ({number})" for name, number in steps.most_common(NAMED))
    return (
        f"waits for a thread: {len(places.taken)} of {most} taken by {held or 'nobody'}; "
        f"{places.running} compute"
    )


def _processes(worker: Worker, alive: Alive) -> str:
    from sluicegate._loop.process_pool import process_slots_of  # noqa: PLC0415 - as above

    slots = process_slots_of(worker.run.loop)
    if slots is None:
        return "waits for a process"
    at_work = [
        other
        for other in alive.everyone()
        if other.step is not None
        and other.step.runs_in == "process"
        and not other.is_waiting
        and other.run.loop is worker.run.loop
    ]
    if slots.inside < slots.limit or len(at_work) < slots.limit:
        return "waits for a process, which starts or imports the step"
    names = named(map(name_of_worker, at_work))
    return f"waits for a process: {slots.inside} of {slots.limit} taken by {names}"


def _branch(worker: Worker, names: dict[str, Any], alive: Alive) -> str | None:
    node = names.get("node")
    if node is None:
        return None
    inside = [
        other
        for other in alive.workers.get(id(worker.run), ())
        if other is not worker and other.node is not None and node in list(other.node.upward())
    ]
    text = f"waits for a branch, in which {node.live:,} under way"
    return f"{text}: {named(map(name_of_worker, inside))}" if inside else text


def _state(worker: Worker, names: dict[str, Any], alive: Alive) -> str | None:
    store = names.get("self")
    if store is None or "turn" not in names:
        return None
    for other in alive.workers.get(id(worker.run), ()):
        if store.is_written_by(other.task):
            return f"waits to change the state, which is being edited by {name_of_worker(other)}"
    return "waits to change the state, which another task is editing"


def _reader(worker: Worker, names: dict[str, Any], alive: Alive) -> str | None:
    log = names.get("self")
    slowest = None if log is None else log.slowest_reader()
    if slowest is None:
        return "waits for a reader of the stream"
    behind, task = slowest
    text = f"waits for a reader of the stream, which is {counted(behind, 'event')} behind"
    backend = worker.run.backend
    if task is None or backend is None:
        return text
    text += f": last read by the task {backend.task_name(task)}"
    frames = user_frames(alive.stacks.of_coroutine(backend.coroutine_of(task)))
    return f"{text}, at {place_of(frames[-1])}" if frames else text


def _resource(_worker: Worker, names: dict[str, Any], _alive: Alive) -> str | None:
    entry = names.get("self")
    return None if entry is None else f"waits for the resource {entry.plan.name} to be opened"


def _other_run(_worker: Worker, names: dict[str, Any], alive: Alive) -> str | None:
    outcome = names.get("outcome")
    for run in alive.runs:
        if run.outcome is outcome:
            return f"waits for the end of the run {run.run_id} of {run.graph.name}"
    return None


def _limiter_again(worker: Worker, _names: dict[str, Any], alive: Alive) -> str | None:
    if worker.is_waiting:
        return None  # it enters it for the first time
    return _limiter(worker, alive)


def _process(_worker: Worker, names: dict[str, Any], _alive: Alive) -> str | None:
    pid = getattr(getattr(names.get("place"), "worker", None), "pid", None)
    return None if pid is None else f"runs in the process {pid}"


#: What describes a wait, by the name of the engine's function in which it waits.
_BY_FUNCTION: dict[str, Callable[[Worker, dict[str, Any], Alive], str | None]] = {
    "Worker._in_turn": _turn,
    "Place.regain": _limiter_again,
    "_wait_in_step": _branch,
    "StateStore._wait_for_turn": _state,
    "EventLog.wait_for_room": _reader,
    "_Entry.wait": _resource,
    "WorkflowHandler._wait": _other_run,
    "ProcessStep.call": _process,
}
