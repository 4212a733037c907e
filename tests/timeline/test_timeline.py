"""Timelines: the data of the page, its safety, the static picture and the text."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from importlib.resources import files
from itertools import accumulate
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from sluicegate import records as r
from sluicegate.recording import Recorder, Recording
from sluicegate.timeline import timeline_html, timeline_text, write_timeline
from tests.recording import by_hand


EVIL = '</script><!--<script>alert(1)</script>\0\ud800%%DATA%%"\x1b[31m'


def data_of(html):
    """The data in a page."""
    kind, text = re.search(
        r'<script type="application/(\w+)" id="data">(.*?)</script>', html
    ).groups()
    return json.loads(text if kind == "json" else gzip.decompress(base64.b64decode(text)))


def evil():
    """A run with hostile names, values and errors."""
    return [
        by_hand.started(0.0, EVIL, EVIL, steps={EVIL: 1}),
        r.EventEmitted(
            0.0, 1, EVIL, "outside", None, (EVIL,), {"text": EVIL, "long": "x" * 1_000_000}
        ),
        r.InvocationQueued(0.0, 1, EVIL, (1,)),
        r.InvocationStarted(0.0, 1, 1),
        r.InvocationEnded(1.0, 1, "failed", ValueError(EVIL)),
        r.CancellationRequested(1.0, 1, "failure", EVIL, "run", 1, ()),
        by_hand.ended(1.5, "failed", ValueError(EVIL)),
    ]


def test_data():
    """Invocations, events and their takers are in the data, with times in microseconds."""
    data = data_of(timeline_html(Recording.from_records([by_hand.fan_out()])))
    inv, texts = data["inv"], data["texts"]

    assert [texts[one] for one in inv["step"]] == ["begin", "work", "work", "end"]
    assert list(accumulate(inv["queued"])) == [250_000, 1_000_000, 1_000_000, 6_500_000]
    assert list(accumulate(inv["started"])) == [500_000, 1_000_000, 1_500_000, 6_500_000]
    assert inv["ended"] == [500_000, 2_000_000, 5_000_000, 500_000]
    assert list(accumulate(data["ev"]["source"])) == [-1, 0, 0, 1, 2, 3]
    assert list(accumulate(data["ev"]["taker"])) == [0, 1, 2, 3, 3]
    assert data["end"] == 7_500_000


def test_a_cancellation():
    """A cancellation has its members, the slowest first, and ends with the last of them."""
    data = data_of(timeline_html(Recording.from_records([by_hand.cancelled()])))
    (one,) = data["cancel"]

    assert (one["by"], one["reason"], one["at"], one["end"]) == (
        "owner",
        "enough",
        2_000_000,
        5_000_000,
    )
    assert one["members"] == [1, 2, 0]
    assert [data["inv"]["ended"][i] - data["inv"]["unwinding"][i] for i in range(3)] == [
        250_000,
        2_500_000,
        0,
    ]


def test_a_large_page_is_compressed():
    """Data of many invocations is compressed, and the same."""
    records = [by_hand.started()]
    for number in range(1, 6_001):
        records += [
            r.EventEmitted(number, number, "Item", "outside", None, ("work",), {"n": number}),
            r.InvocationQueued(number, number, "work", (number,)),
            r.InvocationStarted(number, number, 1),
            r.InvocationEnded(number + 0.5, number, "completed"),
        ]
    html = timeline_html(Recording.from_records([records]))

    assert 'type="application/gzip"' in html
    assert data_of(html)["inv"]["number"] == [1] * 6_000
    assert html.count("<rect") == 0  # the lane is drawn as a sum
    assert "6,000 invocations, at most 1 at once" in html


def test_nothing_of_a_value_leaves_its_place(tmp_path):
    """Names, values and errors cannot end the element that holds them."""
    path = write_timeline(Recording.from_records([evil()]), tmp_path / "run.html")
    html = (tmp_path / "run.html").read_text()

    assert path == str(tmp_path / "run.html")
    assert "alert(1)</script>" not in html
    assert html.count("</script>") == 2
    assert "\0" not in html
    assert "%%" in data_of(html)["texts"][0]
    assert len(html) < 100_000


def test_the_static_picture():
    """The picture is XML, and has a bar for each invocation."""
    html = timeline_html(Recording.from_records([by_hand.cancelled()]))
    picture = ET.fromstring(re.search(r"<svg.*?</svg>", html, re.DOTALL).group())
    kinds = [one.get("class") for one in picture.iter() if one.tag.endswith("rect")]

    assert kinds == ["cancelled", "unwinding", "completed", "cancelled", "unwinding", "queued"]


def test_the_script_is_correct():
    """Node accepts the script of the page."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node here")
    script = files("sluicegate.timeline") / "page.js"
    subprocess.run([node, "--check", str(script)], check=True)


def test_text():
    """Each worker has a line, and the signs tell the states apart."""
    text = timeline_text(Recording.from_records([by_hand.retry()]), width=60, is_ascii=True)

    assert text.splitlines()[:3] == [
        "Flow run: failed, 6.5 s",
        "work                  #####x'''''''''''''''''......######x",
        "  run cancelled by failure: work raised ValueError",
    ]
    assert "\x1b" not in timeline_text(Recording.from_records([evil()]), width=60)
    assert "\x1b[31m✗" in timeline_text(Recording.from_records([by_hand.retry()]), has_color=True)
    assert timeline_text(Recording()) == "the recording has no run\n"


@pytest.fixture
def recorded(tmp_path):
    """The file of a recording."""
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        hear = recorder.listen(SimpleNamespace(run_id="run"))
        for one in by_hand.fan_out():
            hear(one)
    return path


def test_the_file_of_a_recorder(recorded):
    """A recording from a file has the same page as the one in memory."""
    loaded = data_of(timeline_html(Recording.load(recorded)))

    assert loaded == data_of(timeline_html(Recording.from_records([by_hand.fan_out()])))
