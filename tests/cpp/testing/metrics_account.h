// The values that an engine's counters must have, added up from its updates.
#ifndef FORERUN_TESTS_CPP_TESTING_METRICS_ACCOUNT_H_
#define FORERUN_TESTS_CPP_TESTING_METRICS_ACCOUNT_H_

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <vector>

#include "forerun/engine.h"

namespace forerun::testing {

inline std::int64_t Sum(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

// Every histogram, counted again.
inline void ExpectValues(const Histogram& histogram, const std::vector<double>& values) {
  EXPECT_EQ(histogram.count, std::ssize(values));
  EXPECT_DOUBLE_EQ(histogram.sum, std::accumulate(values.begin(), values.end(), 0.0));
  std::vector<std::int64_t> counts(histogram.bounds.size() + 1);
  for (double value : values) {
    std::size_t range = 0;
    while (range < histogram.bounds.size() && histogram.bounds[range] < value) ++range;
    ++counts[range];
  }
  EXPECT_EQ(std::vector(histogram.counts.begin(), histogram.counts.begin() + std::ssize(counts)),
            counts);
}

class MetricsAccount {
 public:
  void Submitted(RequestId id, std::size_t num_prompt_tokens, int max_tokens) {
    num_prompt_tokens_[id] = static_cast<double>(num_prompt_tokens);
    max_tokens_.push_back(max_tokens);
  }

  void Add(const RequestUpdate& update) {
    num_emitted_[update.id] += std::ssize(update.new_tokens);
    num_emitting_updates_ += !update.new_tokens.empty();
    if (update.finish_reason != FinishReason::kNone) Finished(update);
  }

  // Once no request is unfinished.
  void ExpectEqual(const EngineMetrics& engine) const {
    EXPECT_EQ(engine.num_finished_requests, std::ssize(prompts_));
    EXPECT_EQ(engine.num_finished_by_reason, by_reason_);
    EXPECT_EQ(engine.num_generated_tokens, num_generated_);
    EXPECT_EQ(engine.num_target_passes, num_emitting_updates_);
    EXPECT_EQ(engine.num_preemptions, num_preemptions_);
    EXPECT_EQ(engine.num_prefilled_tokens, num_prefilled_);
    EXPECT_EQ(engine.num_cached_prompt_tokens, num_cached_);
    EXPECT_LE(engine.num_cached_prompt_tokens, engine.num_prefix_cache_queries);
    EXPECT_GE(engine.num_prompt_tokens + engine.num_prefilled_from_cache,
              engine.num_prefilled_tokens);
    ExpectDrafts(engine.spec_decode);

    const EngineHistograms& all = engine.histograms;
    ExpectValues(all.request_prompt_tokens, prompts_);
    ExpectValues(all.request_generation_tokens, generated_);
    ExpectValues(all.request_params_max_tokens, max_tokens_);
    ExpectValues(all.request_num_preemptions, preemptions_);
    ExpectValues(all.e2e_request_latency_seconds, whole_seconds_);
    ExpectValues(all.request_queue_time_seconds, queue_seconds_);
    ExpectValues(all.request_prefill_time_seconds, prefill_seconds_);
    ExpectValues(all.request_decode_time_seconds, decode_seconds_);
    EXPECT_EQ(all.request_prefill_kv_computed_tokens.count, std::ssize(prompts_));
    EXPECT_EQ(all.request_inference_time_seconds.count, std::ssize(decode_seconds_));
    EXPECT_EQ(all.request_time_per_output_token_seconds.count, std::ssize(decode_seconds_));
    EXPECT_EQ(all.time_to_first_token_seconds.count, std::ssize(decode_seconds_));
    EXPECT_EQ(all.inter_token_latency_seconds.count,
              num_emitting_updates_ - std::ssize(decode_seconds_));
    EXPECT_EQ(all.iteration_tokens_total.sum, engine.num_prompt_tokens + num_generated_);
  }

 private:
  void Finished(const RequestUpdate& update) {
    const RequestMetrics& request = *update.metrics;
    EXPECT_EQ(request.num_generated_tokens, num_emitted_[update.id]);
    ++by_reason_[static_cast<std::size_t>(update.finish_reason)];
    prompts_.push_back(num_prompt_tokens_.at(update.id));
    generated_.push_back(static_cast<double>(request.num_generated_tokens));
    preemptions_.push_back(static_cast<double>(request.num_preemptions));
    num_generated_ += request.num_generated_tokens;
    num_preemptions_ += request.num_preemptions;
    num_cached_ += update.num_cached_tokens;

    EXPECT_GT(request.arrival_time, 0);
    EXPECT_GE(request.finished_ts, request.queued_ts);
    whole_seconds_.push_back(request.finished_ts - request.queued_ts);
    if (request.scheduled_ts != 0) {
      EXPECT_GE(request.scheduled_ts, request.queued_ts);
      queue_seconds_.push_back(request.scheduled_ts - request.queued_ts);
    }
    EXPECT_EQ(request.first_token_ts != 0, request.num_generated_tokens > 0);
    if (request.num_generated_tokens > 0) {
      num_prefilled_ += static_cast<std::int64_t>(prompts_.back());
      EXPECT_GE(request.first_token_ts, request.scheduled_ts);
      EXPECT_GE(request.last_token_ts, request.first_token_ts);
      EXPECT_GE(request.finished_ts, request.last_token_ts);
      prefill_seconds_.push_back(request.first_token_ts - request.scheduled_ts);
      decode_seconds_.push_back(request.last_token_ts - request.first_token_ts);
    }
    AddDrafts(request);
  }

  void AddDrafts(const RequestMetrics& request) {
    const SpecDecodeCounters& own = request.spec_decode;
    const std::size_t num_positions = own.num_accepted_tokens_per_pos.size();
    EXPECT_EQ(Sum(own.num_accepted_tokens_per_pos), own.num_accepted_tokens);
    EXPECT_LE(Sum(own.num_draft_tokens_per_pos), own.num_draft_tokens);
    std::int64_t drafted = own.num_drafts, accepted = own.num_drafts;
    for (std::size_t i = 0; i < num_positions; ++i) {
      EXPECT_LE(own.num_draft_tokens_per_pos[i], drafted);
      EXPECT_LE(own.num_accepted_tokens_per_pos[i], accepted);
      drafted = own.num_draft_tokens_per_pos[i];
      accepted = own.num_accepted_tokens_per_pos[i];
      EXPECT_LE(accepted, drafted);
    }
    if (num_positions > 0) {
      // Every draft has a first token.
      EXPECT_EQ(own.num_draft_tokens_per_pos[0], own.num_drafts);
    }
    drafts_.num_drafts += own.num_drafts;
    drafts_.num_draft_tokens += own.num_draft_tokens;
    drafts_.num_accepted_tokens += own.num_accepted_tokens;
    drafts_.num_accepted_tokens_per_pos.resize(num_positions);
    drafts_.num_draft_tokens_per_pos.resize(num_positions);
    for (std::size_t i = 0; i < num_positions; ++i) {
      drafts_.num_accepted_tokens_per_pos[i] += own.num_accepted_tokens_per_pos[i];
      drafts_.num_draft_tokens_per_pos[i] += own.num_draft_tokens_per_pos[i];
    }
    if (request.draft_steps.empty()) return;
    EXPECT_EQ(std::ssize(request.draft_steps), own.num_drafts);
    std::int64_t num_drafted = 0, num_accepted = 0;
    for (const DraftStep& step : request.draft_steps) {
      num_drafted += step.num_draft_tokens;
      num_accepted += step.num_accepted_tokens;
    }
    EXPECT_EQ(num_drafted, own.num_draft_tokens);
    EXPECT_EQ(num_accepted, own.num_accepted_tokens);
  }

  void ExpectDrafts(const SpecDecodeCounters& engine) const {
    EXPECT_EQ(engine.num_drafts, drafts_.num_drafts);
    EXPECT_EQ(engine.num_draft_tokens, drafts_.num_draft_tokens);
    EXPECT_EQ(engine.num_accepted_tokens, drafts_.num_accepted_tokens);
    EXPECT_EQ(engine.num_accepted_tokens_per_pos, drafts_.num_accepted_tokens_per_pos);
    EXPECT_EQ(engine.num_draft_tokens_per_pos, drafts_.num_draft_tokens_per_pos);
  }

  std::map<RequestId, double> num_prompt_tokens_;
  std::map<RequestId, std::int64_t> num_emitted_;
  std::int64_t num_emitting_updates_ = 0;
  decltype(EngineMetrics::num_finished_by_reason) by_reason_ = {};
  std::int64_t num_generated_ = 0, num_preemptions_ = 0, num_prefilled_ = 0, num_cached_ = 0;
  SpecDecodeCounters drafts_;
  std::vector<double> prompts_, generated_, max_tokens_, preemptions_;
  std::vector<double> whole_seconds_, queue_seconds_, prefill_seconds_, decode_seconds_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_METRICS_ACCOUNT_H_
