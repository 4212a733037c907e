"""``python -m benchmarks``: measures sluicegate against the same work written by hand, and its peers."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import _harness, _page, _scale, _tables
from benchmarks._goals import goals_as_json, judge
from benchmarks._harness import Bench, Interpreter
from benchmarks._results import Results
from benchmarks._works import WORKS
from benchmarks.peers import PEERS


HERE = Path(__file__).resolve().parent
NAMES = tuple(dict.fromkeys(work.name for work in WORKS))


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(argv)
    # What measures some works again does not replace what is known of all.
    name = "-".join(["results", *(options.only or ())])
    file, page = options.json or HERE / f"{name}.json", options.page or HERE / f"{name}.html"
    if options.stored:
        results = options.stored
    else:
        interpreters = options.python or [Interpreter.ask(sys.executable)]
        if len({each.version for each in interpreters}) < len(interpreters):
            made.error("two of these Pythons have the same version; name one of each")
        home = options.peers or interpreters[0]
        if options.no_peers:
            home.peers.clear()
        cpu = _harness.pin(options.cpu)
        with Bench(interpreters, home, limit=options.limit) as bench:
            if options.scale:
                sys.stdout.write(
                    _scale.measured(
                        bench,
                        options.scale,
                        runs=options.runs,
                        repeats=options.repeats or 3,
                        tell=tell,
                    )
                )
                return 0
            results = Results(environment(options, interpreters, home, cpu))
            works = [work for work in WORKS if work.name in (options.only or NAMES)]
            repeats = options.repeats or (3 if options.quick else 5)
            if not options.only:
                results.environment["counts"] = bench.counts()
            bench.run(works, results, repeats=repeats, tell=tell, keep=lambda: write(results, file))
        sys.stderr.write("\n")
        write(results, file)
    page.write_text(_page.page(results), encoding="utf-8")
    sys.stdout.write(_tables.everything(results, goals_only=options.goals))
    return 1 if any(key.system not in PEERS for key, _ in results.failures()) else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("--quick", action="store_true", help="smaller sizes, about two minutes")
    made.add_argument(
        "--only", type=among(NAMES), metavar="WORKS", help="some of: " + ",".join(NAMES)
    )
    made.add_argument("--repeats", type=positive, metavar="N", help="5, or 3 with --quick")
    made.add_argument("--cpu", type=cpu_number, metavar="N", help="the CPU to run on (the last)")
    made.add_argument(
        "--python",
        action="append",
        type=interpreter,
        metavar="PATH",
        help="a Python to measure with (this one); may be repeated, the first does everything, "
        "the others the sizes at which goals are judged",
    )
    made.add_argument(
        "--peers",
        type=interpreter,
        metavar="PATH",
        help="the Python that has the peers (the first)",
    )
    made.add_argument("--no-peers", action="store_true", help="leave the peers out")
    made.add_argument(
        "--limit",
        type=float,
        metavar="S",
        help="seconds for each cell (60; of a peer 15, or 10 with --quick)",
    )
    made.add_argument("--goals", action="store_true", help="print the goals' table only")
    made.add_argument(
        "--scale",
        nargs="?",
        const=list(_scale.PARTS),
        type=among(_scale.PARTS),
        metavar="PARTS",
        help="the tables of the page on scale instead; some of: " + ",".join(_scale.PARTS),
    )
    made.add_argument(
        "--runs", type=positive, default=200_000, metavar="N", help="most idle runs of --scale"
    )
    made.add_argument(
        "--from",
        dest="stored",
        type=stored_results,
        metavar="FILE",
        help="measure nothing, take these results",
    )
    made.add_argument("--json", type=new_file, metavar="FILE", help="results.json beside this")
    made.add_argument("--page", type=new_file, metavar="FILE", help="results.html beside this")
    return made


def among(names: Sequence[str]) -> Callable[[str], list[str]]:
    """A list of some of *names*, as it is written on a command line."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in names:
                msg = f"no {name!r}: choose from {', '.join(names)}"
                raise argparse.ArgumentTypeError(msg)
        return found

    return read


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        msg = "at least one is needed"
        raise argparse.ArgumentTypeError(msg)
    return number


def interpreter(path: str) -> Interpreter:
    try:
        return Interpreter.ask(path)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        why = str(error) if isinstance(error, OSError) else "it does not run Python code"
        msg = f"{path} is no Python: {why}"
        raise argparse.ArgumentTypeError(msg) from None


def cpu_number(text: str) -> int:
    there = sorted(_harness.cpus())
    if there and int(text) not in there:
        msg = f"no CPU {text} for this process: choose from {', '.join(map(str, there))}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def stored_results(path: str) -> Results:
    try:
        return Results.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError) as error:
        msg = (
            f"cannot read {path}: {error!r}; expected a file that python -m benchmarks has written"
        )
        raise argparse.ArgumentTypeError(msg) from None


def new_file(path: str) -> Path:
    if not (folder := Path(path).absolute().parent).is_dir():
        msg = f"cannot write {path}: there is no folder {folder}"
        raise argparse.ArgumentTypeError(msg)
    return Path(path)


def tell(line: str) -> None:
    """Show how far it is, on a terminal in one line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def environment(
    options: argparse.Namespace,
    interpreters: Sequence[Interpreter],
    home: Interpreter,
    cpu: int | None,
) -> dict[str, object]:
    """What the numbers depend on and can be named."""
    return {
        "platform": platform.platform(),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "quick": options.quick,
        "limit_seconds": options.limit or _harness.LIMIT,
        "pythons": {each.version: each.packages for each in interpreters},
        "python_of_peers": home.version,
        "peers": home.peers,
    }


def write(results: Results, file: Path) -> None:
    """Every number, and the goals."""
    found = {
        **results.as_json(),
        "goals": {python: goals_as_json(judge(results, python)) for python in results.pythons},
    }
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
