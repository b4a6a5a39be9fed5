// Causal attention of a few queries over a paged cache, with the softmax taken online.
//
// Scores: a lane owns a position and walks the channels in order. Values: a lane owns a channel and
// walks the positions in order. The running maximum is renewed at multiples of kPositionsPerChunk,
// so a query's result depends on its own positions alone. A position that a query may not see is
// never multiplied by anything of that query: its slot may hold a NaN.
#ifndef FORERUN_CPP_OPS_CPU_ATTENTION_KERNEL_H_
#define FORERUN_CPP_OPS_CPU_ATTENTION_KERNEL_H_

#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/row_kernels.h"
#include "cpp/ops/cpu/vec_math.h"

namespace forerun::FORERUN_ISA {

// Positions [begin, end).
struct Range {
  int begin;
  int end;
};

// Where a chunk's keys and values lie; filled in anew for every chunk.
template <class T>
struct Chunk {
  int position = 0;  // of its first slot
  int num_slots = 0;
  std::int64_t key_stride = 0;                      // from a channel to the next
  const T* keys[kPositionsPerChunk / kLanes] = {};  // groups of kLanes slots, channel 0
  const T* values[kPositionsPerChunk] = {};
};

// What the queries of a task carry from chunk to chunk.
struct State {
  int padded_dim;
  float* weights;  // [num_queries, kPositionsPerChunk]: scores, then their exponentials
  float* output;   // [num_queries, padded_dim]: values summed so far
  float* sums;     // [num_queries, kLanes]: exponentials summed so far
  float* maxima;   // [num_queries, kLanes]: only lane 0 counts
  float* panels;   // keys and values of a chunk, widened
};

inline State MakeState(const AttentionTask& task) {
  const int num_queries = task.num_rows * task.num_heads;
  State state;
  state.padded_dim = (task.head_dim + kLanes - 1) / kLanes * kLanes;
  state.weights = task.scratch;
  state.output = state.weights + num_queries * kPositionsPerChunk;
  state.sums = state.output + num_queries * state.padded_dim;
  state.maxima = state.sums + num_queries * kLanes;
  state.panels = state.maxima + num_queries * kLanes;
  for (int query = 0; query < num_queries; ++query) {
    state.maxima[query * kLanes] = -__builtin_inff();
    for (int i = 0; i < kLanes; ++i) state.sums[query * kLanes + i] = 0.0f;
    for (int i = 0; i < state.padded_dim; ++i) state.output[query * state.padded_dim + i] = 0.0f;
  }
  return state;
}

// The positions that a query sees. Queries go row by row, heads inside.
FORERUN_INLINE Range Visible(const AttentionTask& task, int query) {
  const int position = task.position + query / task.num_heads;
  const int begin = task.sliding_window > 0 ? position + 1 - task.sliding_window : 0;
  return {MaxOf(begin, 0), position + 1};
}

FORERUN_INLINE const float* QueryOf(const AttentionTask& task, int query) {
  return task.query + query / task.num_heads * task.query_stride +
         query % task.num_heads * task.head_dim;
}

// sum[m][t] += a[m][i] * b[i][16 t ...] for i in order.
template <int M, int T, class Elements>
FORERUN_INLINE void AddOuter(const float* const (&a)[M], const Elements& b, int count,
                             V16 (&sum)[M][T]) {
  for (int i = 0; i < count; ++i) {
    V16 row[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) row[t] = Load(b(i) + t * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const V16 factor = Set(a[m][i]);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) sum[m][t] = Fma(row[t], factor, sum[m][t]);
    }
  }
}

template <class T, int M>
void ScoreQueries(const AttentionTask& task, const State& state, const Chunk<T>& chunk, int query) {
  const float* q[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) q[m] = QueryOf(task, query + m);
  for (int group = 0; group * kLanes < chunk.num_slots; ++group) {
    V16 sum[M][1];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sum[m][0] = Zero();
    const T* keys = chunk.keys[group];
    AddOuter<M, 1>(q, [&](int i) { return keys + i * chunk.key_stride; }, task.head_dim, sum);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      Store(state.weights + (query + m) * kPositionsPerChunk + group * kLanes, sum[m][0]);
    }
  }
}

// output[query + m] += sum of weights times values over slots [begin, end).
template <class T, int M, int N>
FORERUN_INLINE void SumChannels(const State& state, const Chunk<T>& chunk, int query, Range slots,
                                int channel) {
  const float* p[M];
  V16 sum[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    p[m] = state.weights + (query + m) * kPositionsPerChunk + slots.begin;
    const float* output = state.output + (query + m) * state.padded_dim + channel;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sum[m][n] = Load(output + n * kLanes);
  }
  const T* const* values = chunk.values + slots.begin;
  AddOuter<M, N>(p, [&](int i) { return values[i] + channel; }, slots.end - slots.begin, sum);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    float* output = state.output + (query + m) * state.padded_dim + channel;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) Store(output + n * kLanes, sum[m][n]);
  }
}

template <class T, int M>
void SumValues(const State& state, const Chunk<T>& chunk, int query, Range slots) {
  constexpr int kAtOnce = VectorsAtOnce(M);
  int channel = 0;
  for (; channel + kAtOnce * kLanes <= state.padded_dim; channel += kAtOnce * kLanes) {
    SumChannels<T, M, kAtOnce>(state, chunk, query, slots, channel);
  }
  for (; channel < state.padded_dim; channel += kLanes) {
    SumChannels<T, M, 1>(state, chunk, query, slots, channel);
  }
}

template <class T, int M = kMaxTileRows>
void SumValuesOf(const State& state, const Chunk<T>& chunk, int query, int count, Range slots) {
  if constexpr (M > 1) {
    if (count < M) return SumValuesOf<T, M - 1>(state, chunk, query, count, slots);
  }
  SumValues<T, M>(state, chunk, query, slots);
}

template <class T, int M = kMaxTileRows>
void ScoreQueriesOf(const AttentionTask& task, const State& state, const Chunk<T>& chunk, int query,
                    int count) {
  if constexpr (M > 1) {
    if (count < M) return ScoreQueriesOf<T, M - 1>(task, state, chunk, query, count);
  }
  ScoreQueries<T, M>(task, state, chunk, query);
}

// Turns the scores of slots [begin, end) into exponentials, 0 in the rest of their vectors.
inline void Exponentiate(const AttentionTask& task, const State& state, int query, Range slots) {
  constexpr float kLaneIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  float* weights = state.weights + query * kPositionsPerChunk;
  const V16 lowest = Set(-__builtin_inff());
  const int first = slots.begin / kLanes * kLanes;
  V16 max = lowest;
  for (int i = first; i < slots.end; i += kLanes) {
    V16 score = Mul(Load(weights + i), Set(task.scale));
    if (task.soft_cap > 0.0f) score = CapSoftly(score, task.soft_cap);
    const V16 slot = Add(Load(kLaneIndex), Set(static_cast<float>(i)));
    score = SelectLess(slot, Set(static_cast<float>(slots.begin)), lowest, score);
    score = SelectLess(slot, Set(static_cast<float>(slots.end)), score, lowest);
    Store(weights + i, score);
    max = Max(max, score);
  }
  float& old_max = state.maxima[query * kLanes];
  const float chunk_max = ReduceMax(max);
  const float new_max = chunk_max > old_max ? chunk_max : old_max;
  float* sums = state.sums + query * kLanes;
  V16 sum = Load(sums);
  if (new_max > old_max) {
    const V16 shrink = Exp(Set(old_max - new_max));
    float* output = state.output + query * state.padded_dim;
    for (int i = 0; i < state.padded_dim; i += kLanes)
      Store(output + i, Mul(Load(output + i), shrink));
    sum = Mul(sum, shrink);
    old_max = new_max;
  }
  for (int i = first; i < slots.end; i += kLanes) {
    const V16 weight = Exp(Sub(Load(weights + i), Set(new_max)));
    Store(weights + i, weight);
    sum = Add(sum, weight);
  }
  Store(sums, sum);
}

// The slots of `chunk` that a query sees; empty where begin >= end.
template <class T>
FORERUN_INLINE Range VisibleSlots(const AttentionTask& task, const Chunk<T>& chunk, int query) {
  const Range visible = Visible(task, query);
  return {MaxOf(visible.begin - chunk.position, 0),
          MinOf(visible.end - chunk.position, chunk.num_slots)};
}

// Queries of later rows see later positions: cut the slots where the set of queries changes.
template <class T>
void SumVisibleValues(const AttentionTask& task, const State& state, const Chunk<T>& chunk,
                      int query, int count) {
  int slot = VisibleSlots(task, chunk, query).begin;
  const int last = VisibleSlots(task, chunk, query + count - 1).end;
  while (slot < last) {
    int begin = query, end = query, cut = last;
    for (int i = query; i < query + count; ++i) {
      const Range slots = VisibleSlots(task, chunk, i);
      if (slots.end <= slot) {
        begin = end = i + 1;
      } else if (slots.begin <= slot) {
        end = i + 1;
        cut = MinOf(cut, slots.end);
      } else {
        cut = MinOf(cut, slots.begin);
      }
    }
    if (begin < end) SumValuesOf<T>(state, chunk, begin, end - begin, {slot, cut});
    slot = cut;
  }
}

template <class T>
void AttendChunk(const AttentionTask& task, const State& state, const Chunk<T>& chunk) {
  const int num_queries = task.num_rows * task.num_heads;
  const int num_blocks = (num_queries + kMaxTileRows - 1) / kMaxTileRows;
  for (int block = 0; block < num_blocks; ++block) {
    const int query = num_queries * block / num_blocks;
    const int count = num_queries * (block + 1) / num_blocks - query;
    const Range first = VisibleSlots(task, chunk, query);
    const Range last = VisibleSlots(task, chunk, query + count - 1);
    if (last.end <= 0 || first.begin >= chunk.num_slots) continue;
    ScoreQueriesOf<T>(task, state, chunk, query, count);
    for (int i = query; i < query + count; ++i) {
      const Range slots = VisibleSlots(task, chunk, i);
      if (slots.begin < slots.end) Exponentiate(task, state, i, slots);
    }
    SumVisibleValues(task, state, chunk, query, count);
  }
}

template <class T>
void FindChunk(const AttentionTask& task, Range positions, Chunk<T>& chunk) {
  chunk.position = positions.begin;
  chunk.num_slots = positions.end - positions.begin;
  chunk.key_stride = task.block_size;
  for (int slot = 0; slot < chunk.num_slots; ++slot) {
    const int position = positions.begin + slot;
    const int offset = position % task.block_size;
    const std::int64_t block = task.block_table[position / task.block_size] * task.block_stride;
    if (slot % kLanes == 0) {
      chunk.keys[slot / kLanes] = static_cast<const T*>(task.keys) + block + offset;
    }
    chunk.values[slot] =
        static_cast<const T*>(task.values) + block + std::int64_t{offset} * task.head_dim;
  }
}

// Widens a chunk into float32, once for many queries.
template <class T>
void WidenChunk(const AttentionTask& task, const State& state, const Chunk<T>& from,
                Chunk<float>& to) {
  to.position = from.position;
  to.num_slots = from.num_slots;
  to.key_stride = kLanes;
  float* panel = state.panels;
  for (int group = 0; group * kLanes < from.num_slots; ++group) {
    to.keys[group] = panel;
    for (int i = 0; i < task.head_dim; ++i, panel += kLanes) {
      Store(panel, Load(from.keys[group] + i * from.key_stride));
    }
  }
  for (int slot = 0; slot < from.num_slots; ++slot, panel += state.padded_dim) {
    to.values[slot] = panel;
    for (int i = 0; i < state.padded_dim; i += kLanes)
      Store(panel + i, Load(from.values[slot] + i));
  }
}

template <class T>
void AttendAll(const AttentionTask& task) {
  const State state = MakeState(task);
  const int num_queries = task.num_rows * task.num_heads;
  const int end = task.position + task.num_rows;
  const bool widen = __is_same(T, std::uint16_t) && num_queries > 2 * kMaxTileRows;
  int begin = Visible(task, 0).begin / kPositionsPerChunk * kPositionsPerChunk;
  for (; begin < end; begin += kPositionsPerChunk) {
    Chunk<T> chunk;
    FindChunk(task, {begin, MinOf(begin + kPositionsPerChunk, end)}, chunk);
    if (widen) {
      Chunk<float> widened;
      WidenChunk(task, state, chunk, widened);
      AttendChunk(task, state, widened);
    } else {
      AttendChunk(task, state, chunk);
    }
  }
  for (int query = 0; query < num_queries; ++query) {
    float* out = task.out + query / task.num_heads * task.out_stride +
                 query % task.num_heads * task.head_dim;
    const float* output = state.output + query * state.padded_dim;
    const float sum = ReduceAdd(Load(state.sums + query * kLanes));
    for (int i = 0; i < task.head_dim; ++i) out[i] = output[i] / sum;
  }
}

inline void Attention(const AttentionTask& task) {
  if (task.is_bfloat16) {
    AttendAll<std::uint16_t>(task);
  } else {
    AttendAll<float>(task);
  }
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ATTENTION_KERNEL_H_
