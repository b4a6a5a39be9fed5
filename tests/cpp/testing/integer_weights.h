// What ready integers are worth, one weight at a time: as the gguf package computes it.
#ifndef FORERUN_TESTS_CPP_TESTING_INTEGER_WEIGHTS_H_
#define FORERUN_TESTS_CPP_TESTING_INTEGER_WEIGHTS_H_

#include <cstdint>

#include "cpp/ops/weight_source.h"

namespace forerun::testing {

inline float WeightOf(const IntegerView& view, int output, int input) {
  const auto value =
      static_cast<float>(view.values[std::int64_t{output} * view.num_inputs + input]);
  const auto of = [&](const auto* numbers, int inputs) {
    return numbers[std::int64_t{output} * ((view.num_inputs + inputs - 1) / inputs) +
                   input / inputs];
  };
  const auto half = [&](const std::uint16_t* numbers, int inputs) {
    return Float16ToFloat(of(numbers, inputs));
  };
  switch (view.format) {
    case WeightFormat::kInt4Min:
    case WeightFormat::kInt5Min:
      return half(view.scales, 32) * value + half(view.minima, 32);
    case WeightFormat::kInt4K:
    case WeightFormat::kInt5K: {
      const float scale = half(view.scales, 256) * static_cast<float>(of(view.sub_scales, 32));
      const float minimum = half(view.minima, 256) * static_cast<float>(of(view.sub_minima, 32));
      return scale * value - minimum;
    }
    case WeightFormat::kInt6K: {
      const auto sub_scale = static_cast<std::int8_t>(of(view.sub_scales, 16));
      return half(view.scales, 256) * static_cast<float>(sub_scale) * value;
    }
    case WeightFormat::kInt4Zero:
      return of(view.wide_scales, 128) * (value - static_cast<float>(of(view.zeros, 128)));
    default:
      return half(view.scales, 32) * value;
  }
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_INTEGER_WEIGHTS_H_
