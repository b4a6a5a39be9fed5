// A GPU's memory.
#ifndef FORERUN_CUDA_GPU_MEMORY_H_
#define FORERUN_CUDA_GPU_MEMORY_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "cpp/tensor/memory.h"
#include "cuda/check_cuda.h"
#include "cuda/use_gpu.h"

namespace forerun::cuda {

// Of the GPU of UseGpu, in the order of its default stream.
class GpuMemory : public Memory {
 public:
  void* Allocate(std::size_t num_bytes) override {
    const UseGpu use;
    void* data = nullptr;
    CheckCuda(cudaMalloc(&data, num_bytes), std::to_string(num_bytes) + " bytes of GPU memory");
    return data;
  }
  void Free(void* data) noexcept override {
    const UseGpu use;
    cudaFree(data);
  }
  void Upload(void* to, const void* from, std::size_t num_bytes) override {
    const UseGpu use;
    CheckCuda(cudaMemcpy(to, from, num_bytes, cudaMemcpyHostToDevice), "a copy to the GPU");
  }
  void StartUpload(void* to, const void* from, std::size_t num_bytes) override {
    const UseGpu use;
    CheckCuda(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyHostToDevice), "a copy to the GPU");
  }
  void Download(void* to, const void* from, std::size_t num_bytes) override {
    const UseGpu use;
    CheckCuda(cudaMemcpy(to, from, num_bytes, cudaMemcpyDeviceToHost), "a copy from the GPU");
  }
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_GPU_MEMORY_H_
