// Chains on a device: level after level is started without a wait.
#include <algorithm>

#include "cpp/draft/neural/autoregressive.h"

namespace forerun {

bool AutoregressiveDrafter::IsDeferred() const {
  const bool is_chain = setting_.width == 1 && setting_.shape.empty();
  if (setting_.memory == &HostMemory() || setting_.recorder != nullptr || !is_chain) return false;
  return std::ranges::all_of(std::span(jobs_).first(num_jobs_), [&](const Job& job) {
    const DraftTree* const prior = job.request->prior_draft;
    // Under the coupled rule the host draws, with the target's noise.
    const bool can_be_sampled = setting_.draws_on_device &&
                                job.request->rule.acceptance_method != AcceptanceMethod::kCoupled;
    return (!job.is_sampled || can_be_sampled) && (prior == nullptr || prior->empty());
  });
}

// Starts to find the tokens of a level, one for each row.
void AutoregressiveDrafter::DeferLevel(int depth, ConstRows logits) {
  draws_.assign(logits.rows, {});
  bool is_drawn = false;
  for (const Job& job : std::span(jobs_).first(num_jobs_)) {
    const int first = static_cast<int>(num_deferred_) + job.first_output;
    level_outputs_.push_back(job.num_rows > 0 ? first : -1);
    if (!job.is_sampled || job.num_rows == 0) continue;
    draws_[job.first_output] = {&job.request->rule, job.request->first_output_index, depth,
                                WeightsRow(job) + depth};
    is_drawn = true;
  }
  top_tokens_ = verifier_->StartTop(logits, /*count=*/1, num_deferred_);
  if (is_drawn) {
    drawn_weights_ =
        verifier_->StartDraws(logits, draws_, device_ids_.as<TokenId>(), num_deferred_);
  }
  num_deferred_ += static_cast<std::size_t>(logits.rows);
}

// Of every job whose draft may be that long. False: none has.
bool AutoregressiveDrafter::RunDeferredLevel(int depth) {
  ClearBatch();
  for (Job& job : std::span(jobs_).first(num_jobs_)) {
    const int before = job.first_output;
    job.num_rows = depth < job.request->max_tokens ? 1 : 0;
    if (job.num_rows == 0) continue;
    job.first_output = static_cast<int>(tokens_.size());
    sequences_.push_back(
        {job.first_output, 1, num_known(job) + depth - 1, job.request->table->blocks()});
    logits_rows_.push_back(job.first_output);
    tokens_.push_back(0);
    sources_.push_back(before);
  }
  if (tokens_.empty()) return false;
  ++report_.num_forwards;
  const DeviceTokens device_tokens = {top_tokens_, device_ids_.as<TokenId>()};
  DeferLevel(depth, network_->Forward(
                        {tokens_, sequences_, logits_rows_, sources_, depth, device_tokens}));
  return true;
}

bool AutoregressiveDrafter::GrowDrawn(Job& job, int depth) {
  const TopToken& drawn = candidates_[job.first_output];
  if (drawn.token < 0) return false;
  const std::int64_t first = std::int64_t{WeightsRow(job)} * setting_.vocab_size;
  job.sampled.AppendDrawn(TargetId(drawn.token), drawn.probability, drawn_weights_ + first,
                          setting_.vocab_size);
  job.tree.Add(job.sampled.tokens.back(), depth - 1, 1.0f);
  return true;
}

// Waits for all levels, and makes of them what one level after the other would have become.
void AutoregressiveDrafter::GrowDeferred() {
  candidates_.resize(num_deferred_);
  verifier_->FinishTop(candidates_);
  num_ranked_ = 1;
  for (std::size_t i = 0; i < level_outputs_.size(); ++i) {
    Job& job = jobs_[i % num_jobs_];
    const int depth = static_cast<int>(i) / num_jobs_;
    const bool is_over = depth > 0 && (job.is_over || job.tree.open().empty());
    if (level_outputs_[i] < 0 || is_over) continue;
    job.first_output = level_outputs_[i];
    job.num_rows = 1;
    GrowJob(job, depth, ConstRows());
  }
}

}  // namespace forerun
