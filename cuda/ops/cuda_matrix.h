// Packed matrices on a GPU.
#ifndef FORERUN_CUDA_OPS_CUDA_MATRIX_H_
#define FORERUN_CUDA_OPS_CUDA_MATRIX_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpp/ops/packed_matrix.h"
#include "cpp/ops/weight_source.h"
#include "cpp/tensor/memory.h"
#include "cuda/ops/matrix.h"

namespace forerun::cuda {

// Stretches of outputs of one format, in order.
class CudaMatrix final : public PackedMatrix {
 public:
  // Packed, once the stream gets there. Floats become integers of kInt8 and kInt4 only.
  CudaMatrix(std::span<const WeightSource> sources, Memory& memory, cudaStream_t stream);

  std::span<const Matrix> stretches() const { return stretches_; }
  std::int64_t num_bytes() const override;
  void AddBytes(WeightBytes& bytes) const override;

 private:
  std::vector<Matrix> stretches_;
  std::vector<AlignedBuffer> tiles_;
};

// Of the same Ops. REQUIRES: packed by a CudaOps.
const CudaMatrix& MatrixOf(const PackedMatrix& weight);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_CUDA_MATRIX_H_
