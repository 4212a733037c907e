"""Items: a marked test, which to every other plugin is an ordinary function that awaits nothing."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from pytest_sluicegate._options import options_for, refuse
from pytest_sluicegate._reports import Witness, represent, tell_report


if TYPE_CHECKING:
    from collections.abc import Callable

    from _pytest._code.code import ExceptionInfo, TerminalRepr


#: For each mark, the function of sluicegate.testing that runs the test.
_CALLS: Final = {"cancel_sweep": "sweep", "schedule_fuzz": "fuzz"}

#: The marks by which other plugins know the coroutines that are theirs.
_THEIRS: Final = ("anyio", "asyncio", "trio")


def make_items(
    collector: pytest.Module | pytest.Class,
    name: str,
    function: Callable[..., Any],
    own_marks: list[pytest.Mark],
) -> list[pytest.Item] | None:
    """Make the items of a marked test function, one for each set of its parameters.

    Returns:
        The items; None if the function is not async (``check_item`` tells so where it should).
    """
    if not inspect.iscoroutinefunction(function) or not getattr(function, "__test__", True):
        return None
    marks = [*own_marks, *collector.iter_markers()]
    definition = _definition(collector, function, marks)
    return [
        _swept(collector, item) for item in cast("Any", collector)._genfunctions(name, definition)
    ]


def _swept(collector: pytest.Module | pytest.Class, item: Any) -> SweptFunction:
    callspec = getattr(item, "callspec", None)
    swept: SweptFunction = cast("Any", SweptFunction).from_parent(
        collector,
        name=item.name,
        callspec=callspec,
        keywords={callspec.id: True} if callspec else None,
        fixtureinfo=item._fixtureinfo,
        originalname=item.originalname,
    )
    return swept


def _definition(
    collector: pytest.Module | pytest.Class, function: Callable[..., Any], marks: list[pytest.Mark]
) -> Callable[..., Any]:
    """Make what pytest is to read fixtures and parameters from: it is not async, without ``trial``."""

    @functools.wraps(function)
    def definition() -> None:
        raise NotImplementedError

    signature = inspect.signature(function)
    kept = [it for name, it in signature.parameters.items() if name != "trial"]
    vars(definition)["__signature__"] = signature.replace(parameters=kept)
    if _wants_each_backend(collector, marks):
        pytest.mark.usefixtures("anyio_backend")(definition)
    return definition


def _wants_each_backend(collector: pytest.Module | pytest.Class, marks: list[pytest.Mark]) -> bool:
    """Whether the AnyIO plugin's mark is to choose the backends, as it does for other tests."""
    return (
        bool(collector.session._fixturemanager.getfixturedefs("anyio_backend", collector))
        and any(mark.name == "anyio" for mark in marks)
        and any(
            ours in {mark.name for mark in marks}
            and not any(mark.name == ours and "backends" in mark.kwargs for mark in marks)
            for ours in _CALLS
        )
    )


class SweptFunction(pytest.Function):
    """A test function with one set of its parameters; all runs of it are this one item."""

    def _getobj(self) -> Callable[..., None]:
        function: Callable[..., Any] = cast("Any", super())._getobj()

        @functools.wraps(function)
        def swept(**fixtures: Any) -> None:
            __tracebackhide__ = True
            self._run(function, fixtures)

        return swept

    def get_closest_marker(self, name: str, default: Any = None) -> Any:
        """Return the nearest mark of a name, but none that gives a coroutine to another plugin.

        ``iter_markers``, and with it ``pytest -m``, knows these as ever.
        """
        return default if name in _THEIRS else super().get_closest_marker(name, default)

    def _run(self, function: Callable[..., Any], fixtures: dict[str, Any]) -> None:
        __tracebackhide__ = True
        from sluicegate import testing  # noqa: PLC0415 - whoever marks no test does not pay for it

        calls = {mark: getattr(testing, call) for mark, call in _CALLS.items()}
        marks = [mark for mark in _CALLS if self.get_closest_marker(mark) is not None]
        refusals: list[str] = []
        for mark in marks:
            options = options_for(self, mark, calls[mark])
            refusal = self._run_marked(mark, calls[mark], options, _Scenario(function, fixtures))
            if refusal:
                refusals.append(f"{self.nodeid}: {mark}: {refusal}")
        # Of two marks a replay is for one, and to the other there may be no such run.
        if len(refusals) == len(marks) or (refusals and self.config.getoption("sweep_at") is None):
            refuse(refusals[0])

    def _run_marked(
        self, mark: str, call: Callable[..., Any], options: dict[str, Any], scenario: _Scenario
    ) -> str:
        """Run the test as one of its marks asks; return why that cannot be, if it cannot."""
        __tracebackhide__ = True
        witness = report = None
        is_replay = options.get("at") is not None
        if is_replay:
            witness = Witness(options.get("check") or getattr(scenario, "check", None))
            options["check"] = witness
        try:
            report = call(scenario, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            # What a test raises is no such error, but a failure.
            if scenario.runs and not is_replay:
                raise
            return str(error)
        finally:
            self._tell(mark, report, witness)
        return ""

    def _tell(self, mark: str, report: Any, witness: Witness | None) -> None:
        text = tell_report(report, witness)
        if text:
            self.add_report_section("call", mark.replace("_", " "), text)
            self.user_properties.append((mark, text))
        if report is not None and report.sampled:
            note = "not every position was run, but a sample; --sweep-limit N allows more"
            self.user_properties.append((f"{mark}.sampled", note))

    def repr_failure(  # type: ignore[override]
        self, excinfo: ExceptionInfo[BaseException]
    ) -> str | TerminalRepr:
        """Show a failed run by its text, what the test raised, and the command that replays it."""
        from sluicegate.testing import ScenarioFailure  # noqa: PLC0415 - it is imported by now

        if not isinstance(excinfo.value, ScenarioFailure):
            return super().repr_failure(excinfo)
        return represent(self, excinfo.value, super().repr_failure)


class _Scenario:
    """The scenario of a test: the test with its fixtures, and a trial if it takes one."""

    def __init__(self, function: Any, fixtures: dict[str, Any]) -> None:
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.runs = 0
        self._function = function
        self._fixtures = fixtures
        self._takes_trial = "trial" in inspect.signature(function).parameters
        if hasattr(function, "check"):
            self.check = function.check

    async def __call__(self, trial: Any) -> Any:
        __tracebackhide__ = True
        self.runs += 1
        if self._takes_trial:
            return await self._function(**self._fixtures, trial=trial)
        return await self._function(**self._fixtures)


# -- what cannot be swept -----------------------------------------------------------------------


def check_item(item: pytest.Item) -> None:
    """Fail a test whose mark would come to nothing, and one whose fixtures need an event loop."""
    if isinstance(item, SweptFunction):
        _check_fixtures(item)
        return
    function: Any = getattr(item, "function", None)
    mark = next(name for name in _CALLS if item.get_closest_marker(name) is not None)
    is_own = any(own.name == mark for own in item.own_markers)
    given = getattr(function, "hypothesis", None)
    if given is not None and inspect.iscoroutinefunction(given.inner_test):
        problem = "is made by hypothesis.given, which runs a test by itself"
        expected = (
            f"an ordinary test that sweeps: def {item.name}(value): {_CALLS[mark]}(scenario), "
            "or the values by @pytest.mark.parametrize"
        )
    elif inspect.iscoroutinefunction(function) and isinstance(item, pytest.Function):
        problem = "got it where it comes too late (on a parameter, by a hook, or in a TestCase)"
        expected = f"it on a function, a method or a module: @pytest.mark.{mark}"
    elif is_own or inspect.isasyncgenfunction(function):
        problem = "is no async function"
        expected = f"@pytest.mark.{mark} on async def {getattr(item, 'originalname', item.name)}()"
    else:
        return  # It is in a marked class or module, and there is nothing in it to cancel.
    refuse(f"{item.nodeid} has the mark {mark}, and {problem}; expected {expected}")


def _check_fixtures(item: SweptFunction) -> None:
    for name in item.fixturenames:
        definitions = item._fixtureinfo.name2fixturedefs.get(name)
        if not definitions:
            continue
        function: Any = definitions[-1].func
        if (
            inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
            or hasattr(function, "_force_trio_fixture")
        ):
            refuse(
                f"{item.nodeid} uses the async fixture {name!r}, and each of its runs has an event "
                "loop of its own; expected an ordinary fixture that returns what the test opens: "
                f"async with {name}() as ..."
            )
