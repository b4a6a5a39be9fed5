#include <algorithm>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/ops/cpu/task_runs.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// Fewer tasks than this and threads would wait for each other at the end.
constexpr int kTasksPerThread = 4;

}  // namespace

void CpuOps::FindRowRuns(std::span<const SequenceRows> sequences, int block_size) {
  row_runs_.clear();
  tree_tails_.Clear();
  for (const SequenceRows& sequence : sequences) {
    const int last = sequence.num_context + sequence.num_rows;
    for (int begin = sequence.num_context, end; begin < last; begin = end) {
      end = sequence.tree.parents.empty() ? last : begin + 1;
      while (end < last && sequence.SlotBefore(end) == end - 1) ++end;
      const int row = sequence.row_begin + begin - sequence.num_context;
      const int position = sequence.PositionOf(begin);
      // A path that is in order up to here lies where a plain sequence would.
      const int tail = position == begin ? -1 : tree_tails_.Add(sequence, end - 1, block_size);
      row_runs_.push_back({&sequence, row, end - begin, position, tail});
    }
  }
}

void CpuOps::PlanAttention(const AttentionTask& shared, const KvLayout& layout, int num_heads) {
  const int group = num_heads / layout.num_kv_heads;
  const int most_rows = std::max(1, kMaxQueriesPerTask / group);
  const std::int64_t head_bytes = layout.head_elements() * layout.element_bytes;
  attention_tasks_.clear();
  for (const RowRun& run : row_runs_) {
    const int num_tiles = (run.num_rows + most_rows - 1) / most_rows;
    // Later rows see more and take longer: they go first.
    for (int tile = num_tiles - 1; tile >= 0; --tile) {
      const int begin = static_cast<int>(std::int64_t{run.num_rows} * tile / num_tiles);
      const int end = static_cast<int>(std::int64_t{run.num_rows} * (tile + 1) / num_tiles);
      for (int head = 0; head < layout.num_kv_heads; ++head) {
        AttentionTask task = shared;
        const int column = head * group * layout.head_dim;
        task.query += (run.row + begin) * task.query_stride + column;
        task.out += (run.row + begin) * task.out_stride + column;
        task.num_rows = end - begin;
        task.num_heads = group;
        task.position = run.position + begin;
        task.keys = static_cast<const std::byte*>(shared.keys) + head * head_bytes;
        task.values = static_cast<const std::byte*>(shared.values) + head * head_bytes;
        task.block_table = run.sequence->block_table.data();
        if (run.tail >= 0) tree_tails_.Attach(run.tail, head, task);
        const int window = task.sliding_window > 0 ? task.sliding_window : task.position + 1;
        task.part_begin =
            std::max(task.first_position, task.position + 1 - window) / kPositionsPerPart;
        task.part_end = (task.position + task.num_rows + kPositionsPerPart - 1) / kPositionsPerPart;
        attention_tasks_.push_back(task);
      }
    }
  }
}

void CpuOps::Attention(ConstRows query, const ForwardRows& rows, RowSet which, int layer,
                       const AttentionShape& shape, Rows out) {
  const std::span<const SequenceRows> sequences = rows.sequences(which);
  const auto* kv = dynamic_cast<const CpuKvCache*>(rows.cache());
  FORERUN_CHECK(kv != nullptr, "a KV cache of another Ops");
  const KvLayout& layout = kv->layout();
  FORERUN_CHECK(layer >= 0 && layer < layout.num_layers, "no such layer");
  FORERUN_CHECK(shape.num_kv_heads == layout.num_kv_heads && shape.head_dim == layout.head_dim,
                "attention does not fit the KV cache");
  FORERUN_CHECK(shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
                "KV heads must divide the heads");
  FORERUN_CHECK(query.cols == shape.num_heads * shape.head_dim && out.cols == query.cols &&
                    out.rows == query.rows,
                "queries or outputs do not fit the heads");
  FORERUN_CHECK(shape.sliding_window >= 0 && shape.soft_cap >= 0.0f, "a negative window or cap");
  const auto num_rows =
      which == RowSet::kAll ? rows.num_rows() : std::ssize(rows.indices(RowIndices::kWanted));
  FORERUN_CHECK(query.rows == num_rows, "a query for each of the rows");
  for (const SequenceRows& sequence : sequences) {
    FORERUN_CHECK(shape.first_position >= 0 && sequence.num_context >= shape.first_position,
                  "a row that sees nothing");
  }
  AttentionTask shared;
  shared.query = query.data;
  shared.query_stride = query.stride;
  shared.out = out.data;
  shared.out_stride = out.stride;
  shared.head_dim = layout.head_dim;
  shared.sliding_window = shape.sliding_window;
  shared.first_position = shape.first_position;
  shared.scale = shape.scale;
  shared.soft_cap = shape.soft_cap;
  shared.keys = kv->keys(layer);
  shared.values = kv->values(layer);
  shared.block_stride = layout.block_elements();
  shared.block_size = layout.block_size;
  shared.head_elements = layout.head_elements();
  shared.element_bytes = layout.element_bytes;
  FindRowRuns(sequences, layout.block_size);
  tree_tails_.Gather(*kv, layer, team_);
  PlanAttention(shared, layout, shape.num_heads);
  RunAttention();
}

void CpuOps::RunAttention() {
  std::int64_t num_floats = 0;
  int num_parts = 0;
  for (const AttentionTask& task : attention_tasks_) {
    const int num_queries = task.num_rows * task.num_heads;
    num_floats = std::max(num_floats, AttentionScratchFloats(num_queries, task.head_dim));
    num_parts += task.part_end - task.part_begin;
  }
  for (HostScratch& scratch : member_scratch_) scratch.Grow(num_floats * sizeof(float));
  const int num_tasks = static_cast<int>(attention_tasks_.size());
  if (num_parts > num_tasks && num_tasks < kTasksPerThread * team_.num_threads()) {
    return RunAttentionParts();
  }
  team_.Run(num_tasks, [&](int i, int member) {
    AttentionTask task = attention_tasks_[i];
    task.scratch = member_scratch_[member].as<float>();
    kernels_.attention(task);
  });
}

void CpuOps::RunAttentionParts() {
  std::int64_t num_floats = 0;
  for (const AttentionTask& task : attention_tasks_) {
    num_floats += (task.part_end - task.part_begin) *
                  AttentionStateFloats(task.num_rows * task.num_heads, task.head_dim);
  }
  part_states_.Grow(num_floats * sizeof(float));
  part_tasks_.clear();
  float* state = part_states_.as<float>();
  for (AttentionTask& task : attention_tasks_) {
    task.part_state = state;
    for (int i = task.part_begin; i < task.part_end; ++i) {
      AttentionTask part = task;
      part.part_begin = i;
      part.part_end = i + 1;
      part.part_state = state;
      part_tasks_.push_back(part);
      state += AttentionStateFloats(task.num_rows * task.num_heads, task.head_dim);
    }
  }
  const TaskRuns runs(static_cast<int>(part_tasks_.size()), team_.num_threads(),
                      /*short_tasks=*/1);
  team_.Run(runs.num_runs, [&](int run, int member) {
    for (int i = runs.begin(run); i < runs.end(run); ++i) {
      AttentionTask task = part_tasks_[i];
      task.scratch = member_scratch_[member].as<float>();
      kernels_.attention(task);
    }
  });
  for (AttentionTask task : attention_tasks_) {
    task.scratch = member_scratch_[0].as<float>();
    kernels_.join_attention(task, task.part_state);
  }
}

}  // namespace forerun
