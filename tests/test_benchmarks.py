"""The benchmarks run: every program gives its numbers, and the table and the page show them."""

import importlib
import json
import math
import sys

import pytest

from benchmarks import _goals, _page, _plot, _scale, _tables, durable_store, parked_runs
from benchmarks.__main__ import main
from benchmarks._goals import GOALS, judge
from benchmarks._harness import Bench, Interpreter, can, cpus
from benchmarks._library import load
from benchmarks._measure import IMPORT, spread
from benchmarks._model import SYSTEMS
from benchmarks._results import Cell, Key, Results
from benchmarks._works import BY_ID, WORKS
from benchmarks.peers import PEERS


pytestmark = pytest.mark.slow


TINY = {
    "chain": {"n": 20, "rounds": 1},
    "chain_kept": {"n": 20, "rounds": 1, "kept": 1},
    "fairness": {"n": 200},
    "fan_out_64": {"k": 10, "workers": 64, "rounds": 1},
    "fan_out_4": {"k": 10, "workers": 4, "rounds": 1},
    "stream": {"m": 10, "rounds": 1},
    "slow_reader": {"m": 100},
    "latency": {"m": 3},
    "short_run": {"r": 2, "rounds": 1, "timeout": 0},
    "short_run_timeout": {"r": 2, "rounds": 1, "timeout": 30},
    "concurrent_runs": {"r": 4},
    "idle_between": {"r": 4, "inside": 0},
    "idle_inside": {"r": 4, "inside": 1},
    "cancel": {"k": 4, "rounds": 1},
    "timeout": {"k": 2, "deadline_ms": 5, "cleanup_ms": 1, "rounds": 1},
    "state": {"kib": 1, "n": 5},
    "snapshot": {"k": 8, "rounds": 1},
}
CELLS = [(work.id, system) for work in WORKS if work.id != "import" for system in work.systems]


def program(work, system):
    """The function that `serve` would call."""
    module = importlib.import_module(f"benchmarks.works.{BY_ID[work].name}")
    engine, _, library = system.partition("-")
    if engine == "sluicegate":
        return lambda **parameters: module.with_sluicegate(load(library), **parameters)
    return getattr(module, f"on_{engine}")


@pytest.mark.parametrize(("work", "system"), CELLS)
def test_each_program_answers_with_the_numbers_of_its_work(work, system):
    """Every system's program of a work accepts its parameters and gives each of its metrics."""
    numbers = program(work, system)(**TINY[work])

    assert {metric.key for metric in BY_ID[work].metrics} <= numbers.keys()


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.id)
def test_what_the_harness_passes_is_what_the_programs_take(work):
    """The parameters of the tiny sizes here are those that a child is called with."""
    assert work.parameters(work.sizes[0]).keys() == TINY.get(work.id, {}).keys()
    assert set(work.systems) <= set(SYSTEMS)


def interpreter(peers=()):
    return Interpreter(sys.executable, "3.x", {"sluicegate": "0"}, dict.fromkeys(peers, "1.0"))


@pytest.mark.slow
def test_a_child_is_measured_watched_and_its_failure_told():
    """A child's numbers come back with its memory over time; a wrong one says what went wrong."""
    with Bench([interpreter()], interpreter()) as bench:
        numbers = bench.measure(interpreter(), BY_ID["idle_between"], 10, "trio")
        wrong = bench.measure(interpreter(), BY_ID["chain"], 10, "no-such-system")

    assert numbers["us"] > 0
    assert all(t >= 0 for t, _ in numbers["memory"])
    assert "KeyError" in wrong["error"]


def test_a_child_that_takes_too_long_is_given_up():
    """Past the limit there is a reason instead of numbers, and the child is ended."""
    with Bench([interpreter()], interpreter(), limit=0.01) as bench:
        numbers = bench.measure(interpreter(), BY_ID["chain"], 10, "trio")

    assert numbers == {"reason": "over 0 s"}


def filled(python="3.x"):
    """Results in which every cell has the same numbers, but a peer's largest chain takes too long."""
    environment = {
        "quick": False,
        "platform": "a machine",
        "cpu": 0,
        "pythons": {python: {"sluicegate": "0"}},
        "python_of_peers": python,
        "peers": {"llama_index": "2"},
    }
    results = Results(environment)
    for work in WORKS:
        for size in work.sizes:
            for system in (*work.systems, *(["llama_index"] if can("llama_index", work) else [])):
                numbers = {
                    metric.key: 1.0 + 0.001 * (metric.key == "us") for metric in work.metrics
                }
                numbers |= {"quantiles_us": spread([1e-6, 2e-6])["quantiles_us"]}
                if work.watched:
                    numbers |= {"memory": [[0.01, 4.0], [0.02, 8.0]]}
                results.cells[Key(python, work.id, size, system)] = Cell({0: numbers, 1: numbers})
    results.cells[Key(python, "chain", 10_000, "llama_index")] = Cell(reason="over 60 s")
    return results


def test_every_goal_is_judged_on_each_of_its_libraries():
    """A goal that is met is met on Trio and on asyncio, and one that is not is missed."""
    rows = {row.goal.title: row for row in judge(filled(), "3.x")}

    assert [goal.title for goal in GOALS] == list(rows)
    assert {library: each.verdict for library, each in rows["chain, per hop"].reached.items()} == {
        "trio": "missed",
        "asyncio": "missed",
    }
    assert {"met"} == {
        each.verdict for each in rows["timeout overshoot beyond the clean-up"].reached.values()
    }
    assert "over 60 s" in rows["chain, per hop"].peers["llama_index"]


def test_a_goal_of_which_a_part_was_not_measured_is_not_met():
    """What is not known is neither met nor missed; what is known to be missed is."""
    results = filled()
    for size in (1_000, 10_000):
        for system in ("sluicegate-trio", "trio"):
            results.cells[Key("3.x", "chain", size, system)] = Cell({0: {"us": 1.0}})
            results.cells[Key("3.x", "fan_out_4", size, system)] = Cell({0: {"us": 1.0}})
    for size in BY_ID["idle_between"].sizes:
        key = Key("3.x", "idle_between", size, "sluicegate-trio")
        results.cells[key] = Cell({0: {"us": 1.0, "kib": math.nan}})
    rows = {row.goal.title: row.reached["trio"] for row in judge(results, "3.x")}

    assert rows["chain, per hop"].verdict == "missed"
    assert rows["idle runs waiting between steps: KiB each; wake all"] == ("-; 1.00", "")


@pytest.mark.slow
def test_a_program_of_sluicegate_that_hangs_has_failed():
    """Past its limit a peer is given up; one that has to do the work went wrong, and is named."""
    results, kept = Results({**filled().environment}), []
    with Bench([interpreter()], interpreter(), limit=0.01) as bench:
        keep = lambda: kept.append(len(results.cells))  # noqa: E731
        bench.run([BY_ID["import"]], results, repeats=2, tell=kept.append, keep=keep)

    assert [(key.system, error) for key, error in results.failures()] == [
        ("sluicegate-trio", "over 0 s"),
        ("trio", "over 0 s"),
    ]
    assert kept[1::2] == [2, 2]


def test_the_longest_of_several_processes_is_the_longest():
    """A longest wait is no median of longest waits."""
    results = filled()
    key = Key("3.x", "latency", 1_000, "sluicegate-trio")
    results.cells[key] = Cell({i: {"p50_us": i, "max_us": i} for i in (1.0, 2.0, 9.0)})

    assert results.value(key, "p50_us") == 2
    assert results.value(key, "max_us") == 9


def test_a_ratio_is_formed_within_a_repeat():
    """A slow minute that both went through does not show in their ratio."""
    results = filled()
    key = Key("3.x", "stream", 1_000, "sluicegate-trio")
    results.cells[key] = Cell({0: {"us": 1.0}, 1: {"us": 10.0}, 2: {"us": 3.0}})
    results.cells[key._replace(system="trio")] = Cell({0: {"us": 2.0}, 1: {"us": 20.0}})

    assert results.ratio(key, "trio", "us") == (0.5, 0.5, 0.5)


def test_the_growth_of_what_costs_the_same_each_time_is_linear():
    """The exponent is of the whole, not of one part."""
    assert filled().exponent(BY_ID["stream"], "3.x", "trio", "us") == pytest.approx(1)


def test_the_report_has_the_counts():
    """What does not depend on the machine stands beside what does; the goals alone go without."""
    results = filled()
    results.environment["counts"] = "trio  spawns\nhop <1>   0\n"

    assert "hop <1>   0" in _tables.everything(results)
    assert "hop <1>   0" not in _tables.everything(results, goals_only=True)
    assert "hop &lt;1&gt;   0" in _page.page(results)


def test_the_results_survive_their_file():
    """What was read again makes the same tables."""
    results = filled()
    again = Results.from_json(json.loads(json.dumps(results.as_json())))

    assert _tables.everything(again) == _tables.everything(results)


def test_the_page_holds_everything_and_asks_for_nothing():
    """Tables and charts of every kind are in it, and no address of anything outside."""
    page = _page.page(filled())

    assert page.count("<svg viewBox") == len(_page.GROWTH) + len(_page.TAILS) + len(_page.MEMORY)
    assert "<h2>The goals</h2>" in page
    assert not any(word in page for word in ("http:", "https:", "<script", "src=", "nan"))


def test_a_chart_leaves_out_what_it_cannot_show():
    """On a logarithmic axis there is no zero; with nothing left there is no chart."""
    line = _plot.Line(_plot.Style("a", "#000"), [(1.0, 0.0)])

    assert not _plot.chart("none", [line], _plot.Axis("x"), _plot.Axis("y"))


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_asked_for_nothing_that_it_has_no_program_for(peer):
    """Each peer does the chain, imports, and is not asked for what only sluicegate is measured in."""
    assert can(peer, BY_ID["chain"])
    assert can(peer, BY_ID["import"])
    assert not can(peer, BY_ID["fairness"])


def test_a_peer_that_leaves_work_undone_is_told_so():
    """A failed check of a peer's answer is a cell of its own, and spoils no goal of sluicegate."""
    results = filled()
    key = Key("3.x", "timeout", 1, "llama_index")
    results.cells[key] = Cell(error="AssertionError: the warm-up gave a wrong answer")
    (row,) = (row for row in judge(results, "3.x") if row.goal.title.startswith("timeout"))

    assert row.peers["llama_index"] == "wrong answer"
    assert row.reached["trio"].verdict == "met"


def test_a_peer_that_is_not_installed_is_named():
    """The tables say who was left out, and how to have them in."""
    assert "LangGraph (pip install langgraph)" in _tables.everything(filled())


def test_the_costs_of_the_page_on_scale_are_of_works_that_there_are():
    """Each line asks for a number that its work gives."""
    for work, _, key, *_ in _scale.COSTS:
        assert key in {metric.key for metric in BY_ID[work].metrics}
    assert _goals.number(1234.5) == "1,234"
    compile(IMPORT, "import", "exec")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--python", "/no/python"], "--python: /no/python is no Python: "),
        (["--peers", __file__], f"--peers: {__file__} is no Python: "),
        (["--from", "/no/results.json"], "--from: cannot read /no/results.json: "),
        (["--from", __file__], f"--from: cannot read {__file__}: JSONDecodeError("),
        (["--json", "/no/folder/results.json"], "--json: cannot write /no/folder/results.json: "),
        (["--only", "chains"], "--only: no 'chains': choose from chain, fairness, "),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_measured(asked, told, capsys):
    """A wrong argument gets an error that names it, and no traceback."""
    with pytest.raises(SystemExit, match="2"):
        main(asked)

    assert f"error: argument {told}" in capsys.readouterr().err


def test_the_cpu_has_to_be_one_that_is_there(capsys):
    """Where this process can choose its CPU; elsewhere none is chosen."""
    if not cpus():
        pytest.skip("the CPU cannot be chosen here")
    with pytest.raises(SystemExit, match="2"):
        main(["--cpu", "-1"])

    assert (
        "error: argument --cpu: no CPU -1 for this process: choose from " in capsys.readouterr().err
    )


def test_the_store_of_durable_runs_is_measured(tmp_path, capsys, monkeypatch):
    """The program measures each durability and number of appenders, as a ratio to a raw insert loop."""
    monkeypatch.setattr(
        sys, "argv", ["", "--rounds", "1", "--seconds", "0.02", "--directory", str(tmp_path)]
    )
    durable_store.main()

    lines = capsys.readouterr().out.splitlines()
    assert sum("times raw" in line for line in lines) == 8
    assert sum("in memory:" in line for line in lines) == 4
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_cost_of_parked_runs_is_measured(backend, capsys, monkeypatch):
    """The program parks runs, wakes some of them, and prints what each cost."""
    monkeypatch.setattr(sys, "argv", ["", "4", "--wakes", "3", "--backend", backend])
    parked_runs.main()

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 runs parked in ")
    assert sum("bytes in" in line for line in lines) == 2
    assert sum("from an answer until" in line for line in lines) == 2
