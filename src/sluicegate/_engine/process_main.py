"""The script of a worker process: see sluicegate._loop.process_pool.

It is started with one argument, the descriptor of its socket.
"""

import pickle
import socket
import sys


def main() -> None:
    """Read the import path, then execute the parent's calls."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    with connection.makefile("rb") as file:
        # The parent sends nothing further before this process reports that it is ready.
        sys.path[:] = pickle.load(file)  # noqa: S301 - the parent process made it
        from sluicegate._engine.process_context import make_context  # noqa: PLC0415 - importable only now
        from sluicegate._loop.process_worker import serve  # noqa: PLC0415

        beginning, surroundings = pickle.load(file)  # noqa: S301
    sys.argv[:] = beginning.argv
    serve(connection, beginning, surroundings, make_context)


if __name__ == "__main__":
    main()
