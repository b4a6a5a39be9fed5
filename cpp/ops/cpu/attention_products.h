// The two products of attention: queries with keys, weights with values.
#ifndef FORERUN_CPP_OPS_CPU_ATTENTION_PRODUCTS_H_
#define FORERUN_CPP_OPS_CPU_ATTENTION_PRODUCTS_H_

#include "cpp/ops/cpu/attention_chunk.h"
#include "cpp/ops/cpu/attention_state.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

// A task's state and its scratch.
struct Work {
  const AttentionTask& task;
  State state;
  float* weights;  // [num_queries, kPositionsPerChunk]: scores, then their exponentials

  float* WeightsOf(int query) const { return weights + query * kPositionsPerChunk; }
};

FORERUN_INLINE const float* QueryOf(const AttentionTask& task, int query) {
  return task.query + query / task.num_heads * task.query_stride +
         query % task.num_heads * task.head_dim;
}

// Memory that is needed soon, as T ranges: begin[t], begin[t] + stride, ...
template <int T>
struct PrefetchRanges {
  const char* begin[T];
  std::int64_t stride;
};

// sum[m][t] += a[m][i] * b(i, t) for i in order, fetching a line of each range meanwhile each time.
template <int M, int T, class Elements>
FORERUN_INLINE void AddOuter(const float* const (&a)[M], const Elements& b, int count,
                             const PrefetchRanges<T>& later, V16 (&sum)[M][T]) {
  std::int64_t offset = 0;
  for (int i = 0; i < count; ++i, offset += later.stride) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) __builtin_prefetch(later.begin[t] + offset);
    V16 row[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) row[t] = Load(b(i, t));
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const V16 factor = Set(a[m][i]);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) sum[m][t] = Fma(row[t], factor, sum[m][t]);
    }
  }
}

// Scores of T groups of slots.
template <class T, int M, int kGroups>
FORERUN_INLINE void ScoreGroups(const Work& work, const Chunk<T>& chunk, int query, int group) {
  const float* q[M];
  V16 sum[M][kGroups];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    q[m] = QueryOf(work.task, query + m);
#pragma GCC unroll 16
    for (int t = 0; t < kGroups; ++t) sum[m][t] = Zero();
  }
  const T* const* keys = chunk.keys + group;
  // The values of the same slots: there are as many of them as there are keys.
  PrefetchRanges<kGroups> later;
  later.stride = kLanes * sizeof(T);
#pragma GCC unroll 16
  for (int t = 0; t < kGroups; ++t) {
    later.begin[t] = reinterpret_cast<const char*>(chunk.values[(group + t) * kLanes]);
  }
  AddOuter<M, kGroups>(
      q, [&](int i, int t) { return keys[t] + i * chunk.key_stride; }, work.task.head_dim, later,
      sum);
#pragma GCC unroll 16
  for (int t = 0; t < kGroups; ++t) {
    V16 scale = Zero();
    if constexpr (kHasScales<T>) scale = Load(chunk.key_scales[group + t]);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const V16 score = kHasScales<T> ? Mul(sum[m][t], scale) : sum[m][t];
      Store(work.WeightsOf(query + m) + (group + t) * kLanes, score);
    }
  }
}

template <class T, int M>
void ScoreQueries(const Work& work, const Chunk<T>& chunk, int query) {
  constexpr int kAtOnce = VectorsAtOnce(M);
  const int num_groups = (chunk.num_slots + kLanes - 1) / kLanes;
  for (int group = 0; group < num_groups;) {
    const int count = group + kAtOnce <= num_groups ? kAtOnce : 1;
    if (count == kAtOnce) {
      ScoreGroups<T, M, kAtOnce>(work, chunk, query, group);
    } else {
      ScoreGroups<T, M, 1>(work, chunk, query, group);
    }
    group += count;
  }
}

// output[query + m] += sum of weights times values over `slots`.
template <class T, int M, int N>
FORERUN_INLINE void SumChannels(const Work& work, const Chunk<T>& chunk, int query, Range slots,
                                int channel) {
  const float* p[M];
  V16 sum[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    p[m] = work.WeightsOf(query + m) + slots.begin;
    const float* output = work.state.OutputOf(query + m) + channel;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sum[m][n] = Load(output + n * kLanes);
  }
  const T* const* values = chunk.values + slots.begin;
  // Of the next chunk's keys, as many as these values are: a vector of channels goes with as many
  // vectors of slots as there are slots in a chunk.
  PrefetchRanges<N> later;
  later.stride = chunk.key_stride * static_cast<int>(sizeof(T));
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const int first = (channel / kLanes + n) * kPositionsPerChunk + slots.begin;
    const T* keys = chunk.next_keys[first / work.state.padded_dim];
    later.begin[n] =
        reinterpret_cast<const char*>(keys + first % work.state.padded_dim * chunk.key_stride);
  }
  AddOuter<M, N>(
      p, [&](int i, int n) { return values[i] + channel + n * kLanes; }, slots.end - slots.begin,
      later, sum);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    float* output = work.state.OutputOf(query + m) + channel;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) Store(output + n * kLanes, sum[m][n]);
  }
}

template <class T, int M>
void SumValues(const Work& work, const Chunk<T>& chunk, int query, Range slots) {
  constexpr int kAtOnce = VectorsAtOnce(M);
  const int padded_dim = work.state.padded_dim;
  for (int channel = 0; channel < padded_dim;) {
    const int count = channel + kAtOnce * kLanes <= padded_dim ? kAtOnce : 1;
    const int end = channel + count * kLanes;
    if (count == kAtOnce) {
      SumChannels<T, M, kAtOnce>(work, chunk, query, slots, channel);
    } else {
      SumChannels<T, M, 1>(work, chunk, query, slots, channel);
    }
    channel = end;
  }
}

template <class T, int M = kMaxTileRows>
void SumValuesOf(const Work& work, const Chunk<T>& chunk, Range queries, Range slots) {
  if constexpr (M > 1) {
    if (queries.end - queries.begin < M) return SumValuesOf<T, M - 1>(work, chunk, queries, slots);
  }
  SumValues<T, M>(work, chunk, queries.begin, slots);
}

template <class T, int M = kMaxTileRows>
void ScoreQueriesOf(const Work& work, const Chunk<T>& chunk, Range queries) {
  if constexpr (M > 1) {
    if (queries.end - queries.begin < M) return ScoreQueriesOf<T, M - 1>(work, chunk, queries);
  }
  ScoreQueries<T, M>(work, chunk, queries.begin);
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ATTENTION_PRODUCTS_H_
