#include "cuda/verify/row_launch.h"
#include "cuda/verify/row_select.cuh"
#include "cuda/verify/sample_drafts.h"

namespace forerun::cuda {
namespace {

__device__ Mass MassOf(float weight) { return static_cast<Mass>(weight * 0x1p32); }

// Writes the weights of this thread's tokens and returns their sum.
template <typename T>
__device__ Mass FillWeights(const RowReader<T>& row, const RowState& state, float* weights) {
  Mass total = 0;
  for (int tile = 0; tile < NumTiles(row.vocab_size()); ++tile) {
    for (int q = 0; q < kQuads; ++q) {
      const TokenId token = QuadToken(tile, q);
      const Quad quad = row.QuadAt(token);
      for (int i = 0; i < 4 && token + i < row.vocab_size(); ++i) {
        const bool is_kept = CodeOf(quad.logits[i], token + i) <= state.cut;
        const Mass weight = is_kept ? row.WeightAt(quad.logits[i], state.max) : 0;
        const auto rounded = static_cast<float>(static_cast<double>(weight) * 0x1p-32);
        weights[token + i] = rounded;
        total += MassOf(rounded);
      }
    }
  }
  return total;
}

// One block per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    DrawDrafts(DeviceLogits logits, SampleArrays arrays, RowWorkspace work, float* weights,
               TopToken* drawn) {
  __shared__ SelectScratch scratch;
  __shared__ SharedRow shared;
  const int r = static_cast<int>(blockIdx.x);
  shared.Load(arrays, r);
  const RowReader<T> row(logits, arrays, r, shared);
  if (!row.is_sampled()) return;
  const RowState state = work.states[r];
  if (state.status != kRowOk) {
    if (Thread() == 0) drawn[r] = {-1, 0.0f};
    return;
  }
  const int vocab_size = row.vocab_size();
  weights += std::int64_t{r} * vocab_size;
  const Mass sum = scratch.block.Reduce(FillWeights(row, state, weights), Sum());
  const double total = static_cast<double>(sum) * 0x1p-32;
  const double point = total * UniformNoise(row.rule().seed, NoisePurpose::kDraft,
                                            row.rule().first_output_index, row.row().depth);
  // The first token up to which there is more than `point`. In the order of ids, a token's code
  // is its id.
  const auto visit_tokens = [&](Code from, Code to, auto visit) {
    for (auto token = static_cast<TokenId>(from) / kRowThreads * kRowThreads + Thread();
         token <= static_cast<TokenId>(to); token += kRowThreads) {
      if (token >= static_cast<TokenId>(from) && weights[token] > 0.0f) visit(token);
    }
  };
  const auto weight = [&](Code token) { return MassOf(weights[token]); };
  RowSelector<T> selector(row, nullptr, nullptr, state.max, scratch);
  const Selected found =
      selector.Select(0, static_cast<Code>(vocab_size - 1), static_cast<Mass>(point * 0x1p32) + 1,
                      visit_tokens, weight);
  if (Thread() != 0) return;
  const auto token = static_cast<TokenId>(found.code);
  drawn[r] = {token, static_cast<float>(weights[token] / total)};
}

// Of the row of weights that a block's row goes to; null: the row is not sampled.
__device__ float* ScatteredRow(const SampleArrays& arrays, const ScatteredWeights& weights) {
  const SampleRow& row = arrays.rows[blockIdx.x];
  if (row.node < -1) return nullptr;
  return weights.scattered + std::int64_t{arrays.rules[row.request].drawn_row} * weights.num_tokens;
}

// A row's tokens are dealt to blocks along y.
__device__ int FirstToken() { return static_cast<int>(blockIdx.y) * kRowThreads + Thread(); }
__device__ int TokenStride() { return static_cast<int>(gridDim.y) * kRowThreads; }

__global__ void ClearScattered(SampleArrays arrays, ScatteredWeights weights) {
  float* const scattered = ScatteredRow(arrays, weights);
  if (scattered == nullptr) return;
  for (int i = FirstToken(); i < weights.num_tokens; i += TokenStride()) scattered[i] = 0.0f;
}

__global__ void ScatterWeights(SampleArrays arrays, ScatteredWeights weights) {
  float* const scattered = ScatteredRow(arrays, weights);
  if (scattered == nullptr) return;
  const float* const row = weights.weights + std::int64_t{blockIdx.x} * arrays.vocab_size;
  for (int i = FirstToken(); i < arrays.vocab_size; i += TokenStride()) {
    scattered[weights.ids != nullptr ? weights.ids[i] : i] = row[i];
  }
}

}  // namespace

cudaError_t SampleDrafts(const DeviceLogits& logits, const SampleArrays& arrays,
                         const RowWorkspace& workspace, float* weights, TopToken* drawn,
                         cudaStream_t stream) {
  const RowGrid grid = {static_cast<unsigned>(arrays.num_rows), 1, stream};
  return WithLogitsType(logits.dtype, [&](auto type) {
    return LaunchRows(grid, DrawDrafts<decltype(type)>, logits, arrays, workspace, weights, drawn);
  });
}

cudaError_t ScatterDraftWeights(const SampleArrays& arrays, const ScatteredWeights& weights,
                                cudaStream_t stream) {
  constexpr unsigned kBlocksOfRow = 8;
  const RowGrid grid = {static_cast<unsigned>(arrays.num_rows), kBlocksOfRow, stream};
  if (weights.ids != nullptr) {
    const cudaError_t status = LaunchRows(grid, ClearScattered, arrays, weights);
    if (status != cudaSuccess) return status;
  }
  return LaunchRows(grid, ScatterWeights, arrays, weights);
}

}  // namespace forerun::cuda
