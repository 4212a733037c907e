"""CPU steps in worker processes: what goes there, what comes back, what cannot."""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
import traceback
from io import BytesIO
from typing import TYPE_CHECKING, Any

from penstock._backends import BrokenProcessError, current_backend
from penstock._errors import WorkflowRuntimeError


if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    StepFunction = Callable[..., Coroutine[Any, Any, Any]]


def in_process(function: Callable[..., Any]) -> StepFunction:
    """Make the coroutine function by which the engine calls a step in a worker process.

    A checkpoint. Cancelled, it kills the process and waits for its end. Neither the workflow nor
    the context goes along: they are of this process.

    Args:
        function: A static method or a free function, called as ``function(*events)``. It and the
            events are pickled; see :func:`process_faults`.

    Returns:
        The coroutine function, called as ``(workflow, *events)``. It raises what the step raises,
        with a note that holds the traceback; and ``WorkflowRuntimeError`` where an event, the
        result or the exception cannot be pickled, or the process dies.
    """
    name = str(getattr(function, "__qualname__", function)).rpartition("<locals>.")[2]

    @functools.wraps(function)
    async def call_in_process(_workflow: object, /, *events: Any) -> Any:
        try:
            request = pickle.dumps((function, events), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            kinds = ", ".join(type(event).__name__ for event in events)
            msg = (
                f"the process step {name} cannot be given {kinds}, for it cannot be pickled "
                f"({error}); expected fields that pickle takes, such as numbers, text, bytes, "
                "lists and classes of a module"
            )
            raise WorkflowRuntimeError(msg) from error
        try:
            answer = await current_backend().run_in_process(_work, request)
        except BrokenProcessError as error:
            msg = (
                f"the worker process of the step {name} died before it answered ({error}); "
                "expected it to return: look for a crash in native code or too little memory, "
                'and put what a script does below `if __name__ == "__main__":`'
            )
            raise WorkflowRuntimeError(msg) from error
        return _read_answer(name, *answer)

    return call_in_process


class _Unpickler(pickle.Unpickler):
    """Reads what a worker process sends, in which the main module goes by another name."""

    def find_class(self, module: str, name: str, /) -> Any:
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


def _work(request: bytes) -> tuple[str, bytes, str, str]:
    """Call a step, in the worker process.

    Returns:
        What there is: ``"result"``, ``"error"``, or what could not be had: ``"unread"``,
        ``"unsent result"``, ``"unsent error"``; that, pickled; its class; and a text.
    """
    main = sys.modules["__main__"]
    sys.modules.setdefault(main.__name__, main)  # older AnyIO keeps a script by one of its names
    try:
        function, events = pickle.loads(request)  # noqa: S301 - the parent process made it
    except Exception as error:  # noqa: BLE001 - told to the parent
        return "unread", b"", "", repr(error)
    try:
        result = function(*events)
    except Exception as error:  # noqa: BLE001 - told to the parent
        told = "".join(traceback.format_exception(error))
        try:
            answer = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
            pickle.loads(answer)  # noqa: S301 - an exception may refuse only there
        except Exception as why:  # noqa: BLE001 - told to the parent
            return "unsent error", b"", type(error).__name__, f"{why}\n{told}"
        return "error", answer, "", told
    try:
        return "result", pickle.dumps(result, pickle.HIGHEST_PROTOCOL), "", ""
    except Exception as why:  # noqa: BLE001 - told to the parent
        return "unsent result", b"", type(result).__name__, str(why)


def _read_answer(name: str, what: str, answer: bytes, kind: str, told: str) -> Any:
    if what == "result":
        try:
            return _Unpickler(BytesIO(answer)).load()
        except Exception as why:
            msg = (
                f"what the process step {name} returned cannot be unpickled ({why}); expected "
                "fields that pickle takes, and classes at the top of a module"
            )
            raise WorkflowRuntimeError(msg) from why
    if what == "error":
        error: BaseException = _Unpickler(BytesIO(answer)).load()
        error.add_note(f"raised in a worker process by the step {name}:\n{told.rstrip()}")
        try:
            raise error
        finally:
            del error  # or this frame and its exception keep each other alive
    if what == "unread":
        msg = (
            f"the worker process cannot find what the step {name} needs ({told}); expected the "
            "function and the classes of its events at the top of a module that can be imported"
        )
    elif what == "unsent error":
        msg = (
            f"the process step {name} raised {kind}, which cannot be pickled; expected an "
            "exception that passes all arguments of its constructor to super().__init__(). "
            f"In the process: {told.rstrip()}"
        )
    else:
        msg = (
            f"the process step {name} returned {kind}, which cannot be pickled ({told}); expected "
            "fields that pickle takes, such as numbers, text, bytes, lists and classes of a module"
        )
    raise WorkflowRuntimeError(msg)


def process_faults(
    function: Callable[..., Any], accepts: Sequence[type], returns: Sequence[type]
) -> list[str]:
    """Find what keeps a function from being a process step, as far as that is known beforehand.

    Args:
        function: The function itself, not the ``staticmethod`` around it.
        accepts: The event classes that it takes.
        returns: The event classes that it returns.

    Returns:
        The faults, each with its fix. The texts go on from the name of the step.
    """
    faults: list[str] = []
    if inspect.iscoroutinefunction(function):
        faults.append("is async and runs in a process; expected a plain `def`")
    first = next(iter(inspect.signature(function).parameters), "")
    if first in ("self", "cls", "ctx", "context"):
        faults.append(
            f"takes {first!r}, which stays behind when a step runs in a process; expected "
            "`@staticmethod` and the events alone: `def name(ev: SomeEvent) -> OtherEvent`"
        )
    if getattr(function, "__name__", "") == "<lambda>":
        faults.append(
            "is a lambda, which a worker process cannot find; expected "
            "`def name(ev: SomeEvent) -> OtherEvent` at the top of a module"
        )
    else:
        faults += _place_faults(function, "is")
    for kind in dict.fromkeys([*accepts, *returns]):
        faults += _place_faults(kind, f"runs in a process, and its event class {kind.__name__} is")
    return faults


def _place_faults(thing: Any, begin: str) -> Iterator[str]:
    """Say why a worker process would not find a function or a class under its name."""
    path, module_name = thing.__qualname__, thing.__module__
    module = sys.modules.get(module_name)
    if "<locals>" in path:
        yield (
            f"{begin} defined inside a function, where a worker process cannot find it; expected "
            "it at the top of a module"
        )
    elif module_name == "__main__" and not hasattr(module, "__file__"):
        yield (
            f"{begin} defined in an interactive session, which a worker process cannot import; "
            "expected it in a file"
        )
    elif _found(module, path) is not thing:
        yield (
            f"{begin} not what {module_name}.{path} names, so that a worker process would find "
            "something else; expected one definition of that name, at the top of its module"
        )


def _found(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
