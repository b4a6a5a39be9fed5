// Weights as the kernels of products read them.
#ifndef FORERUN_CUDA_OPS_MATRIX_H_
#define FORERUN_CUDA_OPS_MATRIX_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cpp/ops/weight_format.h"
#include "cpp/ops/weight_source.h"
#include "cpp/tensor/dtype.h"

namespace forerun::cuda {

// A tile is the weights of sixteen outputs; what the last one has no outputs for, and what the last
// step has no inputs for, is 0.
//
//   kBFloat16  steps of sixteen inputs, [32 lanes, 4 words]: what a lane of MultiplyAdd holds of a
//   kFloat32   [inputs rounded up to kStepInputs, 16], of float16 where the weights came as such
//   integers   as integer_tile.cuh says
inline constexpr int kTileOutputs = 16;
inline constexpr int kStepInputs = 16;
inline constexpr int kUnitInputs = 4 * kStepInputs;  // of integers

// Neighbouring outputs that were one matrix: they begin with a tile of their own.
struct MatrixPart {
  int first_tile;
  int first_output;
  int num_outputs;
};

inline constexpr int kMaxParts = 4;

// A [num_outputs, num_inputs] weight on the GPU, by value to kernels.
struct Matrix {
  const void* tiles = nullptr;
  WeightFormat format = WeightFormat::kFloat32;
  IntegerFormat integers = {};
  DType stored = DType::kFloat32;  // of floats: what the tiles hold
  int num_inputs = 0;
  int num_tiles = 0;
  int num_parts = 0;
  MatrixPart parts[kMaxParts] = {};
};

inline __host__ __device__ int NumSteps(int num_inputs) {
  return (num_inputs + kStepInputs - 1) / kStepInputs;
}
inline __host__ __device__ int NumUnits(int num_inputs) {
  return (num_inputs + kUnitInputs - 1) / kUnitInputs;
}
// Of weights with the matrix's format and inputs.
std::int64_t TileBytes(const Matrix& matrix);
// What the tiles of such floats hold: float16 has all that float32 would have of them.
inline DType StoredType(WeightFormat format, DType source) {
  if (format == WeightFormat::kBFloat16) return DType::kBFloat16;
  return source == DType::kFloat16 ? DType::kFloat16 : DType::kFloat32;
}

// Rows [num_outputs, num_inputs] of a source in the GPU's memory, dense.
struct MatrixSource {
  const void* rows;
  DType dtype;  // a float
  int num_outputs;
  int num_inputs;
};

// Writes the tiles of `source`, the first one at `tiles`, as floats.
cudaError_t PackTiles(const MatrixSource& source, WeightFormat format, void* tiles,
                      cudaStream_t stream);

// Writes the tiles of integers, which are in the GPU's memory.
cudaError_t PackIntegerTiles(const IntegerView& source, void* tiles, cudaStream_t stream);

// Integers and float16 scales in the GPU's memory, as in an IntegerView.
struct QuantizedRows {
  std::int8_t* values;
  std::uint16_t* scales;
};
// The nearest integers of kInt8 or kInt4: those that the CPU makes of the same floats.
cudaError_t QuantizeRows(const MatrixSource& source, WeightFormat format, const QuantizedRows& out,
                         cudaStream_t stream);

// out[r] = scale * the weights of output tokens[r].
struct EmbedTask {
  const std::int32_t* tokens;
  int num_rows;
  float scale;
  float* out;
  std::int64_t out_stride;
};
cudaError_t Embed(const Matrix& table, const EmbedTask& task, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_MATRIX_H_
