// Products of rows with weights.
#ifndef FORERUN_CUDA_OPS_PRODUCT_H_
#define FORERUN_CUDA_OPS_PRODUCT_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cpp/ops/activation.h"
#include "cuda/ops/matrix.h"

namespace forerun::cuda {

// y = x W^T (+ bias) (+ y when `accumulate`). With `norm`, x is first divided by the root of its
// mean square and multiplied by it. Gated, y = activation(g) * u, where W's first half of outputs
// gives g and its second half u.
//
// An output is the sum of kNumSplits partial sums over consecutive steps of inputs, whose borders
// depend on the number of inputs alone: not on the number of rows, nor on the row's.
struct ProductTask {
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  int num_rows = 0;
  const float* norm = nullptr;  // [num_inputs] or null
  float eps = 0.0f;
  const float* bias = nullptr;  // [num_outputs] or null
  bool accumulate = false;
  bool gated = false;
  Activation activation = Activation::kSilu;
  float* y = nullptr;
  std::int64_t y_stride = 0;
};
inline constexpr int kNumSplits = 8;
// For as many rows Multiply reads weights once.
inline constexpr int kMaxRowsAtOnce = 64;

// Whether a product with the matrix can be gated: its halves must be two parts.
bool CanBeGated(const Matrix& matrix);

// REQUIRES: y and x do not overlap; CanBeGated where `gated`.
cudaError_t Multiply(const Matrix& matrix, const ProductTask& task, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_PRODUCT_H_
