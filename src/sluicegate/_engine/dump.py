"""Dumps: every run of the process, its steps, and what each of them waits for.

No run registers itself anywhere. A dump looks for the records of runs among all objects that the
garbage collector knows, so a run costs nothing before one is made. It reads from outside, in whatever
thread, while other threads may change what it reads: what cannot be read is left out.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, ParamSpec, TextIO, final

from sluicegate._engine.dump_values import counted, name_of, seconds, shown, until
from sluicegate._engine.dump_waits import Alive, waits_of
from sluicegate._engine.run import Run
from sluicegate._loop.stacks import (
    Stacks,
    function_of,
    is_ours,
    line_of,
    machinery,
    place_of,
    user_frames,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from sluicegate._engine.invocation import Worker
    from sluicegate._engine.step_queue import StepQueue


P = ParamSpec("P")

#: How many frames of one task are shown; the innermost are the interesting ones.
FRAMES = 12
#: How many runs that look the same are shown.
ALIKE = 3


def dump_runs(file: TextIO | None = None) -> None:
    r"""Print every run of this process, its steps, and what each of them waits for.

    For a program that hangs. For each run it prints the steps with their queues; each invocation with
    its event, its time, and the lines of your code down to what it awaits; each wait for an event, a
    branch, a child, a limiter, a thread, a process, the state or a reader, with who holds it; the
    delays of retries; and the other tasks of the event loop. Invocations and runs that look the same
    are counted together.

    It finds the runs of all threads and event loops, and works while an event loop is blocked. It
    calls no code of yours, such as a ``__repr__``: objects that are not plain data are shown by their
    class. Under :func:`run` and the command line, Ctrl-\ (SIGQUIT) prints the same.

    Not a checkpoint. Any thread may call it, also a signal handler.

    Args:
        file: The stream to write to; by default standard error.
    """
    out = sys.stderr if file is None else file
    if out is None:
        return  # a program without a console
    text = text_of_runs(sys._getframe(1))
    try:
        out.write(text)
        out.flush()
    except RuntimeError:  # a signal has interrupted another write to it
        os.write(out.fileno(), text.encode(errors="replace"))


def text_of_runs(end: FrameType | None) -> str:
    """Return the text of a dump.

    Args:
        end: The frame of the caller, or the one that a signal has interrupted.
    """
    alive = _find(end)
    try:
        return _text(alive)
    finally:
        alive.stacks.clear()


def _text(alive: Alive) -> str:
    began = [run for run in alive.runs if run.backend is not None]
    waiting = len(alive.runs) - len(began)
    lines = [f"sluicegate: {counted(len(began), 'run')} in process {os.getpid()}"]
    if waiting:
        lines[0] += f", and {waiting} that nobody has started"
    groups: dict[tuple[str, ...], list[tuple[Run, list[str]]]] = {}
    for run in began:
        if run.parent is None:
            text = _guarded(f"run {run.run_id}", _lines_of, alive, run)
            groups.setdefault(_signature(run, alive), []).append((run, text))
    for group in groups.values():
        for _, text in group[:ALIKE]:
            lines += ["", *text]
        if len(group) > ALIKE:
            ids = [run.run_id for run, _ in group[ALIKE:]]
            more = f" and {len(ids) - 10:,} more" if len(ids) > 10 else ""
            lines += ["", f"{len(ids):,} more runs look the same: {', '.join(ids[:10])}{more}"]
    lines += _others(alive, began)
    return "".join(f"{line}\n" for line in lines)


def _find(end: FrameType | None) -> Alive:
    """Find the runs that have not ended; those of one event loop in the order in which they began."""
    runs = [thing for thing in gc.get_objects() if type(thing) is Run]
    runs = [run for run in runs if hasattr(run, "busy_children") and not run.outcome.is_over]
    runs.sort(key=lambda run: (run.thread, run.clock.started_at or 0.0, run.run_id))
    return Alive(Stacks(end), runs)


def _guarded(
    what: str, make: Callable[P, list[str]], *args: P.args, **kwargs: P.kwargs
) -> list[str]:
    """Return lines, or one that says why they could not be made: another thread runs meanwhile."""
    try:
        return make(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the rest of the dump is wanted
        return [f"{what} could not be read: {name_of(type(error))}: {shown(str(error))}"]


def _signature(run: Run, alive: Alive) -> tuple[str, ...]:
    """Return what two runs that look the same have in common: workflow, steps and places."""
    parts = [run.graph.name, str(run.thread), run.outcome.status]
    for worker in alive.workers[id(run)]:
        frames = user_frames(alive.frames(worker))
        step = "" if worker.step is None else worker.step.name
        parts.append(f"{step} {place_of(frames[-1]) if frames else ''}")
    return tuple(parts)


def _lines_of(alive: Alive, run: Run) -> list[str]:
    return _Report(alive, run).lines()


@final
class _Report:
    """The lines about one run."""

    def __init__(self, alive: Alive, run: Run) -> None:
        self._alive = alive
        self._run = run
        self._now = alive.now(run)
        self._workers = alive.workers[id(run)]

    def lines(self) -> list[str]:
        """Return the lines: a title, the steps, and the tasks that steps have started."""
        lines = [self._title()]
        machine = self._run.machine
        if machine is None:
            return lines + [f"  {text}" for text in self._queue_of_runs()]
        for queue in list(machine.queues):
            text = _guarded(f"step {queue.step.name}", self._step, queue)
            lines += [f"  {line}" for line in text]
        for asked in list(machine.open_questions):
            since = seconds(self._now - asked.since)
            lines.append(f"  asks {shown(asked.event)}, for {since}, and waits for the answer")
        return lines

    def _title(self) -> str:
        run = self._run
        parts = [f"run {run.run_id} of {run.graph.name}"]
        if run.clock.started_at is not None:
            parts.append(f"for {seconds(self._now - run.clock.started_at)}")
        parts.append(_where(run))
        if run.outcome.status:
            parts.append(f"unwinds: {run.outcome.status.replace('_', ' ')}")
        elif run.draining is not None:
            parts.append("starts no further step, because it is being drained")
        elif run.clock.is_paused:
            parts.append("its timeout is paused")
        elif isfinite(run.clock.deadline):
            parts.append(f"its timeout passes {until(run.clock.deadline, self._now)}")
        if run.awaits_outside:
            parts.append("waits for an event from outside")
        return ", ".join(parts)

    def _queue_of_runs(self) -> list[str]:
        limit = self._run.options.run_limit
        slots = None if limit is None else limit.on(self._run.loop)
        if slots is None:
            return ["is about to begin"]
        inside = [run.run_id for run in self._alive.runs if run.slots is slots]
        held = ", ".join(inside[:10])
        return [f"waits for a slot: {slots.inside} of {slots.limit} runs at a time, {held}"]

    # -- a step

    def _step(self, queue: StepQueue) -> list[str]:
        workers = [worker for worker in self._workers if worker.step is queue.step]
        working = len(workers) - queue.away
        counts = [f"{working} of {counted(queue.limit, 'worker')}"] if working > 0 else []
        waiting = len(queue.ready or ()) + queue.in_inbox
        if waiting:
            counts.append(f"{waiting:,} queued")
        if queue.away:
            counts.append(f"{queue.away:,} waiting without a worker")
        lines = [*self._delays(queue), *self._collected(queue)]
        for group in self._alike(workers):
            lines += group
        if not (counts or lines):
            return []
        indented = [f"  {line}" for line in lines]
        return [f"{queue.step.name}: {', '.join(counts)}".rstrip(), *indented]

    def _delays(self, queue: StepQueue) -> Iterator[str]:
        for redelivery in list(queue.delayed or ()):
            yield (
                f"{shown(redelivery.event, 1)} is tried again {until(redelivery.due, self._now)}: "
                f"attempt {redelivery.number}"
            )

    def _collected(self, queue: StepQueue) -> Iterator[str]:
        """Describe the events that wait in a join until its set is complete."""
        nodes = {id(n): n for w in self._workers if w.node is not None for n in w.node.upward()}
        for node in nodes.values():
            events = node.collected.get(queue.index)
            if events is not None:
                yield f"join: {len(events):,} have arrived, {node.live:,} are still under way"
        if queue.pair_join is not None and (lacks := queue.pair_join.missing()):
            yield f"lacks {', '.join(lacks)}"
        for name, buffer in list((queue.buffers or {}).items()):
            lacks = [f"{number} x {name_of(kind)}" for kind, number in buffer.missing()]
            if lacks and buffer.is_waiting:
                yield f"collects in {shown(name)}, and lacks {', '.join(lacks)}"

    def _alike(self, workers: list[Worker]) -> Iterator[list[str]]:
        """Yield the lines of the invocations; those that are at the same place together."""
        groups: dict[tuple[str, ...], list[tuple[Worker, list[str]]]] = {}
        parents = set(self._run.children.values())
        for worker in workers:
            body = _guarded("an invocation", self._body, worker)
            key = tuple(map(_without_times, body))
            if worker.context is not None and worker.context in parents:
                key = (str(id(worker)),)  # the run of a child is shown in any case
            groups.setdefault(key, []).append((worker, body))
        for group in groups.values():
            worker, body = group[0]
            yield [self._head(worker), *(f"  {line}" for line in body)]
            if len(group) > 1:
                yield [f"{len(group) - 1:,} more alike: {self._spread(group)}"]

    def _spread(self, group: list[tuple[Worker, list[str]]]) -> str:
        now = perf_counter()
        times = [now - worker.taken_at for worker, _ in group[1:]]
        events = ", ".join(shown(w.delivered()[0], 1) for w, _ in group[1:4])
        more = ", ..." if len(group) > 4 else ""
        least, most = seconds(min(times)), seconds(max(times))
        return f"{events}{more}, for {least}" + (f" to {most}" if most != least else "")

    def _head(self, worker: Worker) -> str:
        event, attempt = worker.delivered()
        text = f"{shown(event)}, for {seconds(perf_counter() - worker.taken_at)}"
        if attempt > 1:
            text += f", attempt {attempt}"
        step, progress = worker.step, worker.progress
        is_timed = step is not None and not (step.timeout is step.options.idle_timeout is None)
        if is_timed and progress is not None and not worker.is_waiting:
            text += f", its timeout passes {until(progress.due, self._now)}"
        return text

    def _body(self, worker: Worker) -> list[str]:
        """Return what an invocation waits for, where it is, its children and its tasks."""
        frames = self._alive.frames(worker)
        lines = waits_of(worker, frames, self._alive)
        thread = _thread_of(frames)
        if thread is not None:
            stack = self._alive.stacks.of_thread(thread)
            lines += ["in a thread:", *(f"  {line}" for line in _places(_in_step(stack)))]
        if self._alive.stacks.is_running(frames):
            lines.append("runs now, and nothing else in its event loop does:")
        lines += _places(frames)
        for child in list(self._children_of(worker)):
            lines += _guarded("a child", _lines_of, self._alive, child)
        for name, inner in _tasks_of(worker, self._alive):
            lines += [f"task {name}:", *(f"  {line}" for line in _places(inner))]
        return lines

    def _children_of(self, worker: Worker) -> Iterator[Run]:
        for child, context in list(self._run.children.items()):
            if context is worker.context:
                yield child


def _where(run: Run) -> str:
    """Return the event loop of a run, and its thread."""
    assert run.backend is not None
    # threading.enumerate() would take a lock, which the interrupted code may hold.
    threads: dict[int, threading.Thread] = getattr(threading, "_active", {})
    thread = threads.get(run.thread)
    return f"on {run.backend.name} in the thread {run.thread if thread is None else thread.name}"


def _without_times(line: str) -> str:
    """Return a line without the numbers in which invocations at the same place differ."""
    return "".join(character for character in line if not character.isdigit())


# -- places


def _places(frames: list[FrameType]) -> list[str]:
    """Return the lines of the user's code, and the function of a library that the last one awaits."""
    theirs = user_frames(frames)
    lines = [f"... {len(theirs) - FRAMES} calls"] if len(theirs) > FRAMES else []
    for frame in theirs[-FRAMES:]:
        code = line_of(frame)
        lines.append(f"at {place_of(frame)}{f':  {code}' if code else ''}")
    inner = _first_inside(frames, theirs)
    if inner is not None:
        package = inner.f_globals.get("__name__", "").partition(".")[0]
        lines.append(f"in {package}: {function_of(inner)}")
    return lines


def _first_inside(frames: list[FrameType], theirs: list[FrameType]) -> FrameType | None:
    """Return the frame of an event loop, or of the engine, that the last frame of the user has called."""
    if not theirs or theirs[-1] is frames[-1]:
        return None
    return frames[frames.index(theirs[-1]) + 1]


def _thread_of(frames: list[FrameType]) -> int | None:
    """Return the thread in which a ``def`` step runs, if the frames wait for one."""
    for frame in frames:
        if is_ours(frame):
            name = function_of(frame)
            if name == "ThreadStep.call":
                return getattr(frame.f_locals.get("call"), "thread", None)
            if name == "_Call._await":  # the thread itself waits for this, in the event loop
                return getattr(frame.f_locals.get("self"), "thread", None)
    return None


def _in_step(stack: list[FrameType]) -> list[FrameType]:
    """Return the part of a thread's stack that belongs to its step."""
    for place, frame in enumerate(stack):
        if is_ours(frame) and function_of(frame) == "_Call._call":
            return stack[place:]
    return stack


# -- tasks


#: The engine's functions that only call a function of the program.
_WRAPPING = ("main", "scoped")


def _program(frames: list[FrameType]) -> list[FrameType]:
    """Return the frames of a task of the program, up to its first call of the engine; none of a task of the engine."""
    others = machinery()[1:]
    found: list[FrameType] = []
    has_begun = False
    for frame in frames:
        if is_ours(frame) and function_of(frame) not in _WRAPPING:
            return [*found, frame] if has_begun else []
        found.append(frame)
        has_begun |= not (is_ours(frame) or frame.f_code.co_filename.startswith(others))
    return found if has_begun else []


def _tasks_of(worker: Worker, alive: Alive) -> Iterator[tuple[str, list[FrameType]]]:
    """Yield the name and the frames of each task that a step has started."""
    backend = worker.run.backend
    assert backend is not None
    for task in alive.tasks(worker.run, worker):
        frames = _program(alive.stacks.of_coroutine(backend.coroutine_of(task)))
        if frames and task is not worker.task:
            yield backend.task_name(task), frames


def _others(alive: Alive, runs: Iterable[Run]) -> list[str]:
    """Describe the tasks of the event loops that belong to no step: owners, readers, servers."""
    lines: list[str] = []
    loops = {id(run.loop): run for run in runs if run.host is not None}
    for run in loops.values():
        found = _guarded("the other tasks", _outside, alive, run)
        if found:
            lines += ["", f"other tasks {_where(run)}:", *(f"  {line}" for line in found)]
    return lines


def _outside(alive: Alive, run: Run) -> list[str]:
    backend = run.backend
    assert backend is not None
    seen: dict[tuple[str, ...], int] = {}
    names: dict[tuple[str, ...], str] = {}
    for task in alive.tasks(run, None):
        frames = _program(alive.stacks.of_coroutine(backend.coroutine_of(task)))
        if not frames:
            continue
        key = tuple(_places(frames))
        seen[key] = seen.get(key, 0) + 1
        names.setdefault(key, backend.task_name(task))
    lines: list[str] = []
    for key, number in seen.items():
        more = f", and {number - 1:,} more at the same place" if number > 1 else ""
        lines += [f"{names[key]}{more}:", *(f"  {line}" for line in key)]
    return lines
