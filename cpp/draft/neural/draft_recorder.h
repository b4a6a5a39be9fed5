// Keeps the logits that drafters that are models compute, for tests.
#ifndef FORERUN_CPP_DRAFT_NEURAL_DRAFT_RECORDER_H_
#define FORERUN_CPP_DRAFT_NEURAL_DRAFT_RECORDER_H_

#include <mutex>
#include <utility>
#include <vector>

#include "forerun/types.h"

namespace forerun {

// What was computed for one draft token. The logits are a function of the target, the drafter, the
// request's first num_tokens tokens and the path alone.
struct DraftRecord {
  RequestId request_id = 0;
  int num_tokens = 0;         // known tokens of prompt and output
  std::vector<TokenId> path;  // the draft tokens from there to this one
  std::vector<float> logits;  // [draft vocabulary]
};

// Thread-safe.
class DraftRecorder {
 public:
  void Add(DraftRecord record) {
    const std::lock_guard lock(mutex_);
    records_.push_back(std::move(record));
  }

  // The records since the last call.
  std::vector<DraftRecord> Take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(records_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<DraftRecord> records_;  // guarded by mutex_
};

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_NEURAL_DRAFT_RECORDER_H_
