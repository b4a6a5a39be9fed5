#include "cpp/draft_tree/draft_editor.h"

#include <cstddef>
#include <utility>

#include "cpp/util/check.h"

namespace forerun {

void DraftEditor::Select(std::span<const std::int32_t> nodes, DraftTree& draft) {
  selected_.Clear();
  new_nodes_.assign(draft.size(), kDraftRoot);
  for (std::int32_t node : nodes) {
    const std::int32_t parent = draft.parents[node];
    const std::int32_t new_parent = parent == kDraftRoot ? kDraftRoot : new_nodes_[parent];
    FORERUN_CHECK((new_parent == kDraftRoot) == (parent == kDraftRoot),
                  "a node without its parent");
    new_nodes_[node] = selected_.size();
    selected_.Append(draft.tokens[node], new_parent, draft.confidence[node]);
  }
  SelectRows(nodes, draft);
  std::swap(draft, selected_);
}

void DraftEditor::SelectRows(std::span<const std::int32_t> nodes, DraftTree& draft) {
  if (!draft.has_draft_probabilities()) return;
  const auto row_after = [&](std::size_t i) {
    return i < draft.row_after.size() ? draft.row_after[i] : -1;
  };
  selected_.row_after.push_back(row_after(0));
  for (std::int32_t node : nodes) selected_.row_after.push_back(row_after(node + 1));
  std::swap(selected_.weights, draft.weights);
  selected_.vocab_size = draft.vocab_size;
  selected_.device_weights = draft.device_weights;
}

void DraftEditor::OrderDepthFirst(DraftTree& draft) {
  if (draft.is_chain()) return;
  const int size = draft.size();
  sizes_.assign(size, 1);
  for (int i = size - 1; i >= 0; --i) {
    if (draft.parents[i] != kDraftRoot) sizes_[draft.parents[i]] += sizes_[i];
  }
  next_.resize(size);
  order_.resize(size);
  std::int32_t next_of_root = 0;
  for (int i = 0; i < size; ++i) {
    const std::int32_t parent = draft.parents[i];
    std::int32_t& index = parent == kDraftRoot ? next_of_root : next_[parent];
    order_[index] = i;
    next_[i] = index + 1;
    index += sizes_[i];
  }
  Select(order_, draft);
}

}  // namespace forerun
