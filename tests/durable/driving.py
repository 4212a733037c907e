"""Driving: the world around a run. It answers questions, tells the run to stop, and notes its end."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from sluicegate import (
    ChildEvent,
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from sluicegate._handler import run_of
from sluicegate.durable import RunEndedError
from tests.durable.flows import Answer, Flow, Question
from tests.durable.ledger import DeadLifeError


if TYPE_CHECKING:
    from sluicegate import WorkflowHandler
    from tests.durable.ledger import Ledger


class World:
    """What is outside of a run in one life; the ledger knows what earlier lives have done."""

    def __init__(self, flow: Flow, handler: WorkflowHandler[Any], ledger: Ledger) -> None:
        self.flow = flow
        self.handler = handler
        self.ledger = ledger
        self._seen: set[str] = set()

    async def run(self) -> Any:
        """Run to the end; return the result, or None if the run ends otherwise, as its flow may."""
        try:
            async with self.handler:
                await self.live()
                return await self.handler
        except (WorkflowCancelledError, WorkflowTimeoutError, OSError):
            return None

    async def live(self) -> None:
        """Drive the run until it ends; what comes out of it is noted in the ledger."""
        async with anyio.create_task_group() as group:
            if self.flow.stops_at:
                group.start_soon(self._stop, group)
            for key in self.flow.early:
                group.start_soon(self._answer, key)
            if self.flow.questions:
                group.start_soon(self._look_for_questions, group)
            async for event in self.handler.stream_events():
                self._note(group, event)
            group.cancel_scope.cancel()

    async def _look_for_questions(self, group: Any) -> None:
        """Answer what earlier lives have asked, which is not on the stream of this one."""
        while True:
            for asked in self.handler.questions:
                self._note(group, asked.event)
            await anyio.sleep(self.flow.pace * 2)

    def _note(self, group: Any, event: Any) -> None:
        asked = event.event if isinstance(event, ChildEvent) else event
        known = self.flow.unanswered | self._seen
        if isinstance(asked, Question) and asked.key not in known:
            self._seen.add(asked.key)
            group.start_soon(self._answer, asked.key)

    async def _answer(self, key: str) -> None:
        """Answer a question once; the id makes a repeated answer harmless."""
        if any(entry.what == "answered" and entry.name == key for entry in self.ledger.entries()):
            return
        answer = Answer(key=key, response=key.upper())
        # The run may have ended, or this life.
        with suppress(WorkflowRuntimeError, RunEndedError, DeadLifeError):
            await self.handler.send_event(answer, id=f"answer {key}")
            await self._durable()
            self.ledger.note("answered", key)

    async def _durable(self) -> None:
        """Wait until what was applied is durable, where no run store does that."""
        journal = run_of(self.handler).journal
        if journal is not None and run_of(self.handler).part is None:
            await journal.writer.reached(journal.writer.sequence)

    async def _stop(self, group: Any) -> None:
        """Stop the run once its body has begun, in this life or before."""
        entries = self.ledger.entries
        while not any(entry.name == self.flow.stops_at for entry in entries()):
            await anyio.sleep(self.flow.pace / 5)
        stopping = self.handler.cancel("enough", after="steps")
        with suppress(DeadLifeError):
            self.ledger.note("stopping", self.flow.stops_at)
        await stopping
