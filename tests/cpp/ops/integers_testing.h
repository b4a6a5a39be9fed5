// Random weights in integer formats.
#ifndef FORERUN_TESTS_CPP_OPS_INTEGERS_TESTING_H_
#define FORERUN_TESTS_CPP_OPS_INTEGERS_TESTING_H_

#include <bit>
#include <vector>

#include "tests/cpp/ops/ops_testing.h"
#include "tests/cpp/testing/integer_weights.h"

namespace forerun {

inline std::vector<WeightFormat> IntegerFormats() {
  std::vector<WeightFormat> formats;
  for (WeightFormat format : kWeightFormats) {
    if (HasIntegers(format)) formats.push_back(format);
  }
  return formats;
}

// The next number of inputs that a row of the format may have.
inline int FullInputs(WeightFormat format, int num_inputs) {
  const int block = IntegersOf(format).block();
  return block == 0 ? num_inputs : (num_inputs + block - 1) / block * block;
}

inline TestRows UnpackAll(Ops& ops, const PackedMatrix& matrix) {
  std::vector<TokenId> all(matrix.num_outputs());
  for (int i = 0; i < matrix.num_outputs(); ++i) all[i] = i;
  TestRows out(matrix.num_outputs(), matrix.num_inputs());
  ops.Embed(ops.Begin({all}), matrix, 1.0f, out);
  return out;
}

// Finite, of either sign.
inline std::uint16_t RandomHalf(Random& random) {
  return static_cast<std::uint16_t>(random.Below(0x7c00) | random.Below(2) << 15);
}

// Integers in memory and their view.
struct TestIntegers {
  // Scales and minima are up to 2^exponent, or any finite float16 where that is 0.
  TestIntegers(Random& random, WeightFormat format, int num_outputs, int num_inputs,
               int exponent = 0) {
    const IntegerFormat integers = IntegersOf(format);
    view = {format, num_outputs, num_inputs};
    values.resize(static_cast<std::size_t>(num_outputs) * num_inputs);
    for (auto& value : values) {
      value = static_cast<std::int8_t>(random.Below(1 << integers.bits) - integers.zero);
    }
    for (int i = 0; i < num_outputs * view.num_scales(); ++i) {
      scales.push_back(Half(random, exponent));
      minima.push_back(Half(random, exponent));
      // An exponent of 2^-30 to 2^17, and 15 random bits after the first.
      const std::uint32_t bits = random.Below(1 << 15) | (97 + random.Below(48)) << 15;
      wide_scales.push_back(exponent == 0 ? std::bit_cast<float>(bits << 8)
                                          : Float16ToFloat(scales.back()));
      zeros.push_back(static_cast<std::uint8_t>(random.Below(exponent == 0 ? 256 : 16)));
    }
    const int sub_scale_end = format == WeightFormat::kInt6K ? 256 : 64;
    for (int i = 0; i < num_outputs * view.num_groups(); ++i) {
      sub_scales.push_back(static_cast<std::uint8_t>(random.Below(sub_scale_end)));
      sub_minima.push_back(static_cast<std::uint8_t>(random.Below(64)));
    }
    view.values = values.data();
    const ScaleKind kind = integers.scales;
    const bool is_super = kind == ScaleKind::kSuper, is_wide = kind == ScaleKind::kZeroPoint;
    if (!is_wide) view.scales = scales.data();
    if (is_super || kind == ScaleKind::kMinimum) view.minima = minima.data();
    if (is_super || kind == ScaleKind::kSubScale) view.sub_scales = sub_scales.data();
    if (is_super) view.sub_minima = sub_minima.data();
    if (is_wide) view.wide_scales = wide_scales.data(), view.zeros = zeros.data();
  }
  TestIntegers(const TestIntegers&) = delete;
  TestIntegers& operator=(const TestIntegers&) = delete;

  std::unique_ptr<PackedMatrix> Pack(Ops& ops) const { return PackView(ops, view); }
  static std::unique_ptr<PackedMatrix> PackView(Ops& ops, const IntegerView& view) {
    const WeightSource source = view;
    return ops.Pack({&source, 1});
  }
  float At(int output, int input) const { return testing::WeightOf(view, output, input); }

  std::vector<std::int8_t> values;
  std::vector<std::uint16_t> scales, minima;
  std::vector<std::uint8_t> sub_scales, sub_minima, zeros;
  std::vector<float> wide_scales;
  IntegerView view;

 private:
  static std::uint16_t Half(Random& random, int exponent) {
    if (exponent == 0) return RandomHalf(random);
    const int magnitude = (15 + exponent) << 10;
    return static_cast<std::uint16_t>((magnitude - random.Below(4096)) | random.Below(2) << 15);
  }
};

}  // namespace forerun

#endif  // FORERUN_TESTS_CPP_OPS_INTEGERS_TESTING_H_
