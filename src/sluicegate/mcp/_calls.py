"""Calls: a request begins or continues a run, and returns its result or its open questions.

Under protocol 2026-07-28 a call asks by returning (``input_required``), so a run that asks is continued by as
many requests as it has rounds of questions. Between them nothing is in memory: the run is in the state
that the client carries, as a snapshot; or it is in the run store, and the state has its id. Under earlier
protocols the server asks during the call.
"""

from __future__ import annotations

import hashlib
import json
import logging
from math import inf
from typing import TYPE_CHECKING, Any

from mcp import types
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.request_state import authenticated_principal
from mcp.shared.exceptions import MCPError

from sluicegate._data.json import encode
from sluicegate._errors import (
    EventConflictError,
    QuestionClosedError,
    SnapshotError,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    brief_text,
    name_of,
)
from sluicegate._events import (
    InputRequiredEvent,
    InternalEvent,
    ProgressEvent,
    StopEvent,
    untagged,
)
from sluicegate._handler import run_of
from sluicegate._loop import current_backend
from sluicegate.durable import RunConflictError, UnknownRunError
from sluicegate.mcp._forms import form_of
from sluicegate.mcp._tool import RefusedError


if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp.server.context import ServerRequestContext

    from sluicegate._events import Event
    from sluicegate._handler import WorkflowHandler
    from sluicegate._questions import OpenQuestion
    from sluicegate._streams import EventStream
    from sluicegate.durable import RunStore
    from sluicegate.mcp._tool import WorkflowTool


LOGGER = logging.getLogger("sluicegate")

#: The first protocol under which a call asks by returning; the name of a protocol is its date.
ASKS_BY_RETURNING = "2026-07-28"
#: The most bytes of state that a client is given to carry.
MOST_STATE = 256 * 1024
#: The most characters of an event in a progress notification.
_MOST_TEXT = 2_000
#: Turns of the event loop that an idle run gets, in which other tasks of a step that asks may ask as well.
_TURNS = 10
#: Seconds between two looks at a stored run, which may be in no process, or in another one.
_LOOK = 0.05

AGAIN = "expected the tool to be called again from the beginning, without requestState"


class _LeftError(Exception):
    """Raised to leave a durable run, which rests in its store until it is answered."""


class _CannotAskError(RefusedError):
    """Raised when a run asks and the client has not declared that it can be asked."""


class Calls:
    """The calls of the tools of a server.

    Args:
        tools: The tools, by their names.
        runs: The store of the runs; None if the clients carry them.
        can_ask: Whether the state that clients carry is sealed.
    """

    def __init__(
        self, tools: Mapping[str, WorkflowTool], runs: RunStore | None, *, can_ask: bool
    ) -> None:
        self._tools = tools
        self._runs = runs
        self._can_ask = can_ask

    async def call(
        self, ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Serve a request: until the run has ended or waits for answers. A checkpoint.

        Cancelled, it cancels the run and waits for its clean-up. A durable run that has an id from the
        client, or has asked before, stays in its store.

        Raises:
            MCPError: There is no such tool, the state is not one of this server, or the client
                cannot be asked.
        """
        tool = self._tools.get(params.name)
        if tool is None:
            known = ", ".join(sorted(self._tools))
            msg = f"Unknown tool: {brief_text(params.name)}; expected one of {known}"
            raise MCPError(types.INVALID_PARAMS, msg)
        if params.request_state is not None and not self._can_ask:
            msg = f"no tool of this server asks, so it gives no requestState; {AGAIN}"
            raise MCPError(types.INVALID_PARAMS, msg)
        try:
            handler, after, is_transient = self._open(tool, ctx, params)
            current = Round(
                tool=tool,
                handler=handler,
                ctx=ctx,
                runs=self._runs,
                responses=dict(params.input_responses or {}),
                after=after,
            )
            if not self._can_ask:
                current.cannot_ask = (
                    f"{tool.name} asks, which its steps do not show, and the server has no keys to seal its "
                    "state; expected mcp_server(..., state_keys=[...])"
                )
            return await current.serve(is_transient=is_transient)
        except _CannotAskError as error:
            wanted = types.ClientCapabilities(
                elicitation=types.ElicitationCapability(form=types.FormElicitationCapability())
            )
            data = types.MissingRequiredClientCapabilityErrorData(required_capabilities=wanted)
            raise MCPError(
                types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                str(error),
                data.model_dump(by_alias=True, mode="json", exclude_none=True),
            ) from None
        except RefusedError as error:
            return types.CallToolResult(content=[types.TextContent(text=str(error))], is_error=True)

    def _open(
        self,
        tool: WorkflowTool,
        ctx: ServerRequestContext[Any],
        params: types.CallToolRequestParams,
    ) -> tuple[WorkflowHandler[Any], str, bool]:
        """Return the run of a request, the position in its stream, and whether it ends with the request.

        Raises:
            RefusedError: The arguments are not valid, or the state does not fit.
        """
        runs, workflow = self._runs, tool.workflow
        start, run_id = tool.start_event(params.arguments)
        if params.request_state is not None:
            try:
                state: dict[str, Any] = json.loads(params.request_state)
                if runs is None:
                    return workflow.resume(state["run"]), "0", True
                return runs.resume(state["id"], workflow), state["after"], False
            except (ValueError, LookupError, TypeError, WorkflowRuntimeError) as error:
                LOGGER.warning(
                    "the state of a call of the tool %s does not fit: %s", tool.name, error
                )
                msg = f"the state is one of an earlier version of {tool.name}, or of a server that keeps runs differently; {AGAIN}"
                raise RefusedError(msg) from None
        handler = workflow.run(start_event=start)
        if runs is None:
            return handler, "0", True
        try:
            return runs.run(handler, run_id=_stored_id(ctx, run_id)), "0", run_id is None
        except SnapshotError as error:
            LOGGER.error("a call of the tool %s cannot be stored: %s", tool.name, error)  # noqa: TRY400 - it says all
            msg = f"{tool.name} failed: SnapshotError"
            raise RefusedError(msg) from error


def _stored_id(ctx: ServerRequestContext[Any], run_id: str | None) -> str | None:
    """Return the id of a run in the store: users whom the server can tell apart share no ids."""
    principal = None if run_id is None else authenticated_principal(ctx)
    if principal is None:
        return run_id
    return f"{run_id}@{hashlib.sha256(principal.encode(errors='surrogatepass')).hexdigest()[:16]}"


class Round:
    """One request for a run: until the run has ended, or waits for answers that the request has not got.

    Args:
        tool: The tool.
        handler: The run, which is not started.
        ctx: The request.
        runs: The store of the run, if it is durable.
        responses: The answers, by the ids of the questions.
        after: The position in the stream behind the events that were reported before.
    """

    def __init__(
        self,
        *,
        tool: WorkflowTool,
        handler: WorkflowHandler[Any],
        ctx: ServerRequestContext[Any],
        runs: RunStore | None,
        responses: dict[str, types.InputResponse],
        after: str,
    ) -> None:
        self._tool = tool
        self._handler = handler
        self._ctx = ctx
        self._runs = runs
        self._responses = responses
        self._after = after
        self._reported = 0
        #: The errors of the answers that did not fit, by the ids of their questions.
        self._errors: dict[str, str] = {}
        #: Why the client cannot be asked; empty if it can.
        self.cannot_ask = ""

    async def serve(
        self, *, is_transient: bool
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Run until there is something to return. A checkpoint; cancelled, the run has unwound.

        Args:
            is_transient: Whether the run ends with the request, if the request ends before the run.

        Raises:
            RefusedError: The run has failed, or cannot be continued; or a question was declined.
        """
        try:
            if self._runs is None:
                asked = await self._own()
            else:
                asked = await self._own_part(self._runs, is_transient=is_transient)
            if asked is not None:
                return asked
            self._handler.result()
        except RefusedError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        assert self._handler.stop_event is not None
        return self._tool.result(self._handler.stop_event)

    async def _own(self) -> types.InputRequiredResult | None:
        """Own a run that is in no store: it has unwound when this returns. A checkpoint."""
        async with self._handler as handler:
            asked = await self._follow()
            if asked is not None:
                handler.cancel("its questions were given to the client")
        return asked

    async def _own_part(
        self, runs: RunStore, *, is_transient: bool
    ) -> types.InputRequiredResult | None:
        """Own the part of a durable run in this process: it has unwound when this returns. A checkpoint."""
        asked = None
        try:
            async with self._handler:
                asked = await self._follow()
                if asked is not None:
                    raise _LeftError  # noqa: TRY301 - only an exception leaves a run that is under way
        except _LeftError:
            pass
        except BaseException:
            if is_transient and self._handler.status == "detached":
                await self._cancel_stored(runs)  # noqa: ASYNC102 - it shields itself
            raise
        return asked

    async def _cancel_stored(self, runs: RunStore) -> None:
        """Cancel the run, which has left this process and which no client can find again. Shielded."""
        with current_backend().cancel_scope(shield=True):
            try:
                async with runs.resume(self._handler.run_id, self._tool.workflow) as run:
                    await run.cancel("the request that began it has ended")
            except WorkflowError as error:
                LOGGER.warning("the run %s could not be cancelled: %s", self._handler.run_id, error)

    def _failure(self, error: Exception) -> RefusedError:
        """Return a failure as an error for the model. Texts that may be confidential are only logged."""
        name, run_id = self._tool.name, self._handler.run_id
        if isinstance(error, RunConflictError):
            msg = (
                f"another run has the run_id {run_id!r}; expected the arguments with which it began, or "
                "another run_id"
            )
            return RefusedError(msg)
        if isinstance(error, UnknownRunError):
            return RefusedError(f"the run {run_id} is no longer in its store; {AGAIN}")
        if isinstance(error, ToolError):
            return RefusedError(f"{name} failed: {error}")
        LOGGER.error("the run %s of a call of the tool %s has failed", run_id, name, exc_info=error)
        if type(error) is WorkflowTimeoutError and error.timeout is not None:
            return RefusedError(f"{name} timed out after {error.timeout:g} s (run {run_id})")
        return RefusedError(f"{name} failed: {name_of(error)} (run {run_id})")

    # -- following the run ----------------------------------------------------------------------------

    async def _follow(self) -> types.InputRequiredResult | None:
        """Report the run's events until it has ended (None) or waits for the client. A checkpoint."""
        with self._handler.stream_events(
            after=self._after, expose_internal=True, lossy=True
        ) as stream:
            while True:
                # An idle run has published a WorkflowIdleEvent, so no look at it is missed.
                if await self._is_idle(stream) and not await self._answer():
                    return self._ask(stream.cursor)
                event = await self._next(stream)
                if isinstance(event, StopEvent):
                    return None
                if event is not None:
                    await self._report(event)

    async def _next(self, stream: EventStream) -> Event | None:
        """Return the next event; None if a stored run is to be looked at. A checkpoint."""
        backend = current_backend()
        until = inf if self._runs is None else backend.current_time() + _LOOK
        with backend.cancel_scope(deadline=until):
            return await stream.receive()
        return None

    async def _is_idle(self, stream: EventStream) -> bool:
        """Whether nothing happens in the run until it gets an answer, and all events have been read.

        A checkpoint, unless something happens.

        Raises:
            RefusedError: It waits for an event that no question asks for.
        """
        handler, runs = self._handler, self._runs
        for _ in range(_TURNS):
            if handler.status != "idle" or not self._has_read_all(stream):
                return False
            await current_backend().checkpoint()
        has_timer = False
        if runs is not None:
            row = await runs.get(handler.run_id)
            if row.messages:  # they may be answers that are not applied yet
                return False
            has_timer = row.wake_at is not None
        if handler.status != "idle" or not self._has_read_all(stream):
            return False
        if handler.questions:
            return True
        if has_timer:
            return False
        msg = (
            f"{self._tool.name} waits for an event from outside, and has asked no question (run "
            f"{handler.run_id}); expected its step to ask: `return Question(...)`, of a subclass of "
            "InputRequiredEvent"
        )
        raise RefusedError(msg)

    def _has_read_all(self, stream: EventStream) -> bool:
        return stream.sequence + 1 >= run_of(self._handler).log.next

    async def _report(self, event: Event) -> None:
        """Send an event as progress. A checkpoint, if the client wants progress."""
        if isinstance(untagged(event), InternalEvent | InputRequiredEvent):
            return
        if isinstance(event, ProgressEvent):
            of = "" if event.total is None else f" of {event.total:g}"
            text = f"{event.step}: {event.message} ({event.done:g}{of})".replace(":  (", " (")
        else:
            text = encode(event)
        self._reported += 1
        await self._ctx.session.report_progress(
            self._reported, message=brief_text(text, _MOST_TEXT)
        )

    # -- questions --------------------------------------------------------------------------------------

    async def _answer(self) -> bool:
        """Give the run the answers that there are to its open questions; return whether there were any."""
        has_answered = False
        asks_now = self._ctx.protocol_version < ASKS_BY_RETURNING
        for question in self._handler.questions:
            response = self._responses.pop(question.id, None)
            if response is None and asks_now:
                response = await self._elicit(question)
            if response is not None:
                self._errors.pop(question.id, None)
                error = await self._give(question, response)
                if error:
                    self._errors[question.id] = error
                has_answered = has_answered or asks_now or not error
        return has_answered

    async def _give(self, question: OpenQuestion, response: types.InputResponse) -> str:
        """Give the run an answer; return why it is not valid, or an empty text.

        Raises:
            RefusedError: The user does not answer.
        """
        if not isinstance(response, types.ElicitResult):
            return "the answer is not that of an elicitation"
        form = form_of(question)
        if response.action != "accept":
            if response.action == "decline":
                await self._handler.cancel("the user declined to answer")
            did = "declined" if response.action == "decline" else "did not want"
            msg = f"the user {did} to answer: {form.message} (run {self._handler.run_id})"
            raise RefusedError(msg)
        key = None if self._runs is None else f"mcp {question.id}"
        try:
            answer = form.answer(response.content or {})
            await self._handler.send_event(answer, question=question.id, id=key)
        except (QuestionClosedError, EventConflictError):
            return ""  # another delivery of this request has answered it
        except (TypeError, SnapshotError, WorkflowRuntimeError) as error:
            return str(error)
        return ""

    def _check_can_ask(self, question: OpenQuestion) -> None:
        """Raise if the client cannot be asked.

        Raises:
            RefusedError: It cannot.
        """
        if self.cannot_ask:
            raise RefusedError(self.cannot_ask)
        capabilities = self._ctx.session.client_capabilities
        can = None if capabilities is None else capabilities.elicitation
        if can is None or (can.form is None and can.url is not None):
            kind = type(question.event).__name__ if question.event is not None else "a question"
            msg = (
                f"{self._tool.name} asks ({kind}), and the client has not declared the capability form "
                "elicitation; expected a client that can ask its user"
            )
            raise _CannotAskError(msg)

    async def _elicit(self, question: OpenQuestion) -> types.ElicitResult:
        """Ask the client during the call, as earlier protocols do. A checkpoint."""
        self._check_can_ask(question)
        form = form_of(question, self._errors.get(question.id, ""))
        try:
            return await self._ctx.session.elicit_form(
                form.message, form.schema, self._ctx.request_id
            )
        except MCPError as error:
            msg = f"{self._tool.name} asks, and the client cannot be asked: {error}"
            raise RefusedError(msg) from error

    def _ask(self, cursor: str) -> types.InputRequiredResult:
        """Return all open questions, and the state with which the client is to answer them.

        Raises:
            RefusedError: The state is too large, or the client cannot be asked.
            SnapshotError: A value of the run cannot be kept.
        """
        questions = self._handler.questions
        self._check_can_ask(questions[0])
        if self._runs is None:
            state: dict[str, Any] = {"run": self._handler.snapshot()}
        else:
            state = {"id": self._handler.run_id, "after": cursor}
        text = json.dumps(state, separators=(",", ":"))
        if len(text) > MOST_STATE:
            msg = (
                f"the state of {self._tool.name} takes {len(text) / 1024:.0f} KiB, and a client is given at most "
                f"{MOST_STATE // 1024} KiB to carry; expected a run store, which keeps it: mcp_server(..., "
                "run_store=runs)"
            )
            raise RefusedError(msg)
        return types.InputRequiredResult(
            request_state=text,
            input_requests={
                question.id: types.ElicitRequest(
                    params=types.ElicitRequestFormParams(
                        message=form.message, requested_schema=form.schema
                    )
                )
                for question in questions
                for form in (form_of(question, self._errors.get(question.id, "")),)
            },
        )
