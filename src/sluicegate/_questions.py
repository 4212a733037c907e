"""Open questions, and what becomes of an event that is sent into a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import attrs

from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Generator

    from sluicegate._events import Event


@attrs.frozen
class OpenQuestion:
    """A question that a run waits to be answered: one of ``handler.questions``.

    Attributes:
        id: Names it in ``handler.send_event(answer, question=...)``. It is the same in a snapshot
            and in the run that continues from it. That of a child begins with the child's run id.
        event: The event by which it was asked; None for a wait that published none.
        since: When it was asked, in seconds on the event loop's clock; before a resumed run has
            begun, how long ago that was, as a negative number.
        answers: The classes of events that answer it.
    """

    id: str
    event: Event | None
    since: float
    answers: tuple[type[Event], ...]


@final
class Acknowledgement:
    """What ``handler.send_event()`` returns. Awaited, it waits until the event is kept for good.

    A run without a store keeps it at once. It need not be awaited.

    Attributes:
        is_repeated: Whether an event of the same ``id`` and content came before, so that this one
            was not applied.
    """

    __slots__ = ("is_repeated",)

    def __init__(self, *, is_repeated: bool) -> None:
        self.is_repeated: bool = is_repeated

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait. A checkpoint; cancelled, it leaves the event where it is."""
        return current_backend().checkpoint().__await__()

    def __repr__(self) -> str:
        return f"<Acknowledgement of {'a repeated' if self.is_repeated else 'an'} event>"


#: The two that there are: a run without a store keeps an event at once.
APPLIED = Acknowledgement(is_repeated=False)
REPEATED = Acknowledgement(is_repeated=True)


def id_of(number: int) -> str:
    """Return the id of the question that was asked as number ``number`` in its run."""
    return f"q{number}"


def number_of(question: str) -> int:
    """Return the number of the question that an id names; 0 for an id of no question."""
    digits = question[1:]
    is_id = question[:1] == "q" and digits.isascii() and digits.isdigit() and len(digits) < 18
    return int(digits) if is_id else 0


class Asked:
    """A question that no wait has asked, or whose wait has not begun again: it is open."""

    __slots__ = ("answer", "event", "key", "kind", "number", "since")

    def __init__(
        self,
        number: int,
        event: Event | None,
        since: float,
        kind: type[Event] | None = None,
        key: int = 0,
    ) -> None:
        self.number = number
        self.event = event
        self.since = since
        #: What the wait that has to begin again waits for, and a number that stands for its
        #: content; None for a question of no wait.
        self.kind = kind
        self.key = key
        #: What was sent for that wait.
        self.answer: Event | None = None
