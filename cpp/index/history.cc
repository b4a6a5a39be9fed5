#include "cpp/index/history.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cpp/util/check.h"

namespace forerun {

History::History(int max_requests, std::int64_t max_bytes, int max_depth)
    : max_requests_(max_requests),
      max_segment_requests_(SegmentRequests(max_requests)),
      max_bytes_(max_bytes),
      max_depth_(max_depth) {
  FORERUN_CHECK(max_requests >= 0, "max_requests = " + std::to_string(max_requests));
  FORERUN_CHECK(max_bytes >= 0, "max_bytes = " + std::to_string(max_bytes));
  FORERUN_CHECK(max_depth >= 1, "max_depth = " + std::to_string(max_depth));
}

void History::Add(std::span<const TokenId> output, std::int64_t time) {
  if (max_requests_ == 0 || output.empty()) return;
  try {
    AddToNewest(output, time);
  } catch (...) {
    Clear();  // an index that was interrupted while it grew cannot be asked
    throw;
  }
}

void History::AddToNewest(std::span<const TokenId> output, std::int64_t time) {
  if (num_requests_ == max_requests_) DropOldest();
  if (segments_.empty() || segments_.back().num_requests == max_segment_requests_ ||
      segments_.back().index.num_bytes() > max_bytes_ / kMaxSegments) {
    if (num_segments() == kMaxSegments) DropOldest();
    segments_.push_back({next_generation_++, 0, time, SuffixIndex(max_depth_)});
  }
  Segment& newest = segments_.back();
  newest.index.StartSequence();
  for (const TokenId token : output) newest.index.Append(token);
  ++newest.num_requests;
  newest.time = time;
  ++num_requests_;
  while (!segments_.empty() && num_bytes() > max_bytes_) DropOldest();
}

// A follower knows a segment by its generation, which must not be used twice: hence no older
// segments once one was forgotten.
bool History::AddOlder(SuffixIndex&& index, int num_requests, std::int64_t time) {
  if (has_forgotten_ || num_segments() == kMaxSegments ||
      num_requests > max_requests_ - num_requests_ ||
      index.num_bytes() > max_bytes_ - num_bytes()) {
    return false;
  }
  FORERUN_CHECK(index.max_depth() == max_depth_, "an index of another depth");
  if (segments_.empty()) {
    segments_.push_front({next_generation_, num_requests, time, std::move(index)});
    ++next_generation_;
  } else {
    segments_.push_front({segments_.front().generation - 1, num_requests, time, std::move(index)});
  }
  num_requests_ += num_requests;
  return true;
}

void History::Clear() {
  segments_.clear();
  num_requests_ = 0;
  has_forgotten_ = true;
}

void History::DropOldest() {
  has_forgotten_ = true;
  num_requests_ -= segments_.front().num_requests;
  segments_.pop_front();
}

void History::Follow(std::span<const TokenId> text, Follower& follower) const {
  for (const Segment& segment : segments_) {
    FollowSegment(segment, text, follower.progress_[segment.generation % kMaxSegments]);
  }
}

void History::FollowSegment(const Segment& segment, std::span<const TokenId> text,
                            Follower::Progress& progress) const {
  const std::int64_t size = static_cast<std::int64_t>(text.size());
  const std::int64_t window = std::max<std::int64_t>(0, size - (max_depth_ - 1));
  const bool current = progress.generation == segment.generation &&
                       progress.num_requests == segment.num_requests &&
                       progress.num_followed <= size;
  if (!current || progress.num_followed < window) {
    // No match is longer than the window, so what came before it does not matter.
    progress = {segment.generation, segment.num_requests, window, {}};
  }
  for (; progress.num_followed < size; ++progress.num_followed) {
    segment.index.Advance(progress.cursor, text[progress.num_followed], max_depth_ - 1);
  }
}

SuffixIndex::Cursor History::match(int i, const Follower& follower) const {
  const Segment& segment = segments_[i];
  const Follower::Progress& progress = follower.progress_[segment.generation % kMaxSegments];
  FORERUN_CHECK(
      progress.generation == segment.generation && progress.num_requests == segment.num_requests,
      "the follower is not up to date");
  return progress.cursor;
}

std::int64_t History::num_bytes() const {
  std::int64_t total = 0;
  for (const Segment& segment : segments_) total += segment.index.num_bytes();
  return total;
}

void History::CheckIntegrity() const {
  FORERUN_CHECK(num_segments() <= kMaxSegments, "too many segments");
  FORERUN_CHECK(num_requests_ <= max_requests_, "too many requests");
  FORERUN_CHECK(num_bytes() <= max_bytes_, "too many bytes");
  int total = 0;
  for (int i = 0; i < num_segments(); ++i) {
    const Segment& segment = segments_[i];
    FORERUN_CHECK(segment.generation == next_generation_ - num_segments() + i,
                  "generations are not consecutive");
    FORERUN_CHECK(segment.num_requests >= 1 && segment.num_requests <= max_segment_requests_,
                  "a segment is empty or too large");
    const auto text = segment.index.text();
    FORERUN_CHECK(std::count(text.begin(), text.end(), SuffixIndex::kSequenceBreak) + 1 ==
                      segment.num_requests,
                  "a segment does not hold one sequence per request");
    total += segment.num_requests;
    segment.index.CheckIntegrity();
  }
  FORERUN_CHECK(total == num_requests_, "requests do not add up");
}

}  // namespace forerun
