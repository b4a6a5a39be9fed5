// Two collectives of a block in a row, over one scratch object.
#ifndef FORERUN_TESTS_CUDA_VERIFY_COLLECTIVES_KERNELS_H_
#define FORERUN_TESTS_CUDA_VERIFY_COLLECTIVES_KERNELS_H_

#include <cuda_runtime.h>

#include <cstdint>

namespace forerun::cuda {

constexpr int kCollectivesThreads = 96;
enum class BlockCollective { kSum, kMin, kBest, kSumBefore };
constexpr int kNumBlockCollectives = 4;

// The value that thread `thread` brings; equal ones occur.
constexpr int ValueOf(int thread, int salt) { return (thread * 37 + salt) % 61; }

// out[i * 96 + thread] is what the thread gets from the i-th, where kSumBefore gives the sum before
// the thread plus 2^32 times the total, and kBest the index of the first of the greatest values.
cudaError_t LaunchPair(BlockCollective first, BlockCollective second, std::int64_t* out);

}  // namespace forerun::cuda

#endif  // FORERUN_TESTS_CUDA_VERIFY_COLLECTIVES_KERNELS_H_
