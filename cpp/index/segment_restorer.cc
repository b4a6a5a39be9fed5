#include "cpp/index/segment_restorer.h"

#include <utility>

#include "cpp/index/history.h"

namespace forerun {

SegmentRestorer::SegmentRestorer(int max_requests, std::int64_t max_bytes, int max_depth)
    : max_requests_(max_requests), max_bytes_(max_bytes), max_depth_(max_depth) {}

bool SegmentRestorer::Add(const PastOutput& output) {
  if (is_full_ || num_requests_ >= max_requests_ || num_bytes_ >= max_bytes_) return false;
  if (output.tokens.empty()) return true;
  auto found = growing_.find(output.cache_salt);
  if (found == growing_.end()) {
    found = growing_.try_emplace(std::string(output.cache_salt), max_depth_).first;
  }
  Segment& segment = found->second;
  num_bytes_ -= segment.num_requests > 0 ? segment.index.num_bytes() : 0;
  segment.index.StartSequence();
  for (const TokenId token : output.tokens) segment.index.Append(token);
  ++segment.num_requests;
  ++num_requests_;
  num_bytes_ += segment.index.num_bytes();
  // The sizes of a History's own segments.
  if (segment.num_requests >= History::SegmentRequests(max_requests_) ||
      segment.index.num_bytes() > max_bytes_ / History::kMaxSegments) {
    HandOver(found->first, std::move(segment));
    growing_.erase(found);
  }
  return true;
}

void SegmentRestorer::Finish() {
  for (auto& [tenant, segment] : growing_) HandOver(tenant, std::move(segment));
  growing_.clear();
}

void SegmentRestorer::HandOver(const std::string& tenant, Segment&& segment) {
  const std::lock_guard lock(mutex_);
  ready_.push_back({tenant, std::move(segment)});
  has_ready_ = true;
}

void SegmentRestorer::TakeInto(TenantHistories& histories) {
  if (!has_ready_) return;
  std::vector<Ready> ready;
  {
    const std::lock_guard lock(mutex_);
    ready.swap(ready_);
    has_ready_ = false;
  }
  for (Ready& next : ready) {
    Segment& segment = next.segment;
    if (!histories.AddOlder(next.tenant, std::move(segment.index), segment.num_requests)) {
      is_full_ = true;
    }
  }
}

}  // namespace forerun
