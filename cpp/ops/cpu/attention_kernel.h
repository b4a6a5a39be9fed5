// Causal attention of a few queries over a paged cache, with the softmax taken online.
//
// Scores: a lane owns a position and walks the channels in order. Values: a lane owns a channel and
// walks the positions in order. The running maximum is renewed at multiples of kPositionsPerChunk,
// and sums start anew at multiples of kPositionsPerPart, so a query's result depends on its own
// positions alone. A position that a query may not see is never multiplied by anything of that
// query: its slot may hold a NaN.
#ifndef FORERUN_CPP_OPS_CPU_ATTENTION_KERNEL_H_
#define FORERUN_CPP_OPS_CPU_ATTENTION_KERNEL_H_

#include "cpp/ops/cpu/attention_chunk.h"
#include "cpp/ops/cpu/attention_products.h"
#include "cpp/ops/cpu/attention_state.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/cpu/row_kernels.h"
#include "cpp/util/simd/vec_math.h"

namespace forerun::FORERUN_ISA {

// Scores, scaled and capped, of the lanes from slot i; those outside `slots` are never the largest.
FORERUN_INLINE V16 FinishScores(const AttentionTask& task, V16 score, int i, Range slots) {
  constexpr float kLaneIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  score = Mul(score, Set(task.scale));
  if (task.soft_cap > 0.0f) score = CapSoftly(score, task.soft_cap);
  if (i >= slots.begin && i + kLanes <= slots.end) return score;
  const V16 lowest = Set(-__builtin_inff());
  const V16 slot = Add(Load(kLaneIndex), Set(static_cast<float>(i)));
  score = SelectLess(slot, Set(static_cast<float>(slots.begin)), lowest, score);
  return SelectLess(slot, Set(static_cast<float>(slots.end)), score, lowest);
}

// Finishes a query's scores of `slots` and raises its maximum to theirs.
inline void RaiseMaximum(const Work& work, int query, Range slots) {
  float* weights = work.WeightsOf(query);
  V16 max = Set(-__builtin_inff());
  for (int i = slots.begin / kLanes * kLanes; i < slots.end; i += kLanes) {
    const V16 score = FinishScores(work.task, Load(weights + i), i, slots);
    Store(weights + i, score);
    max = Max(max, score);
  }
  const float chunk_max = ReduceMax(max);
  if (chunk_max > work.state.maxima[query]) Rescale(work.state, query, chunk_max);
}

// Turns finished scores into weights, which are 0 outside `slots`, times the values' scales.
template <class T>
void Exponentiate(const Work& work, const Chunk<T>& chunk, int query, Range slots) {
  float* weights = work.WeightsOf(query);
  const V16 offset = Set(work.state.maxima[query]);
  V16 sum = Load(work.state.SumsOf(query));
  for (int i = slots.begin / kLanes * kLanes; i < slots.end; i += kLanes) {
    const V16 weight = Exp(Sub(Load(weights + i), offset));
    sum = Add(sum, weight);
    if constexpr (kHasScales<T>) {
      Store(weights + i, Mul(weight, Load(chunk.value_scales[i / kLanes])));
    } else {
      Store(weights + i, weight);
    }
  }
  Store(work.state.SumsOf(query), sum);
}

// Queries of later rows see later positions: cut the slots where the set of queries changes.
template <class T>
void SumVisibleValues(const Work& work, const Chunk<T>& chunk, Range queries) {
  int slot = VisibleSlots(work.task, chunk, queries.begin).begin;
  const int last = VisibleSlots(work.task, chunk, queries.end - 1).end;
  while (slot < last) {
    Range seeing = {queries.begin, queries.begin};
    int cut = last;
    for (int query = queries.begin; query < queries.end; ++query) {
      const Range slots = VisibleSlots(work.task, chunk, query);
      if (slots.end <= slot) {
        seeing = {query + 1, query + 1};
      } else if (slots.begin <= slot) {
        seeing.end = query + 1;
        cut = MinOf(cut, slots.end);
      } else {
        cut = MinOf(cut, slots.begin);
      }
    }
    if (!IsEmpty(seeing)) SumValuesOf<T>(work, chunk, seeing, {slot, cut});
    slot = cut;
  }
}

template <class T>
void AttendChunk(const Work& work, const Chunk<T>& chunk) {
  const int num_queries = work.state.num_queries;
  const int num_blocks = (num_queries + kMaxTileRows - 1) / kMaxTileRows;
  for (int block = 0; block < num_blocks; ++block) {
    const Range queries = {num_queries * block / num_blocks,
                           num_queries * (block + 1) / num_blocks};
    const Range first = VisibleSlots(work.task, chunk, queries.begin);
    const Range last = VisibleSlots(work.task, chunk, queries.end - 1);
    if (last.end <= 0 || first.begin >= chunk.num_slots) continue;
    ScoreQueriesOf<T>(work, chunk, queries);
    // Two passes: the chains of different queries overlap, those of one query do not.
    for (int query = queries.begin; query < queries.end; ++query) {
      const Range slots = VisibleSlots(work.task, chunk, query);
      if (!IsEmpty(slots)) RaiseMaximum(work, query, slots);
    }
    for (int query = queries.begin; query < queries.end; ++query) {
      const Range slots = VisibleSlots(work.task, chunk, query);
      if (!IsEmpty(slots)) Exponentiate(work, chunk, query, slots);
    }
    SumVisibleValues(work, chunk, queries);
  }
}

// Positions that begin at a multiple of kPositionsPerPart, up to the next one or the last visible.
template <class T>
void AttendPart(const Work& work, Range positions) {
  int begin = Visible(work.task, 0).begin / kPositionsPerChunk * kPositionsPerChunk;
  begin = MaxOf(begin, positions.begin);
  for (; begin < positions.end; begin += kPositionsPerChunk) {
    Chunk<T> chunk;
    FindChunk(work.task, {begin, positions.end}, chunk);
    AttendChunk(work, chunk);
  }
}

inline void Attention(const AttentionTask& task) {
  const std::int64_t state_floats = AttentionStateFloats(NumQueries(task), task.head_dim);
  const State total(task, task.scratch);
  float* weights = task.scratch + 2 * state_floats;
  float* part = task.part_state != nullptr ? task.part_state : task.scratch + state_floats;
  const Work work = {task, State(task, part), weights};
  const int end = MinOf(task.position + task.num_rows, task.part_end * kPositionsPerPart);
  total.Reset();
  for (int i = task.part_begin; i * kPositionsPerPart < end; ++i) {
    const Range positions = {i * kPositionsPerPart, MinOf((i + 1) * kPositionsPerPart, end)};
    work.state.Reset();
    if (task.element_bytes == 1) {
      AttendPart<std::int8_t>(work, positions);
    } else if (task.element_bytes == 2) {
      AttendPart<std::uint16_t>(work, positions);
    } else {
      AttendPart<float>(work, positions);
    }
    if (task.part_state == nullptr) Fold(task, work.state, positions, total);
  }
  if (task.part_state == nullptr) WriteOutputs(task, total);
}

inline void JoinAttention(const AttentionTask& task, float* part_states) {
  const std::int64_t state_floats = AttentionStateFloats(NumQueries(task), task.head_dim);
  const State total(task, task.scratch);
  total.Reset();
  for (int i = task.part_begin; i < task.part_end; ++i, part_states += state_floats) {
    const Range positions = {i * kPositionsPerPart, (i + 1) * kPositionsPerPart};
    Fold(task, State(task, part_states), positions, total);
  }
  WriteOutputs(task, total);
}

}  // namespace forerun::FORERUN_ISA

#endif  // FORERUN_CPP_OPS_CPU_ATTENTION_KERNEL_H_
