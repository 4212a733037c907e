"""Recorders: in memory and in files, within limits, and on a disk that is full."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import json
import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluicegate import Event
from sluicegate import records as r
from sluicegate.recording import (
    RecordedError,
    Recorder,
    Recording,
    load_recording,
    recording_schema,
)
from sluicegate.recording import _file as file_module
from sluicegate.recording import _recorder as recorder_module
from tests.recording import by_hand


def record(recorder, *runs):
    """Give records of runs to a recorder, as the engine would: in turn, those of each in order."""
    heard = []
    for records in runs:
        hear = recorder.listen(SimpleNamespace(run_id=records[0].run_id))
        heard.append((hear, iter(records)))
    while heard:
        for pair in list(heard):
            hear, records = pair
            one = next(records, None)
            if one is None:
                heard.remove(pair)
            elif hear is not None:
                hear(one)


def told(recording):
    """What a recording tells, without what a file does not keep."""
    return [
        (
            run.run_id,
            run.status,
            [
                (i.number, i.step, i.queued_at, i.started_at, i.ended_at, i.outcome, i.attempt)
                for i in run.invocations
            ],
            [
                (e.number, e.event_type, e.at, e.source and e.source.number, e.fields)
                for e in run.events
            ],
            [(w.number, w.kind, w.started_at, w.ended_at, w.outcome) for w in run.waits],
            [
                (c.by, [(i.invocation.number, i.took) for i in c.invocations])
                for c in run.cancellations
            ],
            run.failure and run.failure.message,
        )
        for run in recording.all_runs
    ]


def emitted(value, **options):
    return [
        by_hand.started(),
        r.EventEmitted(0.0, 1, type(value).__name__, "outside", None, (), value),
        by_hand.ended(1.0, "completed"),
    ]


def fields_in(tmp_path, value, **options):
    """Return the fields of an event as a file has them."""
    with Recorder(tmp_path / "run.jsonl", append=False, **options) as recorder:
        record(recorder, emitted(value))
    return load_recording(tmp_path / "run.jsonl").events[0].fields


# -- memory and file ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", by_hand.ALL)
def test_a_file_tells_the_same_as_memory(name, tmp_path):
    """What a recorder has in memory and what it has in a file answer alike."""
    memory = Recorder()
    with Recorder(tmp_path / "run.jsonl") as file:
        record(memory, by_hand.ALL[name]())
        record(file, by_hand.ALL[name]())
        from_file = file.recording

    assert told(from_file) == told(memory.recording)
    assert told(load_recording(tmp_path / "run.jsonl")) == told(memory.recording)
    assert from_file.damaged == 0
    assert not from_file.is_cut_off


def test_memory_keeps_the_objects():
    """In memory, events and exceptions are the objects themselves."""
    recorder = Recorder()
    records = by_hand.retry()
    record(recorder, records)

    assert recorder.recording.run.error is records[-1].error
    assert recorder.recording.run.records == records
    assert repr(recorder) == "<Recorder in memory>"
    assert recorder.path is None


def test_two_runs_at_once_in_one_file(tmp_path):
    """The lines of several runs are mixed in a file; each run gets its own, children their parents."""
    with Recorder(tmp_path / "run.jsonl") as recorder:
        record(recorder, by_hand.fan_out(), *by_hand.family())
    recording = load_recording(tmp_path / "run.jsonl")

    assert [run.run_id for run in recording.runs] == ["run", "parent"]
    assert recording.find("child").parent.run is recording.find("parent")
    assert len(recording.find("run").records) == len(by_hand.fan_out())


def test_active_runs_of_the_same_identifier_are_apart(tmp_path):
    """Two runs that have one identifier at the same time do not get each other's records."""
    with Recorder(tmp_path / "run.jsonl") as recorder:
        record(recorder, by_hand.fan_out(), by_hand.fan_out())
        record(recorder, by_hand.fan_out())
    recording = load_recording(tmp_path / "run.jsonl")

    assert [run.run_id for run in recording.runs] == ["run"] * 3
    assert [len(run.records) for run in recording.runs] == [len(by_hand.fan_out())] * 3
    assert recording.find("run") is recording.runs[2]


def test_several_threads_share_a_recorder(tmp_path):
    """Runs of event loops in several threads write into one file, and every line is whole."""

    def run(number):
        for n in range(20):
            records = by_hand.fan_out()
            records[0] = by_hand.started(run_id=f"{number}-{n}")
            record(recorder, records)

    with Recorder(tmp_path / "run.jsonl") as recorder:
        threads = [threading.Thread(target=run, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    recording = load_recording(tmp_path / "run.jsonl")

    assert {run.run_id for run in recording.runs} == {
        f"{a}-{b}" for a in range(5) for b in range(20)
    }
    assert {len(run.records) for run in recording.runs} == {len(by_hand.fan_out())}
    assert recording.damaged == 0


def test_a_file_is_continued(tmp_path):
    """A second recorder appends to the file of the first, after a line that was cut off, too."""
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        record(recorder, by_hand.fan_out())
    path.write_bytes(path.read_bytes()[:-10])
    assert load_recording(path).is_cut_off
    with Recorder(path) as recorder:
        record(recorder, by_hand.retry())
    recording = load_recording(path)

    assert [run.status for run in recording.runs] == ["running", "failed"]
    assert recording.damaged == 1
    assert not recording.is_cut_off


def test_a_file_is_replaced(tmp_path):
    """With append=False, an earlier recording of the name is replaced."""
    for _ in range(2):
        with Recorder(tmp_path / "run.jsonl", append=False) as recorder:
            record(recorder, by_hand.fan_out())

    assert len(load_recording(tmp_path / "run.jsonl").runs) == 1


@pytest.mark.parametrize("append", [True, False])
def test_another_file_is_not_touched(tmp_path, append):
    """A file that is no recording is refused, and stays as it is."""
    (tmp_path / "notes.txt").write_text("important")

    with pytest.raises(
        ValueError, match="is no recording, and is not overwritten; expected another"
    ):
        Recorder(tmp_path / "notes.txt", append=append)
    assert (tmp_path / "notes.txt").read_text() == "important"
    with pytest.raises(ValueError, match="is no recording; expected a file that a Recorder has"):
        load_recording(tmp_path / "notes.txt")


def test_a_closed_recorder_records_no_further_run(tmp_path):
    """After close(), which may be repeated, runs are not recorded; those before are in the file."""
    recorder = Recorder(tmp_path / "run.jsonl")
    hear = recorder.listen(SimpleNamespace(run_id="run"))
    for one in by_hand.fan_out()[:5]:
        hear(one)
    recorder.close()
    recorder.close()
    for one in by_hand.fan_out()[5:]:
        hear(one)

    assert recorder.listen(SimpleNamespace(run_id="other")) is None
    assert len(load_recording(tmp_path / "run.jsonl").run.records) == 5
    memory = Recorder()
    memory.close()
    assert memory.listen(SimpleNamespace(run_id="other")) is None


def test_records_are_written_while_the_run_is_active(tmp_path):
    """The thread writes in time what is pending, and ends when no run is active."""
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path)
    hear = recorder.listen(SimpleNamespace(run_id="run"))
    (thread,) = [t for t in threading.enumerate() if t.name == "sluicegate recording"]
    for one in by_hand.fan_out()[:5]:
        hear(one)
    while not load_recording(path).runs:  # at most a quarter of a second
        thread.join(0.01)
    assert len(load_recording(path).run.records) == 5
    for one in by_hand.fan_out()[5:]:
        hear(one)

    assert load_recording(path).run.status == "completed"  # before the thread looks again
    thread.join()
    recorder.close()


def test_many_records_are_written_at_once(tmp_path):
    """When a run has 256 records pending, they are written by its own thread."""
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        hear = recorder.listen(SimpleNamespace(run_id="run"))
        hear(by_hand.started())
        for n in range(file_module.MOST_RECORDS - 1):
            hear(r.EventEmitted(0.0, n, "E", "outside", None, (), {}))

        assert len(load_recording(path).events) == file_module.MOST_RECORDS - 1


def test_a_recorder_that_is_deleted_has_written_all(tmp_path):
    """A recorder that nobody closes writes what is pending when it is deleted."""
    recorder = Recorder(tmp_path / "run.jsonl")
    hear = recorder.listen(SimpleNamespace(run_id="run"))
    hear(by_hand.started())
    del recorder, hear
    gc.collect()

    assert load_recording(tmp_path / "run.jsonl").run.workflow == "Flow"


def test_bad_limits():
    """A limit that is not positive is refused."""
    with pytest.raises(ValueError, match="max_records is 0; expected a number above 0"):
        Recorder(max_records=0)


# -- limits -------------------------------------------------------------------------------------


def long_run(count, run_id="run"):
    yield by_hand.started(run_id=run_id)
    for n in range(1, count + 1):
        yield r.EventEmitted(float(n), n, "Item", "outside", None, ("work",), {"n": n})
    yield by_hand.ended(count + 1.0, "failed", ValueError("the end"))


def test_memory_is_bounded(monkeypatch):
    """Beyond max_records, the first records and the last ones of a run are kept, and the rest counted."""
    monkeypatch.setattr(recorder_module, "KEPT", 10)
    recorder = Recorder(max_records=20)
    record(recorder, [*long_run(100)])
    run = recorder.recording.run

    assert len(run.records) == 30
    assert run.left_out == 102 - 30
    assert recorder.recording.left_out == run.left_out
    assert [event.number for event in run.events] == [*range(1, 20), *range(92, 101)]
    assert (run.status, run.failure.message) == ("failed", "the end")


def test_the_records_of_one_run_are_its_own_and_its_children_s():
    """In memory, a recording can be of one run alone."""
    recorder = Recorder()
    record(recorder, *by_hand.family(), by_hand.fan_out())

    recording = recorder.recording_of("parent")

    assert [one.run_id for one in recording.all_runs] == ["parent", "child"]
    assert [one.run_id for one in recording.runs] == ["parent"]
    assert [one.run_id for one in recorder.recording_of("run").all_runs] == ["run"]
    assert recorder.recording_of("none").runs == []


def test_old_runs_are_forgotten():
    """When a run begins, the oldest ended ones are forgotten until the limit holds."""
    recorder = Recorder(max_records=100)
    active = recorder.listen(SimpleNamespace(run_id="active"))
    active(by_hand.started(run_id="active"))
    for n in range(50):
        record(recorder, [*long_run(8, f"run-{n}")])
    found = [run.run_id for run in recorder.recording.runs]

    assert found[0] == "active"
    assert found[-1] == "run-49"
    assert found[1:] == [f"run-{n}" for n in range(50 - len(found) + 1, 50)]
    assert recorder.forgotten == 50 - len(found) + 1
    assert 8 <= len(found) <= 14


def test_a_file_is_bounded(tmp_path, monkeypatch):
    """Near its limit, a file gets of each run the first record and the last ones, and what is missing."""
    monkeypatch.setattr(file_module, "KEPT", 10)
    path = tmp_path / "run.jsonl"
    with Recorder(path, max_bytes=1_000_000) as recorder:
        record(recorder, [*long_run(10_000)])
        record(recorder, [*long_run(1_000, "second")])
    first, second = load_recording(path).runs

    assert path.stat().st_size < 1_000_000
    assert first.left_out + len(first.records) == 10_002
    assert first.events[-1].number == 10_000
    assert (first.status, first.failure.message) == ("failed", "the end")
    assert len(second.records) == 11
    assert second.workflow == "Flow"
    assert second.left_out == 1_002 - 11


def test_a_full_file_says_so(tmp_path, caplog):
    """At its limit, further runs are not recorded; the file and the log say it, once."""
    path = tmp_path / "run.jsonl"
    with (
        Recorder(path, max_bytes=200_000) as recorder,
        caplog.at_level(logging.WARNING, "sluicegate"),
    ):
        for n in range(40):
            record(recorder, [*long_run(100, f"run-{n}")])
        assert recorder.listen(SimpleNamespace(run_id="more")) is None
    recording = load_recording(path)

    assert path.stat().st_size < 230_000
    assert recording.is_full
    assert all(run.status == "failed" for run in recording.runs)
    assert [entry.message for entry in caplog.records] == [
        f"the recording {path} has reached its limit of 200000 bytes; further runs are not recorded"
    ]


@contextlib.contextmanager
def full_disk(recorder, room):
    """Make the recorder's file as if its disk had only so many bytes left."""
    write = os.write
    left = room

    def limited(descriptor, data):
        nonlocal left
        if descriptor != recorder._store.file._descriptor:
            return write(descriptor, data)
        if left == 0:
            raise OSError(28, "No space left on device")
        done = write(descriptor, data[:left])
        left -= done
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", limited)
        yield


@pytest.mark.parametrize("room", [0, 1, 500, 5_000])
def test_a_full_disk_is_told_in_the_log_and_in_the_file(tmp_path, caplog, room):
    """On a full disk the recorder goes on; afterwards the file says how many records are missing."""
    path = tmp_path / "run.jsonl"
    records = [*long_run(2_000)]
    with Recorder(path) as recorder, caplog.at_level(logging.WARNING, "sluicegate"):
        hear = recorder.listen(SimpleNamespace(run_id="run"))
        with full_disk(recorder, room):
            for one in records[:1_500]:
                hear(one)
            recorder.flush()
        for one in records[1_500:]:
            hear(one)
        recording = recorder.recording
    (run,) = recording.runs

    assert [entry.message for entry in caplog.records] == [
        f"the recording {path} is incomplete: [Errno 28] No space left on device"
    ]
    assert run.status == "failed"
    assert run.left_out + len(run.records) == len(records)
    assert [event.number for event in run.events][-501:] == [*range(1_500, 2_001)]
    assert recording.damaged <= 1  # the line in which the disk was full


def test_what_an_ended_run_has_lost_is_told_later(tmp_path):
    """A run that ended while the disk was full is told of when it is free again."""
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        with full_disk(recorder, 0):
            record(recorder, [*long_run(300)])
        record(recorder, [*long_run(3, "second")])
    first, second = load_recording(path).runs

    assert (first.left_out, first.records) == (302, [])
    assert second.left_out == 0


def test_a_device_that_is_full_is_refused_at_once():
    """A file that cannot be written when the recorder is made raises there."""
    if not Path("/dev/full").exists():
        pytest.skip("this platform has no /dev/full")
    with pytest.raises(OSError, match="written"):
        Recorder("/dev/full")


# -- values -------------------------------------------------------------------------------------


class Note(Event):
    text: str
    count: int = 0


class Login(Event):
    user: str
    password: str = attrs.field(repr=False)
    token: str = pydantic.Field(default="t0ken", repr=False)


class Anything(Event):
    pass


class Hostile:
    """Raises whatever it is asked."""

    def __repr__(self):
        raise AssertionError

    __str__ = __getattr__ = __iter__ = __len__ = __eq__ = __repr__
    __hash__ = None


class HostileText(str):
    __slots__ = ()

    def __str__(self):
        raise AssertionError

    __repr__ = __len__ = __getitem__ = __iter__ = encode = __str__


class HostileDict(dict):
    def items(self):
        raise AssertionError

    keys = values = __iter__ = __len__ = __getitem__ = items


@attrs.define
class Account:
    name: str
    key: str = attrs.field(default="hush", repr=False)


@dataclasses.dataclass
class Card:
    holder: str
    number: str = dataclasses.field(default="hush", repr=False)


class Person(pydantic.BaseModel):
    name: str
    pin: str = pydantic.Field(default="hush", repr=False)
    secret: pydantic.SecretStr = pydantic.SecretStr("hush")


class Point(NamedTuple):
    x: int
    y: int


class Struct(msgspec.Struct):
    a: int


class Colour(enum.Enum):
    RED = 1


def test_fields_of_events(tmp_path):
    """The fields of an event are data: numbers and texts as they are, others as data or as text."""
    value = Anything(
        whole=1,
        real=0.5,
        odd=float("nan"),
        huge=10**400,
        none=None,
        yes=True,
        items=[1, (2, {3})],
        mapping={"a": 1, 2: "b"},
        binary=b"123",
        colour=Colour.RED,
        path=Path("/tmp/x"),
        account=Account("Ann"),
        card=Card("Ann"),
        person=Person(name="Ann"),
        point=Point(1, 2),
        struct=Struct(1),
        note=Note(text="inner"),
        error=ValueError("bad"),
        kind=int,
        function=len,
        _private="x",
    )

    assert fields_in(tmp_path, value) == {
        "whole": 1,
        "real": 0.5,
        "odd": "nan",
        "huge": "<int of 1,329 bits>",
        "none": None,
        "yes": True,
        "items": [1, [2, [3]]],
        "mapping": {"a": 1, "2": "b"},
        "binary": "<3 bytes>",
        "colour": "Colour.RED",
        "path": "/tmp/x",
        "account": {"name": "Ann", "key": "<hidden>"},
        "card": {"holder": "Ann", "number": "<hidden>"},
        "person": {"name": "Ann", "pin": "<hidden>", "secret": "<hidden>"},
        "point": {"x": 1, "y": 2},
        "struct": {"a": 1},
        "note": {"text": "inner", "count": 0},
        "error": {"type_name": "ValueError", "message": "bad"},
        "kind": "<int>",
        "function": "<builtin_function_or_method>",
    }


def test_memory_shows_fields_as_a_file_does(tmp_path):
    """The fields of a live event are shown as those in a file, with the same redaction."""

    def redact(name, value):
        return "gone" if name == "text" else value

    recorder = Recorder(redact=redact)
    record(recorder, emitted(Note(text="secret")))

    assert recorder.recording.events[0].fields == {"text": "gone", "count": 0}
    assert fields_in(tmp_path, Note(text="secret"), redact=redact) == {"text": "gone", "count": 0}


def test_secrets_do_not_reach_the_file(tmp_path):
    """Fields declared with repr=False are hidden, whatever an event holds beside them."""
    fields = fields_in(tmp_path, Login(user="ann", password="hush"))

    assert fields == {"user": "ann", "password": "<hidden>", "token": "<hidden>"}
    assert "hush" not in (tmp_path / "run.jsonl").read_text()
    assert "t0ken" not in (tmp_path / "run.jsonl").read_text()


def test_redact_reaches_every_depth(tmp_path):
    """redact is asked for fields and keys at any depth, and for the texts of exceptions."""

    def redact(name, value):
        if name in ("key", "message"):
            return "***"
        if name == "raises":
            raise ValueError(value)
        return value

    error = ValueError("hush")
    with Recorder(tmp_path / "run.jsonl", redact=redact) as recorder:
        value = Anything(key="hush", a={"key": "hush", "b": [{"key": "hush"}]}, raises="hush")
        record(recorder, [*emitted(value)[:2], by_hand.ended(1.0, "failed", error)])
    run = load_recording(tmp_path / "run.jsonl").run

    assert run.events[0].fields == {
        "key": "***",
        "a": {"key": "***", "b": [{"key": "***"}]},
        "raises": "<hidden: redact raised ValueError>",
    }
    assert run.failure.message == "***"
    assert "hush" not in (tmp_path / "run.jsonl").read_text()


def test_values_are_shortened(tmp_path):
    """Long texts and containers are cut within the limit, and say how much is missing."""
    value = Anything(text="x" * 10_000, items=list(range(1_000)), deep=[[[[[[[[[[[1]]]]]]]]]]])
    fields = fields_in(tmp_path, value, max_characters=3_000)

    assert fields["text"].startswith("xxx")
    assert fields["text"].endswith("… (10,000 characters)")
    assert len(json.dumps(fields)) < 6_000
    many = fields_in(tmp_path, Anything(items=list(range(1_000))))["items"]
    assert many[-1] == "... 900 more"
    assert fields_in(tmp_path, Anything(deep=value.deep))["deep"] == [[[[[[["[...]"]]]]]]]


def test_no_code_of_a_value_is_called(tmp_path):
    """Values whose methods raise, and texts that are no Unicode, are shown; nothing is lost."""
    circle = []
    circle.append(circle)
    value = Anything(
        a=Hostile(),
        b=HostileText("text"),
        c=HostileDict(a=1),
        d=circle,
        e="\ud800",
        f=[Hostile],
    )
    fields = fields_in(tmp_path, value)

    assert fields["a"] == "<Hostile>"
    assert fields["b"] == "text"
    assert fields["c"] == {"a": 1}
    assert fields["e"] == "\\ud800"
    assert fields["f"] == ["<Hostile>"]
    assert fields_in(tmp_path, Anything(**{"\ud800": "x"})) == {"\\ud800": "x"}


def test_texts_of_records_that_are_no_unicode(tmp_path):
    """A run id or a reason with a lone surrogate does not break the recording."""
    with Recorder(tmp_path / "run.jsonl") as recorder:
        record(
            recorder,
            [
                by_hand.started(run_id="a\ud800\"',"),
                r.CancellationRequested(0.5, 1, "owner", "why\ud800", "run"),
                r.WaitStarted(0.5, 1, None, "child", "b\ud800"),
                by_hand.ended(1.0, "cancelled"),
            ],
        )
    recording = load_recording(tmp_path / "run.jsonl")

    assert recording.run.run_id == "a\\ud800\"',"
    assert recording.run.status == "cancelled"
    assert recording.cancellations[0].reason == "why\\ud800"
    assert recording.damaged == 0


def test_a_record_that_cannot_be_encoded_is_counted(tmp_path, monkeypatch):
    """A record of which not even a placeholder can be written is missing and counted; no other is."""
    plain = file_module._plain

    def breaks(one, renderer):
        if type(one) is r.WaitStarted:
            raise ValueError(one)
        return plain(one, renderer)

    monkeypatch.setattr(file_module, "_plain", breaks)
    with Recorder(tmp_path / "run.jsonl") as recorder:
        records = emitted(Note(text="x"))
        record(recorder, [*records[:2], r.WaitStarted(0.5, 1, None, "child", "\ud800"), records[2]])
    run = load_recording(tmp_path / "run.jsonl").run

    assert (run.status, run.left_out, len(run.records)) == ("completed", 1, 3)
    assert run.events[0].fields == {"text": "x", "count": 0}


def test_exceptions_in_a_file(tmp_path):
    """An exception has its type, message, notes and innermost frames; loaded, it is an exception."""

    def fail(depth):
        if depth:
            fail(depth - 1)
        raise LookupError("no such key")

    class Silent(Exception):
        def __str__(self):
            raise AssertionError

    try:
        fail(50)
    except LookupError as error:
        error.add_note("a note")
        failure = error
    records = [
        by_hand.started(),
        r.InvocationEnded(0.5, 1, "failed", Silent()),
        r.ResourceFailed(
            0.5, 1, "pool", "opening", ExceptionGroup("g", [OSError("a"), KeyError("b")])
        ),
        by_hand.ended(1.0, "failed", failure),
    ]
    with Recorder(tmp_path / "run.jsonl") as recorder:
        record(recorder, records)
    run = load_recording(tmp_path / "run.jsonl").run

    assert isinstance(run.error, RecordedError)
    assert str(run.error) == "LookupError: no such key"
    assert run.error.__notes__ == ["a note"]
    assert run.error.traceback.endswith('raise LookupError("no such key")\n')
    assert run.error.traceback.startswith("  ...\n")
    assert len(run.error.traceback) <= 2_100
    assert run.failure == run.error.described
    assert run.invocations[0].failure.message == "<its __str__ raises AssertionError>"
    assert run.resources[0].error.message == "g (2 sub-exceptions): OSError: a; KeyError: 'b'"
    assert run.failure == Recording.from_records([records]).run.failure


# -- the format ---------------------------------------------------------------------------------


def whole_file(tmp_path):
    with Recorder(tmp_path / "run.jsonl") as recorder:
        record(
            recorder, by_hand.fan_out(), by_hand.retry(), by_hand.cancelled(), by_hand.question()
        )
        record(recorder, *by_hand.family())
    return (tmp_path / "run.jsonl").read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return whole_file(tmp_path_factory.mktemp("recording"))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_file_that_is_cut_anywhere_opens(content, data):
    """A file cut off at any byte gives the records before that, and says that it is cut off."""
    place = data.draw(st.integers(0, len(content)))
    recording = Recording()
    recording.feed(content[:place])
    whole = Recording.from_lines(content.splitlines())
    lines = content[:place].count(b"\n")

    assert recording.is_cut_off == (place > 0 and content[place - 1 : place] != b"\n")
    assert recording.damaged == 0
    assert sum(len(run.records) for run in recording.all_runs) == max(lines - 1, 0)
    for cut, full in zip(recording.all_runs, whole.all_runs, strict=False):
        assert cut.records == full.records[: len(cut.records)] or "error" in repr(cut.records)
        recording.critical_path(cut)
    recording.to_trace_events()


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_file_with_damage_opens(content, data):
    """A damaged line is counted, and the others are read."""
    place = data.draw(st.integers(0, len(content) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=20))
    recording = Recording()
    with contextlib.suppress(ValueError):  # the format of the first line may be a later one
        recording.feed(content[:place] + piece + content[place + len(piece) :])
    recording.to_trace_events()
    for run in recording.all_runs:
        recording.critical_path(run)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_file_may_come_in_pieces(content, data):
    """A file that is fed in pieces of any size gives the same as at once."""
    places = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=20)))
    recording = Recording()
    for start, end in zip([0, *places], [*places, len(content)], strict=True):
        recording.feed(content[start:end])

    assert told(recording) == told(Recording.from_lines(content.decode().splitlines()))


def test_every_line_fits_the_schema(content):
    """Each line of a file is valid by the JSON Schema of the format."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(recording_schema())

    for line in content.splitlines():
        validator.validate(json.loads(line))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"record": "InvocationStarted", "at": 1.0, "invocation": 1, "worker": 1})


def test_the_schema_names_every_record():
    """The schema has a definition for each record, with its documentation, and the run of the line."""
    schema = recording_schema()
    for kind in vars(r).values():
        if isinstance(kind, type) and issubclass(kind, r.Record) and kind is not r.Record:
            definition = schema["$defs"][kind.__name__]
            assert definition["properties"]["record"] == {"enum": [kind.__name__]}
            assert "run" in definition["required"]
            assert definition["description"]


def test_records_of_a_later_version_are_skipped(content):
    """A record or a key that this version does not know is ignored, and is no damage."""
    lines = content.splitlines()
    lines.insert(3, b'{"run":"run","record":"SomethingNew","at":1.0}')
    lines[2] = lines[2][:-1] + b',"new":[1]}'

    assert told(Recording.from_lines(lines)) == told(Recording.from_lines(content.splitlines()))
    assert Recording.from_lines(lines).damaged == 0


def test_a_later_format_is_refused():
    """A file of a later format is refused, with the version that wrote it."""
    line = b'{"record":"RecordingStarted","format":2,"sluicegate":"9.0","time":0.0}'

    with pytest.raises(
        ValueError, match=r"has the format 2; expected at most 1, or sluicegate 9\.0"
    ):
        Recording.from_lines([line])


@pytest.mark.slow
def test_a_hundred_thousand_invocations(tmp_path):
    """A long run is written, loaded and understood; nothing depends on the depth of its chain."""
    count = 100_000
    records = [by_hand.started(), r.EventEmitted(0.0, 1, "Note", "outside", None, ("work",), {})]
    for n in range(1, count + 1):
        records += [
            r.InvocationQueued(n - 1.0, n, "work", (n,)),
            r.InvocationStarted(n - 1.0, n, 1),
            r.EventEmitted(float(n), n + 1, "Note", "step", n, ("work",), Note(text="x", count=n)),
            r.InvocationEnded(float(n), n, "completed"),
        ]
    records.append(by_hand.ended(float(count), "completed", None, count + 1))
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        record(recorder, records)
    recording = load_recording(path)
    run = recording.run

    assert (len(run.records), len(run.invocations), run.left_out) == (len(records), count, 0)
    assert path.stat().st_size < 600 * count
    assert len(recording.critical_path().parts) == count
    assert len(recording.descendants(run.events[0])) == 2 * count
    assert len(recording.ancestors(run.stop_event)) == 2 * count
