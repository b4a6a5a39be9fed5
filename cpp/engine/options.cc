#include "forerun/options.h"

#include <cmath>

#include "cpp/draft/neural/tree_shape.h"
#include "cpp/kv/layout.h"
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

// `reason` goes on after "an integer of at most N".
void CheckAtMost(const char* field, std::int64_t value, std::int64_t most, const char* reason) {
  if (value > most) {
    throw InvalidArgument(field, ToText(value),
                          "an integer of at most " + ToText(most) + ": " + reason);
  }
}

// Far above what speeds anything up: a draft costs rows of the step, and counters of each request
// and of each length.
constexpr int kMaxDraftTokens = 1024;
constexpr const char* kDraftReason = "longer drafts cost more than they can save";
constexpr int kMaxMatchTokens = 1024;
constexpr const char* kMatchReason =
    "longer matches predict no better, and are counted token by token";

void CheckModelDrafter(const SpeculativeOptions& options) {
  const bool is_model = IsModel(options.method);
  const bool is_sampled = options.draft_sample_method != DraftSampleMethod::kGreedy;
  if (is_sampled && !is_model) {
    throw InvalidArgument("draft_sample_method", "'probabilistic'",
                          "'greedy': ngram, suffix and grammar guess with certainty");
  }
  if (is_model && options.model.empty() && options.method != SpeculativeMethod::kMtp) {
    throw InvalidArgument("model", "nothing", "the directory of the drafter");
  }
  if (!is_model && !options.model.empty()) {
    throw InvalidArgument("model", "'" + options.model + "'",
                          "nothing with a method that is no model");
  }
  if (options.hybrid && (!is_model || is_sampled)) {
    throw InvalidArgument("hybrid", "true",
                          "false with a method that is no model, and with draft_sample_method "
                          "'probabilistic'");
  }
  if (options.vocabulary_bridge && options.method != SpeculativeMethod::kDraftModel) {
    throw InvalidArgument("vocabulary_bridge", "given", "none: only a draft model has use for it");
  }
  CheckAtLeast("draft_tree_width", options.draft_tree_width, 1);
  if (options.draft_tree_width > 64 || (!is_model && options.draft_tree_width > 1)) {
    throw InvalidArgument("draft_tree_width", ToText(options.draft_tree_width),
                          is_model ? "at most 64" : "1 with a method that is no model");
  }
  if (is_sampled && options.draft_tree_width > 1) {
    throw InvalidArgument("draft_tree_width", ToText(options.draft_tree_width),
                          "1 with draft_sample_method 'probabilistic'");
  }
  if (options.draft_tree_depth) {
    if (!is_model) {
      throw InvalidArgument("draft_tree_depth", ToText(*options.draft_tree_depth),
                            "nothing with a method that is no model");
    }
    CheckAtLeast("draft_tree_depth", *options.draft_tree_depth, 1);
    CheckAtMost("draft_tree_depth", *options.draft_tree_depth, kMaxDraftTokens, kDraftReason);
  }
}

void CheckFixedTree(const SpeculativeOptions& options) {
  if (options.speculative_token_tree.empty()) return;
  const std::string field = "speculative_token_tree";
  const TreeShape shape(options.speculative_token_tree);  // throws where it is none
  const bool is_sampled = options.draft_sample_method != DraftSampleMethod::kGreedy;
  if (!IsModel(options.method) || options.hybrid || is_sampled) {
    throw InvalidArgument(field, "a tree",
                          "nothing with a method that is no model, with a hybrid, and with "
                          "draft_sample_method 'probabilistic'");
  }
  if (options.draft_tree_width > 1 || options.draft_tree_depth) {
    throw InvalidArgument(field, "a tree", "nothing beside draft_tree_width or draft_tree_depth");
  }
  if (options.num_speculative_tokens.value_or(shape.size()) != shape.size()) {
    throw InvalidArgument("num_speculative_tokens", ToText(*options.num_speculative_tokens),
                          ToText(shape.size()) + ", the nodes of " + field + ", or nothing");
  }
}

void CheckSpeculative(const SpeculativeOptions& options) {
  if (options.num_speculative_tokens) {
    CheckAtLeast("num_speculative_tokens", *options.num_speculative_tokens, 1);
    CheckAtMost("num_speculative_tokens", *options.num_speculative_tokens, kMaxDraftTokens,
                kDraftReason);
  }
  CheckModelDrafter(options);
  CheckFixedTree(options);
  CheckAtLeast("prompt_lookup_min", options.prompt_lookup_min, 1);
  if (options.prompt_lookup_max < options.prompt_lookup_min) {
    throw InvalidArgument("prompt_lookup_max", ToText(options.prompt_lookup_max),
                          "at least prompt_lookup_min, " + ToText(options.prompt_lookup_min));
  }
  CheckAtMost("prompt_lookup_max", options.prompt_lookup_max, kMaxMatchTokens, kMatchReason);
  CheckAtLeast("suffix_decoding_max_tree_depth", options.suffix_max_tree_depth, 2);
  CheckAtMost("suffix_decoding_max_tree_depth", options.suffix_max_tree_depth, kMaxMatchTokens,
              kMatchReason);
  CheckAtLeast("suffix_decoding_max_cached_requests", options.suffix_max_cached_requests, 0);
  if (!(options.suffix_max_spec_factor > 0) || !std::isfinite(options.suffix_max_spec_factor)) {
    throw InvalidArgument("suffix_decoding_max_spec_factor", ToText(options.suffix_max_spec_factor),
                          "a finite number above 0");
  }
  if (!(options.suffix_min_token_prob >= 0 && options.suffix_min_token_prob <= 1)) {
    throw InvalidArgument("suffix_decoding_min_token_prob", ToText(options.suffix_min_token_prob),
                          "a number from 0 to 1");
  }
}

}  // namespace

void CheckEngineOptions(const EngineOptions& options) {
  if (options.model.empty()) {
    throw InvalidArgument("model", "an empty path", "a Hugging Face model directory");
  }
  for (TokenId token : options.eos_token_ids) CheckAtLeast("eos_token_ids", token, 0);
  if (options.dtype != "auto" && options.dtype != "bfloat16" && options.dtype != "float32") {
    throw InvalidArgument("dtype", "'" + options.dtype + "'", "'auto', 'bfloat16' or 'float32'");
  }
  if (options.max_model_len) CheckAtLeast("max_model_len", *options.max_model_len, 2);
  CheckAtLeast("max_num_seqs", options.max_num_seqs, 1);
  CheckAtMost("max_num_seqs", options.max_num_seqs, 1 << 16,
              "each running request has buffers of its own");
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
  CheckAtLeast("num_threads", options.num_threads, 0);
  CheckAtMost("num_threads", options.num_threads, ThreadTeam::kMaxThreads,
              "threads beyond the number of cores only wait for each other");
  CheckSpeculative(options.speculative);
}

}  // namespace forerun
