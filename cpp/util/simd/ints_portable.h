// Sixteen integers in four vectors of the compiler's own. The contract of each operation is in
// ints_avx2.h and dots_avx2.h.
#ifndef FORERUN_CPP_UTIL_SIMD_INTS_PORTABLE_H_
#define FORERUN_CPP_UTIL_SIMD_INTS_PORTABLE_H_

#include "cpp/util/simd/vec_portable.h"

namespace forerun::FORERUN_ISA {

struct V16i {
  Ints part[kParts];
};
struct Quads {
  UnsignedInts part[kParts];
};

struct IntPair {
  int first, second;
};

inline constexpr int kMaxIntegerRows = 2;

FORERUN_INLINE Ints SplatInt(std::int32_t x) { return Ints{x, x, x, x}; }

FORERUN_INLINE V16 ToFloats(V16i a) {
  return EachPart([&](int i) { return __builtin_convertvector(a.part[i], Floats); });
}
// Adding 1.5 * 2^23 leaves the integer in the low bits.
FORERUN_INLINE V16i RoundToInts(V16 a) {
  V16i result;
  for (int i = 0; i < kParts; ++i) {
    result.part[i] = BitCast<Ints>(a.part[i] + Splat(12582912.0f)) - SplatInt(0x4b400000);
  }
  return result;
}
FORERUN_INLINE void StoreBytes(std::int8_t* p, V16i a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(a.part[i / 4][i % 4]);
}
FORERUN_INLINE int ReduceAdd(V16i a) {
  const Ints sum = a.part[0] + a.part[1] + a.part[2] + a.part[3];
  return sum[0] + sum[1] + sum[2] + sum[3];
}
FORERUN_INLINE IntPair ReduceAdd(V16i a, V16i b) { return {ReduceAdd(a), ReduceAdd(b)}; }
FORERUN_INLINE int MaxMagnitudeBits(V16 a, V16 b) {
  Ints max = SplatInt(0);
  for (int i = 0; i < kParts; ++i) {
    const Ints x = BitCast<Ints>(a.part[i]) & 0x7fffffff;
    const Ints y = BitCast<Ints>(b.part[i]) & 0x7fffffff;
    max = max < x ? x : max;
    max = max < y ? y : max;
  }
  int result = max[0];
  for (int i = 1; i < 4; ++i) result = result < max[i] ? max[i] : result;
  return result;
}

FORERUN_INLINE V16 LoadFloat16(const std::uint16_t* p) {
  return EachPart([&](int i) {
    const std::uint16_t* q = p + 4 * i;
    const UnsignedInts bits = {q[0], q[1], q[2], q[3]};
    const UnsignedInts magnitude = (bits & 0x7fffu) << 13;
    // The exponent's offset is 112 smaller; subnormal numbers come out right as well.
    const UnsignedInts scaled = BitCast<UnsignedInts>(BitCast<Floats>(magnitude) * Splat(0x1p112f));
    const UnsignedInts value = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : scaled;
    return BitCast<Floats>(value | (bits & 0x8000u) << 16);
  });
}

template <class Byte>
FORERUN_INLINE Ints WidenBytes(const Byte* p) {
  return Ints{p[0], p[1], p[2], p[3]};
}
template <class Byte>
FORERUN_INLINE V16 LoadBytes(const Byte* p) {
  return EachPart([&](int i) { return __builtin_convertvector(WidenBytes(p + 4 * i), Floats); });
}
FORERUN_INLINE V16 LoadFloat24(const std::uint16_t* high, const std::uint8_t* low) {
  const V16 floats = Load(high);
  return EachPart([&](int i) {
    return BitCast<Floats>(BitCast<Ints>(floats.part[i]) | WidenBytes(low + 4 * i) << 8);
  });
}

#if defined(__FP_FAST_FMAF)
FORERUN_INLINE V16 FusedFma(V16 a, V16 b, V16 c) {
  return EachPart([&](int i) {
    Floats result;
    for (int j = 0; j < 4; ++j) {
      result[j] = __builtin_fmaf(a.part[i][j], b.part[i][j], c.part[i][j]);
    }
    return result;
  });
}
#else
// In double the product is exact. The sum is rounded to odd (an inexact one ends in a 1), which
// leaves the rounding to float as that of the exact sum.
FORERUN_INLINE_LARGE HalfFloats FusedFma(HalfFloats a, HalfFloats b, HalfFloats c) {
  const Doubles product = __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles);
  const Doubles addend = __builtin_convertvector(c, Doubles);
  const Doubles sum = product + addend;
  const Doubles added = sum - product;
  const Doubles error = (product - (sum - added)) + (addend - added);
  const Words bits = BitCast<Words>(sum);
  const Words toward_zero = bits - ((bits ^ BitCast<Words>(error)) >> 63);
  const Words inexact = (Words)(error < 0.0) | (Words)(error > 0.0);  // neither: NaN as well
  const Words odd = (inexact & (toward_zero | 1u)) | (~inexact & bits);
  return __builtin_convertvector(BitCast<Doubles>(odd), HalfFloats);
}
FORERUN_INLINE V16 FusedFma(V16 a, V16 b, V16 c) {
  HalfFloats x[2 * kParts], y[2 * kParts], z[2 * kParts];
  __builtin_memcpy(x, &a, sizeof(x));
  __builtin_memcpy(y, &b, sizeof(y));
  __builtin_memcpy(z, &c, sizeof(z));
  for (int i = 0; i < 2 * kParts; ++i) z[i] = FusedFma(x[i], y[i], z[i]);
  __builtin_memcpy(&c, z, sizeof(z));
  return c;
}
#endif

FORERUN_INLINE Quads LoadQuads(const std::uint8_t* p) {
  Quads a;
  __builtin_memcpy(&a, p, sizeof(a));
  return a;
}
template <int kLeft, int kMask>
FORERUN_INLINE Quads ShiftAndMask(Quads a) {
  constexpr std::uint32_t kMasks = 0x01010101u * kMask;
  constexpr int kRight = kLeft < 0 ? -kLeft : 0;
  for (int i = 0; i < kParts; ++i) a.part[i] = a.part[i] << (kLeft + kRight) >> kRight & kMasks;
  return a;
}
FORERUN_INLINE Quads LowHalves(Quads a) { return ShiftAndMask<0, 0x0f>(a); }
FORERUN_INLINE Quads HighHalves(Quads a) { return ShiftAndMask<-4, 0x0f>(a); }
FORERUN_INLINE Quads Or(Quads a, Quads b) {
  for (int i = 0; i < kParts; ++i) a.part[i] |= b.part[i];
  return a;
}

// The sum of the products of both halves of each lane, 16 bits each. REQUIRES: they have 16 bits.
FORERUN_INLINE Ints MultiplyHalves(UnsignedInts a, UnsignedInts b) {
#if defined(__x86_64__)
  return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  using Shorts = std::int16_t __attribute__((vector_size(FORERUN_REGISTER_BYTES)));
  const Ints products = BitCast<Ints>(BitCast<Shorts>(a) * BitCast<Shorts>(b));
  return (products << 16 >> 16) + (products >> 16);
#endif
}

// 255 * 127 < 2^15.
template <int kBits, int kZero>
struct Dots {
  using Sum = V16i;
  static constexpr int kMostAdds = 8;

  static FORERUN_INLINE Sum Start(std::int32_t neg_sum) {
    const Ints sum = SplatInt(neg_sum * kZero);
    return {{sum, sum, sum, sum}};
  }
  static FORERUN_INLINE Sum Add(Sum sum, Quads weights, const std::int8_t* x) {
    // As in weights, bytes 0 and 2 are the low ones of two halves, or bytes 1 and 3 are.
    constexpr int kEven = kLittleEndian ? 0 : 1;
    const UnsignedInts even = Pair(x[kEven], x[kEven + 2]);
    const UnsignedInts odd = Pair(x[1 - kEven], x[3 - kEven]);
    for (int i = 0; i < kParts; ++i) {
      sum.part[i] += MultiplyHalves(weights.part[i] & 0x00ff00ffu, even) +
                     MultiplyHalves(weights.part[i] >> 8 & 0x00ff00ffu, odd);
    }
    return sum;
  }
  static FORERUN_INLINE V16i Finish(Sum sum, std::int32_t) { return sum; }

 private:
  static FORERUN_INLINE UnsignedInts Pair(std::int8_t first, std::int8_t second) {
    const auto low = static_cast<std::uint16_t>(kLittleEndian ? first : second);
    const auto high = static_cast<std::uint16_t>(kLittleEndian ? second : first);
    const std::uint32_t pair = std::uint32_t{high} << 16 | low;
    return UnsignedInts{pair, pair, pair, pair};
  }
};

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_UTIL_SIMD_INTS_PORTABLE_H_
