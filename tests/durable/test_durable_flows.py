"""The workflows that are killed anywhere do what they say when nobody kills them."""

from __future__ import annotations

import pytest

from tests.durable.driving import World
from tests.durable.flows import FLOWS
from tests.durable.ledger import (
    DeadLifeError,
    Entry,
    Expected,
    FileLedger,
    Ledger,
    faults_in,
    read_ledger,
)
from tests.helpers import on_each_backend, run_virtually


@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_does_what_it_says(name, backend):
    """Its result and its ledger are the expected ones in a run without a store."""
    flow = FLOWS[name]()

    async def main():
        handler = flow.run(**flow.inputs)
        result = await World(flow, handler, flow.ledger).run()
        flow.ledger.note("over", handler.status)
        return result

    result = run_virtually(backend, main)

    assert result == flow.result
    assert flow.ledger.entries()[-1].name == flow.status
    assert faults_in(flow.ledger.entries(), flow.expected) == []
    answered = {entry.name for entry in flow.ledger.entries() if entry.what == "answered"}
    assert answered == flow.questions - flow.unanswered


# -- the ledger's own judgement -----------------------------------------------------------------


def _begin(name, *causes, life=1, delivery="", attempt=""):
    return Entry(life, "begin", name, causes, delivery, attempt)


A = _begin("a/", delivery="r/1", attempt="r/1/1")
B = _begin("b/", "a/", delivery="r/2", attempt="r/2/1")
AGAIN = _begin("a/", life=2, delivery="r/1", attempt="r/1/1")
EXPECTED = Expected(bodies=frozenset({"a/", "b/"}))


@pytest.mark.parametrize(
    ("entries", "expected", "fault"),
    [
        ([A, B], EXPECTED, None),
        ([A, AGAIN, B], EXPECTED, None),
        ([A], EXPECTED, "b/ never began"),
        ([A, B, _begin("c/")], EXPECTED, "c/ began, which nothing led to"),
        ([A, B, AGAIN], EXPECTED, "a/ began again in life 2, although b/ had begun"),
        (
            [A, B, Entry(1, "end", "b/")],
            Expected(bodies=EXPECTED.bodies, failures={"b/": 1}),
            "b/ failed 0 times, expected 1",
        ),
        (
            [A, Entry(1, "stopping", "a/"), B],
            EXPECTED,
            "b/ began in life 1 after its stop, expected 0",
        ),
        (
            [A, B, _begin("b/", delivery="r/3", attempt="r/3/1", life=2)],
            EXPECTED,
            "b/ was delivered twice",
        ),
        (
            [A, _begin("b/", "a/", delivery="r/1", attempt="r/1/2")],
            EXPECTED,
            "r/1 named several events",
        ),
        (
            [_begin("q/1"), _begin("q/0")],
            Expected(bodies=frozenset({"q/0", "q/1"}), ordered={"q": ["q/0", "q/1"]}),
            "the order of q is ['q/1', 'q/0']",
        ),
        (
            [A, B, Entry(1, "effect", "pay"), Entry(1, "effect", "pay")],
            Expected(bodies=EXPECTED.bodies, effects=frozenset({"pay"})),
            "the effect pay happened 2 times in one life",
        ),
        (
            [
                A,
                B,
                Entry(1, "effect", "pay"),
                Entry(1, "used", "", ("pay",)),
                Entry(2, "effect", "pay"),
            ],
            Expected(bodies=EXPECTED.bodies, effects=frozenset({"pay"})),
            "the effect pay happened again after once() had returned",
        ),
    ],
)
def test_the_ledger_finds_the_fault(entries, expected, fault):
    """Each rule of the ledger is broken by one line, and the fault says by which."""
    found = faults_in(entries, expected)

    assert [text[: len(fault or "")] for text in found] == ([] if fault is None else [fault])


def test_a_dead_life_writes_nothing():
    """The ledger of a life that was cut off refuses its entries; the next life has its own."""
    first = Ledger()
    first.note("begin", "a/")
    second = first.next_life()

    with pytest.raises(DeadLifeError):
        first.note("begin", "b/")
    second.note("begin", "c/")

    assert [(entry.life, entry.name) for entry in second.entries()] == [(1, "a/"), (2, "c/")]


def test_a_file_keeps_the_ledger(tmp_path):
    """What is in the file is what was written, in the order of the writes of all lives."""
    path = tmp_path / "ledger"
    for life in (1, 2):
        ledger = FileLedger(path, life)
        ledger.note("begin", "a/", causes=("b/", ""))
        ledger.close()

    assert read_ledger(path) == [Entry(1, "begin", "a/", ("b/",)), Entry(2, "begin", "a/", ("b/",))]
