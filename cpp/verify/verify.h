// THE definition of acceptance: which nodes of a draft are accepted, and which token follows them.
// SamplingRule::acceptance_method selects the rule; at temperature 0 all of them are kCoupled.
//
// kCoupled samples the output one position after the other, exactly as without a draft. As long as
// a child of the current node has the sampled token, that node is accepted and its own logits row,
// computed in the same pass, yields the next sample. The first sample that no child has ends the
// walk: the correction, or, at the end of the draft, the bonus. So every emitted token is the one
// that plain decoding would have emitted, for every draft.
//
// kRejection and kBlock keep the distribution of the output instead. Both visit nodes depth first.
// Visiting a node with a weight emits a path through it with exactly that probability, followed by
// tokens with the target's distribution:
//
//   Visit(node, weight)
//     target = weight x the target's distribution after the node
//     for each child, its token drawn from draft (if it is certain: with probability 1)
//       w = min(1, target(its token) / draft(its token))
//       kRejection: with probability w, return Visit(child, 1)
//       kBlock:     if Visit(child, w) accepts, return
//       target = max(0, target - draft) / (1 - sum of target + sum of max(0, target - draft))
//       draft  = draft without its token, normalised
//     with probability sum of target: accept the path to this node, then a token drawn from target
//
// The root is visited with weight 1. docs/acceptance.md has the proof. Randomness is that of
// UniformNoise at the draft's first output index; the token after a node whose target no child has
// reduced is the one of plain decoding, SampleToken's.
#ifndef FORERUN_CPP_VERIFY_VERIFY_H_
#define FORERUN_CPP_VERIFY_VERIFY_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/sampling/sampler.h"
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
  // The row of logits that tokens[i] was sampled from.
  int row(int i) const { return i == 0 ? 0 : accepted_nodes[i - 1] + 1; }
};

// tokens[i] becomes output token number first_output_index + i. Reads only rows on the accepted
// path, with kBlock also those that it visits. Overwrites `out`. Throws RequestError when a row on
// the accepted path is broken or a hook fails for it; `out` then holds the tokens before it.
void Verify(const DraftTree& draft, RowLogits logits, const SamplingRule& rule,
            int first_output_index, SamplerScratch& scratch, Verdict& out);

// The same, written as the definition reads. For tests.
void VerifySlow(const DraftTree& draft, RowLogits logits, const SamplingRule& rule,
                int first_output_index, Verdict& out);

// The logits after `node`, whose path from the root has the tokens of `path`: the row itself, or
// what processors make of it, in `copy`. Nothing else reads rows for sampling.
std::span<const float> LogitsAfter(int node, std::span<const TokenId> path, RowLogits logits,
                                   const SamplingRule& rule, std::vector<float>& copy);

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_VERIFY_H_
