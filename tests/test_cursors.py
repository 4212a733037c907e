"""Cursors: where a reader is in a run's stream, in any process and in any life of the run (D3).

A hand-made store keeps the durable events of a run; its lives are logs, one after the other.
"""

from __future__ import annotations

import random
import re
import threading

import anyio
import pytest
import trio

from sluicegate import Event, InternalEvent, StopEvent, WorkflowDetachedEvent
from sluicegate._cursors import Cursor, Numbering, read_after
from sluicegate._handler import run_of
from sluicegate._streams import EventLog, EventStream
from tests.helpers import (
    Driven,
    Item,
    Quick,
    calls_of,
    limit,
    run_virtually,
    wait_until_idle,
)


class Shown(Event):
    """An event of a durable run: where it is in the stream."""

    durable: int
    life: int
    live: int

    @property
    def cursor(self):
        return Cursor(self.durable, self.life, self.live).text()


class Hidden(InternalEvent):
    """An event that only readers of internal events get."""


class Story:
    """A durable run, as its readers see it: a store, and the log of the life that it is in."""

    def __init__(self, *, window=64, history=10_000, most=1_000):
        self.window, self.history, self.most = window, history, most
        self.store = []
        self.life = 0
        self.reads = []
        #: Called by each read, before it returns.
        self.on_read = anyio.lowlevel.checkpoint
        self.begin()

    def begin(self):
        """Begin the next life."""
        self.life += 1
        self.log = EventLog(window=self.window, history=self.history)
        self.log.make_durable(len(self.store), self)
        self.log.begin_life(self.life, len(self.store))
        self.live = 0
        #: What this life has shown, in order.
        self.shown = []

    def rest(self):
        """Begin the next life in the same log: the run has rested, and this process goes on with it."""
        self.life += 1
        self.log.begin_life(self.life, len(self.store))
        self.live = 0

    async def read(self, after, up_to):
        self.reads.append((after, up_to))
        await self.on_read()
        return [(event.durable, event) for event in self.store[after:up_to][: self.most]]

    def write(self, *, durable=False, count=1):
        """Publish events; a durable one is in the store before."""
        for _ in range(count):
            if durable:
                event = Shown(durable=len(self.store) + 1, life=self.life, live=0)
                self.store.append(event)
                self.log.append_durable(event, event.durable)
                self.live = 0
            else:
                self.live += 1
                event = Shown(durable=len(self.store), life=self.life, live=self.live)
                self.log.append(event)
            self.shown.append(event)

    def end(self):
        """End the run, with a durable terminal event."""
        event = StopEvent(result=len(self.store) + 1)
        self.store.append(event)
        self.log.close(event, len(self.store))

    def detach(self):
        """End the life; the log's last event is no durable one."""
        self.log.close(WorkflowDetachedEvent(reason="it is released"))

    def reader(self, after=0, **options):
        start = read_after(after, is_durable=True)
        return EventStream(self.log, after=start, **options)


async def take(stream, count):
    return [await stream.receive() for _ in range(count)]


async def rest_of(stream):
    return [event async for event in stream]


def numbers(events):
    """Return the positions of events: ``"2"`` is durable event 2, ``"2+1"`` the first live one behind."""
    return [
        type(e).__name__
        if not isinstance(e, Shown)
        else f"{e.durable}+{e.live}"[: None if e.live else -2]
        for e in events
    ]


# -- what a cursor is --------------------------------------------------------------------------------


def test_layout_of_a_cursor():
    """The durable events, nine digits of the life, fifteen of the live ones: it is documented so."""
    assert Cursor(12, 3, 7).text() == "12" + "000000003" + "000000000000007"
    assert Cursor(0, 0, 7).text() == "7"
    assert Cursor(0, 2, 0).text() == "2000000000000000"


@pytest.mark.anyio
async def test_cursor_of_a_run_without_a_store_is_its_sequence():
    """A str of it; a reader that starts there gets what follows."""
    async with Quick().run() as handler:
        stream = handler.stream_events()
        assert stream.cursor == "0"
        await stream.receive()
        assert stream.cursor == "1" == str(stream.sequence)
        assert run_of(handler).log.numbering is None
        with handler.stream_events(after=stream.cursor) as second:
            assert [e.get("number") async for e in second] == [1, 2, None]
            assert second.cursor == "4"

    assert second.cursor == "4"
    late = handler.stream_events(after="0")
    assert len(await rest_of(late)) == 4
    assert late.missed == 0


@pytest.mark.anyio
async def test_cursor_behind_what_is_kept_starts_at_the_oldest_and_says_so():
    """As for numbers."""
    workflow = Driven(stream_history=4)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        for n in range(20):
            workflow.write(n)
        by_cursor, by_number = handler.stream_events(after="3"), handler.stream_events(after=3)
        assert by_cursor.missed == by_number.missed == 13
        assert (await by_cursor.receive()).number == (await by_number.receive()).number == 16
        assert by_cursor.cursor == "17"
        by_cursor.close()
        by_number.close()
        workflow.end.set()


BAD = {
    "a float": (
        1.5,
        "after is 1.5; expected the `stream.cursor` of a reader, the number of an event, or 0 for the",
    ),
    "a bool": (True, "after is True; expected the `stream.cursor`"),
    "None": (None, "after is None; expected the `stream.cursor`"),
    "negative": (-1, "after is -1; expected the `stream.cursor`"),
    "empty": ("", "after is ''; expected the `stream.cursor`"),
    "a word": ("last", "after is 'last'; expected the `stream.cursor`"),
    "signed": ("-1", "after is '-1'; expected the `stream.cursor`"),
    "spaced": (" 1", "after is ' 1'; expected the `stream.cursor`"),
    "digits of others": ("\u0661", "after is '\u0661'; expected the `stream.cursor`"),
    "underscored": ("1_000", "after is '1_000'; expected the `stream.cursor`"),
    "long": ("1" * 5_000, "which is too long for a cursor; expected `stream.cursor`"),
    "an int that is a cursor": (
        int(Cursor(1, 1, 0).text()),
        "expected a cursor as the str that it is: `after='1000000001000000000000000'`",
    ),
}


@pytest.mark.parametrize(("after", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("is_durable", [False, True])
def test_bad_position_is_refused(after, message, is_durable):
    """ValueError: what it was, and what was expected."""
    with pytest.raises(ValueError, match=re.escape(message)):
        read_after(after, is_durable=is_durable)


def test_cursor_of_another_kind_of_run_is_refused():
    """It cannot be one of this run."""
    for after in (Cursor(1, 1, 0), Cursor(0, 1, 3), Cursor(2, 0, 0)):
        with pytest.raises(
            ValueError, match="a cursor of a durable run, and this run has no store"
        ):
            read_after(after.text(), is_durable=False)
    with pytest.raises(
        ValueError, match="'7', a cursor of a run without a store, and this run has one"
    ):
        read_after("7", is_durable=True)
    assert read_after("7", is_durable=False) == 7
    assert read_after(7, is_durable=True) == 7
    assert read_after(Cursor(2, 0, 0).text(), is_durable=True) == Cursor(2, 0, 0)


@pytest.mark.anyio
async def test_refused_position_starts_nothing():
    """The run is still to be started, and says so by itself."""
    handler = Quick().run()
    with pytest.raises(ValueError, match="after is 'x'"):
        handler.stream_events(after="x")
    assert handler.status == "unstarted"
    await handler


# -- within a life -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cursor_counts_durable_events_and_live_ones_behind_them():
    """And orders as the stream does."""
    story = Story()
    story.write(count=2)
    story.write(durable=True, count=2)
    story.write(count=1)
    story.write(durable=True)
    story.end()
    stream = story.reader()
    seen = [int(stream.cursor)]
    for event in story.shown:
        assert await stream.receive() is event
        assert stream.cursor == event.cursor
        seen.append(int(stream.cursor))
    await stream.receive()
    assert stream.cursor == Cursor(4, 1, 0).text()
    assert seen == sorted(set(seen))
    assert story.reads == []


@pytest.mark.anyio
async def test_reader_starts_behind_a_cursor_of_this_life():
    """At any position; nothing is read from the store while the log has it."""
    story = Story()
    for _ in range(3):
        story.write(count=2)
        story.write(durable=True)
    story.end()
    for n, event in enumerate(story.shown, 1):
        for after in (event.cursor, n):
            stream = story.reader(after)
            assert stream.cursor == event.cursor
            assert await rest_of(stream) == [*story.shown[n:], story.store[-1]]
            assert stream.missed == 0
    assert story.reads == []


@pytest.mark.anyio
async def test_internal_events_count_as_live_ones():
    """A reader that does not get them passes them."""
    story = Story()
    story.write(durable=True)
    story.log.append(Hidden())
    story.log.append(Hidden())
    story.live = 2
    story.write()
    stream = story.reader()
    await take(stream, 2)
    assert stream.cursor == Cursor(1, 1, 3).text()


@pytest.mark.anyio
async def test_closing_keeps_the_cursor():
    """Also when the log goes on, and forgets."""
    story = Story(history=4)
    story.write(durable=True, count=2)
    story.write()
    with story.reader() as stream:
        await take(stream, 3)
    story.write(durable=True, count=100)
    assert stream.cursor == Cursor(2, 1, 1).text()


# -- over lives --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cursor_of_a_dead_life_continues_behind_its_durable_part():
    """The live events of the dead life are gone; those of this one count anew."""
    story = Story()
    story.write(durable=True, count=2)
    story.write(count=3)
    stream = story.reader()
    await take(stream, 4)
    cursor = stream.cursor
    story.detach()
    story.begin()
    story.write(count=1)
    story.write(durable=True)
    story.end()
    again = story.reader(cursor)

    assert cursor == Cursor(2, 1, 2).text()
    assert again.cursor == Cursor(2, 2, 0).text()
    assert numbers(await rest_of(again)) == ["2+1", "3", "StopEvent"]
    assert again.missed == 0
    assert int(again.cursor) > int(cursor)


@pytest.mark.anyio
async def test_durable_events_of_dead_lives_are_read_from_the_store():
    """From wherever the cursor is; then the log goes on without a gap."""
    story = Story(most=2)
    for _ in range(3):
        story.write(durable=True, count=3)
        story.write(count=2)
        story.detach()
        story.begin()
    story.write(count=1)
    story.write(durable=True)
    for after, expected in (
        ("0", [*"123456789"]),
        (Cursor(2, 1, 0).text(), [*"3456789"]),
        (Cursor(4, 2, 0).text(), [*"56789"]),
        (Cursor(6, 2, 2).text(), [*"789"]),
        (Cursor(8, 0, 0).text(), ["9"]),
        (Cursor(9, 3, 1).text(), []),
        (0, [*"123456789"]),
    ):
        stream = story.reader(after)
        found = await take(stream, len(expected) + 2)
        assert numbers(found) == [*expected, "9+1", "10"]
        assert stream.cursor == Cursor(10, 4, 0).text()
        assert stream.missed == 0
        stream.close()
    assert (0, 9) in story.reads
    assert (8, 9) in story.reads


@pytest.mark.anyio
async def test_cursor_while_the_store_is_read():
    """It is of the event that was taken, in this life; a reader that starts there goes on."""
    story = Story(most=3)
    story.write(durable=True, count=5)
    story.begin()
    story.write(durable=True)
    stream = story.reader("0")
    assert stream.cursor == "0"
    for n in range(1, 7):
        assert numbers(await take(stream, 1)) == [str(n)]
        assert stream.cursor == Cursor(n, 2, 0).text()
        with story.reader(stream.cursor) as other:
            assert numbers(await take(other, 6 - n)) == [str(k) for k in range(n + 1, 7)]
    stream.close()
    assert stream.cursor == Cursor(6, 2, 0).text()


@pytest.mark.anyio
async def test_durable_events_that_the_log_has_dropped_are_read_from_the_store():
    """Of this life as well; what was live among them is missed, and counted."""
    story = Story(history=5)
    for _ in range(10):
        story.write(count=1)
        story.write(durable=True)
    story.end()
    stream = story.reader()
    missed = stream.missed
    found = await rest_of(stream)

    durable = [e for e in found if isinstance(e, Shown) and not e.live]
    live = [e for e in found if isinstance(e, Shown) and e.live]
    assert [e.durable for e in durable] == list(range(1, 11))
    assert len(live) == 2
    assert stream.missed == missed == 8
    near = story.reader(Cursor(1, 1, 0).text())
    assert [e.durable for e in await rest_of(near) if isinstance(e, Shown) and not e.live] == list(
        range(2, 11)
    )


@pytest.mark.anyio
async def test_without_a_way_to_older_events_they_are_missed():
    """``missed`` counts the durable ones that the position shows, and the live ones that are known."""
    log = EventLog(window=4, history=4)
    log.make_durable(5)
    log.begin_life(2, 5)
    for n in range(6, 16):
        log.append(Item(number=n))
        log.append_durable(Item(number=n), n)
    log.close(StopEvent(), 16)
    for after, missed in (
        ("0", 5 + 17),
        (Cursor(3, 1, 9).text(), 2 + 17),
        (Cursor(5, 1, 9).text(), 17),
        (Cursor(15, 2, 0).text(), 0),
        (0, 5 + 17),
        (3, 14),
    ):
        stream = EventStream(log, after=read_after(after, is_durable=True))
        assert stream.missed == missed, after
        left = 1 if after == Cursor(15, 2, 0).text() else 4
        assert len(await rest_of(stream)) == left


@pytest.mark.anyio
async def test_store_that_has_lost_events_is_not_asked_for_ever():
    """A gap is missed, and so is what the store no longer has."""
    story = Story()
    story.write(durable=True, count=6)
    story.begin()
    story.end()
    kept = story.store[2:3], story.store[4:5]

    async def read(after, up_to):
        return [(e.durable, e) for part in kept for e in part if after < e.durable <= up_to]

    story.read = read
    stream = story.reader("0")
    assert numbers(await rest_of(stream)) == ["3", "5", "StopEvent"]
    assert stream.missed == 2 + 1 + 1


@pytest.mark.anyio
async def test_reader_ahead_of_the_log_waits_for_what_it_has_seen():
    """Another reader of the store may have seen an event before this process shows it."""
    story = Story()
    story.write(durable=True, count=2)
    stream = story.reader(Cursor(4, 1, 0).text())
    assert stream.cursor == Cursor(4, 1, 0).text()
    got = []

    async def read():
        async for event in stream:
            got.append(event)

    with limit():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await wait_until_idle()
            story.write(count=3)
            await wait_until_idle()
            story.write(durable=True, count=2)
            await wait_until_idle()
            assert got == []
            assert stream.cursor == Cursor(4, 1, 0).text()
            story.write(count=1)
            story.end()

    assert numbers(got) == ["4+1", "StopEvent"]
    assert stream.missed == 0


@pytest.mark.anyio
async def test_reader_ahead_of_the_log_that_did_not_read_meanwhile():
    """It takes up behind what it has seen, whatever has come since."""
    story = Story()
    stream = story.reader(Cursor(2, 1, 0).text())
    story.write(count=1)
    story.write(durable=True, count=3)
    story.write(count=1)
    assert numbers(await take(stream, 2)) == ["3", "3+1"]


@pytest.mark.anyio
async def test_reader_ahead_of_a_log_that_ends():
    """It gets the terminal event, unless that is one that it has seen."""
    story = Story()
    story.write(durable=True, count=2)
    ahead = story.reader(Cursor(4, 1, 0).text())
    newer = story.reader(Cursor(2, 2, 5).text())
    story.write(count=2)
    story.detach()
    for stream in (ahead, newer, story.reader(Cursor(9, 1, 0).text())):
        assert numbers(await rest_of(stream)) == ["WorkflowDetachedEvent"]
    story.begin()
    stream = story.reader(Cursor(3, 2, 0).text())
    story.end()
    assert await rest_of(stream) == []


# -- several lives in one log ------------------------------------------------------------------------


async def _two_lives():
    """Return a log with two lives of a run, what it has shown, and its end."""
    story = Story()
    story.write(durable=True, count=2)
    story.write(count=2)
    story.rest()
    story.write(count=2)
    story.write(durable=True)
    story.write(count=1)
    story.end()
    return story


@pytest.mark.anyio
async def test_log_of_several_lives():
    """A run that rests and is woken in the same process: its readers go on, its cursors tell the lives."""
    story = await _two_lives()
    stream = story.reader()
    found = []
    for event in story.shown:
        assert await stream.receive() is event
        found.append(stream.cursor)
    assert found == [
        Cursor(*parts).text()
        for parts in (
            (1, 1, 0),
            (2, 1, 0),
            (2, 1, 1),
            (2, 2, 0),  # behind 2+2 of life 1, the same place
            (2, 2, 1),
            (2, 2, 2),
            (3, 2, 0),
            (3, 2, 1),
        )
    ]


@pytest.mark.anyio
async def test_cursor_of_any_life_in_a_log_of_several():
    """It starts exactly behind its event; one of a life elsewhere, behind what is older."""
    story = await _two_lives()
    for n, event in enumerate(story.shown, 1):
        assert await rest_of(story.reader(event.cursor)) == [*story.shown[n:], story.store[-1]]
    for cursor, expected in (
        (Cursor(2, 0, 0), ["2+1", "2+2", "2+1", "2+2", "3", "3+1", "StopEvent"]),
        (Cursor(2, 1, 9), ["2+1", "2+2", "3", "3+1", "StopEvent"]),
        (Cursor(2, 2, 9), ["3", "3+1", "StopEvent"]),
        (Cursor(2, 3, 1), ["3", "3+1", "StopEvent"]),
        (Cursor(3, 1, 4), ["3+1", "StopEvent"]),
    ):
        assert numbers(await rest_of(story.reader(cursor.text()))) == expected, cursor


@pytest.mark.anyio
async def test_log_that_follows_another_process():
    """It has only durable events then; a cursor of that process starts behind its own."""
    story = Story()
    story.write(durable=True, count=2)
    story.rest()  # another process claims it in life 3, and shows live events that are not here
    streams = {
        c: story.reader(c.text()) for c in (Cursor(2, 3, 4), Cursor(3, 3, 1), Cursor(4, 3, 0))
    }
    assert not any(stream.missed for stream in streams.values())
    story.write(durable=True, count=2)
    expected = {2: ["3", "4"], 3: ["4"], 4: []}
    story.end()
    for cursor, stream in streams.items():
        assert numbers(await rest_of(stream)) == [*expected[cursor.durable], "StopEvent"]


def test_life_begins_where_the_log_is():
    """Durable events that a log does not have cannot be behind one that it has."""
    log = EventLog(window=4, history=4)
    log.make_durable(3)
    log.begin_life(1, 3)
    log.append_durable(EVENT, 4)
    log.begin_life(2, 4)
    with pytest.raises(AssertionError):
        log.begin_life(3, 7)


# -- cancellation, closing, failing ------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("is_woken", [False, True], ids=["waiting", "woken"])
async def test_reader_that_is_cancelled_in_the_fetch_loses_nothing(is_woken):
    """It can be read on, and gets every event once; asyncio cancels a task that is already woken, too."""
    story = Story(most=2)
    story.write(durable=True, count=6)
    story.begin()
    story.write(durable=True)
    stream = story.reader("0")
    found = []
    attempts = 0

    async def fetch():
        nonlocal attempts
        attempts += 1
        is_fetched = anyio.Event()
        if attempts % 2:

            async def cancel():
                await wait_until_idle(3)
                if is_woken:
                    is_fetched.set()
                scope.cancel()

            tasks.start_soon(cancel)
            await is_fetched.wait()
        else:
            await anyio.lowlevel.checkpoint()

    story.on_read = fetch
    async with anyio.create_task_group() as tasks:
        while len(found) < 7:
            with anyio.CancelScope() as scope:
                found += await take(stream, 1)
            await wait_until_idle(10)

    assert numbers(found) == [*"1234567"]
    assert attempts == 6 or (is_woken and attempts == 3)
    assert stream.missed == 0
    stream.close()


@pytest.mark.anyio
async def test_reader_in_the_fetch_checks_for_cancellation_at_each_event():
    """P3: also when the events are there already."""
    story = Story()
    story.write(durable=True, count=3)
    story.begin()
    stream = story.reader("0")
    await stream.receive()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.receive()
    assert scope.cancelled_caught
    assert stream.cursor == Cursor(1, 2, 0).text()
    assert numbers(await take(stream, 2)) == ["2", "3"]


@pytest.mark.anyio
async def test_failing_store_is_raised_and_can_be_asked_again():
    """The error of the store leaves the read as it is; the reader has lost nothing."""
    story = Story()
    story.write(durable=True, count=2)
    story.begin()
    error = OSError("disk")

    async def fail():
        await anyio.lowlevel.checkpoint()
        raise error

    story.on_read = fail
    stream = story.reader("0")
    for _ in range(2):
        with pytest.raises(OSError, match="disk") as raised:
            await stream.receive()
        assert raised.value is error
    story.on_read = anyio.lowlevel.checkpoint
    assert numbers(await take(stream, 2)) == ["1", "2"]


@pytest.mark.anyio
async def test_closing_in_the_fetch():
    """The read raises ClosedResourceError, and what was fetched is dropped."""
    story = Story()
    story.write(durable=True, count=2)
    story.begin()
    stream = story.reader("0")

    async def close():
        await anyio.lowlevel.checkpoint()
        stream.close()

    story.on_read = close
    with pytest.raises((trio.ClosedResourceError, anyio.ClosedResourceError)):
        await stream.receive()
    assert stream.cursor == "0"
    assert not story.log.has_readers


@pytest.mark.anyio
async def test_second_task_in_the_fetch_is_refused():
    """As in a wait: each task needs a reader of its own."""
    story = Story()
    story.write(durable=True, count=2)
    story.begin()
    stream = story.reader("0")
    refused = []

    async def intrude():
        try:
            await stream.receive()
        except Exception as error:
            refused.append(type(error).__name__)

    story.on_read = intrude
    assert numbers(await take(stream, 1)) == ["1"]
    assert refused == ["BusyResourceError"]


@pytest.mark.anyio
async def test_events_that_come_while_the_store_is_read_are_kept():
    """P6: the reader is attached to the log from the beginning, and holds up senders (P7)."""
    story = Story(window=4, history=4)
    story.write(durable=True, count=3)
    story.begin()
    stream = story.reader("0")

    async def write():
        story.write(durable=True, count=2)
        story.write(count=20)

    story.on_read = write
    await stream.receive()
    assert story.log.is_full()
    found = await take(stream, 4 + 20)
    assert numbers(found) == ["2", "3", "4", "5", *(f"5+{n}" for n in range(1, 21))]
    assert not story.log.is_full()
    assert stream.missed == 0


@pytest.mark.anyio
async def test_lossy_reader_reads_the_store_and_holds_up_nobody():
    """It gets every durable event until it has reached the log, and counts the live ones it missed."""
    story = Story(window=4, history=4)
    story.write(durable=True, count=3)
    story.begin()
    stream = story.reader("0", lossy=True)

    async def write():
        if len(story.reads) == 1:
            for _ in range(10):
                story.write(durable=True)
                story.write(count=1)

    story.on_read = write
    await stream.receive()
    assert not story.log.is_full()
    found = await take(stream, 14)
    assert numbers(found)[:10] == [*"23456789", "10", "11"]
    assert numbers(found)[-2:] == ["13", "13+1"]
    assert stream.missed == 8
    assert [e.durable for e in found if not e.live] == list(range(2, 14))


@pytest.mark.anyio
async def test_cursor_of_a_lossy_reader_that_has_fallen_behind():
    """It is of the last event taken, although the log no longer knows it: D3, nothing is skipped."""
    story = Story(window=4, history=4)
    story.write(durable=True, count=2)
    story.write()
    lossy, becomes = story.reader(0, lossy=True), story.reader(0)
    for stream in (lossy, becomes):
        await take(stream, 3)
    story.log.detach_all()
    story.write(durable=True, count=200)
    for stream in (lossy, becomes):
        assert stream.cursor == Cursor(2, 1, 1).text()
        assert stream.missed == 196
        await stream.receive()
        assert stream.cursor == Cursor(199, 1, 0).text()
    with story.reader(Cursor(2, 1, 1).text()) as again:
        assert [e.durable for e in await take(again, 200)] == list(range(3, 203))


# -- all of it ---------------------------------------------------------------------------------------


async def _one_story(seed):
    """Tell a random story over three lives; check each reader against what was shown."""
    rng = random.Random(seed)
    story = Story(
        window=rng.choice([1, 4, 64]),
        history=rng.choice([1, 3, 10, 200]),
        most=rng.choice([1, 2, 9]),
    )
    cursors = ["0"]
    for life in range(1, 4):
        readers = []
        for _ in range(rng.randrange(60)):
            what = rng.random()
            if what < 0.3:
                story.write(durable=True, count=rng.choice([1, 1, 5]))
            elif what < 0.6:
                story.write(count=rng.choice([1, 1, 7]))
            elif what < 0.63:
                story.rest()
            elif what < 0.75:
                after = rng.choice(cursors)
                if rng.random() < 0.1:
                    after = Cursor(len(story.store) + 2, story.life, 0).text()
                readers.append((story.reader(after), after, [], len(story.shown)))
            elif readers:
                stream, _, got, _ = rng.choice(readers)
                await _take_some(story, stream, got, rng.randrange(5))
                cursors.append(stream.cursor)
                if rng.random() < 0.2:  # a second reader gets the same from there
                    readers.append(
                        (story.reader(stream.cursor), stream.cursor, [], len(story.shown))
                    )
        is_last = life == 3
        story.end() if is_last else story.detach()
        for stream, after, got, begun in readers:
            got += await rest_of(stream)
            _check(story, stream, after, got, begun)
        if not is_last:
            story.begin()


async def _take_some(story, stream, got, count):
    for _ in range(count):
        with anyio.move_on_after(1):  # virtual time passes if there is nothing to take
            before = int(stream.cursor)
            event = await stream.receive()
            got.append(event)
            cursor = read_after(stream.cursor, is_durable=True)
            assert cursor.durable == event.durable
            assert cursor.life <= story.life
            if event.live and cursor.live:  # else a life begins behind it
                assert stream.cursor == event.cursor
            assert int(stream.cursor) > before


def _check(story, stream, after, got, begun):
    """Check what a reader got from a position on: no durable event missed, none twice, in order."""
    seen = int(after) // 10**24
    last = got.pop() if got and not isinstance(got[-1], Shown) else None
    durable = [e.durable for e in got if not e.live]
    shown = len(story.store) - isinstance(story.store[-1], StopEvent) if story.store else 0
    assert durable == list(range(seen + 1, shown + 1)), (after, numbers(got))
    live = [e for e in got if e.live]
    assert all(any(e is one for one in story.shown) for e in live)
    # Everything that came after the reader was attached, from where it stands on.
    expected = [
        e
        for e in story.shown[begun:]
        if e.live and int(e.cursor) > int(after) and e.durable >= seen
    ]
    assert live[len(live) - len(expected) :] == expected
    places = [story.shown.index(e) for e in got if e in story.shown]
    assert places == sorted(set(places))
    if last is None:
        assert seen > shown


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize(
    "seeds",
    [range(25), pytest.param(range(25, 120), marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_no_reader_misses_or_reorders_a_durable_event(backend, seeds):
    """D3: over random lives, cursors, drops, and readers that come, go and are ahead."""
    for seed in seeds:

        async def main(seed=seed):
            try:
                await _one_story(seed)
            except BaseException as error:
                error.add_note(f"in the story {seed}")
                raise

        run_virtually(backend, main)


# -- cost --------------------------------------------------------------------------------------------


def test_numbering_is_as_long_as_what_the_log_keeps():
    """It forgets with the log, half at a time."""
    log = EventLog(window=4, history=100)
    log.begin_life(1, 0)
    longest = 0
    for n in range(1, 5_001):
        log.append_durable(Item(number=n), n)
        longest = max(longest, len(log.numbering._marks))
    assert longest < 250
    assert log.numbering.sequence_of(Cursor(4_990, 1)) == 4_990
    assert log.numbering.sequence_of(Cursor(10, 1)) is None


def test_durable_event_costs_the_same_however_many_there_are():
    """An entry for each; a live event costs nothing more than without a store."""

    def cost(count, *, is_durable, life=1):
        log = EventLog(window=4, history=500)
        if life:
            log.begin_life(life, 0)

        def write():
            for n in range(1, count + 1):
                if is_durable:
                    log.append_durable(EVENT, n)
                else:
                    log.append(EVENT)

        return calls_of(write)

    assert cost(8_000, is_durable=True) <= 2.1 * cost(4_000, is_durable=True)
    assert cost(1_000, is_durable=False) == cost(1_000, is_durable=False, life=0)


EVENT = Item(number=0)


def test_cursor_is_read_in_another_thread():
    """``stream.cursor`` is right there too, while the log goes on and forgets."""
    log = EventLog(window=4, history=50)
    log.begin_life(1, 0)
    stream = EventStream(log)
    seen = []
    stop = threading.Event()

    def look():
        while not stop.is_set():
            seen.append(stream.cursor)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for n in range(1, 3_000):
            log.append_durable(EVENT, n)
            stream._position.at = log.next
    finally:
        stop.set()
        thread.join()
    found = [int(cursor) for cursor in seen]
    assert found == sorted(found)
    assert stream.cursor == Cursor(2_999, 1, 0).text()
    stream.close()


def test_gap_in_the_numbers_is_no_fault():
    """A store may count what this log never shows."""
    numbering = Numbering(0, 0, 1, None)
    numbering.note(1, 3, 1)
    numbering.note(2, 7, 1)
    assert numbering.sequence_of(Cursor(5, 1, 2)) == 1
    assert numbering.cursor(1) == Cursor(3, 1, 0)
    assert numbering.last == 7
