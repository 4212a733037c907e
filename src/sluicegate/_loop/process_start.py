"""Starting a worker process, and the surroundings that it inherits from its parent."""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._loop import process_worker as protocol


if TYPE_CHECKING:
    import socket


#: The script that a worker process runs.
SCRIPT = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_engine", "process_main.py")  # noqa: PTH118, PTH120


def launch(connection: socket.socket) -> subprocess.Popen[bytes]:
    """Start a worker process with its end of a connection. Blocks.

    Raises:
        OSError: The system did not start it.
    """
    # Above 2, even if this process has closed one of the standard descriptors.
    descriptor = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return subprocess.Popen(  # noqa: S603 - ourselves
            # -P: do not import from the directory of the script.
            [sys.executable, *_flags(), "-P", SCRIPT, str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=2 if _is_open(2) else subprocess.DEVNULL,
            pass_fds=(descriptor,),
            process_group=0,
        )
    finally:
        os.close(descriptor)


def first_words(surroundings: protocol.Surroundings) -> bytes:
    """Return the data that a worker process reads first."""
    beginning = protocol.Beginning(main_module(), list(sys.argv), _levels())
    return pickle.dumps(surroundings.path) + pickle.dumps((beginning, surroundings))


def current_surroundings() -> protocol.Surroundings:
    """Return the directory, import path and environment that the steps of this process get."""
    try:
        directory = os.getcwd()  # noqa: PTH109 - a name to pass on
    except OSError:  # it was removed
        directory = None
    path = tuple(place or directory or "" for place in sys.path)
    return protocol.Surroundings(directory, path, dict(os.environ))


def main_module() -> tuple[str, str] | None:
    """Return how a worker can import the user's main module, or None if it cannot."""
    module = sys.modules.get("__main__")
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return "module", spec.name
    path = getattr(module, "__file__", None)
    if path is None or not os.path.isfile(path):  # noqa: PTH113 - on stdin, typed, in an archive
        return None
    return "path", os.path.abspath(path)  # noqa: PTH100


def check_startable() -> None:
    """Check that a worker process can be started here.

    Raises:
        WorkflowRuntimeError: It cannot; the message says what to change.
    """
    if protocol.is_importing_main:
        msg = (
            "a worker process was asked to start others while it imports the program's main file; "
            'expected the program\'s own code below `if __name__ == "__main__":`'
        )
        raise WorkflowRuntimeError(msg)
    if getattr(sys, "frozen", False) or not sys.executable:
        msg = (
            "a step in a process needs a Python interpreter to start, and a frozen program has "
            "none; expected `@step` without in_process"
        )
        raise WorkflowRuntimeError(msg)


def _flags() -> list[str]:
    private: Any = subprocess  # as multiprocessing does it
    flags: list[str] = private._args_from_interpreter_flags()
    return flags


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _levels() -> dict[str, int]:
    logging = sys.modules.get("logging")
    if logging is None:
        return {}
    known: dict[str, Any] = logging.Logger.manager.loggerDict
    levels = {name: level for name, one in [*known.items()] if (level := getattr(one, "level", 0))}
    return {"": logging.getLogger().level, **levels}
