// Attention over the paged cache.
//
// A query's result depends on its own positions alone. These fall into tiles of kTilePositions by
// logical position, which are taken one after the other, and into parts, whose size depends on the
// query's own position and which are joined in order: by the block that has taken all of them, or
// from states that blocks have written. A position that a query does not see is never multiplied by
// anything of that query: its slot may hold a NaN.
#ifndef FORERUN_CUDA_OPS_ATTENTION_H_
#define FORERUN_CUDA_OPS_ATTENTION_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/ops/kv_layer.h"

namespace forerun::cuda {

inline constexpr int kTilePositions = 64;
inline constexpr int kMaxHeadDim = 256;
inline constexpr std::int32_t kNoTail = 0x7fffffff;

// Of a query that sees the positions before `end`. Small parts give a short sequence blocks enough
// to keep a GPU busy; large ones keep the states of a long one few.
inline constexpr int PartPositions(int end) {
  return kTilePositions * (end <= 4096 ? 1 : end <= 8192 ? 2 : 4);
}

// Consecutive rows of a sequence that share a block, with parts of one size. Query i of an item is
// head (first_query + i) % G of row (first_query + i) / G, where G heads share a KV head. Row 0 is
// row `first_row` of the matrices.
//
// The rows see the positions before their ends. Without a tree, position p is slot p and row i ends
// at first_end + i. With one, positions from tail_position on are in slots of the tree, other ones
// for each path; those that rows see are numbered by position, and lie at tails + tail as
//
//   ends    [rows]                 of the rows
//   levels  [num_levels + 1]       number of the first slot at position tail_position + i
//   slots, then their positions  [num_tail_slots] each
//   paths   [rows, num_levels]     numbers of the slots that a row sees, by position; -1 past them
struct AttentionItem {
  std::int32_t first_row;
  std::int32_t first_query;
  std::int32_t num_queries;
  std::int32_t table;  // where its block table begins
  std::int32_t first_end;
  std::int32_t least_end;
  std::int32_t most_end;
  std::int32_t tail_position;  // kNoTail: no tree
  std::int32_t tail;
  std::int32_t num_rows;  // in the arrays of the tail
  std::int32_t num_levels;
  std::int32_t num_tail_slots;
  std::int32_t part_positions;
  std::int32_t num_parts;  // [0, num_parts) hold all its positions
  // In floats, where the states of its parts begin. Negative: one block takes all parts and needs
  // no states.
  std::int32_t first_state;
};

// How many slots of a tree the rows of an item may see in a tile: with up to as many positions
// before the tree they fit where keys and values of a tile lie.
inline constexpr int kMostTailSlots = kTilePositions;

// Consecutive parts of an item that one block takes: all, or one, whose state it writes. Part i
// has positions [i * part_positions, (i + 1) * part_positions).
struct AttentionRun {
  std::int32_t item;  // kNoItem: the block has nothing to do
  std::int32_t first_part;
  std::int32_t num_parts;
};
inline constexpr std::int32_t kNoItem = -1;
inline constexpr AttentionRun kEmptyRun = {kNoItem, 0, 0};

// As many queries as an item may have room for, beside kFewQueries: sums must fit into registers.
inline constexpr int kFewQueries = 16;
inline constexpr int MostQueries(int head_dim, int element_bytes) {
  if (element_bytes == 4) return kFewQueries;
  return head_dim <= 128 ? 64 : 32;
}

// Floats of the state of a part and a KV head: for each query sums, then all maxima, then weights.
inline constexpr __host__ __device__ std::int64_t StateFloats(int head_dim, int num_queries) {
  return std::int64_t{num_queries} * (head_dim + 2);
}

// The shared memory that a block takes with elements of 4 bytes, for at most kFewQueries queries.
std::size_t Float32SharedBytes(int head_dim);

struct AttentionTask {
  const float* query = nullptr;  // [rows, num_heads * head_dim]
  std::int64_t query_stride = 0;
  float* out = nullptr;  // as query
  std::int64_t out_stride = 0;
  int num_heads = 0;
  float scale = 1.0f;
  float soft_cap = 0.0f;   // 0: none
  int sliding_window = 0;  // 0: none
  int first_position = 0;  // positions before it are not attended to

  const AttentionItem* items = nullptr;
  int max_queries = 0;  // that an item has room for: kFewQueries or MostQueries
  const AttentionRun* runs = nullptr;
  int num_runs = 0;
  // Items with states, which are to be joined. Some may be kNoItem.
  const std::int32_t* split_items = nullptr;
  int num_split_items = 0;
  const std::int32_t* block_tables = nullptr;
  const std::int32_t* tails = nullptr;
  float* states = nullptr;  // of each split item [num_parts, num_kv_heads, StateFloats]
};
cudaError_t Attend(const AttentionTask& task, const KvLayer& layer, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ATTENTION_H_
