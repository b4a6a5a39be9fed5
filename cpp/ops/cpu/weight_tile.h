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
//
// Inputs that fill the last step are zeros.
struct TileStep {
  int num_inputs;
  int num_bytes;
};

constexpr TileStep StepOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFloat32:
      return {2, 2 * kLanes * 4};
    case WeightFormat::kBFloat16:
      return {2, 2 * kLanes * 2};
  }
  return {};
}

constexpr std::int64_t TileBytes(WeightFormat format, int num_inputs) {
  const TileStep step = StepOf(format);
  return std::int64_t{step.num_bytes} * ((num_inputs + step.num_inputs - 1) / step.num_inputs);
}

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_WEIGHT_TILE_H_
