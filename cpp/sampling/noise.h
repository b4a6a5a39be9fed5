// The random numbers of sampling, once for host and device: functions of the seed, the output index
// and the token or node, without state.
#ifndef FORERUN_CPP_SAMPLING_NOISE_H_
#define FORERUN_CPP_SAMPLING_NOISE_H_

#include <cstdint>

#include "cpp/sampling/weight_math.h"
#include "cpp/util/host_device.h"
#include "cpp/util/philox.h"
#include "forerun/types.h"

namespace forerun {

// No Gumbel noise is higher.
inline constexpr double kMaxNoise = 22.9;  // above -log(-log(1 - 2^-33))

// Standard Gumbel, between -3.14 and 22.88: u = (bits + 0.5) * 2^-32.
FORERUN_HOST_DEVICE inline double GumbelOfBits(std::uint32_t bits) {
  return -LogOf(-LogOf((bits + 0.5) * 0x1p-32));
}

// The noise of a token at an output position.
//   bits = word token % 4 of Philox(seed, token / 4, output_index)
FORERUN_HOST_DEVICE inline double GumbelNoise(std::uint64_t seed, int output_index, TokenId token) {
  const auto id = static_cast<std::uint32_t>(token);
  const PhiloxBlock block = Philox(seed, id / 4, static_cast<std::uint32_t>(output_index));
  return GumbelOfBits(block.word[id % 4]);
}

// What a uniform number is for. Streams of different purposes share no Philox counter, nor does any
// with the Gumbel noise.
enum class NoisePurpose : std::uint32_t {
  kAcceptance = 1,  // whether a node is accepted
  kResidual = 2,    // what is emitted where nodes were rejected
  kDraft = 3,       // which token a sampled node holds
};

// Uniform on the multiples of 2^-53 in [0, 1).
//   bits = words 0 and 1 of Philox(seed, node, purpose << 32 | output_index)
FORERUN_HOST_DEVICE inline double UniformNoise(std::uint64_t seed, NoisePurpose purpose,
                                               int output_index, int node) {
  const std::uint64_t stream = static_cast<std::uint64_t>(purpose) << 32;
  const PhiloxBlock block = Philox(seed, static_cast<std::uint32_t>(node),
                                   stream | static_cast<std::uint32_t>(output_index));
  const std::uint64_t bits = std::uint64_t{block.word[0]} << 32 | block.word[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_NOISE_H_
