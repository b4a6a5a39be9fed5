// Floats as int8 and int4: the formulas of docs/quantization.md, one weight at a time, against
// every instruction set.
#include <cmath>

#include "cpp/ops/cpu/find_integer_kernels.h"
#include "cpp/ops/cpu/packed_matrix.h"
#include "tests/cpp/ops/integers_testing.h"

namespace forerun {
namespace {

// The float16 nearest to x, found among all of them; ties to even.
float NearestHalf(float x) {
  if (std::fabs(x) >= 65520.0f) return std::copysign(HUGE_VALF, x);
  int below = 0, above = 0x7c00;  // of the magnitude
  while (above - below > 1) {
    const int middle = (below + above) / 2;
    (Float16ToFloat(static_cast<std::uint16_t>(middle)) <= std::fabs(x) ? below : above) = middle;
  }
  const float low = Float16ToFloat(static_cast<std::uint16_t>(below));
  const float high = above == 0x7c00 ? 65536.0f : Float16ToFloat(static_cast<std::uint16_t>(above));
  const float to_low = std::fabs(x) - low, to_high = high - std::fabs(x);
  const bool takes_low = to_low < to_high || (to_low == to_high && below % 2 == 0);
  return std::copysign(takes_low ? low : high, x);
}

float FittedScale(const float* w, int count) {
  const auto [least, most] = std::minmax_element(w, w + count);
  const float farthest = -*least > *most ? *least : *most;
  if (farthest == 0.0f) return 0.0f;
  float product = 0, square = 0;
  for (int i = 0; i < count; ++i) {
    const float unit = w[i] / farthest;
    const float integer = std::clamp(std::nearbyintf(unit * -8.0f), -8.0f, 7.0f);
    const float weighted = integer * std::fabs(unit);
    product += weighted * unit;
    square += weighted * integer;
  }
  return NearestHalf(product / std::max(square, 1.0f) * farthest);
}

// The least float16 that is not below largest magnitude / 127.
float ScaleOf8(const float* w, int count) {
  float most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, std::fabs(w[i]));
  int below = -1, enough = 0x7c00;
  while (enough - below > 1) {
    const int middle = (below + enough) / 2;
    const bool is_enough = Float16ToFloat(static_cast<std::uint16_t>(middle)) >= most / 127.0f;
    (is_enough ? enough : below) = middle;
  }
  return Float16ToFloat(static_cast<std::uint16_t>(enough));
}

void Quantize(const float* w, int count, WeightFormat format, float* out) {
  const bool is_8 = format == WeightFormat::kInt8;
  const float scale = is_8 ? ScaleOf8(w, count) : FittedScale(w, count);
  const float zero = is_8 ? 128.0f : 8.0f;
  for (int i = 0; i < count; ++i) {
    const float quotient = scale == 0.0f ? 0.0f : w[i] / scale;
    out[i] = scale * std::clamp(std::nearbyintf(quotient), -zero, zero - 1.0f);
  }
}

class QuantizeWeightsTest : public ::testing::TestWithParam<const IntegerKernels*> {
 protected:
  void Check(const std::vector<float>& weights, int num_inputs, WeightFormat format) {
    const int num_outputs = static_cast<int>(std::ssize(weights)) / num_inputs;
    const TensorView view = {weights.data(), DType::kFloat32, {num_outputs, num_inputs}};
    const TestRows out = UnpackAll(ops_, *ops_.Pack({&view, 1}, format));
    std::vector<float> expected(kWeightGroup);
    for (int n = 0; n < num_outputs; ++n) {
      for (int begin = 0; begin < num_inputs; begin += kWeightGroup) {
        const int count = std::min(kWeightGroup, num_inputs - begin);
        Quantize(&weights[n * num_inputs + begin], count, format, expected.data());
        for (int i = 0; i < count; ++i) {
          ASSERT_EQ(out.row(n)[begin + i], expected[i]) << Name(format) << n << " " << begin + i;
        }
      }
    }
  }

  ThreadTeam team_{2};
  CpuOps ops_{team_, GetParam()->name, CpuKernelsOf(Isa::kPortable), *GetParam()};
};

TEST_P(QuantizeWeightsTest, FollowsTheFormulasForEveryShapeAndSize) {
  Random random(1);
  for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const auto& [num_outputs, num_inputs] :
         {std::pair{1, 1}, {15, 31}, {16, 32}, {17, 33}, {40, 64}, {33, 95}, {20, 320}}) {
      // Subnormal scales and all powers of ten that a float16 scale reaches.
      for (float deviation : {1e-8f, 1e-6f, 1e-4f, 0.02f, 1.0f, 100.0f, 2e4f}) {
        Check(random.Normals(num_outputs * num_inputs, deviation), num_inputs, format);
      }
    }
  }
}

TEST_P(QuantizeWeightsTest, FollowsThemForZerosTiesAndOppositeExtremes) {
  for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    Check(std::vector<float>(64, 0.0f), 64, format);
    Check(std::vector<float>(64, -0.0f), 64, format);
    std::vector<float> weights(96);
    for (int i = 0; i < 96; ++i) weights[i] = static_cast<float>(i % 17 - 8) * 0.5f;
    Check(weights, 96, format);
    for (float& weight : weights) weight = -weight;
    Check(weights, 96, format);
    Check({1.0f, -1.0f, 1.0f}, 3, format);
    Check({-1.0f, 1.0f, 0.9375f, -0.9375f}, 4, format);
  }
}

// Least squares for integers rounded where the farthest weight is -8 cannot be worse than the scale
// farthest / -8, but for what rounding it to float16 does.
TEST_P(QuantizeWeightsTest, FittingNeverAddsToTheWeightedError) {
  Random random(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> weights = random.Normals(kWeightGroup);
    if (round % 3 == 0) weights[random.Below(kWeightGroup)] *= 8.0f;
    const TensorView view = {weights.data(), DType::kFloat32, {1, kWeightGroup}};
    const TestRows out = UnpackAll(ops_, *ops_.Pack({&view, 1}, WeightFormat::kInt4));
    const auto [least, most] = std::minmax_element(weights.begin(), weights.end());
    const float farthest = -*least > *most ? *least : *most;
    double fitted = 0, plain = 0, sum = 0;
    for (int i = 0; i < kWeightGroup; ++i) {
      const float step = farthest / -8.0f, w = weights[i];
      const float rounded = step * std::clamp(std::nearbyintf(w / step), -8.0f, 7.0f);
      const double weight = std::fabs(w);
      fitted += weight * std::pow(out.row(0)[i] - w, 2);
      plain += weight * std::pow(rounded - w, 2);
      sum += weight * w * w;
    }
    ASSERT_LE(fitted, plain + 1e-6 * sum) << round;
  }
}

// Outputs of one tile: stored integers beside floats that become the same format.
TEST_P(QuantizeWeightsTest, FloatsAndStoredIntegersShareATile) {
  Random random(3);
  for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const TestIntegers stored(random, format, 7, 70, /*exponent=*/-7);
    const TestWeight floats(random, 12, 70);
    const std::vector<WeightSource> both = {stored.view, WeightSource(floats.view, format)};
    const TestRows out = UnpackAll(ops_, *ops_.Pack(both));
    const TestRows alone = UnpackAll(ops_, *ops_.Pack({&floats.view, 1}, format));
    for (int k = 0; k < 70; ++k) {
      for (int n = 0; n < 7; ++n) ASSERT_EQ(out.row(n)[k], stored.At(n, k)) << n << " " << k;
      for (int n = 0; n < 12; ++n) ASSERT_EQ(out.row(7 + n)[k], alone.row(n)[k]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, QuantizeWeightsTest,
                         ::testing::ValuesIn(AvailableIntegerKernels()),
                         [](const auto& param) { return std::string(param.param->name); });

}  // namespace
}  // namespace forerun
