#include "cpp/sampling/logprobs.h"

#include <algorithm>
#include <cmath>

#include "cpp/sampling/logits_row.h"
#include "cpp/sampling/weight_math.h"

namespace forerun {
namespace {

// The first `count` tokens of the order of preference, as a heap whose top is the last of them.
void CollectBest(std::span<const float> logits, std::span<const float> group_max, int count,
                 std::vector<RankedToken>& best) {
  best.clear();
  const int size = static_cast<int>(logits.size());
  for (TokenId begin = 0; begin < size && count > 0; begin += kScanGroup) {
    const bool is_full = static_cast<int>(best.size()) == count;
    // Of equals the earlier one stays.
    if (is_full && group_max[begin / kScanGroup] <= best.front().logit) continue;
    const TokenId end = std::min(begin + kScanGroup, size);
    for (TokenId token = begin; token < end; ++token) {
      if (static_cast<int>(best.size()) < count) {
        best.push_back({logits[token], token});
        std::ranges::push_heap(best, Before);
      } else if (logits[token] > best.front().logit) {
        std::ranges::pop_heap(best, Before);
        best.back() = {logits[token], token};
        std::ranges::push_heap(best, Before);
      }
    }
  }
}

int RankOf(std::span<const float> logits, TokenId token) {
  const float logit = logits[token];
  int num_above = 0;
  for (float other : logits) num_above += other > logit;
  const auto before = logits.first(static_cast<std::size_t>(token));
  return 1 + num_above + static_cast<int>(std::ranges::count(before, logit));
}

// A row's softmax.
struct RowLogprobs {
  std::span<const float> logits;
  double max, log_sum;

  // Never -0.
  float Of(float logit) const { return static_cast<float>(logit - max - log_sum) + 0.0f; }
  TokenLogprob Entry(TokenId token) const {
    return {token, Of(logits[token]), RankOf(logits, token)};
  }
};

RowLogprobs ReadRow(std::span<const float> logits, SamplerScratch& scratch) {
  const int size = static_cast<int>(logits.size());
  const RowScan& scan = BestRowScan();
  scratch.group_max.resize((size + kScanGroup - 1) / kScanGroup);
  const bool has_nan = scan.find_group_maxima(logits.data(), size, scratch.group_max.data());
  const auto group = std::ranges::max_element(scratch.group_max);
  const float max = *group;
  if (has_nan || !std::isfinite(max)) ThrowNumericError(logits);
  const auto first = logits.begin() + (group - scratch.group_max.begin()) * kScanGroup;
  const auto highest = static_cast<TokenId>(std::find(first, logits.end(), max) - logits.begin());
  return {logits, max, Log1pOf(scan.sum_exp_of_others(logits.data(), size, highest))};
}

}  // namespace

void AppendLogprobsOf(std::span<const float> logits, TokenId token, std::span<const TokenId> others,
                      SamplerScratch& scratch, std::vector<TokenLogprob>& out) {
  const RowLogprobs row = ReadRow(logits, scratch);
  out.push_back(row.Entry(token));
  for (TokenId other : others) out.push_back(row.Entry(other));
}

void AppendLogprobs(std::span<const float> logits, TokenId token, int num_top,
                    SamplerScratch& scratch, std::vector<TokenLogprob>& out) {
  const RowLogprobs row = ReadRow(logits, scratch);
  out.push_back(row.Entry(token));
  const int count = NumLogprobEntries(num_top, static_cast<int>(logits.size())) - 1;
  CollectBest(logits, scratch.group_max, count, scratch.candidates);
  std::ranges::sort_heap(scratch.candidates, Before);
  for (int i = 0; i < count; ++i) {
    const RankedToken& ranked = scratch.candidates[i];
    out.push_back({ranked.token, row.Of(ranked.logit), i + 1});
  }
}

}  // namespace forerun
