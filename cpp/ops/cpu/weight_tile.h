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
//   integers   a header of scales, then for every group [loads, 16, 4] bytes: four inputs, a quad,
//              for every output. Of less than 8 bits, load i has the low four of quads i and i + n
//              (n half the quads of a group), in the low and the high halves of its bytes. Those
//              above are in one more load: those of quad i are 1 or 2 bits from bit i or 2 i on.
//
// Headers, by ScaleKind, G groups in a step:
//
//   kScale      [G, 16] scales
//   kMinimum    [G, 16] scales, [G, 16] minima
//   kSuper      [16] scales, [16] minima, [G, 16] and [G, 16] bytes: sub-scales and sub-minima
//   kSubScale   [16] scales, [G, 16] bytes: sub-scales
//   kZeroPoint  [16] the high 16 bits of scales, [16] the next 8, [16] bytes: zeros
//
// Steps of integers are whole cache lines. What fills the last step up is stored as 0.
struct TileStep {
  int num_inputs;
  int num_bytes;
};

inline constexpr int kInputsPerQuad = 4;
inline constexpr int kLoadBytes = kLanes * kInputsPerQuad;
inline constexpr int kHalfVector = kLanes * 2;  // bytes of sixteen float16
// Rows of activations are filled up to a multiple of as many; so are steps without a block.
inline constexpr int kPaddedInputs = 2 * kWeightGroup;

constexpr int StepInputs(IntegerFormat integers) {
  return integers.block() != 0 ? integers.block() : kPaddedInputs;
}
constexpr int GroupsPerStep(IntegerFormat integers) {
  return StepInputs(integers) / integers.group;
}

constexpr int HeaderBytes(IntegerFormat integers) {
  const int groups = GroupsPerStep(integers);
  switch (integers.scales) {
    case ScaleKind::kScale:
      return groups * kHalfVector;
    case ScaleKind::kMinimum:
      return 2 * groups * kHalfVector;
    case ScaleKind::kSuper:
      return 2 * kHalfVector + 2 * groups * kLanes;
    case ScaleKind::kSubScale:
      return (kHalfVector + groups * kLanes + kLoadBytes - 1) / kLoadBytes * kLoadBytes;
    case ScaleKind::kZeroPoint:
      return kHalfVector + 2 * kLanes;
  }
  return 0;
}

// Where a group's share of a header begins: its scales, or its sub-scales; then its minima, or its
// sub-minima.
constexpr int ScaleOffset(IntegerFormat integers, int group) {
  switch (integers.scales) {
    case ScaleKind::kSuper:
      return 2 * kHalfVector + group * kLanes;
    case ScaleKind::kSubScale:
      return kHalfVector + group * kLanes;
    case ScaleKind::kZeroPoint:
      return 0;
    default:
      return group * kHalfVector;
  }
}
constexpr int MinimumOffset(IntegerFormat integers, int group) {
  if (integers.scales == ScaleKind::kZeroPoint) return kHalfVector + kLanes;
  return ScaleOffset(integers, group + GroupsPerStep(integers));
}

// Loads of a group: all of them, and those of the low four bits.
constexpr int NumLoads(IntegerFormat integers) {
  return integers.group / kInputsPerQuad * integers.bits / 8;
}
constexpr int NumLowLoads(IntegerFormat integers) {
  return integers.group / kInputsPerQuad * (integers.bits == 8 ? 8 : 4) / 8;
}
constexpr int LoadsOffset(IntegerFormat integers, int group) {
  return HeaderBytes(integers) + group * NumLoads(integers) * kLoadBytes;
}

constexpr TileStep StepOf(WeightFormat format) {
  if (format == WeightFormat::kFloat32) return {2, 2 * kLanes * 4};
  if (format == WeightFormat::kBFloat16) return {2, 2 * kLanes * 2};
  const IntegerFormat integers = IntegersOf(format);
  return {StepInputs(integers), LoadsOffset(integers, GroupsPerStep(integers))};
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
