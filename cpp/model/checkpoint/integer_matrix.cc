#include "cpp/model/checkpoint/integer_matrix.h"

namespace forerun {

IntegerMatrix::IntegerMatrix(WeightFormat format, int num_outputs, int num_inputs) {
  view_ = {format, num_outputs, num_inputs};
  const std::int64_t outputs = num_outputs;
  const std::int64_t scale_bytes = outputs * view_.num_groups() * std::int64_t{2};
  values_ = AlignedBuffer(HostMemory(), outputs * num_inputs);
  scales_ = AlignedBuffer(HostMemory(), scale_bytes);
  view_.values = values_.as<std::int8_t>();
  view_.scales = scales_.as<std::uint16_t>();
  if (IntegersOf(format).has_minimum()) {
    minima_ = AlignedBuffer(HostMemory(), scale_bytes);
    view_.minima = minima_.as<std::uint16_t>();
  }
}

void Dequantize(const IntegerView& view, int output, float* out) {
  const std::int8_t* values = view.values + std::int64_t{output} * view.num_inputs;
  const std::int64_t first = std::int64_t{output} * view.num_groups();
  for (int i = 0; i < view.num_inputs; ++i) {
    const std::int64_t group = first + i / kWeightGroup;
    const float product = Float16ToFloat(view.scales[group]) * static_cast<float>(values[i]);
    out[i] = view.minima == nullptr ? product : product + Float16ToFloat(view.minima[group]);
  }
}

}  // namespace forerun
