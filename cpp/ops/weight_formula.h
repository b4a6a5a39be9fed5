// The formulas of WeightFormat, once: packed matrices, kernels and checkpoints unpack by them.
#ifndef FORERUN_CPP_OPS_WEIGHT_FORMULA_H_
#define FORERUN_CPP_OPS_WEIGHT_FORMULA_H_

#include "cpp/ops/weight_format.h"
#include "cpp/util/host_device.h"

namespace forerun {

// What scales a group, as it is stored; what a format does not have is not read.
struct StoredScale {
  float scale = 0.0f;
  float minimum = 0.0f;
  int sub_scale = 0;
  int sub_minimum = 0;
  int zero = 0;
};

// A weight is scale * (stored - the format's zero) + minimum, each operation rounded to float32.
// The minimum of kSuper is subtracted in its formula, and that of kZeroPoint is the exact product
// of scale and zero: the weight is the same.
struct GroupScale {
  float scale = 0.0f;
  float minimum = 0.0f;
};

FORERUN_HOST_DEVICE inline GroupScale ScaleOf(IntegerFormat format, const StoredScale& stored) {
  switch (format.scales) {
    case ScaleKind::kScale:
      return {stored.scale, 0.0f};
    case ScaleKind::kMinimum:
      return {stored.scale, stored.minimum};
    case ScaleKind::kSuper:
      return {stored.scale * static_cast<float>(stored.sub_scale),
              -(stored.minimum * static_cast<float>(stored.sub_minimum))};
    case ScaleKind::kSubScale:
      return {stored.scale * static_cast<float>(stored.sub_scale), 0.0f};
    case ScaleKind::kZeroPoint:
      return {stored.scale, -(stored.scale * static_cast<float>(stored.zero))};
  }
  return {};
}

// `integer`: stored - the format's zero.
FORERUN_HOST_DEVICE inline float WeightOf(IntegerFormat format, const GroupScale& group,
                                          int integer) {
  const float product = group.scale * static_cast<float>(integer);
  return format.has_minimum() ? product + group.minimum : product;
}

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_WEIGHT_FORMULA_H_
