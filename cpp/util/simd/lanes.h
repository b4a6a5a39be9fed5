#ifndef FORERUN_CPP_UTIL_SIMD_LANES_H_
#define FORERUN_CPP_UTIL_SIMD_LANES_H_

namespace forerun {

// Lanes of every kernel's vector, outputs of a weight tile, positions of a group of keys.
inline constexpr int kLanes = 16;

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_SIMD_LANES_H_
