#include "cuda/ops/attention.h"
#include "cuda/ops/attention_bfloat16.cuh"
#include "cuda/ops/attention_float32.cuh"
#include "cuda/ops/attention_softmax.cuh"
#include "cuda/ops/launch.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

// A block per item and KV head.
__global__ void __launch_bounds__(kAttentionThreads)
    JoinStates(const __grid_constant__ AttentionTask task, const __grid_constant__ KvLayer layer) {
  const std::int32_t number = task.split_items[blockIdx.x];
  if (number == kNoItem) return;
  const Item item(task, layer, number, static_cast<int>(blockIdx.y));
  const int head_dim = layer.head_dim;
  for (int i = Thread(); i < item.item.num_queries * head_dim; i += kAttentionThreads) {
    const int q = i / head_dim;
    float max = -INFINITY, weight = 0.0f, sum = 0.0f;
    for (int part = 0; part < item.item.num_parts; ++part) {
      const float* state = item.StateOf(part);
      const float* softmax = state + item.item.num_queries * head_dim + q;
      const JoinScales scales = Join(softmax[0], softmax[item.item.num_queries], max, weight);
      sum = Joined(sum, state[i], scales);
    }
    item.OutputOf(q)[i % head_dim] = sum * (1.0f / weight);
  }
}

template <typename T, int kDim, int kMTiles>
cudaError_t RunTiles(Launch launch, const AttentionTask& task, const KvLayer& layer) {
  launch.shared_bytes = sizeof(BFloat16Tiles<T, kDim, kMTiles>);
  return RunShared<AttendBFloat16<T, kDim, kMTiles>>(launch, task, layer);
}
template <typename T, int kDim>
cudaError_t RunHeads(const Launch& launch, const AttentionTask& task, const KvLayer& layer) {
  if (task.max_queries == kFewQueries) return RunTiles<T, kDim, 1>(launch, task, layer);
  return RunTiles<T, kDim, MostQueries(kDim, sizeof(T)) / kQueriesPerTile>(launch, task, layer);
}
template <typename T>
cudaError_t RunBFloat16(const Launch& launch, const AttentionTask& task, const KvLayer& layer) {
  if (layer.head_dim <= 64) return RunHeads<T, 64>(launch, task, layer);
  if (layer.head_dim <= 128) return RunHeads<T, 128>(launch, task, layer);
  return RunHeads<T, 256>(launch, task, layer);
}

cudaError_t RunRuns(const AttentionTask& task, const KvLayer& layer, cudaStream_t stream) {
  Launch launch = {
      dim3(static_cast<unsigned>(task.num_runs), static_cast<unsigned>(layer.num_kv_heads)),
      kAttentionThreads, stream};
  if (layer.element_bytes == 1) return RunBFloat16<std::int8_t>(launch, task, layer);
  if (layer.element_bytes == 2) return RunBFloat16<__nv_bfloat16>(launch, task, layer);
  launch.shared_bytes = Float32Tiles::SharedBytes(layer.head_dim);
  return RunShared<AttendFloat32>(launch, task, layer);
}

}  // namespace

std::size_t Float32SharedBytes(int head_dim) { return Float32Tiles::SharedBytes(head_dim); }

cudaError_t Attend(const AttentionTask& task, const KvLayer& layer, cudaStream_t stream) {
  if (layer.head_dim > kMaxHeadDim) return cudaErrorInvalidValue;
  const cudaError_t status = RunRuns(task, layer, stream);
  if (status != cudaSuccess || task.num_split_items == 0) return status;
  return Run(
      {dim3(static_cast<unsigned>(task.num_split_items), static_cast<unsigned>(layer.num_kv_heads)),
       kAttentionThreads, stream},
      JoinStates, task, layer);
}

}  // namespace forerun::cuda
