"""Events for the stream of a run that carry the reply of a model to the readers, piece by piece.

A step sends them like any other event: ``await ctx.stream.send(TextDelta(...))``. Readers that know
them, such as front ends for AG-UI, show a conversation.
"""

from __future__ import annotations

from sluicegate._events import Event


class TextDelta(Event):
    """The next piece of a message.

    Attributes:
        message: The identifier of the message, the same for all of its pieces and unique in the run:
            ``ctx.delivery_key`` does for a step that writes one message.
        text: The text to append.
        role: Who the message is from: ``"assistant"``, ``"user"``, ``"system"`` or ``"developer"``.
        is_last: Whether the message ends with it. A message that is not ended so ends with the step.
    """

    message: str
    text: str
    role: str = "assistant"
    is_last: bool = False


class ReasoningDelta(Event):
    """The next piece of a model's reasoning.

    Attributes:
        message: The identifier of the reasoning, unlike that of any message of the run.
        text: The text to append.
        is_last: As for :class:`TextDelta`.
    """

    message: str
    text: str
    is_last: bool = False


class ToolCalled(Event):
    """A model has called a tool.

    Attributes:
        id: The identifier of the call.
        name: The name of the tool.
        arguments: The arguments as the model wrote them: JSON text.
        message: The message that contains the call; None for none.
    """

    id: str
    name: str
    arguments: str = ""
    message: str | None = None


class ToolReturned(Event):
    """A tool has returned, or failed.

    Attributes:
        id: The identifier of the call.
        content: The result as text, or what went wrong.
        is_error: Whether the tool failed.
    """

    id: str
    content: str
    is_error: bool = False
