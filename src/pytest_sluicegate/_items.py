"""The items of marked tests; other plugins see them as ordinary synchronous functions."""

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

#: The marks by which other plugins recognize their own coroutines.
_THEIRS: Final = ("anyio", "asyncio", "trio")


def make_items(
    collector: pytest.Module | pytest.Class,
    name: str,
    function: Callable[..., Any],
    own_marks: list[pytest.Mark],
) -> list[pytest.Item] | None:
    """Make the items of a marked test function, one for each set of its parameters.

    Returns:
        The items; None if the function is not async (``check_item`` reports that).
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
    """Return a synchronous function without ``trial``, for pytest to inspect."""

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
    """Whether the mark of AnyIO's plugin chooses the backends, as it does for other tests."""
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
    """A test function with one set of parameters; one item for all of its runs."""

    def _getobj(self) -> Callable[..., None]:
        function: Callable[..., Any] = cast("Any", super())._getobj()

        @functools.wraps(function)
        def swept(**fixtures: Any) -> None:
            __tracebackhide__ = True
            self._run(function, fixtures)

        return swept

    def get_closest_marker(self, name: str, default: Any = None) -> Any:
        """Return the nearest mark of a name; hide marks by which other plugins take coroutines.

        ``iter_markers``, and with it ``pytest -m``, still finds those marks.
        """
        return default if name in _THEIRS else super().get_closest_marker(name, default)

    def _run(self, function: Callable[..., Any], fixtures: dict[str, Any]) -> None:
        __tracebackhide__ = True
        from sluicegate import testing  # noqa: PLC0415 - imported only for marked tests

        calls = {mark: getattr(testing, call) for mark, call in _CALLS.items()}
        marks = [mark for mark in _CALLS if self.get_closest_marker(mark) is not None]
        refusals: list[str] = []
        for mark in marks:
            options = options_for(self, mark, calls[mark])
            refusal = self._run_marked(mark, calls[mark], options, _Scenario(function, fixtures))
            if refusal:
                refusals.append(f"{self.nodeid}: {mark}: {refusal}")
        # With two marks, a replayed run belongs to one; the other may refuse the token.
        if len(refusals) == len(marks) or (refusals and self.config.getoption("sweep_at") is None):
            refuse(refusals[0])

    def _run_marked(
        self, mark: str, call: Callable[..., Any], options: dict[str, Any], scenario: _Scenario
    ) -> str:
        """Run the test for one of its marks; return why that is impossible, or an empty text."""
        __tracebackhide__ = True
        witness = report = None
        is_replay = options.get("at") is not None
        if is_replay:
            witness = Witness(options.get("check") or getattr(scenario, "check", None))
            options["check"] = witness
        try:
            report = call(scenario, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            # After a run of the test, such an error is a failure of the test.
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
            note = "only a sample of the positions was run; --sweep-limit N allows more"
            self.user_properties.append((f"{mark}.sampled", note))

    def repr_failure(  # type: ignore[override]
        self, excinfo: ExceptionInfo[BaseException]
    ) -> str | TerminalRepr:
        """Show a failed run: its text, the exception of the test, and the command to replay it."""
        from sluicegate.testing import ScenarioFailure  # noqa: PLC0415 - already imported

        if not isinstance(excinfo.value, ScenarioFailure):
            return super().repr_failure(excinfo)
        return represent(self, excinfo.value, super().repr_failure)


class _Scenario:
    """The scenario of a test: calls it with its fixtures, and a trial if it takes one."""

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


# -- tests that cannot be swept -----------------------------------------------------------------------


def check_item(item: pytest.Item) -> None:
    """Fail a test whose mark would have no effect, and one whose fixtures need an event loop."""
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
        problem = "got it too late (on a parameter, from a hook, or in a TestCase)"
        expected = f"the mark on a function, a method or a module: @pytest.mark.{mark}"
    elif is_own or inspect.isasyncgenfunction(function):
        problem = "is not an async function"
        expected = f"@pytest.mark.{mark} on async def {getattr(item, 'originalname', item.name)}()"
    else:
        return  # a synchronous test in a marked class or module: nothing to cancel
    refuse(f"{item.nodeid} has the mark {mark}, but {problem}; expected {expected}")


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
                f"{item.nodeid} uses the async fixture {name!r}, and each of its runs has a new event "
                "loop; expected a synchronous fixture that returns what the test opens itself: "
                f"async with {name}() as ..."
            )
