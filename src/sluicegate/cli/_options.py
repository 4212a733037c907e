"""What several commands of the command line share: options, values, and texts of the help."""

from __future__ import annotations

import argparse
from math import inf
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Any]


TARGET = """\
A TARGET is module:name or path/to/file.py:name. It names a Workflow class, a workflow object, or
a function without arguments that returns one. The current directory is on the import path."""

#: Seconds of each unit of a duration.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        msg = f"{text!r} is not a number of seconds above 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def duration(text: str) -> float:
    """Read a duration such as ``30d``, as seconds; a number without a unit is seconds."""
    unit = UNITS.get(text[-1:], 1)
    try:
        value = float(text[:-1] if text[-1:] in UNITS else text) * unit
    except ValueError:
        value = -1.0
    if not 0 <= value < inf:
        msg = f"{text!r} is not a duration; expected 90s, 15m, 12h, 30d or 2w"
        raise argparse.ArgumentTypeError(msg)
    return value


def count(text: str) -> int:
    """Read a whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        msg = f"{text!r} is not a whole number above 0"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def add_command(
    commands: Commands, name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """Add a command to a parser, with its line in the help and its own help."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return command


def add_target(command: argparse.ArgumentParser, **options: Any) -> None:
    """Add the argument that names a workflow."""
    told = options.pop("help", "module:name or path/to/file.py:name")
    command.add_argument("target", metavar="TARGET", help=told, **options)


def add_drawing(command: argparse.ArgumentParser, default: str) -> None:
    """Add the options of a command that draws a timeline."""
    command.add_argument(
        "-o", "--output", metavar="FILE", help=f'default: {default}; "-" is standard output'
    )
    command.add_argument("--text", action="store_true", help="print it as text instead")


def add_running(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that runs one run and shows it."""
    add_backend(command)
    command.add_argument(
        "--watch",
        action="store_true",
        help="show steps, queues, waits and progress while it runs, on standard error",
    )
    command.add_argument(
        "--live",
        action="store_true",
        help="serve the run's timeline on this machine while it runs; the address is on standard error",
    )
    command.add_argument(
        "--events",
        choices=("jsonl", "pretty", "none"),
        help="default: pretty on a terminal, otherwise jsonl",
    )


def add_backend(command: argparse.ArgumentParser) -> None:
    """Add the choice of the event loop."""
    command.add_argument(
        "--backend", choices=("trio", "asyncio"), default="trio", help="default: trio"
    )
