"""The input of a run: the start event, made from the command line and checked by field."""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sluicegate._annotations import hints_by_keyword, text_of
from sluicegate._data.from_outside import accepts, decode_event
from sluicegate.cli._targets import UsageError


if TYPE_CHECKING:
    import argparse

    from sluicegate._events import Event, StartEvent


def start_event(kind: type[StartEvent], arguments: argparse.Namespace) -> StartEvent:
    """Make the start event from the command line; always an object of class ``kind``.

    Raises:
        UsageError: The input is not a JSON object, or does not fit the fields of ``kind``.
    """
    if arguments.pairs is not None:
        data = _from_pairs(kind, arguments.pairs)
    elif arguments.input is not None:
        data = json_object(arguments.input, "--input")
    elif arguments.input_file is not None:
        data = json_object(_read(arguments.input_file), arguments.input_file)
    else:
        data = {}
    try:
        return decode_event(kind, data)
    except TypeError as error:
        raise UsageError(str(error)) from error


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in ``text``.

    Raises:
        UsageError: There is none.
    """
    data = _decode(text, where, f"{where} is not JSON")
    if not isinstance(data, dict):
        msg = f'{where} is not a JSON object; expected {{"field": value, ...}}'
        raise UsageError(msg)
    return typing.cast("dict[str, Any]", data)


def _read(name: str) -> bytes:
    try:
        if name != "-":
            raw = Path(name).read_bytes()
        elif hasattr(sys.stdin, "buffer"):
            raw = sys.stdin.buffer.read()
        else:  # a stream that a program has put in its place
            return sys.stdin.read().encode()
    except OSError as error:
        msg = f"cannot read {name}: {error.strerror or error}"
        raise UsageError(msg) from error
    try:
        return raw.decode("utf-8-sig").encode()
    except UnicodeDecodeError as error:
        where = "standard input" if name == "-" else name
        msg = f"{where} is not UTF-8 ({error}); expected JSON saved as UTF-8"
        raise UsageError(msg) from error


def field_types(kind: type[Event]) -> dict[str, Any]:
    """Return the declared fields of an event class with their types."""
    try:
        return hints_by_keyword(kind)
    except TypeError as error:
        raise UsageError(str(error)) from error


def _from_pairs(kind: type[Event], pairs: list[str]) -> dict[str, Any]:
    types = field_types(kind)
    data: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            msg = f"-i {pair} gives no field a value; expected -i key=value"
            raise UsageError(msg)
        if key in data:
            msg = f"-i {key}=... is given twice; expected one value, or a list as JSON"
            raise UsageError(msg)
        data[key] = _read_value(key, text, types.get(key, str))
    return data


def _read_value(key: str, text: str, hint: Any) -> Any:
    """Return a value as it was typed, or decoded from JSON if the field takes no string."""
    if accepts(hint, text):
        return text
    return _decode(text, f"-i {key}=...", f"-i {key}={text} is neither {text_of(hint)} nor JSON")


def _decode(text: str | bytes, where: str, otherwise: str) -> Any:
    """Decode JSON; ``otherwise`` begins the message if ``text`` is not JSON."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        msg = f"{where} is nested too deeply to be read"
        raise UsageError(msg) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        msg = f"{otherwise}: {error}"
        raise UsageError(msg) from error
