#include "cpp/engine/step_verification.h"

#include <utility>

#include "cpp/sched/request.h"

namespace forerun {

void StepVerification::Outcome::Clear() {
  verdict.tokens.clear();
  verdict.accepted_nodes.clear();
  error.clear();
  is_corrupted = false;
  prompt_logprobs = logprobs = {};
}

void StepVerification::BeginStep(bool keep_logprobs) {
  if (!keep_logprobs) return kept_logprobs_.clear();
  if (logprobs_.empty()) return;
  kept_logprobs_.reserve(kept_logprobs_.size() + 1);
  kept_logprobs_.push_back(std::exchange(logprobs_, {}));
}

void StepVerification::Run(const StepPlan& plan, ConstRows logits) {
  logprobs_.clear();
  int row = 0;
  for (std::size_t i = 0; i < plan.requests.size(); ++i) {
    const PlannedRequest& planned = plan.requests[i];
    outcomes_[i].Clear();
    VerifyRequest(planned, {logits.row(row), logits.cols, logits.stride}, outcomes_[i]);
    row += planned.num_scored + (planned.samples ? planned.num_draft + 1 : 0);
  }
}

// `logits` begin with the request's first row.
void StepVerification::VerifyRequest(const PlannedRequest& planned, RowLogits logits,
                                     Outcome& outcome) {
  const Request& request = *planned.request;
  outcome.prompt_logprobs.begin = logprobs_.size();
  outcome.prompt_logprobs.per_token =
      NumLogprobEntries(request.params.prompt_logprobs.value_or(0), vocab_size_);
  try {
    for (int i = 0; i < planned.num_scored; ++i) {
      AppendLogprobs(logits.row(i), request.tokens[request.num_scored_rows + i + 1],
                     *request.params.prompt_logprobs, scratch_, logprobs_);
      ++outcome.prompt_logprobs.num_tokens;
    }
    logits.data += planned.num_scored * logits.stride;
    if (planned.samples) {
      Verify(request.draft, logits, request.rule, request.num_output_tokens(), scratch_,
             outcome.verdict);
    }
  } catch (const NumericError& error) {
    outcome.error = error.what();
    outcome.is_corrupted = true;
  } catch (const RequestError& error) {
    outcome.error = error.what();
  }
  if (request.params.logprobs || request.params.logprob_token_ids) {
    ScoreVerdict(request.params, logits, outcome);
  }
}

void StepVerification::ScoreVerdict(const SamplingParams& params, RowLogits logits,
                                    Outcome& outcome) {
  const std::vector<TokenId>* others =
      params.logprob_token_ids ? &*params.logprob_token_ids : nullptr;
  const int num_top = params.logprobs.value_or(0);
  outcome.logprobs.begin = logprobs_.size();
  outcome.logprobs.per_token = others != nullptr ? 1 + static_cast<int>(others->size())
                                                 : NumLogprobEntries(num_top, vocab_size_);
  std::vector<TokenId>& tokens = outcome.verdict.tokens;
  int& num_scored = outcome.logprobs.num_tokens;
  try {
    for (; num_scored < std::ssize(tokens); ++num_scored) {
      const auto row = logits.row(outcome.verdict.row(num_scored));
      if (others != nullptr) {
        AppendLogprobsOf(row, tokens[num_scored], *others, scratch_, logprobs_);
      } else {
        AppendLogprobs(row, tokens[num_scored], num_top, scratch_, logprobs_);
      }
    }
  } catch (const NumericError& error) {
    outcome.error = error.what();
    outcome.is_corrupted = true;
    tokens.resize(num_scored);
  }
}

TokenLogprobs StepVerification::Logprobs(LogprobRange range, int num_tokens) const {
  const std::size_t num_entries = static_cast<std::size_t>(num_tokens) * range.per_token;
  return {std::span(logprobs_).subspan(range.begin, num_entries), range.per_token};
}

}  // namespace forerun
