// Groups of integer weights: how they are made from floats, and where they lie in a tile.
#ifndef FORERUN_CPP_OPS_CPU_WEIGHT_GROUPS_H_
#define FORERUN_CPP_OPS_CPU_WEIGHT_GROUPS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "cpp/ops/weight_source.h"

namespace forerun {

struct IntegerKernels;

// One output's weights for a group of inputs, as stored in a format that takes floats.
struct WeightGroup {
  std::uint8_t stored[kWeightGroup] = {};
  std::uint16_t scale = 0;    // float16
  std::uint16_t minimum = 0;  // likewise; 0 where the format has none
};

// For the formats that no option asks for. The nearest integers for a scale that leaves out none of
// the weights, but for int5: there, as in GGUF's Q5_0, the weight of the largest magnitude becomes
// -16, and its opposite is one too many. Weights that are not finite, or have no finite scale or
// minimum in float16, make the scale NaN. REQUIRES: neither kInt8 nor kInt4.
WeightGroup QuantizeWeights(const float* weights, int count, IntegerFormat format);

// Weights [kWeightGroup, kLanes] of sixteen outputs, zeros from `count` on, by the formulas of
// docs/quantization.md. It may change them. What is not finite is treated as in QuantizeWeights.
void QuantizeGroup(float* weights, int count, WeightFormat format, int group,
                   const IntegerKernels& kernels, std::byte* tile);

// `group` counts over a tile.
void PutGroup(const WeightGroup& source, IntegerFormat format, int group, int lane,
              std::byte* tile);

// Copies a row of ready integers and what scales them. False where a value does not fit.
bool PutRow(const IntegerView& source, int row, int lane, std::byte* tile);

// out = factor * the first weights of a group.
void Dequantize(const std::byte* tile, IntegerFormat format, int group, int lane, float factor,
                std::span<float> out);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_WEIGHT_GROUPS_H_
