#include "forerun/options.h"

#include <cmath>

#include "cpp/draft/draft_limits.h"
#include "cpp/draft/neural/tree_shape.h"
#include "cpp/kv/layout.h"
#include "cpp/model/model_files.h"
#include "cpp/model/weights.h"
#include "cpp/util/thread_team.h"
#include "forerun/error.h"

namespace forerun {
namespace {

template <typename T>
std::string ToText(T value) {
  return std::to_string(value);
}

void CheckAtLeast(const char* field, std::int64_t value, std::int64_t least) {
  if (value < least) {
    throw InvalidArgument(field, ToText(value), "an integer of at least " + ToText(least));
  }
}

// `reason` follows "an integer of at most N".
void CheckAtMost(const char* field, std::int64_t value, std::int64_t most, const char* reason) {
  if (value > most) {
    throw InvalidArgument(field, ToText(value),
                          "an integer of at most " + ToText(most) + ": " + reason);
  }
}

constexpr const char* kDraftReason = "longer drafts cost more than they can save";
constexpr int kMaxMatchTokens = 1024;
constexpr const char* kMatchReason =
    "longer matches predict no better, and are counted token by token";
constexpr int kMaxTreeWidth = 64;

void Check(const NgramOptions& options) {
  CheckAtLeast("prompt_lookup_min", options.prompt_lookup_min, 1);
  if (options.prompt_lookup_max < options.prompt_lookup_min) {
    throw InvalidArgument("prompt_lookup_max", ToText(options.prompt_lookup_max),
                          "at least prompt_lookup_min, " + ToText(options.prompt_lookup_min));
  }
  CheckAtMost("prompt_lookup_max", options.prompt_lookup_max, kMaxMatchTokens, kMatchReason);
}

void Check(const SuffixOptions& options) {
  CheckAtLeast("suffix_decoding_max_tree_depth", options.max_tree_depth, 2);
  CheckAtMost("suffix_decoding_max_tree_depth", options.max_tree_depth, kMaxMatchTokens,
              kMatchReason);
  CheckAtLeast("suffix_decoding_max_cached_requests", options.max_cached_requests, 0);
  if (!(options.max_spec_factor > 0) || !std::isfinite(options.max_spec_factor)) {
    throw InvalidArgument("suffix_decoding_max_spec_factor", ToText(options.max_spec_factor),
                          "a finite number above 0");
  }
  if (!(options.min_token_prob >= 0 && options.min_token_prob <= 1)) {
    throw InvalidArgument("suffix_decoding_min_token_prob", ToText(options.min_token_prob),
                          "a number from 0 to 1");
  }
}

void CheckFixedTree(const ModelDrafterOptions& options) {
  if (options.speculative_token_tree.empty()) return;
  if (options.speculative_token_tree.size() > kMaxDraftTokens) {
    throw InvalidArgument("speculative_token_tree",
                          ToText(options.speculative_token_tree.size()) + " paths",
                          "at most " + ToText(kMaxDraftTokens) + ": " + kDraftReason);
  }
  const TreeShape shape(options.speculative_token_tree);  // throws unless it is a tree
  if (options.draft_sample_method != DraftSampleMethod::kGreedy) {
    throw InvalidArgument("speculative_token_tree", "a tree",
                          "nothing with draft_sample_method 'probabilistic'");
  }
  if (options.draft_tree_width > 1 || options.draft_tree_depth) {
    throw InvalidArgument("speculative_token_tree", "a tree",
                          "nothing beside draft_tree_width or draft_tree_depth");
  }
}

void Check(const ModelDrafterOptions& options) {
  if (options.model.empty() && options.method.value_or(ModelMethod::kMtp) != ModelMethod::kMtp) {
    throw InvalidArgument("model", "nothing", "the directory of the drafter");
  }
  if (options.vocabulary_bridge && options.method != ModelMethod::kDraftModel) {
    throw InvalidArgument("vocabulary_bridge", "given", "none, or method 'draft_model'");
  }
  if (options.draft_vocab_size) CheckAtLeast("draft_vocab_size", *options.draft_vocab_size, 1);
  CheckAtLeast("draft_tree_width", options.draft_tree_width, 1);
  if (options.draft_tree_width > kMaxTreeWidth) {
    throw InvalidArgument("draft_tree_width", ToText(options.draft_tree_width),
                          "at most " + ToText(kMaxTreeWidth));
  }
  if (options.draft_sample_method != DraftSampleMethod::kGreedy && options.draft_tree_width > 1) {
    throw InvalidArgument("draft_tree_width", ToText(options.draft_tree_width),
                          "1 with draft_sample_method 'probabilistic'");
  }
  if (options.draft_tree_depth) {
    CheckAtLeast("draft_tree_depth", *options.draft_tree_depth, 1);
    CheckAtMost("draft_tree_depth", *options.draft_tree_depth, kMaxDraftTokens, kDraftReason);
  }
  CheckFixedTree(options);
  if (options.quantization) CheckQuantization(*options.quantization);
}

void Check(const HybridOptions& options) {
  if (options.model.draft_sample_method != DraftSampleMethod::kGreedy) {
    throw InvalidArgument("draft_sample_method", "'probabilistic'",
                          "'greedy' with method 'hybrid'");
  }
  if (!options.model.speculative_token_tree.empty()) {
    throw InvalidArgument("speculative_token_tree", "a tree", "nothing with method 'hybrid'");
  }
  Check(options.model);
  Check(options.suffix);
}

void Check(const GrammarOptions&) {}
void Check(std::monostate) {}

}  // namespace

const ModelDrafterOptions* FindModelOptions(const SpeculativeMethod& method) {
  if (const auto* hybrid = std::get_if<HybridOptions>(&method)) return &hybrid->model;
  return std::get_if<ModelDrafterOptions>(&method);
}

void CheckSpeculativeOptions(const SpeculativeOptions& options) {
  if (options.num_speculative_tokens) {
    CheckAtLeast("num_speculative_tokens", *options.num_speculative_tokens, 1);
    CheckAtMost("num_speculative_tokens", *options.num_speculative_tokens, kMaxDraftTokens,
                kDraftReason);
  }
  std::visit([](const auto& method) { Check(method); }, options.method);
  const ModelDrafterOptions* model = FindModelOptions(options.method);
  if (model == nullptr || model->speculative_token_tree.empty()) return;
  const int num_nodes = static_cast<int>(model->speculative_token_tree.size());
  if (options.num_speculative_tokens.value_or(num_nodes) != num_nodes) {
    throw InvalidArgument("num_speculative_tokens", ToText(*options.num_speculative_tokens),
                          ToText(num_nodes) + ", the nodes of speculative_token_tree, or nothing");
  }
}

void CheckEngineOptions(const EngineOptions& options) {
  if (options.dtype != "auto" && options.dtype != "bfloat16" && options.dtype != "float32") {
    throw InvalidArgument("dtype", "'" + options.dtype + "'", "'auto', 'bfloat16' or 'float32'");
  }
  CheckQuantization(options.quantization);
  CheckKvDType(options.kv_cache_dtype);
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda") {
    throw InvalidArgument(
        "device", "'" + options.device + "'",
        "'auto', 'cpu' or 'cuda', the first GPU (CUDA_VISIBLE_DEVICES chooses it)");
  }
  if (options.verify_device != "cpu" && options.verify_device != "cuda") {
    throw InvalidArgument("verify_device", "'" + options.verify_device + "'", "'cpu' or 'cuda'");
  }
  if (options.max_model_len) CheckAtLeast("max_model_len", *options.max_model_len, 2);
  CheckAtLeast("max_num_seqs", options.max_num_seqs, 1);
  CheckAtMost("max_num_seqs", options.max_num_seqs, 1 << 16,
              "each running request has buffers of its own");
  if (options.max_waiting_requests) {
    CheckAtLeast("max_waiting_requests", *options.max_waiting_requests, 0);
  }
  CheckAtLeast("max_num_batched_tokens", options.max_num_batched_tokens, options.max_num_seqs);
  CheckAtMost("max_num_batched_tokens", options.max_num_batched_tokens, 1 << 20,
              "a step has buffers for all of them");
  if (options.block_size < kKvBlockGranularity || options.block_size % kKvBlockGranularity != 0 ||
      options.block_size > 1024) {
    throw InvalidArgument("block_size", ToText(options.block_size),
                          "a multiple of " + ToText(kKvBlockGranularity) + " up to 1024");
  }
  if (options.kv_cache_memory_bytes) {
    CheckAtLeast("kv_cache_memory_bytes", *options.kv_cache_memory_bytes, 1);
  }
  if (!(options.gpu_memory_utilization > 0.0 && options.gpu_memory_utilization <= 1.0)) {
    throw InvalidArgument("gpu_memory_utilization", ToText(options.gpu_memory_utilization),
                          "a fraction in (0, 1]");
  }
  CheckAtLeast("num_threads", options.num_threads, 0);
  CheckAtMost("num_threads", options.num_threads, ThreadTeam::kMaxThreads,
              "threads beyond the number of cores only wait for each other");
  CheckAtLeast("weight_cache.max_bytes", options.weight_cache.max_bytes, 0);
  CheckSpeculativeOptions(options.speculative);
}

}  // namespace forerun
