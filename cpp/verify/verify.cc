#include "cpp/verify/verify.h"

namespace forerun {
namespace {

// The first child of `node` that guessed `token`, or kDraftRoot.
int FindChild(const Draft& draft, int node, TokenId token) {
  for (int child = node + 1; child < draft.size(); ++child) {
    if (draft.parents[child] == node && draft.tokens[child] == token) return child;
  }
  return kDraftRoot;
}

}  // namespace

void Verify(const Draft& draft, RowLogits logits, const SamplingRule& rule, int first_output_index,
            SamplerScratch& scratch, Verdict& out) {
  out.accepted_nodes.clear();
  out.tokens.clear();
  int node = kDraftRoot;
  do {
    const int output_index = first_output_index + out.num_accepted();
    const TokenId token = SampleToken(logits.row(node + 1), rule, output_index, scratch);
    out.tokens.push_back(token);
    node = FindChild(draft, node, token);
    if (node != kDraftRoot) out.accepted_nodes.push_back(node);
  } while (node != kDraftRoot);
}

}  // namespace forerun
