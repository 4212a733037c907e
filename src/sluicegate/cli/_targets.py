"""Targets: the workflow that ``module:name`` or ``file.py:name`` names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from sluicegate._definition.graph import graph_of
from sluicegate._errors import WorkflowValidationError
from sluicegate._workflow import Workflow


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


AnyWorkflow: TypeAlias = Workflow[Any]


class UsageError(Exception):
    """Raised when the command or its input is wrong; the text is printed as one line."""


def load(target: str) -> Any:
    """Import the object that ``module:name`` or ``path/to/file.py:name`` names.

    Raises:
        UsageError: It cannot be found or imported.
    """
    place, colon, name = target.rpartition(":")
    if not (colon and place and name):
        msg = f"the target {target!r} does not name a workflow; expected {_named(target)}"
        raise UsageError(msg)
    found: Any = _import(place)
    module = found
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            msg = f"{place} has no {name!r}; expected {_candidates(module)}"
            raise UsageError(msg) from None
    return found


def _named(target: str) -> str:
    """Return the targets that may be meant by a file without a name."""
    place = target.rstrip(":")
    if place.endswith(".py") and Path(place).is_file():
        names = _names_in(_import(place))
        if names:
            return f"one of its workflows: {', '.join(f'{place}:{name}' for name in names)}"
    return "module:Name or file.py:Name"


def workflows_in(place: str) -> list[tuple[type[AnyWorkflow], bool]]:
    """Return the workflow classes of a file or module, and whether an object of them was built.

    They are the classes that it defines, in their order, and those of the objects in it. Classes
    that it imports from elsewhere are left out.

    Raises:
        UsageError: It cannot be imported, or defines no workflow.
    """
    module = _import(place)
    found: dict[type[AnyWorkflow], bool] = {}
    for value in vars(module).values():
        if is_workflow_class(value) and value.__module__ == module.__name__:
            # A base class without steps is not a complete workflow.
            if graph_of(value).steps or not value.__subclasses__():
                found.setdefault(value, False)
        elif _is_workflow_object(value):
            found[type(value)] = True
    if not found:
        msg = f"{place} defines no workflow; expected a class derived from Workflow in it"
        raise UsageError(msg)
    return list(found.items())


def _import(place: str) -> ModuleType:
    try:
        if place.endswith(".py") or os.sep in place or "/" in place:
            return _import_file(Path(place))
        return importlib.import_module(place)
    except (UsageError, WorkflowValidationError):
        raise
    except SystemExit as error:
        msg = f"cannot import {place}: it exits; expected `if __name__ == '__main__':` before it"
        raise UsageError(msg) from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in _parents(place):
            msg = f"there is no module {error.name!r} to import {place} from"
            raise UsageError(msg) from None
        msg = f"cannot import {place}: {type(error).__name__}: {error}{_where(error)}"
        raise UsageError(msg) from error


def _parents(place: str) -> set[str]:
    parts = place.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def _where(error: Exception) -> str:
    """Return the last line of the user's code in the traceback of an import."""
    if isinstance(error, SyntaxError):
        return ""  # its text has the line
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""


def _import_file(path: Path) -> ModuleType:
    """Import a file the way ``python file.py`` would: its directory is on the import path."""
    if not path.is_file():
        msg = f"there is no file {str(path)!r}"
        raise UsageError(msg)
    path = path.resolve()
    name = path.stem
    if name in sys.modules:
        if getattr(sys.modules[name], "__file__", None) == str(path):
            return sys.modules[name]
        name = f"_sluicegate_target_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{path.name!r} is not a Python file"
        raise UsageError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:  # a module that failed to import must not look imported
        del sys.modules[name]
        raise
    return module


def _names_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Workflow) or (is_workflow_class(value) and value is not Workflow)
    ]


def _candidates(module: ModuleType) -> str:
    names = _names_in(module)
    return f"one of its workflows: {', '.join(names)}" if names else "the name of a workflow"


def is_workflow_class(found: object) -> TypeGuard[type[AnyWorkflow]]:
    """Whether a target is a workflow class."""
    return isinstance(found, type) and issubclass(found, Workflow)


def _is_workflow_object(found: object) -> TypeGuard[AnyWorkflow]:
    return isinstance(found, Workflow)


def workflow_at(target: str, timeout: float | None = None) -> AnyWorkflow:
    """Import what a target names, and return its workflow.

    Raises:
        UsageError: As for :func:`load` and :func:`build`.
        WorkflowValidationError: The workflow has faults.
    """
    return build(target, load(target), timeout)


def build(target: str, found: Any, timeout: float | None = None) -> AnyWorkflow:
    """Return the workflow of a target: built from the class or function, or the object itself.

    Raises:
        UsageError: It is not a workflow, needs arguments, or does not take the timeout.
        WorkflowValidationError: The workflow has faults.
    """
    if isinstance(found, Workflow):
        if timeout is not None:
            msg = (
                f"--timeout comes too late for {target}, which is already built; expected its "
                "class as target, or the timeout in its constructor"
            )
            raise UsageError(msg)
        return found  # pyright: ignore[reportUnknownVariableType] - of whatever result
    if not callable(found):
        msg = (
            f"{target} is {_shown(found)}; expected a Workflow class, a workflow object, or a "
            "function that returns one"
        )
        raise UsageError(msg)
    options = _options(target, found, timeout)
    try:
        made = found(**options)
    except WorkflowValidationError:
        raise
    except Exception as error:
        msg = f"{target} cannot be built: {type(error).__name__}: {error}{_where(error)}"
        raise UsageError(msg) from error
    if not isinstance(made, Workflow):
        if inspect.iscoroutine(made):
            made.close()
        msg = f"{target} returned {_shown(made)}; expected it to return a workflow"
        raise UsageError(msg)
    return made  # pyright: ignore[reportUnknownVariableType]


def _options(target: str, maker: Callable[..., Any], timeout: float | None) -> dict[str, Any]:
    """Return the keyword arguments for a class or a function: the timeout, if there is one."""
    try:
        parameters = [*inspect.signature(maker).parameters.values()]
    except (TypeError, ValueError):
        parameters = []
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        msg = (
            f"{target} needs {', '.join(needed)} to be built; expected a function without "
            "arguments that builds it"
        )
        raise UsageError(msg)
    if timeout is None:
        return {}
    takes_it = any(
        p.kind is p.VAR_KEYWORD or (p.name == "timeout" and p.kind is not p.POSITIONAL_ONLY)
        for p in parameters
    )
    if not takes_it:
        msg = (
            f"--timeout cannot be given to {target}, which takes no timeout; expected "
            "`timeout=None` among its parameters, passed on to Workflow"
        )
        raise UsageError(msg)
    return {"timeout": timeout}


def _shown(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 80 else f"{text[:77]}..."
