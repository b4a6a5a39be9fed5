// How fast this process can read memory right now: the ceiling of decoding, to be measured in the
// same run.
#ifndef FORERUN_BENCH_READ_BANDWIDTH_H_
#define FORERUN_BENCH_READ_BANDWIDTH_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "cpp/util/clock.h"
#include "cpp/util/thread_team.h"

namespace forerun::bench {

inline double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Reads num_bytes with every thread of a team.
class Reader {
 public:
  Reader(ThreadTeam& team, std::size_t num_bytes) : team_(team), words_(num_bytes / 8, 1) {}

  double SecondsPerByte() {
    constexpr std::size_t kPiece = 1 << 15;  // words
    const int pieces = static_cast<int>(words_.size() / kPiece);
    const double begin = Now();
    team_.Run(pieces, [&](int piece) {
      const std::uint64_t* word = words_.data() + piece * kPiece;
      std::uint64_t sums[8] = {};
      for (std::size_t i = 0; i < kPiece; i += 8) {
        for (int j = 0; j < 8; ++j) sums[j] += word[i + j];
      }
      std::uint64_t sum = 0;
      for (std::uint64_t value : sums) sum += value;
      // Keeps the compiler from leaving the loop out.
      if (sum == 0) std::abort();
    });
    return (Now() - begin) / (static_cast<double>(pieces) * kPiece * 8);
  }

 private:
  ThreadTeam& team_;
  std::vector<std::uint64_t> words_;
};

}  // namespace forerun::bench

#endif  // FORERUN_BENCH_READ_BANDWIDTH_H_
