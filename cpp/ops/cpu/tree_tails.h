// The last positions of the branches of draft trees, copied so that they lie in order.
//
// Along a tree's first chain positions are slots, and attention needs nothing of this. On any other
// branch the ancestors' keys lie apart. Their copies lie as those of a plain sequence would, so the
// same kernel walks them in the same order and gets the same bits.
#ifndef FORERUN_CPP_OPS_CPU_TREE_TAILS_H_
#define FORERUN_CPP_OPS_CPU_TREE_TAILS_H_

#include <cstdint>
#include <vector>

#include "cpp/ops/cpu/cpu_kv_cache.h"
#include "cpp/ops/cpu/host_scratch.h"
#include "cpp/ops/cpu/kernels.h"
#include "cpp/ops/sequence_rows.h"
#include "cpp/util/thread_team.h"

namespace forerun {

class TreeTails {
 public:
  void Clear();

  // Plans the tail of a row in `slot` and its ancestors; returns its number.
  int Add(const SequenceRows& sequence, int slot, int block_size);

  // Copies every tail's keys and values of this layer.
  void Gather(const CpuKvCache& cache, int layer, ThreadTeam& team);

  // Lets `task` find the tail in what was gathered.
  void Attach(int tail, int head, AttentionTask& task) const;

  bool empty() const { return tails_.empty(); }

 private:
  struct Tail {
    int position;  // of its first slot, a multiple of kLanes
    int slot;      // its first one in the copy
  };

  template <typename T>
  void GatherGroup(const CpuKvCache& cache, int layer, int head, int group) const;

  std::vector<Tail> tails_;
  std::vector<std::int64_t> sources_;  // per slot of the copy the cache's, or kNothing

  // Of the last Gather.
  std::int64_t head_elements_ = 0;  // keys, or values, of one head
  int element_bytes_ = 0;
  HostScratch keys_;    // [num_kv_heads, num_blocks, head_elements], as in the cache
  HostScratch values_;  // likewise
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_TREE_TAILS_H_
