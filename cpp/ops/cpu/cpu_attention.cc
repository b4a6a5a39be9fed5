#include <algorithm>
#include <cstring>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// Kernels load whole vectors: the last value's may reach this far behind it.
constexpr std::int64_t kTailBytes = kLanes * sizeof(float);

// Fewer tasks than this and threads would wait for each other at the end.
constexpr int kTasksPerThread = 4;

void CheckSequences(std::span<const SequenceRows> sequences, const KvCache& cache, int num_rows) {
  const int block_size = cache.layout().block_size;
  for (const SequenceRows& sequence : sequences) {
    FORERUN_CHECK(sequence.row_begin >= 0 && sequence.num_rows >= 0 && sequence.num_context >= 0 &&
                      sequence.row_begin + sequence.num_rows <= num_rows,
                  "a sequence's rows lie outside the batch");
    const int num_positions = sequence.num_context + sequence.num_rows;
    const std::size_t num_blocks = (num_positions + block_size - 1) / block_size;
    FORERUN_CHECK(sequence.block_table.size() >= num_blocks, "a block table is too short");
    for (std::size_t i = 0; i < num_blocks; ++i) {
      FORERUN_CHECK(sequence.block_table[i] >= 0 && sequence.block_table[i] < cache.num_blocks(),
                    "no such block");
    }
  }
}

void Write(float value, float* slot) { *slot = value; }
void Write(float value, std::uint16_t* slot) { *slot = FloatToBFloat16(value); }

// Where one token of one KV head goes.
template <typename T>
struct Slot {
  T* key;  // channel 0; the next lies key_stride behind
  std::int64_t key_stride;
  T* value;
};

template <typename T>
void StoreHead(const float* key, const float* value, int head_dim, const Slot<T>& slot) {
  for (int i = 0; i < head_dim; ++i) Write(key[i], slot.key + i * slot.key_stride);
  for (int i = 0; i < head_dim; ++i) Write(value[i], slot.value + i);
}

template <typename T>
void StoreSequence(ConstRows keys, ConstRows values, const SequenceRows& sequence, int layer,
                   int head, const CpuKvCache& cache) {
  const KvLayout& layout = cache.layout();
  const std::int64_t head_elements = std::int64_t{layout.head_dim} * layout.block_size;
  for (int i = 0; i < sequence.num_rows; ++i) {
    const int position = sequence.num_context + i;
    const int offset = position % layout.block_size;
    const std::int64_t begin =
        sequence.block_table[position / layout.block_size] * layout.block_elements() +
        head * head_elements;
    const Slot<T> slot = {
        reinterpret_cast<T*>(cache.keys(layer)) + begin + offset, layout.block_size,
        reinterpret_cast<T*>(cache.values(layer)) + begin + std::int64_t{offset} * layout.head_dim};
    const int row = sequence.row_begin + i;
    StoreHead(keys.row(row) + head * layout.head_dim, values.row(row) + head * layout.head_dim,
              layout.head_dim, slot);
  }
}

}  // namespace

CpuKvCache::CpuKvCache(const KvLayout& layout, int num_blocks)
    : KvCache(layout, num_blocks),
      layer_bytes_(num_blocks * layout.block_elements() * layout.element_bytes),
      data_(2 * layout.num_layers * layer_bytes_ + kTailBytes) {}

std::unique_ptr<KvCache> CpuOps::MakeKvCache(const KvLayout& layout, int num_blocks) {
  FORERUN_CHECK(
      num_blocks >= 0 && layout.num_layers > 0 && layout.num_kv_heads > 0 && layout.head_dim > 0,
      "an empty KV cache");
  FORERUN_CHECK(layout.block_size > 0 && layout.block_size % kKvBlockGranularity == 0,
                "the block size must be a multiple of 16");
  FORERUN_CHECK(layout.element_bytes == 2 || layout.element_bytes == 4,
                "KV elements are bfloat16 or float32");
  return std::make_unique<CpuKvCache>(layout, num_blocks);
}

void CpuOps::StoreKv(ConstRows keys, ConstRows values, std::span<const SequenceRows> sequences,
                     int layer, KvCache& cache) {
  const auto* kv = dynamic_cast<const CpuKvCache*>(&cache);
  FORERUN_CHECK(kv != nullptr, "a KV cache of another Ops");
  const KvLayout& layout = kv->layout();
  FORERUN_CHECK(layer >= 0 && layer < layout.num_layers, "no such layer");
  FORERUN_CHECK(keys.rows == values.rows && keys.cols == values.cols &&
                    keys.cols == layout.num_kv_heads * layout.head_dim,
                "keys or values do not fit the KV cache");
  CheckSequences(sequences, cache, keys.rows);
  // By heads: rows of one block share cache lines of its keys.
  const auto store = [&](int head) {
    for (const SequenceRows& sequence : sequences) {
      if (layout.element_bytes == 2) {
        StoreSequence<std::uint16_t>(keys, values, sequence, layer, head, *kv);
      } else {
        StoreSequence<float>(keys, values, sequence, layer, head, *kv);
      }
    }
  };
  if (keys.rows < 32) {
    for (int head = 0; head < layout.num_kv_heads; ++head) store(head);
  } else {
    team_.Run(layout.num_kv_heads, store);
  }
}

void CpuOps::PlanAttention(const AttentionTask& shared, const KvLayout& layout, int num_heads,
                           std::span<const SequenceRows> sequences) {
  const int group = num_heads / layout.num_kv_heads;
  const int most_rows = std::max(1, kMaxQueriesPerTask / group);
  const std::int64_t head_bytes =
      std::int64_t{layout.head_dim} * layout.block_size * layout.element_bytes;
  attention_tasks_.clear();
  for (const SequenceRows& sequence : sequences) {
    const int num_tiles = (sequence.num_rows + most_rows - 1) / most_rows;
    // Later rows see more and take longer: they go first.
    for (int tile = num_tiles - 1; tile >= 0; --tile) {
      const int begin = static_cast<int>(std::int64_t{sequence.num_rows} * tile / num_tiles);
      const int end = static_cast<int>(std::int64_t{sequence.num_rows} * (tile + 1) / num_tiles);
      for (int head = 0; head < layout.num_kv_heads; ++head) {
        AttentionTask task = shared;
        const int column = head * group * layout.head_dim;
        task.query += (sequence.row_begin + begin) * task.query_stride + column;
        task.out += (sequence.row_begin + begin) * task.out_stride + column;
        task.num_rows = end - begin;
        task.num_heads = group;
        task.position = sequence.num_context + begin;
        task.keys = static_cast<const std::byte*>(shared.keys) + head * head_bytes;
        task.values = static_cast<const std::byte*>(shared.values) + head * head_bytes;
        task.block_table = sequence.block_table.data();
        const int window = task.sliding_window > 0 ? task.sliding_window : task.position + 1;
        task.part_begin = std::max(0, task.position + 1 - window) / kPositionsPerPart;
        task.part_end = (task.position + task.num_rows + kPositionsPerPart - 1) / kPositionsPerPart;
        attention_tasks_.push_back(task);
      }
    }
  }
}

void CpuOps::Attention(ConstRows query, const KvCache& cache, int layer,
                       const AttentionShape& shape, std::span<const SequenceRows> sequences,
                       Rows out) {
  const auto* kv = dynamic_cast<const CpuKvCache*>(&cache);
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
  CheckSequences(sequences, cache, query.rows);
  AttentionTask shared;
  shared.query = query.data;
  shared.query_stride = query.stride;
  shared.out = out.data;
  shared.out_stride = out.stride;
  shared.head_dim = layout.head_dim;
  shared.sliding_window = shape.sliding_window;
  shared.scale = shape.scale;
  shared.soft_cap = shape.soft_cap;
  shared.keys = kv->keys(layer);
  shared.values = kv->values(layer);
  shared.block_stride = layout.block_elements();
  shared.block_size = layout.block_size;
  shared.is_bfloat16 = layout.element_bytes == 2;
  PlanAttention(shared, layout, shape.num_heads, sequences);
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
  for (AlignedBuffer& scratch : member_scratch_) scratch.Grow(num_floats * sizeof(float));
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
  team_.Run(static_cast<int>(part_tasks_.size()), [&](int i, int member) {
    AttentionTask task = part_tasks_[i];
    task.scratch = member_scratch_[member].as<float>();
    kernels_.attention(task);
  });
  for (AttentionTask task : attention_tasks_) {
    task.scratch = member_scratch_[0].as<float>();
    kernels_.join_attention(task, task.part_state);
  }
}

}  // namespace forerun
