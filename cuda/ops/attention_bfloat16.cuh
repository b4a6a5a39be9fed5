// Attention over keys and values of bfloat16 or int8, with products on the tensor cores: queries
// and weights are rounded to bfloat16, which holds an int8 as it is. The scales of int8 keys
// multiply scores, those of values weights.
#ifndef FORERUN_CUDA_OPS_ATTENTION_BFLOAT16_CUH_
#define FORERUN_CUDA_OPS_ATTENTION_BFLOAT16_CUH_

#include "cuda/ops/attention_softmax.cuh"

namespace forerun::cuda {

inline constexpr int kQueriesPerTile = 16;  // of MultiplyAdd
static_assert(kQueriesPerTile == kFewQueries);

template <typename T>
inline constexpr bool kHasScales = false;
template <>
inline constexpr bool kHasScales<std::int8_t> = true;

// As many as there are scales.
template <int kCount>
struct EntryScales {
  float keys[kCount];
  float values[kCount];
};

template <typename T, int kDim, int kMTiles>
struct BFloat16Tiles {
  static constexpr int kQueries = kMTiles * kQueriesPerTile;
  static constexpr int kStride = kDim + 8;  // rows begin in different banks
  static constexpr int kScoreStride = kTilePositions + 4;
  static constexpr int kWeightStride = kTilePositions + 8;

  // Of a tile without a tree keys are in the first half of the entries and values in the second
  // one; with a tree both are in all of them, one after the other. Then comes an entry of 0.
  static constexpr int kNumEntries = kTilePositions + kMostTailSlots;
  static constexpr int kZeroEntry = kNumEntries;

  __nv_bfloat16 queries[kQueries * kStride];
  __nv_bfloat16 entries[(kNumEntries + 1) * kStride];
  std::int64_t offsets[kNumEntries];
  EntryScales<kHasScales<T> ? kNumEntries : 1> scales;
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

__device__ inline unsigned BFloat16BitsOf(unsigned byte) {
  const auto element = static_cast<std::int8_t>(byte);
  return __bfloat16_as_ushort(__float2bfloat16_rn(static_cast<float>(element)));
}
__device__ inline uint4 LoadChannels(const std::int8_t* position, int channel, int head_dim) {
  uint2 bytes = {0, 0};
  if (head_dim % 8 == 0) {
    bytes = *reinterpret_cast<const uint2*>(position + channel);
  } else {
    for (int i = 0; i < 8 && channel + i < head_dim; ++i) {
      const unsigned byte = static_cast<std::uint8_t>(position[channel + i]);
      (i < 4 ? bytes.x : bytes.y) |= byte << i % 4 * 8;
    }
  }
  const auto pair = [](unsigned two) {
    return BFloat16BitsOf(two) | BFloat16BitsOf(two >> 8) << 16;
  };
  return {pair(bytes.x), pair(bytes.x >> 16), pair(bytes.y), pair(bytes.y >> 16)};
}

// Keys or values of entries into shared memory, 0 for entries that no row sees and for channels
// that there are not. Returns whether the thread met a NaN or an infinity.
template <typename T, int kStride, int kDim>
__device__ bool LoadEntries(const Item& item, const void* elements, const std::int64_t* offsets,
                            int num_entries, __nv_bfloat16* to) {
  constexpr int kChunk = 8, kChunks = kDim / kChunk;  // 16 bytes
  const int head_dim = item.layer.head_dim;
  bool is_nonfinite = false;
  for (int i = Thread(); i < num_entries * kChunks; i += kAttentionThreads) {
    const int entry = i / kChunks, channel = i % kChunks * kChunk;
    const std::int64_t offset = offsets[entry];
    uint4 words = {0, 0, 0, 0};
    if (offset >= 0 && channel < head_dim) {
      words = LoadChannels(static_cast<const T*>(elements) + offset, channel, head_dim);
    }
    is_nonfinite |= IsNonfinite(words.x) || IsNonfinite(words.y) || IsNonfinite(words.z) ||
                    IsNonfinite(words.w);
    *reinterpret_cast<uint4*>(to + entry * kStride + channel) = words;
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

// Scores of a tile's entries from `first` on, a warp has sixteen of them, to where the positions of
// the tile are.
template <typename T, int kDim, int kMTiles>
__device__ void ScoreEntries(const Item& item, const Tile& tile, int first,
                             BFloat16Tiles<T, kDim, kMTiles>& shared) {
  using Tiles = BFloat16Tiles<T, kDim, kMTiles>;
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
  first += Warp() * 16;
  float sums[kMTiles][2][4] = {};
  for (int k = 0; k < kDim; k += 16) {
    unsigned keys[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const __nv_bfloat16* own =
          shared.entries + (first + n * 8 + group) * Tiles::kStride + k + pair;
      keys[n][0] = WordAt(own);
      keys[n][1] = WordAt(own + 8);
    }
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      if (m * kQueriesPerTile >= item.item.num_queries) break;
      unsigned queries[4];
      LoadRows<Tiles::kStride>(shared.queries + m * kQueriesPerTile * Tiles::kStride + k, queries);
#pragma unroll
      for (int n = 0; n < 2; ++n) MultiplyAdd(sums[m][n], queries, keys[n]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int entry = first + i / 2 * 8 + pair + i % 2;
    const int position = item.PositionOf(tile, entry);
    if (position < 0) continue;
    const float scale = kHasScales<T> ? shared.scales.keys[entry] : 1.0f;
#pragma unroll
    for (int h = 0; h < 2 * kMTiles; ++h) {
      const int q = h * 8 + group;
      if (item.IsOf(q, tile, entry, position)) {
        shared.scores[q * Tiles::kScoreStride + position - tile.begin] =
            sums[h / 2][i / 2][h % 2 * 2 + i % 2] * scale;
      }
    }
  }
}

// In which entries a lane of LoadTransposed finds the values of a tile's positions.
struct ValueEntries {
  int of[kTilePositions / 16];
};
__device__ inline int PositionOfLane(int k) { return k * 16 + Lane() % 16; }
__device__ inline ValueEntries EntriesInOrder(int first) {
  ValueEntries entries;
#pragma unroll
  for (int k = 0; k < kTilePositions / 16; ++k) entries.of[k] = first + PositionOfLane(k);
  return entries;
}
// Of those that a row sees: a weight of 0 would not keep a NaN of others away.
__device__ inline ValueEntries EntriesOf(const Item& item, const Tile& tile, int row, int first,
                                         int zero_entry) {
  const Range visible = item.VisibleTo(row);
  ValueEntries entries;
#pragma unroll
  for (int k = 0; k < kTilePositions / 16; ++k) {
    const int position = tile.begin + PositionOfLane(k);
    entries.of[k] = position >= visible.begin && position < visible.end
                        ? first + item.EntryOf(tile, row, position)
                        : zero_entry;
  }
  return entries;
}

// Adds weights times values to the sums of queries [begin, end), which first are rescaled: a warp
// has a quarter of the channels.
template <typename T, int kDim, int kMTiles>
__device__ void SumEntries(const ValueEntries& entries, Range queries,
                           BFloat16Tiles<T, kDim, kMTiles>& shared,
                           float (&sums)[kMTiles][kDim / kWarps / 8][4]) {
  using Tiles = BFloat16Tiles<T, kDim, kMTiles>;
  constexpr int kNTiles = kDim / kWarps / 8;
  static_assert(kNTiles % 2 == 0);
  const int group = Lane() / 4;
  const int first_channel = Warp() * (kDim / kWarps) + Lane() / 16 * 8;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
    if (m * kQueriesPerTile >= queries.end || (m + 1) * kQueriesPerTile <= queries.begin) continue;
    bool is_own[2];
    float rescale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int q = m * kQueriesPerTile + group + i * 8;
      is_own[i] = q >= queries.begin && q < queries.end;
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
        LoadTransposed(values,
                       shared.entries + entries.of[k] * Tiles::kStride + first_channel + n * 8);
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

// Adds a tile, whose values are in the entries from `first` on, to the sums.
template <typename T, int kDim, int kMTiles>
__device__ void SumTile(const Item& item, const Tile& tile, int first, bool by_row,
                        BFloat16Tiles<T, kDim, kMTiles>& shared,
                        float (&sums)[kMTiles][kDim / kWarps / 8][4]) {
  const Range all = {0, item.item.num_queries};
  if (!by_row) return SumEntries<T, kDim, kMTiles>(EntriesInOrder(first), all, shared, sums);
  for (int row = item.first_row(); row <= item.last_row(); ++row) {
    const int begin = row * item.num_group_heads - item.item.first_query;
    SumEntries<T, kDim, kMTiles>(
        EntriesOf(item, tile, row, first, BFloat16Tiles<T, kDim, kMTiles>::kZeroEntry),
        Intersect(all, {begin, begin + item.num_group_heads}), shared, sums);
  }
}

// Of the thread's entry.
template <int kCount>
__device__ void LoadScales(const Item& item, Item::Slot slot, EntryScales<kCount>& scales) {
  float key = 0.0f, value = 0.0f;
  if (slot.block >= 0) {
    const std::int64_t offset = item.layer.ScaleOffsetOf(slot.block, slot.in_block, item.kv_head);
    key = *reinterpret_cast<const float*>(static_cast<const char*>(item.layer.keys) + offset);
    value = *reinterpret_cast<const float*>(static_cast<const char*>(item.layer.values) + offset);
  }
  scales.keys[Thread()] = key;
  scales.values[Thread()] = value;
}

// A part's tiles.
template <typename T, int kDim, int kMTiles, typename AnyItem>
__device__ void SumPart(const AnyItem& item, int part, BFloat16Tiles<T, kDim, kMTiles>& shared,
                        float (&sums)[kMTiles][kDim / kWarps / 8][4]) {
  using Tiles = BFloat16Tiles<T, kDim, kMTiles>;
  const Range all = item.PositionsOf(part);
  const Range common = {item.VisibleBefore(item.item.most_end).begin,
                        item.item.least_end};  // what every row sees
  for (int begin = all.begin / kTilePositions * kTilePositions; begin < all.end;
       begin += kTilePositions) {
    const Tile tile = item.TileAt(begin);
    const int num_pages = (tile.num_entries() + kTilePositions - 1) / kTilePositions;
    const int values = tile.has_tree() ? 0 : kTilePositions;
    static_assert(Tiles::kNumEntries == kAttentionThreads);
    const Item::Slot slot = item.SlotOf(tile, Thread(), all);
    shared.offsets[Thread()] = item.OffsetOf(slot);
    if constexpr (kHasScales<T>) LoadScales(item, slot, shared.scales);
    __syncthreads();  // the tile before has been read
    if (Thread() == 0) shared.has_nonfinite = 0;
    LoadEntries<T, Tiles::kStride, kDim>(item, item.layer.keys, shared.offsets,
                                         num_pages * kTilePositions, shared.entries);
    __syncthreads();
    const auto load_values = [&] {
      if (LoadEntries<T, Tiles::kStride, kDim>(item, item.layer.values, shared.offsets,
                                               num_pages * kTilePositions,
                                               shared.entries + values * Tiles::kStride)) {
        atomicOr(&shared.has_nonfinite, 1);
      }
    };
    if (!tile.has_tree()) load_values();
    for (int page = 0; page < num_pages; ++page) {
      ScoreEntries<T, kDim, kMTiles>(item, tile, page * kTilePositions, shared);
    }
    __syncthreads();
    if (tile.has_tree()) load_values();
    const auto scaled = [&](float weight, int row, int position) {
      if constexpr (kHasScales<T>) {
        return weight * shared.scales.values[item.EntryOf(tile, row, position)];
      }
      return weight;
    };
    WeighScores<Tiles::kScoreStride, Tiles::kWeightStride>(item, tile.begin, shared.scores,
                                                           shared.softmax, shared.weights, scaled);
    __syncthreads();
    const Range in_tile = Intersect(all, {begin, begin + kTilePositions});
    const bool all_see_all = common.begin <= in_tile.begin && in_tile.end <= common.end;
    const bool by_row = tile.has_tree() || (shared.has_nonfinite != 0 && !all_see_all);
    SumTile<T, kDim, kMTiles>(item, tile, values, by_row, shared, sums);
  }
}

template <typename T, int kDim, int kMTiles, typename AnyItem = Item>
__global__ void __launch_bounds__(kAttentionThreads, kMTiles == 1 && kDim <= 128 ? 4 : 2)
    AttendBFloat16(const __grid_constant__ AttentionTask task,
                   const __grid_constant__ KvLayer layer) {
  using Tiles = BFloat16Tiles<T, kDim, kMTiles>;
  constexpr int kNTiles = kDim / kWarps / 8;
  Tiles& shared = *static_cast<Tiles*>(DynamicShared());
  const AttentionRun run = task.runs[blockIdx.x];
  if (run.item == kNoItem) return;
  const AnyItem item(task, layer, run.item, static_cast<int>(blockIdx.y));
  const int num_queries = item.item.num_queries, head_dim = layer.head_dim;
  for (int i = Thread(); i < Tiles::kQueries * kDim; i += kAttentionThreads) {
    const int q = i / kDim, channel = i % kDim;
    float x = 0.0f;
    if (q < num_queries && channel < head_dim) {
      x = task.query[(item.item.first_row + item.RowOf(q)) * task.query_stride + item.ColumnOf(q) +
                     channel];
    }
    shared.queries[q * Tiles::kStride + channel] = __float2bfloat16_rn(x);
  }
  for (int i = Thread(); i < Tiles::kQueries * kTilePositions; i += kAttentionThreads) {
    shared.weights[i / kTilePositions * Tiles::kWeightStride + i % kTilePositions] =
        __float2bfloat16_rn(0.0f);
  }
  for (int i = Thread(); i < Tiles::kStride; i += kAttentionThreads) {
    shared.entries[Tiles::kZeroEntry * Tiles::kStride + i] = __float2bfloat16_rn(0.0f);
  }
  StartTotals(shared.totals);
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
  for (int part = run.first_part; part < run.first_part + run.num_parts; ++part) {
    float sums[kMTiles][kNTiles][4] = {};
    StartPart(shared.softmax);
    SumPart<T, kDim, kMTiles>(item, part, shared, sums);
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
