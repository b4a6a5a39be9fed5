// How the weights of a packed matrix are stored.
#ifndef FORERUN_CPP_OPS_WEIGHT_FORMAT_H_
#define FORERUN_CPP_OPS_WEIGHT_FORMAT_H_

#include <cstdint>
#include <map>

#include "cpp/tensor/dtype.h"

namespace forerun {

// In the integer formats, kWeightGroup inputs of an output share a scale:
//
//   kInt8     scale * (stored - 128)
//   kInt4     scale * (stored - 8)
//   kInt4Min  scale * stored + minimum
//   kInt5     scale * (stored - 16)
//   kInt5Min  scale * stored + minimum
//
// Scales and minima are float16. Activations that meet them are quantized too.
enum class WeightFormat { kFloat32, kBFloat16, kInt8, kInt4, kInt4Min, kInt5, kInt5Min };
inline constexpr WeightFormat kWeightFormats[] = {
    WeightFormat::kFloat32, WeightFormat::kBFloat16, WeightFormat::kInt8,   WeightFormat::kInt4,
    WeightFormat::kInt4Min, WeightFormat::kInt5,     WeightFormat::kInt5Min};

inline constexpr int kWeightGroup = 32;

constexpr const char* Name(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFloat32:
      return "float32";
    case WeightFormat::kBFloat16:
      return "bfloat16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
    case WeightFormat::kInt4Min:
      return "int4min";
    case WeightFormat::kInt5:
      return "int5";
    case WeightFormat::kInt5Min:
      return "int5min";
  }
  return "?";
}

// What is stored of a weight is an unsigned number of `bits` bits.
struct IntegerFormat {
  int bits = 0;  // 0: the format has no integers
  int zero = 0;  // what 0 is stored as: a power of two, or 0 where a minimum is added
  bool has_minimum = false;
};

constexpr IntegerFormat IntegersOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kInt8:
      return {.bits = 8, .zero = 128};
    case WeightFormat::kInt4:
      return {.bits = 4, .zero = 8};
    case WeightFormat::kInt4Min:
      return {.bits = 4, .zero = 0, .has_minimum = true};
    case WeightFormat::kInt5:
      return {.bits = 5, .zero = 16};
    case WeightFormat::kInt5Min:
      return {.bits = 5, .zero = 0, .has_minimum = true};
    default:
      return {};
  }
}

// Of weights, by the format that they are in.
using WeightBytes = std::map<WeightFormat, std::int64_t>;

constexpr bool HasIntegers(WeightFormat format) { return IntegersOf(format).bits != 0; }

// That of weights which are not quantized: bfloat16 as they are, all others as float32.
constexpr WeightFormat FormatOf(DType dtype) {
  return dtype == DType::kBFloat16 ? WeightFormat::kBFloat16 : WeightFormat::kFloat32;
}

// Borrowed integers of a matrix, in groups of kWeightGroup inputs; the last may be shorter. A
// weight is scale * value, plus the minimum where the format has one.
struct IntegerView {
  WeightFormat format;
  int num_outputs = 0;
  int num_inputs = 0;
  const std::int8_t* values = nullptr;    // [num_outputs, num_inputs]
  const std::uint16_t* scales = nullptr;  // [num_outputs, num_groups()] float16
  const std::uint16_t* minima = nullptr;  // as the scales; null where the format has none

  int num_groups() const { return (num_inputs + kWeightGroup - 1) / kWeightGroup; }
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_WEIGHT_FORMAT_H_
