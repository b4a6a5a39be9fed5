// Packing into integer formats, from floats and from ready integers, read back by way of Embed.
#include <cmath>
#include <utility>

#include "tests/cpp/ops/ops_testing.h"

namespace forerun {
namespace {

TestRows Unpack(CpuOps& ops, const PackedMatrix& matrix) {
  std::vector<TokenId> all(matrix.num_outputs());
  for (int i = 0; i < matrix.num_outputs(); ++i) all[i] = i;
  TestRows out(matrix.num_outputs(), matrix.num_inputs());
  ops.Embed(ops.Begin({all}), matrix, 1.0f, out);
  return out;
}

// Integers in memory and their view.
struct TestIntegers {
  TestIntegers(Random& random, WeightFormat format, int num_outputs, int num_inputs) {
    const IntegerFormat integers = IntegersOf(format);
    view = {format, num_outputs, num_inputs};
    for (int i = 0; i < num_outputs * num_inputs; ++i) {
      values.push_back(static_cast<std::int8_t>(random.Below(1 << integers.bits) - integers.zero));
    }
    for (int i = 0; i < num_outputs * view.num_groups(); ++i) {
      scales.push_back(RandomHalf(random));
      minima.push_back(RandomHalf(random));
    }
    view.values = values.data();
    view.scales = scales.data();
    if (integers.has_minimum) view.minima = minima.data();
  }
  // Finite, of either sign.
  static std::uint16_t RandomHalf(Random& random) {
    return static_cast<std::uint16_t>(random.Below(0x7c00) | random.Below(2) << 15);
  }
  // As the gguf package computes it.
  float At(int output, int input) const {
    const int group = output * view.num_groups() + input / kWeightGroup;
    const float scale = Float16ToFloat(scales[group]);
    const float value = values[output * view.num_inputs + input];
    if (view.minima == nullptr) return scale * value;
    return scale * value + Float16ToFloat(minima[group]);
  }

  std::vector<std::int8_t> values;
  std::vector<std::uint16_t> scales, minima;
  IntegerView view;
};

class PackIntegersTest : public ::testing::TestWithParam<WeightFormat> {
 protected:
  TestRows PackAndUnpack(const std::vector<float>& weights, int num_outputs) {
    const auto num_inputs = std::ssize(weights) / num_outputs;
    const TensorView view = {weights.data(), DType::kFloat32, {num_outputs, num_inputs}};
    return Unpack(ops_, *ops_.Pack({&view, 1}, GetParam()));
  }

  ThreadTeam team_{2};
  CpuOps ops_{team_, AvailableIsas().front()};
};

TEST_P(PackIntegersTest, KeepsReadyIntegersOfEveryShape) {
  Random random(1);
  for (const auto& [num_outputs, num_inputs] :
       {std::pair{1, 1}, {16, 32}, {17, 33}, {48, 64}, {31, 95}, {5, 300}, {40, 576}}) {
    const TestIntegers a(random, GetParam(), num_outputs, num_inputs);
    const TestIntegers b(random, GetParam(), 3, num_inputs);
    const std::vector<IntegerView> sources = {a.view, b.view};
    const auto packed = ops_.PackIntegers(sources);
    ASSERT_EQ(packed->num_outputs(), num_outputs + 3);
    ASSERT_EQ(packed->num_inputs(), num_inputs);
    const TestRows out = Unpack(ops_, *packed);
    for (int k = 0; k < num_inputs; ++k) {
      for (int n = 0; n < num_outputs; ++n) ASSERT_EQ(out.row(n)[k], a.At(n, k)) << n << " " << k;
      for (int n = 0; n < 3; ++n) ASSERT_EQ(out.row(num_outputs + n)[k], b.At(n, k));
    }
  }
}

TEST_P(PackIntegersTest, RoundsFloatsToTheNearestInteger) {
  Random random(2);
  const IntegerFormat integers = IntegersOf(GetParam());
  const float most = static_cast<float>((1 << integers.bits) - 1);
  const bool may_clamp = integers.bits < 8 && !integers.has_minimum;
  for (int num_inputs : {1, 31, 32, 33, 70, 256}) {
    for (float deviation : {1e-6f, 1e-3f, 0.05f, 1.0f, 100.0f}) {
      const std::vector<float> weights = random.Normals(20 * num_inputs, deviation);
      const TestRows out = PackAndUnpack(weights, 20);
      for (int begin = 0; begin < num_inputs; begin += kWeightGroup) {
        const int end = std::min(num_inputs, begin + kWeightGroup);
        for (int n = 0; n < 20; ++n) {
          const float* w = &weights[n * num_inputs];
          const auto [least, greatest] = std::minmax_element(w + begin, w + end);
          const float magnitude = std::max(-*least, *greatest);
          float step = magnitude / 127.0f;
          if (may_clamp) step = magnitude / static_cast<float>(integers.zero);
          if (integers.has_minimum) {
            step = (*greatest - *least + magnitude * 0x1p-10f) / most;
          }
          const float half = 0.501f * step + 0x1p-24f;
          for (int k = begin; k < end; ++k) {
            // The opposite of the least integer would be one too many.
            const bool is_clamped =
                may_clamp && std::fabs(w[k]) > (static_cast<float>(integers.zero) - 0.6f) * step;
            ASSERT_LE(std::fabs(out.row(n)[k] - w[k]), is_clamped ? 2 * half : half)
                << deviation << " " << n << " " << k;
          }
        }
      }
    }
  }
}

TEST_P(PackIntegersTest, KeepsZerosAndEqualWeights) {
  std::vector<float> weights(96, 0.0f);
  std::fill_n(weights.begin() + 32, 32, -0.75f);
  std::fill_n(weights.begin() + 64, 32, 1.5f);
  const TestRows out = PackAndUnpack(weights, 1);
  for (int k = 0; k < 96; ++k) {
    ASSERT_NEAR(out.row(0)[k], weights[k], std::fabs(weights[k]) * 0x1p-10f);
  }
}

TEST_P(PackIntegersTest, WhatFloat16CannotScaleIsNotANumber) {
  Random random(3);
  for (float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF, 3e38f, -3e38f}) {
    for (int at : {0, 31, 32, 40, 69}) {
      std::vector<float> weights = random.Normals(70);
      weights[at] = bad;
      const TestRows out = PackAndUnpack(weights, 1);
      for (int k = 0; k < 70; ++k) {
        ASSERT_EQ(std::isnan(out.row(0)[k]), k / kWeightGroup == at / kWeightGroup)
            << bad << " " << at << " " << k;
      }
    }
  }
}

TEST_P(PackIntegersTest, ConvertsEverySourceType) {
  Random random(4);
  for (DType source : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<std::uint16_t> bits;
    std::vector<float> weights;
    for (int i = 0; i < 20 * 50; ++i) {
      bits.push_back(source == DType::kFloat16 ? TestIntegers::RandomHalf(random)
                                               : FloatToBFloat16(random.Normal()));
      weights.push_back(source == DType::kFloat16 ? Float16ToFloat(bits.back())
                                                  : BFloat16ToFloat(bits.back()));
    }
    const TensorView view = {bits.data(), source, {20, 50}};
    EXPECT_TRUE(
        SameBits(Unpack(ops_, *ops_.Pack({&view, 1}, GetParam())), PackAndUnpack(weights, 20)));
  }
}

TEST_P(PackIntegersTest, TheNumberOfThreadsChangesNothing) {
  Random random(5);
  const TestWeight weight(random, 300, 130);
  const TestRows expected = PackAndUnpack(weight.values, 300);
  ThreadTeam team(3);
  CpuOps ops(team, Isa::kPortable);
  EXPECT_TRUE(SameBits(Unpack(ops, *ops.Pack({&weight.view, 1}, GetParam())), expected));
}

TEST_P(PackIntegersTest, CountsItsBytes) {
  Random random(6);
  const TestWeight weight(random, 32, 128);
  const IntegerFormat integers = IntegersOf(GetParam());
  const int bits = integers.bits * kWeightGroup + (integers.has_minimum ? 32 : 16);
  const std::int64_t expected = 32 * 128 * bits / kWeightGroup / 8;
  EXPECT_EQ(ops_.Pack({&weight.view, 1}, GetParam())->num_bytes(), expected);
}

TEST_P(PackIntegersTest, SourcesThatDoNotStackOrFitThrow) {
  Random random(7);
  const TestIntegers good(random, GetParam(), 20, 40), narrow(random, GetParam(), 20, 39);
  const auto pack = [&](const IntegerView& view) { return ops_.PackIntegers({&view, 1}); };
  EXPECT_NO_THROW(pack(good.view));
  const std::vector<IntegerView> unequal = {good.view, narrow.view};
  EXPECT_THROW(ops_.PackIntegers(unequal), InternalError);
  EXPECT_THROW(ops_.PackIntegers({}), InternalError);
  IntegerView wrong = good.view;
  wrong.format = WeightFormat::kBFloat16;
  EXPECT_THROW(pack(wrong), InternalError);
  wrong = good.view;
  wrong.minima = wrong.minima == nullptr ? wrong.scales : nullptr;
  EXPECT_THROW(pack(wrong), InternalError);
  wrong = good.view;
  wrong.scales = nullptr;
  EXPECT_THROW(pack(wrong), InternalError);
  wrong = good.view;
  wrong.num_outputs = 0;
  EXPECT_THROW(pack(wrong), InternalError);
  const IntegerFormat integers = IntegersOf(GetParam());
  if (integers.bits == 8) return;
  for (int value : {-integers.zero - 1, (1 << integers.bits) - integers.zero}) {
    TestIntegers bad(random, GetParam(), 20, 40);
    bad.values[799] = static_cast<std::int8_t>(value);
    EXPECT_THROW(pack(bad.view), InternalError);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PackIntegersTest, ::testing::ValuesIn(IntegerFormats()),
                         [](const auto& param) { return std::string(Name(param.param)); });

}  // namespace
}  // namespace forerun
