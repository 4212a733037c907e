"""How the local model server behaves: well, unless a test wants it otherwise."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import parse_qsl

import attrs
import msgspec


_FAILURE = re.compile(r"(?P<status>[45]\d\d)(x(?P<times>\d+))?")


def _check_failure(_instance: object, _attribute: object, value: str) -> None:
    if value and not _FAILURE.fullmatch(value):
        msg = f'fail={value!r} is not a failure; write "429x2" (twice) or "503" (always)'
        raise ValueError(msg)


def _check_seconds(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < float("inf"):
        msg = f"{attribute.name}={value!r}; expected seconds, 0 or more"
        raise ValueError(msg)


def _check_count(_instance: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and value < 0:
        msg = f"{attribute.name}={value!r}; expected a count, 0 or more"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class Behaviour:
    """
    What the server does with a request.

    Counts of pieces count the pieces of text or reasoning sent until then.
    """

    delay: float = attrs.field(default=0.0, validator=_check_seconds)
    """Seconds before each piece of a reply."""

    fail: str = attrs.field(default="", validator=_check_failure)
    """A status to answer with, always (``"503"``) or so many times first (``"429x2"``)."""

    cut: int | None = attrs.field(default=None, validator=_check_count)
    """After so many pieces the connection is closed, in the middle of the reply."""

    stall: int | None = attrs.field(default=None, validator=_check_count)
    """After so many pieces nothing comes any more, and the connection stays open."""

    error: int | None = attrs.field(default=None, validator=_check_count)
    """After so many pieces an error object comes instead of the next."""

    tools: bool = False
    """
    Call the first tool of the request, if it has one, as with ``tool_choice="required"``; but
    answer in words where the last message is what a tool has found.
    """

    reasoning: int = attrs.field(default=0, validator=_check_count)
    """So many words of reasoning go before the text."""

    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    """Servers disagree about its name."""

    stream_options: bool = True
    """Otherwise requests with ``stream_options`` are refused with a 400, as old servers do."""

    done: bool = True
    """Otherwise the stream ends without its ``[DONE]``, as some servers do."""

    linger: bool = False
    """The response stays open after its last event."""

    comments: bool = False
    """A comment goes before each piece, as servers do to keep a connection alive."""

    def changed(self, query: str) -> Behaviour:
        """
        Apply changes, written like a query: ``"delay=0.01&fail=429x2"``.

        Raises:
            ValueError: No such option, or not with that value.
        """
        changes = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        if unknown := changes.keys() - attrs.fields_dict(Behaviour).keys():
            known = ", ".join(attrs.fields_dict(Behaviour))
            msg = f"unknown behaviour: {', '.join(sorted(unknown))}; there are {known}"
            raise ValueError(msg)
        try:
            return msgspec.convert(attrs.asdict(self) | changes, Behaviour, strict=False)
        except msgspec.ValidationError as exc:  # a ValueError in newer releases only
            msg = f"behaviour {query!r}: {exc}"
            raise ValueError(msg) from exc

    def failure(self) -> tuple[int, float] | None:
        """Give the status to fail with and how many times."""
        found = _FAILURE.fullmatch(self.fail)
        if found is None:
            return None
        return int(found["status"]), float(found["times"] or "inf")
