// How long a request may be and how many KV blocks there are: settled once, from what the user
// asked for, what the model allows and what the machine has.
#ifndef FORERUN_CPP_ENGINE_MEMORY_PLAN_H_
#define FORERUN_CPP_ENGINE_MEMORY_PLAN_H_

#include <cstdint>

#include "forerun/options.h"

namespace forerun {

struct MemoryPlan {
  int max_model_len = 0;
  int num_blocks = 0;
};

// A pure function. Throws InvalidArgument with the numbers when the wishes do not go together.
//   model_max_len        the model's own limit
//   block_bytes          keys and values of one block in all layers
//   available_bytes      what the machine could give to the cache
MemoryPlan PlanMemory(const EngineOptions& options, int model_max_len, std::int64_t block_bytes,
                      std::int64_t available_bytes);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_MEMORY_PLAN_H_
