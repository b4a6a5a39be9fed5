#include "cuda/verify/logprob_rows.h"
#include "cuda/verify/row_launch.h"
#include "cuda/verify/row_select.cuh"

namespace forerun::cuda {
namespace {

// A row's own token and its logprob_ids.
constexpr int kMaxRanked = 1 + kMaxBatchLogprobs;

struct RowMax {
  Code first;
  TokenId broken;
  std::int32_t unused;
};
struct JoinMax {
  __device__ RowMax operator()(const RowMax& a, const RowMax& b) const {
    return {Min()(a.first, b.first), Min()(a.broken, b.broken), 0};
  }
};

// Finds the highest logit, the first broken one, and the groups' first tokens.
template <typename T>
__device__ RowMax FindMax(const RowReader<T>& row, Code* groups, RowCollectives& block) {
  RowMax found = {CodeOf(-INFINITY, kNoToken), kNoToken, 0};
  for (int tile = 0; tile < NumTiles(row.vocab_size()); ++tile) {
    Code first = CodeOf(-INFINITY, kNoToken);
    for (int q = 0; q < kQuads; ++q) {
      const TokenId token = QuadToken(tile, q);
      const Quad quad = row.QuadAt(token);
      for (int i = 0; i < 4; ++i) {
        const bool is_broken = !(quad.logits[i] < INFINITY);
        if (is_broken) found.broken = Min()(found.broken, token + i);
        if (!is_broken) first = Min()(first, CodeOf(quad.logits[i], token + i));
      }
    }
    groups[tile * kRowThreads + Thread()] = first;
    found.first = Min()(found.first, first);
  }
  return block.Reduce(found, JoinMax());
}

struct RankedTokens {
  Code codes[kMaxRanked];
  int num_before[kMaxRanked];
  int size;
};

// The sum of e^(logit - max) of all tokens but the first of the row, and how many tokens come
// before each of `ranked`. Added up in the same order by every schedule of the threads.
template <typename T>
__device__ double SumAndRank(const RowReader<T>& row, Code first, RankedTokens& ranked,
                             RowCollectives& block) {
  const double max = LogitOf(first);
  double sum = 0.0;
  int num_before[kMaxRanked];
  for (int k = 0; k < ranked.size; ++k) num_before[k] = 0;
  for (int tile = 0; tile < NumTiles(row.vocab_size()); ++tile) {
    for (int q = 0; q < kQuads; ++q) {
      const TokenId token = QuadToken(tile, q);
      const Quad quad = row.QuadAt(token);
      for (int i = 0; i < 4 && token + i < row.vocab_size(); ++i) {
        const double z = quad.logits[i] - max;
        const Code code = CodeOf(quad.logits[i], token + i);
        if (code != first) sum += ExpOf<double, std::uint64_t>(z < -700.0 ? -700.0 : z);
        for (int k = 0; k < ranked.size; ++k) num_before[k] += code < ranked.codes[k];
      }
    }
  }
  for (int k = 0; k < ranked.size; ++k) {
    const int total = block.Reduce(num_before[k], Sum());
    if (Thread() == 0) ranked.num_before[k] = total;
  }
  return block.Reduce(sum, Sum());
}

// The token whose log-probability is wanted of a row, and how many top tokens with it.
struct Wanted {
  TokenId token;  // -1: nothing is wanted
  int num_top, num_ids;
};
__device__ Wanted WantedOf(const LogprobArrays& arrays, int r, const SampleRow& row,
                           const SampleRule& rule) {
  if (arrays.first_entry[r] < 0) return {-1, 0, 0};
  if (row.node == kScoredRow) {
    const int index = rule.first_scored + r - rule.first_row;
    return {arrays.batch.scored_tokens[index], rule.num_prompt_top, 0};
  }
  return {arrays.emitted[r], rule.num_top, rule.num_logprob_ids};
}

// One block per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    ScoreRows(DeviceLogits logits, LogprobArrays arrays, RowWorkspace work) {
  __shared__ SelectScratch scratch;
  __shared__ SharedRow shared;
  __shared__ RankedTokens ranked;
  const int r = static_cast<int>(blockIdx.x);
  shared.Load(arrays.batch, r);
  const Wanted wanted = WantedOf(arrays, r, shared.row(), shared.rule());
  if (wanted.token < 0) return;
  const RowReader<T> row = RowReader<T>(logits, arrays.batch, r, shared).WithoutEdits();
  Code* const groups = work.groups + std::int64_t{r} * NumTiles(row.vocab_size()) * kRowThreads;
  const RowMax found = FindMax(row, groups, scratch.block);
  const float max = LogitOf(found.first);
  const bool is_broken = found.broken != kNoToken;
  if (is_broken || max == -INFINITY) {
    if (Thread() != 0) return;
    arrays.statuses[r] = {is_broken ? kRowBroken : kRowEmpty, found.broken,
                          is_broken ? row.At(found.broken) : 0.0f};
    return;
  }
  for (int k = Thread(); k <= wanted.num_ids; k += kRowThreads) {
    const TokenId token =
        k == 0 ? wanted.token : arrays.batch.logprob_ids[row.rule().first_logprob_id + k - 1];
    ranked.codes[k] = CodeOf(row.At(token), token);
  }
  if (Thread() == 0) {
    ranked.size = 1 + wanted.num_ids;
    arrays.statuses[r] = {kRowOk, kNoToken, 0.0f};
  }
  __syncthreads();
  const double log_sum = Log1pOf(SumAndRank(row, found.first, ranked, scratch.block));
  const auto entry = [&](Code code, int rank) {
    const double logprob = LogitOf(code) - static_cast<double>(max) - log_sum;
    return TokenLogprob{TokenOf(code), static_cast<float>(logprob) + 0.0f, rank};
  };
  TokenLogprob* const entries = arrays.entries + arrays.first_entry[r];
  for (int k = Thread(); k <= wanted.num_ids; k += kRowThreads) {
    entries[k == 0 ? 0 : wanted.num_top + k] = entry(ranked.codes[k], 1 + ranked.num_before[k]);
  }
  if (wanted.num_top == 0) return;
  RowSelector<T> selector(row, nullptr, groups, max, scratch);
  const Code last = selector.ListTop(wanted.num_top, CodeOf(-INFINITY, kNoToken));
  selector.VisitList(0, last, [&](Code code) {
    const int rank = 1 + selector.RankInList(code);
    entries[rank] = entry(code, rank);
  });
}

}  // namespace

cudaError_t LogprobRows(const DeviceLogits& logits, const LogprobArrays& arrays,
                        const RowWorkspace& workspace, cudaStream_t stream) {
  const RowGrid grid = {static_cast<unsigned>(arrays.batch.num_rows), 1, stream};
  return WithLogitsType(logits.dtype, [&](auto type) {
    return LaunchRows(grid, ScoreRows<decltype(type)>, logits, arrays, workspace);
  });
}

}  // namespace forerun::cuda
