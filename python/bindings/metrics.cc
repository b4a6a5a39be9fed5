#include "forerun/metrics.h"

#include <pybind11/stl.h>

#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

void RegisterSpecDecodeCounters(py::module_& module) {
  using Counters = SpecDecodeCounters;
  py::class_<Counters>(module, "SpecDecodeCounters", "What was drafted and what was accepted.")
      .def_readonly("num_drafts", &Counters::num_drafts)
      .def_readonly("num_draft_tokens", &Counters::num_draft_tokens)
      .def_readonly("num_accepted_tokens", &Counters::num_accepted_tokens)
      .def_readonly("num_accepted_tokens_per_pos", &Counters::num_accepted_tokens_per_pos)
      .def_readonly("num_draft_tokens_per_pos", &Counters::num_draft_tokens_per_pos);
}

void RegisterRequestMetrics(py::module_& module) {
  using Metrics = RequestMetrics;
  py::class_<DraftStep>(module, "DraftStep", "One verified draft.")
      .def_readonly("num_draft_tokens", &DraftStep::num_draft_tokens)
      .def_readonly("num_accepted_tokens", &DraftStep::num_accepted_tokens);
  py::class_<Metrics>(module, "RequestMetrics", "Raw counters of one request.")
      .def_readonly("spec_decode", &Metrics::spec_decode)
      .def_readonly("draft_steps", &Metrics::draft_steps)
      .def_readonly("num_target_passes", &Metrics::num_target_passes)
      .def_readonly("num_generated_tokens", &Metrics::num_generated_tokens)
      .def_readonly("num_preemptions", &Metrics::num_preemptions)
      .def_readonly("num_accepted_prediction_tokens", &Metrics::num_accepted_prediction_tokens)
      .def_readonly("num_rejected_prediction_tokens", &Metrics::num_rejected_prediction_tokens)
      .def_readonly("is_corrupted", &Metrics::is_corrupted)
      .def_readonly("arrival_time", &Metrics::arrival_time)
      .def_readonly("queued_ts", &Metrics::queued_ts)
      .def_readonly("scheduled_ts", &Metrics::scheduled_ts)
      .def_readonly("first_token_ts", &Metrics::first_token_ts)
      .def_readonly("last_token_ts", &Metrics::last_token_ts)
      .def_readonly("finished_ts", &Metrics::finished_ts);
}

void RegisterHistograms(py::module_& module) {
  py::class_<Histogram>(module, "Histogram", "How many observed values fell into each range.")
      .def_property_readonly(
          "bounds",
          [](const Histogram& h) { return std::vector<double>(h.bounds.begin(), h.bounds.end()); },
          "Upper bounds of the ranges, inclusive, ascending.")
      .def_property_readonly(
          "counts",
          [](const Histogram& h) {
            const auto end = h.counts.begin() + std::ssize(h.bounds) + 1;
            return std::vector<std::int64_t>(h.counts.begin(), end);
          },
          "Of each range alone; the last has the values above every bound.")
      .def_readonly("count", &Histogram::count)
      .def_readonly("sum", &Histogram::sum);

  using All = EngineHistograms;
  py::class_<All>(module, "EngineHistograms", "Distributions over requests and steps.")
      .def_readonly("request_prompt_tokens", &All::request_prompt_tokens)
      .def_readonly("request_generation_tokens", &All::request_generation_tokens)
      .def_readonly("request_prefill_kv_computed_tokens", &All::request_prefill_kv_computed_tokens)
      .def_readonly("request_params_max_tokens", &All::request_params_max_tokens)
      .def_readonly("request_num_preemptions", &All::request_num_preemptions)
      .def_readonly("e2e_request_latency_seconds", &All::e2e_request_latency_seconds)
      .def_readonly("request_queue_time_seconds", &All::request_queue_time_seconds)
      .def_readonly("request_prefill_time_seconds", &All::request_prefill_time_seconds)
      .def_readonly("request_decode_time_seconds", &All::request_decode_time_seconds)
      .def_readonly("request_inference_time_seconds", &All::request_inference_time_seconds)
      .def_readonly("request_time_per_output_token_seconds",
                    &All::request_time_per_output_token_seconds)
      .def_readonly("time_to_first_token_seconds", &All::time_to_first_token_seconds)
      .def_readonly("inter_token_latency_seconds", &All::inter_token_latency_seconds)
      .def_readonly("iteration_tokens_total", &All::iteration_tokens_total);
}

void RegisterEngineMetrics(py::module_& module) {
  using Metrics = EngineMetrics;
  py::class_<Metrics>(module, "EngineMetrics", "Raw counters of an engine, as of the last step.")
      .def_readonly("spec_decode", &Metrics::spec_decode)
      .def_readonly("histograms", &Metrics::histograms)
      .def_readonly("num_steps", &Metrics::num_steps)
      .def_readonly("num_target_passes", &Metrics::num_target_passes)
      .def_readonly("num_prompt_tokens", &Metrics::num_prompt_tokens)
      .def_readonly("num_cached_prompt_tokens", &Metrics::num_cached_prompt_tokens)
      .def_readonly("num_prefix_cache_queries", &Metrics::num_prefix_cache_queries)
      .def_readonly("num_prefilled_tokens", &Metrics::num_prefilled_tokens)
      .def_readonly("num_prefilled_from_cache", &Metrics::num_prefilled_from_cache)
      .def_readonly("num_generated_tokens", &Metrics::num_generated_tokens)
      .def_readonly("num_preemptions", &Metrics::num_preemptions)
      .def_readonly("num_finished_requests", &Metrics::num_finished_requests)
      .def_readonly("num_finished_by_reason", &Metrics::num_finished_by_reason,
                    "Indexed by FinishReason.")
      .def_readonly("num_drafting_failures", &Metrics::num_drafting_failures)
      .def_readonly("first_drafting_failure", &Metrics::first_drafting_failure,
                    "What the first of them was; empty where there was none.")
      .def_readonly("draft_seconds", &Metrics::draft_seconds)
      .def_readonly("model_seconds", &Metrics::model_seconds)
      .def_readonly("verify_seconds", &Metrics::verify_seconds)
      .def_readonly("other_seconds", &Metrics::other_seconds)
      .def_readonly("num_waiting_requests", &Metrics::num_waiting_requests)
      .def_readonly("num_running_requests", &Metrics::num_running_requests)
      .def_readonly("num_free_blocks", &Metrics::num_free_blocks)
      .def_readonly("num_cached_blocks", &Metrics::num_cached_blocks)
      .def_readonly("num_held_blocks", &Metrics::num_held_blocks)
      .def_readonly("num_total_blocks", &Metrics::num_total_blocks);
}

}  // namespace

void RegisterMetrics(py::module_& module) {
  RegisterSpecDecodeCounters(module);
  RegisterRequestMetrics(module);
  RegisterHistograms(module);
  RegisterEngineMetrics(module);
}

}  // namespace forerun
