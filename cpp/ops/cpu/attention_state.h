// What the queries of an attention task carry along, and how two stretches of positions are put
// together.
#ifndef FORERUN_CPP_OPS_CPU_ATTENTION_STATE_H_
#define FORERUN_CPP_OPS_CPU_ATTENTION_STATE_H_

#include "cpp/ops/cpu/kernels.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

// Positions [begin, end).
struct Range {
  int begin;
  int end;
};

FORERUN_INLINE Range Intersect(Range a, Range b) {
  return {MaxOf(a.begin, b.begin), MinOf(a.end, b.end)};
}
FORERUN_INLINE bool IsEmpty(Range range) { return range.begin >= range.end; }

FORERUN_INLINE int NumQueries(const AttentionTask& task) { return task.num_rows * task.num_heads; }

// The positions that a query sees. Queries go row by row, heads inside.
FORERUN_INLINE Range Visible(const AttentionTask& task, int query) {
  const int position = task.position + query / task.num_heads;
  const int begin = task.sliding_window > 0 ? position + 1 - task.sliding_window : 0;
  return {MaxOf(begin, task.first_position), position + 1};
}

// A softmax under way, for each query of a task.
struct State {
  State(const AttentionTask& task, float* memory)
      : num_queries(NumQueries(task)),
        padded_dim(PaddedHeadDim(task.head_dim)),
        output(memory),
        sums(output + num_queries * padded_dim),
        maxima(sums + num_queries * kLanes) {}

  float* OutputOf(int query) const { return output + query * padded_dim; }
  float* SumsOf(int query) const { return sums + query * kLanes; }

  void Reset() const {
    for (int i = 0; i < num_queries * padded_dim; i += kLanes) Store(output + i, Zero());
    for (int i = 0; i < num_queries * kLanes; i += kLanes) Store(sums + i, Zero());
    for (int i = 0; i < num_queries; ++i) maxima[i] = -__builtin_inff();
  }

  int num_queries;
  int padded_dim;
  float* output;  // [num_queries, padded_dim]: weighted values summed so far
  float* sums;    // [num_queries, kLanes]: weights summed so far, by position modulo kLanes
  float* maxima;  // [num_queries]: what the weights are relative to
};

// Scales what a query has so far to a larger maximum.
FORERUN_INLINE void Rescale(const State& state, int query, float new_max) {
  const V16 shrink = Exp(Set(state.maxima[query] - new_max));
  float* output = state.OutputOf(query);
  for (int i = 0; i < state.padded_dim; i += kLanes)
    Store(output + i, Mul(Load(output + i), shrink));
  float* sums = state.SumsOf(query);
  Store(sums, Mul(Load(sums), shrink));
  state.maxima[query] = new_max;
}

// total += part, for the queries that see any of the part's positions.
inline void Fold(const AttentionTask& task, const State& part, Range positions,
                 const State& total) {
  for (int query = 0; query < total.num_queries; ++query) {
    if (IsEmpty(Intersect(Visible(task, query), positions))) continue;
    const float max = part.maxima[query];
    if (max > total.maxima[query]) Rescale(total, query, max);
    const V16 shrink = Exp(Set(max - total.maxima[query]));
    float* output = total.OutputOf(query);
    for (int i = 0; i < total.padded_dim; i += kLanes) {
      Store(output + i, Fma(Load(part.OutputOf(query) + i), shrink, Load(output + i)));
    }
    float* sums = total.SumsOf(query);
    Store(sums, Fma(Load(part.SumsOf(query)), shrink, Load(sums)));
  }
}

inline void WriteOutputs(const AttentionTask& task, const State& total) {
  for (int query = 0; query < total.num_queries; ++query) {
    float* out = task.out + query / task.num_heads * task.out_stride +
                 query % task.num_heads * task.head_dim;
    const float* output = total.OutputOf(query);
    const V16 sum = Set(ReduceAdd(Load(total.SumsOf(query))));
    EachVector(
        task.head_dim, [&](int i) { Store(out + i, Div(Load(output + i), sum)); },
        [&](int i, int count) { StorePartial(out + i, Div(Load(output + i), sum), count); });
  }
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ATTENTION_STATE_H_
