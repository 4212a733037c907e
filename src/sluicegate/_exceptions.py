"""Exceptions: which one leaves, how a group is judged, and how to annotate one safely.

Every decision that the engine takes from the class of an exception is taken here. Nothing here runs
code of the exception: classes are read from its type, and notes, tracebacks and members through
``BaseException`` itself. An exception that is a frozen dataclass, or whose ``add_note``,
``__getattribute__``, ``__eq__`` or ``__bool__`` raises, is handled like any other.

A group is judged by its leaves. Leaves that are cancellations do not count unless there are no
others. Each leaf counts once, however often and however deep the group contains it.

=================  =======================================  =========================================
question           one exception                            a group
=================  =======================================  =========================================
a cancellation?    the backend's cancelled class            all leaves are
urgent?            ``KeyboardInterrupt``, ``SystemExit``    any leaf is; the first such leaf leaves
                                                            bare, the others go to
                                                            ``handler.exceptions``
retried? handled?  an ``Exception``                         all other leaves are
of a class?        ``Retry(when=...)``, a timeout           all other leaves are, or the group is
raised, recorded   the object itself                        the object itself, with all its leaves
=================  =======================================  =========================================

When several exceptions could leave an owner (a run, a block, a scope, a resource scope), the first
line of this table that applies decides. The exceptions that do not leave are kept or noted.

==  ================================================================================  ==============
1.  an urgent one: from the nursery, then from the failures, in order of arrival      bare
2.  for an owner left in another task: the refusal, caused by the first failure       as it is
3.  the body's own exception, if it is not a cancellation                             as it is
4.  the first failure of what the owner owns                                          as it is
5.  a cancellation: the body's own, else the one raised by the nursery                bare
==  ================================================================================  ==============

An exception that arrives while another is on its way out replaces it only by line 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType


#: The exceptions that leave a run at once and bare, whatever else there is.
URGENT = (KeyboardInterrupt, SystemExit)

# An exception may override each of these names; its base class answers all the same.
_dict_of: Any = BaseException.__dict__["__dict__"]
_trace_of: Any = BaseException.__dict__["__traceback__"]
_links_of: Any = [
    BaseException.__dict__[name] for name in ("__context__", "__cause__", "__suppress_context__")
]
_parts_of: Any = BaseExceptionGroup.__dict__["exceptions"]

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


def bare(error: BaseException) -> BaseException:
    """Return the first urgent leaf of an exception, else the exception itself."""
    urgent = urgent_leaf(error)
    return error if urgent is None else urgent


def failures_in(error: BaseException, cancelled: type[BaseException]) -> list[BaseException]:
    """Return the failures that an exception of a step counts as, in their order.

    A group with an urgent leaf counts as that leaf and the others that are not cancellations.
    """
    first = bare(error)
    if first is error:
        return [error]
    others = [leaf for leaf in leaves_of(error) if leaf is not first]
    return [first, *(leaf for leaf in others if not is_a(leaf, cancelled))]


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


def linked_leaves(error: BaseException, link: str) -> Iterator[BaseException]:
    """Yield the leaves of an exception and of those behind it, each once.

    Args:
        error: The exception.
        link: How to get from a leaf to the next: ``"__context__"`` or ``"__cause__"``.
    """
    next_of: Any = BaseException.__dict__[link]
    seen: set[int] = set()
    todo = leaves_of(error)
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            behind = cast("BaseException | None", next_of.__get__(one))
            if behind is not None:
                todo += leaves_of(behind)


def came_of(error: BaseException, cancelled: type[BaseException]) -> bool:
    """Return whether a failure was raised while a cancellation was being handled.

    That is so if one of its leaves is a cancellation, or was raised while one was handled.
    """
    return any(is_a(one, cancelled) for one in linked_leaves(error, "__context__"))


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
    """Return the one exception to raise for the group of a nursery that the engine opened.

    That is the first urgent leaf, else the first that is not a cancellation.
    """
    urgent = urgent_leaf(error)
    return counted_leaves(error, cancelled)[0] if urgent is None else urgent


def is_first_urgent(error: BaseException, kept: BaseException | None) -> bool:
    """Return whether an exception replaces ``kept``, which arrived before: by urgency alone."""
    return urgent_leaf(error) is not None and urgent_leaf(kept) is None


# -- what leaves an owner ------------------------------------------------------------------------


def raise_first(
    failures: Sequence[BaseException],
    error: BaseException | None,
    raised: BaseException | None,
    cancelled: type[BaseException],
    tell: Callable[[BaseException], str],
) -> None:
    """Decide what leaves an owner, by the second table above; raise it unless it is ``error``.

    Args:
        failures: The unobserved failures of what the owner owns, in their order.
        error: The exception that leaves the body of the block; it continues if this returns.
        raised: The exception raised by the owner's nursery.
        cancelled: The backend's cancellation.
        tell: Returns the note to add to the exception that leaves, about a failure that does not.

    Raises:
        BaseException: The exception that leaves instead of ``error``.
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


def refusal_or_urgent(
    refusal: BaseException,
    failures: Sequence[BaseException],
    raised: BaseException | None,
    tell: Callable[[BaseException], str],
) -> BaseException:
    """Return the exception that leaves an owner left in another task, by the table above."""
    urgent = next((u for e in (raised, *failures) if (u := urgent_leaf(e)) is not None), None)
    if urgent is not None:
        return urgent
    if failures:
        refusal.__cause__ = failures[0]
        note_rest(refusal, failures, tell)
    return refusal


def note_rest(
    kept: BaseException, failures: Iterable[BaseException], tell: Callable[[BaseException], str]
) -> None:
    """Note on the exception that leaves each failure that does not leave."""
    target = bare(kept)
    for failure in failures:
        if failure is not kept and failure is not target:
            note_once(target, tell(failure))


def behind_scope(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """Return the exception to raise after a cancel scope that ``error`` would leave, or None.

    A cancelled scope reads ``__class__`` of the exception that leaves it, and puts the rest of a
    group into a new group. So a failure does not pass through the scope, unless it contains a
    cancellation that the scope has to see (:func:`holds_cancelled`). It is raised unchanged after
    the scope has closed.
    """
    return None if is_cancellation(error, cancelled) else error


def holds_cancelled(error: BaseException, cancelled: type[BaseException]) -> bool:
    """Return whether any leaf of an exception is a cancellation."""
    return any(is_a(leaf, cancelled) for leaf in leaves_of(error))


def without_cancelled(error: BaseException, cancelled: type[BaseException]) -> BaseException:
    """Return a group without its cancellations, which concern another task."""
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
    """Return the notes of an exception that are plain strings."""
    notes = _dict_of.__get__(error).get("__notes__")
    if not is_a(notes, list):
        return []
    plain = list[object].__iter__(cast("list[object]", notes))
    return [note for note in plain if type(note) is str]


def trace_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of an exception, even if its class overrides the name."""
    return cast("TracebackType | None", _trace_of.__get__(error))


def set_trace(error: BaseException, trace: TracebackType | None) -> BaseException:
    """Set the traceback of an exception, even if its class forbids setting attributes."""
    _trace_of.__set__(error, trace)
    return error


def links_of(error: BaseException) -> list[Any]:
    """Return the context, the cause and whether the context is hidden, for :func:`set_links`."""
    return [link.__get__(error) for link in _links_of]


def set_links(error: BaseException, links: list[Any]) -> None:
    """Set what :func:`links_of` has returned, even if the class forbids setting attributes."""
    for link, value in zip(_links_of, links, strict=True):
        link.__set__(error, value)
