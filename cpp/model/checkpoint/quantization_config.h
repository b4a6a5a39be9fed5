// `quantization_config` of config.json: how a checkpoint stores the weights of linear layers.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_QUANTIZATION_CONFIG_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_QUANTIZATION_CONFIG_H_

#include <string>

#include "cpp/model/checkpoint/json.h"

namespace forerun {

enum class LinearLayout {
  kFloats,  // weight
  kGptq,    // qweight, packed along inputs; qzeros, scales, g_idx
  kAwq,     // qweight, packed along outputs in the order of AWQ's "gemm"; qzeros, scales
  kPacked,  // weight_packed, packed along inputs; weight_scale, weight_zero_point: the
            // "pack-quantized" of compressed-tensors
  kInt8     // weight of int8; weight_scale, weight_zero_point: its "int-quantized"
};

// A layer that has a plain weight is stored as floats in any case.
struct LinearQuantization {
  LinearLayout layout = LinearLayout::kFloats;
  int bits = 4;
  int group_size = 0;               // inputs that share a scale; 0: all of an output
  bool has_one_scale = false;       // for the whole matrix
  bool is_symmetric = true;         // the zero point is half of the range
  bool stores_zero_less_1 = false;  // GPTQ's first version
  bool has_any_order = false;       // inputs are in any groups, which a tensor names
};

// config.json of a directory. Empty where there is none: a drafter may come without.
JsonObject ReadOptionalConfig(const std::string& directory);

// Of a whole config.json: how a checkpoint was quantized, empty if it was not. "gguf" is what the
// converter of GGUF files writes.
std::string ReadQuantizationMethod(const JsonObject& config);

// Of a whole config.json. Throws CheckpointError that names the first field whose value is not
// supported; fields that say how the checkpoint was made are not read.
LinearQuantization ReadLinearQuantization(const JsonObject& config);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_QUANTIZATION_CONFIG_H_
