// Barriers of a block and collectives of a warp. Each call carries its line in the source, which
// the report of a divergence or of a deadlock names.
#ifndef FORERUN_CUDA_EMULATION_COLLECTIVES_H_
#define FORERUN_CUDA_EMULATION_COLLECTIVES_H_

#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

namespace forerun::emulation {

using Site = std::source_location;

enum class Vote : std::uint8_t { kNone, kCount, kAnd, kOr };

enum class WarpOp : std::uint8_t {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kAdd,
  kMin,
  kMax,
  kMinSigned,
  kMaxSigned,
  kAnd,
  kOr,
  kXor,
  kMatchAny,
  kInstruction,  // one that the whole warp carries out, as mma
};

// What one lane brings to a collective.
struct WarpCall {
  WarpOp op;
  unsigned mask;
  std::uint64_t value = 0;
  unsigned operand = 0;  // source lane, distance or lane mask of a shuffle
  unsigned width = 32;
  // kInstruction: run once, with what each lane brought.
  void (*instruction)(const std::uint64_t* values) = nullptr;
};

int Barrier(Vote vote, bool predicate, const Site& site);
std::uint64_t Collective(const WarpCall& call, const Site& site);

template <class T>
T Shuffle(WarpCall call, T value, const Site& site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 32-bit and 64-bit numbers");
  std::memcpy(&call.value, &value, sizeof value);
  const std::uint64_t result = Collective(call, site);
  std::memcpy(&value, &result, sizeof value);
  return value;
}

}  // namespace forerun::emulation

inline void __syncthreads(forerun::emulation::Site site = forerun::emulation::Site::current()) {
  forerun::emulation::Barrier(forerun::emulation::Vote::kNone, false, site);
}
inline int __syncthreads_count(
    int predicate, forerun::emulation::Site site = forerun::emulation::Site::current()) {
  return forerun::emulation::Barrier(forerun::emulation::Vote::kCount, predicate != 0, site);
}
inline int __syncthreads_and(int predicate,
                             forerun::emulation::Site site = forerun::emulation::Site::current()) {
  return forerun::emulation::Barrier(forerun::emulation::Vote::kAnd, predicate != 0, site);
}
inline int __syncthreads_or(int predicate,
                            forerun::emulation::Site site = forerun::emulation::Site::current()) {
  return forerun::emulation::Barrier(forerun::emulation::Vote::kOr, predicate != 0, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       forerun::emulation::Site site = forerun::emulation::Site::current()) {
  forerun::emulation::Collective({forerun::emulation::WarpOp::kSync, mask}, site);
}
// Orders only the calling thread's own accesses, which run in order here.
inline void __threadfence() {}
inline void __threadfence_block() {}

#define FORERUN_EMULATED_SHUFFLE(name, op, Operand)                               \
  template <class T>                                                              \
  T name(unsigned mask, T value, Operand operand, int width = 32,                 \
         forerun::emulation::Site site = forerun::emulation::Site::current()) {   \
    return forerun::emulation::Shuffle<T>(                                        \
        {forerun::emulation::WarpOp::op, mask, 0, static_cast<unsigned>(operand), \
         static_cast<unsigned>(width)},                                           \
        value, site);                                                             \
  }
FORERUN_EMULATED_SHUFFLE(__shfl_sync, kShuffle, int)
FORERUN_EMULATED_SHUFFLE(__shfl_up_sync, kShuffleUp, unsigned)
FORERUN_EMULATED_SHUFFLE(__shfl_down_sync, kShuffleDown, unsigned)
FORERUN_EMULATED_SHUFFLE(__shfl_xor_sync, kShuffleXor, int)
#undef FORERUN_EMULATED_SHUFFLE

#define FORERUN_EMULATED_REDUCTION(name, op, Result, Value)                                 \
  inline Result name(unsigned mask, Value value,                                            \
                     forerun::emulation::Site site = forerun::emulation::Site::current()) { \
    return static_cast<Result>(forerun::emulation::Collective(                              \
        {forerun::emulation::WarpOp::op, mask, static_cast<std::uint32_t>(value)}, site));  \
  }
FORERUN_EMULATED_REDUCTION(__reduce_add_sync, kAdd, unsigned, unsigned)
FORERUN_EMULATED_REDUCTION(__reduce_add_sync, kAdd, int, int)
FORERUN_EMULATED_REDUCTION(__reduce_min_sync, kMin, unsigned, unsigned)
FORERUN_EMULATED_REDUCTION(__reduce_min_sync, kMinSigned, int, int)
FORERUN_EMULATED_REDUCTION(__reduce_max_sync, kMax, unsigned, unsigned)
FORERUN_EMULATED_REDUCTION(__reduce_max_sync, kMaxSigned, int, int)
FORERUN_EMULATED_REDUCTION(__reduce_and_sync, kAnd, unsigned, unsigned)
FORERUN_EMULATED_REDUCTION(__reduce_or_sync, kOr, unsigned, unsigned)
FORERUN_EMULATED_REDUCTION(__reduce_xor_sync, kXor, unsigned, unsigned)
#undef FORERUN_EMULATED_REDUCTION

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              forerun::emulation::Site site = forerun::emulation::Site::current()) {
  return static_cast<unsigned>(forerun::emulation::Collective(
      {forerun::emulation::WarpOp::kBallot, mask, predicate != 0}, site));
}
inline int __any_sync(unsigned mask, int predicate,
                      forerun::emulation::Site site = forerun::emulation::Site::current()) {
  return static_cast<int>(forerun::emulation::Collective(
      {forerun::emulation::WarpOp::kAny, mask, predicate != 0}, site));
}
inline int __all_sync(unsigned mask, int predicate,
                      forerun::emulation::Site site = forerun::emulation::Site::current()) {
  return static_cast<int>(forerun::emulation::Collective(
      {forerun::emulation::WarpOp::kAll, mask, predicate != 0}, site));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          forerun::emulation::Site site = forerun::emulation::Site::current()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return static_cast<unsigned>(
      forerun::emulation::Collective({forerun::emulation::WarpOp::kMatchAny, mask, bits}, site));
}

#endif  // FORERUN_CUDA_EMULATION_COLLECTIVES_H_
