// Keys and values in memory, as kv/layout.h says.
#ifndef FORERUN_CPP_OPS_CPU_CPU_KV_CACHE_H_
#define FORERUN_CPP_OPS_CPU_CPU_KV_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

// Kernels load whole vectors: that of the last value may reach this far past it.
inline constexpr std::int64_t kOverreadBytes = kLanes * sizeof(float);

// Offsets of a slot's channel 0, in elements, from block 0 of a layer's keys and of its values. The
// next channel of a key is block_size elements further on, that of a value one.
struct KvOffsets {
  std::int64_t key;
  std::int64_t value;
  std::int64_t scale;  // of int8 elements: of keys and of values
};

// call(T()) with the type of the elements.
template <typename Call>
void WithKvElement(const KvLayout& layout, const Call& call) {
  if (layout.is_int8()) {
    call(std::int8_t());
  } else if (layout.element_bytes == 2) {
    call(std::uint16_t());
  } else {
    call(float());
  }
}

class CpuKvCache final : public KvCache {
 public:
  CpuKvCache(const KvLayout& layout, int num_blocks);

  // Block 0 of a layer's keys or values.
  std::byte* keys(int layer) const { return data_.as<std::byte>() + 2 * layer * layer_bytes_; }
  std::byte* values(int layer) const { return keys(layer) + layer_bytes_; }

  KvOffsets OffsetsOf(std::int64_t cache_slot, int head) const {
    const KvLayout& shape = layout();
    const std::int64_t offset = cache_slot % shape.block_size;
    const std::int64_t begin =
        cache_slot / shape.block_size * shape.block_elements() + head * shape.head_elements();
    return {
        begin + offset, begin + offset * shape.head_dim,
        begin + std::int64_t{shape.head_dim} * shape.block_size + offset * KvLayout::kScaleBytes};
  }

 private:
  std::int64_t layer_bytes_;  // keys, or values, of all blocks
  AlignedBuffer data_;        // [num_layers, 2, num_blocks, block_elements]
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_CPU_KV_CACHE_H_
