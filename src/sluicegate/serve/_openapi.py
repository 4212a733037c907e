"""The interface of a server as OpenAPI 3.1: just its workflows, with their schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sluicegate._workflow import graph_in
from sluicegate.serve._data import STATUSES, schema_of_event
from sluicegate.serve._requests import MOST_KEY, MOST_LISTED, MOST_NUMBER, RUN_ID, answer_classes


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sluicegate._definition.graph import Graph
    from sluicegate._workflow import Workflow
    from sluicegate.serve._streams import Format

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_TIME = {"type": ["string", "null"], "format": "date-time"}
_OBJECT = {"type": "object"}

_ENVELOPE = {
    "type": "object",
    "description": "An event: its fields, and the names of its class and of the bases of that.",
    "properties": {
        "value": _OBJECT,
        "type": _TEXT,
        "types": {"type": ["array", "null"], "items": _TEXT},
        "qualified_name": _TEXT_OR_NULL,
    },
    "required": ["value", "type", "types", "qualified_name"],
}
_HANDLER = {
    "type": "object",
    "description": "A run.",
    "properties": {
        "handler_id": _TEXT,
        "workflow_name": _TEXT,
        "run_id": _TEXT_OR_NULL,
        "error": _TEXT_OR_NULL,
        "result": {"anyOf": [{"$ref": "#/components/schemas/Envelope"}, {"type": "null"}]},
        "status": {"enum": [*STATUSES]},
        "started_at": {"type": "string", "format": "date-time"},
        "updated_at": _TIME,
        "completed_at": _TIME,
        "idle": {"type": "boolean", "description": "Whether it waits for an answer."},
        "questions": {"type": "integer", "description": "How many questions are open."},
        "exception": {**_TEXT, "description": "The class of the exception with which it failed."},
        "step_name": {**_TEXT_OR_NULL, "description": "The step that raised it."},
        "reason": {**_TEXT_OR_NULL, "description": "Why it was cancelled."},
        "timed_out": {"const": True},
    },
    "required": [
        "handler_id",
        "workflow_name",
        "run_id",
        "error",
        "result",
        "status",
        "started_at",
        "updated_at",
        "completed_at",
    ],
}
_QUESTION = {
    "type": "object",
    "properties": {
        "handler_id": _TEXT,
        "workflow_name": _TEXT,
        "id": _TEXT,
        "type": _TEXT_OR_NULL,
        "fields": _OBJECT,
        "answer": {"type": ["object", "null"]},
        "answers": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": _TEXT, "schema": {"type": ["object", "boolean"]}},
                "required": ["type", "schema"],
            },
        },
    },
    "required": ["id", "type", "fields", "answer", "answers"],
}
_ERROR = {
    "type": "object",
    "properties": {
        "detail": {**_TEXT, "description": "The reason, the expected request, and the fix."},
        "field": {**_TEXT, "description": "The path of the field that is wrong."},
    },
    "required": ["detail"],
}
_ERRORS = {
    400: "The request is wrong; `field` says where.",
    401: "The request is not authenticated.",
    403: "The page that sends it may not, or the server is read-only.",
    404: "There is no such workflow or run.",
    408: "The body took too long.",
    409: "The run has ended, or what is asked contradicts what was asked before.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "The header Host does not name this server.",
    429: "Too many runs are under way; `Retry-After` says when to try again.",
    431: "There are too many headers, or they are too large.",
    503: "The server stops, or owns no runs.",
}
_ALWAYS = (400, 401, 403, 421, 431)


def openapi_of(
    workflows: Mapping[str, Workflow[Any]],
    formats: Iterable[Format],
    *,
    version: str,
    needs_token: bool,
    is_read_only: bool,
    has_store: bool,
) -> dict[str, Any]:
    """Return the document."""
    schemas: dict[str, Any] = {
        "Envelope": _ENVELOPE,
        "HandlerData": _HANDLER,
        "Question": _QUESTION,
        "Error": _ERROR,
    }
    formats = [*formats]
    paths: dict[str, dict[str, Any]] = {
        "/health": {
            "get": {
                "summary": "Whether the server takes runs",
                "operationId": "health",
                "security": [],
                "responses": {
                    **_answers(200, _members(status=_TEXT)),
                    **_answers(503, _members(status=_TEXT)),
                    **_errors(403, 421, 431),
                },
            }
        },
        "/workflows": _get("List the workflows", "workflows", _members(workflows=_list_of(_TEXT))),
        **_run_paths(formats, has_store=has_store),
    }
    for name, workflow in workflows.items():
        paths |= _workflow_paths(name, graph_in(workflow), schemas, formats)
    if is_read_only:
        paths = {
            path: {method: told for method, told in item.items() if method == "get"}
            for path, item in paths.items()
            if "get" in item
        }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Workflows", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if needs_token:
        scheme = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"token": scheme}
        document["security"] = [{"token": []}]
    return document


# -- paths ----------------------------------------------------------------------------------------


def _workflow_paths(
    name: str, graph: Graph, schemas: dict[str, Any], formats: list[Format]
) -> dict[str, Any]:
    """Return the paths of one workflow, and add its schemas."""
    start = _adopted(f"{name}.{graph.start_event.__name__}", graph.start_event, schemas)
    for kind in answer_classes(graph, ()).values():
        _adopted(f"{name}.{kind.__name__}", kind, schemas)
    envelope = {
        "type": "object",
        "properties": {"type": {"const": graph.start_event.__name__}, "value": start},
        "required": ["type", "value"],
        "additionalProperties": False,
    }
    run = {
        "type": "object",
        "properties": {
            "start_event": {"anyOf": [start, envelope]},
            "handler_id": {
                "description": "Your id of the run: the same one starts it once.",
                "type": ["string", "null"],
                "pattern": RUN_ID,
            },
        },
        "required": ["start_event"],
        "additionalProperties": False,
    }
    key = _header("Idempotency-Key", "Requests with the same key start one run.", MOST_KEY)
    body = {"required": True, "content": {"application/json": {"schema": run}}}
    ref = {"$ref": "#/components/schemas/HandlerData"}
    started = _answers(200, ref, x_run_id=True)
    base = f"/workflows/{name}"
    disconnect = _query(
        "on_disconnect",
        "What becomes of the run when the client hangs up.",
        {"enum": ["cancel", "continue"]},
    )
    return {
        f"{base}/schema": _get(
            f"The schemas of the start and the stop event of {name}",
            f"{name}.schema",
            _members(start=_OBJECT, stop=_OBJECT),
        ),
        f"{base}/events": _get(
            f"The schemas of the events of {name}",
            f"{name}.events",
            _members(events=_list_of(_OBJECT)),
        ),
        f"{base}/representation": _get(
            f"The graph of {name}", f"{name}.representation", _members(graph=_OBJECT)
        ),
        f"{base}/run": {
            "post": {
                "summary": f"Run {name}, and answer with its result or its stream",
                "description": "The run is cancelled if the client hangs up before.",
                "operationId": f"{name}.run",
                "parameters": [key, disconnect, _format(formats)],
                "requestBody": body,
                "responses": {
                    **_answers(200, ref, _streams(formats), x_run_id=True),
                    **_answers(500, ref),
                    **_errors(*_ALWAYS, 404, 408, 409, 413, 415, 429, 503),
                },
            }
        },
        f"{base}/run-nowait": {
            "post": {
                "summary": f"Start {name}; the server owns the run",
                "operationId": f"{name}.run_nowait",
                "parameters": [key],
                "requestBody": body,
                "responses": {
                    **started,
                    **_errors(*_ALWAYS, 404, 408, 409, 413, 415, 429, 503),
                },
            }
        },
    }


def _run_paths(formats: list[Format], *, has_store: bool) -> dict[str, Any]:
    ref = {"$ref": "#/components/schemas/HandlerData"}
    question = {"$ref": "#/components/schemas/Question"}
    run_id = {
        "name": "handler_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": RUN_ID},
    }
    flag = {"type": "boolean", "default": False}
    event = {
        "type": "object",
        "properties": {
            "event": {
                "type": "object",
                "description": "An event of the workflow: its class, and its fields.",
                "properties": {"type": _TEXT, "value": _OBJECT},
                "required": ["type", "value"],
                "additionalProperties": False,
            },
            "step": {"type": ["string", "null"], "minLength": 1},
            "question": {"type": ["string", "null"], "minLength": 1},
            "id": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "Your id of the event: the same one is applied once.",
            },
        },
        "required": ["event"],
        "additionalProperties": False,
    }
    cursor = {"type": "string", "pattern": f"^[0-9]{{1,{39 if has_store else 15}}}$"}
    after = _query(
        "after_sequence",
        "A cursor, -1 for the oldest event, now for the end.",
        {"anyOf": [cursor, {"enum": ["-1", "now"]}], "default": "-1"},
    )
    last_id = _header("Last-Event-ID", "The cursor of the last event that was read.", 39)
    last_id["schema"] = {**cursor, "pattern": cursor["pattern"].replace("{1,", "{0,")}
    number = {"type": "integer", "minimum": 1, "maximum": MOST_NUMBER}
    at = _query("at", "The number of a record of the store.", number)
    paths: dict[str, Any] = {
        "/handlers": _get(
            "List the runs, the newest first",
            "handlers",
            _members(handlers=_list_of(ref), next=_TEXT_OR_NULL),
            [
                _query(
                    "status",
                    "Runs of these statuses; an empty one counts as none.",
                    _list_of({"enum": [*STATUSES, ""]}),
                ),
                _query("workflow_name", "Runs of these workflows.", _list_of(_TEXT)),
                _query(
                    "limit",
                    "The most runs.",
                    {"type": "integer", "minimum": 1, "maximum": MOST_LISTED},
                ),
                _query("after", "The last run of the page before.", _TEXT),
            ],
        ),
        "/questions": _get(
            "List the open questions of all runs",
            "questions",
            _members(questions=_list_of(question)),
        ),
        "/handlers/{handler_id}": _get("Show a run", "handler", ref, [run_id], 404),
        "/handlers/{handler_id}/questions": _get(
            "List the open questions of a run",
            "handler.questions",
            _members(questions=_list_of(question)),
            [run_id],
            404,
        ),
        "/handlers/{handler_id}/state": _get(
            "Show the state of a run", "handler.state", _members(state={}), [run_id], 404, 409
        ),
        "/handlers/{handler_id}/snapshot": _get(
            "Show the snapshot of a run",
            "handler.snapshot",
            _members(snapshot=_OBJECT),
            [run_id, at],
            404,
            409,
        ),
        "/handlers/{handler_id}/timeline": _get(
            "Show what has happened in a run",
            "handler.timeline",
            _members(timeline=_OBJECT),
            [run_id],
            404,
        ),
        "/handlers/{handler_id}/cancel": {
            "post": {
                "summary": "Cancel a run, and wait until it has unwound",
                "operationId": "handler.cancel",
                "parameters": [
                    run_id,
                    _query("reason", "Why; the run shows the first 1,000 characters.", _TEXT),
                    _query("purge", "Forget the run, too.", flag),
                ],
                "responses": {
                    **_answers(200, _members(status={"enum": ["cancelled", "deleted"]})),
                    **_errors(*_ALWAYS, 404, 409),
                },
            }
        },
        "/results/{handler_id}": {
            "get": {
                "summary": "Show a run: 200 when it is over, 202 while it is under way",
                "operationId": "result",
                "parameters": [run_id],
                "responses": {
                    **_answers(200, ref),
                    **_answers(202, ref),
                    **_errors(*_ALWAYS, 404),
                },
            }
        },
        "/events/{handler_id}": {
            "get": {
                "summary": "Stream the events of a run",
                "operationId": "read",
                "parameters": [
                    run_id,
                    after,
                    last_id,
                    _format(formats),
                    _query("sse", "False for lines of JSON.", {"type": "boolean"}),
                    _query("include_internal", "The engine's own events, too.", flag),
                    _query(
                        "include_qualified_name", "The module of the class.", {"type": "boolean"}
                    ),
                ],
                "responses": {
                    **_answers(200, None, _streams(formats), x_run_id=True),
                    "204": {"description": "The run is over, and nothing follows the cursor."},
                    **_errors(*_ALWAYS, 404),
                },
            },
            "post": {
                "summary": "Send an event to a run, such as the answer to a question",
                "operationId": "send",
                "parameters": [run_id],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": event}},
                },
                "responses": {
                    **_answers(
                        200, _members(status={"const": "sent"}, is_repeated={"type": "boolean"})
                    ),
                    **_errors(*_ALWAYS, 404, 408, 409, 413, 415),
                },
            },
        },
    }
    if has_store:
        paths["/handlers/{handler_id}/fork"] = {
            "post": {
                "summary": "Copy a run, and continue the copy",
                "operationId": "handler.fork",
                "parameters": [
                    run_id,
                    at,
                    _query("new_id", "The id of the copy.", {"type": "string", "pattern": RUN_ID}),
                ],
                "responses": {**_answers(200, ref), **_errors(*_ALWAYS, 404, 409, 429, 503)},
            }
        }
    return paths


# -- parts ----------------------------------------------------------------------------------------


def _adopted(name: str, kind: type[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Add the schema of a class of events with its definitions; return a reference to it."""
    if name not in schemas:
        schema = {**schema_of_event(kind)}
        schema.pop("$schema", None)
        defs: dict[str, Any] = schema.pop("$defs", {})
        schemas[name] = _moved(schema, name)
        for inner, definition in defs.items():
            schemas[f"{name}.{inner}"] = _moved(definition, name)
    return {"$ref": f"#/components/schemas/{name}"}


def _moved(schema: Any, name: str) -> Any:
    """Return a schema with its references to definitions where those have moved."""
    if isinstance(schema, dict):
        found = cast("dict[str, Any]", schema)
        made = {key: _moved(value, name) for key, value in found.items()}
        ref = found.get("$ref")
        if isinstance(ref, str) and ref.startswith("#/$defs/"):
            made["$ref"] = f"#/components/schemas/{name}.{ref.removeprefix('#/$defs/')}"
        return made
    if isinstance(schema, list):
        return [_moved(each, name) for each in cast("list[Any]", schema)]
    return schema


def _members(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


def _list_of(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _query(name: str, text: str, schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _header(name: str, text: str, most: int) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": most}
    return {"name": name, "in": "header", "description": text, "schema": schema}


def _streams(formats: Iterable[Format]) -> dict[str, Any]:
    return {form.content_type or form.media_type: {} for form in formats}


def _format(formats: Iterable[Format]) -> dict[str, Any]:
    text = "The format of a stream, instead of one in Accept."
    return _query("format", text, {"enum": [form.name for form in formats]})


def _get(
    summary: str, name: str, schema: Any, parameters: Iterable[Any] = (), *more: int
) -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "operationId": name,
            "parameters": [*parameters],
            "responses": {**_answers(200, schema), **_errors(*_ALWAYS, *more)},
        }
    }


def _answers(
    status: int, schema: Any, streams: dict[str, Any] | None = None, *, x_run_id: bool = False
) -> dict[str, Any]:
    content: dict[str, Any] = {**(streams or {})}
    if schema is not None:
        content["application/json"] = {"schema": schema}
    answer: dict[str, Any] = {"description": "The answer.", "content": content}
    if x_run_id:
        answer["headers"] = {"X-Run-Id": {"description": "The run.", "schema": _TEXT}}
    return {str(status): answer}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): {"description": _ERRORS[status], "content": content} for status in statuses
    }
