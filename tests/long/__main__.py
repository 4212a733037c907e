"""Run the long runs, or what is left of them, and print a summary.

Results are appended to a log as they come. Started again with the same log and seed, it skips what
has passed, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.long.suites import SUITES


#: Lines of a failed command's output that are kept.
KEPT_LINES = 60


def main() -> int:
    """Parse the command line, run what has not passed yet, and return the exit status."""
    arguments = _parse()
    log = Path(arguments.log)
    passed = _passed(log, arguments.seed)
    failed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for suite in arguments.suites or SUITES:
            items = SUITES[suite](arguments.seed)
            left = [item for item in items if (suite, item[0]) not in passed]
            print(f"{suite}: {len(items)} in all, {len(left)} to run", flush=True)
            futures = [pool.submit(_run, *item, arguments.timeout) for item in left]
            for done, future in enumerate(as_completed(futures), 1):
                result = {"suite": suite, "seed": arguments.seed, **future.result()}
                with log.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                failed += not result["passed"]
                word = "passed" if result["passed"] else "FAILED"
                print(f"{suite} {done}/{len(left)}: {word} {result['name']}", flush=True)
    _summarize(log, arguments.seed)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=".ci/long", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other programs")
    parser.add_argument("--log", default="long-runs.jsonl", help="where results are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands at a time")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one command")
    arguments = parser.parse_args()
    unknown = set(arguments.suites) - set(SUITES)
    if unknown:
        parser.error(f"unknown suite {min(unknown)!r}; expected one of {', '.join(SUITES)}")
    return arguments


def _run(name: str, command: list[str], timeout: float) -> dict[str, Any]:
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, output = None, f"{error.output or ''}\nnot over after {timeout:g} s"
    lines = str(output).splitlines()
    return {
        "name": name,
        "passed": status == 0,
        "seconds": round(time.monotonic() - began, 1),
        "said": lines[-1:] if status == 0 else lines[-KEPT_LINES:],
    }


def _results(log: Path, seed: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last result of each item of this seed."""
    if not log.exists():
        return {}
    results = {}
    for line in log.read_text().splitlines():
        try:
            result = json.loads(line)
        except ValueError:  # the line at which an interrupted run was cut off
            continue
        if result["seed"] == seed:
            results[result["suite"], result["name"]] = result
    return results


def _passed(log: Path, seed: int) -> set[tuple[str, str]]:
    return {key for key, result in _results(log, seed).items() if result["passed"]}


def _summarize(log: Path, seed: int) -> None:
    results = _results(log, seed)
    print(f"\nseed {seed}, log {log}")
    for suite in dict.fromkeys(key[0] for key in results):
        of_suite = [result for key, result in results.items() if key[0] == suite]
        bad = [result for result in of_suite if not result["passed"]]
        seconds = sum(result["seconds"] for result in of_suite)
        print(f"{suite}: {len(of_suite)} ran in {seconds:.0f} s, {len(bad)} failed")
        for result in bad:
            print(f"  FAILED {result['name']}")
            for line in result["said"]:
                print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
