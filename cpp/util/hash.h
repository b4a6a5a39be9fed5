#ifndef FORERUN_CPP_UTIL_HASH_H_
#define FORERUN_CPP_UTIL_HASH_H_

#include <cstdint>

namespace forerun {

// A bijection of 64 bits in which every input bit reaches every output bit (splitmix64's
// finaliser).
constexpr std::uint64_t MixBits(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr std::uint64_t HashCombine(std::uint64_t seed, std::uint64_t value) {
  return MixBits(seed ^ MixBits(value));
}

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_HASH_H_
