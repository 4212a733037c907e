"""The grammar of ``sluicegate serve``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sluicegate.cli._options import TARGET, add_backend, add_command, count
from sluicegate.cli._runs_parser import STORE, add_grace, add_release_idle, add_store_options


if TYPE_CHECKING:
    from sluicegate.cli._options import Commands


_SERVE = f"""\
Serve workflows over HTTP, with a page at / that starts, watches and answers runs. The address is printed on
standard error.

{TARGET}
A workflow is served under its own name, or under the name before "=": essay=flows.py:Essay.

SIGTERM, SIGINT or SIGHUP drains: the server refuses new runs, tells its streams, and gives the current runs --grace seconds
to end. Then it cancels them, or leaves them in the store for the next start. A second signal ends the drain.

With --store, runs survive the server: those that it owned continue when it starts again.
{STORE}

Requests for another host name than localhost need --allow-host. Without --token-env anyone who reaches the address
may start runs.

example:
  sluicegate serve flows.py:Essay order=flows.py:Order --store sqlite:///runs.db
  curl -N -H 'Accept: text/event-stream' localhost:8000/workflows/Essay/run -d '{{"start_event": {{"topic": "locks"}}}}'

exit codes:
  0 drained   2 wrong usage, or the address or the store cannot be used
  130, 143 or 129: ended by the signal before all runs had ended
"""


def add_serve(commands: Commands) -> None:
    """Add ``sluicegate serve``."""
    serve = add_command(commands, "serve", "serve workflows over HTTP", _SERVE)
    serve.add_argument(
        "targets",
        metavar="TARGET",
        nargs="+",
        help="module:name or path/to/file.py:name, or name=TARGET; several can be given",
    )
    where = serve.add_argument_group("where it listens")
    where.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="default: 127.0.0.1, this machine only",
    )
    where.add_argument(
        "--port", metavar="N", type=_port, default=8000, help="default: 8000; 0 is a free one"
    )
    where.add_argument(
        "--fd", metavar="N", type=count, help="an open socket instead of a host and a port"
    )
    who = serve.add_argument_group("who may ask, and what")
    who.add_argument(
        "--token-env",
        metavar="NAME",
        help="an environment variable with the bearer token that requests must carry",
    )
    who.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a host name of this server besides localhost; can be repeated",
    )
    who.add_argument(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="an origin whose pages may call it, such as https://app.example; can be repeated",
    )
    who.add_argument(
        "--read-only", action="store_true", help="refuse to start, answer and cancel runs"
    )
    who.add_argument("--no-page", action="store_true", help="serve no page at /")
    runs = serve.add_argument_group("runs")
    runs.add_argument(
        "--max-runs", metavar="N", type=count, default=100, help="the most at a time; default: 100"
    )
    runs.add_argument(
        "--on-disconnect",
        choices=("cancel", "continue"),
        default="cancel",
        help="what becomes of a run when the client that waits for it leaves; default: cancel",
    )
    add_grace(runs)
    add_backend(serve)
    serve.add_argument(
        "--reload", action="store_true", help="start again when a file of the program changes"
    )
    store = serve.add_argument_group("store")
    store.add_argument("--store", metavar="URL", help="such as sqlite:///runs.db")
    add_release_idle(store)
    add_store_options(store)


def _port(text: str) -> int:
    """Read a port number."""
    if not (text.isascii() and text.isdigit() and int(text) < 65_536):
        msg = f"{text!r} is not a port; expected a number from 0 to 65535"
        raise argparse.ArgumentTypeError(msg)
    return int(text)
