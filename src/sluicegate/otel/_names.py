"""The names of spans, attributes and metrics, in one place.

Those that begin with ``gen_ai.``, ``error.`` or ``server.`` are OpenTelemetry's; the conventions for
generative AI are still in development, and rename things. Without an opt-in, the names are those of
the conventions 1.41, the last release before they moved to another repository. With
``gen_ai_latest_experimental`` in ``OTEL_SEMCONV_STABILITY_OPT_IN``, they are those of version 0.1.0 there.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple


#: The name of the tracer and of the meter.
SCOPE: Final = "sluicegate"

# -- OpenTelemetry's

OPERATION: Final = "gen_ai.operation.name"
INVOKE_WORKFLOW: Final = "invoke_workflow"
CHAT: Final = "chat"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
#: Options of a request, by the names that the clients of :mod:`sluicegate.llms` take.
REQUEST_OPTIONS: Final = {
    "temperature": "gen_ai.request.temperature",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - of a language model
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"

TOKEN_USAGE_METRIC: Final = "gen_ai.client.token.usage"  # noqa: S105 - as above
OPERATION_DURATION_METRIC: Final = "gen_ai.client.operation.duration"
FIRST_CHUNK_METRIC: Final = "gen_ai.client.operation.time_to_first_chunk"

# -- our own

RUN_ID: Final = "sluicegate.run.id"
RUN_RESUMED: Final = "sluicegate.run.resumed"
RUN_TIMEOUT: Final = "sluicegate.run.timeout"
RUN_QUEUED: Final = "sluicegate.run.queue.duration"
RUN_PEOPLE: Final = "sluicegate.run.people.duration"
WORKFLOW: Final = "sluicegate.workflow.name"
STEP: Final = "sluicegate.step.name"
INVOCATION: Final = "sluicegate.step.invocation"
ATTEMPT: Final = "sluicegate.step.attempt"
WORKER: Final = "sluicegate.step.worker"
STEP_QUEUED: Final = "sluicegate.step.queue.duration"
STEP_WAITED: Final = "sluicegate.step.wait.duration"
EVENT_TYPE: Final = "sluicegate.event.type"
EVENT_VALUE: Final = "sluicegate.event.value"
RESULT_VALUE: Final = "sluicegate.result.value"
#: Why a span is linked: it emitted an event, or is the attempt or the run before.
LINK: Final = "sluicegate.link"
OUTCOME: Final = "sluicegate.outcome"
CANCELLED_BY: Final = "sluicegate.cancellation.by"
CANCELLATION_REASON: Final = "sluicegate.cancellation.reason"
CANCELLED_BY_INVOCATION: Final = "sluicegate.cancellation.invocation"
UNWINDING: Final = "sluicegate.cancellation.unwind.duration"
WAIT_KIND: Final = "sluicegate.wait.kind"
WAIT_OUTCOME: Final = "sluicegate.wait.outcome"
QUESTION_ID: Final = "sluicegate.question.id"

ACTIVE_RUNS_METRIC: Final = "sluicegate.run.active"
STEP_DURATION_METRIC: Final = "sluicegate.step.duration"
ACTIVE_STEPS_METRIC: Final = "sluicegate.step.active"
QUEUE_DURATION_METRIC: Final = "sluicegate.step.queue.duration"
QUEUED_STEPS_METRIC: Final = "sluicegate.step.queued"
WAIT_DURATION_METRIC: Final = "sluicegate.wait.duration"
OPEN_QUESTIONS_METRIC: Final = "sluicegate.question.open"

#: Bounds of histograms of durations, in seconds. A step may take less than a millisecond or some hours.
SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
#: Those of model calls and of tokens are given by the conventions.
CALL_SECONDS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
TOKENS: Final = tuple(4.0**power for power in range(14))

CAPTURE_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
OPT_IN_VARIABLE: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"


class WorkflowNames(NamedTuple):
    """The names that differ between the versions of the conventions."""

    name: str
    duration_metric: str


def workflow_names() -> WorkflowNames:
    """Return the names for the version of the conventions that the environment asks for."""
    asked_for = {name.strip() for name in os.environ.get(OPT_IN_VARIABLE, "").split(",")}
    if "gen_ai_latest_experimental" in asked_for:
        return WorkflowNames("gen_ai.agent.name", "gen_ai.invoke_agent.duration")
    return WorkflowNames("gen_ai.workflow.name", "gen_ai.invoke_workflow.duration")


def captures_values() -> bool:
    """Whether the environment asks for the content of messages and events."""
    return os.environ.get(CAPTURE_VARIABLE, "").strip().lower() in ("true", "1", "span_only")
