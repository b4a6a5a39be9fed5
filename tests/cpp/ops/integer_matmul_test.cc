// Products with integer weights, on every instruction set that this machine has for them.
#include <cmath>
#include <tuple>

#include "cpp/ops/cpu/find_integer_kernels.h"
#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/util/simd/isa_macros.h"
#include "cpp/util/simd/vec_ints.h"
#include "tests/cpp/ops/integers_testing.h"

namespace forerun {
namespace {

std::unique_ptr<CpuOps> OpsOf(ThreadTeam& team, const IntegerKernels& kernels) {
  return std::make_unique<CpuOps>(team, kernels.name, CpuKernelsOf(Isa::kPortable), kernels);
}

// Activations as products see them, by the definition: groups of whole steps.
std::vector<QuantizedGroup> Quantized(const float* x, int n) {
  std::vector<QuantizedGroup> groups;
  for (int begin = 0; begin < n; begin += kWeightGroup) {
    const int count = std::min(kWeightGroup, n - begin);
    QuantizedGroup group = {};
    float magnitude = 0;
    bool is_finite = true;
    for (int i = 0; i < count; ++i) {
      is_finite = is_finite && std::isfinite(x[begin + i]);
      magnitude = std::max(magnitude, std::fabs(x[begin + i]));
    }
    if (!is_finite) {
      group.scale = group.weighted_sum = std::nanf("");
    } else if (magnitude >= 0x1p-120f) {
      int sums[2] = {};
      for (int i = 0; i < count; ++i) {
        group.values[i] =
            static_cast<std::int8_t>(std::nearbyintf(x[begin + i] * (127.0f / magnitude)));
        sums[i / (kWeightGroup / 2)] += group.values[i];
      }
      const int sum = sums[0] + sums[1];
      group.scale = magnitude / 127.0f;
      group.weighted_sum = group.scale * static_cast<float>(sum);
      group.neg_sum = -sum;
      for (int i = 0; i < 2; ++i) group.neg_halves[i] = static_cast<std::int16_t>(-sums[i]);
    }
    groups.push_back(group);
  }
  groups.resize((groups.size() + 1) / 2 * 2, QuantizedGroup{});
  return groups;
}

void ExpectSameGroups(const std::vector<QuantizedGroup>& a, const std::vector<QuantizedGroup>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(std::memcmp(a[i].values, b[i].values, kWeightGroup), 0) << i;
    ASSERT_EQ(a[i].neg_sum, b[i].neg_sum) << i;
    ASSERT_EQ(a[i].neg_halves[0], b[i].neg_halves[0]) << i;
    ASSERT_EQ(a[i].neg_halves[1], b[i].neg_halves[1]) << i;
    ASSERT_EQ(std::isnan(a[i].scale), std::isnan(b[i].scale)) << i;
    ASSERT_EQ(std::isnan(a[i].weighted_sum), std::isnan(b[i].weighted_sum)) << i;
    if (std::isnan(a[i].scale)) continue;
    ASSERT_EQ(a[i].scale, b[i].scale) << i;
    ASSERT_EQ(a[i].weighted_sum, b[i].weighted_sum) << i;
  }
}

class QuantizeRowTest : public ::testing::TestWithParam<const IntegerKernels*> {
 protected:
  void Check(const std::vector<float>& x) {
    const int n = static_cast<int>(x.size());
    const std::vector<QuantizedGroup> expected = Quantized(x.data(), n);
    std::vector<QuantizedGroup> groups(expected.size());
    std::memset(groups.data(), 0x5a, sizeof(QuantizedGroup) * groups.size());
    GetParam()->quantize_row(x.data(), n, groups.data());
    ExpectSameGroups(groups, expected);
  }
};

TEST_P(QuantizeRowTest, FollowsTheDefinitionForEveryLength) {
  Random random(1);
  for (int n = 1; n <= 200; ++n) Check(random.Normals(n));
  Check(random.Normals(1536));
}

TEST_P(QuantizeRowTest, RoundsTiesToEven) {
  std::vector<float> x(64);
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i % 32) - 15.5f;
  x[0] = x[63] = 127.0f;
  Check(x);
}

TEST_P(QuantizeRowTest, TakesHugeTinyAndZeroActivations) {
  Random random(2);
  for (float scale :
       {0.0f, 1e-45f, 1e-39f, 0x1p-121f, 0x1p-120f, 0x1p-119f, 1e-30f, 1e30f, 5e37f}) {
    std::vector<float> x = random.Normals(96);
    for (float& value : x) value = std::clamp(value, -4.0f, 4.0f) * scale;
    Check(x);
  }
  Check({3.402823466e38f, -3.402823466e38f, 1.0f, -0.0f});
  Check(std::vector<float>(70, -0.0f));
}

TEST_P(QuantizeRowTest, MarksGroupsThatAreNotFinite) {
  Random random(3);
  for (float bad : {std::nanf(""), -std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    for (int at = 0; at < 80; ++at) {
      std::vector<float> x = random.Normals(80);
      x[at] = bad;
      Check(x);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, QuantizeRowTest, ::testing::ValuesIn(AvailableIntegerKernels()),
                         [](const auto& param) { return std::string(param.param->name); });

// Fused multiply-add of the portable vectors, which emulate it where the processor has none.
TEST(FusedFmaTest, IsRoundedOnce) {
  std::mt19937 random(4);
  const auto bits = [&] {
    // Exponents near each other, so that products and addends overlap; now and then any bits.
    const std::uint32_t any = static_cast<std::uint32_t>(random());
    if (any % 16 == 0) return std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    const std::uint32_t exponent = 120 + static_cast<std::uint32_t>(random() % 16);
    return std::bit_cast<float>((any & 0x807fffffu) | exponent << 23);
  };
  for (int round = 0; round < 100000; ++round) {
    float a[16], b[16], c[16], result[16];
    for (int i = 0; i < 16; ++i) {
      a[i] = bits(), b[i] = bits(), c[i] = bits();
      if (round % 3 == 0) c[i] = -a[i] * b[i] * (i % 2 == 0 ? 1.0f : 1.0000001f);
      if (round % 7 == 0) {
        // Nearly half a unit of c's last bit: a double rounds the sum to the tie itself.
        const float rest = std::ldexp(1.0f, -16 - static_cast<int>(random() % 8));
        const float sign = std::bit_cast<float>(0x3f800000u | (i % 2) << 31);
        const float half = std::ldexp(std::ldexp(sign, std::ilogb(c[i])), -24);
        a[i] = 1.0f + rest, b[i] = half * (1.0f - rest);
      }
      if (round % 5 == 0) a[i] *= 0x1p-70f, b[i] *= 0x1p-70f, c[i] = std::ldexp(c[i], -140);
    }
    portable::Store(result,
                    portable::FusedFma(portable::Load(a), portable::Load(b), portable::Load(c)));
    for (int i = 0; i < 16; ++i) {
      const float expected = std::fma(a[i], b[i], c[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(result[i]));
      } else {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(result[i]), std::bit_cast<std::uint32_t>(expected))
            << a[i] << " " << b[i] << " " << c[i];
      }
    }
  }
}

using Param = std::tuple<const IntegerKernels*, WeightFormat>;

class IntegerMatMulTest : public ::testing::TestWithParam<Param> {
 protected:
  const IntegerKernels& kernels() const { return *std::get<0>(GetParam()); }
  WeightFormat format() const { return std::get<1>(GetParam()); }

  // Of moderate weights.
  TestIntegers Weights(Random& random, int num_outputs, int num_inputs, int exponent = -7) const {
    return {random, format(), num_outputs, num_inputs, exponent};
  }
  // The next number of inputs that the format may have.
  int Full(int num_inputs) const { return FullInputs(format(), num_inputs); }
  TestRows Product(const TestRows& x, const PackedMatrix& weight) {
    TestRows y(x.view.rows, weight.num_outputs());
    ops_->MatMul(x, weight, nullptr, /*accumulate=*/false, y);
    return y;
  }
  void CheckShape(int rows, int num_outputs, int num_inputs);

  ThreadTeam team_{2};
  std::unique_ptr<CpuOps> ops_ = OpsOf(team_, kernels());
};

void IntegerMatMulTest::CheckShape(int rows, int num_outputs, int num_inputs) {
  Random random(rows * 7919 + num_outputs * 31 + num_inputs);
  const TestIntegers weight = Weights(random, num_outputs, num_inputs);
  const auto packed = weight.Pack(*ops_);
  const TestRows w = UnpackAll(*ops_, *packed);
  const TestRows x = random.NormalRows(rows, num_inputs, 1.0f, /*padding=*/3);
  const std::vector<float> bias = random.Normals(num_outputs);
  const TestRows before = random.NormalRows(rows, num_outputs);
  TestRows plain(rows, num_outputs, /*padding=*/5), biased(rows, num_outputs, /*padding=*/5),
      added(rows, num_outputs, /*padding=*/5);
  ops_->Copy(before, added);
  ops_->MatMul(x, *packed, nullptr, /*accumulate=*/false, plain);
  ops_->MatMul(x, *packed, bias.data(), /*accumulate=*/false, biased);
  ops_->MatMul(x, *packed, bias.data(), /*accumulate=*/true, added);
  for (int r = 0; r < rows; ++r) {
    const std::vector<QuantizedGroup> groups = Quantized(x.row(r), num_inputs);
    for (int n = 0; n < num_outputs; ++n) {
      double expected = 0, magnitude = 1;
      for (int i = 0; i < num_inputs; ++i) {
        const QuantizedGroup& group = groups[i / kWeightGroup];
        const double product =
            double{group.scale} * group.values[i % kWeightGroup] * double{w.row(n)[i]};
        expected += product;
        magnitude += std::fabs(product);
      }
      ASSERT_NEAR(plain.row(r)[n], expected, 1e-6 * magnitude) << r << " " << n;
      ASSERT_EQ(biased.row(r)[n], plain.row(r)[n] + bias[n]);
      ASSERT_EQ(added.row(r)[n], biased.row(r)[n] + before.row(r)[n]);
    }
    for (const TestRows* y : {&plain, &biased, &added}) {
      for (int i = 0; i < 5; ++i) {
        ASSERT_TRUE(std::isnan(y->row(r)[num_outputs + i])) << "wrote past the end of a row";
      }
    }
  }
}

TEST_P(IntegerMatMulTest, EqualsADoublePrecisionSumOfWhatIsStored) {
  for (const auto& [rows, num_outputs, num_inputs] : {std::tuple{1, 1, 1},
                                                      {2, 17, 3},
                                                      {3, 16, 32},
                                                      {5, 33, 31},
                                                      {7, 64, 127},
                                                      {13, 100, 65},
                                                      {24, 48, 96},
                                                      {25, 250, 33},
                                                      {1, 960, 576},
                                                      {6, 100, 1536},
                                                      {4, 31, 64},
                                                      {70, 40, 50}}) {
    CheckShape(rows, num_outputs, Full(num_inputs));
  }
}

// Integers with scales of 1: every sum is exact, and the largest ones would overflow 16 bits.
TEST_P(IntegerMatMulTest, ExtremeIntegersGiveExactSums) {
  Random random(5);
  const IntegerFormat integers = IntegersOf(format());
  const int least = -integers.zero, most = (1 << integers.bits) - 1 - integers.zero;
  constexpr int kOutputs = 50;
  const int num_inputs = Full(100);
  TestIntegers weight = Weights(random, kOutputs, num_inputs);
  for (auto* ones : {&weight.scales, &weight.minima}) std::ranges::fill(*ones, 0x3c00);
  std::ranges::fill(weight.wide_scales, 1.0f);
  std::ranges::fill(weight.sub_scales, 1);
  std::ranges::fill(weight.sub_minima, 2);
  std::ranges::fill(weight.zeros, 2);
  if (integers.scales == ScaleKind::kMinimum) std::ranges::fill(weight.minima, 0xc000);  // -2
  for (int pattern = 0; pattern < 6; ++pattern) {
    TestRows x(9, num_inputs);
    for (std::int8_t& value : weight.values) {
      const bool low = pattern < 4 ? pattern % 2 == 0 : random.Below(2) == 0;
      value = static_cast<std::int8_t>(pattern == 5 ? least + random.Below(most - least + 1)
                                                    : (low ? least : most));
    }
    for (int r = 0; r < 9; ++r) {
      for (int i = 0; i < num_inputs; ++i) {
        const bool negative = pattern < 4 ? pattern / 2 == 0 : random.Below(2) == 0;
        x.row(r)[i] = negative ? -127.0f : 127.0f;
        if (pattern == 5 && i % 7 != 0) x.row(r)[i] = static_cast<float>(random.Below(255) - 127);
      }
    }
    const TestRows y = Product(x, *weight.Pack(*ops_));
    for (int r = 0; r < 9; ++r) {
      for (int n = 0; n < kOutputs; ++n) {
        int expected = 0;
        for (int i = 0; i < num_inputs; ++i) {
          const int value = weight.values[n * num_inputs + i] - (integers.has_minimum() ? 2 : 0);
          expected += value * static_cast<int>(x.row(r)[i]);
        }
        ASSERT_EQ(y.row(r)[n], static_cast<float>(expected)) << pattern << " " << r << " " << n;
      }
    }
  }
}

TEST_P(IntegerMatMulTest, EveryInstructionSetGivesTheSameBits) {
  Random random(6);
  const auto portable = OpsOf(team_, portable::kIntegerKernels);
  for (const auto& [rows, num_outputs, inputs] :
       {std::tuple{1, 33, 577}, {3, 100, 64}, {9, 48, 1000}, {40, 17, 31}}) {
    const int num_inputs = Full(inputs);
    for (int exponent : {-11, -7, 0}) {  // 0: any numbers
      const TestIntegers weight = Weights(random, num_outputs, num_inputs, exponent);
      for (float deviation : {1e-18f, 1.0f, 1e4f}) {
        TestRows x = random.NormalRows(rows, num_inputs, deviation);
        for (int i = 0; i < num_inputs; i += 11) x.row(0)[i] *= 1e15f;
        const auto bias = random.Normals(num_outputs);
        TestRows y(rows, num_outputs), expected(rows, num_outputs);
        ops_->MatMul(x, *weight.Pack(*ops_), bias.data(), false, y);
        portable->MatMul(x, *weight.Pack(*portable), bias.data(), false, expected);
        ASSERT_TRUE(SameBits(y, expected)) << rows << " " << exponent << " " << deviation;
      }
    }
  }
}

TEST_P(IntegerMatMulTest, ARowNeverDependsOnTheRowsBesideIt) {
  Random random(7);
  for (const auto& [num_outputs, inputs] : {std::pair{90, 577}, {200, 64}, {16, 1536}}) {
    const int num_inputs = Full(inputs);
    const auto packed = Weights(random, num_outputs, num_inputs).Pack(*ops_);
    const TestRows x = random.NormalRows(64, num_inputs);
    TestRows alone(64, num_outputs);
    for (int r = 0; r < 64; ++r) {
      ops_->MatMul(ConstRows(x.row(r), 1, num_inputs), *packed, nullptr, false,
                   Rows(alone.row(r), 1, num_outputs));
    }
    for (int rows = 1; rows <= 64; ++rows) {
      TestRows y(rows, num_outputs);
      const int first = random.Below(65 - rows);
      ops_->MatMul(ConstRows(x.row(first), rows, num_inputs), *packed, nullptr, false, y);
      for (int r = 0; r < rows; ++r) {
        ASSERT_TRUE(SameBits(y.row(r), alone.row(first + r), num_outputs)) << rows << " " << r;
      }
    }
  }
}

TEST_P(IntegerMatMulTest, TheNumberOfThreadsChangesNothing) {
  Random random(8);
  const int num_inputs = Full(192), num_outputs = FORERUN_SANITIZED ? 200 : 1000;
  const TestIntegers weight = Weights(random, num_outputs, num_inputs);
  for (int rows : {1, 3, 8, 33, 100}) {
    const TestRows x = random.NormalRows(rows, num_inputs);
    const TestRows expected = Product(x, *weight.Pack(*ops_));
    for (int threads : {1, 3, 4}) {
      ThreadTeam team(threads);
      const auto ops = OpsOf(team, kernels());
      TestRows y(rows, num_outputs);
      ops->MatMul(x, *weight.Pack(*ops), nullptr, false, y);
      ASSERT_TRUE(SameBits(y, expected)) << threads << " " << rows;
    }
  }
}

TEST_P(IntegerMatMulTest, TheGroupingOfTilesChangesNothing) {
  Random random(9);
  constexpr int kOutputs = 150;
  const int num_inputs = Full(130);
  const auto packed = Weights(random, kOutputs, num_inputs).Pack(*ops_);
  const auto& matrix = dynamic_cast<const CpuMatrix&>(*packed);
  const TestRows x = random.NormalRows(11, num_inputs);
  const TestRows expected = Product(x, matrix);
  std::vector<QuantizedGroup> groups;
  for (int r = 0; r < 11; ++r) {
    const auto row = Quantized(x.row(r), num_inputs);
    groups.insert(groups.end(), row.begin(), row.end());
  }
  const auto multiply = kernels().matmul[static_cast<int>(format())];
  for (int round = 0; round < 50; ++round) {
    TestRows y(11, kOutputs);
    MatMulTask task;
    task.weights = matrix.parts()[0].data;
    task.num_inputs = num_inputs;
    task.num_outputs = kOutputs;
    task.x_stride = static_cast<std::int64_t>(groups.size()) / 11;
    task.y_stride = kOutputs;
    for (int tile = 0; tile < matrix.num_tiles(); tile = task.tile_end) {
      task.tile_begin = tile;
      task.tile_end = std::min(matrix.num_tiles(), tile + 1 + random.Below(6));
      for (int row = 0; row < 11; row += task.num_rows) {
        task.num_rows = 1 + random.Below(11 - row);
        task.x = groups.data() + row * task.x_stride;
        task.y = y.row(row);
        multiply(task);
      }
    }
    ASSERT_TRUE(SameBits(y, expected));
  }
}

TEST_P(IntegerMatMulTest, WhatIsNotFiniteShowsInEveryOutputOfItsRowAlone) {
  Random random(10);
  constexpr int kOutputs = 40;
  const int num_inputs = Full(100);
  TestIntegers weight = Weights(random, kOutputs, num_inputs);
  std::fill_n(weight.values.begin(), num_inputs, std::int8_t{0});
  const auto packed = weight.Pack(*ops_);
  TestRows x = random.NormalRows(5, num_inputs);
  const TestRows before = Product(x, *packed);
  for (float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    for (int at : {0, 15, 16, 31, 32, 63, 64, 99}) {
      const float kept = std::exchange(x.row(2)[at], bad);
      const TestRows y = Product(x, *packed);
      x.row(2)[at] = kept;
      for (int n = 0; n < kOutputs; ++n) ASSERT_TRUE(std::isnan(y.row(2)[n])) << bad << " " << at;
      for (int r : {0, 1, 3, 4}) ASSERT_TRUE(SameBits(y.row(r), before.row(r), kOutputs));
    }
  }
}

TEST_P(IntegerMatMulTest, HugeAndTinyActivationsKeepTheirScale) {
  Random random(11);
  const int num_inputs = Full(70);
  const auto packed = Weights(random, 30, num_inputs).Pack(*ops_);
  const TestRows x = random.NormalRows(1, num_inputs);
  const TestRows y = Product(x, *packed);
  for (float factor : {0x1p-100f, 0x1p-60f, 0x1p60f, 0x1p110f}) {
    TestRows scaled(1, num_inputs);
    for (int i = 0; i < num_inputs; ++i) scaled.row(0)[i] = x.row(0)[i] * factor;
    const TestRows z = Product(scaled, *packed);
    for (int n = 0; n < 30; ++n) ASSERT_EQ(z.row(0)[n], y.row(0)[n] * factor) << factor;
  }
  TestRows zero(1, num_inputs);
  std::fill_n(zero.row(0), num_inputs, 0.0f);
  const TestRows none = Product(zero, *packed);
  for (int n = 0; n < 30; ++n) ASSERT_EQ(none.row(0)[n], 0.0f);
}

std::string ParamName(const ::testing::TestParamInfo<Param>& param) {
  return std::string(std::get<0>(param.param)->name) + "_" + Name(std::get<1>(param.param));
}

INSTANTIATE_TEST_SUITE_P(Kernels, IntegerMatMulTest,
                         ::testing::Combine(::testing::ValuesIn(AvailableIntegerKernels()),
                                            ::testing::ValuesIn(IntegerFormats())),
                         ParamName);

}  // namespace
}  // namespace forerun
