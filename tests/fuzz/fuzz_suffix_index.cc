// The suffix index against its brute-force twin, and its own integrity check.
//
// Each byte is one operation on a text over few tokens, so that repetitions abound.
#include <cstdint>
#include <vector>

#include "cpp/index/suffix_index.h"
#include "cpp/util/check.h"
#include "tests/cpp/testing/naive_suffix_index.h"

namespace forerun {
namespace {

using testing::NaiveSuffixIndex;
using testing::Tokens;

constexpr std::size_t kMostOperations = 200;  // the twin takes cubic time
constexpr std::uint8_t kStartSequence = 0xff;
constexpr std::uint8_t kQuery = 0x80;  // set: read by a foreign cursor, not appended

struct Twins {
  explicit Twins(int max_depth) : index(max_depth) {}

  void Append(TokenId token) {
    index.Append(token);
    naive.Append(token);
  }

  void Query(TokenId token, int max_length) {
    read.push_back(token);
    index.Advance(cursor, token, max_length);
    index.Resolve(cursor, max_length);
    const int length = naive.LongestMatch(read, max_length);
    // What broke off is not found again: a cursor never grows by more than the token it reads.
    FORERUN_CHECK(cursor.length == std::min(length, last_length + 1), "the longest match");
    last_length = cursor.length;
    const std::span<const TokenId> match = std::span(read).last(cursor.length);
    const auto continuations = naive.Continuations(match);
    std::size_t num_next = 0;
    index.ForEachNext(cursor.state, [&](TokenId next, SuffixIndex::StateId target) {
      ++num_next;
      const auto found = continuations.find(next);
      FORERUN_CHECK(found != continuations.end(), "a token that followed");
      if (cursor.length < index.max_depth()) {
        FORERUN_CHECK(index.count(target) == found->second, "how often it followed");
      }
    });
    FORERUN_CHECK(num_next == continuations.size(), "every token that followed");
  }

  SuffixIndex index;
  NaiveSuffixIndex naive;
  Tokens read;
  SuffixIndex::Cursor cursor;
  int last_length = 0;
};

}  // namespace
}  // namespace forerun

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace forerun;
  if (size < 2) return 0;
  const int max_depth = 1 + data[0] % 12;
  const int num_tokens = 1 + data[1] % 5;
  Twins twins(max_depth);
  for (std::size_t i = 2; i < size && i < kMostOperations; ++i) {
    if (data[i] == kStartSequence) {
      twins.index.StartSequence();
      twins.naive.StartSequence();
    } else if ((data[i] & kQuery) != 0) {
      twins.Query((data[i] & 0x7f) % num_tokens, max_depth);
    } else {
      twins.Append(data[i] % num_tokens);
    }
  }
  twins.index.CheckIntegrity();
  return 0;
}
