#include "cuda/verify/device.cuh"
#include "cuda/verify/residual.cuh"
#include "cuda/verify/walk.h"
#include "cuda/verify/walk_steps.cuh"

namespace forerun::cuda {
namespace {

constexpr int kThreads = 256;

// What thread 0 tells the others.
struct WalkShared {
  WalkStop stop;
  WalkQuery query;
  PartStart start;
  Mass parts[kMaxRowParts];
};

// Of each row of draft weights the sum, in units of 2^-32.
__global__ void __launch_bounds__(kThreads) SumDraftRows(WalkArrays arrays) {
  __shared__ BlockCollectives<kThreads> block;
  const int vocab_size = arrays.batch.vocab_size;
  const float* const weights = arrays.batch.draft_rows[blockIdx.x];
  Mass sum = 0;
  for (int token = static_cast<int>(threadIdx.x); token < vocab_size; token += kThreads) {
    sum += static_cast<Mass>(static_cast<double>(weights[token]) * 0x1p32);
  }
  sum = block.Reduce(sum, Sum());
  if (threadIdx.x == 0) arrays.draft_sums[blockIdx.x] = sum;
}

// The draft of one request, read by its block.
struct Draft {
  const TokenId* tokens;
  const std::int32_t* parents;
  int size;

  __device__ int FirstChildAfter(int node, int parent) const {
    int child = node + 1;
    while (child < size && parents[child] != parent) ++child;
    return child < size ? child : kNoNode;
  }
  __device__ bool RepeatsSibling(int node) const {
    for (int i = parents[node] + 1; i < node; ++i) {
      if (parents[i] == parents[node] && tokens[i] == tokens[node]) return true;
    }
    return false;
  }
  __device__ bool HasChild(int node, TokenId token) const {
    for (int i = node + 1; i < size; ++i) {
      if (parents[i] == node && tokens[i] == token) return true;
    }
    return false;
  }
};

__device__ Draft DraftOf(const WalkArrays& arrays, const SampleRule& rule) {
  return {arrays.batch.tokens + rule.first_node, arrays.batch.parents + rule.first_node,
          rule.num_nodes};
}

// Of every node, all at once: its links, and the weight of its token after its parent.
template <typename T>
__device__ void PrepareRows(const DeviceLogits& logits, const WalkArrays& arrays,
                            const SampleRule& rule) {
  const Draft draft = DraftOf(arrays, rule);
  const bool is_coupled = rule.method == static_cast<int>(AcceptanceMethod::kCoupled);
  for (int i = static_cast<int>(threadIdx.x); i <= draft.size; i += kThreads) {
    const int node = i - 1;
    const int row_index = rule.RowAfter(node);
    WalkRow& row = arrays.scratch[row_index];
    arrays.emitted[row_index] = -1;
    row.first_child = draft.FirstChildAfter(node, node);
    if (node == kDraftRoot) {
      row.weight = 1.0;
      continue;
    }
    row.next_sibling = draft.FirstChildAfter(node, draft.parents[node]);
    row.token_weight = 0.0;
    const int parent_row = rule.RowAfter(draft.parents[node]);
    if (is_coupled || arrays.batch.rows[parent_row].status != 0 ||
        arrays.rows.states[parent_row].status != kRowOk || draft.RepeatsSibling(node)) {
      continue;
    }
    const RowReader<T> reader(logits, arrays.batch, parent_row);
    const Mass weight = reader.KeptWeight(arrays.rows.states[parent_row], draft.tokens[node]);
    row.token_weight = static_cast<double>(weight) * 0x1p-32;
  }
}

// By one thread, at the end.
__device__ void WriteOutcome(const WalkArrays& arrays, const SampleRule& rule,
                             const WalkOutcome& outcome) {
  const Draft draft = DraftOf(arrays, rule);
  arrays.outcomes[blockIdx.x] = outcome;
  arrays.emitted[rule.RowAfter(outcome.last_node)] = outcome.token;
  for (int node = outcome.last_node; node != kDraftRoot; node = draft.parents[node]) {
    arrays.emitted[rule.RowAfter(draft.parents[node])] = draft.tokens[node];
  }
}

// Children's tokens cannot be drawn.
__device__ void TakeOutChildren(const WalkArrays& arrays, const SampleRule& rule, int node,
                                Mass* parts) {
  const Draft draft = DraftOf(arrays, rule);
  const int part_tokens = PartTokens(arrays.batch.vocab_size);
  for (int child = draft.FirstChildAfter(node, node); child != kNoNode;
       child = draft.FirstChildAfter(child, node)) {
    const double weight = arrays.scratch[rule.RowAfter(child)].token_weight;
    if (weight == 0.0) continue;
    parts[draft.tokens[child] / part_tokens] -= static_cast<Mass>(weight * 0x1p32);
  }
}

// Reads the row that the walk of thread 0 waits for, and answers it. By all threads of the block.
template <typename T>
__device__ void ReadRow(const DeviceLogits& logits, const WalkArrays& arrays,
                        const SampleRule& rule, WalkShared& shared, WalkSteps& steps) {
  const int vocab_size = arrays.batch.vocab_size;
  const int row_index = rule.RowAfter(shared.query.node);
  const RowReader<T> row(logits, arrays.batch, row_index);
  const bool is_drawn = shared.stop != WalkStop::kDrawUnclaimed;
  const auto first_tile = std::int64_t{row_index} * NumTiles(vocab_size);
  const Residual<T> residual = {
      row,
      arrays.rows.states[row_index],
      arrays.rows.groups + first_tile * kRowThreads,
      is_drawn ? arrays.batch.draft_rows[rule.drawn_row + shared.query.node + 1] : nullptr,
      shared.query.target_scale,
      shared.query.draft_scale};
  // A residual that is drawn from was summed just before.
  if (!is_drawn && residual.state.has_tile_masses != 0) {
    SumTiles(vocab_size, arrays.rows.tiles + first_tile, shared.parts);
  } else if (shared.stop != WalkStop::kDrawResidual) {
    SumParts(vocab_size, residual, shared.parts);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (!is_drawn) TakeOutChildren(arrays, rule, shared.query.node, shared.parts);
    if (shared.stop == WalkStop::kSumResiduals) {
      steps.SetSum(SumOfParts(vocab_size, shared.parts));
    } else {
      shared.start = FindPart(vocab_size, shared.parts, residual.unit(), shared.query.point);
    }
  }
  __syncthreads();
  if (shared.stop == WalkStop::kSumResiduals || threadIdx.x >= kWarpSize) return;
  const Draft draft = DraftOf(arrays, rule);
  const int node = shared.query.node;
  const auto mass_of = [&](TokenId token) {
    return !is_drawn && draft.HasChild(node, token) ? Mass{0} : residual.Of(row.At(token), token);
  };
  steps.SetDrawn(FindToken(vocab_size, mass_of, shared.start, residual.unit(), shared.query.point));
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    WalkRequests(DeviceLogits logits, WalkArrays arrays) {
  __shared__ WalkShared shared;
  const SampleRule& rule = arrays.batch.rules[blockIdx.x];
  if (rule.samples == 0) return;
  PrepareRows<T>(logits, arrays, rule);
  __syncthreads();
  WalkSteps steps(arrays, rule);
  while (true) {
    if (threadIdx.x == 0) {
      shared.stop = steps.Run();
      if (shared.stop == WalkStop::kEnd) {
        WriteOutcome(arrays, rule, steps.outcome());
      } else {
        shared.query = steps.query();
      }
    }
    __syncthreads();
    if (shared.stop == WalkStop::kEnd) return;
    ReadRow<T>(logits, arrays, rule, shared, steps);
    __syncthreads();
  }
}

template <typename Kernel, typename... Arguments>
cudaError_t LaunchBlocks(int num_blocks, cudaStream_t stream, Kernel kernel,
                         const Arguments&... arguments) {
  if (num_blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

cudaError_t LaunchWalk(const DeviceLogits& logits, const WalkArrays& arrays, cudaStream_t stream) {
  const cudaError_t status = LaunchBlocks(arrays.num_drawn_rows, stream, SumDraftRows, arrays);
  if (status != cudaSuccess) return status;
  const int num_requests = arrays.batch.num_requests;
  switch (logits.dtype) {
    case DType::kFloat32:
      return LaunchBlocks(num_requests, stream, WalkRequests<float>, logits, arrays);
    case DType::kBFloat16:
      return LaunchBlocks(num_requests, stream, WalkRequests<__nv_bfloat16>, logits, arrays);
    case DType::kFloat16:
      return LaunchBlocks(num_requests, stream, WalkRequests<__half>, logits, arrays);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace forerun::cuda
