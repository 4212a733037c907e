"""Requests: their bodies and parameters, decoded by the workflow's own classes, or refused with the fix."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs
import msgspec
from starlette.datastructures import Headers, QueryParams

from sluicegate._asgi import HungUpError
from sluicegate._data.from_outside import decode_event
from sluicegate._errors import brief
from sluicegate._events import Event, HumanResponseEvent, StartEvent
from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

    from sluicegate._asgi import Receive
    from sluicegate._definition.graph import Graph
    from sluicegate._workflow import Workflow

#: The ids that a client may give: they are a part of a path.
RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._:~-]{0,199}$"
_MOST_TEXT = 200
#: The largest number in a query.
MOST_NUMBER = 999_999_999
#: The most runs that one request lists, and the most characters of an idempotency key.
MOST_LISTED = 1_000
MOST_KEY = 255


class Refusal(Exception):  # noqa: N818 - no failure of the server
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        detail: The reason, the expected request, and the fix.
        headers: Headers of the response.
        more: Further keys of the answer.
    """

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status: int = status
        self.detail: str = detail
        self.headers: Mapping[str, str] = headers or {}
        self.more: dict[str, Any] = more


@attrs.frozen(slots=False)  # for its cached properties
class Exchange:
    """A request, and how to answer it.

    Attributes:
        scope: The scope of ASGI.
        receive: That of the server. The endpoint reads it in one task.
        method: The method.
        path: The path below the place where the application is mounted.
        params: The parameters in the path.
    """

    scope: MutableMapping[str, Any]
    receive: Receive
    method: str
    path: str
    params: dict[str, str] = attrs.Factory(dict[str, str])

    @cached_property
    def headers(self) -> Headers:
        """The headers."""
        return Headers(scope=self.scope)

    @cached_property
    def query(self) -> QueryParams:
        """The parameters of the query."""
        return QueryParams(self.scope.get("query_string", b""))

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a parameter of the query that is ``true`` or ``false``."""
        text = self.query.get(name)
        if text is None:
            return default
        if text.lower() not in ("true", "false", "1", "0"):
            msg = (
                f"?{name}={text[:_MOST_TEXT]} is no boolean; expected ?{name}=true or ?{name}=false"
            )
            raise Refusal(400, msg, field=f"query.{name}")
        return text.lower() in ("true", "1")

    def number(self, name: str, *, least: int, most: int, default: int) -> int:
        """Return a parameter of the query that is a whole number."""
        text = self.query.get(name)
        if text is None:
            return default
        if not (
            text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most
        ):
            msg = f"?{name}={text[:_MOST_TEXT]}; expected a whole number from {least} to {most}"
            raise Refusal(400, msg, field=f"query.{name}")
        return int(text)

    def several(self, name: str, allowed: Iterable[str] | None = None) -> list[str] | None:
        """Return a parameter that may be repeated; None if it is not given, or empty."""
        values = [value for value in self.query.getlist(name) if value]
        for value in values:
            if allowed is not None and value not in allowed:
                msg = f"?{name}={value[:_MOST_TEXT]}; expected some of {', '.join(allowed)}"
                raise Refusal(400, msg, field=f"query.{name}")
        return values or None

    async def body(self, most: int, seconds: float) -> bytes:
        """Read the body. A checkpoint.

        Raises:
            Refusal: It is too large, or takes too long.
            HungUpError: The client has gone.
        """
        declared = self.headers.get("content-length", "")
        if (
            declared.isascii()
            and declared.isdigit()
            and (len(declared) > 15 or int(declared) > most)
        ):
            _refuse_size(most)
        backend = current_backend()
        parts: list[bytes] = []
        size = 0
        with backend.cancel_scope(deadline=backend.current_time() + seconds):
            while True:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise HungUpError
                part = message.get("body", b"")
                size += len(part)
                if size > most:
                    _refuse_size(most)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        msg = (
            f"the body did not arrive within {seconds:g} s; expected a client that sends it at once"
        )
        raise Refusal(408, msg, headers={"connection": "close"})

    async def json(self, most: int, seconds: float) -> dict[str, Any]:
        """Return the body, a JSON object; an empty body is ``{}``. A checkpoint.

        Raises:
            Refusal: It is none.
            HungUpError: The client has gone.
        """
        raw = await self.body(most, seconds)
        if not raw:
            return {}
        media = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A page of another site can send a form, but JSON only with the leave of CORS.
        if media != "application/json":
            msg = (
                f"the body is {media[:_MOST_TEXT] or 'of no type'}; expected JSON: "
                "`Content-Type: application/json`"
            )
            raise Refusal(415, msg)
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            msg = f"the body is encoded as {encoding[:_MOST_TEXT]}; expected it as it is"
            raise Refusal(415, msg)
        return json_object(raw, "the body")


def _refuse_size(most: int) -> NoReturn:
    msg = (
        f"the body is larger than {most:,} bytes; expected a smaller one, or "
        "`asgi_app(..., max_body=...)` on the server"
    )
    raise Refusal(413, msg, headers={"connection": "close"})


def json_object(raw: bytes | str, what: str) -> dict[str, Any]:
    """Return the JSON object in a text.

    Raises:
        Refusal: There is none.
    """
    try:
        data = msgspec.json.decode(raw)
    except RecursionError:
        msg = f"{what} is nested too deeply; expected flatter JSON"
        raise Refusal(400, msg) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Refusal(400, f"{what} is not JSON: {error}") from None
    if not isinstance(data, dict):
        msg = f'{what} is no JSON object; expected {{"name": value, ...}}'
        raise Refusal(400, msg)
    return cast("dict[str, Any]", data)


def check_keys(data: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse an object with other keys than those of the protocol."""
    for key in data:
        if key not in known:
            msg = f"the body has the key {brief(key)}; expected some of {', '.join(known)}"
            raise Refusal(400, msg, field=key[:_MOST_TEXT])


def text_in(data: dict[str, Any], name: str) -> str | None:
    """Return a text in the body; None where there is none."""
    value = data.get(name)
    if value is None or (isinstance(value, str) and value):
        return value
    msg = f"{name} is {brief(value)}; expected a text that is not empty"
    raise Refusal(400, msg, field=name)


@attrs.frozen
class RunRequest:
    """A request to run a workflow.

    Attributes:
        start_event: The start event.
        run_id: The id that the client gives the run; None for none.
        data: The fields of the start event as they were given, to recognize a repeated request.
    """

    start_event: StartEvent
    run_id: str | None
    data: Any


def read_run(graph: Graph, body: dict[str, Any]) -> RunRequest:
    """Return the request to run a workflow that a body contains.

    Raises:
        Refusal: The body does not fit the workflow.
    """
    check_keys(body, ("start_event", "handler_id", "kwargs", "context"))
    if body.get("context"):
        msg = (
            "a context cannot be given to a run here; expected a start event alone, or, with a store, "
            "POST /handlers/{handler_id}/fork"
        )
        raise Refusal(400, msg, field="context")
    run_id = text_in(body, "handler_id")
    if run_id is not None:
        check_run_id(run_id)
    where = "start_event" if body.get("start_event") is not None else "kwargs"
    given: Any = body.get(where) or {}
    value = _unwrapped(given, where, {graph.start_event.__name__, StartEvent.__name__})
    return RunRequest(decoded(graph.start_event, value, where), run_id, value)


def check_run_id(run_id: str) -> None:
    """Refuse an id that cannot be a part of a path."""
    if re.fullmatch(RUN_ID, run_id) is None:
        msg = (
            f"handler_id is {brief(run_id)}; expected up to 200 letters, digits and . _ : ~ -, "
            "beginning with a letter or digit"
        )
        raise Refusal(400, msg, field="handler_id")


def _unwrapped(given: Any, where: str, names: set[str]) -> dict[str, Any]:
    """Return the fields of an event that may be in an envelope, or a text."""
    if isinstance(given, str):
        given = json_object(given, where)
    data = _object(
        given, f"{where} is {{}}; expected an object with the fields of the event", where
    )
    if not is_envelope(data):
        return data
    name = data["type"]
    if name not in names:
        msg = f"{where}.type is {brief(name)}; expected {' or '.join(sorted(names))}"
        raise Refusal(400, msg, field=f"{where}.type")
    return value_in(data, where)


def is_envelope(data: dict[str, Any]) -> bool:
    """Whether an object is an event with the name of its class."""
    keys = data.keys()
    return (
        isinstance(data.get("type"), str)
        and bool(keys & {"value", "data"})
        and keys <= {"type", "value", "data", "types", "qualified_name"}
    )


def value_in(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields in an envelope."""
    value = data["value"] if "value" in data else data.get("data")
    if value is None:
        return {}
    text = f"{where}.value is {{}}; expected an object with the fields of the event"
    return _object(value, text, f"{where}.value")


def _object(value: Any, text: str, field: str) -> dict[str, Any]:
    """Return an object; else refuse it with a text that has a place for what there is."""
    if not isinstance(value, dict):
        raise Refusal(400, text.format(brief(value)), field=field)
    return cast("dict[str, Any]", value)


def decoded(cls: type[Any], value: dict[str, Any], where: str) -> Any:
    """Return an event made of its fields.

    Raises:
        Refusal: They do not fit; it names the field.
    """
    more = value.get("_data")
    if isinstance(more, dict) and not hasattr(
        cls, "_data"
    ):  # how another client writes open fields
        rest = {name: item for name, item in value.items() if name != "_data"}
        value = {**cast("dict[str, Any]", more), **rest}
    try:
        return decode_event(cls, value)
    except TypeError as error:
        text = str(error)
        name = re.escape(cls.__name__)
        found = re.match(rf"{name}(?:\.| lacks '| has no field ')(\w+)\b", text)
        field = where if found is None else f"{where}.{found[1]}"
        raise Refusal(400, f"{where}: {text}", field=field) from None


def answer_classes(graph: Graph, questions: Iterable[type[Event]]) -> dict[str, type[Event]]:
    """Return the classes of events that a client may send to a run, by name."""
    found: dict[str, type[Event]] = {HumanResponseEvent.__name__: HumanResponseEvent}
    for kind in (
        *graph.acceptors,
        *(kind for kinds in graph.awaited for kind in kinds),
        *questions,
    ):
        if not issubclass(kind, StartEvent):
            found[kind.__name__] = kind
    return found


def read_event(given: Any, known: dict[str, type[Event]], only: list[type[Event]]) -> Event:
    """Return an event for a run.

    Args:
        given: The member ``event`` of the body.
        known: The classes that it can have, by name.
        only: The classes of answers that the question takes; if it is one, the event need not name it.

    Raises:
        Refusal: It is of no such class, or its fields do not fit.
    """
    if isinstance(given, str):
        given = json_object(given, "event")
    data = _object(
        given or None,
        'event is {}; expected an object: {{"event": {{"type": "HumanResponseEvent", "value": {{...}}}}}}',
        "event",
    )
    if is_envelope(data):
        name, value = data["type"], value_in(data, "event")
    elif isinstance(data.get("type"), str) and data["type"] in known:  # the fields beside it
        name, value = data["type"], {key: item for key, item in data.items() if key != "type"}
    elif len(only) == 1:
        name, value = only[0].__name__, data
        known = {**known, name: only[0]}
    else:
        name, value = "", data
    cls = known.get(name)
    if cls is None:
        names = ", ".join(sorted(known))
        what = f"event.type is {brief(name)}" if name else "event names no class"
        msg = f'{what}; expected {{"type": ..., "value": {{...}}}} with one of {names}'
        raise Refusal(400, msg, field="event.type")
    return cast("Event", decoded(cls, value, "event"))


def workflow_of(
    exchange: Exchange, workflows: Mapping[str, Workflow[Any]]
) -> tuple[str, Workflow[Any]]:
    """Return the workflow that the path names, with its name on the server.

    Raises:
        Refusal: There is none.
    """
    name = exchange.params["name"]
    workflow = workflows.get(name)
    if workflow is None:
        msg = f"there is no workflow {brief(name)}; expected one of {', '.join(workflows)}"
        raise Refusal(404, msg)
    return name, workflow
