// The logits of given tokens: a model alone, without an engine around it.
#ifndef FORERUN_CPP_MODEL_SCORER_H_
#define FORERUN_CPP_MODEL_SCORER_H_

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpp/model/transformer.h"
#include "cpp/ops/cpu/cpu_backend.h"
#include "forerun/options.h"
#include "forerun/types.h"

namespace forerun {

struct ScorerOptions {
  std::string model;           // a Hugging Face model directory
  std::string dtype = "auto";  // these three as in EngineOptions
  QuantizationOptions quantization;
  std::string kv_cache_dtype = "auto";
  int num_threads = 0;               // 0: one per available core
  std::string isa;                   // empty: the best that this machine has
  std::optional<int> max_model_len;  // absent: the model's own limit, at most 4096
};

// The number, and how long a sequence may be. Throw InvalidArgument.
int CheckThreads(int num_threads);
int ResolveMaxLen(const ScorerOptions& options, const ModelSpec& spec);

// One sequence at a time over a KV cache of its own. Not thread-safe.
class Scorer {
 public:
  // Throws InvalidArgument or CheckpointError.
  explicit Scorer(const ScorerOptions& options);

  int vocab_size() const { return transformer_->vocab_size(); }
  int max_model_len() const { return max_model_len_; }
  const char* dtype() const { return Name(dtype_); }
  std::string isa() const { return ops_.isa(); }

  // Throws InvalidArgument unless `tokens` are 1 to max_model_len ids of the vocabulary and
  // `chunks`, where there are any, add up to their number.
  void CheckTokens(std::span<const TokenId> tokens, std::span<const int> chunks) const;

  // out[i] predicts the token after tokens[i]; out [tokens.size(), vocab_size]. The tokens are fed
  // in forwards of these many rows, or of fewer where that is more than the logits have room for,
  // which changes no logit. REQUIRES: CheckTokens passes.
  void ComputeLogits(std::span<const TokenId> tokens, std::span<const int> chunks, Rows out);

 private:
  void RunChunk(std::span<const TokenId> tokens, int num_context, int num_rows, Rows out);

  CpuBackend backend_;
  Ops& ops_ = backend_.ops();
  int max_model_len_ = 0;
  DType dtype_ = DType::kFloat32;
  std::unique_ptr<Transformer> transformer_;
  std::vector<BlockId> blocks_;
  std::vector<std::int32_t> rows_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_SCORER_H_
