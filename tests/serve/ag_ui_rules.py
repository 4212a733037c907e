"""The rules of AG-UI 1.0 for one exchange, and the models of its package."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from typing import Any

from ag_ui.core import Event
from pydantic import BaseModel, TypeAdapter


#: The events of one exchange: what the models and the rules of the protocol say about them.
EVENT: Any = TypeAdapter(Event)


class Rules:
    """Takes the events of one exchange, and raises if one breaks a rule.

    Args:
        state: The state that the client has.
    """

    def __init__(self, state: Any = None) -> None:
        self.state = state
        self.seen: list[dict[str, Any]] = []
        self.texts: dict[str, str] = defaultdict(str)
        self.interrupts: list[dict[str, Any]] = []
        self._open: dict[tuple[Any, ...], str | None] = {}
        self._owners: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._subagents: dict[str, bool] = {}
        self._identity: tuple[str, str] | None = None
        self.is_over = False

    def take(self, events: list[dict[str, Any]]) -> None:
        """Check events."""
        for event in events:
            self._check(json.loads(json.dumps(event)))

    @property
    def kinds(self) -> list[str]:
        """The types of the events so far."""
        return [event["type"] for event in self.seen]

    def _check(self, event: dict[str, Any]) -> None:
        model = EVENT.validate_python(event)
        assert is_exact(model), f"fields that the protocol does not have: {event}"
        assert model.model_dump(mode="json", by_alias=True) == event
        kind = event["type"]
        assert not self.is_over, f"{kind} after the end"
        assert bool(self.seen) == (kind != "RUN_STARTED"), f"{kind} after {self.kinds}"
        self.seen.append(event)
        method = getattr(self, f"_{kind.lower()}", None)
        if method is not None:
            method(event, event.get("subagentRunId"))
        else:
            assert kind == "CUSTOM", f"no rule for {kind}"

    def _run_started(self, event: dict[str, Any], _owner: None) -> None:
        assert event["protocolVersion"] == "1.0"
        self._identity = event["threadId"], event["runId"]

    def _run_finished(self, event: dict[str, Any], _owner: None) -> None:
        assert self._identity == (event["threadId"], event["runId"])
        outcome = event["outcome"]
        if outcome["type"] == "interrupt":
            self.interrupts = outcome["interrupts"]
            ids = [each["id"] for each in self.interrupts]
            assert len({*ids}) == len(ids)
        if outcome["type"] == "success":
            answered = {e["toolCallId"] for e in self.seen if e["type"] == "TOOL_CALL_RESULT"}
            made = [e["toolCallId"] for e in self.seen if e["type"] == "TOOL_CALL_START"]
            assert outcome.get("pendingToolCallIds", []) == [i for i in made if i not in answered]
        self._close()

    def _run_error(self, _event: dict[str, Any], _owner: None) -> None:
        self._close()

    def _close(self) -> None:
        assert self._open == {}, f"left open: {self._open}"
        assert not any(self._subagents.values()), f"left open: {self._subagents}"
        self.is_over = True

    def _step_started(self, event: dict[str, Any], owner: str | None) -> None:
        self._begin(("step", owner, event["stepName"]), owner)

    def _step_finished(self, event: dict[str, Any], owner: str | None) -> None:
        self._finish(("step", owner, event["stepName"]), owner)

    def _text_message_start(self, event: dict[str, Any], owner: str | None) -> None:
        self._own("message", event["messageId"], owner, event.get("role", "assistant"))
        self._begin(("text", event["messageId"]), owner)

    def _text_message_content(self, event: dict[str, Any], owner: str | None) -> None:
        assert self._open[("text", event["messageId"])] == owner
        self.texts[event["messageId"]] += event["delta"]

    def _text_message_end(self, event: dict[str, Any], owner: str | None) -> None:
        self._finish(("text", event["messageId"]), owner)

    def _reasoning_start(self, event: dict[str, Any], owner: str | None) -> None:
        self._own("message", event["messageId"], owner, "reasoning")
        self._begin(("reasoning", event["messageId"]), owner)

    def _reasoning_message_start(self, event: dict[str, Any], owner: str | None) -> None:
        assert ("reasoning", event["messageId"]) in self._open
        self._begin(("reasoning text", event["messageId"]), owner)

    def _reasoning_message_content(self, event: dict[str, Any], owner: str | None) -> None:
        assert self._open[("reasoning text", event["messageId"])] == owner
        self.texts[event["messageId"]] += event["delta"]

    def _reasoning_message_end(self, event: dict[str, Any], owner: str | None) -> None:
        self._finish(("reasoning text", event["messageId"]), owner)

    def _reasoning_end(self, event: dict[str, Any], owner: str | None) -> None:
        self._finish(("reasoning", event["messageId"]), owner)
        assert ("reasoning text", event["messageId"]) not in self._open

    def _tool_call_start(self, event: dict[str, Any], owner: str | None) -> None:
        assert ("call", event["toolCallId"]) not in self._owners, "a call was made twice"
        self._own("call", event["toolCallId"], owner)
        self._begin(("call", event["toolCallId"]), owner)
        if "parentMessageId" in event:
            self._own("message", event["parentMessageId"], owner, "assistant")

    def _tool_call_args(self, event: dict[str, Any], owner: str | None) -> None:
        assert self._open[("call", event["toolCallId"])] == owner

    def _tool_call_end(self, event: dict[str, Any], owner: str | None) -> None:
        self._finish(("call", event["toolCallId"]), owner)

    def _tool_call_result(self, event: dict[str, Any], owner: str | None) -> None:
        assert ("message", event["messageId"]) not in self._owners, "a message was made twice"
        self._own("message", event["messageId"], owner, "tool")

    def _activity_snapshot(self, event: dict[str, Any], owner: str | None) -> None:
        self._own("message", event["messageId"], owner, "activity")

    def _state_snapshot(self, event: dict[str, Any], _owner: None) -> None:
        self.state = event["snapshot"]

    def _state_delta(self, event: dict[str, Any], _owner: None) -> None:
        self.state = patched(self.state, event["delta"])

    def _subagent_started(self, event: dict[str, Any], owner: str) -> None:
        assert owner not in self._subagents, f"{owner} was started twice"
        parent = event.get("parentSubagentRunId")
        assert parent is None or self._subagents[parent]
        self._subagents[owner] = True

    def _subagent_finished(self, _event: dict[str, Any], owner: str) -> None:
        assert self._subagents[owner], f"{owner} is closed already"
        left = [key for key, of in self._open.items() if of == owner]
        assert left == [], f"left open by {owner}: {left}"
        self._subagents[owner] = False

    _subagent_error = _subagent_finished

    def _begin(self, key: tuple[Any, ...], owner: str | None) -> None:
        assert key not in self._open, f"{key} is open already"
        assert owner is None or self._subagents[owner], f"{key} of a subagent that is not open"
        self._open[key] = owner

    def _finish(self, key: tuple[Any, ...], owner: str | None) -> None:
        assert self._open.pop(key) == owner

    def _own(self, kind: str, name: str, *owner: str | None) -> None:
        assert self._owners.setdefault((kind, name), owner) == owner, f"two owners of {kind} {name}"


def is_exact(model: Any) -> bool:
    """Whether a model has no field that the protocol does not describe."""
    if isinstance(model, BaseModel):
        if model.model_extra:
            return False
        return all(is_exact(getattr(model, name)) for name in type(model).model_fields)
    return all(map(is_exact, model)) if isinstance(model, list) else True


def patched(document: Any, patch: list[dict[str, Any]]) -> Any:
    """Apply a JSON patch of the operations that the server makes, with the errors of RFC 6902."""
    holder = {"": copy.deepcopy(document)}
    for operation in patch:
        *path, last = ["", *_tokens(operation["path"])]
        target: Any = holder
        for token in path:
            target = target[_key(target, token)]
        key = _key(target, last)
        if operation["op"] == "add":
            if isinstance(target, list):
                assert 0 <= key <= len(target)
                target.insert(key, operation["value"])
            else:
                target[key] = operation["value"]
        elif operation["op"] == "remove":
            del target[key]
        else:
            assert operation["op"] == "replace"
            target[key]
            target[key] = operation["value"]
    return holder[""]


def _tokens(path: str) -> list[str]:
    assert path == "" or path[0] == "/"
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _key(target: Any, token: str) -> Any:
    return int(token) if isinstance(target, list) else token
