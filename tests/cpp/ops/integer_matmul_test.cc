// Products with integer weights, on every instruction set that this machine has for them.
#include <cmath>
#include <tuple>

#include "cpp/ops/cpu/find_integer_kernels.h"
#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/util/simd/vec_ints.h"
#include "tests/cpp/ops/ops_testing.h"

namespace forerun {
namespace {

void (*MultiplyOf(const IntegerKernels& kernels, WeightFormat format))(const MatMulTask&) {
  switch (format) {
    case WeightFormat::kInt8:
      return kernels.matmul_int8;
    case WeightFormat::kInt4:
      return kernels.matmul_int4;
    case WeightFormat::kInt4Min:
      return kernels.matmul_int4_min;
    case WeightFormat::kInt5:
      return kernels.matmul_int5;
    case WeightFormat::kInt5Min:
      return kernels.matmul_int5_min;
    default:
      return nullptr;
  }
}

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
      int sum = 0;
      for (int i = 0; i < count; ++i) {
        group.values[i] =
            static_cast<std::int8_t>(std::nearbyintf(x[begin + i] * (127.0f / magnitude)));
        sum += group.values[i];
      }
      group.scale = magnitude / 127.0f;
      group.weighted_sum = group.scale * static_cast<float>(sum);
      group.neg_sum = -sum;
    }
    groups.push_back(group);
  }
  groups.resize(kGroupsPerStep * NumSteps(WeightFormat::kInt8, n), QuantizedGroup{});
  return groups;
}

void ExpectSameGroups(const std::vector<QuantizedGroup>& a, const std::vector<QuantizedGroup>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(std::memcmp(a[i].values, b[i].values, kWeightGroup), 0) << i;
    ASSERT_EQ(a[i].neg_sum, b[i].neg_sum) << i;
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
        const float half =
            std::ldexp(std::bit_cast<float>(0x3f800000u | (i % 2) << 31), std::ilogb(c[i]) - 24);
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

  std::unique_ptr<PackedMatrix> Pack(const TensorView& source) {
    return ops_->Pack({&source, 1}, format());
  }
  // All weights, as floats.
  TestRows Unpack(const PackedMatrix& matrix) {
    std::vector<TokenId> all(matrix.num_outputs());
    for (int i = 0; i < matrix.num_outputs(); ++i) all[i] = i;
    TestRows out(matrix.num_outputs(), matrix.num_inputs());
    ops_->Embed(ops_->Begin({all}), matrix, 1.0f, out);
    return out;
  }
  TestRows Product(const TestRows& x, const PackedMatrix& weight) {
    TestRows y(x.view.rows, weight.num_outputs());
    ops_->MatMul(x, weight, nullptr, /*accumulate=*/false, y);
    return y;
  }
  void CheckShape(int rows, int num_outputs, int num_inputs, bool has_bias, bool accumulate);

  ThreadTeam team_{2};
  std::unique_ptr<CpuOps> ops_ = OpsOf(team_, kernels());
};

void IntegerMatMulTest::CheckShape(int rows, int num_outputs, int num_inputs, bool has_bias,
                                   bool accumulate) {
  Random random(rows * 7919 + num_outputs * 31 + num_inputs);
  const TestWeight weight(random, num_outputs, num_inputs);
  const auto packed = Pack(weight.view);
  const TestRows w = Unpack(*packed);
  const TestRows x = random.NormalRows(rows, num_inputs, 1.0f, /*padding=*/3);
  const std::vector<float> bias = random.Normals(num_outputs);
  const TestRows before = random.NormalRows(rows, num_outputs);
  TestRows y(rows, num_outputs, /*padding=*/5);
  for (int r = 0; accumulate && r < rows; ++r) std::copy_n(before.row(r), num_outputs, y.row(r));
  ops_->MatMul(x, *packed, has_bias ? bias.data() : nullptr, accumulate, y);
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
      if (has_bias) expected += bias[n];
      if (accumulate) expected += before.row(r)[n];
      ASSERT_NEAR(y.row(r)[n], expected, 1e-6 * magnitude) << r << " " << n;
    }
    for (int i = 0; i < 5; ++i) {
      const std::size_t end = std::size_t(r) * (num_outputs + 5) + num_outputs;
      ASSERT_TRUE(std::isnan(y.values[end + i])) << "wrote past the end of a row";
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
    CheckShape(rows, num_outputs, num_inputs, /*has_bias=*/false, /*accumulate=*/false);
    CheckShape(rows, num_outputs, num_inputs, /*has_bias=*/true, /*accumulate=*/false);
    CheckShape(rows, num_outputs, num_inputs, /*has_bias=*/true, /*accumulate=*/true);
  }
}

// Integers with scales of 1: every sum is exact, and the largest ones would overflow 16 bits.
TEST_P(IntegerMatMulTest, ExtremeIntegersGiveExactSums) {
  Random random(5);
  const IntegerFormat integers = IntegersOf(format());
  const int least = -integers.zero, most = (1 << integers.bits) - 1 - integers.zero;
  constexpr int kOutputs = 50, kInputs = 100;
  for (int pattern = 0; pattern < 6; ++pattern) {
    std::vector<std::int8_t> values(kOutputs * kInputs);
    TestRows x(9, kInputs);
    for (std::int8_t& value : values) {
      const bool low = pattern < 4 ? pattern % 2 == 0 : random.Below(2) == 0;
      value = static_cast<std::int8_t>(pattern == 5 ? least + random.Below(most - least + 1)
                                                    : (low ? least : most));
    }
    for (int r = 0; r < 9; ++r) {
      for (int i = 0; i < kInputs; ++i) {
        const bool negative = pattern < 4 ? pattern / 2 == 0 : random.Below(2) == 0;
        x.row(r)[i] = negative ? -127.0f : 127.0f;
        if (pattern == 5 && i % 7 != 0) x.row(r)[i] = static_cast<float>(random.Below(255) - 127);
      }
    }
    const std::vector<std::uint16_t> scales(kOutputs * 4, 0x3c00), minima(kOutputs * 4, 0xc000);
    const IntegerView view = {format(),      kOutputs,
                              kInputs,       values.data(),
                              scales.data(), integers.has_minimum ? minima.data() : nullptr};
    const auto packed = ops_->PackIntegers({&view, 1});
    const TestRows y = Product(x, *packed);
    for (int r = 0; r < 9; ++r) {
      for (int n = 0; n < kOutputs; ++n) {
        int expected = 0;
        for (int i = 0; i < kInputs; ++i) {
          const int weight = values[n * kInputs + i] - (integers.has_minimum ? 2 : 0);
          expected += weight * static_cast<int>(x.row(r)[i]);
        }
        ASSERT_EQ(y.row(r)[n], static_cast<float>(expected)) << pattern << " " << r << " " << n;
      }
    }
  }
}

TEST_P(IntegerMatMulTest, EveryInstructionSetGivesTheSameBits) {
  Random random(6);
  const auto portable = OpsOf(team_, portable::kIntegerKernels);
  for (const auto& [rows, num_outputs, num_inputs] :
       {std::tuple{1, 33, 577}, {3, 100, 64}, {9, 48, 1000}, {40, 17, 31}}) {
    for (float deviation : {1e-18f, 1e-6f, 1.0f, 1e4f}) {
      TestWeight weight(random, num_outputs, num_inputs);
      for (float& value : weight.values) value *= std::min(deviation, 1e3f);
      TestRows x = random.NormalRows(rows, num_inputs, deviation);
      for (int i = 0; i < num_inputs; i += 11) x.row(0)[i] *= 1e15f;
      const auto bias = random.Normals(num_outputs);
      TestRows y(rows, num_outputs), expected(rows, num_outputs);
      ops_->MatMul(x, *Pack(weight.view), bias.data(), false, y);
      portable->MatMul(x, *portable->Pack({&weight.view, 1}, format()), bias.data(), false,
                       expected);
      ASSERT_TRUE(SameBits(y, expected)) << rows << " " << deviation;
    }
  }
}

TEST_P(IntegerMatMulTest, ARowNeverDependsOnTheRowsBesideIt) {
  Random random(7);
  for (const auto& [num_outputs, num_inputs] : {std::pair{90, 577}, {200, 64}, {16, 1536}}) {
    const TestWeight weight(random, num_outputs, num_inputs);
    const auto packed = Pack(weight.view);
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
  const TestWeight weight(random, 1000, 192);
  for (int rows : {1, 3, 8, 33, 100}) {
    const TestRows x = random.NormalRows(rows, 192);
    const TestRows expected = Product(x, *Pack(weight.view));
    for (int threads : {1, 3, 4}) {
      ThreadTeam team(threads);
      const auto ops = OpsOf(team, kernels());
      TestRows y(rows, 1000);
      ops->MatMul(x, *ops->Pack({&weight.view, 1}, format()), nullptr, false, y);
      ASSERT_TRUE(SameBits(y, expected)) << threads << " " << rows;
    }
  }
}

TEST_P(IntegerMatMulTest, TheGroupingOfTilesChangesNothing) {
  Random random(9);
  constexpr int kOutputs = 150, kInputs = 130;
  const TestWeight weight(random, kOutputs, kInputs);
  const auto packed = Pack(weight.view);
  const auto& matrix = dynamic_cast<const CpuMatrix&>(*packed);
  const TestRows x = random.NormalRows(11, kInputs);
  const TestRows expected = Product(x, matrix);
  std::vector<QuantizedGroup> groups;
  for (int r = 0; r < 11; ++r) {
    const auto row = Quantized(x.row(r), kInputs);
    groups.insert(groups.end(), row.begin(), row.end());
  }
  const auto multiply = MultiplyOf(kernels(), format());
  for (int round = 0; round < 50; ++round) {
    TestRows y(11, kOutputs);
    MatMulTask task;
    task.weights = matrix.tile(0);
    task.num_inputs = kInputs;
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
  constexpr int kOutputs = 40, kInputs = 100;
  TestWeight weight(random, kOutputs, kInputs);
  std::fill_n(weight.values.begin(), kInputs, 0.0f);
  const auto packed = Pack(weight.view);
  TestRows x = random.NormalRows(5, kInputs);
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
  const TestWeight weight(random, 30, 70);
  const auto packed = Pack(weight.view);
  const TestRows x = random.NormalRows(1, 70);
  const TestRows y = Product(x, *packed);
  for (float factor : {0x1p-100f, 0x1p-60f, 0x1p60f, 0x1p110f}) {
    TestRows scaled(1, 70);
    for (int i = 0; i < 70; ++i) scaled.row(0)[i] = x.row(0)[i] * factor;
    const TestRows z = Product(scaled, *packed);
    for (int n = 0; n < 30; ++n) ASSERT_EQ(z.row(0)[n], y.row(0)[n] * factor) << factor;
  }
  TestRows zero(1, 70);
  std::fill_n(zero.row(0), 70, 0.0f);
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
