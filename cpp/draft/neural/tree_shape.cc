#include "cpp/draft/neural/tree_shape.h"

#include <algorithm>
#include <string>

#include "forerun/error.h"

namespace forerun {
namespace {

std::string ToText(const std::vector<int>& path) {
  std::string text = "(";
  for (int rank : path) text += std::to_string(rank) + ",";
  return text + ")";
}

void Refuse(const std::vector<int>& path, const std::string& expected) {
  throw InvalidArgument("speculative_token_tree", ToText(path), expected);
}

}  // namespace

TreeShape::TreeShape(std::span<const std::vector<int>> paths) {
  std::vector<std::vector<int>> sorted(paths.begin(), paths.end());
  std::ranges::sort(sorted, [](const auto& one, const auto& other) {
    return one.size() != other.size() ? one.size() < other.size() : one < other;
  });
  num_ranked_.push_back(0);
  std::vector<int> rows_by_level;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const std::vector<int>& path = sorted[i];
    if (path.empty()) Refuse(path, "paths of at least one rank");
    if (path.back() < 0 || path.back() >= kMostRanks) {
      Refuse(path, "ranks from 0 to " + std::to_string(kMostRanks - 1));
    }
    if (i > 0 && path == sorted[i - 1]) Refuse(path, "every path once");
    const std::vector<int> before(path.begin(), path.end() - 1);
    int parent = kDraftRoot;
    if (!before.empty()) {
      const auto found = std::find(sorted.begin(), sorted.begin() + static_cast<int>(i), before);
      if (found == sorted.begin() + static_cast<int>(i)) {
        Refuse(path, "the path before it, " + ToText(before) + ", as well");
      }
      parent = static_cast<int>(found - sorted.begin());
    }
    depth_ = static_cast<int>(path.size());
    rows_by_level.resize(depth_, 0);
    if (num_ranked_[parent + 1] == 0) ++rows_by_level[depth_ - 1];
    num_ranked_[parent + 1] = path.back() + 1;
    num_ranked_.push_back(0);
    parents_.push_back(parent);
    ranks_.push_back(path.back());
  }
  for (int num_rows : rows_by_level) most_rows_ = std::max(most_rows_, num_rows);
}

int TreeShape::Child(int node, int rank) const {
  for (int i = node + 1; i < size(); ++i) {
    if (parents_[i] == node && ranks_[i] == rank) return i;
  }
  return kNoNode;
}

}  // namespace forerun
