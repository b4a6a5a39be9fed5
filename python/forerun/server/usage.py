"""What answers report beside the text: usage and, where it is asked for, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forerun.metrics import total_request_metrics
from forerun.outputs import RequestOutput


def usage(num_prompt_tokens: int, num_output_tokens: int, num_reasoning: int) -> dict[str, Any]:
    """OpenAI's `usage` while a request runs."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
        "completion_tokens_details": {"reasoning_tokens": num_reasoning},
    }


def final_usage(outputs: Sequence[RequestOutput], num_reasoning: int) -> dict[str, Any]:
    """OpenAI's `usage` of finished requests, with what is known only then."""
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_output = sum(len(each.token_ids) for output in outputs for each in output.outputs)
    found = usage(num_prompt, num_output, num_reasoning)
    found["prompt_tokens_details"] = {
        "cached_tokens": sum(output.num_cached_tokens for output in outputs)
    }
    counts = [output.metrics for output in outputs if output.metrics is not None]
    found["completion_tokens_details"] |= {
        "accepted_prediction_tokens": sum(each.num_accepted_prediction_tokens for each in counts),
        "rejected_prediction_tokens": sum(each.num_rejected_prediction_tokens for each in counts),
    }
    return found


def metrics_field(outputs: Sequence[RequestOutput]) -> dict[str, Any] | None:
    """The `metrics` of an answer: how its tokens were drafted, and where its time went."""
    found = [output.metrics for output in outputs if output.metrics is not None]
    if not found:
        return None
    metrics = total_request_metrics(found)
    drafts = metrics.spec_decode
    return {
        "num_drafts": drafts.num_drafts,
        "num_draft_tokens": drafts.num_draft_tokens,
        "num_accepted_tokens": drafts.num_accepted_tokens,
        "acceptance_rate": drafts.acceptance_rate,
        "mean_acceptance_length": drafts.mean_acceptance_length,
        "num_target_passes": metrics.num_target_passes,
        "tokens_per_target_pass": metrics.tokens_per_target_pass,
        "num_preemptions": metrics.num_preemptions,
        "queue_seconds": metrics.queue_seconds,
        "first_token_seconds": metrics.first_token_seconds,
        "decode_seconds": max(metrics.last_token_ts - metrics.first_token_ts, 0.0),
        "total_seconds": metrics.total_seconds,
    }
