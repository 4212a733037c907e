"""The exceptions of the client, and the one that an answer of the server becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sluicegate._errors import (
    EventConflictError,
    QuestionClosedError,
    WorkflowError,
    WorkflowRuntimeError,
    brief_text,
)


if TYPE_CHECKING:
    from sluicegate.client._library import httpx

#: The most characters of an answer that is no JSON, in a message.
_SHOWN = 200
#: The statuses of answers after which the same request may succeed later.
LATER = frozenset({408, 425, 429, 502, 503, 504})


class ClientError(WorkflowError):
    """Raised when the server refuses a request, or does not answer as expected: the base of the others.

    Attributes:
        status: The HTTP status; None if there was no answer.
        body: The answer as JSON data; empty if it was none.
    """

    def __init__(
        self, message: str, status: int | None = None, body: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status: int | None = status
        self.body: dict[str, Any] = {} if body is None else body


class InvalidRequestError(ClientError, TypeError):
    """Raised when the data of a request do not fit the workflow. It is also a ``TypeError``.

    Attributes:
        field: The path of the field, ``"start_event.topic"``; None if it is not one field.
    """

    @property
    def field(self) -> str | None:
        """The path of the field; None if it is not one field."""
        return self.body.get("field")


class NotAllowedError(ClientError, PermissionError):
    """Raised when the server does not accept the token, or forbids the request (401, 403)."""


class NotFoundError(ClientError, LookupError):
    """Raised when the server does not know the workflow or the run (404)."""


class ConflictError(ClientError):
    """Raised when a request does not fit the state of the run (409): it has ended, or its key was used."""


class UnavailableError(ClientError):
    """Raised when the server takes no request now: it is full, stopping or being restarted (429, 503).

    Attributes:
        retry_after: The seconds after which the server wants to be asked again; None if it names none.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        body: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status, body)
        self.retry_after: float | None = retry_after


class ServerUnreachableError(ClientError, ConnectionError):
    """Raised when there is no connection to the server, or it was lost and not made again in time.

    The cause is the exception of httpx2.
    """


class RunFailedError(WorkflowRuntimeError):
    """Raised by ``await handler`` when a step of the run failed on the server.

    The server does not send the text of the exception, which may be confidential; its log has it.

    Attributes:
        exception: The name of the exception's class, such as ``"LookupError"``.
        step_name: The step that raised it; None if it is not known.
        run_id: The run.
    """

    def __init__(
        self, message: str, exception: str = "", step_name: str | None = None, run_id: str = ""
    ) -> None:
        super().__init__(message)
        self.exception: str = exception
        self.step_name: str | None = step_name
        self.run_id: str = run_id


_BY_STATUS: dict[int, type[ClientError]] = {
    400: InvalidRequestError,
    401: NotAllowedError,
    403: NotAllowedError,
    404: NotFoundError,
    409: ConflictError,
    422: InvalidRequestError,
}


def json_of_answer(response: httpx.Response) -> dict[str, Any] | None:
    """Return the JSON object in an answer that was read; None if it is none."""
    try:
        data: object = response.json()
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", data) if isinstance(data, dict) else None


def error_of(response: httpx.Response) -> Exception:
    """Return the exception for an answer with an error, which was read."""
    status, body = response.status_code, json_of_answer(response)
    detail = None if body is None else body.get("detail")
    if body is None or not isinstance(detail, str):
        return unexpected(response, "a server of sluicegate", body)
    match body.get("error"):
        case "QuestionClosedError":
            return QuestionClosedError(detail, str(body.get("question") or ""))
        case "EventConflictError":
            return EventConflictError(detail, str(body.get("id") or ""))
        case _:
            pass
    if status in LATER:
        return UnavailableError(detail, status, body, retry_after(response))
    kind = _BY_STATUS.get(status)
    if kind is not None:
        return kind(detail, status, body)
    return ClientError(
        f"{_request_of(response)} was answered with {status}: {detail}", status, body
    )


def unexpected(
    response: httpx.Response, expected: str, body: dict[str, Any] | None = None
) -> ClientError:
    """Return the exception for an answer that is not what the protocol has."""
    status = response.status_code
    kind = response.headers.get("content-type") or "no content type"
    shown = brief_text(response.text, _SHOWN)
    msg = (
        f"{_request_of(response)} was answered with {status} and {kind}: {shown!r}; expected {expected}: "
        'Client("http://127.0.0.1:8000"), with the path at which it is mounted'
    )
    if status in LATER:  # a proxy in front of a server that is being restarted
        return UnavailableError(msg, status, body, retry_after(response))
    return _BY_STATUS.get(status, ClientError)(msg, status, body)


def _request_of(response: httpx.Response) -> str:
    return f"{response.request.method} {response.request.url.copy_with(query=None)}"


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds after which the server wants to be asked again; None if it names none."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
