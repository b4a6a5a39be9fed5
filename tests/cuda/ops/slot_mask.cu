#include "cuda/ops/attention_bfloat16.cuh"
#include "cuda/ops/launch.h"
#include "tests/cuda/ops/slot_mask.h"

namespace forerun::cuda {
namespace {

// Its positions are slots.
struct SlotItem : Item {
  using Item::Item;

  __device__ Tile TileAt(int begin) const { return {begin, kTilePositions, 0, 0}; }
  __device__ Range PositionsOf(int part) const {
    int end = item.most_end;
    for (int i = 0; i < item.num_tail_slots; ++i) end = max(end, slots()[i] + 1);
    return Intersect({0, end}, {part * item.part_positions, (part + 1) * item.part_positions});
  }
  __device__ bool Sees(int row, int slot) const {
    const int end = VisibleTo(row).end;
    if (slot < item.tail_position) return slot < end;
    for (int position = item.tail_position; position < end; ++position) {
      if (slots()[NumberOf(row, position)] == slot) return true;
    }
    return false;
  }
};

}  // namespace

cudaError_t AttendBySlot(const AttentionTask& task, const KvLayer& layer) {
  const auto kernel = AttendBFloat16<__nv_bfloat16, 64, 1, SlotItem>;
  const Launch launch = {
      dim3(static_cast<unsigned>(task.num_runs), static_cast<unsigned>(layer.num_kv_heads)),
      kAttentionThreads, nullptr, sizeof(BFloat16Tiles<__nv_bfloat16, 64, 1>)};
  return Run(launch, kernel, task, layer);
}

}  // namespace forerun::cuda
