"""Run random programs and print every deviation: ``python -m tests.random_programs --seeds 0-99``."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings

from tests.random_programs.checking import run_seed
from tests.random_programs.programs import make


BACKENDS = ("trio", "asyncio", "uvloop")


def main() -> int:
    """Run the programs; return 1 if one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_programs", description=__doc__)
    parser.add_argument("--seeds", default="0-99", help="one, or first-last")
    parser.add_argument("--backend", choices=BACKENDS, help="all by default")
    parser.add_argument("--show", action="store_true", help="print each program")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    bad = total = 0
    for backend in [arguments.backend] if arguments.backend else BACKENDS:
        for seed in range(int(first), int(last or first) + 1):
            if arguments.show:
                print(make(seed))
            total += 1
            problems = _problems(seed, backend)
            bad += bool(problems)
            for problem in problems:
                print(f"{backend} {seed}: {problem}")
    print(f"{total} programs, {bad} deviate")
    return 1 if bad else 0


def _problems(seed: int, backend: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return run_seed(seed, backend)
        except Exception:
            return [traceback.format_exc()]


if __name__ == "__main__":
    sys.exit(main())
