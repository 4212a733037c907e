"""Formats the report of a sweep and the representation of a failed run."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Any, cast

import pytest
from _pytest._code.code import (
    ExceptionChainRepr,
    ReprEntryNative,
    ReprFileLocation,
    ReprTraceback,
)


if TYPE_CHECKING:
    from collections.abc import Callable

    from _pytest._code.code import TerminalRepr


class Witness:
    """A check that describes the outcome of every run, and calls the test's own check.

    It keeps no outcome, because objects that an outcome refers to would not be collected, and their
    warnings would be lost.
    """

    def __init__(self, check: Callable[[Any], Any] | None) -> None:
        self.lines: list[str] = []
        self._check = check

    def __call__(self, outcome: Any) -> Any:
        self.lines += _tell_outcome(outcome)
        return None if self._check is None else self._check(outcome)


def tell_report(report: Any, witness: Witness | None) -> str:
    """Return the text of a report, with a description of each run that was witnessed."""
    lines = [] if report is None else str(report).splitlines()
    return "\n".join(lines + ([] if witness is None else witness.lines))


def _tell_outcome(outcome: Any) -> list[str]:
    if outcome.error is not None:
        came = f"raised {outcome.error!r}"
    else:
        came = "was cancelled" if outcome.cancelled else f"returned {outcome.value!r}"
    lines = [f"run {outcome.at}: {came}, after {outcome.seconds:g} virtual seconds"]
    if outcome.struck:
        lines.append(f"    struck: {outcome.where}")
    held = cast("dict[str, object]", getattr(outcome.state, "__dict__", {}))
    if held:
        state = ", ".join(f"{name}={value!r}" for name, value in held.items())
        lines.append(f"    state: {state}")
    return lines


def represent(
    item: pytest.Function,
    failure: Any,
    represent_error: Callable[[pytest.ExceptionInfo[BaseException]], str | TerminalRepr],
) -> TerminalRepr:
    """Show a failed run: its text, the exception raised in it, and the command to replay it."""
    path, line, _ = item.location
    crash = ReprFileLocation(
        path, (line or 0) + 1, f"{type(failure).__name__}: {failure.at}: {failure.problem}"
    )
    # Here the command at the end replays the run, not the call.
    told = [line for line in str(failure).splitlines() if not line.startswith("  replay ")]
    parts: list[Any] = [(_native("\n".join(told)), crash, None)]
    if failure.__cause__ is not None:
        raised = pytest.ExceptionInfo[BaseException].from_exception(failure.__cause__)
        shown: Any = represent_error(raised)
        if isinstance(shown, ExceptionChainRepr):
            parts += shown.chain
        else:
            parts.append(
                (getattr(shown, "reprtraceback", None) or _native(str(shown)), crash, None)
            )
    parts.append((_native(_command(item, failure.at)), crash, None))
    return ExceptionChainRepr(parts)


def _native(text: str) -> ReprTraceback:
    return ReprTraceback([ReprEntryNative([f"{text}\n"])], None, style="native")


def _command(item: pytest.Function, at: str) -> str:
    path, *names = item.nodeid.split("::")
    config = item.config
    with contextlib.suppress(ValueError):  # Windows has no path from one drive to another.
        path = os.path.relpath(config.rootpath / path, config.invocation_params.dir)
    return f"pytest {shlex.quote('::'.join([path, *names]))} --sweep-at {at}"
