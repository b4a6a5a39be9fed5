// Strided elements made dense: what other libraries' tensors need before kernels on rows read them.
#ifndef FORERUN_CUDA_VERIFY_COPY_ELEMENTS_H_
#define FORERUN_CUDA_VERIFY_COPY_ELEMENTS_H_

#include <cuda_runtime.h>

#include <cstdint>

namespace forerun::cuda {

// A matrix in device memory. It need not be aligned, and strides may be 0 or negative.
struct StridedElements {
  const void* data = nullptr;
  int element_bytes = 4;  // 2, 4 or 8
  int rows = 0, cols = 0;
  std::int64_t row_stride = 0, col_stride = 1;  // in bytes
};

// to [rows, cols] = from, dense and row-major. `to` is aligned to its elements.
cudaError_t CopyElements(const StridedElements& from, void* to, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_COPY_ELEMENTS_H_
