#include "cpp/engine/invariants.h"

#include <set>

#include "cpp/kv/slot_map.h"
#include "cpp/util/check.h"

namespace forerun {

void CheckEngineInvariants(const Scheduler& scheduler, const BlockPool& pool) {
  pool.CheckInvariants();
  FORERUN_CHECK(pool.num_free() + pool.num_cached() + pool.num_held() == pool.num_total());

  std::set<BlockId> in_tables;
  const Request* previous = nullptr;
  for (const auto& request : scheduler.running()) {
    const std::string name = "request " + std::to_string(request->id);
    FORERUN_CHECK(previous == nullptr || previous->ComesBefore(*request),
                  name + " is out of the order of service");
    previous = request.get();
    FORERUN_CHECK(!request->finished(), name + " is finished and still running");
    FORERUN_CHECK(request->draft.empty(), name + " has a draft between steps");
    FORERUN_CHECK(request->num_pending() >= 1, name + " has nothing to compute");
    const int num_committed = request->table.num_committed();
    const int num_blocks = NumBlocksFor(num_committed, pool.block_size());
    FORERUN_CHECK(static_cast<int>(request->table.blocks().size()) == num_blocks,
                  name + " holds blocks without committed tokens");
    in_tables.insert(request->table.blocks().begin(), request->table.blocks().end());
  }
  for (const auto& request : scheduler.waiting()) {
    FORERUN_CHECK(request->table.blocks().empty() && request->draft.empty(),
                  "request " + std::to_string(request->id) + " waits and holds blocks or a draft");
  }
  FORERUN_CHECK(static_cast<int>(in_tables.size()) == pool.num_held(),
                "a held block belongs to no running request");
}

}  // namespace forerun
