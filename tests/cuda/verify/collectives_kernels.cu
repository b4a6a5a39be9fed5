#include "cuda/verify/device.cuh"
#include "tests/cuda/verify/collectives_kernels.h"

namespace forerun::cuda {
namespace {

using Collectives = BlockCollectives<kCollectivesThreads>;

__device__ std::int64_t Collect(Collectives& block, BlockCollective which, int salt) {
  const int thread = static_cast<int>(threadIdx.x), value = ValueOf(thread, salt);
  switch (which) {
    case BlockCollective::kSum:
      return block.Reduce(value, Sum());
    case BlockCollective::kMin:
      return block.Reduce(value, Min());
    case BlockCollective::kBest:
      return block.Reduce(Scored{static_cast<double>(value), thread, 0.0f}, Best()).index;
    case BlockCollective::kSumBefore: {
      Mass total = 0;
      const Mass before = block.SumBefore(static_cast<Mass>(value), total);
      return static_cast<std::int64_t>(before | total << 32);
    }
  }
  return -1;
}

__global__ void __launch_bounds__(kCollectivesThreads)
    Pair(BlockCollective first, BlockCollective second, std::int64_t* out) {
  __shared__ Collectives block;
  out[threadIdx.x] = Collect(block, first, 3);
  out[kCollectivesThreads + threadIdx.x] = Collect(block, second, 50);
}

}  // namespace

cudaError_t LaunchPair(BlockCollective first, BlockCollective second, std::int64_t* out) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(kCollectivesThreads);
  return cudaLaunchKernelEx(&config, Pair, first, second, out);
}

}  // namespace forerun::cuda
