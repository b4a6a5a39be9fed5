#include "forerun/metrics.h"

#include <pybind11/stl.h>

#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

void RegisterRequestMetrics(py::module_& module) {
  using Metrics = RequestMetrics;
  py::class_<Metrics>(module, "RequestMetrics", "Raw counters of one request.")
      .def_readonly("spec_decode", &Metrics::spec_decode)
      .def_readonly("num_target_passes", &Metrics::num_target_passes)
      .def_readonly("num_generated_tokens", &Metrics::num_generated_tokens)
      .def_readonly("num_preemptions", &Metrics::num_preemptions)
      .def_readonly("queue_seconds", &Metrics::queue_seconds)
      .def_readonly("first_token_seconds", &Metrics::first_token_seconds)
      .def_readonly("total_seconds", &Metrics::total_seconds);
}

void RegisterEngineMetrics(py::module_& module) {
  using Metrics = EngineMetrics;
  py::class_<Metrics>(module, "EngineMetrics", "Raw counters of an engine, as of the last step.")
      .def_readonly("spec_decode", &Metrics::spec_decode)
      .def_readonly("num_steps", &Metrics::num_steps)
      .def_readonly("num_target_passes", &Metrics::num_target_passes)
      .def_readonly("num_prompt_tokens", &Metrics::num_prompt_tokens)
      .def_readonly("num_cached_prompt_tokens", &Metrics::num_cached_prompt_tokens)
      .def_readonly("num_generated_tokens", &Metrics::num_generated_tokens)
      .def_readonly("num_preemptions", &Metrics::num_preemptions)
      .def_readonly("num_finished_requests", &Metrics::num_finished_requests)
      .def_readonly("num_drafting_failures", &Metrics::num_drafting_failures)
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
  using Counters = SpecDecodeCounters;
  py::class_<Counters>(module, "SpecDecodeCounters", "What was drafted and what was accepted.")
      .def_readonly("num_drafts", &Counters::num_drafts)
      .def_readonly("num_draft_tokens", &Counters::num_draft_tokens)
      .def_readonly("num_accepted_tokens", &Counters::num_accepted_tokens)
      .def_readonly("num_accepted_tokens_per_pos", &Counters::num_accepted_tokens_per_pos);
  RegisterRequestMetrics(module);
  RegisterEngineMetrics(module);
}

}  // namespace forerun
