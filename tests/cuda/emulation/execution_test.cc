// That sound kernels give their results in every order, and that what they move is counted.
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "cuda/emulation/emulation.h"
#include "cuda/emulation/in_every_order.h"
#include "tests/cuda/emulation/device_array.h"
#include "tests/cuda/emulation/sound_kernels.h"

namespace forerun::emulation {
namespace {

class EmulatedExecutionTest : public testing::Test {
 protected:
  void SetUp() override { Reset(); }
};

TEST_F(EmulatedExecutionTest, ReversesThroughSharedMemoryInEveryOrder) {
  std::vector<int> values(5 * 64);
  std::iota(values.begin(), values.end(), 3);
  const DeviceArray<int> in(values);
  int num_runs = 0;
  InEveryOrder([&] {
    for (const bool is_dynamic : {false, true}) {
      const DeviceArray<int> out(values.size());
      ASSERT_EQ(cuda::LaunchReverse(in.get(), out.get(), 5, is_dynamic), cudaSuccess);
      const std::vector<int> result = out.Download();
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(result[i], values[i / 64 * 64 + 63 - i % 64]);
      }
      ++num_runs;
    }
  });
  EXPECT_EQ(num_runs, 10);
}

TEST_F(EmulatedExecutionTest, SumsOfBlocksAreTheSameInEveryOrder) {
  for (const int num : {1, 31, 96, 97, 1000}) {
    std::vector<int> values(static_cast<std::size_t>(num));
    std::iota(values.begin(), values.end(), 1);
    const DeviceArray<int> in(values);
    InEveryOrder([&] {
      const DeviceArray<unsigned long long> out(std::vector<unsigned long long>{7});
      ASSERT_EQ(cuda::LaunchSum(in.get(), num, out.get(), nullptr), cudaSuccess);
      ASSERT_EQ(out.Download()[0], 7u + static_cast<unsigned>(num * (num + 1) / 2));
    });
  }
}

TEST_F(EmulatedExecutionTest, CountsWhatIsMovedAndLaunched) {
  const DeviceArray<int> in(std::vector<int>(1000, 1));
  const DeviceArray<unsigned long long> out(std::vector<unsigned long long>{0});
  Reset();
  WatchLoads(in.get(), 500 * sizeof(int));
  ASSERT_EQ(cuda::LaunchSum(in.get(), 1000, out.get(), nullptr), cudaSuccess);
  EXPECT_EQ(out.Download()[0], 1000u);
  EXPECT_EQ(counters().launches, 1u);
  EXPECT_EQ(counters().blocks, 3u);
  EXPECT_EQ(counters().threads, 3u * 96);
  EXPECT_EQ(counters().barriers, 3u);
  EXPECT_EQ(counters().bytes_to_device, 0u);
  EXPECT_EQ(counters().copies_from_device, 1u);
  EXPECT_EQ(counters().bytes_from_device, sizeof(unsigned long long));
  EXPECT_EQ(counters().waits, 1u);
  const std::vector<KernelCounters> kernels = CountersByKernel();
  ASSERT_EQ(kernels.size(), 1u);
  EXPECT_NE(kernels[0].name.find("Sum"), std::string::npos) << kernels[0].name;
  EXPECT_EQ(kernels[0].launches, 1u);
  if (DetectsRaces()) {
    EXPECT_EQ(kernels[0].bytes_loaded, 1000 * sizeof(int) + 3 * sizeof(unsigned long long));
    EXPECT_EQ(kernels[0].bytes_stored, 3 * sizeof(unsigned long long));
    EXPECT_EQ(counters().watched_bytes_loaded, 500 * sizeof(int));
  }
}

}  // namespace
}  // namespace forerun::emulation
