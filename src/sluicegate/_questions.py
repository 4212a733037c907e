"""Open questions, and the acknowledgement of an event that was sent into a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import attrs

from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from sluicegate._events import Event

#: The fields of a question that are its text; the first one that it has is used.
PROMPTS = ("prefix", "prompt", "question", "message", "msg")


@attrs.frozen
class OpenQuestion:
    """A question that a run waits to be answered: one of ``handler.questions``.

    Attributes:
        id: The identifier for ``handler.send_event(answer, question=...)``. It stays the same in a
            snapshot and in the run that continues from it. The id of a child's question begins
            with the child's run id.
        event: The event that asked it; None for a wait that published no event.
        since: The time at which it was asked, in seconds on the event loop's clock. Before a
            resumed run begins, it is negative: how long ago the question was asked.
        answers: The classes of events that answer it.
    """

    id: str
    event: Event | None
    since: float
    answers: tuple[type[Event], ...]


@final
class Acknowledgement:
    """The result of ``handler.send_event()``. Await it to wait until the event is stored durably.

    A run without a durable store has taken the event at once, and there is no need to await.

    Attributes:
        is_repeated: Whether an event with the same ``id`` and content arrived before, so that this
            one was not applied. Of an event for a durable run that is not in this process, it is
            known after the acknowledgement.
    """

    __slots__ = ("_wait", "is_repeated")

    def __init__(
        self,
        *,
        is_repeated: bool,
        wait: Callable[[], Coroutine[Any, Any, bool | None]] | None = None,
    ) -> None:
        self.is_repeated: bool = is_repeated
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait. A checkpoint; cancelled, it does not take the event back.

        Raises:
            EventConflictError: The event was sent to a durable run that is not in this process, and
                that run has received another one with the same ``id``.
            StoreError: The store of a durable run could not keep the event.
        """
        return self._acknowledged().__await__()

    async def _acknowledged(self) -> None:
        if self._wait is None:
            await current_backend().checkpoint()
            return
        is_repeated = await self._wait()
        if is_repeated is not None:
            self.is_repeated = is_repeated

    def __repr__(self) -> str:
        return f"<Acknowledgement of {'a repeated' if self.is_repeated else 'an'} event>"


#: The only two: a run without a durable store has taken an event at once.
APPLIED = Acknowledgement(is_repeated=False)
REPEATED = Acknowledgement(is_repeated=True)


def id_of(number: int) -> str:
    """Return the id of question ``number`` of a run."""
    return f"q{number}"


def number_of(question: str) -> int:
    """Return the number of the question that an id names, or 0 if it is not such an id."""
    digits = question[1:]
    is_id = question[:1] == "q" and digits.isascii() and digits.isdigit() and len(digits) < 18
    return int(digits) if is_id else 0


class Asked:
    """An open question without an open wait: a step returned or published it, or its wait has not
    begun again in a resumed run.
    """

    __slots__ = ("answer", "event", "is_shown", "key", "kind", "number", "since")

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
        #: The class that the wait is for, and the number of its content, if there is a wait that
        #: has to begin again; else None.
        self.kind = kind
        self.key = key
        #: Whether the stream of a durable run has the event, so that it is not published again.
        self.is_shown = False
        #: The event that was sent for that wait.
        self.answer: Event | None = None
