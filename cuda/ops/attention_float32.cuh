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
  // 1].
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

__device__ inline void SumPart(const Item& item, int part, Float32Tiles& shared) {
  constexpr int kScoreStride = Float32Tiles::kScoreStride;
  const int num_queries = item.item.num_queries, head_dim = item.layer.head_dim;
  const int stride = head_dim + 1;
  const float* const queries = shared.queries();
  float* const sums = shared.sums(head_dim);
  float* const keys = shared.keys(head_dim);
  float* const values = shared.values(head_dim);
  for (int i = Thread(); i < num_queries * head_dim; i += kThreads) sums[i] = 0.0f;
  const Range all = item.PositionsOf(part);
  for (int tile = all.begin / kTilePositions * kTilePositions; tile < all.end;
       tile += kTilePositions) {
    __syncthreads();  // the tile before has been read
    const Range in_tile = Intersect(all, {tile, tile + kTilePositions});
    const int num_positions = in_tile.end - in_tile.begin;
    for (int i = Thread(); i < num_positions * head_dim; i += kThreads) {
      const int position = in_tile.begin + i / head_dim, channel = i % head_dim;
      const std::int64_t offset = item.OffsetOf(position) + channel;
      const int to = (position - tile) * stride + channel;
      keys[to] = static_cast<const float*>(item.layer.keys)[offset];
      values[to] = static_cast<const float*>(item.layer.values)[offset];
    }
    __syncthreads();
    for (int i = Thread(); i < num_queries * num_positions; i += kThreads) {
      const int q = i / num_positions, p = in_tile.begin - tile + i % num_positions;
      float score = 0.0f;
      for (int c = 0; c < head_dim; ++c) {
        score = fmaf(queries[q * head_dim + c], keys[p * stride + c], score);
      }
      shared.scores[q * kScoreStride + p] = score;
    }
    __syncthreads();
    WeighScores<kScoreStride, kScoreStride>(item, tile, shared.scores, shared.softmax,
                                            shared.weights);
    __syncthreads();
    for (int i = Thread(); i < num_queries * head_dim; i += kThreads) {
      const int q = i / head_dim, c = i % head_dim;
      const Range seen = Intersect(in_tile, item.VisibleTo(item.RowOf(q)));
      float sum = sums[i] * shared.softmax.rescale[q];
      for (int p = seen.begin - tile; p < seen.end - tile; ++p) {
        sum = fmaf(shared.weights[q * kScoreStride + p], values[p * stride + c], sum);
      }
      sums[i] = sum;
    }
  }
}

static __global__ void __launch_bounds__(kThreads)
    AttendFloat32(const __grid_constant__ AttentionTask task,
                  const __grid_constant__ KvLayer layer) {
  Float32Tiles& shared = *static_cast<Float32Tiles*>(DynamicShared());
  const AttentionRun run = task.runs[blockIdx.x];
  const Item item(task, layer, run.item, static_cast<int>(blockIdx.y));
  const int num_queries = item.item.num_queries, head_dim = layer.head_dim;
  for (int i = Thread(); i < num_queries * head_dim; i += kThreads) {
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
    for (int i = Thread(); i < num_queries * head_dim; i += kThreads) {
      FinishSum(item, part, shared.totals, i / head_dim, i % head_dim, shared.sums(head_dim)[i]);
    }
    __syncthreads();
  }
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ATTENTION_FLOAT32_CUH_
