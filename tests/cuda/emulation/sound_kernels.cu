#include "cuda/emulation/emulation.h"
#include "tests/cuda/emulation/sound_kernels.h"

namespace forerun::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSumThreads = 96;
constexpr int kTile = 64;

cudaLaunchConfig_t Config(unsigned grid, unsigned block, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.stream = stream;
  return config;
}

__global__ void Fill(int* out, int num, int value) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < num) out[i] = value;
}

__global__ void Sum(const int* in, int num, unsigned long long* out) {
  __shared__ int partial[kSumThreads / 32];
  const int t = static_cast<int>(threadIdx.x);
  int sum = 0;
  for (int i = static_cast<int>(blockIdx.x) * kSumThreads + t; i < num;
       i += static_cast<int>(gridDim.x) * kSumThreads) {
    sum += in[i];
  }
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(kAllLanes, sum, d);
  if (t % 32 == 0) partial[t / 32] = sum;
  __syncthreads();
  if (t == 0) {
    long long total = 0;
    for (int warp = 0; warp < kSumThreads / 32; ++warp) total += partial[warp];
    atomicAdd(out, static_cast<unsigned long long>(total));
  }
}

__global__ void Reverse(const int* in, int* out, bool is_dynamic) {
  __shared__ int tile[kTile];
  int* const buffer = is_dynamic ? static_cast<int*>(emulation::DynamicShared()) : tile;
  const int t = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kTile;
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  buffer[t] = in[first + t];
  __syncthreads();
  out[first + t] = buffer[kTile - 1 - t];
}

}  // namespace

cudaError_t LaunchFill(int* out, int num, int value, cudaStream_t stream) {
  const cudaLaunchConfig_t config = Config(static_cast<unsigned>(num + 63) / 64, 64, stream);
  return cudaLaunchKernelEx(&config, Fill, out, num, value);
}

cudaError_t LaunchSum(const int* in, int num, unsigned long long* out, cudaStream_t stream) {
  const cudaLaunchConfig_t config = Config(3, kSumThreads, stream);
  return cudaLaunchKernelEx(&config, Sum, in, num, out);
}

cudaError_t LaunchReverse(const int* in, int* out, int num_blocks, bool is_dynamic) {
  cudaLaunchConfig_t config = Config(static_cast<unsigned>(num_blocks), kTile, nullptr);
  config.dynamicSmemBytes = is_dynamic ? kTile * sizeof(int) : 0;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, Reverse, in, out, is_dynamic);
}

}  // namespace forerun::cuda
