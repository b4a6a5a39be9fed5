// How an engine is set up.
#ifndef FORERUN_OPTIONS_H_
#define FORERUN_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "forerun/types.h"

namespace forerun {

// When a draft token is accepted. At temperature 0 all three mean: when it is the target's arg-max.
enum class AcceptanceMethod {
  kCoupled,    // it is the token that plain decoding samples: the output ids do not change
  kRejection,  // rejection sampling, node by node: the output's distribution does not change
  kBlock,      // block verification: the same; along a chain, never fewer accepted on average
};

// Drafts the continuation of an earlier occurrence of the last n tokens of the request's own text,
// prompt_lookup_min <= n <= prompt_lookup_max.
struct NgramOptions {
  int prompt_lookup_max = 5;
  int prompt_lookup_min = 5;
};

// Drafts the most probable continuation in an index of the request's own text and of past outputs.
struct SuffixOptions {
  int max_tree_depth = 24;  // of the match and the draft together
  int max_cached_requests = 10000;
  double max_spec_factor = 1.0;  // a draft is at most this many times as long as its match
  double min_token_prob = 0.1;   // less probable tokens are not drafted
  // Drafts the most probable nodes, be they a chain or not. The lengths above are then those of the
  // tree's paths; the number of speculative tokens is that of its nodes.
  bool use_tree = false;
};

// Drafts only the tokens that a request's constraint forces, which all methods draft as well.
struct GrammarOptions {};

// Formats of drafters that are models.
enum class ModelMethod {
  kDraftModel,     // a smaller language model
  kEagle,          // EAGLE and EAGLE-2 heads
  kEagle3,         // EAGLE-3 heads
  kMtp,            // layers for multi-token prediction, often in the target's checkpoint
  kMlpSpeculator,  // IBM's accelerators, and the LSTM variant
  kMedusa,
};

// How a model picks its draft tokens.
enum class DraftSampleMethod {
  kGreedy,         // the most probable ones
  kProbabilistic,  // drawn from its probabilities, which the verification then uses; chains only
};

// Maps between the vocabularies of a draft model and its target.
struct VocabularyBridge {
  // [the target's vocabulary]: the drafter's id for each token.
  std::vector<TokenId> draft_ids = {};
  // The target's ids of tokens that both vocabularies have, ascending. Only these are drafted.
  std::vector<TokenId> shared_ids = {};
};

// How matrices are stored, by what they are for: "int8" or "int4" quantizes them when they are
// loaded, "none" unpacks the checkpoint's integers to floats, and absent is what the checkpoint
// has.
struct QuantizationOptions {
  std::optional<std::string> linear = {};  // of the layers
  std::optional<std::string> embedding = {};
  // That gives the logits. Where it is the embedding as well, this counts; absent: embedding.
  std::optional<std::string> head = {};
  // What a checkpoint must be: "gptq", "awq", "compressed-tensors" or "gguf". Absent: anything.
  std::optional<std::string> method = {};
};

struct ModelDrafterOptions {
  // The drafter's directory, with config.json and *.safetensors of a published format. Empty: the
  // target's own layers for multi-token prediction.
  std::string model = {};
  std::optional<ModelMethod> method = {};  // absent: detected from the checkpoint's tensors
  DraftSampleMethod draft_sample_method = DraftSampleMethod::kGreedy;
  std::optional<VocabularyBridge> vocabulary_bridge = {};  // kDraftModel; absent: one vocabulary
  // Absent: "int8", but none where the target's floats stay float32, and integers of the drafter's
  // own checkpoint are left alone, except where the target's are unpacked by "none".
  std::optional<QuantizationOptions> quantization = {};

  // How many of its tokens the drafter proposes: the most frequent ones, as hot_tokens.json in its
  // directory lists them, else those with the lowest ids. Absent: those of the file; all, where
  // there is none.
  std::optional<int> draft_vocab_size = {};

  // The number of most probable paths that are continued from each level, and of candidates for
  // each; 1 drafts a chain.
  int draft_tree_width = 1;
  // The longest path. Absent: num_speculative_tokens, in a tree at most 6, in a hybrid at most 4.
  std::optional<int> draft_tree_depth = {};
  // A tree of fixed shape instead: its paths, each by the ranks of its tokens, 0 the most probable.
  // A path comes after its prefixes.
  std::vector<std::vector<int>> speculative_token_tree = {};

  // What a checkpoint leaves open or gets wrong; absent: as the checkpoint says, else as usual.
  // kEagle3: the target's layers whose hidden states are read, by the number of layers before each.
  std::optional<std::vector<int>> aux_hidden_state_layer_ids = {};
  std::optional<bool> norm_before_residual = {};  // kEagle3: the residual is the normed input
  std::optional<bool> norm_output = {};           // kEagle3: the normed state is fed back
  // kMtp: the first draft token reads the target's state after its final norm.
  std::optional<bool> norm_target_state = {};
};

// Drafts from a model and from the index of SuffixOptions, in one tree. The model's
// draft_sample_method must be kGreedy, its tree not of fixed shape.
struct HybridOptions {
  ModelDrafterOptions model = {};
  SuffixOptions suffix = {};
};

// std::monostate: no speculation.
using SpeculativeMethod = std::variant<std::monostate, NgramOptions, SuffixOptions, GrammarOptions,
                                       ModelDrafterOptions, HybridOptions>;

// Null for methods without a model.
const ModelDrafterOptions* FindModelOptions(const SpeculativeMethod& method);

struct SpeculativeOptions {
  SpeculativeMethod method = {};
  // The most tokens drafted for a request in one step, in a chain or in a tree. Absent: 5 for
  // ngram, max_tree_depth for suffix, 16 for grammar; for a model 4, in a tree 16, in a tree of
  // fixed shape its size; 24 for a hybrid.
  std::optional<int> num_speculative_tokens = {};
  AcceptanceMethod acceptance_method = AcceptanceMethod::kCoupled;
  // Chooses each draft's length from measured acceptance and step cost. Off: always the most
  // allowed.
  bool adaptive = true;
};

// Throws InvalidArgument that names the first wrong field. Does not look at the model.
void CheckSpeculativeOptions(const SpeculativeOptions& options);

// Which requests run first when not all can.
enum class SchedulingPolicy {
  kFcfs,      // first come, first served
  kPriority,  // the lowest SubmitOptions::priority first; among equals the earliest
};

// Packed weights of models, kept for later starts: docs/checkpoints.md.
struct WeightCacheOptions {
  std::string directory = {};  // empty: nothing is kept
  // Of all models together; those that were not used for longest make room. 0: nothing is kept.
  std::int64_t max_bytes = 32'000'000'000;
};

struct EngineOptions {
  std::string model;  // a Hugging Face model directory

  // Where the model runs: "cpu", which "auto" means, or "cuda", the first GPU that CUDA shows.
  std::string device = "auto";
  // "auto", "bfloat16" or "float32": weights that are not integers. Those of a quantized checkpoint
  // stay integers, unless `quantization` unpacks them.
  std::string dtype = "auto";
  QuantizationOptions quantization;
  std::string kv_cache_dtype = "auto";  // "bfloat16", "float32", "int8", or "auto": as dtype
  std::optional<int> max_model_len;     // absent: the model's own limit, if the cache can hold it
  int max_num_seqs = 32;                // requests that run at the same time
  // Requests that may wait while max_num_seqs run; more are refused with QueueFull. Absent: no
  // limit.
  std::optional<int> max_waiting_requests;
  int max_num_batched_tokens = 2048;  // rows of one step, prompt chunks and drafts together
  int block_size = 16;                // tokens of one KV block
  bool enable_prefix_caching = true;
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  // Absent: on the CPU, sized for max_num_seqs short or a few long requests; on a GPU, what
  // gpu_memory_utilization leaves.
  std::optional<std::int64_t> kv_cache_memory_bytes;
  // Of a GPU's whole memory: what weights, buffers and KV cache may take together. The cache takes
  // no more than max_num_seqs requests of max_model_len tokens can fill.
  double gpu_memory_utilization = 0.92;
  // Launches each operation on a GPU by itself, rather than forward passes of few rows as CUDA
  // graphs.
  bool enforce_eager = false;
  std::uint64_t seed = 0;
  int num_threads = 0;  // 0: one per available core
  WeightCacheOptions weight_cache;
  SpeculativeOptions speculative;

  bool record_draft_steps = false;  // keep each draft's counts in RequestMetrics::draft_steps
  bool check_invariants = false;    // verify every account after every step; for tests
  // "cpu", or "cuda": logits are copied to the GPU and verified there; for tests.
  std::string verify_device = "cpu";
};

// The same, of all fields but `model`.
void CheckEngineOptions(const EngineOptions& options);

}  // namespace forerun

#endif  // FORERUN_OPTIONS_H_
