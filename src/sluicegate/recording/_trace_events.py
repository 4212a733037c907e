"""A recording as Chrome trace events, for https://ui.perfetto.dev and chrome://tracing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._errors import brief


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate.recording._model import (
        RecordedEvent,
        RecordedInvocation,
        RecordedRun,
        RecordedWait,
    )


#: Bars of the trace that are narrower than this, in microseconds, have it as their width: viewers
#: bind an arrow to the bar at its time, and a bar without width has none.
_NARROWEST = 0.01
#: The track of a run's own facts, below those of its steps.
_RUN_TRACK = 1


def trace_events(runs: Iterable[RecordedRun]) -> dict[str, Any]:
    """Return runs as a trace: the object format, with an entry ``traceEvents``."""
    runs = list(runs)
    beginning = min((_wall(run, run.started_at) for run in runs), default=0.0)
    events: list[dict[str, Any]] = []
    for process, run in enumerate(runs, 1):
        events.extend(_Process(run, process, beginning).events())
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"began_at": beginning},
    }


def _wall(run: RecordedRun, at: float) -> float:
    return at + run.wall_offset


class _Process:
    """The trace events of one run, which is a process of the trace."""

    def __init__(self, run: RecordedRun, process: int, beginning: float) -> None:
        self._run = run
        self._process = process
        self._offset = run.wall_offset - beginning
        self._tracks: dict[tuple[str, int], int] = {}
        self._end = run.last_at if run.ended_at is None else run.ended_at

    def events(self) -> Iterator[dict[str, Any]]:
        run = self._run
        self._number_tracks()
        yield from self._names()
        yield self._slice(
            f"run {run.run_id}",
            "run",
            _RUN_TRACK,
            (run.started_at, self._end),
            {"status": run.status, "error": _shown_error(run.error)},
        )
        for invocation in run.invocations:
            yield from self._invocation(invocation)
        for event in run.events:
            yield from self._arrows(event)
        yield from self._instants()
        for cancellation in run.cancellations:
            what = {"reason": cancellation.reason, "scope": cancellation.scope}
            yield self._instant(
                f"cancelled by {cancellation.by}", "cancellation", _RUN_TRACK, cancellation.at, what
            )

    # -- tracks ---------------------------------------------------------------------------------

    def _number_tracks(self) -> None:
        """Number the tracks: of each step in the order of the workflow, its workers in theirs."""
        places = {name: number for number, name in enumerate(self._run.steps)}
        found = {(one.step, one.worker) for one in self._run.invocations if one.worker is not None}
        ordered = sorted(found, key=lambda key: (places.get(key[0], len(places)), *key))
        self._tracks = {key: number for number, key in enumerate(ordered, _RUN_TRACK + 1)}

    def _names(self) -> Iterator[dict[str, Any]]:
        run = self._run
        yield self._meta("process_name", 0, {"name": f"{run.workflow} {run.run_id}"})
        yield self._meta("process_sort_index", 0, {"sort_index": self._process})
        if run.parent is not None:
            label = f"child of {run.parent.step} #{run.parent.number}"
            yield self._meta("process_labels", 0, {"labels": label})
        yield self._meta("thread_name", _RUN_TRACK, {"name": "run"})
        yield self._meta("thread_sort_index", _RUN_TRACK, {"sort_index": 0})
        for (step, worker), track in self._tracks.items():
            yield self._meta("thread_name", track, {"name": f"{step}, worker {worker}"})
            yield self._meta("thread_sort_index", track, {"sort_index": track})

    def _track(self, invocation: RecordedInvocation | None) -> int:
        if invocation is None or invocation.worker is None:
            return _RUN_TRACK
        return self._tracks[invocation.step, invocation.worker]

    # -- events ---------------------------------------------------------------------------------

    def _time(self, at: float) -> float:
        return round((at + self._offset) * 1e6, 3)

    def _event(self, phase: str, name: str, track: int, at: float, **more: Any) -> dict[str, Any]:
        return {
            "ph": phase,
            "name": name,
            "pid": self._process,
            "tid": track,
            "ts": self._time(at),
            **more,
        }

    def _meta(self, name: str, track: int, args: dict[str, Any]) -> dict[str, Any]:
        return {"ph": "M", "name": name, "pid": self._process, "tid": track, "args": args}

    def _slice(
        self, name: str, kind: str, track: int, span: tuple[float, float], args: dict[str, Any]
    ) -> dict[str, Any]:
        start, end = span
        length = max(round(self._time(end) - self._time(start), 3), _NARROWEST)
        return self._event("X", name, track, start, cat=kind, dur=length, args=args)

    def _instant(
        self, name: str, kind: str, track: int, at: float, args: dict[str, Any]
    ) -> dict[str, Any]:
        return self._event("i", name, track, at, cat=kind, s="t", args=args)

    def _span(
        self, name: str, kind: str, key: str, track: int, span: tuple[float, float]
    ) -> Iterator[dict[str, Any]]:
        """Yield the two ends of a span that may overlap others of its track."""
        start, end = span
        # The key is global in the format.
        key = f"{self._process}:{key}"
        yield self._event("b", name, track, start, cat=kind, id=key)
        yield self._event("e", name, track, max(start, end), cat=kind, id=key)

    def _invocation(self, invocation: RecordedInvocation) -> Iterator[dict[str, Any]]:
        number, track = invocation.number, self._track(invocation)
        end = self._end if invocation.ended_at is None else invocation.ended_at
        start = invocation.started_at
        if invocation.queued_at is not None:
            until = end if start is None else start
            if until > invocation.queued_at:
                name = f"queued: {invocation.step}"
                yield from self._span(
                    name, "queue", f"q{number}", track, (invocation.queued_at, until)
                )
        if start is None:
            return
        yield self._slice(invocation.step, "step", track, (start, end), _arguments_of(invocation))
        if invocation.delivered_at is not None:
            yield self._slice(
                "unwinding", "cancellation", track, (invocation.delivered_at, end), {}
            )
        for wait in invocation.waits:
            yield from self._wait(wait, track, end)

    def _wait(self, wait: RecordedWait, track: int, end: float) -> Iterator[dict[str, Any]]:
        until = end if wait.ended_at is None else wait.ended_at
        name = f"waiting for {wait.kind} {wait.subject}".rstrip()
        yield from self._span(name, "wait", f"w{wait.number}", track, (wait.started_at, until))

    def _arrows(self, event: RecordedEvent) -> Iterator[dict[str, Any]]:
        """Yield an arrow from the emission of an event to each place that took it."""
        source = event.source
        if source is None or source.started_at is None:
            return
        taken = [(one, one.started_at) for one in event.consumers if one.started_at is not None]
        taken += [
            (wait.invocation, wait.ended_at)
            for wait in event.waits
            if wait.invocation is not None and wait.ended_at is not None
        ]
        for number, (target, at) in enumerate(taken):
            key = f"{self._process}:{event.number}:{number}"
            track = self._track(source)
            start = {"cat": "event", "id": key, "ts": self._within(source, event.at)}
            yield {**self._event("s", event.event_type, track, event.at), **start}
            stop = {"cat": "event", "id": key, "bp": "e", "ts": self._within(target, at)}
            yield {**self._event("f", event.event_type, self._track(target), at), **stop}

    def _within(self, invocation: RecordedInvocation, at: float) -> float:
        """Return a time within the bar of an invocation: one at its end is not in it."""
        start = self._time(at if invocation.started_at is None else invocation.started_at)
        ended_at = self._end if invocation.ended_at is None else invocation.ended_at
        last = max(self._time(ended_at), start + _NARROWEST) - _NARROWEST / 2
        return round(min(max(self._time(at), start), last), 3)

    def _instants(self) -> Iterator[dict[str, Any]]:
        for streamed in self._run.stream:
            track = self._track(streamed.invocation)
            args = {"sequence": streamed.sequence, "fields": streamed.fields}
            yield self._instant(streamed.event_type, "stream", track, streamed.at, args)
        for question in self._run.questions:
            track = self._track(question.invocation)
            args = {"question": question.id, "fields": question.fields}
            yield self._instant(question.event_type, "question", track, question.asked_at, args)
        for taken in self._run.snapshots:
            yield self._instant("snapshot", "snapshot", _RUN_TRACK, taken.at, {"took": taken.took})


def _arguments_of(invocation: RecordedInvocation) -> dict[str, Any]:
    return {
        "invocation": invocation.number,
        "attempt": invocation.attempt,
        "outcome": invocation.outcome or "running",
        "error": _shown_error(invocation.error),
        "takes": [{"type": one.event_type, "fields": one.fields} for one in invocation.events],
    }


def _shown_error(error: BaseException | None) -> str | None:

    return None if error is None else brief(error)
