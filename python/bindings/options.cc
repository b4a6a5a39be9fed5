#include "forerun/options.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>

#include "forerun/sampling_params.h"
#include "python/bindings/register.h"

namespace forerun {
namespace {

namespace py = pybind11;

void RegisterTextOptions(py::module_& module) {
  py::class_<NgramOptions>(module, "NgramOptions", "Drafts what followed the last tokens before.")
      .def(py::init<>(), "All defaults.")
      .def_readwrite("prompt_lookup_max", &NgramOptions::prompt_lookup_max)
      .def_readwrite("prompt_lookup_min", &NgramOptions::prompt_lookup_min);
  py::class_<SuffixOptions>(module, "SuffixOptions",
                            "Drafts the most probable continuation in an index of past text.")
      .def(py::init<>(), "All defaults.")
      .def_readwrite("max_tree_depth", &SuffixOptions::max_tree_depth)
      .def_readwrite("max_cached_requests", &SuffixOptions::max_cached_requests)
      .def_readwrite("max_spec_factor", &SuffixOptions::max_spec_factor)
      .def_readwrite("min_token_prob", &SuffixOptions::min_token_prob)
      .def_readwrite("use_tree", &SuffixOptions::use_tree);
  py::class_<GrammarOptions>(module, "GrammarOptions", "Drafts what a constraint forces.")
      .def(py::init<>(), "There is nothing to set.");
}

void RegisterModelOptions(py::module_& module) {
  py::enum_<ModelMethod>(module, "ModelMethod", "Formats of drafters that are models.")
      .value("DRAFT_MODEL", ModelMethod::kDraftModel)
      .value("EAGLE", ModelMethod::kEagle)
      .value("EAGLE3", ModelMethod::kEagle3)
      .value("MTP", ModelMethod::kMtp)
      .value("MLP_SPECULATOR", ModelMethod::kMlpSpeculator)
      .value("MEDUSA", ModelMethod::kMedusa);
  py::enum_<DraftSampleMethod>(module, "DraftSampleMethod", "How a model picks its draft tokens.")
      .value("GREEDY", DraftSampleMethod::kGreedy)
      .value("PROBABILISTIC", DraftSampleMethod::kProbabilistic);

  py::class_<VocabularyBridge>(module, "VocabularyBridge",
                               "Maps between the vocabularies of a draft model and its target.")
      .def(py::init<std::vector<TokenId>, std::vector<TokenId>>(), py::arg("draft_ids"),
           py::arg("shared_ids"),
           "draft_ids: for each of the target's tokens, the drafter's id; shared_ids: the target's "
           "ids of tokens that both have, ascending.")
      .def_readonly("draft_ids", &VocabularyBridge::draft_ids)
      .def_readonly("shared_ids", &VocabularyBridge::shared_ids);

  using Formats = QuantizationOptions;
  using Format = std::optional<std::string>;
  py::class_<Formats>(module, "QuantizationOptions",
                      "\"int8\", \"int4\" or \"none\" (floats) for matrices, by what they are for.")
      .def(py::init<Format, Format, Format, Format>(), py::arg("linear") = py::none(),
           py::arg("embedding") = py::none(), py::arg("head") = py::none(),
           py::arg("method") = py::none(),
           "None: as the checkpoint has them. `method`: what the checkpoint must be.")
      .def_readonly("linear", &Formats::linear)
      .def_readonly("embedding", &Formats::embedding)
      .def_readonly("head", &Formats::head)
      .def_readonly("method", &Formats::method);

  using Options = ModelDrafterOptions;
  py::class_<Options>(module, "ModelDrafterOptions", "Drafts with a model.")
      .def(py::init<>(), "All defaults: the target's own layers for multi-token prediction.")
      .def_readwrite("model", &Options::model)
      .def_readwrite("method", &Options::method)
      .def_readwrite("draft_sample_method", &Options::draft_sample_method)
      .def_readwrite("vocabulary_bridge", &Options::vocabulary_bridge)
      .def_readwrite("quantization", &Options::quantization)
      .def_readwrite("draft_vocab_size", &Options::draft_vocab_size)
      .def_readwrite("draft_tree_width", &Options::draft_tree_width)
      .def_readwrite("draft_tree_depth", &Options::draft_tree_depth)
      .def_readwrite("speculative_token_tree", &Options::speculative_token_tree)
      .def_readwrite("aux_hidden_state_layer_ids", &Options::aux_hidden_state_layer_ids)
      .def_readwrite("norm_before_residual", &Options::norm_before_residual)
      .def_readwrite("norm_output", &Options::norm_output)
      .def_readwrite("norm_target_state", &Options::norm_target_state);
  py::class_<HybridOptions>(module, "HybridOptions", "Drafts with a model and with an index.")
      .def(py::init<>(), "All defaults.")
      .def_readwrite("model", &HybridOptions::model)
      .def_readwrite("suffix", &HybridOptions::suffix);
}

void RegisterSpeculativeOptions(py::module_& module) {
  RegisterTextOptions(module);
  RegisterModelOptions(module);
  py::enum_<AcceptanceMethod>(module, "AcceptanceMethod", "When a draft token is accepted.")
      .value("COUPLED", AcceptanceMethod::kCoupled)
      .value("REJECTION", AcceptanceMethod::kRejection)
      .value("BLOCK", AcceptanceMethod::kBlock);
  using Options = SpeculativeOptions;
  py::class_<Options>(module, "SpeculativeOptions", "How the engine drafts.")
      .def(py::init<>(), "All defaults: no speculation.")
      .def_property(
          "method", [](const Options& options) { return options.method; },
          [](Options& options, SpeculativeMethod method) { options.method = std::move(method); },
          "The method's options, as a copy; None: no speculation.")
      .def_readwrite("num_speculative_tokens", &Options::num_speculative_tokens)
      .def_readwrite("acceptance_method", &Options::acceptance_method)
      .def_readwrite("adaptive", &Options::adaptive);
  module.def("check_speculative_options", &CheckSpeculativeOptions, py::arg("options"),
             "Raises InvalidArgumentError that names the first wrong field; no model is read.");
}

void RegisterEngineOptions(py::module_& module) {
  py::enum_<SchedulingPolicy>(module, "SchedulingPolicy",
                              "Which requests run first when not all can.")
      .value("FCFS", SchedulingPolicy::kFcfs)
      .value("PRIORITY", SchedulingPolicy::kPriority);
  py::class_<WeightCacheOptions>(module, "WeightCacheOptions",
                                 "Where packed weights are kept for later starts.")
      .def(py::init<std::string, std::int64_t>(), py::arg("directory"), py::arg("max_bytes"),
           "An empty directory, or 0 bytes: nothing is kept.")
      .def_readonly("directory", &WeightCacheOptions::directory)
      .def_readonly("max_bytes", &WeightCacheOptions::max_bytes);
  using Options = EngineOptions;
  py::class_<Options>(module, "EngineOptions", "How an engine is set up.")
      .def(py::init<>(), "All defaults; `model` must be set.")
      .def_readwrite("model", &Options::model)
      .def_readwrite("device", &Options::device)
      .def_readwrite("dtype", &Options::dtype)
      .def_readwrite("quantization", &Options::quantization)
      .def_readwrite("kv_cache_dtype", &Options::kv_cache_dtype)
      .def_readwrite("max_model_len", &Options::max_model_len)
      .def_readwrite("max_num_seqs", &Options::max_num_seqs)
      .def_readwrite("max_waiting_requests", &Options::max_waiting_requests)
      .def_readwrite("max_num_batched_tokens", &Options::max_num_batched_tokens)
      .def_readwrite("block_size", &Options::block_size)
      .def_readwrite("enable_prefix_caching", &Options::enable_prefix_caching)
      .def_readwrite("scheduling_policy", &Options::scheduling_policy)
      .def_readwrite("kv_cache_memory_bytes", &Options::kv_cache_memory_bytes)
      .def_readwrite("gpu_memory_utilization", &Options::gpu_memory_utilization)
      .def_readwrite("enforce_eager", &Options::enforce_eager)
      .def_readwrite("seed", &Options::seed)
      .def_readwrite("num_threads", &Options::num_threads)
      .def_readwrite("weight_cache", &Options::weight_cache)
      .def_readwrite("speculative", &Options::speculative)
      .def_readwrite("record_draft_steps", &Options::record_draft_steps)
      .def_readwrite("check_invariants", &Options::check_invariants)
      .def_readwrite("verify_device", &Options::verify_device);
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
