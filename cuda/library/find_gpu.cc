#include "cuda/library/find_gpu.h"

#include <cuda_runtime.h>

#include "cuda/check_cuda.h"
#include "cuda/use_gpu.h"
#include "forerun/error.h"

namespace forerun::cuda {
namespace {

constexpr int kMinComputeCapability = 8;  // major: bfloat16 and asynchronous copies

// CUDA's versions are 1000 * major + 10 * minor.
std::string Version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

[[noreturn]] void Fail(const std::string& found, const std::string& remedy) {
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  throw DeviceError("a GPU of compute capability " + std::to_string(kMinComputeCapability) +
                        ".0 or later and a driver for CUDA " + Version(runtime),
                    found, remedy + ", or use device 'cpu'");
}

std::string RemedyFor(cudaError_t status) {
  switch (status) {
    case cudaErrorInitializationError:
      return "use no GPU before the process forks, or start processes by 'spawn'";
    case cudaErrorStubLibrary:
      return "give the container the machine's driver instead of a stub of libcuda.so";
    case cudaErrorDevicesUnavailable:
      return "end the process that has the GPU for itself";
    case cudaErrorSystemNotReady:
      return "start NVIDIA's fabric manager, which GPUs with an NVSwitch wait for";
    case cudaErrorSystemDriverMismatch:
      return "restart the machine, whose driver was updated";
    default:
      return "see whether nvidia-smi finds the GPU";
  }
}

void CheckFound(cudaError_t status, const std::string& wanted) {
  if (status == cudaSuccess || status == cudaErrorMemoryAllocation) {
    CheckCuda(status, wanted);
    return;
  }
  Fail("CUDA error " + std::to_string(status) + " (" + cudaGetErrorString(status) + ")",
       RemedyFor(status));
}

}  // namespace

std::string FindGpu() {
  const std::string new_driver = "install NVIDIA's current driver";
  int num_gpus = 0;
  const cudaError_t status = cudaGetDeviceCount(&num_gpus);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);  // 0 where there is none
    if (driver == 0) Fail("no NVIDIA driver", new_driver);
    Fail("a driver for CUDA " + Version(driver), new_driver);
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && num_gpus == 0)) {
    Fail("a driver without a GPU", "make one visible (CUDA_VISIBLE_DEVICES)");
  }
  CheckFound(status, "the number of GPUs");
  cudaDeviceProp gpu;
  CheckFound(cudaGetDeviceProperties(&gpu, 0), "the properties of the GPU");
  const std::string description = std::string(gpu.name) + " of compute capability " +
                                  std::to_string(gpu.major) + "." + std::to_string(gpu.minor);
  if (gpu.major < kMinComputeCapability) {
    Fail(description, "make another GPU visible (CUDA_VISIBLE_DEVICES)");
  }
  const UseGpu use;
  CheckFound(cudaSetDevice(0), "the use of " + description);
  return description;
}

}  // namespace forerun::cuda
