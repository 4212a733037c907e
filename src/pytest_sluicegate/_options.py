"""Turns a mark and the command line into the arguments of ``sweep()`` and ``fuzz()``."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def refuse(message: str) -> NoReturn:
    """Fail the current test with a message and without a traceback."""
    pytest.fail(message, pytrace=False)


def read_seeds(config: pytest.Config) -> Iterable[int] | None:
    """Return the seeds of ``--sweep-seed``, or None.

    Raises:
        pytest.UsageError: The value is neither a seed nor a range of seeds.
    """
    text: str | None = config.getoption("sweep_seed")
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        msg = (
            f"--sweep-seed got {text!r}; expected one seed, --sweep-seed 7, or an inclusive range, "
            "--sweep-seed 100-299"
        )
        raise pytest.UsageError(msg)
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def read_limit(config: pytest.Config) -> int | None:
    """Return the number of ``--sweep-limit``, or None.

    Raises:
        pytest.UsageError: The value is not a number above 0.
    """
    text: str | None = config.getoption("sweep_limit")
    if text is None:
        return None
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        msg = f"--sweep-limit got {text!r}; expected a number above 0: --sweep-limit 200"
        raise pytest.UsageError(msg)
    return int(text)


def options_for(item: pytest.Function, mark: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the keyword arguments for ``sweep`` or ``fuzz``.

    For each option the mark nearest to the test takes precedence, and the command line overrides
    all marks. The fixture ``anyio_backend`` decides the backend if no mark has ``backends=``.

    Raises:
        pytest.fail.Exception: A mark has an option that the function does not have, or a
            positional argument.
    """
    known = inspect.signature(function).parameters
    names = [name for name, it in known.items() if it.kind is inspect.Parameter.KEYWORD_ONLY]
    options: dict[str, Any] = {}
    for found in reversed(list(item.iter_markers(mark))):
        _check_mark(item, found, names)
        options.update(found.kwargs)
    if "backends" not in options and "anyio_backend" in item.funcargs:
        options["backends"] = _backend_of(item.funcargs["anyio_backend"])
    _apply_command_line(item.config, options, known)
    return options


def _check_mark(item: pytest.Function, mark: pytest.Mark, names: list[str]) -> None:
    if mark.args:
        refuse(
            f"{item.nodeid} has a mark {mark.name} with the positional argument "
            f"{_tell(mark.args[0])}; expected keywords of {', '.join(names)}: @pytest.mark.{mark.name}(backends='trio')"
        )
    for name in mark.kwargs:
        if name not in names:
            near = (difflib.get_close_matches(name, names, 1) or names)[0]
            corrected = {near if key == name else key: it for key, it in mark.kwargs.items()}
            arguments = ", ".join(f"{key}={_tell(it)}" for key, it in corrected.items())
            refuse(
                f"{item.nodeid} has a mark {mark.name} with the unknown option {name!r}; "
                f"expected one of {', '.join(names)}: @pytest.mark.{mark.name}({arguments})"
            )


def _tell(value: object) -> str:
    return getattr(value, "__name__", None) or repr(value)


def _backend_of(backend: Any) -> str:
    name: Any = backend
    options: dict[str, Any] = {}
    if isinstance(backend, tuple):
        name, options = cast("Any", backend)
    if options.get("use_uvloop") or "loop_factory" in options:
        pytest.skip(
            "a sweep has its own event loop with virtual time, and this anyio_backend requests "
            "another one; give the mark backends='asyncio' to sweep on asyncio anyway"
        )
    return str(name)


def _apply_command_line(config: pytest.Config, options: dict[str, Any], known: Any) -> None:
    at: str | None = config.getoption("sweep_at")
    seeds = read_seeds(config)
    limit = read_limit(config)
    if at is not None:
        options["at"] = int(at) if at.isdecimal() else at
    if seeds is not None:
        options["seeds"] = seeds
    if config.getoption("sweep_keep_going"):
        options["keep_going"] = True
    if limit is None:
        return
    if "limit" in known:
        options["limit"] = limit
    else:
        wanted = options.get("seeds", known["seeds"].default)
        if isinstance(wanted, int):
            options["seeds"] = min(wanted, limit)
        else:
            options["seeds"] = list(itertools.islice(cast("Iterable[int]", wanted), limit))
