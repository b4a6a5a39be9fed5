// Groups of integer weights: how they are made from floats, and where they lie in a tile.
#ifndef FORERUN_CPP_OPS_CPU_WEIGHT_GROUPS_H_
#define FORERUN_CPP_OPS_CPU_WEIGHT_GROUPS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "cpp/ops/weight_source.h"

namespace forerun {

// One output's weights for a group of inputs, as stored in a format that takes floats.
struct WeightGroup {
  std::uint8_t stored[kWeightGroup] = {};
  std::uint16_t scale = 0;    // float16
  std::uint16_t minimum = 0;  // likewise; 0 where the format has none
};

// The nearest integers for a scale that leaves out none of the weights, but for int4 and int5:
// there, as in GGUF's Q4_0 and Q5_0, the weight of the largest magnitude becomes -8 or -16, and its
// opposite is one too many.
// Weights that are not finite, or have no finite scale or minimum in float16, make the scale NaN.
WeightGroup QuantizeWeights(const float* weights, int count, IntegerFormat format);

// `group` counts over a tile, whose bytes were 0.
void PutGroup(const WeightGroup& source, IntegerFormat format, int group, int lane,
              std::byte* tile);

// Copies a row of ready integers and what scales them. False where a value does not fit.
bool PutRow(const IntegerView& source, int row, int lane, std::byte* tile);

// out = factor * the first weights of a group.
void Dequantize(const std::byte* tile, IntegerFormat format, int group, int lane, float factor,
                std::span<float> out);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_WEIGHT_GROUPS_H_
