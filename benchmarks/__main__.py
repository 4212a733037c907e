"""``python -m benchmarks``: measures penstock against the same work written by hand."""

import argparse
import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _harness
from benchmarks._harness import Results, Row
from benchmarks._works import GROWTH, WORKS


GROUPS = tuple(dict.fromkeys(work.group for work in WORKS))
HEADINGS = ("work", "on", "penstock", "by hand", "unit", "ratio", "(range)", "goal", "")


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    only = options.only or GROUPS
    works = [work for work in WORKS if work.group in only and not (options.quick and work.slow)]
    repeats = options.repeats or (3 if options.quick else 5)
    cpu = _harness.pin(options.cpu)
    results = _harness.run(works, repeats=repeats, quick=options.quick, tell=tell)
    rows = _harness.rows(results, GROWTH)
    sys.stderr.write("\n")
    sys.stdout.write(table(rows))
    if options.json:
        found = {
            "environment": {
                **environment(),
                "cpu": cpu,
                "repeats": repeats,
                "quick": options.quick,
            },
            "rows": [row_as_json(row) for row in rows],
            "raw": [raw_as_json(result, quick=options.quick) for result in results],
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(row.error for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("--quick", action="store_true", help="smaller sizes, about two minutes")
    made.add_argument("--only", type=groups, metavar="WORKS", help="some of: " + ",".join(GROUPS))
    made.add_argument("--json", type=Path, metavar="FILE", help="write every number there, too")
    made.add_argument("--repeats", type=positive, metavar="N", help="5, or 3 with --quick")
    made.add_argument("--cpu", type=int, metavar="N", help="the CPU to run on (the last)")
    return made


def groups(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in GROUPS:
            msg = f"no work {name!r}: choose from {', '.join(GROUPS)}"
            raise argparse.ArgumentTypeError(msg)
    return names


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        msg = "at least one repeat is needed"
        raise argparse.ArgumentTypeError(msg)
    return number


def tell(line: str) -> None:
    """Show how far it is, on a terminal in one line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def number(value: float) -> str:
    """Three digits, as far as there are."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2}f}"


def cells(row: Row) -> tuple[str, ...]:
    low, high = map(number, row.spread)
    return (
        row.title,
        row.library,
        number(row.penstock),
        number(row.by_hand),
        row.unit,
        number(row.ratio),
        "" if math.isnan(row.ratio) else f"{low}-{high}",
        "" if row.goal is None else str(row.goal),
        row.verdict,
    )


def table(rows: Sequence[Row]) -> str:
    """The rows in columns, numbers to the right; then the verdicts counted and the failures told."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS) - 1)]
    right = {HEADINGS.index(name) for name in ("penstock", "by hand", "ratio")}
    text = ""
    for line in lines:
        padded = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        text += "  ".join([*padded, line[-1]]).rstrip() + "\n"
    verdicts = [row.verdict for row in rows]
    words = ("met", "MISSED", "FAILED")
    text += "\n" + ", ".join(f"{verdicts.count(word)} {word.lower()}" for word in words) + "\n"
    return text + "".join(
        f"{row.title} on {row.library}: {row.error}\n" for row in rows if row.error
    )


def environment() -> dict[str, str]:
    """What the numbers depend on and can be named."""
    packages = ("penstock", "trio", "anyio", "attrs")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def row_as_json(row: Row) -> dict[str, object]:
    return {
        "work": row.title,
        "on": row.library,
        "unit": row.unit,
        "penstock": known(row.penstock),
        "by_hand": known(row.by_hand),
        "ratio": known(row.ratio),
        "range": [known(value) for value in row.spread],
        "goal": None if row.goal is None else str(row.goal),
        "verdict": row.verdict,
        "error": row.error,
    }


def raw_as_json(result: Results, *, quick: bool) -> dict[str, object]:
    name = {True: "penstock", False: "by hand"}
    return {
        "work": result.work.title,
        "parameters": result.work.sized(quick=quick),
        "numbers": {
            f"{name[penstock]} on {library}": [
                {key: known(value) for key, value in numbers.items()} for numbers in repeats
            ]
            for (library, penstock), repeats in result.numbers.items()
        },
        "errors": {
            f"{name[penstock]} on {library}": error
            for (library, penstock), error in result.errors.items()
        },
    }


def known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


if __name__ == "__main__":
    sys.exit(main())
