// How a block finds cuts and samples in a row that was scanned tile by tile.
//
// A tile is kTileTokens tokens. Thread t of a block has its own tokens of every tile, a group of
// kQuads quads; the code of a group's first token, in the order of preference, shows which groups
// need not be read.
#ifndef FORERUN_CUDA_VERIFY_ROW_SELECT_CUH_
#define FORERUN_CUDA_VERIFY_ROW_SELECT_CUH_

#include "cpp/sampling/noise.h"
#include "cuda/verify/device.cuh"
#include "cuda/verify/row_reader.cuh"

namespace forerun::cuda {

inline constexpr int kMaxListed = 1024;  // candidates in shared memory
inline constexpr int kDigits = 256;

using RowCollectives = BlockCollectives<kRowThreads>;

__device__ inline int Thread() { return static_cast<int>(threadIdx.x); }
// The first token of a quad of this thread's.
__device__ inline TokenId QuadToken(int tile, int quad) {
  return tile * kTileTokens + (quad * kRowThreads + Thread()) * 4;
}

// The noise of no token with these bits is higher: -log(-log u) <= -log(1 - u), and a float's bits,
// read as a number, give its log2 from below. The slack exceeds the rounding of all steps.
__device__ inline double NoiseBound(std::uint32_t bits) {
  const int distance = __float_as_int(static_cast<float>(~bits) + 0.25f);
  const float log2_above = 159.0f - static_cast<float>(distance) * 0x1p-23f;
  return log2_above * 0.69314718f + 1e-3f;
}

// Calls visit(code, score) for those of the four tokens from `first` whose score, in a row with
// this maximum, may be `floor` or above.
template <typename T, typename Visit>
__device__ void ScoreQuad(const RowReader<T>& row, float max, TokenId first, const Quad& quad,
                          const double& floor, Visit visit) {
  bool is_any = false;
  for (float logit : quad.logits) is_any |= row.Scaled(logit, max) + kMaxNoise >= floor;
  if (!is_any) return;
  const PhiloxBlock noise = Philox(row.rule().seed, static_cast<std::uint32_t>(first) / 4,
                                   static_cast<std::uint32_t>(row.output_index()));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float logit = quad.logits[i];
    const double scaled = row.Scaled(logit, max);
    if (!(logit > -INFINITY) || scaled + NoiseBound(noise.word[i]) < floor) continue;
    visit(CodeOf(logit, first + i), scaled + GumbelOfBits(noise.word[i]));
  }
}

// Shared memory of a RowSelector.
struct SelectScratch {
  RowCollectives block;
  // Candidates, in no order.
  Code list[kMaxListed];
  int num_listed;  // more than kMaxListed: the list is not complete
  // Of digits of codes: the weight of the candidates that have it, the first and the last of them.
  Mass mass[kDigits];
  Code first[kDigits], last[kDigits];
  // Of the digit that is selected.
  Code selected_first, selected_last;
  Mass selected_before;
};

// A code and the weight of the candidates before it.
struct Selected {
  Code code;
  Mass before;
};

template <typename T>
class RowSelector {
 public:
  // `tiles` and `groups` are those of the row.
  __device__ RowSelector(const RowReader<T>& row, const TileState* tiles, const Code* groups,
                         float max, SelectScratch& scratch)
      : row_(row),
        tiles_(tiles),
        groups_(groups),
        num_tiles_(NumTiles(row.vocab_size())),
        max_(max),
        scratch_(scratch) {}

  __device__ double Scaled(float logit) const { return row_.Scaled(logit, max_); }
  __device__ Mass WeightOf(Code code) const { return row_.WeightAt(LogitOf(code), max_); }

  // Calls visit(code) for this thread's tokens in [first, last], in the groups that are wanted(code
  // of their first token).
  template <typename Wanted, typename Visit>
  __device__ void VisitRow(Code first, Code last, Wanted wanted, Visit visit) const {
    const bool is_tie = LogitOf(first) == LogitOf(last);
    const TokenId first_token = is_tie ? TokenOf(first) : 0;
    const TokenId last_token = Min()(is_tie ? TokenOf(last) : kNoToken, row_.vocab_size() - 1);
    for (int tile = first_token / kTileTokens; tile <= last_token / kTileTokens; ++tile) {
      const Code group = GroupFirst(tile);
      if (group > last || !wanted(group)) continue;
      for (int q = 0; q < kQuads; ++q) {
        const TokenId token = QuadToken(tile, q);
        if (token + 3 < first_token || CodeOf(LogitOf(group), token) > last) continue;
        const Quad quad = row_.QuadAt(token);
        for (int i = 0; i < 4; ++i) {
          const Code code = CodeOf(quad.logits[i], token + i);
          if (first <= code && code <= last && token + i <= last_token) visit(code);
        }
      }
    }
  }
  template <typename Visit>
  __device__ void VisitList(Code first, Code last, Visit visit) const {
    for (int i = Thread(); i < scratch_.num_listed; i += kRowThreads) {
      const Code code = scratch_.list[i];
      if (first <= code && code <= last) visit(code);
    }
  }

  // Lists the candidates that visit_all(visit) visits, as far as there is room. Whether there was.
  // REQUIRES: a barrier, as in Select, since the list was last read.
  template <typename VisitAll>
  __device__ bool Collect(VisitAll visit_all) {
    if (Thread() == 0) scratch_.num_listed = 0;
    __syncthreads();
    visit_all([&](Code code) {
      const int i = atomicAdd(&scratch_.num_listed, 1);
      if (i < kMaxListed) scratch_.list[i] = code;
    });
    __syncthreads();
    return scratch_.num_listed <= kMaxListed;
  }

  // The last candidate in [first, last] with less than `limit` before it, where candidates weigh
  // amount(code) and visit_range(first, last, visit) visits them; `last` if all together do not
  // weigh `limit`. REQUIRES: limit > 0.
  //
  // A digit after the other: each pass narrows the range to the candidates that share one more
  // digit with the one wanted, eight bits of what the candidates left differ in.
  template <typename VisitRange, typename Amount>
  __device__ Selected Select(Code first, Code last, Mass limit, VisitRange visit_range,
                             Amount amount) {
    const Code end = last;
    Mass before = 0;
    bool is_one = false;
    while (!is_one) {
      const int shift =
          last - first < kDigits ? 0 : 56 - __clzll(static_cast<long long>(last - first));
      for (int digit = Thread(); digit < kDigits; digit += kRowThreads) {
        scratch_.mass[digit] = 0;
        scratch_.first[digit] = ~Code{0};
        scratch_.last[digit] = 0;
      }
      __syncthreads();
      visit_range(first, last, [&](Code code) {
        const auto digit = static_cast<int>((code - first) >> shift);
        atomicAdd(&scratch_.mass[digit], amount(code));
        atomicMin(&scratch_.first[digit], code);
        atomicMax(&scratch_.last[digit], code);
      });
      __syncthreads();
      if (!SelectDigit(limit, before)) return {end, before};
      first = scratch_.selected_first;
      last = scratch_.selected_last;
      before = scratch_.selected_before;
      is_one = first == last;
    }
    return {first, before};
  }

  // Lowers `last` to the last of the first `count` tokens, and lists these and perhaps some more.
  // False: there were too many more, and the list means nothing.
  __device__ bool ListFirst(int count, Code& last) {
    const auto one = [](Code) { return Mass{1}; };
    const auto limit = static_cast<Mass>(count);
    const Code first = CodeOf(max_, 0);
    // The `count` best groups alone hold `count` tokens up to the last of their first ones.
    const auto visit_groups = [&](Code from, Code to, auto visit) {
      for (int tile = 0; tile < num_tiles_; ++tile) {
        const Code code = GroupFirst(tile);
        if (from <= code && code <= to) visit(code);
      }
    };
    last = Select(first, last, limit, visit_groups, one).code;
    const auto all = [](Code) { return true; };
    const auto visit_row = [&](Code from, Code to, auto visit) { VisitRow(from, to, all, visit); };
    const auto visit_list = [&](Code from, Code to, auto visit) { VisitList(from, to, visit); };
    const bool is_listed = Collect([&](auto visit) { visit_row(first, last, visit); });
    const Selected token = is_listed ? Select(first, last, limit, visit_list, one)
                                     : Select(first, last, limit, visit_row, one);
    last = token.code;
    return is_listed;
  }

  // Lists at least the first `count` tokens up to `last`, or all, and returns the last of the
  // `count`. REQUIRES: count <= kMaxListed.
  __device__ Code ListTop(int count, Code last) {
    const auto all = [](Code) { return true; };
    if (!ListFirst(count, last)) {
      Collect([&](auto visit) { VisitRow(CodeOf(max_, 0), last, all, visit); });
    }
    return last;
  }
  // How many listed tokens come before one.
  __device__ int RankInList(Code code) const {
    int rank = 0;
    for (int i = 0; i < scratch_.num_listed; ++i) rank += scratch_.list[i] < code;
    return rank;
  }

  // The winner of SampleToken among the tokens up to `cut`. REQUIRES: there is one.
  //
  // A tile's best score bounds the score of its tokens that are kept, so that the tiles are read
  // by descending bound until none can hold a better one: without a cut, mostly one tile.
  __device__ Code Sample(Code cut) const {
    constexpr double kSlack = 1e-11;  // exceeds the rounding of bounds that are near any score
    Scored best = NoScore();
    Scored last = {INFINITY, -1, 0.0f};
    while (true) {
      last = NextTile(cut, last);
      if (last.index == kNoToken || last.score + kSlack < best.score) break;
      Scored mine = best;
      for (int q = 0; q < kQuads; ++q) {
        const TokenId token = QuadToken(last.index, q);
        const auto join = [&](Code code, double score) {
          if (code <= cut) mine = Best()(mine, {score, TokenOf(code), LogitOf(code)});
        };
        ScoreQuad(row_, max_, token, row_.QuadAt(token), mine.score, join);
      }
      best = scratch_.block.Reduce(mine, Best());
    }
    return CodeOf(best.logit, best.index);
  }
  // The same where all tokens up to `cut` are listed.
  __device__ Code SampleListed(Code cut) const {
    Scored best = NoScore();
    VisitList(0, cut, [&](Code code) {
      const double noise = GumbelNoise(row_.rule().seed, row_.output_index(), TokenOf(code));
      best = Best()(best, {Scaled(LogitOf(code)) + noise, TokenOf(code), LogitOf(code)});
    });
    best = scratch_.block.Reduce(best, Best());
    return CodeOf(best.logit, best.index);
  }

  // The first of this thread's tokens of a tile.
  __device__ Code GroupFirst(int tile) const { return groups_[tile * kRowThreads + Thread()]; }

 private:
  // Finds the digit in which the limit lies, and what is before it. False: there is none, and
  // `before` becomes the sum of all.
  __device__ bool SelectDigit(Mass limit, Mass& before) {
    static_assert(kDigits == 2 * kRowThreads);
    const int digit = 2 * Thread();
    const Mass mass[2] = {scratch_.mass[digit], scratch_.mass[digit + 1]};
    Mass total;
    Mass sum = before + scratch_.block.SumBefore(mass[0] + mass[1], total);
    for (int i = 0; i < 2; ++i) {
      if (sum < limit && limit <= sum + mass[i]) {
        scratch_.selected_first = scratch_.first[digit + i];
        scratch_.selected_last = scratch_.last[digit + i];
        scratch_.selected_before = sum;
      }
      sum += mass[i];
    }
    __syncthreads();
    const bool is_reached = before + total >= limit;
    if (!is_reached) before += total;
    return is_reached;
  }

  // The tile with kept tokens whose bound follows `last` in the order of bounds.
  __device__ Scored NextTile(Code cut, const Scored& last) const {
    Scored next = NoScore();
    for (int tile = Thread(); tile < num_tiles_; tile += kRowThreads) {
      const TileState& state = tiles_[tile];
      if (state.first == kKeepAllCode || state.first > cut) continue;
      const Scored bound = {state.best_score + Scaled(LogitOf(state.first)), tile, 0.0f};
      if (last.IsBetterThan(bound)) next = Best()(next, bound);
    }
    return scratch_.block.Reduce(next, Best());
  }

  const RowReader<T>& row_;
  const TileState* const tiles_;
  const Code* const groups_;
  const int num_tiles_;
  const float max_;
  SelectScratch& scratch_;
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_ROW_SELECT_CUH_
