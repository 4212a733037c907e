"""Replaces steps and resources of a single run, in a copy of the graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._definition.resources import Resource, ResourceConfig
from sluicegate._errors import brief
from sluicegate._events import Event


if TYPE_CHECKING:
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.resources import ResourcePlan, Scope
    from sluicegate._definition.steps import Step


#: For each step name, the results of its invocations in order (an exception is raised); or a
#: function of its event, or events, that returns the result.
Recorded = Mapping[str, Iterable[Any] | Callable[..., Any]]

#: The values that replace those of factories and of parts of configuration files.
Resources = Mapping[Any, Any]


def with_steps(graph: Graph, steps: Iterable[Step]) -> Graph:
    """Return a copy of a graph with other steps of the same shape, and with empty caches."""
    private = graph.copy()
    private.steps = tuple(steps)
    return private


def step_named(graph: Graph, name: object, what: str) -> Step:
    """Return a step by its name.

    Raises:
        ValueError: There is no such step. ``what`` is the subject of the message.
    """
    index = graph.index.get(name) if isinstance(name, str) else None
    if index is None:
        msg = (
            f"{what} names {name!r}, but {graph.name} has no such step; expected one of "
            f"{', '.join(graph.index)}"
        )
        raise ValueError(msg)
    return graph.steps[index]


class Recording:
    """Replaces the function of a step, and returns recorded results.

    Args:
        step: The step.
        results: See :data:`Recorded`.
        fail: Called with an error if the step runs more often than there are results.

    Raises:
        TypeError: The results are neither a function nor an iterable.
    """

    def __init__(self, step: Step, results: Any, fail: Callable[[BaseException], None]) -> None:
        self._step = step
        self._fail = fail
        self._function: Callable[..., Any] | None = None
        self._results: Iterator[Any] = iter(())
        self._taken = 0
        self._is_counted = isinstance(results, list | tuple)
        if isinstance(results, Event | str | BaseException) or (
            not callable(results) and not isinstance(results, Iterable)
        ):
            msg = (
                f"recorded[{step.name!r}] is {brief(results)}; expected a list with a result for "
                f"each invocation: recorded={{{step.name!r}: [{brief(results, 40)}]}}, or a "
                "function of the event"
            )
            raise TypeError(msg)
        if isinstance(results, Iterable):
            self._results = iter(cast("Iterable[Any]", results))
        else:
            self._function = results

    async def __call__(self, _workflow: object, *events: Any) -> Any:
        """Return or raise the next result."""
        if self._function is not None:
            result = self._function(*events)
            return await result if inspect.isawaitable(result) else result  # noqa: ASYNC910
        try:
            result = next(self._results)
        except StopIteration:
            error = AssertionError(
                f"the step {self._step.label} ran once more than there are recorded results "
                f"({self._taken}); expected one more in recorded[{self._step.name!r}], for "
                f"{brief(events[0])}"
            )
            self._fail(error)
            raise error from None
        self._taken += 1
        if isinstance(result, BaseException):
            raise result
        return result  # noqa: ASYNC910 - the engine checks for cancellation at every hop

    def leftover(self) -> str:
        """Return a message if results of a list were not used, otherwise an empty text."""
        left = sum(1 for _ in self._results) if self._is_counted else 0
        if not left:
            return ""
        return (
            f"{left} of the {self._taken + left} results recorded for {self._step.name} were not "
            f"used; expected it to run {self._taken + left} times"
        )

    def stand_in(self) -> Step:
        """Return the step with this as its function, and without resources and limiter."""
        step = self._step
        return attrs.evolve(
            step,
            function=self.__call__,
            signature=attrs.evolve(step.signature, context_at=None, resources=()),
            options=attrs.evolve(step.options, limiter=None),
            resources=(),
            runs_in="loop",
            elsewhere=None,
        )


class Replacing:
    """Replaces resources by values.

    Args:
        resources: The values, by the factories that they replace.

    Raises:
        TypeError: A key is neither a factory nor a :class:`ResourceConfig`.
    """

    def __init__(self, resources: Resources) -> None:
        self._values: dict[tuple[Any, ...], tuple[str, Any]] = {}
        self._used: set[tuple[Any, ...]] = set()
        self._plans: dict[int, ResourcePlan] = {}
        for factory, value in resources.items():
            if isinstance(factory, ResourceConfig):
                key: tuple[Any, ...] = ("config", str(factory.path), factory.selector)
                name = factory.name
            elif callable(factory):
                asked = Resource(cast("Callable[..., Any]", factory))
                key, name = _owner(asked.key), asked.name
            else:
                msg = (
                    f"resources has the key {brief(factory)}; expected the factory of a "
                    "`Resource(factory)`: resources={factory: value}"
                )
                raise TypeError(msg)
            self._values[key] = name, value

    def alter(self, step: Step) -> Step:
        """Return the step with its resources replaced."""
        plans = tuple((place, self._plan(plan)) for place, plan in step.resources)
        return attrs.evolve(step, resources=plans)

    def _plan(self, plan: ResourcePlan) -> ResourcePlan:
        known = self._plans.get(id(plan))
        if known is None:
            known = self._plans[id(plan)] = self._altered(plan)
        return known

    def _altered(self, plan: ResourcePlan) -> ResourcePlan:
        owner = _owner(plan.key)
        # Another run of the workflow must not get a resource that was made from a replacement.
        scope: Scope = "run" if plan.scope == "workflow" else plan.scope
        if owner in self._values:
            self._used.add(owner)
            value = self._values[owner][1]
            return attrs.evolve(
                plan, make=lambda: value, needs=(), context_as=None, enter=False, scope=scope
            )
        needs = tuple((name, self._plan(needed)) for name, needed in plan.needs)
        if all(new is old for (_, new), (_, old) in zip(needs, plan.needs, strict=True)):
            return plan
        return attrs.evolve(plan, needs=needs, scope=scope)

    def check_used(self, what: str) -> None:
        """Check that every replaced factory is used.

        Raises:
            ValueError: A factory is not used. ``what`` is the object that does not use it.
        """
        unused = [name for key, (name, _) in self._values.items() if key not in self._used]
        if unused:
            msg = (
                f"resources replaces {', '.join(unused)}, but {what} does not use it; expected the "
                "same factory object as in its `Resource(...)`"
            )
            raise ValueError(msg)


def _owner(key: Any) -> tuple[Any, ...]:
    """Return the key of a resource without its options."""
    parts: tuple[Any, ...] = key
    if parts[0] == "config":
        return parts[:3]
    return parts if isinstance(parts[0], str) else parts[:-2]
