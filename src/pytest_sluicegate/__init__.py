"""The pytest plugin: it sweeps (``cancel_sweep``) and fuzzes (``schedule_fuzz``) marked tests.

It is not part of the package ``sluicegate``, because pytest imports it at every start, and that must
be cheap if no test is marked. The modules beside this one import the rest on demand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import pytest


if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


#: The marks, in the order in which a test with both runs them, and their descriptions.
MARKS: Final = {
    "cancel_sweep": (
        "cancel_sweep(**options): run this async test repeatedly, cancelling each run at the next "
        "possible moment. The options are those of sluicegate.testing.sweep(); an argument 'trial' "
        "gets the Trial; fixtures are set up once for all runs"
    ),
    "schedule_fuzz": (
        "schedule_fuzz(**options): run this async test under many seeded schedules. The options are "
        "those of sluicegate.testing.fuzz(); everything else is as for cancel_sweep"
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("sluicegate", "cancellation sweeps and schedule fuzzing (sluicegate)")
    group.addoption(
        "--sweep-at",
        metavar="TOKEN_OR_K",
        help="Make only the run of each marked test that a failure's token names (trio:scope:7, "
        "asyncio:native:7+2@5, trio@5); or, with a number K, position K of a cancel_sweep test and "
        "seed K of a schedule_fuzz test. The outcome of each run is shown in full. If the mark has "
        "a pattern as target=, one run can strike several tasks: all that match it, at a moment of "
        "a task that does not.",
    )
    group.addoption(
        "--sweep-seed",
        metavar="S",
        help="The seeds of the schedules, overriding the marks' seeds=: one seed (7) or an inclusive "
        "range (100-299). A cancel_sweep test is swept completely under each seed (0 is the event "
        "loop's own order); a schedule_fuzz test runs under these seeds only.",
    )
    group.addoption(
        "--sweep-limit",
        metavar="N",
        help="Run at most N positions for each backend, kind and seed of a cancel_sweep test, "
        "overriding the mark's limit= (a longer sweep is sampled, and the summary says so); and at "
        "most the first N seeds of a schedule_fuzz test.",
    )
    group.addoption(
        "--sweep-keep-going",
        action="store_true",
        help="Make all runs of the marked tests, even after one has failed. The failure counts the "
        "failed runs, grouped by problem.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks, check the options, and register before the other async plugins."""
    for line in MARKS.values():
        config.addinivalue_line("markers", line)
    if any(config.getoption(name) is not None for name in ("sweep_seed", "sweep_limit")):
        from pytest_sluicegate._options import read_limit, read_seeds  # noqa: PLC0415

        read_seeds(config)
        read_limit(config)
    # Among hooks with tryfirst, the last one registered runs first. All plugins with an entry point
    # are registered by now.
    config.pluginmanager.register(ItemMaker(), "sluicegate-collection")


class ItemMaker:
    """Makes the items of marked tests, before any other plugin does."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(
        self, collector: pytest.Module | pytest.Class, name: str, obj: Any
    ) -> list[pytest.Item] | None:
        """Return the items of an async test function that has one of our marks; otherwise None."""
        if not collector.istestfunction(obj, name):
            return None
        function = getattr(obj, "__func__", obj)
        own = own_marks(function)
        if not any(mark.name in MARKS for mark in own) and not is_marked(collector):
            return None
        from pytest_sluicegate._items import make_items  # noqa: PLC0415

        return make_items(collector, name, function, own)


def is_marked(node: pytest.Item | pytest.Collector) -> bool:
    """Whether a test, a class or a module has one of our marks."""
    return any(node.get_closest_marker(mark) is not None for mark in MARKS)


def own_marks(function: Any) -> list[pytest.Mark]:
    """Return the marks of a function itself; none if it is not a function."""
    found: Any = getattr(function, "pytestmark", ())
    marks = cast("list[Any]", found) if isinstance(found, list) else [found]
    return [getattr(it, "mark", it) for it in marks if isinstance(getattr(it, "name", None), str)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a marked test that cannot be swept."""
    if is_marked(item):
        from pytest_sluicegate._items import check_item  # noqa: PLC0415

        check_item(item)


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Report the sweeps (with ``-v``), the sampled sweeps and the replayed runs."""
    told = [
        (report.nodeid, report.user_properties)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call" and report.passed
    ]
    everything = config.get_verbosity() > 0 or config.getoption("sweep_at") is not None
    lines: list[str] = []
    for nodeid, properties in told:
        for name, text in properties:
            mark, _, kind = name.partition(".")
            if mark in MARKS and kind == "sampled":
                lines.append(f"{nodeid}: {text}")
            elif mark in MARKS and everything:
                lines += [f"{nodeid}: {mark}", *(f"    {line}" for line in str(text).splitlines())]
    if lines:
        terminalreporter.section("sweeps")
        for line in lines:
            terminalreporter.line(line)
