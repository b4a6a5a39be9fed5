#include "cpp/engine/step_verification.h"

#include <utility>

#include "cpp/sched/request.h"

namespace forerun {
namespace {

SampleRequest MakeSampleRequest(const PlannedRequest& planned) {
  const Request& request = *planned.request;
  const SamplingParams& params = request.params;
  SampleRequest wanted = {.draft = &request.draft,
                          .rule = &request.rule,
                          .first_output_index = request.num_output_tokens(),
                          .samples = planned.samples,
                          .prompt_logprobs = params.prompt_logprobs,
                          .logprobs = params.logprobs};
  if (planned.num_scored > 0) {
    // A row predicts the token after its own.
    wanted.scored_tokens =
        std::span(request.tokens).subspan(request.num_scored_rows + 1, planned.num_scored);
  }
  if (params.logprob_token_ids) wanted.logprob_token_ids = &*params.logprob_token_ids;
  return wanted;
}

}  // namespace

StepVerification::StepVerification(std::unique_ptr<Verifier> verifier, int max_num_seqs)
    : verifier_(std::move(verifier)) {
  requests_.reserve(max_num_seqs);
}

void StepVerification::BeginStep(bool keep_logprobs) {
  if (!keep_logprobs) return kept_logprobs_.clear();
  if (verifier_->logprobs().empty()) return;
  kept_logprobs_.reserve(kept_logprobs_.size() + 1);
  kept_logprobs_.push_back(std::exchange(verifier_->logprobs(), {}));
}

void StepVerification::Run(const StepPlan& plan, ConstRows logits) {
  requests_.clear();
  for (const PlannedRequest& planned : plan.requests) {
    requests_.push_back(MakeSampleRequest(planned));
  }
  verifier_->Begin(logits, requests_);
  outcomes_ = verifier_->Finish();
}

TokenLogprobs StepVerification::Logprobs(LogprobRange range, int num_tokens) const {
  const std::size_t num_entries = static_cast<std::size_t>(num_tokens) * range.per_token;
  return {std::span<const TokenLogprob>(verifier_->logprobs()).subspan(range.begin, num_entries),
          range.per_token};
}

}  // namespace forerun
