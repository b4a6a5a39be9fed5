// Collectives, atomics, matrix instructions and asynchronous copies against the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/emulation/emulation.h"
#include "cuda/emulation/in_every_order.h"
#include "tests/cuda/emulation/device_array.h"
#include "tests/cuda/emulation/instruction_kernels.h"

namespace forerun::emulation {
namespace {

class EmulatedInstructionTest : public testing::Test {
 protected:
  void SetUp() override { Reset(); }
};

// What lane `lane` gets from each collective, as CUDA documents them.
std::vector<unsigned> Expected(const std::vector<int>& in, int lane, int operand, int width) {
  const int base = lane / width * width, local = lane - base;
  const auto at = [&](int i) { return static_cast<unsigned>(in[static_cast<std::size_t>(i)]); };
  std::vector<unsigned> bits(32);
  for (int i = 0; i < 32; ++i) bits[static_cast<std::size_t>(i)] = at(i);
  unsigned ballot = 0, match = 0, all_and = ~0u, all_or = 0, all_xor = 0;
  for (int i = 0; i < 32; ++i) {
    ballot |= (in[static_cast<std::size_t>(i)] > 0 ? 1u : 0u) << i;
    match |= (at(i) == at(lane) ? 1u : 0u) << i;
    all_and &= at(i);
    all_or |= at(i);
    all_xor ^= at(i);
  }
  const int partner = lane ^ operand;
  return {at(base + operand % width),
          local >= operand ? at(lane - operand) : at(lane),
          local + operand < width ? at(lane + operand) : at(lane),
          partner < base + width ? at(partner) : at(lane),
          ballot,
          ballot != 0 ? 1u : 0u,
          ballot == ~0u ? 1u : 0u,
          std::accumulate(bits.begin(), bits.end(), 0u),
          *std::min_element(bits.begin(), bits.end()),
          *std::max_element(bits.begin(), bits.end()),
          static_cast<unsigned>(*std::min_element(in.begin(), in.end())),
          static_cast<unsigned>(*std::max_element(in.begin(), in.end())),
          all_and,
          all_or,
          all_xor,
          match};
}

TEST_F(EmulatedInstructionTest, CollectivesGiveEachLaneItsValue) {
  std::mt19937 random(1);
  for (int round = 0; round < 40; ++round) {
    std::vector<int> in(32);
    for (int& value : in) value = static_cast<int>(random() % 7) - (round % 8);
    if (round % 5 == 0) in[random() % 32] = static_cast<int>(random());
    const int operand = static_cast<int>(random() % 32), width = 1 << random() % 6;
    const DeviceArray<int> device_in(in);
    InEveryOrder([&] {
      const DeviceArray<unsigned> out(32 * cuda::kNumCollectives);
      ASSERT_EQ(cuda::LaunchCollectives(device_in.get(), operand, width, out.get()), cudaSuccess);
      const std::vector<unsigned> result = out.Download();
      for (int lane = 0; lane < 32; ++lane) {
        const std::vector<unsigned> expected = Expected(in, lane, operand, width);
        for (int i = 0; i < cuda::kNumCollectives; ++i) {
          ASSERT_EQ(result[static_cast<std::size_t>(i * 32 + lane)],
                    expected[static_cast<std::size_t>(i)])
              << "collective " << i << ", lane " << lane << ", operand " << operand << ", width "
              << width;
        }
      }
    });
  }
}

TEST_F(EmulatedInstructionTest, ShufflesMove64Bits) {
  std::vector<unsigned long long> in(32);
  for (std::size_t i = 0; i < 32; ++i) in[i] = 0x123456789abcdef0ull * (i + 1);
  const DeviceArray<unsigned long long> device_in(in), out(32);
  ASSERT_EQ(cuda::LaunchWideShuffle(device_in.get(), out.get()), cudaSuccess);
  std::reverse(in.begin(), in.end());
  EXPECT_EQ(out.Download(), in);
}

TEST_F(EmulatedInstructionTest, ProductOfTilesRoundsOncePerElement) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<__nv_bfloat16> a(16 * 16), b(8 * 16);
  std::vector<float> d(16 * 8);
  for (auto& value : a) value = __float2bfloat16(normal(random));
  for (auto& value : b) value = __float2bfloat16(normal(random));
  for (auto& value : d) value = normal(random);
  const DeviceArray<__nv_bfloat16> device_a(a), device_b(b);
  InEveryOrder([&] {
    const DeviceArray<float> device_d(d);
    ASSERT_EQ(cuda::LaunchProduct(device_a.get(), device_b.get(), device_d.get()), cudaSuccess);
    const std::vector<float> result = device_d.Download();
    for (std::size_t row = 0; row < 16; ++row) {
      for (std::size_t column = 0; column < 8; ++column) {
        double sum = d[row * 8 + column];
        for (std::size_t k = 0; k < 16; ++k) {
          sum += static_cast<double>(__bfloat162float(a[row * 16 + k])) *
                 __bfloat162float(b[column * 16 + k]);
        }
        ASSERT_EQ(result[row * 8 + column], static_cast<float>(sum));
      }
    }
  });
}

TEST_F(EmulatedInstructionTest, MatricesAreSpreadOverLanes) {
  std::vector<unsigned short> in(32 * 8);
  std::iota(in.begin(), in.end(), static_cast<unsigned short>(1));
  const DeviceArray<unsigned short> device_in(in);
  for (const bool is_transposed : {false, true}) {
    const DeviceArray<unsigned> out(128);
    ASSERT_EQ(cuda::LaunchLoadMatrix(device_in.get(), is_transposed, out.get()), cudaSuccess);
    const std::vector<unsigned> result = out.Download();
    for (std::size_t lane = 0; lane < 32; ++lane) {
      for (std::size_t matrix = 0; matrix < 4; ++matrix) {
        const std::size_t row = lane / 4, column = lane % 4 * 2;
        const auto at = [&](std::size_t r, std::size_t c) {
          return static_cast<unsigned>(in[(matrix * 8 + r) * 8 + c]);
        };
        const unsigned low = is_transposed ? at(column, row) : at(row, column);
        const unsigned high = is_transposed ? at(column + 1, row) : at(row, column + 1);
        ASSERT_EQ(result[lane * 4 + matrix], low | high << 16);
      }
    }
  }
}

TEST_F(EmulatedInstructionTest, AsynchronousCopiesArriveByTheirWait) {
  std::vector<int> in(7 * 128);
  std::iota(in.begin(), in.end(), 1);
  const DeviceArray<int> device_in(in);
  InEveryOrder([&] {
    const DeviceArray<int> out(in.size());
    ASSERT_EQ(cuda::LaunchPipelinedCopy(device_in.get(), 7, out.get()), cudaSuccess);
    ASSERT_EQ(out.Download(), in);
  });
}

TEST_F(EmulatedInstructionTest, AtomicsCombineAllThreads) {
  int sum = 0, minimum = 0, maximum = 0, bits_xor = 0;
  for (int number = 0; number < 192; ++number) {
    sum += number;
    minimum = std::min(minimum, 5 - number);
    maximum = std::max(maximum, number);
    bits_xor ^= number;
  }
  InEveryOrder([&] {
    const DeviceArray<int> out(std::vector<int>{0, 0, 0, 0, -1, 0, 0, -1});
    ASSERT_EQ(cuda::LaunchAtomics(out.get()), cudaSuccess);
    std::vector<int> result = out.Download();
    EXPECT_TRUE(result[7] >= 0 && result[7] < 192);
    result.pop_back();
    ASSERT_EQ(result, (std::vector<int>{sum, minimum, maximum, 0xfffff, ~0xfffff, bits_xor, 192}));
  });
}

}  // namespace
}  // namespace forerun::emulation
