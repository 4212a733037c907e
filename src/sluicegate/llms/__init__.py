"""
Language models for steps: replies as streams that end with the step that opened them.

`MockLLM` has no dependencies. `sluicegate.llms.openai` has the ``OpenAI`` class and needs
``pip install "sluicegate[openai]"``; `sluicegate.llms.local` has a model server for programs and tests
without a key, and needs ``pip install "sluicegate[local]"``. All of them work without the engine,
in any program on Trio or asyncio.
"""

from __future__ import annotations

from ._functions import tool as tool
from ._mock import MockLLM as MockLLM
from ._protocol import LLM as LLM
from ._published import ReasoningDelta as ReasoningDelta
from ._published import TextDelta as TextDelta
from ._published import ToolCalled as ToolCalled
from ._published import ToolReturned as ToolReturned
from ._streams import ChatStream as ChatStream
from ._streams import CompletionStream as CompletionStream
from ._structured import OutputError as OutputError
from ._structured import StructuredResponse as StructuredResponse
from ._structured import read_response as read_response
from ._structured import response_format as response_format
from ._structured import structured_chat as structured_chat
from ._tools import Tool as Tool
from ._tools import ToolError as ToolError
from ._tools import ToolResult as ToolResult
from ._tools import call_tool as call_tool
from ._tools import call_tools as call_tools
from ._types import ChatMessage as ChatMessage
from ._types import ChatResponse as ChatResponse
from ._types import CompletionResponse as CompletionResponse
from ._types import MessageRole as MessageRole
from ._types import StreamClosedError as StreamClosedError
from ._types import ToolCall as ToolCall
from ._types import Usage as Usage


__all__ = [
    "LLM",
    "ChatMessage",
    "ChatResponse",
    "ChatStream",
    "CompletionResponse",
    "CompletionStream",
    "MessageRole",
    "MockLLM",
    "OutputError",
    "ReasoningDelta",
    "StreamClosedError",
    "StructuredResponse",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCalled",
    "ToolError",
    "ToolResult",
    "ToolReturned",
    "Usage",
    "call_tool",
    "call_tools",
    "read_response",
    "response_format",
    "structured_chat",
    "tool",
]
