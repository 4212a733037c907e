"""A workflow as a tool: its name, its schemas, and how its arguments and its result are read and written."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from mcp import types

from sluicegate._data.from_outside import decode_event
from sluicegate._data.json import data_of, json_of, result_schema_of, schema_of
from sluicegate._errors import brief
from sluicegate._events import StartEvent, StopEvent
from sluicegate._events.generics import meanings_of
from sluicegate._workflow import Workflow, graph_in


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate._definition.graph import Graph


#: The argument with which a client names a run in a store.
RUN_ID = "run_id"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_RUN_ID_SCHEMA = {
    "type": "string",
    "minLength": 1,
    "maxLength": 200,
    "description": "An id of your choice for a long task. A later call with the same id and the same "
    "arguments continues the task, or returns its result, and does not begin another one.",
}


class RefusedError(Exception):
    """Raised when a call is refused or has failed; the text is for the model that calls the tool."""


@attrs.frozen(kw_only=True)
class WorkflowTool:
    """A workflow as a tool of a server.

    Attributes:
        name: The name of the tool.
        workflow: The workflow.
        takes_run_id: Whether the tool has the argument `run_id`, which is not the workflow's.
        can_ask: Whether its runs may wait for answers, as far as its steps tell.
        declared: The tool as clients see it.
        validator: Checks results against the output schema.
    """

    name: str
    workflow: Workflow[Any]
    takes_run_id: bool
    can_ask: bool
    declared: types.Tool
    validator: Any

    def start_event(self, arguments: Mapping[str, Any] | None) -> tuple[StartEvent, str | None]:
        """Return the start event that a client's arguments make, and the id that it gives to the run.

        Raises:
            RefusedError: They do not fit; the text names the field.
        """
        given = dict(arguments or {})
        run_id = given.pop(RUN_ID, None) if self.takes_run_id else None
        if not (run_id is None or (isinstance(run_id, str) and 0 < len(run_id) <= 200)):
            msg = f"invalid arguments: {RUN_ID} is {brief(run_id)}; expected a string of 1 to 200 characters"
            raise RefusedError(msg)
        try:
            return decode_event(graph_in(self.workflow).start_event, given), run_id
        except TypeError as error:
            msg = f"invalid arguments: {error}"
            raise RefusedError(msg) from None

    def result(self, event: StopEvent) -> types.CallToolResult:
        """Return the event that ended a run as the result of a call.

        Raises:
            RefusedError: It does not fit the output schema.
        """
        data = data_of(event)
        fault = next(iter(self.validator.iter_errors(data)), None)
        if fault is not None:
            name = type(self.workflow).__name__
            msg = (
                f"{self.name} ended with a {type(event).__name__} that does not fit its output schema "
                f"at {fault.json_path}; expected `Workflow[...]` of {name}, and the annotations of "
                "the event, to say what it returns"
            )
            raise RefusedError(msg)
        text = data["result"] if type(event) is StopEvent and len(data) == 1 else data
        shown = text if isinstance(text, str) else json_of(text)
        return types.CallToolResult(
            content=[types.TextContent(text=shown)], structured_content=data
        )


def tools_of(given: Iterable[Any], *, has_store: bool) -> dict[str, WorkflowTool]:
    """Return the workflows that `mcp_server` was given as tools, by their names.

    Raises:
        TypeError: One is not a workflow.
        ValueError: A name is invalid, or two tools have the same.
    """
    named: list[tuple[str, Any]] = []
    for each in given:
        if isinstance(each, Mapping):
            named += cast("Mapping[str, Any]", each).items()
        else:
            named.append((type(each).__name__, each))
    found: dict[str, WorkflowTool] = {}
    for name, workflow in named:
        if not isinstance(workflow, Workflow):
            msg = f"mcp_server() was given {brief(workflow)}; expected a workflow object: mcp_server(MyWorkflow())"
            raise TypeError(msg)
        one = cast("Workflow[Any]", workflow)
        if not (isinstance(cast("object", name), str) and _NAME.fullmatch(name)):
            msg = (
                f"{brief(name)} is no name of a tool; expected 1 to 128 of the characters A-Z, a-z, 0-9, "
                f'"_", "-" and ".": mcp_server({{"my_tool": {type(one).__name__}()}})'
            )
            raise ValueError(msg)
        if name in found:
            msg = (
                f"mcp_server() was given two tools with the name {name!r}; expected a name for each: "
                f'mcp_server({{"{name}": ..., "{name}2": ...}})'
            )
            raise ValueError(msg)
        found[name] = _tool_of(name, one, has_store=has_store)
    if not found:
        msg = "mcp_server() was given no workflow; expected at least one: mcp_server(MyWorkflow())"
        raise ValueError(msg)
    return found


def _tool_of(name: str, workflow: Workflow[Any], *, has_store: bool) -> WorkflowTool:
    graph = graph_in(workflow)
    arguments = schema_of(graph.start_event)
    if "description" in arguments and graph.start_event is StartEvent:
        del arguments["description"]  # it is about the class of the library
    if has_store:  # no start event has a field of this name
        arguments["properties"] = {**arguments["properties"], RUN_ID: _RUN_ID_SCHEMA}
    result = result_schema_of(graph.stop_events, _result_of(type(workflow)))
    return WorkflowTool(
        name=name,
        workflow=workflow,
        takes_run_id=has_store,
        can_ask=_can_ask(graph),
        declared=types.Tool(
            name=name,
            description=_description(type(workflow)),
            input_schema=arguments,
            output_schema=result,
        ),
        validator=Draft202012Validator(result),
    )


def _description(cls: type) -> str | None:
    text = vars(cls).get("__doc__")
    return inspect.cleandoc(text) if isinstance(text, str) else None


def _result_of(cls: type) -> Any:
    """Return the annotation of the result: `str` for a class derived from ``Workflow[str]``."""
    result = next(iter(meanings_of(cls).get(Workflow, {}).values()), Any)
    return Any if isinstance(result, str | typing.ForwardRef | typing.TypeVar) else result


def _can_ask(graph: Graph) -> bool:
    return graph.asks or any(graph.is_answerable(kind) for kinds in graph.awaited for kind in kinds)
