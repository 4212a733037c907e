"""Random programs told as AG-UI: ``python -m tests.serve.ag_ui_programs --seeds 0-99 --backend trio``.

Each is told in one exchange, and in several, with interruptions and a state that changes.
"""

from __future__ import annotations

import argparse
import random
import sys
import traceback
from functools import partial
from typing import Any

from sluicegate import Observer, observe
from sluicegate.serve._ag_ui import Interrupt, Translator
from tests.random_programs.checking import run_seed
from tests.serve.ag_ui_rules import Rules


class Translation:
    """Translates a run and its children as their records come, into one exchange after another.

    Args:
        run: The run.
        chance: Decides when an exchange is interrupted, when the next one begins, and when the state
            changes; None for one exchange.
    """

    def __init__(self, run: Any, chance: random.Random | None = None) -> None:
        self.translator = Translator(run.run_id, run.workflow)
        self.chance = chance
        self.exchanges: list[Rules] = []
        self.told: dict[str, Any] = {}
        self.state: dict[str, Any] | None = None
        self._start()

    def _start(self) -> None:
        self.exchanges.append(Rules(self.told))
        number = len(self.exchanges)
        self.exchanges[-1].take(self.translator.start("thread", f"exchange {number}"))

    def take(self, run_id: str, record: Any) -> None:
        """Take a record."""
        rules = self.exchanges[-1]
        made = self.translator.record(run_id, record)
        assert self.translator.is_open or rules.is_over or made, "the exchange ended without a word"
        rules.take(made)
        if self.chance is not None and not self._is_done():
            self._interfere(rules, run_id)

    def _is_done(self) -> bool:
        rules = self.exchanges[-1]
        return rules.is_over and not rules.interrupts

    def _interfere(self, rules: Rules, run_id: str) -> None:
        assert self.chance is not None
        what = self.chance.random()
        if rules.is_over:
            if what < 0.2:
                self._start()
            return
        if what < 0.05:
            rules.take(self.translator.settle())
        elif what < 0.15:
            old = self.state or {}
            self.state = {**old, self.chance.choice("abc"): self.chance.randint(0, 3)}
            rules.take(self.translator.state(self.state))
            assert rules.state == self.state
        elif what < 0.2:
            rules.take(self.translator.interrupt([Interrupt("q1", run_id, "which?")]))
        elif what < 0.22:
            rules.take(self.translator.gap(3))


class Translating(Observer):
    """Translates every run that it observes."""

    strict = True

    def __init__(self, seed: int | None = None) -> None:
        self.translations: dict[str, Translation] = {}
        self._seed = seed

    def listen(self, run):
        """Translate a run, or a child with its parent."""
        if run.parent_run_id is None:
            chance = None if self._seed is None else random.Random(self._seed)
            self.translations[run.run_id] = Translation(run, chance)
        else:
            self.translations[run.run_id] = self.translations[run.parent_run_id]
        return partial(self.translations[run.run_id].take, run.run_id)


def translate_seed(seed: int, backend: str) -> list[str]:
    """Run the program of a seed, told in one exchange and then in several; return what is wrong."""
    problems = []
    for told in (None, seed):
        observer = Translating(told)
        with observe(observer):
            problems += run_seed(seed, backend)
        for translation in observer.translations.values():
            if told is None and len(translation.exchanges) != 1:
                problems.append("it was told in several exchanges")
            if not all(rules.is_over for rules in translation.exchanges):
                problems.append("an exchange has not ended")
    return problems


def main() -> int:
    """Run the programs; return 1 if one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.serve.ag_ui_programs")
    parser.add_argument("--seeds", default="0-99", help="one, or first-last")
    parser.add_argument("--backend", choices=("trio", "asyncio"), default="trio")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    bad = 0
    for seed in range(int(first), int(last or first) + 1):
        try:
            problems = translate_seed(seed, arguments.backend)
        except Exception:
            problems = [traceback.format_exc()]
        bad += bool(problems)
        for problem in problems:
            print(f"{arguments.backend} {seed}: {problem}")
    print(f"{bad} deviate")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
