"""Tools: functions that a model may ask for, and the calls of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._data.json import json_of
from sluicegate._errors import brief
from sluicegate._exceptions import single
from sluicegate._loop import current_backend

from ._types import ChatMessage, MessageRole, ToolCall


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence


#: The names that the APIs of models accept.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class ToolError(Exception):
    """
    Raised by a tool to tell the model what is wrong, as the result of its call.

    The text of the exception is what the model reads.
    """


def _check_name(_: object, __: object, name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = (
            f"the name of a tool is {name!r}; expected 1 to 64 letters, digits, '_' and '-': "
            '`tool(function, name="find_trains")`'
        )
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class Tool:
    """
    What a model may ask for: a name, a description, a schema, and an async function.

    `tool` makes one of a function. Make one yourself for what is described elsewhere, for example
    by a server.

    Raises:
        ValueError: The name is not one that models accept.
    """

    name: str = attrs.field(validator=_check_name)
    """1 to 64 letters, digits, ``_`` and ``-``."""

    description: str = ""
    """The text by which the model chooses the tool."""

    input_schema: Mapping[str, Any]
    """The JSON Schema of the arguments, which are an object."""

    call: Callable[[Mapping[str, Any]], Awaitable[Any]] = attrs.field(repr=False)
    """
    Takes the arguments as plain JSON data, checks them, and returns the result: a text, or a value
    that the model is given as JSON. It raises `ToolError` for what the model may correct.
    """

    def to_openai_tool(self) -> dict[str, Any]:
        """Return the tool in OpenAI's form. Clients of other packages need it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.input_schema,
        }
        return {"type": "function", "function": function}


@attrs.frozen(kw_only=True)
class ToolResult:
    """The result of a call, in the form for the model. Events and the state can hold it."""

    call: ToolCall

    text: str
    """The text for the model; of a result that is not a text, its JSON."""

    is_error: bool = False
    """Whether `text` is an error."""

    @property
    def message(self) -> ChatMessage:
        """The message to append to the conversation."""
        return ChatMessage(MessageRole.TOOL, self.text, tool_call_id=self.call.id)


async def call_tool(call: ToolCall, tools: Iterable[Tool]) -> ToolResult:
    """
    Make the call that a model asks for.

    Whatever the model got wrong is its result, with ``is_error``: a name that none of the tools has,
    arguments that are no JSON or do not fit, and the text of a `ToolError`. Any other exception of
    the tool is raised, because the model cannot correct it.

    A checkpoint. Cancelled, it cancels the tool and returns no result.

    Args:
        call: The call, from ``response.tool_calls``.
        tools: The tools that the model was given.

    Returns:
        The result; its ``message`` continues the conversation.

    Raises:
        Exception: The exception of the tool.
    """
    await current_backend().checkpoint()
    try:
        value = await _find(call, tools).call(_arguments_of(call))
    except ToolError as error:
        return ToolResult(call=call, text=str(error), is_error=True)
    return ToolResult(call=call, text=value if isinstance(value, str) else json_of(value))


def _find(call: ToolCall, tools: Iterable[Tool]) -> Tool:
    by_name = {one.name: one for one in tools}
    if call.name in by_name:
        return by_name[call.name]
    names = ", ".join(by_name) or "none"
    msg = f"there is no tool {brief(call.name)}; the tools are: {names}"
    raise ToolError(msg)


def _arguments_of(call: ToolCall) -> Mapping[str, Any]:
    try:
        arguments = call.parsed
    except ValueError as error:
        raise ToolError(str(error)) from error
    if not isinstance(arguments, dict):
        msg = f'the arguments for tool {call.name!r} are not an object; expected {{"name": value}}'
        raise ToolError(msg)
    return cast("dict[str, Any]", arguments)


async def call_tools(calls: Sequence[ToolCall], tools: Iterable[Tool]) -> list[ToolResult]:
    """
    Make several calls at once, each as `call_tool` does.

    A checkpoint. Cancelled, it cancels all of them. If one raises, the others are cancelled, and its
    exception is raised when they have ended.

    Args:
        calls: The calls, ``response.tool_calls``.
        tools: The tools that the model was given.

    Returns:
        The results, in the order of the calls.

    Raises:
        Exception: The first exception of a tool.
    """
    backend = current_backend()
    known = list(tools)
    results: dict[int, ToolResult] = {}

    async def work(number: int, call: ToolCall) -> None:
        results[number] = await call_tool(call, known)

    await backend.checkpoint()
    try:
        async with backend.open_nursery() as nursery:
            for number, call in enumerate(calls):
                nursery.start_soon(work, number, call, name=f"tool {call.name}")
    except BaseExceptionGroup as group:  # of one exception, and cancellations
        raise single(group, backend.Cancelled) from None
    return [results[number] for number in range(len(calls))]


def to_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a request with each `Tool` in OpenAI's form, and without empty tools.

    Raises:
        ValueError: Two tools have one name.
    """
    options = dict(kwargs)
    if "tools" not in options:
        return options
    offered: list[Any] = list(options.pop("tools") or ())
    names = [one.name for one in offered if isinstance(one, Tool)]
    for name in names:
        if names.count(name) > 1:
            msg = (
                f"two tools are called {name!r}; expected different names: "
                f"`attrs.evolve(one, name='other_{name}')`"
            )
            raise ValueError(msg)
    tools = [one.to_openai_tool() if isinstance(one, Tool) else one for one in offered]
    return {**options, "tools": tools} if tools else options
