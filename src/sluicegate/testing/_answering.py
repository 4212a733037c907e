"""Answers the questions of a run under test."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from sluicegate._errors import brief
from sluicegate._events import Event


#: The answers to the questions of a run: a mapping from the class of a question to its answer (or to
#: a function of the question), one function for all, or answers in order. None leaves them open.
Answers = (
    Mapping[type[Any], "Event | Callable[[Any], Event | Awaitable[Event | None] | None] | None"]
    | Callable[[Any], "Event | Awaitable[Event | None] | None"]
    | Iterable["Event | None"]
    | None
)


def is_class_of(value: object, base: type) -> bool:
    """Whether a value is a class, and ``base`` or a subclass of it."""
    return isinstance(value, type) and issubclass(value, base)


class Answerer:
    """Finds the answer to each question.

    Args:
        name: The name of the workflow, for messages.
        answers: See :data:`Answers`.

    Raises:
        TypeError: The answers have another form.
    """

    def __init__(self, name: str, answers: Answers) -> None:
        self._name = name
        #: Whether a run that waits without an open question fails.
        self.is_strict = answers is not None
        self._table: Mapping[type[Any], Any] | None = None
        self._function: Callable[[Any], Any] | None = None
        self._order: Iterator[Event | None] | None = None
        self._is_counted = isinstance(answers, Sequence)
        self._has_any = self._is_counted and bool(answers)
        if answers is None:
            return
        if isinstance(answers, Event):
            msg = f"answers={brief(answers)} is one event; expected answers=[{type(answers).__name__}(...)]"
            raise TypeError(msg)
        if isinstance(answers, Mapping):
            self._table = cast("Mapping[type[Any], Any]", answers)
            for kind in self._table:
                if not is_class_of(kind, Event):
                    msg = (
                        f"answers has the key {brief(kind)}; expected the class of a question: "
                        "answers={InputRequiredEvent: HumanResponseEvent(...)}"
                    )
                    raise TypeError(msg)
        elif callable(answers) and not isinstance(answers, type):
            self._function = cast("Callable[[Any], Any]", answers)
        elif isinstance(answers, Iterable) and not isinstance(answers, str):
            self._order = iter(answers)
        else:
            msg = (
                f"answers={brief(answers)}; expected a mapping from question to answer, a function "
                "of the question, or a list of answers"
            )
            raise TypeError(msg)

    async def answer(self, question: Event) -> Event | None:
        """Return the answer to a question; None leaves it open.

        A checkpoint if the user's function is one.

        Raises:
            AssertionError: There is no answer.
            TypeError: The answer is not an event.
            BaseException: The exception of the user's function.
        """
        found: Any = None
        if self._table is not None:
            kind = next((k for k in type(question).__mro__ if k in self._table), None)
            if kind is None:
                raise AssertionError(self.unanswered(question))
            found = self._table[kind]
        elif self._order is not None:
            try:
                found = next(self._order)
            except StopIteration:
                raise AssertionError(self.unanswered(question)) from None
        function = self._function or (found if not isinstance(found, Event) else None)
        if callable(function):
            found = function(question)
            if inspect.isawaitable(found):
                found = await found
        if found is None:
            self.is_strict = False
        elif not isinstance(found, Event):
            msg = (
                f"the answer to {brief(question)} is {brief(found)}; expected an event that the "
                "workflow accepts, or None to leave the question open"
            )
            raise TypeError(msg)
        event: Event | None = found
        return event  # noqa: ASYNC910 - as the docstring says

    def unasked(self) -> Event | None:
        """Return the next event for a run that waits without a question; None if there is none."""
        return None if self._order is None else next(self._order, None)

    def unanswered(self, question: Event) -> str:
        """Return the message for a question without an answer."""
        kind = type(question).__name__
        how = (
            f"one more answer in `answers`, for {kind}"
            if self._is_counted and self._has_any
            else f"`answers={{{kind}: HumanResponseEvent(...)}}`"
        )
        return f"{self._name} asked {brief(question)}, but there is no answer; expected {how}"

    def leftover(self) -> int:
        """Return the number of listed answers that were not given; 0 if they are not a list."""
        return sum(1 for _ in self._order) if self._order is not None and self._is_counted else 0
