// A model's weights, packed for an Ops.
#ifndef FORERUN_CPP_MODEL_WEIGHTS_H_
#define FORERUN_CPP_MODEL_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/safetensors.h"
#include "cpp/model/checkpoint/weight_reader.h"
#include "cpp/model/spec/spec.h"
#include "cpp/ops/ops.h"
#include "forerun/options.h"
#include "forerun/types.h"

namespace forerun {

// Shapes are [outputs, inputs]; d = head_dim. A vector is empty where the spec has no such weight.
// All are in the memory of the Ops that they are loaded for.
struct LayerWeights {
  std::unique_ptr<PackedMatrix> qkv;               // [(heads + 2 kv_heads) d, hidden]
  std::unique_ptr<PackedMatrix> attention_output;  // [hidden, heads d]
  std::unique_ptr<PackedMatrix> gate_up;           // [2 intermediate, hidden], gates first
  std::unique_ptr<PackedMatrix> down;              // [hidden, intermediate]
  FloatVector qkv_bias, attention_output_bias, gate_up_bias, down_bias;

  // Norms have the family's offset added.
  FloatVector attention_norm, post_attention_norm;  // [hidden]
  FloatVector mlp_norm, post_mlp_norm;              // [hidden]
  FloatVector q_norm, k_norm;                       // [d]
};

// Of a model's matrices, by what they are for.
struct ModelFormats {
  MatrixFormat linear;  // in the layers
  MatrixFormat embedding;
  MatrixFormat head;  // which gives the logits
};

inline ModelFormats UniformFormats(const MatrixFormat& format) { return {format, format, format}; }

struct ModelWeights {
  std::unique_ptr<PackedMatrix> embedding;  // [vocab, hidden]
  std::unique_ptr<PackedMatrix> lm_head;    // [logits, hidden]; null when tied to the embedding
  FloatVector final_norm;                   // [hidden]
  std::vector<LayerWeights> layers;
  // How many linear layers became floats because no format holds their integers, by the reason.
  std::map<std::string, int> num_unpacked;

  const PackedMatrix& head() const { return lm_head != nullptr ? *lm_head : *embedding; }
  // Of the matrices, as packed.
  std::int64_t num_bytes() const;
  WeightBytes BytesByFormat() const;
  // Of the matrices that one decoded row reads: all of the layers' and the head.
  std::int64_t num_bytes_per_token() const;
};

// "bfloat16", "float32", or "auto": bfloat16 for a checkpoint in bfloat16, else float32, which
// holds float16 exactly. Throws InvalidArgument for other names.
DType ResolveDType(const std::string& name, const ModelSpec& spec, Checkpoint& checkpoint);

// Throws InvalidArgument that names the class of matrices whose format there is not, or a method
// that there is not.
void CheckQuantization(const QuantizationOptions& options);

// Throws InvalidArgument unless the checkpoint in a directory is what options.method says.
void CheckQuantizationMethod(const QuantizationOptions& options, const std::string& directory);

//   dtype: of matrices that are not integers
//   is_tied: embedding and head are one matrix
// REQUIRES: CheckQuantization passes.
ModelFormats MakeFormats(const QuantizationOptions& quantization, DType dtype, bool is_tied);

// Of a drafter that says nothing of quantization: floats become 8 bits, which costs hardly an
// accepted token, as 4 bits do (docs/quantization.md); not where the target computes in float32 or
// unpacks its integers. Integers of its own checkpoint stay as they are, unless the target's are
// unpacked.
ModelFormats FollowFormats(const QuantizationOptions& target, DType dtype, bool is_tied);

// A decoder layer in a checkpoint.
struct LayerTensors {
  std::string prefix;              // of the tensors' names, such as "model.layers.0."
  int num_inputs = 0;              // of the attention: hidden_size, or twice that in EAGLE-3
  bool has_attention_norm = true;  // false: the attention's input is taken as it is
};

// Throws CheckpointError that names the first tensor that is missing or of another shape.
LayerWeights LoadLayer(const ModelSpec& spec, const LayerTensors& tensors, WeightReader& reader,
                       const MatrixFormat& format, Ops& ops);

// Rows that the vocabulary's matrices get instead of the checkpoint's, by its numbers.
struct VocabularyRows {
  std::vector<TokenId> embedding, head;
};

// Throws CheckpointError that names the first tensor that is missing, of another shape than the
// spec says, or not understood. `rows` may be null: all, as they are.
ModelWeights LoadWeights(const ModelSpec& spec, Checkpoint& checkpoint, const ModelFormats& formats,
                         Ops& ops, const VocabularyRows* rows = nullptr);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_WEIGHTS_H_
