"""The report of a failed run: the step, the event, and the user's own lines."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from sluicegate._errors import brief


#: Packages whose frames are not part of the user's program.
_MACHINERY = ("sluicegate", "trio", "anyio", "asyncio", "outcome")


def report(workflow: str, step: str | None, error: BaseException) -> str:
    """Return the report of a failed run as it is printed, with a line break at its end."""
    where = f" in the step {step}" if step is not None else ""
    headline = f"sluicegate: {workflow} failed{where}\n"
    try:
        return headline + "".join(_without_machinery(error).format())
    except Exception:  # noqa: BLE001 - an exception that cannot be formatted is still named
        return f"{headline}{type(error).__name__}: {brief(error)}\n"


def _without_machinery(error: BaseException) -> traceback.TracebackException:
    shown = traceback.TracebackException.from_exception(error, compact=True)
    folders = _folders()
    todo = [shown]
    while todo:
        one = todo.pop()
        kept = [f for f in one.stack if not Path(f.filename).as_posix().startswith(folders)]
        one.stack = traceback.StackSummary.from_list(kept)
        todo += one.exceptions or []
        todo += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
    return shown


def _folders() -> tuple[str, ...]:
    found: list[str] = []
    for name in _MACHINERY:
        # Nothing is imported here: under Trio neither asyncio nor AnyIO is imported.
        module = sys.modules.get(name)
        if module is not None and module.__file__ is not None:
            found.append(f"{Path(module.__file__).parent.as_posix()}/")
    return tuple(found)
