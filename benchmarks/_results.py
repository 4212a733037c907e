"""The numbers of all cells, and what is made of them: medians, ratios within a repeat, growth."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks._measure import Numbers
from benchmarks._model import Work
from benchmarks._works import BY_ID
from benchmarks.peers import PEERS


class Key(NamedTuple):
    """One cell: which interpreter, which work at which size, which system."""

    python: str
    work: str
    size: int
    system: str


@dataclass(slots=True)
class Cell:
    """The numbers of each repeat in which the cell was measured, or why there are none."""

    repeats: dict[int, Numbers] = field(default_factory=dict)
    error: str | None = None  # went wrong
    reason: str | None = None  # cannot be done, or takes too long
    slowest: float = 0.0  # seconds, the whole process

    @property
    def why_not(self) -> str | None:
        """A word or two on why there are no numbers."""
        if self.error:
            return "wrong answer" if "AssertionError" in self.error else "failed"
        return self.reason

    def series(self, key: str) -> list[Any]:
        """A list among the numbers, of the first repeat that has it."""
        return next((numbers[key] for numbers in self.repeats.values() if key in numbers), [])


def of_known(values: Iterable[float], of_all: Callable[[Sequence[float]], float]) -> float:
    """What *of_all* makes of the values that are not NaN; NaN if there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return of_all(kept) if kept else math.nan


def median(values: Iterable[float]) -> float:
    """The median; NaN if there are no values."""
    return of_known(values, statistics.median)


class Range(NamedTuple):
    """A median with the least and the greatest."""

    middle: float
    low: float
    high: float


NOTHING = Range(math.nan, math.nan, math.nan)


def ranged(values: Sequence[float]) -> Range:
    """The median of *values* with their range."""
    return Range(median(values), min(values), max(values)) if values else NOTHING


class Results:
    """All cells of one go."""

    def __init__(self, environment: dict[str, Any]) -> None:
        self.environment = environment
        self.cells: dict[Key, Cell] = {}

    @property
    def quick(self) -> bool:
        return bool(self.environment["quick"])

    @property
    def pythons(self) -> list[str]:
        return list(dict.fromkeys(key.python for key in self.cells))

    def cell(self, key: Key) -> Cell:
        return self.cells.get(key) or Cell()

    def sizes(self, work: Work, python: str) -> list[int]:
        """The sizes at which there is something."""
        return sorted(
            {key.size for key in self.cells if key.python == python and key.work == work.id}
        )

    def judged(self, work: Work, python: str) -> list[int]:
        """The sizes at which a goal is judged: all of a quick run."""
        there = self.sizes(work, python)
        return there if self.quick else [size for size in there if size in work.judged]

    def systems(self, python: str) -> list[str]:
        """Everyone who has a cell."""
        return list(dict.fromkeys(key.system for key in self.cells if key.python == python))

    def value(self, key: Key, number: str) -> float:
        """What is told of all repeats: the median, if not something else of this number."""
        values = (numbers.get(number, math.nan) for numbers in self.cell(key).repeats.values())
        return of_known(values, BY_ID[key.work].of_all(number))

    def ratio(self, key: Key, base: str, number: str) -> Range:
        """The median of the ratios to *base*, each within one repeat."""
        mine, theirs = self.cell(key).repeats, self.cell(key._replace(system=base)).repeats
        return ranged(
            [
                mine[repeat][number] / theirs[repeat][number]
                for repeat in mine
                if repeat in theirs and number in mine[repeat] and theirs[repeat].get(number)
            ]
        )

    def beyond(self, key: Key, base: str, number: str) -> Range:
        """The median of the differences to *base*, each within one repeat."""
        mine, theirs = self.cell(key).repeats, self.cell(key._replace(system=base)).repeats
        return ranged(
            [
                mine[repeat][number] - theirs[repeat][number]
                for repeat in mine
                if repeat in theirs and number in mine[repeat]
            ]
        )

    def exponent(self, work: Work, python: str, system: str, number: str) -> float:
        """
        How the whole grows with the size, from the last size but one to the last: 1 is linear.

        The numbers are for one hop or item, hence the 1 +.
        """
        sizes = self.sizes(work, python)[-2:]
        if len(sizes) < 2:
            return math.nan
        small, large = (self.cell(Key(python, work.id, size, system)).repeats for size in sizes)
        return median(
            1 + math.log(large[i][number] / small[i][number]) / math.log(sizes[1] / sizes[0])
            for i in small
            if i in large
        )

    def failures(self) -> list[tuple[Key, str]]:
        """What went wrong."""
        return [(key, cell.error) for key, cell in self.cells.items() if cell.error]

    def as_json(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "cells": [
                {
                    **key._asdict(),
                    "parameters": BY_ID[key.work].parameters(key.size, peer=key.system in PEERS),
                    "error": cell.error,
                    "reason": cell.reason,
                    "process_seconds": cell.slowest,
                    "repeats": [
                        {"repeat": repeat, **known(numbers)}
                        for repeat, numbers in cell.repeats.items()
                    ],
                }
                for key, cell in self.cells.items()
            ],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Results":
        results = cls(found["environment"])
        for each in found["cells"]:
            key = Key(each["python"], each["work"], each["size"], each["system"])
            repeats = {
                numbers["repeat"]: {
                    name: math.nan if value is None else value
                    for name, value in numbers.items()
                    if name != "repeat"
                }
                for numbers in each["repeats"]
            }
            results.cells[key] = Cell(
                repeats, each["error"], each["reason"], each["process_seconds"]
            )
        return results


def known(numbers: Numbers) -> Numbers:
    """JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }
