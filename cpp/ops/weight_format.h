// How the weights of a packed matrix are stored.
#ifndef FORERUN_CPP_OPS_WEIGHT_FORMAT_H_
#define FORERUN_CPP_OPS_WEIGHT_FORMAT_H_

#include "cpp/tensor/dtype.h"

namespace forerun {

enum class WeightFormat { kFloat32, kBFloat16 };
inline constexpr WeightFormat kWeightFormats[] = {WeightFormat::kFloat32, WeightFormat::kBFloat16};

constexpr const char* Name(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFloat32:
      return "float32";
    case WeightFormat::kBFloat16:
      return "bfloat16";
  }
  return "?";
}

// That of weights which are not quantized: bfloat16 as they are, all others as float32.
constexpr WeightFormat FormatOf(DType dtype) {
  return dtype == DType::kBFloat16 ? WeightFormat::kBFloat16 : WeightFormat::kFloat32;
}

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_WEIGHT_FORMAT_H_
