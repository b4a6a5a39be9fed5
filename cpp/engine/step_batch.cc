#include "cpp/engine/step_batch.h"

#include "cpp/kv/slot_map.h"
#include "cpp/sched/request.h"

namespace forerun {

StepBatch::StepBatch(int max_num_seqs, int max_rows) {
  sequences_.reserve(max_num_seqs);
  tokens_.reserve(max_rows);
  logits_rows_.reserve(max_rows);
  moves_.reserve(max_rows);
}

void StepBatch::Build(const StepPlan& plan) {
  tokens_.clear();
  sequences_.clear();
  logits_rows_.clear();
  moves_.clear();
  for (const PlannedRequest& planned : plan.requests) {
    Request& request = *planned.request;
    request.draft.Truncate(planned.num_draft);
    editor_.OrderDepthFirst(request.draft);
    const int row_begin = static_cast<int>(tokens_.size());
    const int num_context = request.table.num_committed();
    const auto pending = request.tokens.begin() + num_context;
    tokens_.insert(tokens_.end(), pending, pending + planned.num_pending);
    tokens_.insert(tokens_.end(), request.draft.tokens.begin(), request.draft.tokens.end());
    SequenceRows rows = {row_begin, planned.num_rows(), num_context, request.table.blocks()};
    if (!request.draft.is_chain()) {
      rows.tree = {num_context + planned.num_pending, request.draft.parents};
    }
    sequences_.push_back(rows);
    const int first_scored = row_begin + request.num_scored_rows - num_context;
    for (int i = 0; i < planned.num_scored; ++i) logits_rows_.push_back(first_scored + i);
    if (!planned.samples) continue;
    // The last known token's row and one per draft node.
    for (int row = planned.num_pending - 1; row < planned.num_rows(); ++row) {
      logits_rows_.push_back(row_begin + row);
    }
  }
}

void StepBatch::AddMoves(const PlannedRequest& planned, const Verdict& verdict) {
  const BlockTable& table = planned.request->table;
  const int first = table.num_committed() + planned.num_pending;
  const auto cache_slot = [&](int slot) {
    return CacheSlot(table.blocks(), slot, table.block_size());
  };
  // Nodes ascend along the path, so none is overwritten before it has moved.
  for (int i = 0; i < verdict.num_accepted(); ++i) {
    const int node = verdict.accepted_nodes[i];
    if (node != i) moves_.push_back({cache_slot(first + node), cache_slot(first + i)});
  }
}

}  // namespace forerun
