// Indexes outputs of earlier engines in one thread, for the TenantHistories of another.
//
// Outputs come from the newest to the oldest. A segment that is full is ready to be taken; the
// others are when the last output has come. Add and Finish belong to one thread at a time, TakeInto
// to the thread of the histories.
#ifndef FORERUN_CPP_INDEX_SEGMENT_RESTORER_H_
#define FORERUN_CPP_INDEX_SEGMENT_RESTORER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cpp/index/suffix_index.h"
#include "cpp/index/tenant_histories.h"
#include "forerun/past_output.h"

namespace forerun {

class SegmentRestorer {
 public:
  // The bounds of the histories.
  SegmentRestorer(int max_requests, std::int64_t max_bytes, int max_depth);

  // False, and nothing added, when the histories have no room for more. REQUIRES: token ids are not
  // negative.
  bool Add(const PastOutput& output);
  // No more outputs will come.
  void Finish();

  // Costs one atomic read while nothing is ready.
  void TakeInto(TenantHistories& histories);

 private:
  struct Segment {
    explicit Segment(int max_depth) : index(max_depth) {}

    SuffixIndex index;
    int num_requests = 0;
  };
  struct Ready {
    std::string tenant;
    Segment segment;
  };

  void HandOver(const std::string& tenant, Segment&& segment);

  // Fixed at construction.
  const int max_requests_;
  const std::int64_t max_bytes_;
  const int max_depth_;

  // Of the thread that adds.
  std::map<std::string, Segment, std::less<>> growing_;
  int num_requests_ = 0;        // of all outputs added
  std::int64_t num_bytes_ = 0;  // of their segments

  // Shared.
  std::mutex mutex_;
  std::vector<Ready> ready_;  // from the newest on; guarded by mutex_
  std::atomic<bool> has_ready_{false};
  std::atomic<bool> is_full_{false};  // the histories took no more
};

}  // namespace forerun

#endif  // FORERUN_CPP_INDEX_SEGMENT_RESTORER_H_
