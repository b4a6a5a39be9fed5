// Raw counters; ratios are for whoever reads them.
#ifndef FORERUN_METRICS_H_
#define FORERUN_METRICS_H_

#include <cstdint>
#include <vector>

namespace forerun {

// A draft counts as accepted only as far as its tokens were emitted: nothing beyond a stop or
// max_tokens.
struct SpecDecodeCounters {
  std::int64_t num_drafts = 0;
  std::int64_t num_draft_tokens = 0;
  std::int64_t num_accepted_tokens = 0;
  std::vector<std::int64_t> num_accepted_tokens_per_pos;
};

struct RequestMetrics {
  SpecDecodeCounters spec_decode;
  std::int64_t num_target_passes =
      0;  // forward passes that emitted tokens, with a draft or without
  std::int64_t num_generated_tokens = 0;
  std::int64_t num_preemptions = 0;
  double queue_seconds = 0;        // submit until first scheduled
  double first_token_seconds = 0;  // submit until the first token is emitted
  double total_seconds = 0;        // submit until finished
};

struct EngineMetrics {
  SpecDecodeCounters spec_decode;
  std::int64_t num_steps = 0;
  std::int64_t num_target_passes = 0;  // summed over requests
  std::int64_t num_prompt_tokens = 0;  // computed, without those from the prefix cache
  std::int64_t num_cached_prompt_tokens = 0;
  std::int64_t num_generated_tokens = 0;
  std::int64_t num_preemptions = 0;
  std::int64_t num_finished_requests = 0;
  // Requests whose drafter failed; they go on without drafts.
  std::int64_t num_drafting_failures = 0;

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
