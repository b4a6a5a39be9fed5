#include "cpp/sched/policy.h"

#include <algorithm>

#include "cpp/util/check.h"

namespace forerun {

RowGrant GrantRows(int num_pending, int num_draft, int budget, int num_later) {
  FORERUN_CHECK(num_pending >= 1 && num_draft >= 0 && budget > num_later);
  const int usable = budget - num_later;
  if (num_pending > usable) return {usable, 0};
  return {num_pending, std::min(num_draft, usable - num_pending)};
}

bool MayAdmit(const AdmissionState& state) {
  return state.num_running < state.max_num_seqs && state.budget > 0 &&
         state.num_blocks_needed <= state.num_blocks_available;
}

}  // namespace forerun
