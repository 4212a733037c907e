"""Recording: keep the records of runs in memory or in a file, and ask what happened and why."""

from __future__ import annotations

from sluicegate.recording._causes import Node
from sluicegate.recording._drawing import (
    draw_most_recent_execution,
    draw_most_recent_execution_mermaid,
    graph_of_execution,
)
from sluicegate.recording._errors import DescribedError, RecordedError
from sluicegate.recording._format import recording_schema
from sluicegate.recording._model import (
    CancelledInvocation,
    RecordedCancellation,
    RecordedEdit,
    RecordedEvent,
    RecordedInvocation,
    RecordedQuestion,
    RecordedResource,
    RecordedRun,
    RecordedStreamEvent,
    RecordedWait,
)
from sluicegate.recording._path import CriticalPath, PathPart
from sluicegate.recording._recorder import Recorder
from sluicegate.recording._recording import Recording, load_recording


__all__ = [
    "CancelledInvocation",
    "CriticalPath",
    "DescribedError",
    "Node",
    "PathPart",
    "RecordedCancellation",
    "RecordedEdit",
    "RecordedError",
    "RecordedEvent",
    "RecordedInvocation",
    "RecordedQuestion",
    "RecordedResource",
    "RecordedRun",
    "RecordedStreamEvent",
    "RecordedWait",
    "Recorder",
    "Recording",
    "draw_most_recent_execution",
    "draw_most_recent_execution_mermaid",
    "graph_of_execution",
    "load_recording",
    "recording_schema",
]
