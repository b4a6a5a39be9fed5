#include "cpp/draft/text/suffix_tree_builder.h"

#include <algorithm>
#include <tuple>

namespace forerun {
namespace {

// As in CountConfidence.
constexpr double kUnseen = 2.0;

}  // namespace

void SuffixTreeBuilder::Clear() {
  sources_.clear();
  contexts_.clear();
}

void SuffixTreeBuilder::AddSource(const SuffixIndex& index, SuffixIndex::Cursor match) {
  sources_.push_back(&index);
  contexts_.push_back(match);
}

bool SuffixTreeBuilder::IsWorse(const Leaf& a, const Leaf& b) {
  if (a.path_prob != b.path_prob) return a.path_prob < b.path_prob;
  return std::tie(a.parent, a.token) > std::tie(b.parent, b.token);
}

void SuffixTreeBuilder::Grow(const Limits& limits, DraftTree& draft) {
  const std::size_t num_sources = sources_.size();
  leaves_.clear();
  if (limits.max_nodes > 0) Branch(kDraftRoot, 1.0, 0, limits);
  while (draft.size() < limits.max_nodes && !leaves_.empty()) {
    std::ranges::pop_heap(leaves_, IsWorse);
    const Leaf leaf = leaves_.back();
    leaves_.pop_back();
    const int node = draft.size();
    draft.Append(leaf.token, leaf.parent, leaf.confidence);
    if (draft.size() == limits.max_nodes) return;
    for (std::size_t i = 0; i < num_sources; ++i) {
      SuffixIndex::Cursor context = contexts_[(leaf.parent + 1) * num_sources + i];
      sources_[i]->Advance(context, leaf.token, limits.max_context);
      contexts_.push_back(context);
    }
    Branch(node, leaf.path_prob, leaf.depth, limits);
  }
}

void SuffixTreeBuilder::Branch(int node, double path_prob, int depth, const Limits& limits) {
  if (depth >= limits.max_depth) return;
  const auto begin = contexts_.begin() + (node + 1) * static_cast<std::ptrdiff_t>(sources_.size());
  suffixes_.assign(begin, begin + static_cast<std::ptrdiff_t>(sources_.size()));
  CollectShares();
  // A token's shares are added up in the order of the suffixes.
  std::ranges::sort(shares_, [](const Share& a, const Share& b) {
    return std::tie(a.token, a.order) < std::tie(b.token, b.order);
  });
  for (std::size_t i = 0; i < shares_.size();) {
    const TokenId token = shares_[i].token;
    double probability = 0;
    for (; i < shares_.size() && shares_[i].token == token; ++i) {
      probability += shares_[i].probability;
    }
    const double leaf_prob = path_prob * probability;
    if (leaf_prob < limits.min_path_prob) continue;
    leaves_.push_back({leaf_prob, static_cast<float>(probability), node, depth + 1, token});
    std::ranges::push_heap(leaves_, IsWorse);
  }
}

void SuffixTreeBuilder::CollectShares() {
  shares_.clear();
  double weight = 1;
  while (weight >= kLeastWeight) {
    std::size_t longest = 0;
    for (std::size_t i = 1; i < suffixes_.size(); ++i) {
      if (suffixes_[i].length > suffixes_[longest].length) longest = i;
    }
    if (suffixes_.empty() || suffixes_[longest].length == 0) return;
    SuffixIndex::Cursor& suffix = suffixes_[longest];
    const SuffixIndex& index = *sources_[longest];
    const int num_followed = index.num_followed(suffix.state);
    if (num_followed > 0) {
      AddShares(index, suffix, weight);
      const double unseen = kUnseen / suffix.length;
      weight *= unseen / (num_followed + unseen);
    }
    const SuffixIndex::StateId shorter = index.link(suffix.state);
    suffix = {shorter, index.length(shorter)};
  }
}

void SuffixTreeBuilder::AddShares(const SuffixIndex& index, SuffixIndex::Cursor suffix,
                                  double weight) {
  const double total = index.num_followed(suffix.state) + kUnseen / suffix.length;
  const SuffixIndex::StateId best = index.best_next(suffix.state);
  const auto add = [&](SuffixIndex::StateId next) {
    const double share = weight * index.count(next) / total;
    shares_.push_back({index.last_token(next), static_cast<std::int32_t>(shares_.size()), share});
  };
  int num_added = 0;
  index.ForEachNext(suffix.state, kMaxContinuations, [&](TokenId, SuffixIndex::StateId next) {
    if (next != best) add(next);
    ++num_added;
  });
  if (num_added > 0 && best != SuffixIndex::kNone) add(best);
}

}  // namespace forerun
