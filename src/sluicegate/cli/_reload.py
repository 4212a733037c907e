"""Starting a program again when its source changes, in the same process and on the same socket."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sluicegate._loop import current_backend
from sluicegate.cli._output import note


if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable


#: Seconds between two looks at the files.
_INTERVAL = 0.25


class SourceFiles:
    """The files of the program: all modules that are imported, without installed packages.

    Args:
        more: Further files, which need not be imported.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._more = {str(Path(path).resolve()) for path in more}
        self._installed = tuple(
            {sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")}
        )
        self._seen: dict[str, int] = {}
        self.changed()

    def changed(self) -> str | None:
        """Return a file that has changed since the last call, if there is one."""
        found = None
        for path in self._paths():
            try:
                time_of_change = Path(path).stat().st_mtime_ns
            except OSError:
                time_of_change = 0
            if self._seen.setdefault(path, time_of_change) != time_of_change:
                self._seen[path] = time_of_change
                found = path
        return found

    def _paths(self) -> set[str]:
        modules = tuple(sys.modules.values())
        files = {getattr(module, "__file__", None) or "" for module in modules}
        return self._more | {
            file for file in files if file.endswith(".py") and not file.startswith(self._installed)
        }

    async def wait(self) -> None:
        """Wait until a file changes, and say so. A checkpoint."""
        backend = current_backend()
        while (path := self.changed()) is None:
            await backend.sleep(_INTERVAL)
        _tell(path)

    def wait_blocking(self) -> None:
        """Wait until a file changes, and say so; blocks the thread."""
        while (path := self.changed()) is None:
            time.sleep(_INTERVAL)
        _tell(path)


def _tell(path: str) -> None:
    note(f"{Path(path).name} has changed; starting again")


def files_of(error: BaseException) -> set[str]:
    """Return the files in which an exception, or one that caused it, was raised."""
    found: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        found.update(frame.filename for frame in traceback.extract_tb(cause.__traceback__))
        if isinstance(cause, SyntaxError) and cause.filename is not None:
            found.add(cause.filename)
        cause = cause.__cause__ or cause.__context__
    return {file for file in found if file.endswith(".py")}


def start_again(listener: socket.socket) -> NoReturn:
    """Replace the program in this process by a new start of it, which listens on the same socket."""
    listener.set_inheritable(True)
    arguments = sys.orig_argv[1:]
    if arguments[-2:-1] == ["--fd"]:  # from the last time
        del arguments[-2:]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments, "--fd", str(listener.fileno())])  # noqa: S606
