"""The pytest plugin: marked tests, the options, and the other plugins that want async tests.

Each test runs pytest on a file of its own, in this process where that will do, and with no plugin
but those that it names.
"""

from __future__ import annotations

import shlex
from textwrap import dedent

import anyio.pytest_plugin
import pytest
import trio  # noqa: F401 - or each run of pytest below would import it anew

import sluicegate.testing  # noqa: F401 - likewise


pytest_plugins = ["pytester"]

HEADER = """
import anyio
import pytest

runs = []
"""

#: Passes: every await of it may be cancelled.
GOOD = """
async def test_it(trial):
    runs.append(trial.backend)
    await anyio.sleep(1)
    await anyio.sleep(1)
"""

#: Keeps a lock when it is cancelled at its second await.
BAD = """
class Line:
    taken = False

    async def use(self):
        self.taken = True
        await anyio.sleep(1)
        self.taken = False

def released(outcome):
    assert not outcome.state.line.taken, "the line is still taken"

@pytest.mark.cancel_sweep(check=released)
async def test_line(trial):
    trial.state.line = Line()
    await anyio.sleep(1)
    await trial.state.line.use()
"""

#: Counts what it is told to by two tasks, of which one may lose.
RACE = """
@pytest.mark.schedule_fuzz(seeds=50)
async def test_race(trial):
    counted = []

    async def count(name):
        await anyio.sleep(0)
        counted.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(count, "a")
        group.start_soon(count, "b")
    assert counted == ["a", "b"]
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on a file, beside the plugins that are named."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run_pytest(
        source, *options, plugins=("pytest_sluicegate",), ini="", header=HEADER, apart=False
    ):
        pytester.makepyfile(test_file=f"{header}\n{dedent(source)}")
        pytester.makeini(f"[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n{ini}")
        named = [argument for plugin in plugins for argument in ("-p", plugin)]
        # This process has imported the plugins already, unlike one that starts.
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
        start = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
        return start(*named, *quiet, *options)

    return run_pytest


def text_of(result):
    """Return what pytest printed, as one line."""
    return " ".join(result.stdout.str().split())


# -- marked tests --------------------------------------------------------------------------------


def test_a_marked_test_is_one_item_that_is_swept(run):
    """All runs of a swept test are one item; ``-v`` tells how many there were."""
    result = run(
        f"@pytest.mark.cancel_sweep\n{GOOD.strip()}\ndef test_runs(): assert len(runs) > 4", "-v"
    )

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*= sweeps =*",
            "test_file.py::test_it: cancel_sweep",
            "*trio, scope: * runs, all of 4 positions",
        ]
    )


def test_a_quiet_run_says_nothing_of_a_whole_sweep(run):
    """Without ``-v`` only the dot is printed; the report keeps the lines."""
    result = run(f"@pytest.mark.cancel_sweep\n{GOOD.strip()}")

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("* sweeps *")
    result.stdout.no_fnmatch_line("*positions*")
    (report,) = [
        r for r in result.reprec.getreports("pytest_runtest_logreport") if r.when == "call"
    ]
    assert [title for title, _ in report.sections] == ["Captured cancel sweep call"]
    assert "all of 4 positions" in report.sections[0][1]


def test_both_marks_sweep_and_then_fuzz(run):
    """A test with both marks is swept, then fuzzed; each tells its own."""
    result = run(
        f"@pytest.mark.schedule_fuzz(seeds=7)\n@pytest.mark.cancel_sweep\n{GOOD.strip()}", "-v"
    )

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*::test_it: cancel_sweep", "*all of 4*", "*::test_it: schedule_fuzz", "*7 seeds*"]
    )


def test_arguments_are_fixtures_made_once(run):
    """``trial`` is the Trial; what else a test takes is a fixture or a parameter, once an item."""
    result = run(
        """
        made = []

        @pytest.fixture
        def thing(tmp_path):
            made.append(tmp_path)
            return tmp_path

        @pytest.mark.cancel_sweep
        @pytest.mark.parametrize("number", [1, 2])
        async def test_it(thing, trial, number):
            runs.append((thing, number))
            await anyio.sleep(number)

        def test_after():
            assert len(made) == 2 and set(runs) == set(zip(made, [1, 2]))
            assert len(runs) > 4
        """
    )

    result.assert_outcomes(passed=3)


@pytest.mark.parametrize("place", ["module", "class"])
def test_a_mark_of_a_module_or_a_class_is_for_its_async_tests(run, place):
    """What is not async in a marked module or class runs as ever; a nearer mark's options win."""
    result = run(
        f"""
        mark = pytest.mark.cancel_sweep(backends="asyncio", kinds="scope")
        {"pytestmark = mark" if place == "module" else ""}

        class TestThings:
            {"pytestmark = mark" if place == "class" else ""}

            @pytest.mark.cancel_sweep(kinds="native")
            async def test_method(self, trial):
                assert type(self) is TestThings
                await anyio.sleep(1)

            @staticmethod
            async def test_static(trial, tmp_path):
                await anyio.sleep(1)

            def test_sync(self, tmp_path):
                pass
        """,
        "-v",
    )

    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["*::test_method: *", "*asyncio, native: *", "*::test_static: *", "*asyncio, scope: *"]
    )


def test_a_backend_fixture_chooses(run):
    """``anyio_backend`` picks the event loop of each item, unless the mark says ``backends=``."""
    result = run(
        """
        @pytest.fixture(params=["trio", ("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["t", "a", "u"])
        def anyio_backend(request):
            return request.param

        @pytest.mark.cancel_sweep
        async def test_each(anyio_backend, trial):
            assert trial.backend in anyio_backend

        @pytest.mark.cancel_sweep(backends="trio")
        async def test_given(anyio_backend, trial):
            assert trial.backend == "trio"
        """,
        "-v",
        "-rs",
    )

    result.assert_outcomes(passed=5, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*backends='asyncio'*"])


def test_a_test_may_be_skipped_from_within(run):
    """What is no verdict on a run leaves the sweep as it is: a skip, an expected failure."""
    result = run(
        """
        @pytest.mark.cancel_sweep
        async def test_skipped():
            await anyio.sleep(1)
            pytest.skip("not here")

        @pytest.mark.cancel_sweep
        async def test_skipped_in_a_nursery():
            async with anyio.create_task_group():
                pytest.skip("not here")

        @pytest.mark.cancel_sweep
        async def test_expected():
            pytest.xfail("not yet")
        """
    )

    result.assert_outcomes(skipped=2, xfailed=1)


# -- failures and replays ------------------------------------------------------------------------


def test_a_failure_ends_with_the_command_that_replays_it(run):
    """It shows the run, what was raised, nothing of the sweep, and a command that does it again."""
    result = run(BAD)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*the line is still taken*",
            "*run *trio:scope:3*",
            "*in use: await anyio.sleep(1)*",
            ">*assert not outcome.state.line.taken*",
            "test_file.py:*: AssertionError",
            "pytest test_file.py::test_line --sweep-at trio:scope:3",
            "FAILED *ScenarioFailure: trio:scope:3*",
        ]
    )
    assert (
        "sluicegate" not in result.stdout.str().partition("FAILURES")[2].partition("short test")[0]
    )
    (command,) = [line for line in result.outlines if line.startswith("pytest test_file")]

    again = run(BAD, *shlex.split(command)[1:])

    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(
        [
            command,
            "*Captured cancel sweep call*",
            "run trio: returned None*",
            "run trio:scope:3: was cancelled*",
            "*struck: *in use*",
            "*state: line=*",
        ]
    )


def test_a_command_is_quoted_for_the_shell(run):
    """The test's name is quoted if its parameters need that."""
    result = run(
        """
        @pytest.mark.cancel_sweep
        @pytest.mark.parametrize("text", ["it's $5"])
        async def test_text(text):
            await anyio.sleep(1)
            raise KeyError(text)
        """
    )

    (command,) = [line for line in result.outlines if line.startswith("pytest ")]
    assert shlex.split(command) == [
        "pytest",
        "test_file.py::test_text[it's $5]",
        "--sweep-at",
        "trio",
    ]


def test_a_schedule_that_fails_is_replayed(run):
    """A fuzz tells the seed; the command runs the test under that schedule alone."""
    result = run(RACE)

    result.assert_outcomes(failed=1)
    (command,) = [line for line in result.outlines if line.startswith("pytest ")]
    assert "--sweep-at trio@" in command
    seed = command.rpartition("@")[2]

    for options in (shlex.split(command)[1:], ["--sweep-seed", seed]):
        run(RACE, *options).assert_outcomes(failed=1)
    run(RACE, "--sweep-seed", "0").assert_outcomes(passed=1)


def test_a_replay_keeps_nothing_alive(run):
    """What is shown of a replayed run does not save from the collector what the run left."""
    source = """
        @pytest.mark.cancel_sweep
        async def test_file(trial, tmp_path):
            trial.state.file = open(tmp_path / "file", "w")
            await anyio.sleep(1)
            trial.state.file.close()
        """

    for options in ([], ["--sweep-at", "trio:scope:1"]):
        result = run(source, *options)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            ["ResourceWarning: unclosed file*", "* --sweep-at trio:scope:1"]
        )


def test_a_replay_of_a_run_that_is_well_is_shown(run):
    """``--sweep-at`` shows the run also if nothing is wrong with it, and without ``-v``."""
    result = run(BAD, "--sweep-at", "asyncio:native:1")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*= sweeps =*",
            "*asyncio:native:1: one run",
            "*run asyncio: returned None*",
            "*run asyncio:native:1: was cancelled*",
        ]
    )


def test_of_two_marks_the_one_that_has_the_run_replays_it(run):
    """The run of a sweep's token is no run of the fuzz, nor the other way round."""
    source = f"@pytest.mark.schedule_fuzz(seeds=3)\n@pytest.mark.cancel_sweep(modes='park')\n{GOOD.strip()}"

    run(source, "--sweep-at", "trio:scope:4@2").assert_outcomes(passed=1)
    run(source, "--sweep-at", "trio:scope:5").assert_outcomes(failed=1)


# -- options -------------------------------------------------------------------------------------


def test_the_command_line_beats_the_mark(run):
    """``--sweep-limit`` and ``--sweep-seed`` replace what the mark says; a sample is told."""
    source = f"@pytest.mark.cancel_sweep(limit=100, seeds=3)\n{GOOD.strip()}"
    result = run(source, "--sweep-limit", "2", "--sweep-seed", "7-8")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "test_file.py::test_it: *only a sample of the positions was run; --sweep-limit N allows more"
        ]
    )
    section = run(source, "--sweep-limit", "2", "--sweep-seed", "7-8", "-v")
    section.stdout.fnmatch_lines(
        ["*a sample of 4 positions, seed 7", "*a sample of 4 positions, seed 8"]
    )
    assert section.stdout.str().count("trio, scope") == 2


def test_the_command_line_has_all_runs_done(run):
    """``--sweep-keep-going`` does not end at the first failure, and counts those that there are."""
    source = """
    import trio

    @pytest.mark.cancel_sweep
    async def test_it():
        for _ in range(2):
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                raise ValueError("swapped") from None
    """
    first, every = run(source), run(source, "--sweep-keep-going")

    for result in (first, every):
        result.assert_outcomes(failed=1)
    assert "runs failed:" not in first.stdout.str()
    every.stdout.fnmatch_lines(
        ["*4 of * runs failed:", "*4 x ValueError: swapped left the scenario*"]
    )


def test_help_says_that_a_pattern_strikes_several_tasks(run):
    """``pytest --help`` describes a pattern as target."""
    said = " ".join(run("", "--help").stdout.str().split())

    assert "If the mark has a pattern as target=, one run can strike several tasks" in said
    assert "--sweep-keep-going" in said


def test_a_limit_is_for_the_seeds_of_a_fuzz(run):
    """``--sweep-limit`` is the most seeds of a fuzz, and never raises their number."""
    source = f"@pytest.mark.schedule_fuzz(seeds=iter(range(5, 10)))\n{GOOD.strip()}"

    run(source, "--sweep-limit", "2", "-v").stdout.fnmatch_lines(["*2 seeds*"])
    run(source, "--sweep-limit", "99", "-v").stdout.fnmatch_lines(["*5 seeds*"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sweep-limit", "0"], "*--sweep-limit got '0'; expected a number above 0*"),
        (
            ["--sweep-seed", "9-3"],
            "*--sweep-seed got '9-3'; expected one seed*--sweep-seed 100-299*",
        ),
    ],
)
def test_a_wrong_option_ends_pytest(run, options, said):
    """An option that cannot be read is a usage error, before any test."""
    result = run(GOOD, *options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def in_vain(source, *said):
    """A test that cannot be swept, and what it is told."""
    return pytest.param(dedent(source), said, id=source.split("test_")[1].partition("(")[0])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        in_vain(
            "@pytest.mark.cancel_sweep\ndef test_sync(): pass",
            "has the mark cancel_sweep, but is not an async function; expected",
            "@pytest.mark.cancel_sweep on async def test_sync()",
        ),
        in_vain(
            "pytestmark = pytest.mark.schedule_fuzz\nasync def test_yields(): yield",
            "is not an async function",
        ),
        in_vain(
            "@pytest.mark.cancel_sweep(limt=3, kinds='all')\nasync def test_option(): pass",
            "the unknown option 'limt'; expected one of backends, kinds,",
            "@pytest.mark.cancel_sweep(limit=3, kinds='all')",
        ),
        in_vain(
            "@pytest.mark.cancel_sweep('trio')\nasync def test_unnamed(): pass",
            "with the positional argument 'trio'; expected keywords of backends,",
        ),
        in_vain(
            "@pytest.mark.cancel_sweep(kinds='soft')\nasync def test_kind(): pass",
            "test_file.py::test_kind: cancel_sweep: kinds has 'soft'; expected any of 'scope'",
        ),
        in_vain(
            "@pytest.mark.cancel_sweep(at='moon:1')\nasync def test_token(): pass",
            "at='moon:1' does not name a run of a scenario; expected a position",
        ),
        in_vain(
            "@pytest.mark.cancel_sweep(at='trio:scope:99')\nasync def test_far(): await anyio.sleep(1)",
            "at='trio:scope:99' was not reached; expected a position up to",
        ),
        in_vain(
            "@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.cancel_sweep)])\n"
            "async def test_late(n): pass",
            "got it too late",
            "expected the mark on a function, a method or a module",
        ),
        in_vain(
            """
            import unittest
            class TestCase(unittest.IsolatedAsyncioTestCase):
                @pytest.mark.cancel_sweep
                async def test_case(self): pass
            """,
            "in a TestCase",
        ),
        in_vain(
            """
            from hypothesis import given, strategies
            @pytest.mark.cancel_sweep
            @given(strategies.integers())
            async def test_given(n): pass
            """,
            "is made by hypothesis.given, which runs a test by itself; expected an ordinary test",
            "sweep(scenario)",
        ),
        in_vain(
            """
            @pytest.fixture
            async def line(): return 1
            @pytest.mark.cancel_sweep
            async def test_fixture(line): pass
            """,
            "uses the async fixture 'line', and each of its runs has a new event loop;",
            "async with line() as ...",
        ),
    ],
)
def test_what_cannot_be_swept_says_so(run, source, said):
    """A mark that would come to nothing fails its test: what happened, what was expected."""
    result = run(source)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for each in said:
        assert each in text_of(result)
    assert "hidden" not in text_of(result)


# -- the other plugins ---------------------------------------------------------------------------


#: A plugin's name, the mark by which it takes a test, how it takes every async one, and what else
#: it wants.
OTHERS = [
    pytest.param("pytest_trio.plugin", "trio", "trio_mode = true", "", id="pytest-trio"),
    pytest.param("anyio.pytest_plugin", "anyio", "anyio_mode = auto", "", id="anyio"),
    pytest.param(
        "pytest_asyncio.plugin",
        "asyncio",
        "asyncio_mode = auto",
        "asyncio_default_fixture_loop_scope = function",
        id="pytest-asyncio",
    ),
]


@pytest.mark.parametrize("way", ["registered first", "registered last", "marked"])
@pytest.mark.parametrize(("plugin", "mark", "auto", "ini"), OTHERS)
def test_no_other_plugin_takes_the_coroutine(run, plugin, mark, auto, ini, way):
    """A plugin that takes every async test, or all with its mark, takes no swept one."""
    pytest.importorskip(plugin.partition(".")[0], reason=f"{plugin} is not installed")
    source = """
        @pytest.mark.cancel_sweep(backends="trio")
        async def test_it(trial):
            runs.append(trial.backend)
            await anyio.sleep(1)

        class TestMore:
            @pytest.mark.schedule_fuzz(backends="trio", seeds=3)
            async def test_more(self, tmp_path):
                runs.append(tmp_path)
                await anyio.sleep(1)

        def teardown_module():
            assert len(runs) > 3 + 2
        """
    if way == "marked":
        source = f"pytestmark = pytest.mark.{mark}\n{dedent(source)}"
    elif mark == "anyio" and not hasattr(anyio.pytest_plugin, "pytest_addoption"):
        pytest.skip("this AnyIO has no auto mode")
    else:
        ini = f"{ini}\n{auto}"
    plugins = [plugin, "pytest_sluicegate"]

    result = run(source, plugins=plugins if way == "registered first" else plugins[::-1], ini=ini)

    result.assert_outcomes(passed=2)


def test_the_anyio_mark_runs_it_on_each_backend(run):
    """As it does with other tests; ``-m`` knows the mark."""
    source = f"@pytest.mark.anyio\n@pytest.mark.cancel_sweep\n{GOOD.strip()}"
    result = run(source, "-m", "anyio", "-v", plugins=["anyio.pytest_plugin", "pytest_sluicegate"])

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random(
        [
            "*test_it?asyncio?: cancel_sweep",
            "*asyncio, native*",
            "*test_it?trio?: cancel_sweep",
            "*trio, scope*",
        ]
    )


def test_beside_a_plugin_that_takes_whatever_is_async(run, pytester):
    """A plugin that no one knows finds nothing async in a swept test."""
    pytester.makepyfile(
        greedy="""
        import inspect, pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_pycollect_makeitem(collector, name, obj):
            if inspect.iscoroutinefunction(obj):
                raise RuntimeError("taken when collected")

        @pytest.hookimpl(tryfirst=True)
        def pytest_pyfunc_call(pyfuncitem):
            if inspect.iscoroutinefunction(pyfuncitem.obj):
                raise RuntimeError("taken when called")

        def pytest_collection_modifyitems(items):
            assert not any(inspect.iscoroutinefunction(item.function) for item in items)
        """
    )
    pytester.syspathinsert()

    result = run(
        f"@pytest.mark.cancel_sweep\n{GOOD.strip()}", plugins=["pytest_sluicegate", "greedy"]
    )

    result.assert_outcomes(passed=1)


@pytest.mark.slow
def test_beside_xdist(run):
    """Failures, commands, samples and replays come through xdist's workers."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    source = f"{BAD}\n@pytest.mark.cancel_sweep(limit=2)\n{GOOD.strip()}"
    result = run(source, "-n", "2", plugins=["xdist.plugin", "pytest_sluicegate"], apart=True)

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "pytest test_file.py::test_line --sweep-at trio:scope:3",
            "*= sweeps =*",
            "*::test_it: *sample*",
        ]
    )


def test_it_may_be_switched_off(run):
    """``-p no:`` takes the marks, the options and all else away."""
    run("def test_it(): pass", "-p", "no:pytest_sluicegate", plugins=()).assert_outcomes(passed=1)
    result = run(
        "def test_it(): pass", "--sweep-limit", "2", "-p", "no:pytest_sluicegate", plugins=()
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_without_a_marked_test_nothing_is_imported(run):
    """The plugin costs pytest's start nothing: no sluicegate, no event loop."""
    result = run(
        """
        import sys

        async def helper():
            pass

        def test_it():
            loaded = {name.partition(".")[0] for name in sys.modules if not name.startswith("_")}
            assert not loaded & {"sluicegate", "trio", "anyio", "asyncio", "attrs"}
            assert {name for name in sys.modules if name.startswith("pytest_sluicegate")} == {"pytest_sluicegate"}
        """,
        header="",
        apart=True,
    )

    result.assert_outcomes(passed=1)
