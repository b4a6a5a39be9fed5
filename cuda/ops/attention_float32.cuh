// Attention over keys and values of float32.
#ifndef FORERUN_CUDA_OPS_ATTENTION_FLOAT32_CUH_
#define FORERUN_CUDA_OPS_ATTENTION_FLOAT32_CUH_

#include <cstddef>

#include "cuda/ops/attention_softmax.cuh"

namespace forerun::cuda {

struct Float32Tiles {
  static constexpr int kQueries = kFewQueries;
  static constexpr int kScoreStride = kTilePositions;

  float scores[kQueries * kScoreStride];
  float weights[kQueries * kScoreStride];
  Softmax<kQueries> softmax;
  Totals<kQueries> totals;

  // After it: queries and sums [kQueries, head_dim], keys and values [kTilePositions, head_dim +
  // 1], or both for the entries of a tile with a tree, one after the other.
  __device__ float* queries() { return reinterpret_cast<float*>(this + 1); }
  __device__ float* sums(int head_dim) { return queries() + kQueries * head_dim; }
  __device__ float* keys(int head_dim) { return sums(head_dim) + kQueries * head_dim; }
  __device__ float* values(int head_dim) {
    return keys(head_dim) + kTilePositions * (head_dim + 1);
  }
  static std::size_t SharedBytes(int head_dim) {
    return sizeof(Float32Tiles) +
           sizeof(float) * (2 * kQueries * head_dim + 2 * kTilePositions * (head_dim + 1));
  }
};

// Keys or values of a tile's entries that rows see.
__device__ inline void LoadEntries(const Item& item, const Tile& tile, Range wanted,
                                   const void* elements, float* to) {
  const int head_dim = item.layer.head_dim;
  for (int i = Thread(); i < tile.num_entries() * head_dim; i += kAttentionThreads) {
    const int entry = i / head_dim, channel = i % head_dim;
    const std::int64_t offset = item.OffsetOf(item.SlotOf(tile, entry, wanted));
    if (offset < 0) continue;
    to[entry * (head_dim + 1) + channel] = static_cast<const float*>(elements)[offset + channel];
  }
}

__device__ inline void SumPart(const Item& item, int part, Float32Tiles& shared) {
  constexpr int kScoreStride = Float32Tiles::kScoreStride;
  const int num_queries = item.item.num_queries, head_dim = item.layer.head_dim;
  const int stride = head_dim + 1;
  const float* const queries = shared.queries();
  float* const sums = shared.sums(head_dim);
  float* const keys = shared.keys(head_dim);
  for (int i = Thread(); i < num_queries * head_dim; i += kAttentionThreads) sums[i] = 0.0f;
  const Range all = item.PositionsOf(part);
  for (int begin = all.begin / kTilePositions * kTilePositions; begin < all.end;
       begin += kTilePositions) {
    const Tile tile = item.TileAt(begin);
    float* const values = tile.has_tree() ? keys : shared.values(head_dim);
    __syncthreads();  // the tile before has been read
    LoadEntries(item, tile, all, item.layer.keys, keys);
    if (!tile.has_tree()) LoadEntries(item, tile, all, item.layer.values, values);
    __syncthreads();
    const Range in_tile = Intersect(all, {begin, begin + kTilePositions});
    const int num_positions = in_tile.end - in_tile.begin;
    for (int i = Thread(); i < num_queries * num_positions; i += kAttentionThreads) {
      const int q = i / num_positions, position = in_tile.begin + i % num_positions;
      const int row = item.RowOf(q);
      const Range visible = item.VisibleTo(row);
      if (position < visible.begin || position >= visible.end) continue;
      const float* key = keys + item.EntryOf(tile, row, position) * stride;
      float score = 0.0f;
      for (int c = 0; c < head_dim; ++c) score = fmaf(queries[q * head_dim + c], key[c], score);
      shared.scores[q * kScoreStride + position - begin] = score;
    }
    __syncthreads();
    if (tile.has_tree()) LoadEntries(item, tile, all, item.layer.values, values);
    WeighScores<kScoreStride, kScoreStride>(item, begin, shared.scores, shared.softmax,
                                            shared.weights,
                                            [](float weight, int, int) { return weight; });
    __syncthreads();
    for (int i = Thread(); i < num_queries * head_dim; i += kAttentionThreads) {
      const int q = i / head_dim, c = i % head_dim;
      const int row = item.RowOf(q);
      const Range seen = Intersect(in_tile, item.VisibleTo(row));
      float sum = sums[i] * shared.softmax.rescale[q];
      for (int p = seen.begin; p < seen.end; ++p) {
        sum = fmaf(shared.weights[q * kScoreStride + p - begin],
                   values[item.EntryOf(tile, row, p) * stride + c], sum);
      }
      sums[i] = sum;
    }
  }
}

static __global__ void __launch_bounds__(kAttentionThreads)
    AttendFloat32(const __grid_constant__ AttentionTask task,
                  const __grid_constant__ KvLayer layer) {
  Float32Tiles& shared = *static_cast<Float32Tiles*>(DynamicShared());
  const AttentionRun run = task.runs[blockIdx.x];
  if (run.item == kNoItem) return;
  const Item item(task, layer, run.item, static_cast<int>(blockIdx.y));
  const int num_queries = item.item.num_queries, head_dim = layer.head_dim;
  for (int i = Thread(); i < num_queries * head_dim; i += kAttentionThreads) {
    const int q = i / head_dim;
    shared.queries()[i] = task.query[(item.item.first_row + item.RowOf(q)) * task.query_stride +
                                     item.ColumnOf(q) + i % head_dim];
  }
  StartTotals(shared.totals);
  for (int part = run.first_part; part < run.first_part + run.num_parts; ++part) {
    StartPart(shared.softmax);
    SumPart(item, part, shared);
    FinishSoftmax(item, part, shared.softmax, shared.totals);
    __syncthreads();
    for (int i = Thread(); i < num_queries * head_dim; i += kAttentionThreads) {
      FinishSum(item, part, shared.totals, i / head_dim, i % head_dim, shared.sums(head_dim)[i]);
    }
    __syncthreads();
  }
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ATTENTION_FLOAT32_CUH_
