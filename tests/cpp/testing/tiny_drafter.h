// Published drafters with random weights, for the target of tiny_model.h.
#ifndef FORERUN_TESTS_CPP_TESTING_TINY_DRAFTER_H_
#define FORERUN_TESTS_CPP_TESTING_TINY_DRAFTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "forerun/options.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun::testing {

// Tensors of random values by name and shape.
class DrafterTensors {
 public:
  void Matrix(const std::string& name, int outputs, int inputs) {
    tensors_.push_back(Float32Tensor(name + ".weight", {outputs, inputs},
                                     random_.Values(std::int64_t{outputs} * inputs, 0.2f)));
  }
  void Norm(const std::string& name, int size, bool has_bias = false) {
    tensors_.push_back(Float32Tensor(name + ".weight", {size}, random_.Values(size, 0.2f, 1.0f)));
    if (has_bias) {
      tensors_.push_back(Float32Tensor(name + ".bias", {size}, random_.Values(size, 0.2f)));
    }
  }
  void Layer(const std::string& prefix, const ModelSpec& spec, int num_inputs) {
    const int q = spec.num_heads * spec.head_dim, kv = spec.num_kv_heads * spec.head_dim;
    Matrix(prefix + "self_attn.q_proj", q, num_inputs);
    Matrix(prefix + "self_attn.k_proj", kv, num_inputs);
    Matrix(prefix + "self_attn.v_proj", kv, num_inputs);
    Matrix(prefix + "self_attn.o_proj", spec.hidden_size, q);
    Matrix(prefix + "mlp.gate_proj", spec.intermediate_size, spec.hidden_size);
    Matrix(prefix + "mlp.up_proj", spec.intermediate_size, spec.hidden_size);
    Matrix(prefix + "mlp.down_proj", spec.hidden_size, spec.intermediate_size);
    Norm(prefix + "post_attention_layernorm", spec.hidden_size);
  }
  void Add(const std::vector<NamedTensor>& others) {
    tensors_.insert(tensors_.end(), others.begin(), others.end());
  }
  const std::vector<NamedTensor>& all() const { return tensors_; }

 private:
  TinyRandom random_{6};
  std::vector<NamedTensor> tensors_;
};

inline std::string Numbered(std::string name, int number) {
  name += '.';
  return name += std::to_string(number);
}

inline constexpr char kFivePredicted[] = R"({"n_predict": 5, "vocab_size": 101})";

inline void WriteMlpSpeculator(const ModelDirectory& directory, const ModelSpec& spec) {
  constexpr int kInner = 16;
  DrafterTensors tensors;
  for (int i = 0; i < 5; ++i) {
    tensors.Matrix(Numbered("emb", i), spec.vocab_size, kInner);
    tensors.Matrix(Numbered("proj", i), kInner, i == 0 ? spec.hidden_size : kInner);
    tensors.Matrix(Numbered("head", i), spec.vocab_size, kInner);
    tensors.Norm(Numbered("ln", i), kInner, /*has_bias=*/true);
  }
  directory.Write("config.json", kFivePredicted);
  directory.WriteTensors(tensors.all());
}

inline void WriteLstmSpeculator(const ModelDirectory& directory, const ModelSpec& spec) {
  constexpr int kInner = 16;
  DrafterTensors tensors;
  tensors.Matrix("forget_emb.0", spec.vocab_size, kInner);
  for (const char* gate : {"forget", "input", "output", "cell"}) {
    const std::string projection = std::string(gate) + "_proj";
    tensors.Matrix(Numbered(projection, 0), kInner, spec.hidden_size);
    tensors.Matrix(Numbered(projection, 1), kInner, kInner);
  }
  tensors.Norm("cell_ln.0", kInner, /*has_bias=*/true);
  tensors.Norm("state_ln.0", kInner, /*has_bias=*/true);
  tensors.Matrix("head.0", spec.vocab_size, kInner);
  directory.Write("config.json", kFivePredicted);
  directory.WriteTensors(tensors.all());
}

inline void WriteMedusa(const ModelDirectory& directory, const ModelSpec& spec) {
  DrafterTensors tensors;
  for (int i = 0; i < 5; ++i) {
    tensors.Matrix(std::to_string(i) + ".0.linear", spec.hidden_size, spec.hidden_size);
    tensors.Matrix(std::to_string(i) + ".1", spec.vocab_size, spec.hidden_size);
  }
  directory.Write("config.json", "{}");
  directory.WriteTensors(tensors.all());
}

// Layers for multi-token prediction are added to the target.
inline void WriteTinyDrafter(ModelMethod method, bool is_lstm, const ModelSpec& spec,
                             const ModelDirectory& target, const ModelDirectory& drafter) {
  const int hidden = spec.hidden_size;
  const std::string config = TinyConfig("llama", R"("num_hidden_layers": 1)");
  DrafterTensors tensors;
  switch (method) {
    case ModelMethod::kDraftModel:
      WriteTinyModel(drafter, TinyConfig("llama"), 9);
      return;
    case ModelMethod::kMlpSpeculator:
      return is_lstm ? WriteLstmSpeculator(drafter, spec) : WriteMlpSpeculator(drafter, spec);
    case ModelMethod::kMedusa:
      return WriteMedusa(drafter, spec);
    case ModelMethod::kMtp:
      tensors.Matrix("mtp.fc", hidden, 2 * hidden);
      for (const char* name : {"mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"}) {
        tensors.Norm(name, hidden);
      }
      tensors.Norm("mtp.layers.0.input_layernorm", hidden);
      tensors.Layer("mtp.layers.0.", spec, hidden);
      tensors.Add(TinyTensors(spec, 1));
      target.WriteTensors(tensors.all());
      return;
    case ModelMethod::kEagle3:
      tensors.Layer("midlayer.", spec, 2 * hidden);
      tensors.Norm("midlayer.input_layernorm", hidden);
      tensors.Norm("midlayer.hidden_norm", hidden);
      tensors.Matrix("fc", hidden, 3 * hidden);
      tensors.Norm("norm", hidden);
      break;
    default:
      tensors.Layer("layers.0.", spec, hidden);
      tensors.Matrix("fc", hidden, 2 * hidden);
  }
  drafter.Write("config.json", config);
  drafter.WriteTensors(tensors.all());
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_TINY_DRAFTER_H_
