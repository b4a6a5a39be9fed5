#include "cpp/model/checkpoint/integer_matrix.h"

#include <cstddef>

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

struct Group {
  float scale = 0.0f;
  float minimum = 0.0f;  // kMinimum adds it, kSuper subtracts it
  float zero = 0.0f;
};

Group GroupAt(const IntegerView& view, int output, int input) {
  const IntegerFormat format = IntegersOf(view.format);
  const int block = format.block() != 0 ? format.block() : format.group;
  const std::int64_t scale = std::int64_t{output} * view.num_scales() + input / block;
  const std::int64_t group = std::int64_t{output} * view.num_groups() + input / format.group;
  switch (format.scales) {
    case ScaleKind::kScale:
      return {Float16ToFloat(view.scales[scale])};
    case ScaleKind::kMinimum:
      return {Float16ToFloat(view.scales[scale]), Float16ToFloat(view.minima[scale])};
    case ScaleKind::kSuper:
      return {Float16ToFloat(view.scales[scale]) * static_cast<float>(view.sub_scales[group]),
              Float16ToFloat(view.minima[scale]) * static_cast<float>(view.sub_minima[group])};
    case ScaleKind::kSubScale: {
      const auto sub_scale = static_cast<std::int8_t>(view.sub_scales[group]);
      return {Float16ToFloat(view.scales[scale]) * static_cast<float>(sub_scale)};
    }
    case ScaleKind::kZeroPoint:
      return {view.wide_scales[scale], 0.0f, static_cast<float>(view.zeros[scale])};
  }
  return {};
}

}  // namespace

void Dequantize(const IntegerView& view, int output, float* out) {
  const std::int8_t* values = view.values + std::int64_t{output} * view.num_inputs;
  const IntegerFormat format = IntegersOf(view.format);
  Group group;
  for (int i = 0; i < view.num_inputs; ++i) {
    if (i % format.group == 0) group = GroupAt(view, output, i);
    const float product = group.scale * (static_cast<float>(values[i]) - group.zero);
    if (format.scales == ScaleKind::kMinimum) {
      out[i] = product + group.minimum;
    } else if (format.scales == ScaleKind::kSuper) {
      out[i] = product - group.minimum;
    } else {
      out[i] = product;
    }
  }
}

}  // namespace forerun
