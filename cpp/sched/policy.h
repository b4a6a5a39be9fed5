// How many rows a request may run, and when it is admitted: pure functions of counters.
#ifndef FORERUN_CPP_SCHED_POLICY_H_
#define FORERUN_CPP_SCHED_POLICY_H_

namespace forerun {

struct RowGrant {
  int num_pending = 0;
  int num_draft = 0;
};

// Rows for a request with `num_pending` known tokens to compute and `num_draft` draft tokens, out
// of a budget that must leave one row for each of the num_later requests that are served after it.
// Known tokens come first; a draft runs only after all of them.
// REQUIRES: num_pending >= 1 and budget > num_later.
RowGrant GrantRows(int num_pending, int num_draft, int budget, int num_later);

struct AdmissionState {
  int num_running = 0;
  int max_num_seqs = 0;
  int budget = 0;             // rows left in this step
  int num_blocks_needed = 0;  // for all known tokens of the candidate
  int num_blocks_available = 0;
};

// A candidate is admitted only when all its known tokens fit, so that it is not preempted before it
// emits anything.
bool MayAdmit(const AdmissionState& state);

}  // namespace forerun

#endif  // FORERUN_CPP_SCHED_POLICY_H_
