// The geometry of the paged KV cache.
//
// Per layer, a block holds block_size tokens of every KV head. On the CPU:
//   keys    [num_blocks, num_kv_heads, head_dim, block_size]   a lane owns a position
//   values  [num_blocks, num_kv_heads, block_size, head_dim]   a lane owns a channel
// so that attention sums in an order fixed by the logical position alone. Where elements are int8,
// the block_size float32 scales of the slots follow the keys, or values, of a block and head.
#ifndef FORERUN_CPP_KV_LAYOUT_H_
#define FORERUN_CPP_KV_LAYOUT_H_

#include <cstdint>

namespace forerun {

struct KvLayout {
  static constexpr int kScaleBytes = 4;

  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;  // a multiple of kKvBlockGranularity
  int element_bytes = 0;

  bool is_int8() const { return element_bytes == 1; }
  // Of keys (or of values) of one block in one layer, scales too: of a head, and of all.
  std::int64_t head_elements() const {
    return std::int64_t{block_size} * (head_dim + (is_int8() ? kScaleBytes : 0));
  }
  std::int64_t block_elements() const { return num_kv_heads * head_elements(); }
  // Keys and values of one block in all layers.
  std::int64_t block_bytes() const { return 2 * num_layers * block_elements() * element_bytes; }
};

inline constexpr int kKvBlockGranularity = 16;

}  // namespace forerun

#endif  // FORERUN_CPP_KV_LAYOUT_H_
