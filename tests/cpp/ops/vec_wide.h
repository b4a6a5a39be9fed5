#ifndef FORERUN_TESTS_CPP_OPS_VEC_WIDE_H_
#define FORERUN_TESTS_CPP_OPS_VEC_WIDE_H_

#include "cpp/tensor/dtype.h"
#include "cpp/util/simd/vec_portable.h"

namespace forerun::FORERUN_ISA {

struct Pairs {
  V16 first, second;
};

FORERUN_INLINE Pairs LoadPairs(const std::uint16_t* p) { return {LoadEven(p), LoadOdd(p)}; }
FORERUN_INLINE Pairs SetPair(const std::uint16_t* p) {
  return {Set(BFloat16ToFloat(p[0])), Set(BFloat16ToFloat(p[1]))};
}
FORERUN_INLINE V16 AddDots(Pairs a, Pairs b, V16 c) {
  return Fma(a.second, b.second, Fma(a.first, b.first, c));
}
FORERUN_INLINE void StoreRounded(std::uint16_t* p, V16 a, int count) {
  float lane[16];
  Store(lane, a);
  for (int i = 0; i < count; ++i) p[i] = FloatToBFloat16(lane[i]);
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_TESTS_CPP_OPS_VEC_WIDE_H_
