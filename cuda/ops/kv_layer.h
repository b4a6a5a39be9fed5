// Keys and values of a layer on the GPU.
#ifndef FORERUN_CUDA_OPS_KV_LAYER_H_
#define FORERUN_CUDA_OPS_KV_LAYER_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cpp/kv/layout.h"
#include "cpp/ops/sequence_rows.h"

namespace forerun::cuda {

// Both [num_blocks, num_kv_heads, block_size, head_dim], bfloat16 (element_bytes 2) or float32 (4);
// or int8 (1), where the block_size float32 scales of the slots follow those of a block and head.
struct KvLayer {
  void* keys;
  void* values;
  int element_bytes;
  int num_kv_heads;
  int head_dim;
  int block_size;

  __host__ __device__ int num_scale_bytes() const {
    return element_bytes == 1 ? KvLayout::kScaleBytes : 0;
  }
  // In elements: of channel 0 of a slot of a block, and of its scale.
  __host__ __device__ std::int64_t OffsetOf(int block, int in_block, int head) const {
    return BeginOf(block, head) + std::int64_t{in_block} * head_dim;
  }
  __host__ __device__ std::int64_t ScaleOffsetOf(int block, int in_block, int head) const {
    return BeginOf(block, head) + std::int64_t{block_size} * head_dim +
           in_block * KvLayout::kScaleBytes;
  }

  __host__ __device__ std::int64_t BeginOf(int block, int head) const {
    return (std::int64_t{block} * num_kv_heads + head) * block_size *
           (head_dim + num_scale_bytes());
  }
};

// Rows [num_rows, (heads + 2 kv_heads) * head_dim] are changed in place and stored, as
// Ops::RotateAndStore says.
struct RotateTask {
  float* qkv = nullptr;
  std::int64_t stride = 0;
  int num_rows = 0;
  int num_heads = 0;
  const float* query_norm = nullptr;  // [head_dim] or null
  const float* key_norm = nullptr;
  float eps = 0.0f;
  const std::int32_t* positions = nullptr;  // [num_rows]
  const std::int32_t* slots = nullptr;      // [num_rows]
  const float* cos_sin = nullptr;           // [max_position, head_dim]
};
cudaError_t RotateAndStore(const RotateTask& task, const KvLayer& layer, cudaStream_t stream);

// Moves keys and values of `num_layers` layers, of which `layer` is the first, one move after the
// other. `moves` lie on the GPU; from a layer's keys to its values and from there to the next
// layer's keys it is layer_bytes each.
cudaError_t MoveKv(const KvMove* moves, int num_moves, const KvLayer& layer, int num_layers,
                   std::int64_t layer_bytes, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_KV_LAYER_H_
