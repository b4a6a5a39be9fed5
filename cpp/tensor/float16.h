// From float32 to float16; the way back is in dtype.h.
#ifndef FORERUN_CPP_TENSOR_FLOAT16_H_
#define FORERUN_CPP_TENSOR_FLOAT16_H_

#include <bit>
#include <cstdint>

namespace forerun {

// Rounded towards zero, from 65536 on to infinity: exact for the values that a float16 has. A NaN
// stays one.
constexpr std::uint16_t FloatToFloat16TowardsZero(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7e00;
  std::uint32_t result = 0x7c00;
  if (magnitude < std::bit_cast<std::uint32_t>(0x1p-14f)) {
    result = static_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p24f);
  } else if (magnitude < std::bit_cast<std::uint32_t>(0x1p16f)) {
    result = (magnitude >> 13) - (112u << 10);
  }
  return static_cast<std::uint16_t>(sign | result);
}

// Rounded to the nearest, ties to even, from 65520 on to infinity. A NaN stays one.
constexpr std::uint16_t FloatToFloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7e00;
  std::uint32_t result = 0x7c00;
  if (magnitude < std::bit_cast<std::uint32_t>(0x1p-14f)) {
    // The addition leaves a multiple of 2^-24, the step of float16 here.
    constexpr float kMagic = 0x1.8p-1f;
    result = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + kMagic) -
             std::bit_cast<std::uint32_t>(kMagic);
  } else if (magnitude < std::bit_cast<std::uint32_t>(65520.0f)) {
    result = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | result);
}

}  // namespace forerun

#endif  // FORERUN_CPP_TENSOR_FLOAT16_H_
