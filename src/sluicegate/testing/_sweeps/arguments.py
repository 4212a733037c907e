"""Validation of the arguments of ``sweep()`` and ``fuzz()``, before anything runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from sluicegate.testing._sweeps.crash import LOSSES, Loss
from sluicegate.testing._sweeps.stage import REASON, Staging
from sluicegate.testing._sweeps.trial import (
    CRASH,
    DEFAULT_KINDS,
    KINDS,
    LEFTOVERS,
    At,
    Kind,
    Mode,
    Outcome,
    Scenario,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Collection


def new_staging(
    scenario: Any,
    *,
    modes: Sequence[str],
    target: str | None,
    error: BaseException | type[BaseException],
    within: float,
    raises: type[BaseException] | tuple[type[BaseException], ...],
    check: Callable[[Outcome], Any] | None,
    allow: str | Collection[str],
    fresh: bool,
    loses: Loss = "pending",
) -> Staging:
    """Return the checked settings of all runs of a scenario.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has an unknown value.
    """
    _check_scenario(scenario)
    check = check if check is not None else getattr(scenario, "check", None)
    if check is not None and not callable(check):
        msg = f"check={check!r}; expected a function of the outcome: def check(outcome): ..."
        raise TypeError(msg)
    if target is not None and not isinstance(target, str):
        msg = f"target={target!r}; expected a name, or a pattern of names: target='worker-*'"
        raise TypeError(msg)
    if not isinstance(error, BaseException) and not _is_exception_class(error):
        msg = f"error={error!r}; expected an exception or the class of one: error=OSError"
        raise TypeError(msg)
    _check_made(error)
    positive("within", within, "virtual seconds")
    classes: tuple[Any, ...] = raises if isinstance(raises, tuple) else (raises,)
    if not all(map(_is_exception_class, classes)):
        msg = f"raises={raises!r}; expected a class of exceptions, or several: raises=(OSError,)"
        raise TypeError(msg)
    return Staging(
        scenario=scenario,
        takes_trial=_takes_trial(scenario),
        modes=cast("tuple[Mode, ...]", tuple(modes)),
        target=target,
        error=error,
        within=within,
        check=check,
        fresh=fresh,
        raises=classes,
        allow=frozenset(choose("allow", allow, LEFTOVERS, may_be_empty=True)),
        loses=cast("Loss", choose("loses", loses, LOSSES)[0]),
    )


def _check_made(error: BaseException | type[BaseException]) -> None:
    if isinstance(error, type):
        try:
            error(REASON)
        except Exception as wrong:
            msg = (
                f"error={error.__name__} cannot be created from a text ({wrong}); expected an exception "
                f"object: error={error.__name__}(...)"
            )
            raise TypeError(msg) from wrong


def _check_scenario(scenario: Any) -> None:
    call = getattr(scenario, "__call__", None)  # noqa: B004 - an object may be a scenario
    if inspect.iscoroutinefunction(_inner(scenario)) or inspect.iscoroutinefunction(call):
        return
    hint = ""
    if inspect.iscoroutine(scenario):
        scenario.close()
        hint = f" the function itself, not called: {scenario.__name__} instead of"
        hint += f" {scenario.__name__}(), as in"
    msg = f"{scenario!r} is not an async function; expected{hint} async def scenario(): ..."
    raise TypeError(msg)


def _takes_trial(scenario: Scenario) -> bool:
    required = [
        parameter
        for parameter in inspect.signature(scenario).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    if len(required) > 1 or any(one.kind is one.KEYWORD_ONLY for one in required):
        needs = ", ".join(parameter.name for parameter in required)
        msg = (
            f"{name_of(scenario)}{inspect.signature(scenario)} requires the arguments {needs}; "
            "expected none, or one, the trial: async def scenario(trial): ..."
        )
        raise TypeError(msg)
    return bool(required)


def _inner(scenario: Any) -> Any:
    while isinstance(scenario, functools.partial):
        scenario = cast("Any", scenario).func
    return scenario


def _is_exception_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def name_of(thing: Any) -> str:
    """Return the name under which a program knows a scenario or a class."""
    thing = _inner(thing)
    return str(getattr(thing, "__name__", None) or type(thing).__name__)


def positive(name: str, given: object, of_what: str) -> None:
    """Check that an argument is a number above 0.

    Raises:
        TypeError: It is not a number.
        ValueError: It is 0 or less.
    """
    if not isinstance(given, int | float) or isinstance(given, bool):
        msg = f"{name}={given!r}; expected {of_what}: {name}=100"
        raise TypeError(msg)
    if not given > 0:
        msg = f"{name}={given!r}; expected {of_what} above 0: {name}=100"
        raise ValueError(msg)


def choose(
    name: str, given: object, known: Sequence[str], *, may_be_empty: bool = False
) -> tuple[str, ...]:
    """Return an argument that is one word or several words as a tuple.

    Raises:
        TypeError: It is neither.
        ValueError: A word is unknown, or there is none.
    """
    words = f"expected any of {', '.join(map(repr, known))}: {name}={known[0]!r}"
    if not isinstance(given, str | Iterable):
        msg = f"{name}={given!r}; {words}"
        raise TypeError(msg)
    chosen = (given,) if isinstance(given, str) else tuple(cast("Iterable[Any]", given))
    if not chosen and not may_be_empty:
        msg = f"{name}={given!r} is empty; {words}"
        raise ValueError(msg)
    for one in chosen:
        if one not in known:
            msg = f"{name} has {one!r}; {words}"
            raise ValueError(msg)
    return chosen


def chosen_kinds(
    backend: str, kinds: str | Sequence[str] | None, backends: Sequence[str]
) -> tuple[Kind, ...]:
    """Return the kinds of disturbance for one event loop.

    Raises:
        TypeError: ``kinds`` is not made of words.
        ValueError: A kind is unknown, or none of ``backends`` supports it.
    """
    if kinds is None:
        return DEFAULT_KINDS[backend]
    chosen = choose("kinds", kinds, (*KINDS["asyncio"], "all", CRASH))
    known = (*KINDS[backend], CRASH)
    if "all" in chosen:
        chosen = (*KINDS[backend], *chosen)
    for kind in chosen:
        if not any(kind in (*KINDS[each], CRASH, "all") for each in backends):
            msg = (
                f"kinds has {kind!r}, which only asyncio has; expected it with backends='asyncio', or "
                f"one of {', '.join(map(repr, KINDS['trio']))}"
            )
            raise ValueError(msg)
    return tuple(kind for kind in known if kind in chosen)


def chosen_seeds(seeds: int | Iterable[int]) -> list[int]:
    """Return the seeds.

    Raises:
        TypeError: They are not numbers.
        ValueError: There is no seed, or one is negative.
    """
    expected = "expected a number of seeds from 1 on, or seeds from 0 on: seeds=[7]"
    if not isinstance(seeds, int | Iterable):
        msg = f"seeds={seeds!r}; {expected}"
        raise TypeError(msg)
    wanted: list[Any] = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not wanted or any(not isinstance(seed, int) or seed < 0 for seed in wanted):
        msg = f"seeds={seeds!r}; {expected}"
        raise ValueError(msg)
    return wanted


def chosen_at(at: object) -> tuple[At | None, int | None]:
    """Parse ``at``: the text that a failure printed, or else a position (or a seed).

    Raises:
        TypeError: It is neither text nor a number.
        ValueError: The text does not name a run, or the number is negative.
    """
    if at is None:
        return None, None
    if isinstance(at, At):
        at = str(at)
    if isinstance(at, str):
        return (None, int(at)) if at.isdecimal() else (At.parse(at), None)
    expected = "expected a number, at=7, or what a failure printed, at='trio:scope:7'"
    if not isinstance(at, int) or isinstance(at, bool):
        msg = f"at={at!r}; {expected}"
        raise TypeError(msg)
    if at < 0:
        msg = f"at={at!r}; {expected}"
        raise ValueError(msg)
    return None, at
