// How fast this process can read memory right now: the ceiling of decoding, to be measured in the
// same run.
#ifndef FORERUN_CPP_UTIL_READ_BANDWIDTH_H_
#define FORERUN_CPP_UTIL_READ_BANDWIDTH_H_

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpp/util/clock.h"
#include "cpp/util/thread_team.h"

namespace forerun {

inline double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Reads num_bytes with every thread of a team, the fastest way found: huge pages, four streams per
// thread, since one alone leaves the prefetchers waiting, and lines fetched to the second-level
// cache before they are fetched to the first, which can wait for only a few at a time.
class MemoryReader {
 public:
  MemoryReader(ThreadTeam& team, std::size_t num_bytes)
      : team_(team),
        num_pieces_(static_cast<int>(num_bytes / kPieceBytes)),
        data_(static_cast<std::uint64_t*>(
            std::aligned_alloc(kHugePage, (num_bytes / kHugePage + 1) * kHugePage))) {
    const std::size_t size = num_pieces_ * kPieceBytes;
    static_cast<void>(madvise(data_.get(), size, MADV_HUGEPAGE));
    std::fill_n(data_.get(), size / sizeof(std::uint64_t), 1);
  }

  double SecondsPerByte() {
    const double begin = Now();
    team_.Run(num_pieces_, [&](int piece) {
      const char* own = reinterpret_cast<const char*>(data_.get()) + piece * kPieceBytes;
      Words sum[2] = {};
      for (std::size_t i = 0; i < kStreamBytes; i += kStepBytes) {
        for (int stream = 0; stream < kStreams; ++stream) {
          const char* step = own + stream * kStreamBytes + i;
          for (std::size_t j = 0; j < kStepBytes; j += 64) __builtin_prefetch(step + kNear + j);
          for (std::size_t j = 0; j < kStepBytes; j += 64)
            __builtin_prefetch(step + kFar + j, 0, 2);
          const auto* words = reinterpret_cast<const Words*>(step);
          for (std::size_t j = 0; j < kStepBytes / sizeof(Words); j += 2) {
            for (int k = 0; k < 2; ++k) sum[k] += words[j + k];
          }
        }
      }
      // Keeps the compiler from leaving the loop out.
      if (sum[0][0] + sum[1][0] == 0) std::abort();
    });
    return (Now() - begin) / (static_cast<double>(num_pieces_) * kPieceBytes);
  }

 private:
  using Words = std::uint64_t __attribute__((vector_size(32)));
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };

  static constexpr int kStreams = 4;
  static constexpr std::size_t kNear = 512, kFar = 2048;  // bytes ahead
  static constexpr std::size_t kHugePage = 2 << 20;
  static constexpr std::size_t kPieceBytes = 1 << 20;
  static constexpr std::size_t kStreamBytes = kPieceBytes / kStreams;
  static constexpr std::size_t kStepBytes = 512;

  ThreadTeam& team_;
  int num_pieces_;
  std::unique_ptr<std::uint64_t, Free> data_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_READ_BANDWIDTH_H_
