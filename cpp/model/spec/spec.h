// What differs between the model families, as data. Read from config.json; no class per
// architecture.
#ifndef FORERUN_CPP_MODEL_SPEC_SPEC_H_
#define FORERUN_CPP_MODEL_SPEC_SPEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cpp/ops/ops.h"
#include "forerun/types.h"

namespace forerun {

enum class RopeScaling { kNone, kLinear, kLlama3, kYarn };

struct RopeSpec {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  // llama3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  // llama3 and yarn
  int original_max_position = 0;
  // yarn
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double attention_factor = 1.0;  // multiplies cosines and sines
  bool truncate = true;

  bool operator==(const RopeSpec&) const = default;
};

struct LayerSpec {
  int sliding_window = 0;  // 0: full attention
  int rope = 0;            // index into ModelSpec::ropes
};

struct ModelSpec {
  std::string family;  // config.json's model_type
  int vocab_size = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int max_position = 0;
  float rms_norm_eps = 1e-6f;
  float norm_weight_offset = 0.0f;  // 1 for Gemma: weights are stored less one

  Activation activation = Activation::kSilu;
  float embedding_scale = 1.0f;
  float attention_scale = 1.0f;
  float attention_soft_cap = 0.0f;
  float final_soft_cap = 0.0f;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool output_bias = false;  // on the attention's output projection
  bool mlp_bias = false;
  bool qk_norm = false;
  bool post_norms = false;  // Gemma: norms after attention and after the MLP as well
  int num_mtp_layers = 0;   // layers for multi-token prediction, after the model's own

  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
  std::vector<TokenId> eos_token_ids;  // generation_config.json's and config.json's, each once
  std::string torch_dtype;

  // One more; an id outside the vocabulary never comes up, so it ends nothing.
  void AddEosToken(TokenId token);
};

// Reads DIR/config.json (and generation_config.json where present). Throws CheckpointError that
// names a missing file, a family, or a field or value that is not understood.
ModelSpec ReadModelSpec(const std::string& directory);

class JsonObject;
// The activation of a Hugging Face name under `key`, `usual` where it is absent.
Activation ReadActivation(const JsonObject& config, const char* key, const std::string& usual);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_SPEC_SPEC_H_
