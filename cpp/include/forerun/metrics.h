// Raw counters; names and ratios are in python/forerun/metrics.py, definitions in docs/metrics.md.
#ifndef FORERUN_METRICS_H_
#define FORERUN_METRICS_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "forerun/types.h"

namespace forerun {

// A draft counts as accepted only as far as its tokens were emitted: nothing beyond a stop or
// max_tokens. Positions are depths in the draft, from 0.
struct SpecDecodeCounters {
  std::int64_t num_drafts = 0;
  std::int64_t num_draft_tokens = 0;
  std::int64_t num_accepted_tokens = 0;
  std::vector<std::int64_t> num_accepted_tokens_per_pos;
  // Drafts that reached the position. Of chains these add up to num_draft_tokens.
  std::vector<std::int64_t> num_draft_tokens_per_pos;
};

// One verified draft.
struct DraftStep {
  int num_draft_tokens = 0;
  int num_accepted_tokens = 0;
};

struct RequestMetrics {
  SpecDecodeCounters spec_decode;
  std::vector<DraftStep> draft_steps;  // in order; with EngineOptions::record_draft_steps only
  std::int64_t num_target_passes = 0;  // those that emitted tokens, with a draft or without
  std::int64_t num_generated_tokens = 0;
  std::int64_t num_preemptions = 0;
  // Of SubmitOptions::prediction: draft tokens out of it that were emitted, and those that were
  // not. Also counted in spec_decode.
  std::int64_t num_accepted_prediction_tokens = 0;
  std::int64_t num_rejected_prediction_tokens = 0;
  bool is_corrupted = false;  // it failed because logits were not finite

  // In seconds; 0 until it happens. The arrival is on the system's clock since 1970, the others on
  // the steady clock. Tokens have the time at which their step was verified.
  double arrival_time = 0;
  double queued_ts = 0;  // the arrival on the steady clock
  double scheduled_ts = 0;
  double first_token_ts = 0;
  double last_token_ts = 0;
  double finished_ts = 0;
};

// How many of the observed values fell into each range.
struct Histogram {
  static constexpr int kMaxBounds = 29;

  // Upper bounds of the ranges, inclusive, ascending, in static storage.
  std::span<const double> bounds;
  // [bounds.size() + 1]: of each range alone; the last has the values above every bound.
  std::array<std::int64_t, kMaxBounds + 1> counts = {};
  std::int64_t count = 0;
  double sum = 0;
};

// Of requests: of every finished one, unless noted.
struct EngineHistograms {
  Histogram request_prompt_tokens;
  Histogram request_generation_tokens;
  Histogram request_prefill_kv_computed_tokens;  // the prompt without what was cached
  Histogram request_params_max_tokens;
  Histogram request_num_preemptions;
  Histogram e2e_request_latency_seconds;
  Histogram request_queue_time_seconds;  // of those that were scheduled
  // Of those that emitted a token.
  Histogram request_prefill_time_seconds;
  Histogram request_decode_time_seconds;
  Histogram request_inference_time_seconds;
  Histogram request_time_per_output_token_seconds;
  // Of each request's first token, also while it runs.
  Histogram time_to_first_token_seconds;
  // Of each later step that emitted tokens: since the step before, however many tokens.
  Histogram inter_token_latency_seconds;
  // Of each step that ran the model: prompt tokens computed and tokens emitted.
  Histogram iteration_tokens_total;
};

struct EngineMetrics {
  SpecDecodeCounters spec_decode;
  EngineHistograms histograms;
  std::int64_t num_steps = 0;
  std::int64_t num_target_passes = 0;  // summed over requests
  // Computed, without those from the prefix cache; again after a preemption.
  std::int64_t num_prompt_tokens = 0;
  std::int64_t num_cached_prompt_tokens = 0;  // found in the prefix cache at first admission
  std::int64_t num_prefix_cache_queries = 0;  // prompt tokens looked up there
  std::int64_t num_prefilled_tokens = 0;      // prompts of requests that emitted a token, once each
  // Those of them beyond what their requests computed, where recomputed ones count again.
  std::int64_t num_prefilled_from_cache = 0;
  std::int64_t num_generated_tokens = 0;
  std::int64_t num_preemptions = 0;
  std::int64_t num_finished_requests = 0;
  std::array<std::int64_t, 6> num_finished_by_reason = {};  // by FinishReason
  // Requests whose drafter failed; they go on without drafts.
  std::int64_t num_drafting_failures = 0;
  std::string first_drafting_failure;  // what the first of them was; empty where there was none

  double draft_seconds = 0;
  double model_seconds = 0;
  double verify_seconds = 0;
  double other_seconds = 0;

  // As of the last step.
  int num_waiting_requests = 0;
  int num_running_requests = 0;
  int num_free_blocks = 0;
  int num_cached_blocks = 0;
  int num_held_blocks = 0;
  int num_total_blocks = 0;
};

}  // namespace forerun

#endif  // FORERUN_METRICS_H_
