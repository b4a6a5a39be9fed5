#include "cpp/ops/cpu/weight_groups.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpp/ops/cpu/integer_kernels.h"
#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/ops/weight_formula.h"
#include "cpp/tensor/dtype.h"
#include "cpp/tensor/float16.h"

namespace forerun {
namespace {

constexpr std::uint16_t kNaN16 = 0x7e00;

// To the nearest integer, ties to even. REQUIRES: |x| < 2^22.
int Round(float x) {
  return std::bit_cast<std::int32_t>(x + 12582912.0f) - std::bit_cast<std::int32_t>(12582912.0f);
}

// The float16 nearest to a magnitude of those that are not smaller.
std::uint16_t Float16AtLeast(float magnitude) {
  const std::uint16_t bits = FloatToFloat16TowardsZero(magnitude);
  return Float16ToFloat(bits) < magnitude ? bits + 1 : bits;
}

// The float16 nearest to a value of those that are at least as far from 0.
std::uint16_t Float16AwayFromZero(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  return Float16AtLeast(std::fabs(value)) | sign;
}

// The largest float16 that is at most `value`.
std::uint16_t Float16AtMost(float value) {
  if (value < 0.0f) return Float16AwayFromZero(value);
  const std::uint16_t above = Float16AtLeast(value);
  return Float16ToFloat(above) > value ? above - 1 : above;
}

bool IsFinite16(std::uint16_t bits) { return (bits & 0x7c00u) != 0x7c00u; }

struct Extremes {
  float least, most;
  bool is_finite;
};

Extremes FindExtremes(const float* weights, int count) {
  Extremes result = {weights[0], weights[0], true};
  for (int i = 0; i < count; ++i) {
    result.least = std::min(result.least, weights[i]);
    result.most = std::max(result.most, weights[i]);
    result.is_finite = result.is_finite && std::isfinite(weights[i]);
  }
  return result;
}

void SetScales(const Extremes& extremes, IntegerFormat format, WeightGroup& group) {
  if (format.has_minimum()) {
    group.minimum = Float16AtMost(extremes.least);
    const float range = extremes.most - Float16ToFloat(group.minimum);
    group.scale = Float16AtLeast(range / static_cast<float>((1 << format.bits) - 1));
  } else {
    const float farthest = -extremes.least > extremes.most ? extremes.least : extremes.most;
    group.scale = Float16AwayFromZero(farthest / static_cast<float>(-format.zero));
  }
}

// The step that holds a group. T is std::byte or const std::byte.
template <typename T>
T* StepAt(T* tile, IntegerFormat format, int group) {
  const int step_bytes = LoadsOffset(format, GroupsPerStep(format));
  return tile + std::int64_t{group / GroupsPerStep(format)} * step_bytes;
}

template <typename T>
void Write(std::byte* step, int offset, int lane, T value) {
  std::memcpy(step + offset + lane * sizeof(T), &value, sizeof(T));
}

template <typename T>
T Read(const std::byte* step, int offset, int lane) {
  T value;
  std::memcpy(&value, step + offset + lane * sizeof(T), sizeof(T));
  return value;
}

float ReadFloat16(const std::byte* step, int offset, int lane) {
  return Float16ToFloat(Read<std::uint16_t>(step, offset, lane));
}

// Where weight i of a group is stored: its low bits, the whole of it if it has 8, and those above.
struct StoredAt {
  StoredAt(IntegerFormat format, int group, int lane, int i) {
    const int quad = i / kInputsPerQuad, half = format.group / kInputsPerQuad / 2;
    const int first =
        LoadsOffset(format, group % GroupsPerStep(format)) + lane * kInputsPerQuad + i % 4;
    const bool is_whole = format.bits == 8;
    low = first + (is_whole ? quad : quad % half) * kLoadBytes;
    low_shift = is_whole ? 0 : quad / half * 4;
    high = first + (NumLoads(format) - 1) * kLoadBytes;
    high_shift = quad * (format.bits - 4);
  }
  int low, low_shift, high, high_shift;
};

void Set(int value, int num_bits, int shift, std::byte& byte) {
  const int mask = ((1 << num_bits) - 1) << shift;
  byte = static_cast<std::byte>((static_cast<int>(byte) & ~mask) | value << shift);
}

void PutStored(const std::uint8_t* stored, IntegerFormat format, int group, int lane,
               std::byte* tile) {
  std::byte* step = StepAt(tile, format, group);
  for (int i = 0; i < format.group; ++i) {
    const StoredAt at(format, group, lane, i);
    const int low = format.bits == 8 ? stored[i] : stored[i] & 0x0f;
    Set(low, format.bits == 8 ? 8 : 4, at.low_shift, step[at.low]);
    if (format.bits == 5 || format.bits == 6) {
      Set(stored[i] >> 4, format.bits - 4, at.high_shift, step[at.high]);
    }
  }
}

int GetStored(const std::byte* step, IntegerFormat format, int group, int lane, int i) {
  const StoredAt at(format, group, lane, i);
  const int low = static_cast<int>(step[at.low]) >> at.low_shift;
  if (format.bits == 8) return low;
  if (format.bits == 4) return low & 0x0f;
  const int high = static_cast<int>(step[at.high]) >> at.high_shift;
  return (low & 0x0f) | (high & ((1 << (format.bits - 4)) - 1)) << 4;
}

GroupScale GetScale(const std::byte* tile, IntegerFormat format, int group, int lane) {
  const std::byte* step = StepAt(tile, format, group);
  const int within = group % GroupsPerStep(format);
  const int scale = ScaleOffset(format, within), minimum = MinimumOffset(format, within);
  StoredScale stored;
  switch (format.scales) {
    case ScaleKind::kMinimum:
      stored.minimum = ReadFloat16(step, minimum, lane);
      [[fallthrough]];
    case ScaleKind::kScale:
      stored.scale = ReadFloat16(step, scale, lane);
      break;
    case ScaleKind::kSuper:
      stored = {ReadFloat16(step, 0, lane), ReadFloat16(step, kHalfVector, lane),
                Read<std::uint8_t>(step, scale, lane), Read<std::uint8_t>(step, minimum, lane)};
      break;
    case ScaleKind::kSubScale:
      stored.scale = ReadFloat16(step, 0, lane);
      stored.sub_scale = Read<std::int8_t>(step, scale, lane);
      break;
    case ScaleKind::kZeroPoint: {
      const std::uint32_t high = Read<std::uint16_t>(step, 0, lane);
      const std::uint32_t low = Read<std::uint8_t>(step, kHalfVector, lane);
      stored.scale = std::bit_cast<float>(high << 16 | low << 8);
      stored.zero = Read<std::uint8_t>(step, minimum, lane);
    }
  }
  return ScaleOf(format, stored);
}

// The scales of a group of a source. False where one does not fit.
bool PutScale(const IntegerView& source, int row, int group, int lane, std::byte* tile) {
  const IntegerFormat format = IntegersOf(source.format);
  std::byte* step = StepAt(tile, format, group);
  const int within = group % GroupsPerStep(format);
  const int scale = ScaleOffset(format, within), minimum = MinimumOffset(format, within);
  const std::int64_t own = std::int64_t{row} * source.num_groups() + group;
  const std::int64_t shared = std::int64_t{row} * source.num_scales() +
                              (format.block() != 0 ? group * format.group / format.block() : group);
  switch (format.scales) {
    case ScaleKind::kMinimum:
      Write(step, minimum, lane, source.minima[shared]);
      [[fallthrough]];
    case ScaleKind::kScale:
      Write(step, scale, lane, source.scales[shared]);
      break;
    case ScaleKind::kSuper:
      Write(step, kHalfVector, lane, source.minima[shared]);
      Write(step, minimum, lane, source.sub_minima[own]);
      [[fallthrough]];
    case ScaleKind::kSubScale:
      Write(step, 0, lane, source.scales[shared]);
      Write(step, scale, lane, source.sub_scales[own]);
      break;
    case ScaleKind::kZeroPoint: {
      const auto bits = std::bit_cast<std::uint32_t>(source.wide_scales[shared]);
      Write(step, 0, lane, static_cast<std::uint16_t>(bits >> 16));
      Write(step, kHalfVector, lane, static_cast<std::uint8_t>(bits >> 8));
      Write(step, minimum, lane, source.zeros[shared]);
      return (bits & 0xffu) == 0;
    }
  }
  return true;
}

// Of each output's weights: the largest magnitude, and whether all are finite.
struct GroupBounds {
  explicit GroupBounds(const float* weights) {
    float sums[kLanes] = {};  // of zeros, or NaN
    for (int i = 0; i < kWeightGroup; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float weight = weights[i * kLanes + lane], magnitude = std::fabs(weight);
        sums[lane] += weight * 0.0f;
        most[lane] = most[lane] < magnitude ? magnitude : most[lane];
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) is_finite[lane] = sums[lane] == 0.0f;
  }
  float most[kLanes] = {};
  bool is_finite[kLanes];
};

}  // namespace

void QuantizeGroup(float* weights, int count, WeightFormat format, int group,
                   const IntegerKernels& kernels, std::byte* tile) {
  const IntegerFormat integers = IntegersOf(format);
  if (format != WeightFormat::kInt8 && format != WeightFormat::kInt4) {
    for (int lane = 0; lane < kLanes; ++lane) {
      float own[kWeightGroup];
      for (int i = 0; i < kWeightGroup; ++i) own[i] = weights[i * kLanes + lane];
      PutGroup(QuantizeWeights(own, count, integers), integers, group, lane, tile);
    }
    return;
  }
  const GroupBounds bounds(weights);
  alignas(64) float scales[kLanes], divisors[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    scales[lane] = bounds.most[lane] / 127.0f;
    if (bounds.is_finite[lane]) continue;
    for (int i = 0; i < kWeightGroup; ++i) weights[i * kLanes + lane] = 0.0f;
  }
  if (format == WeightFormat::kInt4) kernels.fit_scales(weights, scales);
  std::byte* step = StepAt(tile, integers, group);
  const int within = group % GroupsPerStep(integers);
  for (int lane = 0; lane < kLanes; ++lane) {
    std::uint16_t bits =
        format == WeightFormat::kInt8 ? Float16AtLeast(scales[lane]) : FloatToFloat16(scales[lane]);
    if (!bounds.is_finite[lane] || !IsFinite16(bits)) bits = kNaN16;
    Write(step, ScaleOffset(integers, within), lane, bits);
    const bool divides = bits != kNaN16 && (bits & 0x7fff) != 0;
    divisors[lane] = divides ? Float16ToFloat(bits) : 1.0f;
  }
  auto* loads = reinterpret_cast<std::uint8_t*>(step) + LoadsOffset(integers, within);
  (format == WeightFormat::kInt8 ? kernels.store_int8 : kernels.store_int4)(weights, divisors,
                                                                            loads);
}

WeightGroup QuantizeWeights(const float* weights, int count, IntegerFormat format) {
  WeightGroup group;
  std::fill_n(group.stored, kWeightGroup, static_cast<std::uint8_t>(format.zero));
  const Extremes extremes = FindExtremes(weights, count);
  if (extremes.is_finite) SetScales(extremes, format, group);
  if (!extremes.is_finite || !IsFinite16(group.scale) || !IsFinite16(group.minimum)) {
    group.scale = kNaN16;
    group.minimum = 0;
    return group;
  }
  const float scale = Float16ToFloat(group.scale), minimum = Float16ToFloat(group.minimum);
  if (scale == 0.0f) return group;
  const int most = (1 << format.bits) - 1;
  for (int i = 0; i < count; ++i) {
    const int value = Round((weights[i] - minimum) / scale) + format.zero;
    group.stored[i] = static_cast<std::uint8_t>(std::clamp(value, 0, most));
  }
  return group;
}

void PutGroup(const WeightGroup& source, IntegerFormat format, int group, int lane,
              std::byte* tile) {
  std::byte* step = StepAt(tile, format, group);
  const int within = group % GroupsPerStep(format);
  Write(step, ScaleOffset(format, within), lane, source.scale);
  if (format.has_minimum()) Write(step, MinimumOffset(format, within), lane, source.minimum);
  PutStored(source.stored, format, group, lane, tile);
}

bool PutRow(const IntegerView& source, int row, int lane, std::byte* tile) {
  const IntegerFormat format = IntegersOf(source.format);
  const std::int8_t* values = source.values + std::int64_t{row} * source.num_inputs;
  bool all_fit = true;
  for (int group = 0; group < source.num_groups(); ++group) {
    const int begin = group * format.group;
    const int count = std::min(format.group, source.num_inputs - begin);
    std::uint8_t stored[kWeightGroup] = {};
    for (int i = 0; i < count; ++i) {
      const int value = values[begin + i] + format.zero;
      all_fit = all_fit && value >= 0 && value < 1 << format.bits;
      stored[i] = static_cast<std::uint8_t>(value & ((1 << format.bits) - 1));
    }
    PutStored(stored, format, group, lane, tile);
    all_fit = PutScale(source, row, group, lane, tile) && all_fit;
  }
  return all_fit;
}

void Dequantize(const std::byte* tile, IntegerFormat format, int group, int lane, float factor,
                std::span<float> out) {
  const GroupScale scale = GetScale(tile, format, group, lane);
  const std::byte* step = StepAt(tile, format, group);
  for (int i = 0; i < std::ssize(out); ++i) {
    const int value = GetStored(step, format, group, lane, i) - format.zero;
    out[i] = factor * WeightOf(format, scale, value);
  }
}

}  // namespace forerun
