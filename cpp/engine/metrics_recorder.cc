#include "cpp/engine/metrics_recorder.h"

#include <algorithm>
#include <chrono>
#include <span>

#include "cpp/draft/draft_limits.h"
#include "cpp/util/clock.h"

namespace forerun {
namespace {

// vLLM's bounds, so that its dashboards and readers fit.
constexpr double kRequestSeconds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
constexpr double kFirstTokenSeconds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                         0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                         20,    40,    80,   160,  640,  2560};
constexpr double kTokenSeconds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                    0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
constexpr double kStepTokens[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
constexpr double kPreemptions[] = {1, 2, 3, 4, 5, 10, 20};
constexpr double kRequestTokens[] = {1,   2,   5,   10,  20,  50,  1e2, 2e2, 5e2, 1e3,
                                     2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6,
                                     5e6, 1e7, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9};
static_assert(std::size(kRequestTokens) <= Histogram::kMaxBounds);

EngineHistograms MakeHistograms(int max_model_len) {
  const double* end = std::ranges::upper_bound(kRequestTokens, max_model_len);
  const std::span<const double> tokens(kRequestTokens, end);
  EngineHistograms all;
  for (Histogram* of_tokens :
       {&all.request_prompt_tokens, &all.request_generation_tokens,
        &all.request_prefill_kv_computed_tokens, &all.request_params_max_tokens}) {
    of_tokens->bounds = tokens;
  }
  for (Histogram* of_seconds : {&all.e2e_request_latency_seconds, &all.request_queue_time_seconds,
                                &all.request_prefill_time_seconds, &all.request_decode_time_seconds,
                                &all.request_inference_time_seconds}) {
    of_seconds->bounds = kRequestSeconds;
  }
  all.request_num_preemptions.bounds = kPreemptions;
  all.request_time_per_output_token_seconds.bounds = kTokenSeconds;
  all.inter_token_latency_seconds.bounds = kTokenSeconds;
  all.time_to_first_token_seconds.bounds = kFirstTokenSeconds;
  all.iteration_tokens_total.bounds = kStepTokens;
  return all;
}

void Observe(double value, Histogram& histogram) {
  const auto range = std::ranges::lower_bound(histogram.bounds, value);
  ++histogram.counts[range - histogram.bounds.begin()];
  ++histogram.count;
  histogram.sum += value;
}

// Makes room for drafts of that depth.
void Reserve(int num_positions, SpecDecodeCounters& counters) {
  if (std::ssize(counters.num_draft_tokens_per_pos) >= num_positions) return;
  counters.num_accepted_tokens_per_pos.resize(num_positions);
  counters.num_draft_tokens_per_pos.resize(num_positions);
}

}  // namespace

MetricsRecorder::MetricsRecorder(int max_model_len, int num_speculative_tokens,
                                 bool record_draft_steps)
    : num_speculative_tokens_(num_speculative_tokens), record_draft_steps_(record_draft_steps) {
  counters_.histograms = MakeHistograms(max_model_len);
  Reserve(num_speculative_tokens, counters_.spec_decode);
}

void MetricsRecorder::SetUp(Request& request) const {
  RequestMetrics& metrics = request.metrics;
  const int num_positions =
      std::max(num_speculative_tokens_, request.prediction ? kPredictedTokens : 0);
  Reserve(num_positions, metrics.spec_decode);
  metrics.arrival_time =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  metrics.queued_ts = Now();
}

void MetricsRecorder::Prepare(const StepPlan& plan, bool looks_up) {
  trace_.SetPlan(plan);
  for (const PlannedRequest& planned : plan.requests) {
    Request& request = *planned.request;
    std::vector<DraftStep>& steps = request.metrics.draft_steps;
    // Of a request with a prediction any draft may be longer than the method's.
    Reserve(request.draft.size(), counters_.spec_decode);
    if (record_draft_steps_ && steps.size() == steps.capacity())
      steps.reserve(2 * steps.size() + 8);
    if (request.metrics.scheduled_ts != 0) continue;
    request.metrics.scheduled_ts = Now();
    counters_.num_cached_prompt_tokens += request.num_cached_tokens;
    // A prompt with prompt_logprobs is computed whole, without a lookup.
    if (looks_up && !request.scores_prompt()) {
      counters_.num_prefix_cache_queries += request.num_prompt_tokens;
    }
  }
}

void MetricsRecorder::BeginCommits(double now) {
  commit_time_ = now;
  num_step_tokens_ = 0;
}

void MetricsRecorder::CountPrompt(Request& request, int num_computed_tokens) {
  request.num_computed_prompt_tokens += num_computed_tokens;
  counters_.num_prompt_tokens += num_computed_tokens;
  num_step_tokens_ += num_computed_tokens;
}

void MetricsRecorder::CountEmitted(Request& request, int num_emitted, int num_accepted) {
  trace_.CountCommit(num_accepted, num_emitted);
  if (num_emitted == 0) return;
  RequestMetrics& metrics = request.metrics;
  if (metrics.num_generated_tokens == 0) {
    metrics.first_token_ts = commit_time_;
    Observe(commit_time_ - metrics.queued_ts, counters_.histograms.time_to_first_token_seconds);
    counters_.num_prefilled_tokens += request.num_prompt_tokens;
    // num_cached_tokens does not tell: a request preempted before its first token may find more of
    // its prompt in the cache when it is admitted again.
    counters_.num_prefilled_from_cache +=
        std::max(0, request.num_prompt_tokens - request.num_computed_prompt_tokens);
  } else {
    Observe(commit_time_ - metrics.last_token_ts, counters_.histograms.inter_token_latency_seconds);
  }
  metrics.last_token_ts = commit_time_;
  ++metrics.num_target_passes;
  ++counters_.num_target_passes;
  metrics.num_generated_tokens += num_emitted;
  counters_.num_generated_tokens += num_emitted;
  num_step_tokens_ += num_emitted;
  if (request.draft.empty()) return;
  const int num_predicted = request.num_predicted();
  const int num_right = std::min(num_predicted, num_accepted);
  metrics.num_accepted_prediction_tokens += num_right;
  metrics.num_rejected_prediction_tokens += num_predicted - num_right;
  CountDraft(request, num_accepted, metrics.spec_decode);
  CountDraft(request, num_accepted, counters_.spec_decode);
  if (record_draft_steps_) metrics.draft_steps.push_back({request.draft.size(), num_accepted});
}

void MetricsRecorder::CountDraft(const Request& request, int num_accepted,
                                 SpecDecodeCounters& counters) const {
  ++counters.num_drafts;
  counters.num_draft_tokens += request.draft.size();
  counters.num_accepted_tokens += num_accepted;
  const int depth = request.draft.depth();
  for (int i = 0; i < depth; ++i) ++counters.num_draft_tokens_per_pos[i];
  for (int i = 0; i < num_accepted; ++i) ++counters.num_accepted_tokens_per_pos[i];
}

void MetricsRecorder::EndCommits() {
  Observe(num_step_tokens_, counters_.histograms.iteration_tokens_total);
}

void MetricsRecorder::EndStep() {
  trace_.EndStep();
  const double draft_seconds = trace_.seconds(StepPart::kDraft);
  const double model_seconds = trace_.seconds(StepPart::kForward);
  const double verify_seconds = trace_.seconds(StepPart::kVerify);
  ++counters_.num_steps;
  counters_.draft_seconds += draft_seconds;
  counters_.model_seconds += model_seconds;
  counters_.verify_seconds += verify_seconds;
  counters_.other_seconds += trace_.step_seconds() - draft_seconds - model_seconds - verify_seconds;
}

void MetricsRecorder::CountFinish(Request& request) {
  RequestMetrics& metrics = request.metrics;
  EngineHistograms& histograms = counters_.histograms;
  metrics.finished_ts = Now();
  ++counters_.num_finished_requests;
  ++counters_.num_finished_by_reason[static_cast<std::size_t>(request.finish_reason)];
  Observe(request.num_prompt_tokens, histograms.request_prompt_tokens);
  Observe(static_cast<double>(metrics.num_generated_tokens), histograms.request_generation_tokens);
  Observe(request.num_prompt_tokens - std::max(0, request.num_cached_tokens),
          histograms.request_prefill_kv_computed_tokens);
  Observe(request.params.max_tokens, histograms.request_params_max_tokens);
  Observe(static_cast<double>(metrics.num_preemptions), histograms.request_num_preemptions);
  Observe(metrics.finished_ts - metrics.queued_ts, histograms.e2e_request_latency_seconds);
  if (metrics.scheduled_ts == 0) return;
  Observe(metrics.scheduled_ts - metrics.queued_ts, histograms.request_queue_time_seconds);
  if (metrics.num_generated_tokens == 0) return;
  const double decoding = metrics.last_token_ts - metrics.first_token_ts;
  Observe(metrics.first_token_ts - metrics.scheduled_ts, histograms.request_prefill_time_seconds);
  Observe(decoding, histograms.request_decode_time_seconds);
  Observe(metrics.last_token_ts - metrics.scheduled_ts, histograms.request_inference_time_seconds);
  Observe(
      decoding / static_cast<double>(std::max<std::int64_t>(metrics.num_generated_tokens - 1, 1)),
      histograms.request_time_per_output_token_seconds);
}

}  // namespace forerun
