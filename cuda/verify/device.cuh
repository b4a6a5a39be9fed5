// What the threads of a block compute together.
//
// All threads of the block call these functions, and all get the result. Values are joined in a
// fixed order that no schedule of the threads changes: sums of doubles are reproducible. What is
// compared with the CPU bit for bit is joined by exact operations (integer sums, least, greatest).
#ifndef FORERUN_CUDA_VERIFY_DEVICE_CUH_
#define FORERUN_CUDA_VERIFY_DEVICE_CUH_

#include <cstring>

#include "cuda/portable.cuh"
#include "cuda/verify/row_state.h"

namespace forerun::cuda {

struct Min {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// A score and the token that has it; of equal scores the lower index is better.
struct Scored {
  double score;
  int index;
  float logit;

  __device__ bool IsBetterThan(const Scored& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};
struct Best {
  __device__ Scored operator()(const Scored& a, const Scored& b) const {
    return b.IsBetterThan(a) ? b : a;
  }
};
__device__ inline Scored NoScore() { return {-INFINITY, kNoToken, 0.0f}; }

template <typename T>
__device__ T ShuffleXor(T value, int lane_mask) {
  static_assert(sizeof(T) % sizeof(unsigned) == 0);
  constexpr int kWords = sizeof(T) / sizeof(unsigned);
  unsigned words[kWords];
  std::memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(kFullWarp, words[i], lane_mask);
  std::memcpy(&value, words, sizeof(T));
  return value;
}

// Lives in shared memory and serves call after call.
template <int kThreads>
class BlockCollectives {
  static_assert(kThreads % kWarpSize == 0);
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kMaxWords = 8;

 public:
  // REQUIRES: join is commutative.
  template <typename T, typename Join>
  __device__ T Reduce(T value, Join join) {
    static_assert(sizeof(T) <= kMaxWords * sizeof(unsigned));
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      value = join(value, ShuffleXor(value, mask));
    }
    if (lane() == 0) std::memcpy(partials_[warp()], &value, sizeof(T));
    __syncthreads();
    T result = Partial<T>(0);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) result = join(result, Partial<T>(w));
    __syncthreads();
    return result;
  }

  // The sum over the threads before this one; `total` gets that over all.
  __device__ Mass SumBefore(Mass value, Mass& total) {
    Mass inclusive = value;
#pragma unroll
    for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
      const Mass before = __shfl_up_sync(kFullWarp, inclusive, delta);
      if (lane() >= static_cast<int>(delta)) inclusive += before;
    }
    if (lane() == kWarpSize - 1) std::memcpy(partials_[warp()], &inclusive, sizeof(Mass));
    __syncthreads();
    Mass sum = 0, sum_before_warp = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp()) sum_before_warp = sum;
      sum += Partial<Mass>(w);
    }
    __syncthreads();
    total = sum;
    return sum_before_warp + inclusive - value;
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }

  template <typename T>
  __device__ T Partial(int w) const {
    T value;
    std::memcpy(&value, partials_[w], sizeof(T));
    return value;
  }

  alignas(16) unsigned partials_[kWarps][kMaxWords];
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_DEVICE_CUH_
