// What attention over keys and values of both types has in common: which positions a query sees,
// the softmax of a part, and the joining of parts. Attention by blocks of kAttentionThreads
// threads.
#ifndef FORERUN_CUDA_OPS_ATTENTION_SOFTMAX_CUH_
#define FORERUN_CUDA_OPS_ATTENTION_SOFTMAX_CUH_

#include "cuda/ops/activation.cuh"
#include "cuda/ops/attention.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {

inline constexpr int kWarps = 4;
inline constexpr int kAttentionThreads = kWarps * kWarpSize;
static_assert(kTilePositions == kWarps * 16);

__device__ inline int Thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int Lane() { return Thread() % kWarpSize; }
__device__ inline int Warp() { return Thread() / kWarpSize; }

struct Range {
  int begin;
  int end;
};
__device__ inline Range Intersect(Range a, Range b) {
  return {max(a.begin, b.begin), min(a.end, b.end)};
}

// What a tile has of keys and values, in this order: of its positions from `begin` on, then of
// slots of the tree. Without such slots the positions are all of the tile's.
struct Tile {
  int begin;
  int num_positions;
  int first_slot;  // by number
  int num_slots;

  __device__ bool has_tree() const { return num_slots > 0; }
  __device__ int num_entries() const { return num_positions + num_slots; }
};

// An item with what its task and its layer say of it.
struct Item {
  const AttentionTask& task;
  const KvLayer& layer;
  const AttentionItem item;
  const int num_group_heads;  // query heads that share a KV head
  const int kv_head;

  __device__ Item(const AttentionTask& task_, const KvLayer& layer_, int number, int kv_head_)
      : task(task_),
        layer(layer_),
        item(task_.items[number]),
        num_group_heads(task_.num_heads / layer_.num_kv_heads),
        kv_head(kv_head_) {}

  // Of query q of the block: its row, counted in the item, and its column in the matrices.
  __device__ int RowOf(int q) const { return (item.first_query + q) / num_group_heads; }
  __device__ int ColumnOf(int q) const {
    return (kv_head * num_group_heads + (item.first_query + q) % num_group_heads) * layer.head_dim;
  }
  __device__ int first_row() const { return RowOf(0); }
  __device__ int last_row() const { return RowOf(item.num_queries - 1); }

  // What a row with this end sees, and what a row of the item does.
  __device__ Range VisibleBefore(int end) const {
    const int begin = task.sliding_window > 0 ? end - task.sliding_window : 0;
    return {max(begin, task.first_position), end};
  }
  __device__ Range VisibleTo(int row) const {
    return VisibleBefore(has_tree() ? ends()[row] : item.first_end + row);
  }
  __device__ bool Sees(int row, int position) const {
    const Range visible = VisibleTo(row);
    return position >= visible.begin && position < visible.end;
  }
  // What the rows see of a part together.
  __device__ Range PositionsOf(int part) const {
    return Intersect({VisibleBefore(item.least_end).begin, item.most_end},
                     {part * item.part_positions, (part + 1) * item.part_positions});
  }

  // The arrays of the tail.
  __device__ bool has_tree() const { return item.tail_position != kNoTail; }
  __device__ const std::int32_t* ends() const { return task.tails + item.tail; }
  __device__ const std::int32_t* levels() const { return ends() + item.num_rows; }
  __device__ const std::int32_t* slots() const { return levels() + item.num_levels + 1; }
  __device__ const std::int32_t* positions() const { return slots() + item.num_tail_slots; }
  // The number of the slot in which a row has a position of the tail.
  __device__ int NumberOf(int row, int position) const {
    return positions()[item.num_tail_slots + row * item.num_levels + position - item.tail_position];
  }

  __device__ Tile TileAt(int begin) const {
    Tile tile = {begin, kTilePositions, 0, 0};
    const int end = min(begin + kTilePositions, item.most_end);
    if (end <= item.tail_position) return tile;
    const int first = max(begin, item.tail_position);
    tile.num_positions = first - begin;
    tile.first_slot = levels()[first - item.tail_position];
    tile.num_slots = levels()[end - item.tail_position] - tile.first_slot;
    return tile;
  }
  // Which entry of the tile is a position that a row sees.
  __device__ int EntryOf(const Tile& tile, int row, int position) const {
    if (position < item.tail_position) return position - tile.begin;
    return tile.num_positions + NumberOf(row, position) - tile.first_slot;
  }
  // The position of an entry; -1: there is no such entry.
  __device__ int PositionOf(const Tile& tile, int entry) const {
    if (entry < tile.num_positions) return tile.begin + entry;
    if (entry >= tile.num_entries()) return -1;
    return positions()[tile.first_slot + entry - tile.num_positions];
  }
  // Whether it is an entry of the row of query q, before the row's end.
  __device__ bool IsOf(int q, const Tile& tile, int entry, int position) const {
    if (entry < tile.num_positions) return true;
    return q < item.num_queries &&
           NumberOf(RowOf(q), position) == tile.first_slot + entry - tile.num_positions;
  }
  // Where an entry lies; block -1: no row sees it.
  struct Slot {
    int block;
    int in_block;
  };
  __device__ Slot SlotOf(const Tile& tile, int entry, Range wanted) const {
    int slot = tile.begin + entry;
    if (entry >= tile.num_positions) {
      if (entry >= tile.num_entries()) return {-1, 0};
      slot = slots()[tile.first_slot + entry - tile.num_positions];
    } else if (slot < wanted.begin || slot >= wanted.end) {
      return {-1, 0};
    }
    return {task.block_tables[item.table + slot / layer.block_size], slot % layer.block_size};
  }
  // Of channel 0, in elements. Negative: no row sees it.
  __device__ std::int64_t OffsetOf(Slot slot) const {
    return slot.block < 0 ? -1 : layer.OffsetOf(slot.block, slot.in_block, kv_head);
  }

  __device__ bool has_states() const { return item.first_state >= 0; }
  __device__ float* StateOf(int part) const {
    return task.states + item.first_state +
           (part * layer.num_kv_heads + kv_head) * StateFloats(layer.head_dim, item.num_queries);
  }
  // Channel 0 of query q in the output.
  __device__ float* OutputOf(int q) const {
    return task.out + (item.first_row + RowOf(q)) * task.out_stride + ColumnOf(q);
  }
};

// Of every query, over a part's tiles so far: the maximum score and the sum of weights; and by how
// much the last tile scaled what was summed before.
template <int kQueries>
struct Softmax {
  float max[kQueries];
  float sum[kQueries];
  float rescale[kQueries];
};

// By what a query's sums so far and a part's are multiplied where they are joined. Both the block
// that takes all parts and the one that joins states go through Join and Joined.
struct JoinScales {
  float before;
  float part;
};
// Joins a part's maximum and weight to those so far.
__device__ inline JoinScales Join(float part_max, float part_weight, float& max, float& weight) {
  const float after = fmaxf(max, part_max);
  const JoinScales scales = {max == after ? 1.0f : expf(max - after),
                             part_max == after ? 1.0f : expf(part_max - after)};
  weight = fmaf(weight, scales.before, part_weight * scales.part);
  max = after;
  return scales;
}
__device__ inline float Joined(float sum, float part_sum, JoinScales scales) {
  return fmaf(sum, scales.before, part_sum * scales.part);
}

// Where a query's weights of a tile's positions go.
__device__ inline void StoreWeight(float* to, float weight) { *to = weight; }
__device__ inline void StoreWeight(__nv_bfloat16* to, float weight) {
  *to = __float2bfloat16_rn(weight);
}

// Turns the scores of a tile, a row of kStride floats each, into weights, by warp, of which
// scaled(weight, row, position) is stored. Those of positions that a query does not see become 0. A
// test has an Item of its own.
template <int kStride, int kWeightStride, int kQueries, typename AnyItem, typename Weight,
          typename Scaled>
__device__ void WeighScores(const AnyItem& item, int tile_begin, const float* scores,
                            Softmax<kQueries>& softmax, Weight* weights, const Scaled& scaled) {
  for (int q = Warp(); q < item.item.num_queries; q += kWarps) {
    const int row = item.RowOf(q);
    float score[2];
    bool sees[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int position = tile_begin + i * kWarpSize + Lane();
      sees[i] = item.Sees(row, position);
      score[i] = -INFINITY;
      if (sees[i]) {
        score[i] = scores[q * kStride + i * kWarpSize + Lane()] * item.task.scale;
        if (item.task.soft_cap > 0.0f) score[i] = CapSoftly(score[i], item.task.soft_cap);
      }
    }
    // A NaN is no maximum, and stays in the sum.
    float tile_max = fmaxf(score[0], score[1]);
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      tile_max = fmaxf(tile_max, __shfl_xor_sync(kFullWarp, tile_max, mask));
    }
    const float before = softmax.max[q];
    const float after = fmaxf(before, tile_max);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float weight = sees[i] ? expf(score[i] - after) : 0.0f;
      StoreWeight(weights + q * kWeightStride + i * kWarpSize + Lane(),
                  sees[i] ? scaled(weight, row, tile_begin + i * kWarpSize + Lane()) : 0.0f);
      sum += weight;
    }
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, mask);
    }
    __syncwarp();  // all lanes have read the maximum
    if (Lane() == 0) {
      const float rescale = before == after ? 1.0f : expf(before - after);
      softmax.rescale[q] = rescale;
      softmax.sum[q] = fmaf(softmax.sum[q], rescale, sum);
      softmax.max[q] = after;
    }
  }
}

// Of every query, over the parts so far, where a block takes all of them: maximum and weight, and
// the scales of the last join. The sums so far are in the output.
template <int kQueries>
struct Totals {
  float max[kQueries];
  float weight[kQueries];
  float before[kQueries];
  float part[kQueries];
};

// Starts a part, or the totals before the first one. All threads.
template <int kQueries>
__device__ void StartPart(Softmax<kQueries>& softmax) {
  for (int q = Thread(); q < kQueries; q += kAttentionThreads) {
    softmax.max[q] = -INFINITY;
    softmax.sum[q] = 0.0f;
  }
}
template <int kQueries>
__device__ void StartTotals(Totals<kQueries>& totals) {
  for (int q = Thread(); q < kQueries; q += kAttentionThreads) {
    totals.max[q] = -INFINITY;
    totals.weight[q] = 0.0f;
  }
}

// After a part's tiles: joins its softmax to the totals, or writes it to its state. All threads;
// those that start a part finish its softmax. A barrier follows.
template <int kQueries>
__device__ void FinishSoftmax(const Item& item, int part, const Softmax<kQueries>& softmax,
                              Totals<kQueries>& totals) {
  const int num_queries = item.item.num_queries;
  for (int q = Thread(); q < num_queries; q += kAttentionThreads) {
    if (item.has_states()) {
      float* state = item.StateOf(part) + num_queries * item.layer.head_dim + q;
      state[0] = softmax.max[q];
      state[num_queries] = softmax.sum[q];
    } else {
      const JoinScales scales =
          Join(softmax.max[q], softmax.sum[q], totals.max[q], totals.weight[q]);
      totals.before[q] = scales.before;
      totals.part[q] = scales.part;
    }
  }
}

// Writes a part's sum of a query's channel where it belongs.
template <int kQueries>
__device__ void FinishSum(const Item& item, int part, const Totals<kQueries>& totals, int q,
                          int channel, float sum) {
  if (item.has_states()) {
    item.StateOf(part)[q * item.layer.head_dim + channel] = sum;
    return;
  }
  float* out = item.OutputOf(q) + channel;
  const float joined = Joined(part == 0 ? 0.0f : *out, sum, {totals.before[q], totals.part[q]});
  const bool is_last = part + 1 == item.item.num_parts;
  *out = is_last ? joined * (1.0f / totals.weight[q]) : joined;
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ATTENTION_SOFTMAX_CUH_
