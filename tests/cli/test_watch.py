"""``sluicegate run --watch``: what is known of a run, the tree, the lines, and the terminal."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from functools import partial

import pytest
from rich.console import Console
from rich.text import Text

from sluicegate import Event, ProgressEvent
from sluicegate import records as r
from sluicegate.cli import _watch_terminal, _watch_tree
from sluicegate.cli._watch import Watch, Watcher
from sluicegate.cli._watch_lines import Lines
from sluicegate.cli._watch_terminal import Region
from sluicegate.cli._watched import WatchedRuns
from tests.cli.screen import Screen


class Url(Event):
    path: str


class Page(Event):
    text: str


class Told:
    """Records of one run, at ten seconds since it began; the clock of its loop is at 1,000 then."""

    def __init__(self, run_id="shop-1", **options):
        self.run_id = run_id
        self.at = 990.0
        self.event = self.invocation = self.wait = 0
        self.records = []
        steps = options.pop("steps", {"begin": 4, "fetch": 2, "end": 4})
        self.add(
            r.RunStarted,
            run_id=run_id,
            workflow=options.pop("workflow", "Shop"),
            steps=steps,
            backend="trio",
            wall_offset=time.time() - 1000.0,
            **options,
        )

    def add(self, kind, *fields, **named):
        self.records.append(kind(self.at, *fields, **named))

    def emit(self, source, *targets, value=None, origin="step"):
        self.event += 1
        value = Url(path=f"/{self.event}") if value is None else value
        self.add(r.EventEmitted, self.event, type(value).__name__, origin, source, targets, value)
        return self.event

    def queue(self, step, *events, **fields):
        self.invocation += 1
        self.add(r.InvocationQueued, self.invocation, step, events, **fields)
        return self.invocation

    def begin(self, number):
        self.add(r.InvocationStarted, number, number)

    def end(self, number, outcome="completed", error=None):
        self.add(r.InvocationEnded, number, outcome, error)

    def fan_out(self, count):
        """A first step has returned a list of events; return the invocations that they make."""
        first = self.queue("begin", self.emit(None, "begin", origin="outside"))
        self.begin(first)
        events = [self.emit(first, "fetch") for _ in range(count)]
        queued = [self.queue("fetch", event) for event in events]
        self.end(first)
        return queued

    def report(self, number, step, done, total=None, message=""):
        report = ProgressEvent(
            run_id=self.run_id,
            step=step,
            invocation=number,
            done=done,
            total=total,
            message=message,
        )
        self.add(r.EventStreamed, 1, "ProgressEvent", number, report)


def watched(*tellings):
    """Return what is known after the records of some runs."""
    runs = WatchedRuns()
    for told in tellings:
        for record in told.records:
            runs.take(told.run_id, record)
    return runs


def tree_of(*tellings, width=100, height=40):
    """Return the lines of the tree; lengths of time, which depend on the clock, as ``T``."""
    console = Console(file=io.StringIO(), width=width, record=True)
    drawn = _watch_tree.draw(watched(*tellings), height)
    console.print(drawn, overflow="ellipsis", no_wrap=True)
    return [re.sub(r"\d+\.\d s", "T", line.rstrip()) for line in console.export_text().splitlines()]


def lines_of(*tellings):
    out = io.StringIO()
    lines = Lines(out)
    for told in tellings:
        for record in told.records:
            lines.take(told.run_id, record)
    return out.getvalue().splitlines()


# -- the tree ------------------------------------------------------------------------------------------


def test_the_tree_shows_steps_workers_queues_and_a_bar_for_a_fan_out():
    """A fan-out has a known size, so its step has a bar; each running invocation has its event."""
    told = Told(timeout=60.0)
    numbers = told.fan_out(8)
    told.begin(numbers[0])
    told.begin(numbers[1])
    told.end(numbers[0])
    told.begin(numbers[2])

    assert tree_of(told) == [
        "Shop shop-1  T  timeout in T",
        "├── begin  1 done",
        "├── fetch  2 of 2 workers  5 queued  ██░░░░░░░░░░░░░░░░░░ 1 of 8  1 done",
        "│   ├── #3 Url(path='/3')  T",
        "│   └── #4 Url(path='/4')  T",
        "└── end",
    ]


def test_a_step_whose_size_is_not_known_has_no_bar():
    """Events that come one by one have no size."""
    told = Told()
    for _ in range(3):
        told.at += 1
        told.begin(told.queue("fetch", told.emit(None, "fetch", origin="outside")))

    assert tree_of(told)[2] == "├── fetch  3 of 2 workers"


def test_progress_reports_are_bars():
    """``ctx.progress`` with a total is a bar, without one a number; the newest report counts."""
    told = Told()
    first, second, third = told.fan_out(3)
    for number in (first, second, third):
        told.begin(number)
    told.report(first, "fetch", 10, 100, "page 10")
    told.report(first, "fetch", 50, 100, "page 50")
    told.report(second, "fetch", 1234, message="bytes")
    told.report(third, "fetch", 7, 5)

    lines = tree_of(told)

    assert lines[3].endswith("T  ██████████░░░░░░░░░░ 50 of 100  page 50")
    assert lines[4].endswith("T  1,234  bytes")
    assert lines[5].endswith("T  ████████████████████ 7 of 5")


def test_waits_count_down():
    """An invocation says what it waits for, and when it gives up; a wait that is over is gone."""
    told = Told()
    first, second = told.fan_out(2)
    told.begin(first)
    told.begin(second)
    told.add(r.WaitStarted, 1, first, "event", "Answer", 1030.0)
    told.add(r.WaitStarted, 2, second, "limiter")
    told.add(r.WaitStarted, 3, second, "thread")
    told.add(r.WaitEnded, 2)

    lines = tree_of(told)

    assert lines[3].endswith("waits for Answer, gives up in T")
    assert lines[4].endswith("T  waits for a thread")
    counted = _watch_tree._invocation(*_only_invocation(watched(told), first))
    assert re.search(r"gives up in (30\.0|29\.\d) s", counted.plain)


def _only_invocation(runs, number):
    run = next(iter(runs.runs.values()))
    return run.invocations[number], run


def test_retries_are_shown_with_their_delay():
    """A failed attempt is not counted as failed as long as there is another."""
    told = Told()
    first, second = told.fan_out(2)
    told.begin(first)
    again = told.queue("fetch", 2, attempt=2, previous=first, not_before=1005.0)
    told.end(first, "failed", ValueError())
    told.begin(second)
    told.end(second, "failed", ValueError())

    lines = tree_of(told)
    assert lines[2] == "├── fetch  ██████████░░░░░░░░░░ 1 of 2  1 failed"
    assert lines[3] == "│   └── #4 Url(path='/2')  attempt 2 in T"

    told.begin(again)
    told.end(again)
    assert tree_of(told)[2] == "├── fetch  1 done  1 failed"


def test_children_are_below_their_step():
    """The run of a child is shown below the invocation that runs it, and goes when it has ended."""
    told = Told()
    (first,) = told.fan_out(1)
    told.begin(first)
    told.add(r.ChildStarted, first, "child-1", "Inner")
    told.add(r.WaitStarted, 1, first, "child", "child-1")
    child = Told("child-1", workflow="Inner", steps={"only": 1}, parent_run="shop-1")
    child.begin(child.queue("only", child.emit(None, "only", origin="outside")))

    assert tree_of(told, child)[3:6] == [
        "│   └── #2 Url(path='/2')  T",
        "│       └── Inner child-1  T",
        "│           └── only  1 of 1 worker",
    ]

    child.add(r.RunEnded, status="completed")
    told.add(r.ChildEnded, "child-1", "completed")
    told.add(r.WaitEnded, 1)
    assert "child-1" not in "\n".join(tree_of(told, child))


def test_questions_cancellations_and_ends_are_shown():
    """The run says what it asks, why it unwinds, and how it has ended."""
    told = Told()
    (first,) = told.fan_out(1)
    told.begin(first)
    told.add(r.QuestionAsked, "q-1", "Url", first, Url(path="?"))
    assert tree_of(told)[-1] == "└── asks Url(path='?')"

    told.add(r.QuestionAnswered, "q-1", 5)
    told.add(r.CancellationRequested, 1, "owner", "Ctrl-C", "run")
    told.add(r.CancellationDelivered, first, 1)
    lines = tree_of(told)
    assert lines[0] == "Shop shop-1  T  unwinds: Ctrl-C"
    assert lines[3].endswith("T  unwinds")

    told.end(first, "cancelled")
    told.add(r.RunEnded, status="failed", error=ValueError("x"))
    lines = tree_of(told)
    assert lines[0] == "Shop shop-1  T  failed: ValueError"
    assert lines[2] == "├── fetch  1 cancelled"


@pytest.mark.parametrize("height", [4, 8, 20])
def test_a_tree_fits_into_the_terminal(height):
    """Where there is little room, fewer invocations are shown; the others are counted."""
    told = Told(steps={"begin": 1, "fetch": 1000, "end": 1})
    for number in told.fan_out(1000):
        told.begin(number)

    lines = tree_of(told, height=height)

    assert len(lines) <= max(height, 4)
    if height > 4:
        assert any(re.search(r"\.\.\. \d+ more at work", line) for line in lines)
    assert "1000 of 1,000" not in lines[2]
    assert "1,000 of 1,000 workers" in lines[2]


def test_a_line_of_the_tree_is_cut_at_the_width():
    """A long event or message does not wrap."""
    told = Told()
    (first,) = told.fan_out(1)
    told.begin(first)
    told.report(first, "fetch", 1, 2, "m" * 500)

    lines = tree_of(told, width=60)

    assert len(lines) == 5
    assert max(map(len, lines)) <= 60


def test_what_users_write_is_no_markup():
    """A message with brackets or control characters is shown as it is, and does nothing."""
    told = Told()
    (first,) = told.fan_out(1)
    told.begin(first)
    told.report(first, "fetch", 1, 2, "[bold red]\x1b[2J[/]")

    assert tree_of(told)[3].endswith(r"1 of 2  [bold red]\x1b[2J[/]")


def test_what_has_ended_is_forgotten():
    """Memory is that of what is under way, however many invocations have passed (P16)."""
    told = Told()
    told.fan_out(0)
    for _ in range(500):
        number = told.queue("fetch", told.emit(1, "fetch"))
        told.begin(number)
        told.add(r.WaitStarted, number, number, "limiter")
        told.add(r.WaitEnded, number)
        told.end(number)

    run = next(iter(watched(told).runs.values()))

    assert not (run.invocations)
    assert not (run.waits)
    assert not (run._events)
    assert not any(step.queued or step.running for step in run.steps.values())
    assert run.steps["fetch"].done == run.steps["fetch"].total == 500


# -- the lines -----------------------------------------------------------------------------------------


def test_lines_say_what_happens_and_when():
    """Without a terminal each thing that happens is a line, with the time since the run began."""
    told = Told()
    told.at += 0.5
    first, second = told.fan_out(2)
    told.begin(first)
    told.at += 1
    told.add(r.WaitStarted, 1, first, "event", "Answer", told.at + 30)
    told.queue("fetch", 2, attempt=2, previous=first, not_before=told.at + 2.5)
    told.end(first, "failed", ValueError("x"))
    told.begin(second)
    told.report(second, "fetch", 1, 3, "one")
    told.report(second, "fetch", 2, 3, "two")
    told.report(second, "fetch", 3, 3, "three")
    told.add(r.CancellationRequested, 1, "owner", "Ctrl-C", "run")
    told.add(r.CancellationDelivered, second, 1)
    told.end(second, "cancelled")
    told.add(r.RunEnded, status="cancelled", error=KeyError("x"))

    assert lines_of(told) == [
        "[    0.000s] run shop-1 of Shop begins",
        "[    0.500s] begin #1 takes Url(path='/1')",
        "[    0.500s] begin #1 returns after 0.0 s",
        "[    0.500s] fetch #2 takes Url(path='/2')",
        "[    1.500s] fetch #2 waits for Answer, gives up in 30.0 s",
        "[    1.500s] fetch #4 is attempt 2 at the event of #2, due in 2.5 s",
        "[    1.500s] fetch #2 raises ValueError after 1.0 s",
        "[    1.500s] fetch #3 takes Url(path='/3')",
        "[    1.500s] fetch #3 reports 1 of 3: one",
        "[    1.500s] fetch #3 reports 3 of 3: three",
        "[    1.500s] is cancelled: Ctrl-C",
        "[    1.500s] fetch #3 is cancelled, and unwinds",
        "[    1.500s] fetch #3 has unwound after 0.0 s",
        "[    1.500s] run shop-1 has been cancelled: KeyError",
    ]


def test_lines_tell_that_a_durable_run_continues():
    """A run that left its process has not been lost."""
    told = Told(workflow="Shop")
    told.add(r.RunEnded, status="detached", error=KeyError("x"))

    assert lines_of(told)[-1] == (
        "[    0.000s] run shop-1 has left this process and continues from its store: KeyError"
    )


def test_lines_name_the_run_of_a_child_and_count_the_events_of_a_join():
    """Only the lines of children name their run; a join shows how many events it has."""
    child = Told("child-1", workflow="Inner", parent_run="shop-1")
    events = [child.emit(None, "end", value=Page(text="x")) for _ in range(5)]
    child.begin(child.queue("end", *events))

    assert lines_of(child)[1] == "[    0.000s] Inner child-1: end #1 takes 5 events: Page"


# -- the terminal ----------------------------------------------------------------------------------------


class Tty(io.StringIO):
    """A stream of a terminal, as the tests see it."""

    def __init__(self, screen):
        super().__init__()
        self.screen = screen

    encoding = "utf-8"

    def isatty(self):
        return True

    def write(self, text):
        self.screen.write(text.replace("\n", "\r\n"))
        return len(text)


@pytest.fixture
def open_screen(monkeypatch):
    """Open a terminal of 40 columns and 10 lines, on which both streams write.

    A test opens it itself, because pytest replaces the streams after the fixtures were made.
    """

    def open_it():
        made = Screen(width=40, height=10)
        monkeypatch.setattr(sys, "stdout", Tty(made))
        monkeypatch.setattr(sys, "stderr", Tty(made))
        size = os.terminal_size((made.width, made.height))
        monkeypatch.setattr(_watch_terminal.shutil, "get_terminal_size", lambda: size)
        monkeypatch.setenv("TERM", "xterm")
        return made

    return open_it


class Frames:
    """Draws a number of lines, and counts the frames."""

    def __init__(self, lines=2):
        self.lines = lines
        self.count = 0

    def __call__(self, _height):
        self.count += 1
        return Text("\n".join(f"frame {self.count} line {n}" for n in range(self.lines)))


def test_each_frame_takes_the_place_of_the_last(open_screen):
    """A region is drawn in its place, also when it gets shorter, and its last frame stays."""
    screen = open_screen()
    frames = Frames(3)
    with Region(sys.stderr, frames) as region:
        region.refresh()
        assert screen.shown == ["frame 1 line 0", "frame 1 line 1", "frame 1 line 2", ""]
        frames.lines = 1
        region.refresh()
        assert screen.shown == ["frame 2 line 0", ""]

    sys.stdout.write("after\n")
    assert screen.shown == ["frame 3 line 0", "after", ""]
    assert not screen.is_cursor_hidden


def test_what_is_printed_appears_above(open_screen):
    """Lines of standard output and standard error are above the region, in order."""
    screen = open_screen()
    real = sys.stdout
    with Region(sys.stderr, Frames()) as region:
        region.refresh()
        print("one")
        print("two", file=sys.stderr)
        print("three\nfour")
        assert screen.shown[:4] == ["one", "two", "three", "four"]
        assert screen.shown[4:] == ["frame 1 line 0", "frame 1 line 1", ""]
        region.refresh()

    assert sys.stdout is real
    assert screen.shown == [
        *("one", "two", "three", "four"),
        *("frame 3 line 0", "frame 3 line 1", ""),
    ]


def test_the_beginning_of_a_line_is_part_of_the_region(open_screen):
    """Tokens without a line break are seen at the next frame, and nothing of them is lost."""
    screen = open_screen()
    with Region(sys.stderr, Frames(1)) as region:
        for piece in ("Call", " me", " Ish"):
            sys.stdout.write(piece)
            sys.stdout.flush()
        region.refresh()
        assert screen.shown == ["Call me Ish", "frame 1 line 0", ""]
        sys.stdout.write("mael\nthe")
        assert screen.shown == ["Call me Ishmael", "the", "frame 1 line 0", ""]

    assert screen.shown == ["Call me Ishmael", "the", "frame 2 line 0", "the"]


def test_a_question_has_the_terminal_to_itself(open_screen):
    """Hidden, the region draws nothing and lets everything through; then it is drawn below."""
    screen = open_screen()
    with Region(sys.stderr, Frames(1)) as region:
        region.refresh()
        region.hide()
        sys.stderr.write("Your name? ")
        region.refresh()
        assert screen.shown == ["Your name?"]
        screen.write("Ann\r\n")
        region.show()
        assert screen.shown == ["Your name? Ann", "frame 1 line 0", ""]
        region.hide()
        sys.stderr.write("Your age? ")

    assert screen.shown == ["Your name? Ann", "Your age?", "frame 2 line 0", ""]


def test_a_tree_that_is_higher_than_the_terminal_is_cut(open_screen):
    """A frame never scrolls, because what has scrolled away cannot be drawn anew."""
    screen = open_screen()
    with Region(sys.stderr, Frames(50)) as region:
        region.refresh()
        region.refresh()

        assert len(screen.lines) <= screen.height
        assert screen.shown[0] == "frame 2 line 0"
        assert screen.shown[-2] == "... 44 more lines"


def test_a_terminal_that_cannot_show_a_character_gets_another(open_screen):
    """A terminal of another encoding still gets its frames."""
    screen = open_screen()
    sys.stderr.encoding = "ascii"
    with Region(sys.stderr, lambda _height: Text("█ 1 of 2")) as region:
        region.refresh()

    assert screen.shown == ["? 1 of 2", ""]


def test_many_threads_may_print(open_screen):
    """Lines of several threads do not mix, and the region stays whole."""
    screen = open_screen()

    def print_lines(name):
        for n in range(50):
            print(f"{name} {n}")

    with Region(sys.stderr, Frames(1)) as region:
        threads = [threading.Thread(target=partial(print_lines, name)) for name in "ab"]
        for thread in threads:
            thread.start()
        for _ in range(20):
            region.refresh()
        for thread in threads:
            thread.join()

    printed = screen.shown[:-2]
    assert sorted(printed) == sorted(f"{name} {n}" for name in "ab" for n in range(50))
    assert screen.shown[-2].startswith("frame ")


# -- the thread --------------------------------------------------------------------------------------------


class Info:
    run_id = "shop-1"


def test_the_observer_only_queues():
    """Taking a record costs the run one call of a queue, and never waits."""
    watcher = Watcher()
    take = watcher.listen(Info())
    record = r.SnapshotTaken(1.0)

    take(record)

    assert watcher.records.get_nowait() == ("shop-1", record)


def test_a_watch_without_a_terminal_prints_lines(capsys):
    """Where standard error is no terminal, lines are printed to it, all of them before it ends."""
    told = Told()
    told.fan_out(2)
    with Watch() as watch:
        take = watch.observer.listen(Info())
        for record in told.records:
            take(record)

    assert capsys.readouterr().err.splitlines() == lines_of(told)


def test_a_watch_on_a_terminal_draws_a_tree(open_screen):
    """On a terminal the last frame of the tree stays, with everything that was told."""
    screen = open_screen()
    told = Told()
    told.fan_out(2)
    with Watch() as watch:
        take = watch.observer.listen(Info())
        for record in told.records:
            take(record)

    assert screen.shown[1:-1] == [
        "├── begin  1 done",
        "├── fetch  2 queued  ░░░░░░░░░░░░░░░░░░░░ 0 of 2"[:39] + "…",
        "└── end",
    ]


def test_without_rich_lines_are_printed_with_the_line_that_installs_it(open_screen, monkeypatch):
    """``--watch`` was asked for, so its absence is told once, and the run is shown in any case."""
    screen = open_screen()
    screen.width = 200
    for name in [*sys.modules]:
        if name.partition(".")[0] == "rich":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "sluicegate.cli._watch_terminal")
    monkeypatch.delitem(sys.modules, "sluicegate.cli._watch_tree")
    with Watch() as watch:
        watch.observer.listen(Info())(Told().records[0])

    assert screen.shown[:2] == [
        (
            "sluicegate: --watch draws a tree with rich, which is not installed, and prints lines without "
            "it; expected `pip install 'sluicegate[cli]'`"
        ),
        "[    0.000s] run shop-1 of Shop begins",
    ]


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal_that_moves_no_cursor_gets_lines(open_screen, monkeypatch, term):
    """TERM=dumb says that a terminal knows no control sequences."""
    screen = open_screen()
    monkeypatch.setenv("TERM", term)
    with Watch() as watch:
        watch.observer.listen(Info())(Told().records[0])

    assert screen.shown[0].startswith("[" if term == "dumb" else "Shop")


def test_a_dump_is_printed_above_the_tree(open_screen, monkeypatch):
    """Ctrl-Backslash prints whole lines; the tree is drawn again below them."""
    screen = open_screen()

    def write(_descriptor, data):
        screen.write(data.decode().replace("\n", "\r\n"))
        return len(data)

    monkeypatch.setattr(_watch_terminal.os, "write", write)
    monkeypatch.setattr(Tty, "fileno", lambda _self: 2)
    with Watch() as watch:
        watch.observer.listen(Info())(Told().records[0])
        for _ in range(5000):
            if "Shop" in screen.text:
                break
            time.sleep(0.001)
        assert watch.dump(sys._getframe()) == ""

    text = screen.text
    assert text.startswith("sluicegate: 0 runs in process")
    assert text.rindex("Shop shop-1") > text.index("sluicegate:")
    assert text.count("Shop shop-1") == 1
