// CUDA's atomics on integers, with CUDA's types: on Linux std::uint64_t is unsigned long, which
// CUDA's 64-bit atomics do not take. No atomics on floats: their sums depend on the order.
#ifndef FORERUN_CUDA_EMULATION_ATOMICS_H_
#define FORERUN_CUDA_EMULATION_ATOMICS_H_

#include <cstdint>

#include "language.h"

namespace forerun::emulation {

enum class AtomicOp : std::uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange, kCompareSwap };

// The value before. Not inlined: a build that instruments kernels must not see these accesses as
// plain ones.
template <class T>
T Atomic(AtomicOp op, T* address, T value, T compare = {});
extern template int Atomic(AtomicOp, int*, int, int);
extern template unsigned Atomic(AtomicOp, unsigned*, unsigned, unsigned);
extern template unsigned long long Atomic(AtomicOp, unsigned long long*, unsigned long long,
                                          unsigned long long);

}  // namespace forerun::emulation

#define FORERUN_EMULATED_ATOMIC(name, op, T)                                                \
  __forceinline__ T name(T* address, T value) {                                             \
    return forerun::emulation::Atomic<T>(forerun::emulation::AtomicOp::op, address, value); \
  }
#define FORERUN_EMULATED_ATOMICS(T)                                                           \
  FORERUN_EMULATED_ATOMIC(atomicAdd, kAdd, T)                                                 \
  FORERUN_EMULATED_ATOMIC(atomicMin, kMin, T)                                                 \
  FORERUN_EMULATED_ATOMIC(atomicMax, kMax, T)                                                 \
  FORERUN_EMULATED_ATOMIC(atomicAnd, kAnd, T)                                                 \
  FORERUN_EMULATED_ATOMIC(atomicOr, kOr, T)                                                   \
  FORERUN_EMULATED_ATOMIC(atomicXor, kXor, T)                                                 \
  FORERUN_EMULATED_ATOMIC(atomicExch, kExchange, T)                                           \
  __forceinline__ T atomicCAS(T* address, T compare, T value) {                               \
    return forerun::emulation::Atomic<T>(forerun::emulation::AtomicOp::kCompareSwap, address, \
                                         value, compare);                                     \
  }
FORERUN_EMULATED_ATOMICS(int)
FORERUN_EMULATED_ATOMICS(unsigned)
FORERUN_EMULATED_ATOMICS(unsigned long long)
#undef FORERUN_EMULATED_ATOMICS
#undef FORERUN_EMULATED_ATOMIC

#endif  // FORERUN_CUDA_EMULATION_ATOMICS_H_
