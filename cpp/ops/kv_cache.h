// Keys and values of all layers of a model.
#ifndef FORERUN_CPP_OPS_KV_CACHE_H_
#define FORERUN_CPP_OPS_KV_CACHE_H_

#include <span>

#include "cpp/kv/layout.h"
#include "cpp/ops/sequence_rows.h"

namespace forerun {

// In the order of its Ops, whose own class derives from it.
class KvCache {
 public:
  virtual ~KvCache() = default;
  const KvLayout& layout() const { return layout_; }
  int num_blocks() const { return num_blocks_; }

 protected:
  KvCache(const KvLayout& layout, int num_blocks) : layout_(layout), num_blocks_(num_blocks) {}

 private:
  KvLayout layout_;
  int num_blocks_;
};

// Throws InternalError unless the sequences' rows lie within `num_rows` and their slots within the
// cache.
void CheckSequences(std::span<const SequenceRows> sequences, const KvCache& cache, int num_rows);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_KV_CACHE_H_
