"""The words of a picture: names of events with their fields, and what is said of a step."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate._events import is_open


if TYPE_CHECKING:
    from sluicegate._definition.steps import Step
    from sluicegate._events import Event


@attrs.frozen
class Label:
    """The name of an event, as it stands at an arrow or on a note."""

    text: str
    #: What a pointer that rests on it shows: the fields.
    title: str


def label_of(kind: type[Event], *, many: bool = False) -> Label:
    """Return the label of an event class; ``many`` makes it that of a list."""
    name = f"list[{kind.__name__}]" if many else kind.__name__
    return Label(name, "\n".join((name, *_fields(kind))))


def _fields(kind: type[Event]) -> list[str]:
    lines: list[str] = []
    for field in attrs.fields(kind):
        kind_of_value = "" if field.type is None else f": {type_name(field.type)}"
        default = "" if field.default is attrs.NOTHING else " = ..."
        lines.append(f"  {field.alias}{kind_of_value}{default}")
    if is_open(kind):
        lines.append("  any field")
    return lines


def type_name(hint: Any) -> str:
    """Return a type as it is written, the same in every process."""
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    return without_addresses(text).replace("typing.", "")


def short_name(hint: Any) -> str:
    """Return a type without the module that it is from."""
    return hint.__name__ if isinstance(hint, type) else type_name(hint)


def without_addresses(text: str) -> str:
    """Return ``text`` without the addresses of objects, which are others in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def describe(step: Step) -> str:
    """Return what a step takes and makes, and the first line of its docstring."""
    taken = [kind.__name__ for kind in step.accepts]
    made = [kind.__name__ for kind in step.returns]
    made += [f"list[{kind.__name__}]" for kind in step.fans_out]
    made += ["None"] if step.may_end else []
    shape = {"list": f"list[{' | '.join(taken)}]", "slot": " and ".join(taken)}
    takes = shape.get(step.takes, " | ".join(taken))
    told = f"{step.name}: takes {takes}, makes {' | '.join(made) or 'nothing'}"
    summary = first_line(step.source.__doc__)
    return f"{told}\n{summary}" if summary else told


def first_line(doc: str | None) -> str:
    """Return the first line of a docstring, or nothing."""
    return inspect.cleandoc(doc).partition("\n")[0] if doc else ""
