"""The exceptions of the package, and how their messages are made.

Each class also derives from the built-in exception that callers already catch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import trio

from sluicegate._exceptions import URGENT, is_a, leaves_of


if TYPE_CHECKING:
    from collections.abc import Iterable


#: How many leaves of a group a text shows.
_SHOWN_LEAVES = 3


class WorkflowError(Exception):
    """The base class of the exceptions that sluicegate raises about a workflow."""


class WorkflowValidationError(WorkflowError, ValueError):
    """Raised when a workflow's steps and events do not fit together. It is also a ``ValueError``.

    Attributes:
        problems: Every fault that was found, each with its fix.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class WorkflowRuntimeError(WorkflowError, RuntimeError):
    """Raised when a run, a context or a handler is used in a way that cannot work.

    It is also a ``RuntimeError``.
    """


class WorkflowStalledError(WorkflowRuntimeError):
    """Raised when a run can never continue: no step runs, no event is pending, no question is open.

    Attributes:
        missing: The events that each join or collection still lacked, and the steps that ended
            their branch with a None that they do not declare.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class QuestionClosedError(WorkflowRuntimeError):
    """Raised when an answer names a question that is no longer open: answered, or withdrawn.

    Attributes:
        question: The id of the question.
    """

    def __init__(self, message: str, question: str = "") -> None:
        super().__init__(message)
        self.question = question


class EventConflictError(WorkflowRuntimeError):
    """Raised when the run has already received an event with the same id and different content.

    Attributes:
        id: The id.
    """

    def __init__(self, message: str, id: str = "") -> None:  # noqa: A002 - as send_event has it
        super().__init__(message)
        self.id = id


class WorkflowTimeoutError(WorkflowRuntimeError, TimeoutError, trio.TooSlowError):
    """Raised when a run has not ended by its timeout.

    It is both the built-in ``TimeoutError`` and ``trio.TooSlowError``.

    Attributes:
        timeout: The run's timeout in seconds.
        active_steps: The names of the steps that were running, one entry per invocation.
    """

    def __init__(
        self, message: str, timeout: float | None = None, active_steps: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.active_steps = active_steps


class WorkflowCancelledError(WorkflowRuntimeError):
    """Raised to callers that await a run that was cancelled.

    Attributes:
        reason: The reason given to ``handler.cancel()``, or the one that the engine has recorded.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class WorkflowDetachedError(WorkflowRuntimeError):
    """Raised on awaiting a durable run that has left this process before its end.

    The run has not ended: it continues from its store, where ``runs.attach(run_id)`` finds it. The
    cause is the error of the store, if there was one: a lost lease, a full disk.

    Attributes:
        run_id: The identifier of the run.
        reason: Why the part of the run in this process has ended.
    """

    def __init__(self, message: str, run_id: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id
        self.reason = reason


class StepTimeoutError(WorkflowTimeoutError):
    """Raised when an invocation of a step has not ended by the step's own timeout."""


class PoisonStepError(WorkflowRuntimeError):
    """Raised instead of running a step again after too many processes have died while it ran.

    It is the failure of that step in a durable run: it is not retried, and a handler of the step's
    failures gets it.

    Attributes:
        crashes: How many processes have died while the step ran with the same event.
    """

    def __init__(self, message: str, crashes: int = 0) -> None:
        super().__init__(message)
        self.crashes = crashes


class SnapshotError(WorkflowRuntimeError):
    """Raised when a value cannot be kept in a snapshot, or a snapshot cannot be read.

    The message names the path to the value.
    """


class RestoredError(Exception):
    """An exception restored from a snapshot or after a crash: its name, its message and its notes.

    Exception classes are not rebuilt, so ``except OSError`` does not catch a restored ``OSError``; ask
    :meth:`was_a`. Cause, context, traceback and own attributes are not kept.

    Attributes:
        type_name: The qualified name of the class that it had.
        message: What ``str()`` of it gave.
        class_names: The names of that class and of its bases, as :meth:`was_a` compares them; empty
            if an older release that did not store them wrote the data.
    """

    def __init__(self, type_name: str, message: str, class_names: Iterable[str] = ()) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message
        self.class_names: tuple[str, ...] = tuple(class_names)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"

    def was_a(self, *classes: type[BaseException]) -> bool:
        """Return whether the exception was an instance of one of these classes, or of a subclass.

        Classes are compared by module and qualified name, so a class that was moved or renamed
        since is not found. A class of ``__main__`` is also found in a module that has one of its name. Without
        ``class_names`` only the class itself is found, and none of its bases.

        Args:
            classes: Exception classes, as ``except`` takes them.

        Raises:
            TypeError: One of them is no exception class.
        """
        return any(self._was(kind) for kind in _checked_classes("was_a", classes))

    def _was(self, kind: type) -> bool:
        name, alone = _class_name(kind), kind.__qualname__
        if not self.class_names:
            return self.type_name in (name, alone)
        if kind.__module__ == "__main__":
            return any(known == alone or known.endswith(f".{alone}") for known in self.class_names)
        return name in self.class_names or f"__main__.{alone}" in self.class_names


def name_of(error: BaseException) -> str:
    """Return the name of an exception's class; of a restored one, that of the class that it had."""
    if isinstance(error, RestoredError):
        return error.type_name.rpartition(".")[2]
    return type(error).__name__


def was_a(call: str, error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Return whether an exception is an instance of one of some classes, or was before a snapshot.

    Raises:
        TypeError: One of them is no exception class; the message names the ``call``.
    """
    checked = _checked_classes(call, classes)
    if isinstance(error, RestoredError):
        return error.was_a(*checked)
    return any(kind in type(error).__mro__ for kind in checked)


def class_names(kind: type[BaseException]) -> list[str]:
    """Return the names by which an exception class and its bases are known in another process."""
    return [_class_name(base) for base in kind.__mro__ if base is not object]


def _class_name(kind: type) -> str:
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _checked_classes(call: str, classes: tuple[object, ...]) -> tuple[type[BaseException], ...]:
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            msg = f"{call}() was given {brief(cast('object', kind))}; expected exception classes: {call}(OSError)"
            raise TypeError(msg)
    return cast("tuple[type[BaseException], ...]", classes)


# -- for messages -----------------------------------------------------------------------------------


def brief(value: object, limit: int = 200) -> str:
    """Return the repr of a value in at most ``limit`` characters; for messages.

    If the repr raises, the text says so; only ``KeyboardInterrupt`` and ``SystemExit`` leave. Of a
    group only the first leaves are shown, because groups may contain each other.
    """
    try:
        if is_a(value, BaseExceptionGroup):
            leaves = leaves_of(cast("BaseException", value))
            shown = ", ".join(repr(leaf) for leaf in leaves[:_SHOWN_LEAVES])
            more = f", and {len(leaves) - _SHOWN_LEAVES} more" * (len(leaves) > _SHOWN_LEAVES)
            text = f"{type(value).__name__} of {shown}{more}"
        elif is_a(value, (str, bytes)):
            text = repr(cast("str", value)[: limit + 1])
        else:
            text = str.__str__(repr(value))
    except URGENT:
        raise
    except BaseException as error:  # noqa: ASYNC103, BLE001 - must not hide what the message reports
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return brief_text(text, limit)


def brief_text(text: str, limit: int = 200) -> str:
    """Return a text for a message, cut to ``limit`` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def unknown_name(owner: str, name: str, older: dict[str, str]) -> str:
    """Return the message of an ``AttributeError``, with the new spelling of a name in ``older``."""
    instead = older.get(name)
    told = "" if instead is None else f"; expected {instead}"
    return f"{owner!r} object has no attribute {name!r}{told}"


def unknown_options(call: str, given: Iterable[str], older: dict[str, str]) -> str:
    """Return the message of a ``TypeError`` about options that a call does not have."""
    told = [f"{name!r}; expected {older[name]}" if name in older else repr(name) for name in given]
    return f"{call} has no option {', and none '.join(told)}"


def stop_iteration(step: str) -> str:
    """Return the message about a step that raised ``StopIteration``."""
    return (
        f"the step {step} raised StopIteration, which cannot leave a step; expected "
        "`next(iterator, default)`, or an exception that says what is missing"
    )


def unasked_cancellation(who: str, around: str, cause: BaseException) -> WorkflowRuntimeError:
    """Return the failure for a cancellation that was raised although none was requested.

    Args:
        who: The code that raised it: ``"the step Flow.work"``.
        around: The scopes that were not cancelled: ``"nothing around it was"``.
        cause: The cancellation.
    """
    msg = (
        f"{who} raised {type(cause).__name__}, though {around} cancelled; expected it to handle "
        "the cancellation of what it awaited"
    )
    failure = WorkflowRuntimeError(msg)
    failure.__cause__ = cause
    return failure
