#include "cuda/verify/draft_draws.h"

#include <cstddef>
#include <cstdint>

#include "cpp/util/check.h"
#include "cuda/check_cuda.h"
#include "cuda/use_gpu.h"
#include "cuda/verify/sample_drafts.h"
#include "cuda/verify/sample_rows.h"
#include "cuda/verify/stage_batch.h"

namespace forerun::cuda {
namespace {

constexpr char kWanted[] = "draft tokens that are drawn on the GPU";

std::size_t NumBytes(std::int64_t num_rows, int row_size) {
  return static_cast<std::size_t>(num_rows) * row_size * sizeof(float);
}

}  // namespace

DraftDraws::DraftDraws(const VerifierLimits& limits, cudaStream_t stream)
    : limits_(limits),
      stream_(stream),
      upload_(stream),
      row_weights_(limits.max_drawn_rows > 0 ? NumBytes(limits.max_rows, limits.vocab_size) : 0),
      weights_(NumBytes(limits.max_drawn_rows, limits.drawn_vocab_size)) {
  if (limits.max_drawn_rows == 0) return;
  const UseGpu use;
  batch_.BuildDraws(std::vector<Draw>(limits.max_rows), limits.vocab_size);
  Stager counter(nullptr, nullptr);
  Stage(batch_, counter);
  upload_.Reserve(counter.num_bytes());
}

const float* DraftDraws::Start(const DeviceLogits& logits, std::span<const Draw> draws,
                               const TokenId* ids, const RowWorkspace& workspace, TopToken* found) {
  FORERUN_CHECK(std::ssize(draws) <= limits_.max_rows, "more rows than the verifier's limit");
  for (const Draw& draw : draws) {
    FORERUN_CHECK(draw.weights_row >= 0 &&
                      (draw.rule == nullptr || draw.weights_row < limits_.max_drawn_rows),
                  "more drawn rows than the verifier's limit");
  }
  auto* const weights = reinterpret_cast<float*>(weights_.data());
  batch_.BuildDraws(draws, limits_.vocab_size);
  Stager counter(nullptr, nullptr);
  Stage(batch_, counter);
  std::byte* const staging = upload_.Start(counter.num_bytes());
  Stager stager(staging, nullptr);
  Stage(batch_, stager);
  Stager on_gpu(nullptr, upload_.Send());
  const SampleArrays arrays = Stage(batch_, on_gpu);
  CheckCuda(SampleRows(logits, arrays, /*needs_mass=*/true, workspace, stream_), kWanted);
  auto* const row_weights = reinterpret_cast<float*>(row_weights_.data());
  CheckCuda(SampleDrafts(logits, arrays, workspace, row_weights, found, stream_), kWanted);
  CheckCuda(
      ScatterDraftWeights(arrays, {row_weights, ids, limits_.drawn_vocab_size, weights}, stream_),
      kWanted);
  return weights;
}

}  // namespace forerun::cuda
