"""The pytest plugin: tests that are swept (``cancel_sweep``) and fuzzed (``schedule_fuzz``).

It is no part of the package ``sluicegate``: pytest imports it at every start, and that must cost
nothing where no test is marked. What imports anything is in the modules beside this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import pytest


if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


#: The marks, in the order in which they are heeded if a test has both; and what pytest tells of them.
MARKS: Final = {
    "cancel_sweep": (
        "cancel_sweep(**options): run this async test again and again, each time cancelled at the "
        "next possible moment; the options are those of sluicegate.testing.sweep(), an argument "
        "'trial' is its Trial, and fixtures are made once for all runs"
    ),
    "schedule_fuzz": (
        "schedule_fuzz(**options): run this async test under many seeded schedules; the options "
        "are those of sluicegate.testing.fuzz(), and all else is as for cancel_sweep"
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("sluicegate", "cancellation sweeps and schedule fuzzing (sluicegate)")
    group.addoption(
        "--sweep-at",
        metavar="TOKEN_OR_K",
        help="Of the marked tests do only the run that a failure's token names (trio:scope:7, "
        "asyncio:native:7+2@5, trio@5), or by a number K: position K of a cancel_sweep test, seed "
        "K of a schedule_fuzz test. What each run came to is shown in full. A pattern as target= of the "
        "mark strikes several tasks in one run: at a moment of a task that it does not name, all that "
        "it names.",
    )
    group.addoption(
        "--sweep-seed",
        metavar="S",
        help="The seeds of the schedules, in place of the marks' seeds=: one seed (7) or a range "
        "with both ends (100-299). A cancel_sweep test is swept whole under each of them "
        "(0 is the event loop's own order); a schedule_fuzz test runs under these alone.",
    )
    group.addoption(
        "--sweep-limit",
        metavar="N",
        help="At most N positions for each backend, kind and seed of a cancel_sweep test, in place "
        "of the mark's limit= (a longer sweep is sampled, and says so); at most the first N seeds "
        "of a schedule_fuzz test.",
    )
    group.addoption(
        "--sweep-keep-going",
        action="store_true",
        help="Do all runs of the marked tests, also after one has failed; the failure counts those "
        "that failed, grouped by what is wrong.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks, check the options, and get in front of the other async plugins."""
    for line in MARKS.values():
        config.addinivalue_line("markers", line)
    if any(config.getoption(name) is not None for name in ("sweep_seed", "sweep_limit")):
        from pytest_sluicegate._options import read_limit, read_seeds  # noqa: PLC0415

        read_seeds(config)
        read_limit(config)
    # Of hooks that all want to be first, the one that was registered last is. Every plugin with an
    # entry point is registered by now.
    config.pluginmanager.register(ItemMaker(), "sluicegate-collection")


class ItemMaker:
    """Makes the items of marked tests, before another plugin can."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(
        self, collector: pytest.Module | pytest.Class, name: str, obj: Any
    ) -> list[pytest.Item] | None:
        """Make the items of an async test function that has one of our marks."""
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
    """Return the marks that a function itself has; none for what is no function."""
    found: Any = getattr(function, "pytestmark", ())
    marks = cast("list[Any]", found) if isinstance(found, list) else [found]
    return [getattr(it, "mark", it) for it in marks if isinstance(getattr(it, "name", None), str)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse what is marked and cannot be swept."""
    if is_marked(item):
        from pytest_sluicegate._items import check_item  # noqa: PLC0415

        check_item(item)


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Tell what was swept (with ``-v``), which sweeps were sampled, and runs that were replayed."""
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
