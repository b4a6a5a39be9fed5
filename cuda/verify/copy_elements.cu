#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/portable.cuh"
#include "cuda/verify/copy_elements.h"

namespace forerun::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 4096;

template <typename T>
__device__ T LoadAnywhere(const std::byte* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % sizeof(T) == 0) {
    return *reinterpret_cast<const T*>(from);
  }
  T value = 0;  // little-endian, as all GPUs are
  for (unsigned i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value | static_cast<T>(from[i]) << (8 * i));
  }
  return value;
}

template <typename T>
__global__ void Copy(StridedElements from, T* to) {
  const auto* const data = static_cast<const std::byte*>(from.data);
  const std::int64_t size = std::int64_t{from.rows} * from.cols;
  const std::int64_t step = std::int64_t{blockDim.x} * gridDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += step) {
    const std::int64_t row = i / from.cols;
    const std::int64_t col = i % from.cols;
    to[i] = LoadAnywhere<T>(data + row * from.row_stride + col * from.col_stride);
  }
}

template <typename T>
cudaError_t Launch(const StridedElements& from, void* to, cudaStream_t stream) {
  const std::int64_t size = std::int64_t{from.rows} * from.cols;
  if (size == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  const std::int64_t num_blocks = (size + kThreads - 1) / kThreads;
  config.gridDim = dim3(static_cast<unsigned>(std::min<std::int64_t>(num_blocks, kMaxBlocks)));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, Copy<T>, from, static_cast<T*>(to));
}

}  // namespace

cudaError_t CopyElements(const StridedElements& from, void* to, cudaStream_t stream) {
  switch (from.element_bytes) {
    case 2:
      return Launch<std::uint16_t>(from, to, stream);
    case 4:
      return Launch<std::uint32_t>(from, to, stream);
    case 8:
      return Launch<std::uint64_t>(from, to, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace forerun::cuda
