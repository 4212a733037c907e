"""Exceptions: which one leaves, how a group is judged, and how one is annotated safely.

Everything that the engine decides about an exception by its class is decided here, and nothing
that it does to an exception runs code of that exception: classes are read from the type, and notes,
tracebacks and members through ``BaseException`` itself. So a frozen dataclass, or an
``add_note``, ``__getattribute__``, ``__eq__`` or ``__bool__`` that raises, changes nothing.

A group is judged by its leaves. The leaves that are cancellations do not count, unless there are no
others. Each leaf counts once, however often and however deep it is in there.

=================  =======================================  =========================================
question           one exception                            a group
=================  =======================================  =========================================
a cancellation?    the backend's cancelled class            all leaves are
urgent?            ``KeyboardInterrupt``, ``SystemExit``    any leaf is; the first such leaf comes out
                                                            bare, the others go to
                                                            ``handler.exceptions``
retried? handled?  an ``Exception``                         all other leaves are
of a class?        ``Retry(when=...)``, a timeout           all other leaves are, or the group is
what is raised,    the object itself                        the object itself, with all its leaves
recorded, given
=================  =======================================  =========================================

Of several exceptions, one leaves an owner (a run, a block, a scope, a resource scope). The first
line of this table that fits decides; what does not leave is kept or noted, never dropped.

==  ================================================================================  ==============
1.  an urgent one: of the nursery, then of the failures, in the order they came       bare
2.  the body's own exception, if it is no cancellation                                as it is
3.  the first failure of what the owner owns                                          as it is
4.  a cancellation: the body's own, or else the one that came out of the nursery      bare
==  ================================================================================  ==============
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sluicegate._errors import WorkflowRuntimeError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType


#: The exceptions that leave a run at once and bare, whatever else there is.
URGENT = (KeyboardInterrupt, SystemExit)

# An exception may override each of these names; its base class answers all the same.
_dict_of: Any = BaseException.__dict__["__dict__"]
_trace_of: Any = BaseException.__dict__["__traceback__"]
_context_of: Any = BaseException.__dict__["__context__"]
_parts_of: Any = BaseExceptionGroup.__dict__["exceptions"]

#: How many leaves of a group a text shows.
_SHOWN_LEAVES = 3

# -- judging -------------------------------------------------------------------------------------


def is_a(error: object, kinds: type | tuple[type, ...]) -> bool:
    """Return whether an exception is of a class, from its type alone.

    ``isinstance`` would also ask the exception for its ``__class__``.
    """
    return issubclass(type(error), kinds)


def leaves_of(error: BaseException) -> list[BaseException]:
    """Return the leaves of a group, each once and in order; or the exception itself.

    Groups may be nested to any depth, and contain each other any number of times.
    """
    if not is_a(error, BaseExceptionGroup):
        return [error]
    leaves: list[BaseException] = []
    seen: set[int] = set()
    todo = [error]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if is_a(part, BaseExceptionGroup):
            todo += reversed(cast("tuple[BaseException, ...]", _parts_of.__get__(part)))
        else:
            leaves.append(part)
    return leaves


def urgent_leaf(error: BaseException | None) -> BaseException | None:
    """Return the first ``KeyboardInterrupt`` or ``SystemExit`` in an exception, or None."""
    if error is None:
        return None
    return next((leaf for leaf in leaves_of(error) if is_a(leaf, URGENT)), None)


def is_cancellation(error: BaseException, cancelled: type[BaseException]) -> bool:
    """Return whether an exception is a cancellation, or a group of nothing else."""
    if type(error) is cancelled:  # nearly always, and a check of Trio's class is expensive
        return True
    return all(is_a(leaf, cancelled) for leaf in leaves_of(error))


def counted_leaves(
    error: BaseException, cancelled: type[BaseException] | tuple[()]
) -> list[BaseException]:
    """Return the leaves by which a group is judged: all but cancellations, if there are others."""
    leaves = leaves_of(error)
    return [leaf for leaf in leaves if not is_a(leaf, cancelled)] or leaves


def came_of(error: BaseException, cancelled: type[BaseException]) -> bool:
    """Return whether a failure was raised while a cancellation was being handled.

    It is told by its leaves: one of them is a cancellation, or was raised in the handling of one.
    """
    seen: set[int] = set()
    todo = leaves_of(error)
    while todo:
        one = todo.pop()
        if is_a(one, cancelled):
            return True
        context = cast("BaseException | None", _context_of.__get__(one))
        if context is not None and id(context) not in seen:
            seen.add(id(context))
            todo += leaves_of(context)
    return False


def matches(
    error: BaseException,
    kinds: type | tuple[type, ...],
    cancelled: type[BaseException] | tuple[()],
) -> bool:
    """Return whether an exception is of these classes; a group, if all its counted leaves are.

    A group also matches its own class, ``when=ExceptionGroup``, unless it has an urgent leaf.
    """
    if is_a(error, kinds):
        return urgent_leaf(error) is None or not is_a(error, BaseExceptionGroup)
    return all(is_a(leaf, kinds) for leaf in counted_leaves(error, cancelled))


def single(error: BaseException, cancelled: type[BaseException]) -> BaseException:
    """Return the one exception that stands for the group of a nursery of the engine's own.

    An urgent one goes first, then the first that is no cancellation.
    """
    urgent = urgent_leaf(error)
    return counted_leaves(error, cancelled)[0] if urgent is None else urgent


# -- what leaves an owner ------------------------------------------------------------------------


def raise_first(
    failures: Sequence[BaseException],
    error: BaseException | None,
    raised: BaseException | None,
    cancelled: type[BaseException],
    tell: Callable[[BaseException], str],
) -> None:
    """Decide what leaves an owner, by the second table above: raise it, unless the body does.

    Args:
        failures: The failures of what the owner owns that nobody has seen, in their order.
        error: The exception that leaves the body of the block, and goes on if nothing is raised.
        raised: The exception that came out of the owner's nursery.
        cancelled: The backend's cancellation.
        tell: Returns the note about a failure that does not leave, for the exception that does.

    Raises:
        BaseException: The exception that leaves in place of ``error``.
    """
    urgent = next((u for e in (raised, *failures) if (u := urgent_leaf(e)) is not None), None)
    first = urgent
    if first is None and (error is None or is_cancellation(error, cancelled)):
        if failures:
            first = failures[0]
        elif raised is not None and (error is None or not is_cancellation(raised, cancelled)):
            first = raised
    kept = first if first is not None else error
    if kept is not None:
        note_rest(kept, failures, tell)
    try:
        if first is not None:
            raise first
    finally:
        # Or this frame and its exception form a circle.
        del first, kept, urgent, error, raised, failures


def note_rest(
    kept: BaseException, failures: Iterable[BaseException], tell: Callable[[BaseException], str]
) -> None:
    """Note on the exception that leaves each failure that does not leave."""
    urgent = urgent_leaf(kept)
    target = kept if urgent is None else urgent
    for failure in failures:
        if failure is not kept and failure is not target:
            note_once(target, tell(failure))


def behind_scope(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """Return what is to be raised behind a cancel scope that ``error`` would leave; None if nothing.

    A scope that is cancelled asks what leaves it for its ``__class__``, and makes a new group of
    what is not its own. So a failure does not meet the scope, unless it holds a cancellation that
    the scope has to see (:func:`holds_cancelled`); and it is raised behind it, as it was.
    """
    return None if is_cancellation(error, cancelled) else error


def holds_cancelled(error: BaseException, cancelled: type[BaseException]) -> bool:
    """Return whether any leaf of an exception is a cancellation."""
    return any(is_a(leaf, cancelled) for leaf in leaves_of(error))


def without_cancelled(error: BaseException, cancelled: type[BaseException]) -> BaseException:
    """Return a group without its cancellations, for another task than the one that they concern."""
    if not is_a(error, BaseExceptionGroup) or not holds_cancelled(error, cancelled):
        return error
    try:
        group = cast("BaseExceptionGroup[BaseException]", error)
        rest = BaseExceptionGroup.split(group, cancelled)[1]
    except Exception:  # noqa: BLE001 - too deep, or of a class that makes no other group
        return error
    return error if rest is None else rest


# -- annotating ----------------------------------------------------------------------------------


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception. Never raises, and never calls the exception's own methods."""
    notes = _dict_of.__get__(error).setdefault("__notes__", [])
    if is_a(notes, list):
        list[object].append(cast("list[object]", notes), note)


def note_once(error: BaseException, note: str) -> None:
    """Add a note to an exception, unless it is there already. Never raises."""
    if note not in notes_of(error):
        add_note(error, note)


def notes_of(error: BaseException) -> list[str]:
    """Return the notes of an exception that are plain text, whatever else it keeps there."""
    notes = _dict_of.__get__(error).get("__notes__")
    if not is_a(notes, list):
        return []
    plain = list[object].__iter__(cast("list[object]", notes))
    return [note for note in plain if type(note) is str]


def trace_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of an exception, whatever its class makes of the name."""
    return cast("TracebackType | None", _trace_of.__get__(error))


def set_trace(error: BaseException, trace: TracebackType | None) -> BaseException:
    """Set the traceback of an exception, also of one that allows no attribute to be set."""
    _trace_of.__set__(error, trace)
    return error


def short(value: object, limit: int = 120) -> str:
    """Return the repr of a value in at most ``limit`` characters, or a text that says it has none.

    Raises nothing that the repr raises, but for ``KeyboardInterrupt`` and ``SystemExit``.
    """
    try:
        if is_a(value, BaseExceptionGroup):
            # The repr of groups that contain each other may be longer than the memory.
            leaves = leaves_of(cast("BaseException", value))
            shown = ", ".join(repr(leaf) for leaf in leaves[:_SHOWN_LEAVES])
            more = f", and {len(leaves) - _SHOWN_LEAVES} more" * (len(leaves) > _SHOWN_LEAVES)
            text = f"{type(value).__name__} of {shown}{more}"
        else:
            text = str.__str__(repr(value))
    except URGENT:
        raise
    except BaseException as error:  # noqa: ASYNC103, BLE001 - it must not take the place of what is told of
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# -- cancelled for nothing -----------------------------------------------------------------------


def cancelled_for_nothing(who: str, around: str, cause: BaseException) -> WorkflowRuntimeError:
    """Return what stands for a cancellation that nothing has asked for: a failure, with its cause.

    Args:
        who: What raised it: ``"the step Flow.work"``.
        around: What was not cancelled: ``"nothing around it was"``.
        cause: The cancellation.
    """
    msg = (
        f"{who} raised {type(cause).__name__}, though {around} cancelled; expected it to handle "
        "the cancellation of what it awaited"
    )
    failure = WorkflowRuntimeError(msg)
    failure.__cause__ = cause
    return failure
