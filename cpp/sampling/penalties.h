// Penalties for tokens that occurred already, once for host and device.
#ifndef FORERUN_CPP_SAMPLING_PENALTIES_H_
#define FORERUN_CPP_SAMPLING_PENALTIES_H_

#include "cpp/util/host_device.h"

namespace forerun {

struct Penalties {
  float repetition;           // 1: none
  float frequency, presence;  // 0: none
};

// The logit of a token that occurs in the output so often; 0: in the prompt alone.
FORERUN_HOST_DEVICE inline float Penalized(float logit, int num_in_output,
                                           const Penalties& penalties) {
  if (penalties.repetition != 1.0f) {
    logit = logit > 0.0f ? logit / penalties.repetition : logit * penalties.repetition;
  }
  logit -= penalties.frequency * static_cast<float>(num_in_output);
  if (num_in_output > 0) logit -= penalties.presence;
  return logit;
}

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_PENALTIES_H_
