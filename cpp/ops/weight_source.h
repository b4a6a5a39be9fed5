// What matrices are packed from.
#ifndef FORERUN_CPP_OPS_WEIGHT_SOURCE_H_
#define FORERUN_CPP_OPS_WEIGHT_SOURCE_H_

#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "cpp/ops/weight_format.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

// Borrowed integers of a matrix, with all that WeightFormat's formulas name. Null is what the
// format has not. The rows of an output are dense: those of the second follow those of the first.
struct IntegerView {
  WeightFormat format;
  int num_outputs = 0;
  int num_inputs = 0;  // a multiple of the format's block()
  // stored - zero, or what is stored where the format has no zero of its own.
  const std::int8_t* values = nullptr;       // [num_outputs, num_inputs]
  const std::uint16_t* scales = nullptr;     // float16 [num_outputs, num_scales()]
  const std::uint16_t* minima = nullptr;     // as scales
  const std::uint8_t* sub_scales = nullptr;  // [num_outputs, num_groups()]; kInt6K: int8
  const std::uint8_t* sub_minima = nullptr;  // as sub_scales
  const float* wide_scales = nullptr;        // [num_outputs, num_scales()], the low 8 bits 0
  const std::uint8_t* zeros = nullptr;       // as wide_scales

  // Of an output; the last group may be shorter.
  int num_groups() const {
    const int group = IntegersOf(format).group;
    return (num_inputs + group - 1) / group;
  }
  int num_scales() const {
    const int block = IntegersOf(format).block();
    return block != 0 ? num_inputs / block : num_groups();
  }
};

// Neighbouring outputs of a matrix that are packed in one format.
struct PartShape {
  WeightFormat format;
  int num_outputs;
};

// Outputs of one format that follow each other are one part.
inline void AddPart(const PartShape& outputs, std::vector<PartShape>& parts) {
  if (!parts.empty() && parts.back().format == outputs.format) {
    parts.back().num_outputs += outputs.num_outputs;
  } else {
    parts.push_back(outputs);
  }
}

// Some outputs of a matrix and the format in which they are packed.
struct WeightSource {
  // Float32, bfloat16 or float16 [n, k]; integer formats quantize them. REQUIRES:
  // TakesFloats(format).
  WeightSource(const TensorView& floats, WeightFormat format_) : weights(floats), format(format_) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  WeightSource(const IntegerView& integers) : weights(integers), format(integers.format) {}

  std::variant<TensorView, IntegerView> weights;
  WeightFormat format;
};

inline std::vector<WeightSource> SourcesOf(std::span<const TensorView> floats,
                                           WeightFormat format) {
  std::vector<WeightSource> sources;
  for (const TensorView& view : floats) sources.emplace_back(view, format);
  return sources;
}

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_WEIGHT_SOURCE_H_
