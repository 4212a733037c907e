"""The requests that the local model server takes: what OpenAI's would refuse, it refuses."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec


if TYPE_CHECKING:
    from collections.abc import Mapping


class _Text(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Text]


class _AssistantMessage(msgspec.Struct):
    content: str | list[_Text] | None = None


class _Function(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _Function | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Named(msgspec.Struct):
    name: str


class _Choice(msgspec.Struct):
    function: _Named


_Tokens = Annotated[int, msgspec.Meta(ge=1)] | None


class _Request(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Tokens = None
    max_completion_tokens: _Tokens = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Choice | None = None


def check(body: object) -> Mapping[str, Any]:
    """
    Return the body of a request if the API accepts its values.

    Raises:
        ValueError: It does not; the message says which value and why.
    """
    try:
        request = msgspec.convert(body, _Request)
        for number, message in enumerate(request.messages):
            _check_message(number, message)
    except msgspec.ValidationError as exc:  # a ValueError in newer releases only
        raise ValueError(str(exc)) from exc
    names = [tool.function.name for tool in request.tools or () if tool.function is not None]
    if isinstance(choice := request.tool_choice, _Choice) and choice.function.name not in names:
        msg = f"tool_choice names the tool {choice.function.name!r}, and there is {names or 'none'}"
        raise ValueError(msg)
    if choice == "required" and not names:
        msg = "tool_choice is 'required', and there are no tools"
        raise ValueError(msg)
    return msgspec.convert(body, dict[str, Any])


def _check_message(number: int, message: dict[str, Any]) -> None:
    try:
        # Only an assistant's message may be empty: it has called a tool.
        is_assistant = message.get("role") == "assistant"
        msgspec.convert(message, _AssistantMessage if is_assistant else _Message)
    except msgspec.ValidationError as exc:
        msg = f"messages[{number}]: {exc}"
        raise ValueError(msg) from exc


def is_own_host(header: str, bound_to: str) -> bool:
    """
    Return whether a ``Host`` header names a server that listens at the address ``bound_to``.

    A web page can make a domain name resolve to this machine, and so read the replies of a server
    that accepts every name. It cannot make the browser send an address as the host.
    """
    name, _, port = header.rpartition(":") if not header.endswith("]") else (header, "", "")
    if not name or (port and not port.isdigit()):
        name = header
    name = name.removeprefix("[").removesuffix("]").removesuffix(".").lower()
    if name in {"localhost", bound_to.lower()} or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not _is_loopback(bound_to)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
