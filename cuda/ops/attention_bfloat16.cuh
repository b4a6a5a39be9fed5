// Attention over keys and values of bfloat16, with products on the tensor cores: queries and
// weights are rounded to bfloat16.
#ifndef FORERUN_CUDA_OPS_ATTENTION_BFLOAT16_CUH_
#define FORERUN_CUDA_OPS_ATTENTION_BFLOAT16_CUH_

#include "cuda/ops/attention_softmax.cuh"

namespace forerun::cuda {

inline constexpr int kQueriesPerTile = 16;  // of MultiplyAdd
static_assert(kQueriesPerTile == kFewQueries);

template <int kDim, int kMTiles>
struct BFloat16Tiles {
  static constexpr int kQueries = kMTiles * kQueriesPerTile;
  static constexpr int kStride = kDim + 8;  // rows begin in different banks
  static constexpr int kScoreStride = kTilePositions + 4;
  static constexpr int kWeightStride = kTilePositions + 8;

  __nv_bfloat16 queries[kQueries * kStride];
  __nv_bfloat16 keys[kTilePositions * kStride];
  __nv_bfloat16 values[kTilePositions * kStride];
  __nv_bfloat16 weights[kQueries * kWeightStride];
  float scores[kQueries * kScoreStride];
  Softmax<kQueries> softmax;
  Totals<kQueries> totals;
  int has_nonfinite;
};

__device__ inline unsigned WordAt(const __nv_bfloat16* p) {
  return *reinterpret_cast<const unsigned*>(p);
}

__device__ inline bool IsNonfinite(unsigned pair) {
  return (pair & 0x7f80u) == 0x7f80u || (pair & 0x7f800000u) == 0x7f800000u;
}

// Eight channels of a position from `channel` on, 0 past the last one.
__device__ inline uint4 LoadChannels(const __nv_bfloat16* position, int channel, int head_dim) {
  if (head_dim % 8 == 0) return *reinterpret_cast<const uint4*>(position + channel);
  unsigned words[4] = {};  // whole positions are not aligned
  for (int i = 0; i < 8 && channel + i < head_dim; ++i) {
    const unsigned bits = __bfloat16_as_ushort(position[channel + i]);
    words[i / 2] |= bits << i % 2 * 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

// A tile's keys or values into shared memory, 0 for positions outside `wanted` and for channels
// that there are not. Returns whether the thread met a NaN or an infinity.
template <int kStride, int kDim>
__device__ bool LoadTile(const Item& item, const void* elements, int tile_begin, Range wanted,
                         __nv_bfloat16* to) {
  constexpr int kChunk = 8, kChunks = kDim / kChunk;  // 16 bytes
  const int head_dim = item.layer.head_dim;
  bool is_nonfinite = false;
  for (int i = Thread(); i < kTilePositions * kChunks; i += kThreads) {
    const int position = tile_begin + i / kChunks, channel = i % kChunks * kChunk;
    uint4 words = {0, 0, 0, 0};
    if (position >= wanted.begin && position < wanted.end && channel < head_dim) {
      words = LoadChannels(static_cast<const __nv_bfloat16*>(elements) + item.OffsetOf(position),
                           channel, head_dim);
    }
    is_nonfinite |= IsNonfinite(words.x) || IsNonfinite(words.y) || IsNonfinite(words.z) ||
                    IsNonfinite(words.w);
    *reinterpret_cast<uint4*>(to + i / kChunks * kStride + channel) = words;
  }
  return is_nonfinite;
}

// What a lane of MultiplyAdd holds of sixteen rows and sixteen columns from `rows` on.
template <int kStride>
__device__ void LoadRows(const __nv_bfloat16* rows, unsigned (&a)[4]) {
  const __nv_bfloat16* own = rows + Lane() / 4 * kStride + Lane() % 4 * 2;
  a[0] = WordAt(own);
  a[1] = WordAt(own + 8 * kStride);
  a[2] = WordAt(own + 8);
  a[3] = WordAt(own + 8 * kStride + 8);
}

// Scores of the tile: a warp has sixteen positions.
template <int kDim, int kMTiles>
__device__ void ScoreTile(BFloat16Tiles<kDim, kMTiles>& shared) {
  using Tiles = BFloat16Tiles<kDim, kMTiles>;
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
  float sums[kMTiles][2][4] = {};
  for (int k = 0; k < kDim; k += 16) {
    unsigned keys[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const __nv_bfloat16* own =
          shared.keys + (Warp() * 16 + n * 8 + group) * Tiles::kStride + k + pair;
      keys[n][0] = WordAt(own);
      keys[n][1] = WordAt(own + 8);
    }
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      unsigned queries[4];
      LoadRows<Tiles::kStride>(shared.queries + m * kQueriesPerTile * Tiles::kStride + k, queries);
#pragma unroll
      for (int n = 0; n < 2; ++n) MultiplyAdd(sums[m][n], queries, keys[n]);
    }
  }
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int q = m * kQueriesPerTile + group + e / 2 * 8;
        shared.scores[q * Tiles::kScoreStride + Warp() * 16 + n * 8 + pair + e % 2] = sums[m][n][e];
      }
    }
  }
}

// Adds weights times values to the sums of all queries, or of those of one row, which first are
// rescaled: a warp has a quarter of the channels.
template <int kDim, int kMTiles>
__device__ void SumTile(const Item& item, BFloat16Tiles<kDim, kMTiles>& shared, int only_row,
                        float (&sums)[kMTiles][kDim / kWarps / 8][4]) {
  using Tiles = BFloat16Tiles<kDim, kMTiles>;
  constexpr int kNTiles = kDim / kWarps / 8;
  static_assert(kNTiles % 2 == 0);
  const int group = Lane() / 4;
  const int first_channel = Warp() * (kDim / kWarps);
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
    bool is_own[2];
    float rescale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int q = m * kQueriesPerTile + group + i * 8;
      is_own[i] = q < item.item.num_queries && (only_row < 0 || item.RowOf(q) == only_row);
      rescale[i] = is_own[i] ? shared.softmax.rescale[q] : 1.0f;
    }
    unsigned weights[kTilePositions / 16][4];
#pragma unroll
    for (int k = 0; k < kTilePositions / 16; ++k) {
      LoadRows<Tiles::kWeightStride>(
          shared.weights + m * kQueriesPerTile * Tiles::kWeightStride + k * 16, weights[k]);
    }
#pragma unroll
    for (int n = 0; n < kNTiles; n += 2) {
      float added[2][4];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        added[e / 4][e % 4] = sums[m][n + e / 4][e % 4] * rescale[e % 4 / 2];
      }
#pragma unroll
      for (int k = 0; k < kTilePositions / 16; ++k) {
        // Positions k * 16 + 0..7 and + 8..15 of eight channels, then of the next eight.
        unsigned values[4];
        LoadTransposed(values, shared.values + (k * 16 + Lane() % 16) * Tiles::kStride +
                                   first_channel + n * 8 + Lane() / 16 * 8);
        const unsigned first[2] = {values[0], values[1]}, second[2] = {values[2], values[3]};
        MultiplyAdd(added[0], weights[k], first);
        MultiplyAdd(added[1], weights[k], second);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (is_own[e % 4 / 2]) sums[m][n + e / 4][e % 4] = added[e / 4][e % 4];
      }
    }
  }
}

// A part's tiles.
template <int kDim, int kMTiles>
__device__ void SumPart(const Item& item, int part, BFloat16Tiles<kDim, kMTiles>& shared,
                        float (&sums)[kMTiles][kDim / kWarps / 8][4]) {
  using Tiles = BFloat16Tiles<kDim, kMTiles>;
  const Range all = item.PositionsOf(part);
  const Range common = {item.VisibleTo(item.last_row()).begin,
                        item.VisibleTo(item.first_row()).end};  // what every row sees
  for (int tile = all.begin / kTilePositions * kTilePositions; tile < all.end;
       tile += kTilePositions) {
    __syncthreads();  // the tile before has been read
    if (Thread() == 0) shared.has_nonfinite = 0;
    LoadTile<Tiles::kStride, kDim>(item, item.layer.keys, tile, all, shared.keys);
    __syncthreads();
    if (LoadTile<Tiles::kStride, kDim>(item, item.layer.values, tile, all, shared.values)) {
      atomicOr(&shared.has_nonfinite, 1);
    }
    ScoreTile<kDim, kMTiles>(shared);
    __syncthreads();
    WeighScores<Tiles::kScoreStride, Tiles::kWeightStride>(item, tile, shared.scores,
                                                           shared.softmax, shared.weights);
    __syncthreads();
    const Range in_tile = Intersect(all, {tile, tile + kTilePositions});
    if (shared.has_nonfinite == 0 || (common.begin <= in_tile.begin && in_tile.end <= common.end)) {
      SumTile<kDim, kMTiles>(item, shared, /*only_row=*/-1, sums);
    } else {
      // A weight of 0 would not keep a NaN away: one row after the other, with what it sees.
      for (int row = item.first_row(); row <= item.last_row(); ++row) {
        __syncthreads();
        LoadTile<Tiles::kStride, kDim>(item, item.layer.values, tile,
                                       Intersect(all, item.VisibleTo(row)), shared.values);
        __syncthreads();
        SumTile<kDim, kMTiles>(item, shared, row, sums);
      }
    }
  }
}

template <int kDim, int kMTiles>
__global__ void __launch_bounds__(kThreads)
    AttendBFloat16(const __grid_constant__ AttentionTask task,
                   const __grid_constant__ KvLayer layer) {
  using Tiles = BFloat16Tiles<kDim, kMTiles>;
  constexpr int kNTiles = kDim / kWarps / 8;
  Tiles& shared = *static_cast<Tiles*>(DynamicShared());
  const AttentionRun run = task.runs[blockIdx.x];
  const Item item(task, layer, run.item, static_cast<int>(blockIdx.y));
  const int num_queries = item.item.num_queries, head_dim = layer.head_dim;
  for (int i = Thread(); i < Tiles::kQueries * kDim; i += kThreads) {
    const int q = i / kDim, channel = i % kDim;
    float x = 0.0f;
    if (q < num_queries && channel < head_dim) {
      x = task.query[(item.item.first_row + item.RowOf(q)) * task.query_stride + item.ColumnOf(q) +
                     channel];
    }
    shared.queries[q * Tiles::kStride + channel] = __float2bfloat16_rn(x);
  }
  for (int i = Thread(); i < Tiles::kQueries * kTilePositions; i += kThreads) {
    shared.weights[i / kTilePositions * Tiles::kWeightStride + i % kTilePositions] =
        __float2bfloat16_rn(0.0f);
  }
  StartTotals(shared.totals);
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
  for (int part = run.first_part; part < run.first_part + run.num_parts; ++part) {
    float sums[kMTiles][kNTiles][4] = {};
    StartPart(shared.softmax);
    SumPart<kDim, kMTiles>(item, part, shared, sums);
    FinishSoftmax(item, part, shared.softmax, shared.totals);
    __syncthreads();
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int q = m * kQueriesPerTile + group + e / 2 * 8;
          const int channel = Warp() * (kDim / kWarps) + n * 8 + pair + e % 2;
          if (q < num_queries && channel < head_dim) {
            FinishSum(item, part, shared.totals, q, channel, sums[m][n][e]);
          }
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ATTENTION_BFLOAT16_CUH_
