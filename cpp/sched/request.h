// The state of one request. Owned by the Scheduler; EngineCore and Scheduler both change it, in
// different parts of a step.
#ifndef FORERUN_CPP_SCHED_REQUEST_H_
#define FORERUN_CPP_SCHED_REQUEST_H_

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpp/draft_tree/constraint_cursor.h"
#include "cpp/draft_tree/draft_tree.h"
#include "cpp/index/predicted_output.h"
#include "cpp/kv/block_table.h"
#include "cpp/sampling/logits_processors.h"
#include "cpp/sampling/sampler.h"
#include "forerun/metrics.h"
#include "forerun/options.h"
#include "forerun/request_hooks.h"
#include "forerun/sampling_params.h"
#include "forerun/types.h"

namespace forerun {

// What the engine sets for every request.
struct RequestSetting {
  AcceptanceMethod acceptance_method = AcceptanceMethod::kCoupled;
  std::uint64_t seed = 0;
  int vocab_size = 0;
  std::span<const TokenId> eos_token_ids;
};

// The last bytes of an output: those in which a stop string may begin.
struct TextTail {
  enum Mark : char { kShown, kNameBegin, kNameInside };

  std::string shown;  // as in the text
  // With the names of special tokens that the text omits; empty if it omits none.
  std::string named;
  std::string marks;  // [named.size()] a Mark of each byte
};

struct Request {
  Request(RequestId request_id, BlockPool& pool, int max_tokens)
      : id(request_id), max_len(max_tokens), table(pool) {}

  // Fixed at submission.
  const RequestId id;
  const int max_len;  // of prompt and output together: the parameters' limit or the model's
  SamplingParams params;
  std::vector<TokenId> end_tokens;  // end-of-sequence and stop tokens
  SamplingRule rule;                // points to the processors
  RequestHooks hooks;
  int vocab_size = 0;
  int num_prompt_tokens = 0;
  int priority = 0;
  std::string cache_salt;
  std::chrono::steady_clock::time_point deadline;

  // Change at commit. `table` holds KV of a prefix of `tokens`; the rest is pending.
  std::vector<TokenId> tokens;  // prompt, then output
  // Of hooks.constraint; absent without one, and before Prepare.
  std::optional<ConstraintCursor> constraint;
  // Absent where no parameter or hook changes logits, and before Prepare.
  std::optional<LogitsProcessors> processors;
  bool is_prepared = false;
  int num_scored_rows = 0;  // of the prompt: their log-probabilities have been reported
  BlockTable table;
  std::optional<PredictedOutput> prediction;  // what drafts come from first
  // Prompt tokens found in the prefix cache at first admission; -1: not yet admitted.
  int num_cached_tokens = -1;
  int num_computed_prompt_tokens = 0;  // again after a preemption
  TextTail text_tail;
  std::int64_t num_text_bytes = 0;
  FinishReason finish_reason = FinishReason::kNone;
  TokenId stop_token = -1;
  int stop_string_index = -1;
  std::string error;
  bool can_speculate = false;  // drafts are wanted, and a drafter or the constraint may make them
  bool has_drafter = false;    // the drafter knows this request
  RequestMetrics metrics;

  // This step's; empty between steps.
  DraftTree draft;
  bool is_predicted = false;  // the draft was made from the prediction

  // To be called once, before anything else. REQUIRES: CheckRequest has accepted them.
  void SetUp(std::span<const TokenId> prompt, const SamplingParams& sampling_params,
             RequestHooks request_hooks, const RequestSetting& setting);

  // The order in which requests are served.
  bool ComesBefore(const Request& other) const {
    return priority != other.priority ? priority < other.priority : id < other.id;
  }

  // Allocates what is sized by max_len, so that commits allocate nothing. Called when the request
  // is about to run, since many may wait. A second call does nothing.
  void Prepare();

  int num_output_tokens() const { return static_cast<int>(tokens.size()) - num_prompt_tokens; }
  int num_pending() const { return static_cast<int>(tokens.size()) - table.num_committed(); }
  bool finished() const { return finish_reason != FinishReason::kNone; }
  // Every prompt token but the first has a log-probability, from the logits of the row before it.
  bool scores_prompt() const {
    return params.prompt_logprobs.has_value() && num_scored_rows < num_prompt_tokens - 1;
  }
  // How many of the next num_rows rows have logits whose log-probabilities were not reported yet.
  int num_rows_to_score(int num_rows) const {
    if (!scores_prompt()) return 0;
    const int end = std::min(table.num_committed() + num_rows, num_prompt_tokens - 1);
    return std::max(0, end - num_scored_rows);
  }
  // The most draft tokens that could still be emitted, with room for the token after them. It also
  // limits the nodes of a tree, since each needs a slot within max_len.
  int num_draftable() const { return max_len - static_cast<int>(tokens.size()) - 1; }
  // The nodes of the draft, from the first, that are the prediction's.
  int num_predicted() const;
};

}  // namespace forerun

#endif  // FORERUN_CPP_SCHED_REQUEST_H_
