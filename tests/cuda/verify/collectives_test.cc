// Every pair of a block's collectives, one after the other over one scratch object: each must leave
// it fit for the next, which kernels rely on although few calls follow so closely.
#include <gtest/gtest.h>

#include <vector>

#include "cuda/emulation/in_every_order.h"
#include "tests/cuda/verify/collectives_kernels.h"

namespace forerun::cuda {
namespace {

std::int64_t Expected(BlockCollective which, int salt, int thread) {
  std::int64_t sum = 0, before = 0;
  int least = ValueOf(0, salt), best = 0;
  for (int i = 0; i < kCollectivesThreads; ++i) {
    const int value = ValueOf(i, salt);
    if (i < thread) before += value;
    sum += value;
    if (value < least) least = value;
    if (value > ValueOf(best, salt)) best = i;
  }
  switch (which) {
    case BlockCollective::kSum:
      return sum;
    case BlockCollective::kMin:
      return least;
    case BlockCollective::kBest:
      return best;
    case BlockCollective::kSumBefore:
      return before | sum << 32;
  }
  return -1;
}

TEST(BlockCollectivesTest, EachLeavesTheScratchFitForTheNext) {
  std::int64_t* out = nullptr;
  ASSERT_EQ(cudaMalloc(&out, 2 * kCollectivesThreads * sizeof *out), cudaSuccess);
  std::vector<std::int64_t> found(2 * kCollectivesThreads);
  emulation::InEveryOrder([&] {
    for (int pair = 0; pair < kNumBlockCollectives * kNumBlockCollectives; ++pair) {
      const auto first = static_cast<BlockCollective>(pair / kNumBlockCollectives);
      const auto second = static_cast<BlockCollective>(pair % kNumBlockCollectives);
      ASSERT_EQ(LaunchPair(first, second, out), cudaSuccess);
      ASSERT_EQ(cudaMemcpy(found.data(), out, found.size() * sizeof *out, cudaMemcpyDeviceToHost),
                cudaSuccess);
      for (int thread = 0; thread < kCollectivesThreads; ++thread) {
        ASSERT_EQ(found[static_cast<std::size_t>(thread)], Expected(first, 3, thread)) << pair;
        ASSERT_EQ(found[static_cast<std::size_t>(kCollectivesThreads + thread)],
                  Expected(second, 50, thread))
            << pair;
      }
    }
  });
  EXPECT_EQ(cudaFree(out), cudaSuccess);
}

}  // namespace
}  // namespace forerun::cuda
