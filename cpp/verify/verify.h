// THE definition of acceptance.
//
// Verify samples the output one position after the other, exactly as without a draft. As long as
// some child of the current node guessed the sampled token, that node is accepted and its own
// logits row, computed in the same pass, yields the next sample. The first sample that nobody
// guessed ends the walk: the correction, or, at the end of the draft, the bonus. So every emitted
// token is the one that plain decoding would have emitted, whatever the draft says.
#ifndef FORERUN_CPP_VERIFY_VERIFY_H_
#define FORERUN_CPP_VERIFY_VERIFY_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/verify/distribution.h"
#include "cpp/verify/draft.h"
#include "forerun/types.h"

namespace forerun {

// Borrowed logits [draft.size() + 1, vocab_size]: row 0 follows the last committed token, row i + 1
// follows node i of the draft.
struct RowLogits {
  const float* data = nullptr;
  int vocab_size = 0;
  std::int64_t stride = 0;  // from a row to the next, in floats

  std::span<const float> row(int i) const {
    return {data + i * stride, static_cast<std::size_t>(vocab_size)};
  }
};

struct Verdict {
  std::vector<int> accepted_nodes;  // a path from the root
  std::vector<TokenId> tokens;      // theirs, then one correction or bonus; never empty

  int num_accepted() const { return static_cast<int>(accepted_nodes.size()); }
};

// tokens[i] becomes output token number first_output_index + i. Only rows on the accepted path are
// read. `out` is overwritten. Throws NumericError, and then `out` holds the tokens before it.
void Verify(const Draft& draft, RowLogits logits, const SamplingRule& rule, int first_output_index,
            SamplerScratch& scratch, Verdict& out);

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_VERIFY_H_
