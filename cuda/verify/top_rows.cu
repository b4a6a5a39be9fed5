#include <limits>

#include "cuda/verify/row_launch.h"
#include "cuda/verify/row_select.cuh"
#include "cuda/verify/sample_rows.h"
#include "cuda/verify/top_rows.h"
#include "forerun/options.h"

namespace forerun::cuda {
namespace {

static_assert(kMaxTopTokens <= kMaxListed);

// One block per row, whose state has the mass of all tokens.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    RankTop(DeviceLogits logits, SampleArrays arrays, RowWorkspace work, int count, TopToken* out) {
  __shared__ SelectScratch scratch;
  __shared__ SharedRow shared;
  const int r = static_cast<int>(blockIdx.x);
  shared.Load(arrays, r);
  const RowReader<T> row(logits, arrays, r, shared);
  const RowState state = work.states[r];
  out += std::int64_t{r} * count;
  for (int rank = Thread(); rank < count; rank += kRowThreads) out[rank] = {-1, 0.0f};
  if (state.status != kRowOk) return;

  const std::int64_t first_tile = std::int64_t{r} * NumTiles(row.vocab_size());
  RowSelector<T> selector(row, work.tiles + first_tile, work.groups + first_tile * kRowThreads,
                          state.max, scratch);
  const Code last = selector.ListTop(count, state.cut);  // with barriers after the -1
  const double mass = static_cast<double>(state.mass);
  selector.VisitList(0, last, [&](Code code) {
    const Mass weight = selector.WeightOf(code);
    if (weight == 0) return;
    out[selector.RankInList(code)] = {TokenOf(code),
                                      static_cast<float>(static_cast<double>(weight) / mass)};
  });
}

}  // namespace

SampleBatch TopBatch(int max_rows, int vocab_size) {
  SampleBatch batch;
  SampleRule rule = {};
  rule.inverse_temperature = 1.0;
  rule.top_p = 1.0;
  rule.min_p_depth = -std::numeric_limits<double>::infinity();
  rule.penalties = {.repetition = 1.0f, .frequency = 0.0f, .presence = 0.0f};
  rule.mask = rule.drawn_row = rule.num_top = -1;
  batch.rules.push_back(rule);
  batch.rows.assign(max_rows, {.request = 0,
                               .node = -1,
                               .depth = 0,
                               .mask = -1,
                               .first_ban = 0,
                               .num_bans = 0,
                               .status = 0,
                               .needs_mass = 1});
  batch.vocab_size = vocab_size;
  return batch;
}

cudaError_t TopRows(const DeviceLogits& logits, const SampleArrays& arrays, int count,
                    const RowWorkspace& workspace, TopToken* out, cudaStream_t stream) {
  if (count < 1 || count > kMaxTopTokens) return cudaErrorInvalidValue;
  const cudaError_t error = SampleRows(logits, arrays, /*needs_mass=*/true, workspace, stream);
  if (error != cudaSuccess) return error;
  const RowGrid grid = {static_cast<unsigned>(arrays.num_rows), 1, stream};
  return WithLogitsType(logits.dtype, [&](auto type) {
    return LaunchRows(grid, RankTop<decltype(type)>, logits, arrays, workspace, count, out);
  });
}

}  // namespace forerun::cuda
