#include "cpp/ops/cpu/weight_groups.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/tensor/dtype.h"

namespace forerun {
namespace {

constexpr std::uint16_t kNaN16 = 0x7e00;
constexpr std::uint16_t kInfinity16 = 0x7c00;

// The float16 nearest to a magnitude of those that are not smaller.
std::uint16_t Float16AtLeast(float magnitude) {
  if (magnitude >= 65536.0f) return kInfinity16;
  std::uint16_t bits = 0;
  if (magnitude < 0x1p-14f) {
    bits = static_cast<std::uint16_t>(magnitude * 0x1p24f);
  } else {
    bits =
        static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(magnitude) >> 13) - (112u << 10));
  }
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

// To the nearest integer, ties to even. REQUIRES: |x| < 2^22.
int Round(float x) {
  return std::bit_cast<std::int32_t>(x + 12582912.0f) - std::bit_cast<std::int32_t>(12582912.0f);
}

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
  const float magnitude = std::max(-extremes.least, extremes.most);
  if (format.has_minimum) {
    group.minimum = Float16AtMost(extremes.least);
    const float range = extremes.most - Float16ToFloat(group.minimum);
    group.scale = Float16AtLeast(range / static_cast<float>((1 << format.bits) - 1));
  } else if (format.bits == 8) {
    group.scale = Float16AtLeast(magnitude / 127.0f);
  } else {
    const float farthest = -extremes.least > extremes.most ? extremes.least : extremes.most;
    group.scale = Float16AwayFromZero(farthest / static_cast<float>(-format.zero));
  }
}

std::uint16_t* ScaleOf(std::byte* tile, IntegerFormat format, int group, int lane) {
  const int step_bytes = HeaderBytes(format) + kGroupsPerStep * NumLoads(format) * kLoadBytes;
  std::byte* step = tile + std::int64_t{group / kGroupsPerStep} * step_bytes;
  return reinterpret_cast<std::uint16_t*>(step) + group % kGroupsPerStep * kLanes + lane;
}

// The bytes of an output's first quad in the loads of a group.
std::uint8_t* QuadsOf(std::byte* tile, IntegerFormat format, int group, int lane) {
  auto* step = reinterpret_cast<std::uint8_t*>(
      ScaleOf(tile, format, group / kGroupsPerStep * kGroupsPerStep, 0));
  const int loads = group % kGroupsPerStep * NumLoads(format);
  return step + HeaderBytes(format) + loads * kLoadBytes + lane * kInputsPerQuad;
}

}  // namespace

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
  std::uint16_t* scale = ScaleOf(tile, format, group, lane);
  scale[0] = source.scale;
  if (format.has_minimum) scale[kGroupsPerStep * kLanes] = source.minimum;
  std::uint8_t* quads = QuadsOf(tile, format, group, lane);
  for (int i = 0; i < NumLoads(format); ++i) std::memset(quads + i * kLoadBytes, 0, kInputsPerQuad);
  for (int i = 0; i < kWeightGroup; ++i) {
    const int quad = i / kInputsPerQuad, stored = source.stored[i];
    std::uint8_t* byte = quads + i % kInputsPerQuad;
    if (format.bits == 8) {
      byte[quad * kLoadBytes] = source.stored[i];
      continue;
    }
    byte[quad % 4 * kLoadBytes] |= static_cast<std::uint8_t>((stored & 0x0f) << quad / 4 * 4);
    if (format.bits == 5) byte[4 * kLoadBytes] |= static_cast<std::uint8_t>(stored >> 4 << quad);
  }
}

WeightGroup GetGroup(const std::byte* tile, IntegerFormat format, int group, int lane) {
  // What finds the way in a tile serves both directions; nothing is written here.
  auto* data = const_cast<std::byte*>(tile);
  WeightGroup result;
  const std::uint16_t* scale = ScaleOf(data, format, group, lane);
  result.scale = scale[0];
  if (format.has_minimum) result.minimum = scale[kGroupsPerStep * kLanes];
  const std::uint8_t* quads = QuadsOf(data, format, group, lane);
  for (int i = 0; i < kWeightGroup; ++i) {
    const int quad = i / kInputsPerQuad;
    const std::uint8_t* byte = quads + i % kInputsPerQuad;
    if (format.bits == 8) {
      result.stored[i] = byte[quad * kLoadBytes];
      continue;
    }
    int stored = byte[quad % 4 * kLoadBytes] >> quad / 4 * 4 & 0x0f;
    if (format.bits == 5) stored |= (byte[4 * kLoadBytes] >> quad & 1) << 4;
    result.stored[i] = static_cast<std::uint8_t>(stored);
  }
  return result;
}

void Dequantize(const WeightGroup& source, IntegerFormat format, float factor, int count,
                float* out) {
  const float scale = Float16ToFloat(source.scale), minimum = Float16ToFloat(source.minimum);
  for (int i = 0; i < count; ++i) {
    const float product = scale * static_cast<float>(source.stored[i] - format.zero);
    out[i] = factor * (format.has_minimum ? product + minimum : product);
  }
}

}  // namespace forerun
