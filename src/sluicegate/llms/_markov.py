"""A Markov chain that writes the replies of the local server."""

from __future__ import annotations

import functools
import random
import re
from collections import defaultdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PARAGRAPHS = re.compile(rf"\b(\d+|{'|'.join(_NUMBERS)})\s+paragraphs?\b", re.IGNORECASE)
_MOST_PARAGRAPHS = 100
_MOST_WORDS = 60  # in a sentence, because a chain may repeat itself
_SENTENCE_END = (".", "?", "!")


class MarkovWriter:
    """
    Writes text in which each word depends on the two before it and on chance.

    The same seed and prompt give the same text, in every process and on every platform.
    """

    def __init__(self, seed: object, prompt: str) -> None:
        self._dice = random.Random(f"{seed}\n{prompt}")  # noqa: S311  # prose, not secrets
        self._prompt = prompt

    def tokens(self) -> Iterator[str]:
        """Yield a reply word by word, each with its preceding space, like the tokens of models."""
        for number in range(paragraphs_asked_for(self._prompt)):
            space = "\n\n" if number else ""
            for _ in range(self._dice.randint(3, 6)):
                for word in self.sentence():
                    yield space + word
                    space = " "

    def sentence(self) -> Iterator[str]:
        """Yield the words of one sentence."""
        openings, followers = _chain()
        pair = self._dice.choice(openings)
        yield from pair
        for _ in range(_MOST_WORDS):
            if pair[1].endswith(_SENTENCE_END):
                return
            pair = pair[1], self._dice.choice(followers[pair])
            yield pair[1]

    def value(self, schema: Mapping[str, Any]) -> Any:
        """Make a value that matches a JSON schema, as an argument of a tool."""
        if choices := schema.get("enum"):
            return self._dice.choice(choices)
        match schema.get("type", "object"):
            case "object":
                return {
                    name: self.value(field) for name, field in schema.get("properties", {}).items()
                }
            case "array":
                return [self.value(schema.get("items", {}))]
            case "integer" | "number":
                return self._dice.randint(1, 9)
            case "boolean":
                return self._dice.choice([False, True])
            case _:
                return next(self.sentence()).strip(",;").lower()


def paragraphs_asked_for(prompt: str) -> int:
    """Return the length of the reply that a prompt asks for: "the first 3 paragraphs of ..."."""
    found = _PARAGRAPHS.search(prompt)
    if found is None:
        return 1
    number = found[1].lower()
    count = int(number) if number.isdigit() else _NUMBERS.index(number) + 1
    return min(max(count, 1), _MOST_PARAGRAPHS)


@functools.cache
def _chain() -> tuple[list[tuple[str, str]], dict[tuple[str, str], list[str]]]:
    openings: list[tuple[str, str]] = []
    followers: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    text = files("sluicegate.llms").joinpath("pages.txt").read_text("utf-8")
    # Quotation marks would appear unpaired.
    for page in text.replace('"', "").split("\n\n"):
        words = page.split()
        openings.append((words[0], words[1]))
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            followers[first, second].append(third)
            # In '"Why?" asked the boy' the sentence continues after the question mark.
            if first.endswith(_SENTENCE_END) and second[0].isupper():
                openings.append((second, third))
    return openings, dict(followers)
