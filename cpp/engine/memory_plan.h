// The longest request and the number of KV blocks, from the options, the model's limits and the
// memory of the device.
#ifndef FORERUN_CPP_ENGINE_MEMORY_PLAN_H_
#define FORERUN_CPP_ENGINE_MEMORY_PLAN_H_

#include <cstdint>

#include "cpp/ops/device.h"
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
  std::int64_t logits = 0;   // of the largest step and draft, which seldom are that large
};

// The longest request that is wanted: the option, or the model's own limit. Throws InvalidArgument.
int WantedModelLen(const EngineOptions& options, int model_max_len);

// Of which none is longer, before it is known what weights and buffers leave. Throws as
// WantedModelLen.
int MostModelLen(const EngineOptions& options, int model_max_len, const MemoryNeeds& needs,
                 std::int64_t available_bytes);

// Throws InvalidArgument where the buffers of a step of num_rows alone do not fit.
void CheckBuffers(const EngineOptions& options, std::int64_t num_rows, const MemoryNeeds& needs,
                  std::int64_t available_bytes);
// The same of a GPU's memory, of which weights take a part too.
void CheckGpuBuffers(const EngineOptions& options, std::int64_t num_rows, const MemoryNeeds& needs,
                     const MemorySize& size);

// For the CPU, before anything is loaded. A pure function. Throws InvalidArgument with the numbers
// when the options contradict each other or need more memory than the machine has.
//   model_max_len        the model's own limit
//   num_rows             of the largest step
//   available_bytes      of the machine's memory; by default the KV cache takes at most half of it
MemoryPlan PlanMemory(const EngineOptions& options, int model_max_len, std::int64_t num_rows,
                      const MemoryNeeds& needs, std::int64_t available_bytes);

// The same for a GPU, where weights and buffers are in its memory already and have taken
// `used_bytes`; `size` is what is left. By default the KV cache gets the rest of
// gpu_memory_utilization, as far as requests can fill it.
MemoryPlan PlanGpuMemory(const EngineOptions& options, int model_max_len, std::int64_t block_bytes,
                         std::int64_t used_bytes, const MemorySize& size);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_MEMORY_PLAN_H_
