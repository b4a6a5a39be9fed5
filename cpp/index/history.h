// Past outputs, indexed for every request to match against, under a bound.
//
// A suffix automaton cannot forget, so outputs are gathered in segments of an eighth of the bound
// (in requests or in bytes, whichever is reached first), and the oldest segment goes whole when
// the bound would be passed. All but about an eighth of the bound thus stays remembered.
//
// Each request owns a Follower: its longest match in every segment. A follower notices by itself
// that segments went or grew. Not thread-safe; the history must outlive its followers' use.
#ifndef FORERUN_CPP_INDEX_HISTORY_H_
#define FORERUN_CPP_INDEX_HISTORY_H_

#include <array>
#include <cstdint>
#include <deque>
#include <span>

#include "cpp/index/suffix_index.h"
#include "forerun/types.h"

namespace forerun {

class History {
 public:
  static constexpr int kMaxSegments = 8;

  class Follower {
   public:
    Follower() = default;

   private:
    friend class History;

    struct Progress {
      std::int64_t generation = -1;   // the segment it is in; -1: in none
      int num_requests = 0;           // outputs that the segment held then
      std::int64_t num_followed = 0;  // tokens of the request that the cursor has read
      SuffixIndex::Cursor cursor;
    };
    std::array<Progress, kMaxSegments> progress_;  // of generation g at g % kMaxSegments
  };

  // The most outputs of a segment.
  static int SegmentRequests(int max_requests) {
    return max_requests / kMaxSegments + (max_requests % kMaxSegments > 0);
  }

  // max_requests = 0 remembers nothing. Strings of up to max_depth tokens are counted.
  // REQUIRES: max_requests >= 0, max_bytes >= 0, max_depth >= 1.
  History(int max_requests, std::int64_t max_bytes, int max_depth);

  // Remembers an output; forgets the oldest ones as needed, and all when it runs out of memory.
  // `time` is that of oldest_time. REQUIRES: it is not before an earlier call's.
  void Add(std::span<const TokenId> output, std::int64_t time = 0);
  // Remembers num_requests outputs that are older than all others; `index` has one sequence for
  // each. False, and nothing changed, when the bound leaves no room or anything was ever forgotten.
  bool AddOlder(SuffixIndex&& index, int num_requests, std::int64_t time = 0);
  void Clear();
  // Forgets the oldest segment. REQUIRES: num_segments() > 0.
  void DropOldest();

  // Brings `follower` up to date with `text`, all tokens of its request so far, of which it may
  // have seen a prefix. Costs one step per new token and segment, and at most max_depth - 1 steps
  // for a segment that is new or grew.
  void Follow(std::span<const TokenId> text, Follower& follower) const;

  // Segments, from the oldest on. Followers' matches are the longest suffixes of at most
  // max_depth - 1 tokens that occur in the segment.
  int num_segments() const { return static_cast<int>(segments_.size()); }
  const SuffixIndex& segment(int i) const { return segments_[i].index; }
  // REQUIRES: Follow was called after the last Add or Clear.
  SuffixIndex::Cursor match(int i, const Follower& follower) const;

  int num_requests() const { return num_requests_; }
  // Of the last addition to the oldest segment. REQUIRES: num_segments() > 0.
  std::int64_t oldest_time() const { return segments_.front().time; }
  std::int64_t num_bytes() const;

  // Throws InternalError when an account or an index is broken. For tests.
  void CheckIntegrity() const;

 private:
  struct Segment {
    std::int64_t generation;
    int num_requests;
    std::int64_t time;  // of the last addition
    SuffixIndex index;
  };

  void AddToNewest(std::span<const TokenId> output, std::int64_t time);
  void FollowSegment(const Segment& segment, std::span<const TokenId> text,
                     Follower::Progress& progress) const;

  // Fixed at construction.
  int max_requests_;
  int max_segment_requests_;
  std::int64_t max_bytes_;
  int max_depth_;

  // Change only in the calls that add or forget.
  std::deque<Segment> segments_;
  std::int64_t next_generation_ = kMaxSegments;  // room for older ones below
  int num_requests_ = 0;
  bool has_forgotten_ = false;
};

}  // namespace forerun

#endif  // FORERUN_CPP_INDEX_HISTORY_H_
