"""Runs and questions, as the server describes them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._errors import WorkflowTimeoutError
from sluicegate.client._errors import ClientError
from sluicegate.client._events import cancelled, read_envelope, result_of, run_failed


if TYPE_CHECKING:
    from sluicegate._events import Event
    from sluicegate.client._events import Classes


@attrs.frozen
class RemoteRun:
    """A run as the server describes it.

    Attributes:
        run_id: Its id.
        workflow: The name of its workflow on the server.
        status: ``"running"``, ``"idle"`` (it waits for an answer from outside), ``"completed"``,
            ``"failed"``, ``"timed_out"`` or ``"cancelled"``.
        stop_event: The event with which it completed, or None.
        error: How it failed, as far as the server tells; or None.
        reason: Why it was cancelled, or None.
        questions: How many of its questions are open.
        started_at: When it was started; None if it is not known.
        updated_at: When it last changed; None if it is not known.
        completed_at: When it ended, or None.
        data: All that the server has sent.
    """

    run_id: str
    workflow: str
    status: str
    stop_event: Event | None
    error: str | None
    reason: str | None
    questions: int
    started_at: datetime | None
    updated_at: datetime | None
    completed_at: datetime | None
    data: dict[str, Any] = attrs.field(repr=False)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.status not in ("running", "idle")

    def result(self) -> Any:
        """Return the result of a run that has ended, as ``await handler`` does.

        Raises:
            RunFailedError: It failed.
            WorkflowCancelledError: It was cancelled.
            WorkflowTimeoutError: It did not end within its timeout.
            ClientError: It has not ended, or its result cannot be read.
        """
        if self.stop_event is not None:
            return result_of(self.stop_event, self.run_id)
        if self.status == "cancelled":
            raise cancelled(self.reason, self.run_id)
        if self.status == "timed_out":
            msg = f"the run {self.run_id}: {self.error}"
            raise WorkflowTimeoutError(msg)
        if self.status == "failed":
            name = self.data.get("exception") or "Exception"
            raise run_failed(name, self.data.get("step_name"), self.run_id)
        msg = f"the run {self.run_id} has no result: it is {self.status}; expected `await handler`"
        raise ClientError(msg)


def read_run(data: dict[str, Any], classes: Classes) -> RemoteRun:
    """Return a run from the data of a handler.

    Raises:
        ClientError: They are none.
    """
    run_id, status = data.get("run_id") or data.get("handler_id"), data.get("status")
    if not (isinstance(run_id, str) and isinstance(status, str)):
        msg = f"the server sent {str(data)[:200]!r}; expected the data of a run"
        raise ClientError(msg, body=data)
    if status == "running" and data.get("idle"):
        status = "idle"
    elif status == "failed" and data.get("timed_out"):
        status = "timed_out"
    envelope = read_envelope(data.get("result"))
    return RemoteRun(
        run_id,
        str(data.get("workflow_name") or ""),
        status,
        None if envelope is None else classes.event(envelope, run_id),
        data.get("error"),
        data.get("reason"),
        data.get("questions") or 0,
        _time(data.get("started_at")),
        _time(data.get("updated_at")),
        _time(data.get("completed_at")),
        data,
    )


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


@attrs.frozen
class AnswerKind:
    """A class of events that answers a question.

    Attributes:
        type_name: The name of the class.
        schema: The JSON Schema of its fields.
    """

    type_name: str
    schema: dict[str, Any]


@attrs.frozen
class RemoteQuestion:
    """An open question of a run on a server.

    Attributes:
        id: Its id, for ``handler.send_event(answer, question=...)``.
        run_id: The run that asks.
        event: The event that asked it; None for a wait that published no event.
        answers: The classes of events that answer it.
    """

    id: str
    run_id: str
    event: Event | None
    answers: tuple[AnswerKind, ...]


def read_questions(
    body: dict[str, Any], classes: Classes, run_id: str = ""
) -> tuple[RemoteQuestion, ...]:
    """Return the questions in an answer."""
    found: list[RemoteQuestion] = []
    for data in cast("list[dict[str, Any]]", body.get("questions") or []):
        run = str(data.get("handler_id") or run_id)
        envelope = read_envelope(
            {
                "type": data.get("type"),
                "types": ["InputRequiredEvent"],
                "value": data.get("fields") or {},
                "qualified_name": data.get("qualified_name"),
            }
        )
        answers: list[dict[str, Any]] = data.get("answers") or [data.get("answer") or {}]
        found.append(
            RemoteQuestion(
                str(data.get("id")),
                run,
                None if envelope is None else classes.event(envelope, run),
                tuple(
                    AnswerKind(str(each["type"]), each.get("schema") or {})
                    for each in answers
                    if "type" in each
                ),
            )
        )
    return tuple(found)
