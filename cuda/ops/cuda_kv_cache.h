// Keys and values in a GPU's memory.
#ifndef FORERUN_CUDA_OPS_CUDA_KV_CACHE_H_
#define FORERUN_CUDA_OPS_CUDA_KV_CACHE_H_

#include <cstddef>
#include <cstdint>

#include "cpp/ops/kv_cache.h"
#include "cpp/tensor/tensor.h"
#include "cuda/ops/kv_layer.h"

namespace forerun::cuda {

class CudaKvCache final : public KvCache {
 public:
  CudaKvCache(const KvLayout& layout, int num_blocks, Memory& memory)
      : KvCache(layout, num_blocks),
        layer_bytes_(num_blocks * layout.block_elements() * layout.element_bytes),
        data_(memory, 2 * layout.num_layers * layer_bytes_) {}

  KvLayer LayerOf(int layer) const {
    std::byte* keys = data_.as<std::byte>() + 2 * layer * layer_bytes_;
    return {keys,
            keys + layer_bytes_,
            layout().element_bytes,
            layout().num_kv_heads,
            layout().head_dim,
            layout().block_size};
  }
  // From a layer's keys to its values, and from there to the next layer's keys.
  std::int64_t layer_bytes() const { return layer_bytes_; }

 private:
  std::int64_t layer_bytes_;
  AlignedBuffer data_;
};

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_CUDA_KV_CACHE_H_
