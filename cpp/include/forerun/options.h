// How an engine is set up.
#ifndef FORERUN_OPTIONS_H_
#define FORERUN_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>

namespace forerun {

// With any method but kNone, the tokens that a request's constraint forces are drafted too;
// kGrammar drafts nothing else.
enum class SpeculativeMethod { kNone, kNgram, kSuffix, kGrammar };

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

struct SpeculativeOptions {
  SpeculativeMethod method = SpeculativeMethod::kNone;
  // The most tokens drafted for a request in one step. Absent: 5 for ngram, suffix_max_tree_depth
  // for suffix, 16 for grammar.
  std::optional<int> num_speculative_tokens;

  AcceptanceMethod acceptance_method = AcceptanceMethod::kCoupled;
  // No method of this version has probabilities to draw from: kProbabilistic is refused.
  DraftSampleMethod draft_sample_method = DraftSampleMethod::kGreedy;

  // ngram: the draft continues an earlier occurrence of the last n tokens, lookup_min <= n <=
  // lookup_max.
  int prompt_lookup_max = 5;
  int prompt_lookup_min = 2;

  // suffix: match length plus draft length never exceeds the depth; the draft is at most
  // max_spec_factor x match length; tokens below min_token_prob are not drafted. With a tree, the
  // lengths are those of its paths, the number of speculative tokens is that of its nodes, and the
  // most probable nodes are drafted, be they a chain or not.
  int suffix_max_tree_depth = 24;
  int suffix_max_cached_requests = 10000;
  double suffix_max_spec_factor = 1.0;
  double suffix_min_token_prob = 0.1;
  bool suffix_use_tree = false;

  // Chooses each draft's length from measured acceptance and step cost. Off: always the most
  // allowed.
  bool adaptive = true;
};

struct EngineOptions {
  std::string model;  // a Hugging Face model directory

  std::string dtype = "auto";         // "auto", "bfloat16" or "float32": weights and KV cache
  std::optional<int> max_model_len;   // absent: the model's own limit, if the cache can hold it
  int max_num_seqs = 32;              // requests that run at the same time
  int max_num_batched_tokens = 2048;  // rows of one step, prompt chunks and drafts together
  int block_size = 16;                // tokens of one KV block
  bool enable_prefix_caching = true;
  std::optional<std::int64_t>
      kv_cache_memory_bytes;  // absent: sized for max_num_seqs short or a few long requests
  std::uint64_t seed = 0;
  int num_threads = 0;  // 0: one per available core
  SpeculativeOptions speculative;

  bool check_invariants = false;  // verify every account after every step; for tests
};

// Throws InvalidArgument that names the first wrong field. Does not look at the model.
void CheckEngineOptions(const EngineOptions& options);

}  // namespace forerun

#endif  // FORERUN_OPTIONS_H_
