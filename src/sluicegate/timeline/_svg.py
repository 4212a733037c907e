"""A timeline as a static picture: what the page shows where scripts are switched off."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sluicegate.timeline._lanes import Bounds, lanes_of, nested
from sluicegate.timeline._text import duration


if TYPE_CHECKING:
    from sluicegate.recording import RecordedInvocation, RecordedRun
    from sluicegate.timeline._lanes import Lane, Span

NAMES, WIDTH, ROW, GAP, TOP = 190, 1_000, 14, 10, 34
#: A lane with more bars than this, or more rows than that, is drawn as the number of its busy rows.
MOST_BARS, MOST_ROWS = 2_000, 40
#: How many lanes a picture shows; the page's script has no such limit.
MOST_LANES = 400


def static_svg(runs: list[RecordedRun]) -> str:
    """Return the picture of runs and their children."""
    order = nested(runs)
    bounds = Bounds([run for run, _ in order])
    lanes = [lane for lane in lanes_of(order, bounds) if lane.bars]
    parts: list[str] = []
    top = TOP
    for lane in lanes[:MOST_LANES]:
        drawn, height = _lane(lane, bounds, top)
        parts += drawn
        top += height + GAP
    if len(lanes) > MOST_LANES:
        parts.append(f'<text x="8" y="{top + 12}">{len(lanes) - MOST_LANES:,} lanes more</text>')
        top += 24
    for run, _ in order[:MOST_LANES]:
        parts += _brackets(run, bounds, top)
    whole = NAMES + WIDTH + 20
    return (
        f'<svg class="still" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {top + 8}" '
        f'role="img" aria-label="Timeline">{_patterns()}{_grid(bounds, top)}{"".join(parts)}</svg>'
    )


def _patterns() -> str:
    return (
        '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path class="hatch" d="M0 0V5"/></pattern></defs>'
    )


def _grid(bounds: Bounds, bottom: int) -> str:
    found: list[str] = []
    for part in range(5):
        x = NAMES + WIDTH * part / 4
        label = duration(bounds.length * part // 4) if part else "0"
        anchor = "end" if part == 4 else "start" if not part else "middle"
        found.append(
            f'<path class="grid" d="M{x:g} 22V{bottom}"/>'
            f'<text class="tick" x="{x:g}" y="15" text-anchor="{anchor}">{label}</text>'
        )
    return "".join(found)


def _lane(lane: Lane, bounds: Bounds, top: int) -> tuple[list[str], int]:
    name = lane.step if len(lane.step) <= 24 else lane.step[:23] + "…"
    parts = [
        (
            f'<text class="lane" x="{8 + 12 * min(lane.depth, 6)}" y="{top + 11}">{escape(_clean(name))}'
            f"<title>{escape(_clean(lane.run.workflow))}.{escape(_clean(lane.step))}</title></text>"
        )
    ]
    if len(lane.bars) > MOST_BARS or lane.height > MOST_ROWS:
        return parts + _summed(lane, bounds, top), 3 * ROW
    for (one, span), row in zip(lane.bars, lane.rows, strict=True):
        parts.append(_bar(one, span, bounds, top + row * ROW))
    return parts, lane.height * ROW


def _bar(one: RecordedInvocation, span: Span, bounds: Bounds, top: int) -> str:
    outcome = one.outcome or "active"
    title = f"{one.step} #{one.number}: {outcome}, {duration(span.ended - span.started)}"
    parts = [f"<g><title>{escape(_clean(title))}</title>"]
    if span.started > span.queued:
        parts.append(_rect("queued", span.queued, span.started, bounds, top + 5, height=3))
    if outcome != "dropped":
        parts.append(_rect(outcome, span.started, span.unwinding, bounds, top, height=ROW - 3))
    for wait in one.waits[:20]:
        start = bounds.at(one.run, wait.started_at)
        end = bounds.at(one.run, wait.ended_at, one.run.last_at)
        parts.append(_rect("waits", max(start, span.started), end, bounds, top + 3, height=ROW - 9))
    if span.ended > span.unwinding:
        parts.append(_rect("unwinding", span.unwinding, span.ended, bounds, top, height=ROW - 3))
    return "".join([*parts, "</g>"])


def _rect(name: str, start: int, end: int, bounds: Bounds, top: int, *, height: int) -> str:
    x = NAMES + WIDTH * start / bounds.length
    width = max(1.0, WIDTH * (end - start) / bounds.length)
    return f'<rect class="{name}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}"/>'


def _summed(lane: Lane, bounds: Bounds, top: int) -> list[str]:
    changes = [0] * (WIDTH + 2)
    for _, span in lane.bars:
        changes[span.started * WIDTH // bounds.length] += 1
        changes[min(WIDTH, span.ended * WIDTH // bounds.length) + 1] -= 1
    height, bottom = 3 * ROW - 2, top + 3 * ROW - 2
    points = [f"M{NAMES} {bottom}"]
    busy = 0
    for x, change in enumerate(changes[: WIDTH + 1]):
        busy += change
        if change:
            # Bars that follow each other within a pixel were not there at the same time.
            share = min(1.0, busy / lane.height)
            points.append(f"H{NAMES + x}V{bottom - height * share:.1f}")
    label = f"{len(lane.bars):,} invocations, at most {lane.height:,} at once"
    return [
        f'<path class="summed" d="{"".join(points)}H{NAMES + WIDTH}V{bottom}Z"/>',
        f'<text class="tick" x="8" y="{top + 26}">{label}</text>',
    ]


def _brackets(run: RecordedRun, bounds: Bounds, bottom: int) -> list[str]:
    found: list[str] = []
    for one in run.cancellations[:50]:
        x = NAMES + WIDTH * bounds.at(run, one.at) / bounds.length
        title = f"{one.scope} cancelled by {one.by}: {one.reason}"
        found.append(
            f'<path class="bracket" d="M{x + 5:.1f} 24H{x:.1f}V{bottom}H{x + 5:.1f}">'
            f"<title>{escape(_clean(title))}</title></path>"
        )
    return found


def _clean(text: str) -> str:
    """Return a text that HTML can contain: no control characters and no halves of characters."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text
    )
