#include "forerun/options.h"

#include <pybind11/stl.h>

#include "forerun/sampling_params.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

void RegisterSpeculativeOptions(py::module_& module) {
  py::enum_<SpeculativeMethod>(module, "SpeculativeMethod", "How drafts are made.")
      .value("NONE", SpeculativeMethod::kNone)
      .value("NGRAM", SpeculativeMethod::kNgram)
      .value("SUFFIX", SpeculativeMethod::kSuffix)
      .value("GRAMMAR", SpeculativeMethod::kGrammar)
      .value("DRAFT_MODEL", SpeculativeMethod::kDraftModel)
      .value("EAGLE", SpeculativeMethod::kEagle)
      .value("EAGLE3", SpeculativeMethod::kEagle3)
      .value("MTP", SpeculativeMethod::kMtp)
      .value("MLP_SPECULATOR", SpeculativeMethod::kMlpSpeculator)
      .value("MEDUSA", SpeculativeMethod::kMedusa);

  py::enum_<AcceptanceMethod>(module, "AcceptanceMethod", "When a guess is accepted.")
      .value("COUPLED", AcceptanceMethod::kCoupled)
      .value("REJECTION", AcceptanceMethod::kRejection)
      .value("BLOCK", AcceptanceMethod::kBlock);
  py::enum_<DraftSampleMethod>(module, "DraftSampleMethod", "How a drafter picks its guesses.")
      .value("GREEDY", DraftSampleMethod::kGreedy)
      .value("PROBABILISTIC", DraftSampleMethod::kProbabilistic);

  py::class_<VocabularyBridge>(module, "VocabularyBridge",
                               "Which tokens of a drafter are which of its target's.")
      .def(py::init<std::vector<TokenId>, std::vector<TokenId>>(), py::arg("draft_ids"),
           py::arg("shared_ids"),
           "draft_ids: for each of the target's tokens, what the drafter reads; shared_ids: the "
           "target's tokens that both have, ascending.")
      .def_readonly("draft_ids", &VocabularyBridge::draft_ids)
      .def_readonly("shared_ids", &VocabularyBridge::shared_ids);

  using Options = SpeculativeOptions;
  py::class_<Options>(module, "SpeculativeOptions", "How the engine drafts.")
      .def(py::init<>(), "All defaults: no speculation.")
      .def_readwrite("method", &Options::method)
      .def_readwrite("num_speculative_tokens", &Options::num_speculative_tokens)
      .def_readwrite("acceptance_method", &Options::acceptance_method)
      .def_readwrite("draft_sample_method", &Options::draft_sample_method)
      .def_readwrite("prompt_lookup_max", &Options::prompt_lookup_max)
      .def_readwrite("prompt_lookup_min", &Options::prompt_lookup_min)
      .def_readwrite("suffix_max_tree_depth", &Options::suffix_max_tree_depth)
      .def_readwrite("suffix_max_cached_requests", &Options::suffix_max_cached_requests)
      .def_readwrite("suffix_max_spec_factor", &Options::suffix_max_spec_factor)
      .def_readwrite("suffix_min_token_prob", &Options::suffix_min_token_prob)
      .def_readwrite("suffix_use_tree", &Options::suffix_use_tree)
      .def_readwrite("model", &Options::model)
      .def_readwrite("vocabulary_bridge", &Options::vocabulary_bridge)
      .def_readwrite("draft_tree_width", &Options::draft_tree_width)
      .def_readwrite("draft_tree_depth", &Options::draft_tree_depth)
      .def_readwrite("speculative_token_tree", &Options::speculative_token_tree)
      .def_readwrite("hybrid", &Options::hybrid)
      .def_readwrite("aux_hidden_state_layer_ids", &Options::aux_hidden_state_layer_ids)
      .def_readwrite("norm_before_residual", &Options::norm_before_residual)
      .def_readwrite("norm_output", &Options::norm_output)
      .def_readwrite("norm_target_state", &Options::norm_target_state)
      .def_readwrite("adaptive", &Options::adaptive);
}

void RegisterEngineOptions(py::module_& module) {
  py::enum_<SchedulingPolicy>(module, "SchedulingPolicy", "Who runs first when not all can.")
      .value("FCFS", SchedulingPolicy::kFcfs)
      .value("PRIORITY", SchedulingPolicy::kPriority);
  using Options = EngineOptions;
  py::class_<Options>(module, "EngineOptions", "How an engine is set up.")
      .def(py::init<>(), "All defaults; `model` must be set.")
      .def_readwrite("model", &Options::model)
      .def_readwrite("eos_token_ids", &Options::eos_token_ids)
      .def_readwrite("dtype", &Options::dtype)
      .def_readwrite("max_model_len", &Options::max_model_len)
      .def_readwrite("max_num_seqs", &Options::max_num_seqs)
      .def_readwrite("max_num_batched_tokens", &Options::max_num_batched_tokens)
      .def_readwrite("block_size", &Options::block_size)
      .def_readwrite("enable_prefix_caching", &Options::enable_prefix_caching)
      .def_readwrite("scheduling_policy", &Options::scheduling_policy)
      .def_readwrite("kv_cache_memory_bytes", &Options::kv_cache_memory_bytes)
      .def_readwrite("seed", &Options::seed)
      .def_readwrite("num_threads", &Options::num_threads)
      .def_readwrite("speculative", &Options::speculative)
      .def_readwrite("record_draft_steps", &Options::record_draft_steps)
      .def_readwrite("check_invariants", &Options::check_invariants);
  module.def(
      "check_engine_options", &CheckEngineOptions, py::arg("options"),
      "Raises InvalidArgumentError that names the first wrong field; the model is not read.");
}

void RegisterSamplingParams(py::module_& module) {
  py::class_<SamplingParams> params(module, "SamplingParams", "What a request asks for.");
  params.def(py::init<>(), "All defaults.");
  VisitSamplingFields([&](const char* name, auto field) { params.def_readwrite(name, field); });
  module.def("check_sampling_params", &CheckSamplingParams, py::arg("params"),
             "Raises InvalidArgumentError that names the first wrong field.");
}

}  // namespace

void RegisterOptions(py::module_& module) {
  RegisterSpeculativeOptions(module);
  RegisterEngineOptions(module);
  RegisterSamplingParams(module);
}

}  // namespace forerun
