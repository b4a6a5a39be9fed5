// Packing into integer formats, from floats and from ready integers, read back by way of Embed.
#include <cmath>
#include <map>
#include <utility>

#include "tests/cpp/ops/integers_testing.h"

namespace forerun {
namespace {

class PackIntegersTest : public ::testing::TestWithParam<WeightFormat> {
 protected:
  ThreadTeam team_{2};
  CpuOps ops_{team_, AvailableIsas().front()};
};

// Formats in which floats can be packed.
class QuantizeTest : public PackIntegersTest {
 protected:
  TestRows PackAndUnpack(const std::vector<float>& weights, int num_outputs) {
    const auto num_inputs = std::ssize(weights) / num_outputs;
    const TensorView view = {weights.data(), DType::kFloat32, {num_outputs, num_inputs}};
    return UnpackAll(ops_, *ops_.Pack({&view, 1}, GetParam()));
  }
};

TEST_P(PackIntegersTest, KeepsReadyIntegersOfEveryShape) {
  Random random(1);
  for (const auto& [num_outputs, inputs] :
       {std::pair{1, 1}, {16, 32}, {17, 33}, {48, 64}, {31, 95}, {5, 300}, {40, 576}}) {
    const int num_inputs = FullInputs(GetParam(), inputs);
    const TestIntegers a(random, GetParam(), num_outputs, num_inputs);
    const TestIntegers b(random, GetParam(), 3, num_inputs);
    const std::vector<WeightSource> sources = {a.view, b.view};
    const auto packed = ops_.Pack(sources);
    ASSERT_EQ(packed->num_outputs(), num_outputs + 3);
    ASSERT_EQ(packed->num_inputs(), num_inputs);
    const TestRows out = UnpackAll(ops_, *packed);
    for (int k = 0; k < num_inputs; ++k) {
      for (int n = 0; n < num_outputs; ++n) ASSERT_EQ(out.row(n)[k], a.At(n, k)) << n << " " << k;
      for (int n = 0; n < 3; ++n) ASSERT_EQ(out.row(num_outputs + n)[k], b.At(n, k));
    }
  }
}

TEST_P(QuantizeTest, RoundsFloatsToTheNearestInteger) {
  Random random(2);
  const IntegerFormat integers = IntegersOf(GetParam());
  const float most = static_cast<float>((1 << integers.bits) - 1);
  const bool may_clamp = integers.bits < 8 && !integers.has_minimum();
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
          if (integers.has_minimum()) {
            step = (*greatest - *least + magnitude * 0x1p-10f) / most;
          }
          const float half = 0.501f * step + 0x1p-24f;
          for (int k = begin; k < end; ++k) {
            // The opposite of the least integer would be one too many.
            const bool is_clamped =
                may_clamp && std::fabs(w[k]) > (static_cast<float>(integers.zero) - 1.5f) * step;
            // A fitted scale is a little larger or smaller.
            const float allowed = GetParam() == WeightFormat::kInt4 ? 1.1f * half : half;
            ASSERT_LE(std::fabs(out.row(n)[k] - w[k]), is_clamped ? 3 * half : allowed)
                << deviation << " " << n << " " << k;
          }
        }
      }
    }
  }
}

TEST_P(QuantizeTest, KeepsZerosAndEqualWeights) {
  std::vector<float> weights(96, 0.0f);
  std::fill_n(weights.begin() + 32, 32, -0.75f);
  std::fill_n(weights.begin() + 64, 32, 1.5f);
  const TestRows out = PackAndUnpack(weights, 1);
  for (int k = 0; k < 96; ++k) {
    ASSERT_NEAR(out.row(0)[k], weights[k], std::fabs(weights[k]) * 0x1p-10f);
  }
}

TEST_P(QuantizeTest, WhatFloat16CannotScaleIsNotANumber) {
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

TEST_P(QuantizeTest, ConvertsEverySourceType) {
  Random random(4);
  for (DType source : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<std::uint16_t> bits;
    std::vector<float> weights;
    for (int i = 0; i < 20 * 50; ++i) {
      bits.push_back(source == DType::kFloat16 ? RandomHalf(random)
                                               : FloatToBFloat16(random.Normal()));
      weights.push_back(source == DType::kFloat16 ? Float16ToFloat(bits.back())
                                                  : BFloat16ToFloat(bits.back()));
    }
    const TensorView view = {bits.data(), source, {20, 50}};
    EXPECT_TRUE(
        SameBits(UnpackAll(ops_, *ops_.Pack({&view, 1}, GetParam())), PackAndUnpack(weights, 20)));
  }
}

TEST_P(QuantizeTest, TheNumberOfThreadsChangesNothing) {
  Random random(5);
  const TestWeight weight(random, 300, 130);
  const TestRows expected = PackAndUnpack(weight.values, 300);
  ThreadTeam team(3);
  CpuOps ops(team, Isa::kPortable);
  EXPECT_TRUE(SameBits(UnpackAll(ops, *ops.Pack({&weight.view, 1}, GetParam())), expected));
}

TEST_P(PackIntegersTest, CountsItsBytes) {
  Random random(6);
  const TestIntegers integers(random, GetParam(), 32, 512);
  const std::map<WeightFormat, double> bits = {
      {WeightFormat::kInt8, 8.5},     {WeightFormat::kInt4, 4.5},
      {WeightFormat::kInt4Min, 5},    {WeightFormat::kInt5, 5.5},
      {WeightFormat::kInt5Min, 6},    {WeightFormat::kInt4K, 4.625},
      {WeightFormat::kInt5K, 5.625},  {WeightFormat::kInt6K, 6.625},
      {WeightFormat::kInt4Zero, 4.25}};
  EXPECT_EQ(static_cast<double>(integers.Pack(ops_)->num_bytes()),
            32 * 512 * bits.at(GetParam()) / 8);
}

TEST_P(PackIntegersTest, SourcesThatDoNotStackOrFitThrow) {
  Random random(7);
  const int inputs = FullInputs(GetParam(), 40);
  const TestIntegers good(random, GetParam(), 20, inputs);
  const TestIntegers wide(random, GetParam(), 20, 2 * inputs);
  const auto pack = [&](const IntegerView& view) { return TestIntegers::PackView(ops_, view); };
  EXPECT_NO_THROW(pack(good.view));
  const std::vector<WeightSource> unequal = {good.view, wide.view};
  EXPECT_THROW(ops_.Pack(unequal), InternalError);
  EXPECT_THROW(ops_.Pack({}), InternalError);
  IntegerView wrong = good.view;
  wrong.format = WeightFormat::kBFloat16;
  EXPECT_THROW(pack(wrong), InternalError);
  wrong = good.view;
  wrong.num_outputs = 0;
  EXPECT_THROW(pack(wrong), InternalError);
  // Every pointer that is missing, and every one that should be null.
  const auto expect_throw = [&](auto IntegerView::* member, auto other) {
    wrong = good.view;
    wrong.*member = wrong.*member == nullptr ? other : nullptr;
    EXPECT_THROW(pack(wrong), InternalError);
  };
  expect_throw(&IntegerView::scales, good.scales.data());
  expect_throw(&IntegerView::minima, good.minima.data());
  expect_throw(&IntegerView::sub_scales, good.sub_scales.data());
  expect_throw(&IntegerView::sub_minima, good.sub_minima.data());
  expect_throw(&IntegerView::wide_scales, good.wide_scales.data());
  expect_throw(&IntegerView::zeros, good.zeros.data());
  const IntegerFormat integers = IntegersOf(GetParam());
  if (integers.block() != 0) {
    wrong = good.view;
    wrong.num_inputs -= 32;
    EXPECT_THROW(pack(wrong), InternalError);
    const TestWeight floats(random, 16, inputs);
    EXPECT_THROW(ops_.Pack({&floats.view, 1}, GetParam()), InternalError);
  }
  if (GetParam() == WeightFormat::kInt4Zero) {
    TestIntegers bad(random, GetParam(), 20, inputs);
    bad.wide_scales.back() = 0.1f;  // needs more than 24 bits
    EXPECT_THROW(pack(bad.view), InternalError);
  }
  if (integers.bits == 8) return;
  for (int value : {-integers.zero - 1, (1 << integers.bits) - integers.zero}) {
    TestIntegers bad(random, GetParam(), 20, inputs);
    bad.values.back() = static_cast<std::int8_t>(value);
    EXPECT_THROW(pack(bad.view), InternalError);
  }
}

std::vector<WeightFormat> QuantizedFormats() {
  std::vector<WeightFormat> formats = IntegerFormats();
  std::erase_if(formats, [](WeightFormat format) { return !TakesFloats(format); });
  return formats;
}

std::string FormatName(const ::testing::TestParamInfo<WeightFormat>& param) {
  return Name(param.param);
}

INSTANTIATE_TEST_SUITE_P(Formats, PackIntegersTest, ::testing::ValuesIn(IntegerFormats()),
                         FormatName);
INSTANTIATE_TEST_SUITE_P(Formats, QuantizeTest, ::testing::ValuesIn(QuantizedFormats()),
                         FormatName);

}  // namespace
}  // namespace forerun
