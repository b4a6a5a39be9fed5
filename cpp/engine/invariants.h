// What must hold between two steps, recomputed from scratch. For tests and debug builds.
#ifndef FORERUN_CPP_ENGINE_INVARIANTS_H_
#define FORERUN_CPP_ENGINE_INVARIANTS_H_

#include "cpp/kv/block_pool.h"
#include "cpp/sched/scheduler.h"

namespace forerun {

// Throws InternalError that names the first broken invariant: every block accounted for, every held
// block in a table of a running request, no reservation or draft left over.
void CheckEngineInvariants(const Scheduler& scheduler, const BlockPool& pool);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_INVARIANTS_H_
