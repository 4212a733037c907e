"""``sluicegate run --watch``: shows what a run does while it runs.

The observer only puts the records into a queue. A thread takes them out, keeps what they tell, and
draws. So drawing delays no step, and the tree stays alive while a step blocks the event loop.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, Self, final

from sluicegate._engine.dump import text_of_runs
from sluicegate._observers import Observer
from sluicegate.cli._questions import is_terminal
from sluicegate.cli._watch_lines import Lines
from sluicegate.cli._watched import WatchedRuns


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from sluicegate.cli._watch_terminal import Region
    from sluicegate.records import Record


#: Seconds between two frames of the tree.
FRAME = 0.1


class View(Protocol):
    """What shows the records: a tree or lines."""

    def take(self, run_id: str, record: Record) -> None:
        """Take note of a record."""
        ...

    def refresh(self) -> None:
        """Draw anew what depends on the time."""
        ...

    def close(self) -> None:
        """Show the end."""
        ...


@final
class Watcher(Observer):
    """Puts the records of all runs into a queue."""

    def __init__(self) -> None:
        self.records: SimpleQueue[tuple[str, Record] | None] = SimpleQueue()

    def listen(self, run: Any) -> Callable[[Record], object]:
        """Return what takes the records of a run."""
        put, run_id = self.records.put, run.run_id

        def take(record: Record) -> None:
            put((run_id, record))

        return take


@final
class Tree:
    """Draws the tree in a region of the terminal."""

    def __init__(self, watched: WatchedRuns, region: Region) -> None:
        self._watched = watched
        self.region = region

    def take(self, run_id: str, record: Record) -> None:
        """Take note of a record; the next frame shows it."""
        self._watched.take(run_id, record)

    def refresh(self) -> None:
        """Draw a frame."""
        self.region.refresh()

    def close(self) -> None:
        """Draw a last frame, which stays."""
        self.region.__exit__()


@final
class Watch:
    """Shows what a run does, in a thread, while the context is entered.

    Attributes:
        observer: The observer to give to the runs.
    """

    def __init__(self) -> None:
        self.observer = Watcher()
        self._region: Region | None = None
        self._view: View | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._view = self._open_view()
        self._thread = threading.Thread(target=self._show, name="sluicegate watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.observer.records.put(None)
        if self._thread is not None:
            self._thread.join()

    def _open_view(self) -> View:
        out = sys.stderr
        if not is_terminal(out) or os.environ.get("TERM") == "dumb" or os.name == "nt":
            return Lines(out)
        try:
            from sluicegate.cli._watch_terminal import Region  # noqa: PLC0415 - wants rich
            from sluicegate.cli._watch_tree import draw  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "rich":
                raise
            out.write(
                "sluicegate: --watch draws a tree with rich, which is not installed, and prints lines "
                "without it; expected `pip install 'sluicegate[cli]'`\n"
            )
            return Lines(out)
        watched = WatchedRuns()
        self._region = Region(out, lambda height: draw(watched, height))
        self._region.__enter__()
        return Tree(watched, self._region)

    def _show(self) -> None:
        view = self._view
        assert view is not None
        due = 0.0
        while True:
            try:
                item = self.observer.records.get(timeout=max(due - time.monotonic(), 0.001))
            except Empty:
                pass
            else:
                if item is None:
                    break
                view.take(*item)
            if time.monotonic() >= due:
                view.refresh()
                due = time.monotonic() + FRAME
        view.close()

    # -- what else uses the terminal

    def hide(self) -> None:
        """Take the tree away, because the terminal is wanted for a question."""
        if self._region is not None:
            self._region.hide()

    def show(self) -> None:
        """Draw the tree again, after :meth:`hide`."""
        if self._region is not None:
            self._region.show()

    def dump(self, frame: FrameType | None) -> str:
        """Print a dump above the tree; return nothing more to print. Without a tree, return the dump."""
        text = text_of_runs(frame)
        if self._region is None:
            return text
        self._region.interrupt(text)
        return ""
