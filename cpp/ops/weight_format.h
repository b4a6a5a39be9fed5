// How the weights of a packed matrix are stored.
#ifndef FORERUN_CPP_OPS_WEIGHT_FORMAT_H_
#define FORERUN_CPP_OPS_WEIGHT_FORMAT_H_

#include <cstdint>
#include <map>

#include "cpp/tensor/dtype.h"
#include "cpp/util/host_device.h"

namespace forerun {

// In the integer formats a weight is
//
//   kInt8, kInt4, kInt5   scale * (stored - zero)
//   kInt4Min, kInt5Min    scale * stored + minimum
//   kInt4K, kInt5K        (scale * sub_scale) * stored - minimum * sub_minimum
//   kInt6K                (scale * sub_scale) * (stored - zero)
//   kInt4Zero             scale * (stored - the group's zero)
//
// in float32, each operation rounded. Activations that meet them are quantized too.
enum class WeightFormat {
  kFloat32,
  kBFloat16,
  kInt8,
  kInt4,
  kInt4Min,
  kInt5,
  kInt5Min,
  kInt4K,
  kInt5K,
  kInt6K,
  kInt4Zero
};
inline constexpr WeightFormat kWeightFormats[] = {
    WeightFormat::kFloat32, WeightFormat::kBFloat16, WeightFormat::kInt8,    WeightFormat::kInt4,
    WeightFormat::kInt4Min, WeightFormat::kInt5,     WeightFormat::kInt5Min, WeightFormat::kInt4K,
    WeightFormat::kInt5K,   WeightFormat::kInt6K,    WeightFormat::kInt4Zero};
inline constexpr int kNumWeightFormats = sizeof(kWeightFormats) / sizeof(kWeightFormats[0]);

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
    case WeightFormat::kInt4K:
      return "int4k";
    case WeightFormat::kInt5K:
      return "int5k";
    case WeightFormat::kInt6K:
      return "int6k";
    case WeightFormat::kInt4Zero:
      return "int4zero";
  }
  return "?";
}

// Inputs of an output whose products are added as integers, where a format does not say otherwise.
inline constexpr int kWeightGroup = 32;

// What the integers of a group are scaled by.
enum class ScaleKind {
  kScale,      // a float16 scale for each group
  kMinimum,    // and a float16 minimum
  kSuper,      // float16 scale and minimum for eight groups, 8 bits of each for every group
  kSubScale,   // a float16 scale for sixteen groups, 8 bits with a sign for every group
  kZeroPoint,  // a 24-bit scale and a zero point for four groups
};

// What is stored of a weight is an unsigned number of `bits` bits.
struct IntegerFormat {
  int bits = 0;  // 0: the format has no integers
  int zero = 0;  // what 0 is stored as: a power of two, or 0 where a minimum is added
  int group = kWeightGroup;
  ScaleKind scales = ScaleKind::kScale;

  // Whether more than a product is added.
  FORERUN_HOST_DEVICE constexpr bool has_minimum() const {
    return scales != ScaleKind::kScale && scales != ScaleKind::kSubScale;
  }
  // Inputs that share the scales of kSuper, kSubScale and kZeroPoint, of which a row of a matrix
  // has a whole number; 0 where it need not.
  constexpr int block() const {
    if (scales == ScaleKind::kZeroPoint) return 128;
    return scales == ScaleKind::kSuper || scales == ScaleKind::kSubScale ? 256 : 0;
  }
};

constexpr IntegerFormat IntegersOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kInt8:
      return {.bits = 8, .zero = 128};
    case WeightFormat::kInt4:
      return {.bits = 4, .zero = 8};
    case WeightFormat::kInt4Min:
      return {.bits = 4, .scales = ScaleKind::kMinimum};
    case WeightFormat::kInt5:
      return {.bits = 5, .zero = 16};
    case WeightFormat::kInt5Min:
      return {.bits = 5, .scales = ScaleKind::kMinimum};
    case WeightFormat::kInt4K:
      return {.bits = 4, .scales = ScaleKind::kSuper};
    case WeightFormat::kInt5K:
      return {.bits = 5, .scales = ScaleKind::kSuper};
    case WeightFormat::kInt6K:
      return {.bits = 6, .zero = 32, .group = 16, .scales = ScaleKind::kSubScale};
    case WeightFormat::kInt4Zero:
      return {.bits = 4, .scales = ScaleKind::kZeroPoint};
    case WeightFormat::kFloat32:
    case WeightFormat::kBFloat16:
      break;
  }
  return {};
}

// Of weights, by the format that they are in.
using WeightBytes = std::map<WeightFormat, std::int64_t>;

constexpr bool HasIntegers(WeightFormat format) { return IntegersOf(format).bits != 0; }

// Whether floats can be packed in it: into integer formats without a block.
constexpr bool TakesFloats(WeightFormat format) { return IntegersOf(format).block() == 0; }

// That of weights which are not quantized: bfloat16 as they are, all others as float32.
constexpr WeightFormat FormatOf(DType dtype) {
  return dtype == DType::kBFloat16 ? WeightFormat::kBFloat16 : WeightFormat::kFloat32;
}

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_WEIGHT_FORMAT_H_
