// Who may run how much: pure functions of counters.
#ifndef FORERUN_CPP_SCHED_POLICY_H_
#define FORERUN_CPP_SCHED_POLICY_H_

namespace forerun {

struct RowGrant {
  int num_pending = 0;
  int num_draft = 0;
};

// Rows for a request with `num_pending` known tokens to compute and `num_draft` guesses, out of a
// budget that must leave one row for each of `num_behind` requests. Known tokens come first; a
// draft runs only behind all of them. REQUIRES: num_pending >= 1 and budget > num_behind.
RowGrant GrantRows(int num_pending, int num_draft, int budget, int num_behind);

struct AdmissionState {
  int num_running = 0;
  int max_num_seqs = 0;
  int budget = 0;             // rows left in this step
  int num_blocks_needed = 0;  // for all known tokens of the candidate
  int num_blocks_available = 0;
};

// A candidate is let in only when all its known tokens fit, so that it is not preempted before it
// emits anything.
bool MayAdmit(const AdmissionState& state);

}  // namespace forerun

#endif  // FORERUN_CPP_SCHED_POLICY_H_
