#include "cpp/model/checkpoint/integer_matrix.h"

#include <cstddef>

#include "cpp/ops/weight_formula.h"

namespace forerun {

IntegerMatrix::IntegerMatrix(WeightFormat format, int num_outputs, int num_inputs) {
  view_.format = format;
  view_.num_outputs = num_outputs;
  view_.num_inputs = num_inputs;
  const auto allocate = [&]<typename T>(AlignedBuffer& buffer, int num_per_output, const T*& data) {
    buffer = AlignedBuffer(HostMemory(), sizeof(T) * num_per_output * num_outputs);
    data = buffer.as<T>();
  };
  const int num_scales = view_.num_scales(), num_groups = view_.num_groups();
  allocate(values_, num_inputs, view_.values);
  const ScaleKind kind = IntegersOf(format).scales;
  if (kind == ScaleKind::kZeroPoint) {
    allocate(wide_scales_, num_scales, view_.wide_scales);
    allocate(zeros_, num_scales, view_.zeros);
    return;
  }
  allocate(scales_, num_scales, view_.scales);
  if (kind == ScaleKind::kMinimum || kind == ScaleKind::kSuper) {
    allocate(minima_, num_scales, view_.minima);
  }
  if (kind == ScaleKind::kSuper || kind == ScaleKind::kSubScale) {
    allocate(sub_scales_, num_groups, view_.sub_scales);
  }
  if (kind == ScaleKind::kSuper) allocate(sub_minima_, num_groups, view_.sub_minima);
}

namespace {

GroupScale GroupAt(const IntegerView& view, int output, int input) {
  const IntegerFormat format = IntegersOf(view.format);
  const int block = format.block() != 0 ? format.block() : format.group;
  const std::int64_t scale = std::int64_t{output} * view.num_scales() + input / block;
  const std::int64_t group = std::int64_t{output} * view.num_groups() + input / format.group;
  StoredScale stored;
  if (view.scales != nullptr) stored.scale = Float16ToFloat(view.scales[scale]);
  if (view.wide_scales != nullptr) stored.scale = view.wide_scales[scale];
  if (view.minima != nullptr) stored.minimum = Float16ToFloat(view.minima[scale]);
  if (view.sub_scales != nullptr) {
    const std::uint8_t bits = view.sub_scales[group];
    stored.sub_scale =
        format.scales == ScaleKind::kSubScale ? static_cast<std::int8_t>(bits) : bits;
  }
  if (view.sub_minima != nullptr) stored.sub_minimum = view.sub_minima[group];
  if (view.zeros != nullptr) stored.zero = view.zeros[scale];
  return ScaleOf(format, stored);
}

}  // namespace

void Dequantize(const IntegerView& view, int output, float* out) {
  const std::int8_t* values = view.values + std::int64_t{output} * view.num_inputs;
  const IntegerFormat format = IntegersOf(view.format);
  GroupScale group;
  for (int i = 0; i < view.num_inputs; ++i) {
    if (i % format.group == 0) group = GroupAt(view, output, i);
    out[i] = WeightOf(format, group, values[i]);
  }
}

}  // namespace forerun
