#include <cfloat>

#include "cuda/ops/kv_layer.h"
#include "cuda/ops/launch.h"
#include "cuda/portable.cuh"

namespace forerun::cuda {
namespace {

constexpr int kWarps = 4;

// Writes a head of a slot, a lane every 32nd channel.
__device__ void StoreHead(const float* x, const KvLayer& layer, float* to, void*, int lane) {
  for (int i = lane; i < layer.head_dim; i += kWarpSize) to[i] = x[i];
}
__device__ void StoreHead(const float* x, const KvLayer& layer, __nv_bfloat16* to, void*,
                          int lane) {
  for (int i = lane; i < layer.head_dim; i += kWarpSize) to[i] = __float2bfloat16_rn(x[i]);
}
// As multiples of a scale, as on the CPU (cpp/ops/cpu/cpu_kv_cache.cc).
__device__ void StoreHead(const float* x, const KvLayer& layer, std::int8_t* to, void* scale,
                          int lane) {
  float largest = 0.0f, zero = 0.0f;
  for (int i = lane; i < layer.head_dim; i += kWarpSize) {
    largest = fmaxf(largest, fabsf(x[i]));
    zero += x[i] - x[i];
  }
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, mask));
    zero += __shfl_xor_sync(kFullWarp, zero, mask);
  }
  float step = 0.0f, inverse = 0.0f;  // so stay those too small to be divided by
  if (zero != 0.0f) {
    step = NAN;  // no integer stands for a NaN or an infinity: all channels become NaN
  } else if (largest / 127.0f >= FLT_MIN) {
    step = largest / 127.0f;
    inverse = 127.0f / largest;
  }
  for (int i = lane; i < layer.head_dim; i += kWarpSize) {
    to[i] = inverse > 0.0f ? static_cast<std::int8_t>(rintf(x[i] * inverse)) : std::int8_t{0};
  }
  if (lane == 0) *static_cast<float*>(scale) = step;
}

// The inverse root of the mean square of a head, in all lanes.
__device__ float InverseNorm(const float* x, int head_dim, float eps, int lane) {
  float sum = 0.0f;
  for (int i = lane; i < head_dim; i += kWarpSize) sum = fmaf(x[i], x[i], sum);
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(kFullWarp, sum, mask);
  return 1.0f / sqrtf(sum / static_cast<float>(head_dim) + eps);
}

// A warp per row and head: queries, keys, values.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) RotateHeads(RotateTask task, KvLayer layer) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int row = static_cast<int>(blockIdx.x);
  const int head =
      static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int num_rotated = task.num_heads + layer.num_kv_heads;
  if (head < num_rotated + layer.num_kv_heads) {  // the same in all lanes
    const int head_dim = layer.head_dim, half = head_dim / 2;
    float* x = task.qkv + row * task.stride + std::int64_t{head} * head_dim;
    const bool is_query = head < task.num_heads;
    if (head < num_rotated) {
      const float* norm = is_query ? task.query_norm : task.key_norm;
      const float inverse = norm != nullptr ? InverseNorm(x, head_dim, task.eps, lane) : 1.0f;
      __syncwarp();  // all lanes have read the head
      const float* cosines = task.cos_sin + std::int64_t{task.positions[row]} * head_dim;
      for (int i = lane; i < half; i += kWarpSize) {
        float first = x[i], second = x[i + half];
        if (norm != nullptr) {
          first = first * inverse * norm[i];
          second = second * inverse * norm[i + half];
        }
        const float cosine = cosines[i], sine = cosines[i + half];
        x[i] = first * cosine - second * sine;
        x[i + half] = second * cosine + first * sine;
      }
      __syncwarp();
    }
    if (!is_query) {
      const bool is_key = head < num_rotated;
      const int kv_head = head - (is_key ? task.num_heads : num_rotated);
      T* const stored = static_cast<T*>(is_key ? layer.keys : layer.values);
      const int block = task.slots[row] / layer.block_size;
      const int in_block = task.slots[row] % layer.block_size;
      StoreHead(x, layer, stored + layer.OffsetOf(block, in_block, kv_head),
                stored + layer.ScaleOffsetOf(block, in_block, kv_head), lane);
    }
  }
}

// What a layer keeps of a slot: channels, then a scale's bytes, of all KV heads.
__host__ __device__ int NumChannels(const KvLayer& layer) {
  return layer.num_kv_heads * (layer.head_dim + layer.num_scale_bytes());
}
__device__ std::int64_t ChannelOffset(const KvLayer& layer, std::int64_t slot, int channel) {
  const int num_channels = layer.head_dim + layer.num_scale_bytes();
  const int head = channel / num_channels, in_head = channel % num_channels;
  const int block = static_cast<int>(slot / layer.block_size);
  const int in_block = static_cast<int>(slot % layer.block_size);
  return in_head < layer.head_dim
             ? layer.OffsetOf(block, in_block, head) + in_head
             : layer.ScaleOffsetOf(block, in_block, head) + in_head - layer.head_dim;
}

// A thread owns a channel in a layer's keys or values and walks the moves in order.
template <typename T>
__global__ void MoveChannels(const KvMove* moves, int num_moves, KvLayer layer, int num_sets,
                             std::int64_t set_bytes) {
  const int num_channels = NumChannels(layer);
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t count = std::int64_t{num_sets} * num_channels;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    const int channel = static_cast<int>(i % num_channels);
    T* set = reinterpret_cast<T*>(static_cast<char*>(layer.keys) + i / num_channels * set_bytes);
    for (int m = 0; m < num_moves; ++m) {
      set[ChannelOffset(layer, moves[m].to, channel)] =
          set[ChannelOffset(layer, moves[m].from, channel)];
    }
  }
}

// call(T()) with the type of the elements.
template <typename Call>
cudaError_t WithElement(const KvLayer& layer, const Call& call) {
  if (layer.element_bytes == 1) return call(std::int8_t());
  if (layer.element_bytes == 2) return call(__nv_bfloat16());
  return call(float());
}

}  // namespace

cudaError_t RotateAndStore(const RotateTask& task, const KvLayer& layer, cudaStream_t stream) {
  const int num_heads = task.num_heads + 2 * layer.num_kv_heads;
  const Launch launch = {dim3(static_cast<unsigned>(task.num_rows),
                              static_cast<unsigned>((num_heads + kWarps - 1) / kWarps)),
                         kWarps * kWarpSize, stream};
  return WithElement(layer,
                     [&]<typename T>(T) { return Run(launch, RotateHeads<T>, task, layer); });
}

cudaError_t MoveKv(const KvMove* moves, int num_moves, const KvLayer& layer, int num_layers,
                   std::int64_t layer_bytes, cudaStream_t stream) {
  if (num_moves == 0) return cudaSuccess;
  const int num_sets = 2 * num_layers;
  const std::int64_t count = std::int64_t{num_sets} * NumChannels(layer);
  const Launch launch = {dim3(NumElementBlocks(count)), kElementThreads, stream};
  return WithElement(layer, [&]<typename T>(T) {
    return Run(launch, MoveChannels<T>, moves, num_moves, layer, num_sets, layer_bytes);
  });
}

}  // namespace forerun::cuda
