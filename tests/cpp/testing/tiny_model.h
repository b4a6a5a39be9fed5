// Small models with random weights, written as a Hugging Face directory.
#ifndef FORERUN_TESTS_CPP_TESTING_TINY_MODEL_H_
#define FORERUN_TESTS_CPP_TESTING_TINY_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cpp/model/spec/spec.h"
#include "tests/cpp/testing/model_directory.h"

namespace forerun {

// A stream of floats in [-1, 1) that is the same everywhere.
class TinyRandom {
 public:
  explicit TinyRandom(std::uint64_t seed) : state_(seed) {}
  std::uint32_t Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 33);
  }
  int Below(int limit) { return static_cast<int>(Next() % static_cast<std::uint32_t>(limit)); }
  float Uniform() { return static_cast<float>(Next()) / static_cast<float>(1u << 30) - 1.0f; }
  std::vector<float> Values(std::int64_t count, float scale, float offset = 0.0f) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(offset + scale * Uniform());
    return values;
  }

 private:
  std::uint64_t state_;
};

// config.json of a tiny model; its sizes are no multiples of a vector or a block.
inline std::string TinyConfig(const std::string& model_type, const std::string& more_fields = "") {
  const std::string sizes = R"("vocab_size": 101, "hidden_size": 24, "intermediate_size": 36,
      "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
      "max_position_embeddings": 512, "eos_token_id": 2)";
  return R"({"model_type": ")" + model_type + R"(", )" + sizes + (more_fields.empty() ? "" : ", ") +
         more_fields + "}";
}

// Every tensor of a model of this spec, by its Hugging Face name.
inline std::vector<NamedTensor> TinyTensors(const ModelSpec& spec, std::uint64_t seed) {
  TinyRandom random(seed);
  std::vector<NamedTensor> tensors;
  const auto linear = [&](const std::string& name, int outputs, int inputs, bool bias) {
    tensors.push_back(Float32Tensor(name + ".weight", {outputs, inputs},
                                    random.Values(std::int64_t{outputs} * inputs, 0.5f)));
    if (bias) {
      tensors.push_back(Float32Tensor(name + ".bias", {outputs}, random.Values(outputs, 0.3f)));
    }
  };
  const auto norm = [&](const std::string& name, int size) {
    const float offset = 1.0f - spec.norm_weight_offset;
    tensors.push_back(Float32Tensor(name + ".weight", {size}, random.Values(size, 0.3f, offset)));
  };
  const int q = spec.num_heads * spec.head_dim, kv = spec.num_kv_heads * spec.head_dim;
  linear("model.embed_tokens", spec.vocab_size, spec.hidden_size, false);
  if (!spec.tie_word_embeddings) linear("lm_head", spec.vocab_size, spec.hidden_size, false);
  norm("model.norm", spec.hidden_size);
  for (int i = 0; i < spec.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    linear(layer + "self_attn.q_proj", q, spec.hidden_size, spec.qkv_bias);
    linear(layer + "self_attn.k_proj", kv, spec.hidden_size, spec.qkv_bias);
    linear(layer + "self_attn.v_proj", kv, spec.hidden_size, spec.qkv_bias);
    linear(layer + "self_attn.o_proj", spec.hidden_size, q, spec.output_bias);
    linear(layer + "mlp.gate_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias);
    linear(layer + "mlp.up_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias);
    linear(layer + "mlp.down_proj", spec.hidden_size, spec.intermediate_size, spec.mlp_bias);
    norm(layer + "input_layernorm", spec.hidden_size);
    norm(layer + "post_attention_layernorm", spec.hidden_size);
    if (spec.post_norms) {
      norm(layer + "pre_feedforward_layernorm", spec.hidden_size);
      norm(layer + "post_feedforward_layernorm", spec.hidden_size);
    }
    if (spec.qk_norm) {
      norm(layer + "self_attn.q_norm", spec.head_dim);
      norm(layer + "self_attn.k_norm", spec.head_dim);
    }
  }
  return tensors;
}

// Writes config and weights; returns the spec of the config.
inline ModelSpec WriteTinyModel(const ModelDirectory& directory, const std::string& config,
                                std::uint64_t seed = 1) {
  directory.Write("config.json", config);
  const ModelSpec spec = ReadModelSpec(directory.path());
  directory.WriteTensors(TinyTensors(spec, seed));
  return spec;
}

}  // namespace forerun

#endif  // FORERUN_TESTS_CPP_TESTING_TINY_MODEL_H_
