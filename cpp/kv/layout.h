// The geometry of the paged KV cache.
//
// Per layer, a block holds block_size tokens of every KV head:
//   keys    [num_blocks, num_kv_heads, head_dim, block_size]   a lane owns a position
//   values  [num_blocks, num_kv_heads, block_size, head_dim]   a lane owns a channel
// so that attention sums in an order fixed by the logical position alone.
#ifndef FORERUN_CPP_KV_LAYOUT_H_
#define FORERUN_CPP_KV_LAYOUT_H_

#include <cstdint>

namespace forerun {

struct KvLayout {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;  // a multiple of kKvBlockGranularity
  int element_bytes = 0;

  // Elements of keys (or of values) of one block in one layer.
  std::int64_t block_elements() const { return std::int64_t{num_kv_heads} * head_dim * block_size; }
  // Keys and values of one block in all layers.
  std::int64_t block_bytes() const { return 2 * num_layers * block_elements() * element_bytes; }
};

inline constexpr int kKvBlockGranularity = 16;

}  // namespace forerun

#endif  // FORERUN_CPP_KV_LAYOUT_H_
