"""Configuration: a part of a JSON or TOML file, as an object of a given type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from sluicegate._annotations import text_of
from sluicegate._errors import brief
from sluicegate._exceptions import add_note


def read_file(path: Path) -> Any:
    """Read a JSON or TOML file. Not a checkpoint, and without a thread: such files are small.

    Raises:
        OSError: It cannot be read; a note names the working directory.
        ValueError: It is not valid.
    """
    import json  # noqa: PLC0415 - only workflows with a configuration need them
    import tomllib  # noqa: PLC0415

    try:
        raw = path.read_bytes()
    except OSError as error:
        add_note(
            error,
            f"while {path} was read for a ResourceConfig; relative paths are relative to the "
            f"working directory, {Path.cwd()}",
        )
        raise
    try:
        data = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 ({error}); expected the file saved as UTF-8"
        raise ValueError(msg) from error
    try:
        return tomllib.loads(data) if path.suffix == ".toml" else json.loads(data)
    except RecursionError:
        msg = f"{path} is nested too deeply to be read"
        raise ValueError(msg) from None
    except ValueError as error:
        msg = f"{path} is not valid {path.suffix[1:].upper()}: {error}"
        raise ValueError(msg) from error


def read_part(name: str, selector: str | None, kind: Any, document: Any) -> Any:
    """Make an object of type ``kind`` from a part of a document.

    Args:
        name: The name of the part in messages.
        selector: The path of the part, with dots, or None for the whole document.
        kind: Any type that data from outside can be converted to, as for an event's field.
        document: The data that was read.

    Raises:
        ValueError: There is no such part, or it does not fit; the message names part and field.
    """
    # Not at start-up: only workflows with a configuration need it.
    from sluicegate._data.from_outside import decode_value  # noqa: PLC0415
    from sluicegate._data.refusals import DecodingError  # noqa: PLC0415

    value = document
    walked: list[str] = []
    for part in selector.split(".") if selector else ():
        found = _pick(value, part)
        if not found:
            there = f"at {'.'.join(walked)!r}" if walked else "at its top level"
            msg = f"{name} does not exist: there is no {part!r} {there}; expected {_choices(value)}"
            raise ValueError(msg)
        (value,) = found
        walked.append(part)
    try:
        return decode_value(kind, value)
    except DecodingError as error:
        msg = f"{name} does not fit {text_of(kind)}: {_described(error, walked)}"
        raise ValueError(msg) from error


def _pick(value: Any, part: str) -> list[Any]:
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        return [table[part]] if part in table else []
    if isinstance(value, list) and part.isdecimal():
        return cast("list[Any]", value)[int(part) :][:1]
    return []


def _choices(value: Any) -> str:
    if isinstance(value, dict):
        names = cast("dict[str, Any]", value)
        return f"one of {', '.join(map(repr, names))}" if names else "a table that is not empty"
    if isinstance(value, list):
        return f"a number below {len(cast('list[Any]', value))}"
    return f"a shorter selector, because the value there is {brief(value)}"


def _described(error: Exception, walked: list[str]) -> str:
    """Return the text of an error, with the position in the file instead of that in the part."""
    start = ".".join(walked)
    text = re.sub(r"`\$(\.?)", lambda m: f"`{start}{m[1] if start else ''}", str(error))
    return text.replace(" - at ``", "")
