// Sixteen floats in four vectors of the compiler's own: SSE2, NEON or what else there is. Products
// are rounded before they are added. The contract of each operation is in vec_avx2.h.
#ifndef FORERUN_CPP_UTIL_SIMD_VEC_PORTABLE_H_
#define FORERUN_CPP_UTIL_SIMD_VEC_PORTABLE_H_

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FORERUN_REGISTER_BYTES 16
#include "cpp/util/simd/registers.h"

namespace forerun::FORERUN_ISA {

inline constexpr int kParts = 4;

struct V16 {
  Floats part[kParts];
};

#if defined(FORERUN_NUM_REGISTERS)
inline constexpr int kNumRegisters = FORERUN_NUM_REGISTERS;
inline constexpr int kMaxTileRows = FORERUN_MAX_TILE_ROWS;
#elif defined(__aarch64__)
inline constexpr int kNumRegisters = 8;
inline constexpr int kMaxTileRows = 6;
#else
inline constexpr int kNumRegisters = 4;
inline constexpr int kMaxTileRows = 2;
#endif

template <class Fn>
FORERUN_INLINE V16 EachPart(const Fn& fn) {
  return {{fn(0), fn(1), fn(2), fn(3)}};
}

FORERUN_INLINE Floats Splat(float x) { return Floats{x, x, x, x}; }
FORERUN_INLINE V16 Set(float x) { return {{Splat(x), Splat(x), Splat(x), Splat(x)}}; }
FORERUN_INLINE V16 Zero() { return Set(0.0f); }
FORERUN_INLINE V16 Load(const float* p) {
  V16 a;
  __builtin_memcpy(&a, p, sizeof(a));
  return a;
}
FORERUN_INLINE void Store(float* p, V16 a) { __builtin_memcpy(p, &a, sizeof(a)); }

FORERUN_INLINE V16 Add(V16 a, V16 b) {
  return EachPart([&](int i) { return a.part[i] + b.part[i]; });
}
FORERUN_INLINE V16 Sub(V16 a, V16 b) {
  return EachPart([&](int i) { return a.part[i] - b.part[i]; });
}
FORERUN_INLINE V16 Mul(V16 a, V16 b) {
  return EachPart([&](int i) { return a.part[i] * b.part[i]; });
}
FORERUN_INLINE V16 Div(V16 a, V16 b) {
  return EachPart([&](int i) { return a.part[i] / b.part[i]; });
}
FORERUN_INLINE V16 Fma(V16 a, V16 b, V16 c) {
  return EachPart([&](int i) { return a.part[i] * b.part[i] + c.part[i]; });
}
FORERUN_INLINE V16 SelectLess(V16 a, V16 b, V16 yes, V16 no) {
  return EachPart([&](int i) { return a.part[i] < b.part[i] ? yes.part[i] : no.part[i]; });
}
FORERUN_INLINE V16 Max(V16 a, V16 b) { return SelectLess(b, a, a, b); }
FORERUN_INLINE V16 Min(V16 a, V16 b) { return SelectLess(a, b, a, b); }
FORERUN_INLINE V16 Abs(V16 a) {
  return EachPart(
      [&](int i) { return BitCast<Floats>(BitCast<UnsignedInts>(a.part[i]) & 0x7fffffffu); });
}
FORERUN_INLINE V16 CopySign(V16 a, V16 b) {
  return EachPart([&](int i) {
    return BitCast<Floats>((BitCast<UnsignedInts>(a.part[i]) & 0x7fffffffu) |
                           (BitCast<UnsignedInts>(b.part[i]) & 0x80000000u));
  });
}
FORERUN_INLINE V16 LowBitsToExponent(V16 a) {
  return EachPart([&](int i) { return BitCast<Floats>(BitCast<UnsignedInts>(a.part[i]) << 23); });
}
FORERUN_INLINE float ReduceMax(V16 a) {
  float lane[16];
  Store(lane, a);
  float max = lane[0];
  for (int i = 1; i < 16; ++i) max = max < lane[i] ? lane[i] : max;
  return max;
}

FORERUN_INLINE V16 Load(const std::uint16_t* p) {
  return EachPart([&](int i) {
    const std::uint16_t* q = p + 4 * i;
    const UnsignedInts bits = {q[0], q[1], q[2], q[3]};
    return BitCast<Floats>(bits << 16);
  });
}
FORERUN_INLINE V16 Load(const std::int8_t* p) {
  return EachPart([&](int i) {
    const std::int8_t* q = p + 4 * i;
    return Floats{static_cast<float>(q[0]), static_cast<float>(q[1]), static_cast<float>(q[2]),
                  static_cast<float>(q[3])};
  });
}
// A pair is read as one word, so which half is the first depends on the byte order.
FORERUN_INLINE V16 LoadHalf(const std::uint16_t* p, bool low) {
  return EachPart([&](int i) {
    UnsignedInts bits;
    __builtin_memcpy(&bits, p + 8 * i, sizeof(bits));
    return BitCast<Floats>(low ? bits << 16 : bits & 0xffff0000u);
  });
}
inline constexpr bool kLittleEndian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
FORERUN_INLINE V16 LoadEven(const std::uint16_t* p) { return LoadHalf(p, kLittleEndian); }
FORERUN_INLINE V16 LoadOdd(const std::uint16_t* p) { return LoadHalf(p, !kLittleEndian); }

inline constexpr Words kLaneIndices = {0, 1};

FORERUN_INLINE Words MultiplyLow(Words a, std::uint32_t b) {
#if defined(__x86_64__)
  return (Words)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(__aarch64__)
  return (Words)vmull_n_u32(vmovn_u64((uint64x2_t)a), b);
#else
  return (a & 0xffffffffu) * std::uint64_t{b};
#endif
}
FORERUN_INLINE void Interleave(Words a, Words b, Words out[2]) {
  out[0] = __builtin_shufflevector(a, b, 0, 2);
  out[1] = __builtin_shufflevector(a, b, 1, 3);
}
FORERUN_INLINE std::uint64_t MaskOf(Ints lanes) {
#if defined(__x86_64__)
  return static_cast<std::uint32_t>(_mm_movemask_ps((__m128)lanes));
#else
  std::uint64_t mask = 0;
  for (int lane = 0; lane < kFloatLanes; ++lane) mask |= std::uint64_t{lanes[lane] != 0} << lane;
  return mask;
#endif
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_VEC_PORTABLE_H_
