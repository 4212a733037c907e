"""The page of a timeline in Chromium: its size, the time to its first picture, and its frames.

``python -m benchmarks.timeline_page`` prints a table for 1, 1,000 and 100,000 invocations. It needs
Playwright and a Chromium; the browser has no network. Frames are those of a trace of the browser:
the times between the marks that the page sets in each frame while it zooms and scrolls.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from random import Random
from time import perf_counter

from playwright.sync_api import sync_playwright

from sluicegate import records as r
from sluicegate.recording import Recording
from sluicegate.timeline import write_timeline


STEPS, WORKERS = 5, 8
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
#: Zooms in and out at the pointer, and pans: an action for each frame.
SCROLL = """() => new Promise((done) => {
  const canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect();
  let frame = 0;
  const act = () => {
    performance.mark("acted");
    if (frame === 240) { done(); return; }
    const zooms = frame % 120 < 80, sign = frame % 80 < 40 ? -1 : 1;
    canvas.dispatchEvent(new WheelEvent("wheel", {
      deltaX: zooms ? 0 : 40, deltaY: zooms ? sign * 50 : 12, ctrlKey: zooms,
      clientX: box.left + 500, clientY: box.top + 200, cancelable: true,
    }));
    frame += 1;
    requestAnimationFrame(act);
  };
  requestAnimationFrame(act);
})"""


def synthetic(count: int) -> Recording:
    """Return a run in which each invocation causes others, on all workers of some steps."""
    random = Random(13)
    names = [f"step_{number}" for number in range(STEPS)]
    free = {(name, worker): 0.0 for name in names for worker in range(1, WORKERS + 1)}
    ends = {0: 0.0}
    found: list[tuple[float, r.Record]] = []
    for number in range(1, count + 1):
        name, source = names[number % STEPS], number // 3
        queued = ends[source]
        worker = min(range(1, WORKERS + 1), key=lambda one, name=name: free[name, one])
        started = max(queued, free[name, worker])
        ended = started + 0.02 + random.expovariate(10)
        free[name, worker] = ends[number] = ended
        origin = "step" if source else "outside"
        error = ValueError("not a number") if number % 200 == 0 else None
        found += [
            (
                queued,
                r.EventEmitted(
                    queued, number, "Item", origin, source or None, (name,), {"n": number}
                ),
            ),
            (queued, r.InvocationQueued(queued, number, name, (number,))),
            (started, r.InvocationStarted(started, number, worker)),
            (ended, r.InvocationEnded(ended, number, "failed" if error else "completed", error)),
        ]
    found.sort(key=lambda one: one[0])
    first = r.RunStarted(
        0.0,
        run_id="run",
        workflow="Flow",
        steps=dict.fromkeys(names, WORKERS),
        backend="trio",
        wall_offset=0.0,
    )
    last = r.RunEnded(max(ends.values()), status="completed", event=1)
    return Recording.from_records([[first, *(record for _, record in found), last]])


def frames(events: list[dict[str, object]]) -> list[float]:
    """Return the milliseconds between animation frames, from a trace, while the page was scrolled."""
    acts = sorted(float(one["ts"]) for one in events if one.get("name") == "acted")  # type: ignore[arg-type]
    return [(b - a) / 1_000 for a, b in pairwise(acts)]


def measure(count: int, folder: Path) -> dict[str, float]:
    """Return the figures of a page with a number of invocations."""
    path = folder / f"{count}.html"
    recording = synthetic(count)
    began = perf_counter()
    write_timeline(recording, path)
    writing = perf_counter() - began
    browser_path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_context(offline=True, viewport={"width": 1280, "height": 800}).new_page()
        began = perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        first = perf_counter() - began
        trace = folder / "trace.json"
        browser.start_tracing(
            page=page, path=trace, categories=["devtools.timeline", "blink.user_timing"]
        )
        page.evaluate(SCROLL)
        browser.stop_tracing()
        browser.close()
    times = sorted(frames(json.loads(trace.read_text())["traceEvents"]))
    return {
        "invocations": count,
        "MB": path.stat().st_size / 1e6,
        "write s": writing,
        "first picture s": first,
        "p50 frame ms": times[len(times) // 2],
        "p95 frame ms": times[int(len(times) * 0.95)],
        "frames": len(times),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[1, 1_000, 100_000])
    counts = parser.parse_args(argv).counts
    with tempfile.TemporaryDirectory() as folder:
        for number, count in enumerate(counts):
            row = measure(count, Path(folder))
            if not number:
                print("".join(f"{name:>16}" for name in row))
            print(
                "".join(
                    f"{value:>16,.3g}" if isinstance(value, float) else f"{value:>16,}"
                    for value in row.values()
                ),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
