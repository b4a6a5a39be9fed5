// Barriers and collectives that not all threads reach, or not with the same mask. Every build finds
// them, in every order.
#include "cuda/emulation/instructions.h"
#include "tests/cuda/emulation/planted_errors.h"

namespace forerun::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

constexpr FoundBy Always(const char* message) { return {message, message, message}; }

__device__ int Thread() { return static_cast<int>(threadIdx.x); }

__global__ void BarrierInDivergentBranch() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else if (threadIdx.x > 0) {
    __syncthreads();
  }
}
__global__ void BarrierAgainstBarrierWithVote(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[Thread()] = __syncthreads_count(1);
  }
}
__global__ void BarrierAgainstShuffle(int* out) {
  if (threadIdx.x % 32 == 5) {
    __syncthreads();
  } else {
    out[Thread()] = __shfl_xor_sync(kAllLanes, 1, 1);
  }
}
__global__ void BarrierInOneWarp(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[Thread()] = __syncthreads_count(1);
}
__global__ void ReturnBeforeShuffle(int* out) {
  if (threadIdx.x == 7) return;
  out[Thread()] = __shfl_sync(kAllLanes, Thread(), 0);
}
__global__ void ReturnBeforeSyncwarp(int* out) {
  if (threadIdx.x >= 20) return;
  __syncwarp();
  out[Thread()] = 1;
}
__global__ void VoteByHalfWarp(int* out) {
  if (threadIdx.x % 32 < 16) out[Thread()] = __any_sync(kAllLanes, 1);
}
__global__ void ShuffleByFullMaskInShortWarp(int* out) {
  out[Thread()] = __shfl_down_sync(kAllLanes, Thread(), 1);
}
__global__ void MaskWithoutCaller(int* out) { out[Thread()] = __shfl_sync(0xffu, 1, 0); }
__global__ void MasksDiffer(int* out) {
  out[Thread()] = __shfl_sync(threadIdx.x < 16 ? kAllLanes : 0xffff0000u, 1, 16);
}
__global__ void ShuffleFromOutsideMask(int* out) {
  if (threadIdx.x < 16) out[Thread()] = __shfl_sync(0xffffu, 1, 20);
}
__global__ void ShuffleWidthIsNoPowerOf2(int* out) {
  out[Thread()] = __shfl_xor_sync(kAllLanes, 1, 1, 12);
}
__global__ void CollectivesDiffer(int* out) {
  if (threadIdx.x % 32 < 16) {
    out[Thread()] = __shfl_xor_sync(kAllLanes, 1, 1);
  } else {
    out[Thread()] = static_cast<int>(__ballot_sync(kAllLanes, 1));
  }
}
__global__ void SyncwarpOnTwoLines(int* out) {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __syncwarp();
  }
  out[Thread()] = 1;
}
__global__ void ReductionByActiveLanesOnly(int* out) {
  if (threadIdx.x != 3) out[Thread()] = __reduce_add_sync(kAllLanes, Thread());
}
__global__ void ProductByHalfWarp(float* out) {
  float d[4] = {};
  const unsigned a[4] = {}, b[2] = {};
  emulation::MmaM16N8K16(d, a, b);
  out[Thread()] = d[0];
}
__global__ void ProductInDivergentBranch(float* out) {
  float d[4] = {};
  const unsigned a[4] = {}, b[2] = {};
  if (threadIdx.x < 16) emulation::MmaM16N8K16(d, a, b);
  __syncthreads();
  out[Thread()] = d[0];
}

template <class T, void (*kKernel)(T*), unsigned kThreads>
std::string RunOn() {
  const Scratch out(1024);
  return Run(1, kThreads, 0, kKernel, out.get<T>());
}

}  // namespace

std::vector<PlantedError> PlantedDivergence() {
  return {
      {"BarrierInDivergentBranch", Always("divergent __syncthreads"),
       [] { return Run(1, 64, 0, BarrierInDivergentBranch); }},
      {"BarrierAgainstBarrierWithVote", Always("divergent __syncthreads"),
       RunOn<int, BarrierAgainstBarrierWithVote, 64>},
      {"BarrierAgainstShuffle", Always("deadlock"), RunOn<int, BarrierAgainstShuffle, 32>},
      {"BarrierInOneWarp", Always("divergent __syncthreads"), RunOn<int, BarrierInOneWarp, 64>},
      {"ReturnBeforeShuffle", Always("exit"), RunOn<int, ReturnBeforeShuffle, 32>},
      {"ReturnBeforeSyncwarp", Always("exit"), RunOn<int, ReturnBeforeSyncwarp, 32>},
      {"VoteByHalfWarp", Always("exit"), RunOn<int, VoteByHalfWarp, 64>},
      {"ShuffleByFullMaskInShortWarp", Always("do not exist"),
       RunOn<int, ShuffleByFullMaskInShortWarp, 20>},
      {"MaskWithoutCaller", Always("calling lane is not in mask"),
       RunOn<int, MaskWithoutCaller, 32>},
      {"MasksDiffer", Always("__shfl_sync"), RunOn<int, MasksDiffer, 32>},
      {"ShuffleFromOutsideMask", Always("which is not in mask"),
       RunOn<int, ShuffleFromOutsideMask, 32>},
      {"ShuffleWidthIsNoPowerOf2", Always("not a power of 2"),
       RunOn<int, ShuffleWidthIsNoPowerOf2, 32>},
      {"CollectivesDiffer", Always("divergent warp collective"), RunOn<int, CollectivesDiffer, 32>},
      {"SyncwarpOnTwoLines", Always("divergent warp collective"),
       RunOn<int, SyncwarpOnTwoLines, 32>},
      {"ReductionByActiveLanesOnly", Always("exit"), RunOn<int, ReductionByActiveLanesOnly, 32>},
      {"ProductByHalfWarp", Always("do not exist"), RunOn<float, ProductByHalfWarp, 16>},
      {"ProductInDivergentBranch", Always("deadlock"), RunOn<float, ProductInDivergentBranch, 32>},
  };
}

}  // namespace forerun::cuda
