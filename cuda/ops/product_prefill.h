// Products of many rows, as in prompts.
#ifndef FORERUN_CUDA_OPS_PRODUCT_PREFILL_H_
#define FORERUN_CUDA_OPS_PRODUCT_PREFILL_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/ops/product.h"

namespace forerun::cuda {

// A product's x as its kernel reads it, in the GPU's memory.
struct RoundedRows {
  std::uint16_t* values;  // bfloat16 [num_rows, inputs of whole steps], multiplied by the norm
  float* inverses;        // [num_rows], of the root mean square; unused without a norm
};
std::size_t RoundedBytes(int num_rows, int num_inputs);
// In memory of RoundedBytes.
RoundedRows RoundedRowsIn(void* memory, int num_rows, int num_inputs);

// Whether the product is one of many rows, and of bfloat16 weights.
bool IsPrefill(const Matrix& matrix, int num_rows);

// Of task.x, for matrices with as many inputs.
cudaError_t RoundRows(const ProductTask& task, int num_inputs, const RoundedRows& out,
                      cudaStream_t stream);
// The bits of Multiply. REQUIRES: IsPrefill; `x` is of RoundRows.
cudaError_t MultiplyPrefill(const Matrix& matrix, const ProductTask& task, const RoundedRows& x,
                            cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_PRODUCT_PREFILL_H_
