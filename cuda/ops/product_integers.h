// Products with integer weights.
#ifndef FORERUN_CUDA_OPS_PRODUCT_INTEGERS_H_
#define FORERUN_CUDA_OPS_PRODUCT_INTEGERS_H_

#include <cuda_runtime.h>

#include "cuda/ops/product.h"

namespace forerun::cuda {

// As Multiply. REQUIRES: HasIntegers(matrix.format).
cudaError_t MultiplyIntegers(const Matrix& matrix, const ProductTask& task, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_PRODUCT_INTEGERS_H_
