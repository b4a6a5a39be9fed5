// How an engine is set up.
#ifndef FORERUN_OPTIONS_H_
#define FORERUN_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "forerun/types.h"

namespace forerun {

// With any method but kNone, the tokens that a request's constraint forces are drafted too;
// kGrammar drafts nothing else. The methods from kDraftModel on are models.
enum class SpeculativeMethod {
  kNone,
  kNgram,
  kSuffix,
  kGrammar,
  kDraftModel,     // a smaller language model
  kEagle,          // EAGLE and EAGLE-2 heads
  kEagle3,         // EAGLE-3 heads
  kMtp,            // layers for multi-token prediction in the target's checkpoint
  kMlpSpeculator,  // IBM's accelerators, and the LSTM variant
  kMedusa,
};
inline bool IsModel(SpeculativeMethod method) { return method >= SpeculativeMethod::kDraftModel; }

// When a guess is accepted. At temperature 0 all three mean: when it is the target's arg-max.
enum class AcceptanceMethod {
  kCoupled,    // it is the very token that plain decoding samples: the output ids do not change
  kRejection,  // rejection sampling, node by node: the output's distribution does not change
  kBlock,      // block verification: the same; along a chain, never fewer accepted on average
};

// How a drafter picks its guesses.
enum class DraftSampleMethod {
  kGreedy,         // what it thinks most probable
  kProbabilistic,  // drawn from its probabilities, which the verification then knows
};

// Which tokens of a drafter with a vocabulary of its own are which of its target's.
struct VocabularyBridge {
  std::vector<TokenId> draft_ids;  // [the target's vocabulary]: read in a token's place
  // The target's tokens that the drafter has as well, which alone are drafted; ascending.
  std::vector<TokenId> shared_ids;
};

struct SpeculativeOptions {
  SpeculativeMethod method = SpeculativeMethod::kNone;
  // The most tokens drafted for a request in one step, in a chain or in a tree. Absent: 5 for
  // ngram, suffix_max_tree_depth for suffix, 16 for grammar, 4 for models, 16 for their trees, or
  // as many as a fixed one has, 24 for hybrids.
  std::optional<int> num_speculative_tokens;

  AcceptanceMethod acceptance_method = AcceptanceMethod::kCoupled;
  // kProbabilistic needs a model, and drafts chains.
  DraftSampleMethod draft_sample_method = DraftSampleMethod::kGreedy;

  // ngram: the draft continues an earlier occurrence of the last n tokens, lookup_min <= n <=
  // lookup_max.
  int prompt_lookup_max = 5;
  int prompt_lookup_min = 5;

  // suffix: match length plus draft length never exceeds the depth; the draft is at most
  // max_spec_factor x match length; tokens below min_token_prob are not drafted. With a tree, the
  // lengths are those of its paths, the number of speculative tokens is that of its nodes, and the
  // most probable nodes are drafted, be they a chain or not.
  int suffix_max_tree_depth = 24;
  int suffix_max_cached_requests = 10000;
  double suffix_max_spec_factor = 1.0;
  double suffix_min_token_prob = 0.1;
  bool suffix_use_tree = false;

  // Models: the drafter's directory, with config.json and *.safetensors of a published format. For
  // mtp empty: the target's own.
  std::string model;
  std::optional<VocabularyBridge> vocabulary_bridge;  // draft_model; absent: it has the target's
  // Models: the most probable paths that go on from each level, and their most probable tokens; 1
  // drafts a chain.
  int draft_tree_width = 1;
  // Of a model's paths. Absent: as many as tokens, in a tree at most 6, in a hybrid 4.
  std::optional<int> draft_tree_depth;
  // Models: a tree of fixed shape instead. A path has the ranks of its guesses, 0 the most
  // probable; the path before it must be there too.
  std::vector<std::vector<int>> speculative_token_tree;
  // Models: guess with an index too, as suffix does, and draft from both.
  bool hybrid = false;
  // eagle3: what a checkpoint leaves open. The target's layers, each by how many are before it, and
  // two choices within the head (cpp/draft/formats/draft_head.h).
  std::optional<std::vector<int>> aux_hidden_state_layer_ids;
  std::optional<bool> norm_before_residual;
  std::optional<bool> norm_output;
  // mtp: whether the first draft token reads the target's state after its final norm. Absent: as
  // the target's family does.
  std::optional<bool> norm_target_state;

  // Chooses each draft's length from measured acceptance and step cost. Off: always the most
  // allowed.
  bool adaptive = true;
};

// Who runs first when not all requests can.
enum class SchedulingPolicy {
  kFcfs,      // first come, first served
  kPriority,  // the lowest SubmitOptions::priority; among equals who came first
};

struct EngineOptions {
  std::string model;  // a Hugging Face model directory

  // Tokens that end a text besides those of config.json and generation_config.json: the end of a
  // tokenizer, which the engine does not read. Ids beyond the vocabulary end nothing.
  std::vector<TokenId> eos_token_ids;

  std::string dtype = "auto";         // "auto", "bfloat16" or "float32": weights and KV cache
  std::optional<int> max_model_len;   // absent: the model's own limit, if the cache can hold it
  int max_num_seqs = 32;              // requests that run at the same time
  int max_num_batched_tokens = 2048;  // rows of one step, prompt chunks and drafts together
  int block_size = 16;                // tokens of one KV block
  bool enable_prefix_caching = true;
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  std::optional<std::int64_t>
      kv_cache_memory_bytes;  // absent: sized for max_num_seqs short or a few long requests
  std::uint64_t seed = 0;
  int num_threads = 0;  // 0: one per available core
  SpeculativeOptions speculative;

  bool record_draft_steps = false;  // keep each draft's counts in RequestMetrics::draft_steps
  bool check_invariants = false;    // verify every account after every step; for tests
};

// Throws InvalidArgument that names the first wrong field. Does not look at the model.
void CheckEngineOptions(const EngineOptions& options);

}  // namespace forerun

#endif  // FORERUN_OPTIONS_H_
