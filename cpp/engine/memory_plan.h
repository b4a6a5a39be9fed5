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

// Bytes.
struct MemoryNeeds {
  std::int64_t block = 0;    // keys and values of one block in all layers
  std::int64_t row = 0;      // a step's buffers, for each of its rows
  std::int64_t weights = 0;  // as packed
};

// A pure function. Throws InvalidArgument with the numbers when the wishes do not go together, or
// are more than the machine has.
//   model_max_len        the model's own limit
//   num_rows             of the largest step
//   available_bytes      of the machine's memory; half of it, at most, the cache takes unasked
MemoryPlan PlanMemory(const EngineOptions& options, int model_max_len, std::int64_t num_rows,
                      const MemoryNeeds& needs, std::int64_t available_bytes);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_MEMORY_PLAN_H_
