#include "cpp/sampling/draft_sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpp/sampling/logits_row.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// The lowest token >= `from` that a child of `node` holds, or the highest of all ids.
TokenId SmallestChild(const DraftTree& draft, int node, TokenId from) {
  TokenId smallest = std::numeric_limits<TokenId>::max();
  for (int i = node + 1; i < draft.size(); ++i) {
    if (draft.parents[i] == node && draft.tokens[i] >= from) {
      smallest = std::min(smallest, draft.tokens[i]);
    }
  }
  return smallest;
}

}  // namespace

void FillDraftRow(std::span<const float> logits, const SamplingRule& rule, SamplerScratch& scratch,
                  std::span<float> row) {
  FORERUN_CHECK(row.size() == logits.size(), "a row of weights has one per logit");
  const KeptTokens kept = KeepTokens(logits, rule, scratch);
  std::ranges::fill(row, 0.0f);
  const auto wanted = [&](float group_max) {
    return group_max >= kept.last.logit && kept.row.Scaled(group_max) > kZeroWeight;
  };
  kept.row.VisitGroups(wanted, [&](TokenId first_token, const float*) {
    const TokenId end = std::min(first_token + kScanGroup, kept.row.size());
    for (TokenId token = first_token; token < end; ++token) {
      row[token] = static_cast<float>(kept.WeightOf(token));
    }
  });
}

void RoundDraftRow(std::span<float> row) {
  for (float& weight : row) {
    FORERUN_CHECK(weight >= 0.0f && weight <= 1.0f, "draft weights lie in [0, 1]");
    weight = static_cast<float>(std::nearbyint(double{weight} * 0x1p32) * 0x1p-32);
  }
}

bool AppendDrawnChild(DraftTree& draft, int node, std::uint64_t seed, int first_output_index) {
  const std::span<const float> row = draft.RowAfter(node);
  FORERUN_CHECK(!row.empty(), "sampled children need a row to be drawn from");
  double total = SumOfWeights(row);
  for (int i = node + 1; i < draft.size(); ++i) {
    if (draft.parents[i] == node) total -= row[draft.tokens[i]];
  }
  if (total <= 0.0) return false;
  const double drawn_mass =
      total * UniformNoise(seed, NoisePurpose::kDraft, first_output_index, draft.size());
  double mass = 0.0;
  TokenId sibling = SmallestChild(draft, node, 0);
  for (TokenId token = 0; token < std::ssize(row); ++token) {
    if (token == sibling) {
      sibling = SmallestChild(draft, node, token + 1);
      continue;
    }
    mass += row[token];
    if (mass <= drawn_mass) continue;
    draft.Append(token, node, static_cast<float>(row[token] / total));
    return true;
  }
  FORERUN_CHECK(false, "weights that are multiples of 2^-32 have an exact sum");
  return false;
}

}  // namespace forerun
