// Tiles: the weights of sixteen outputs, in the order in which a product reads them.
#ifndef FORERUN_CPP_OPS_CPU_WEIGHT_TILE_H_
#define FORERUN_CPP_OPS_CPU_WEIGHT_TILE_H_

#include <cstdint>

#include "cpp/ops/weight_format.h"
#include "cpp/util/simd/lanes.h"

namespace forerun {

// A tile is a sequence of steps, each the weights of its outputs for some inputs:
//
//   kBFloat16  [16, 2]: a pair of inputs for every output
//   kFloat32   [2, 16]
//   integers   for two groups: scales [2, 16], minima [2, 16] where the format has them, then
//              [2, loads, 16, 4] bytes: four inputs, a quad, for every output. Of less than 8 bits,
//              load i has the low four of quads i and i + 4, in the low and the high halves of its
//              bytes. A fifth bit is in one more load: that of quad i is bit i.
//
// Steps of integers are whole cache lines. What fills the last step up is stored as 0.
struct TileStep {
  int num_inputs;
  int num_bytes;
};

inline constexpr int kGroupsPerStep = 2;
inline constexpr int kInputsPerQuad = 4;
inline constexpr int kLoadBytes = kLanes * kInputsPerQuad;

// Of the scales and minima that a step of integers begins with.
constexpr int HeaderBytes(IntegerFormat integers) {
  return kGroupsPerStep * kLanes * 2 * (integers.has_minimum ? 2 : 1);
}

// Loads of a group.
constexpr int NumLoads(IntegerFormat integers) {
  return kWeightGroup / kInputsPerQuad * integers.bits / 8;
}

constexpr TileStep StepOf(WeightFormat format) {
  if (format == WeightFormat::kFloat32) return {2, 2 * kLanes * 4};
  if (format == WeightFormat::kBFloat16) return {2, 2 * kLanes * 2};
  const IntegerFormat integers = IntegersOf(format);
  return {kGroupsPerStep * kWeightGroup,
          HeaderBytes(integers) + kGroupsPerStep * NumLoads(integers) * kLoadBytes};
}

constexpr int NumSteps(WeightFormat format, int num_inputs) {
  const int step_inputs = StepOf(format).num_inputs;
  return (num_inputs + step_inputs - 1) / step_inputs;
}

constexpr std::int64_t TileBytes(WeightFormat format, int num_inputs) {
  return std::int64_t{StepOf(format).num_bytes} * NumSteps(format, num_inputs);
}

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_WEIGHT_TILE_H_
