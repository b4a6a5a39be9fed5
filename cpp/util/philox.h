// Philox 4x32-10: a counter-based random function (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3"). Pure, so a rejected or recomputed token has no state to restore. One header for
// host and device.
#ifndef FORERUN_CPP_UTIL_PHILOX_H_
#define FORERUN_CPP_UTIL_PHILOX_H_

#include <cstdint>

#include "cpp/util/host_device.h"

namespace forerun {

struct PhiloxBlock {
  std::uint32_t word[4];
};

FORERUN_HOST_DEVICE inline PhiloxBlock Philox(std::uint64_t key, std::uint64_t counter_low,
                                              std::uint64_t counter_high) {
  std::uint32_t c0 = static_cast<std::uint32_t>(counter_low);
  std::uint32_t c1 = static_cast<std::uint32_t>(counter_low >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(counter_high);
  std::uint32_t c3 = static_cast<std::uint32_t>(counter_high >> 32);
  std::uint32_t k0 = static_cast<std::uint32_t>(key);
  std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(product1);
    c3 = static_cast<std::uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_PHILOX_H_
