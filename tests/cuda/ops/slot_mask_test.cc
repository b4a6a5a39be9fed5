// The planted error of slot_mask.h is found by what the tests of attention compare: the bits of a
// node with those of its path alone.
#include "tests/cuda/ops/slot_mask.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/gpu_memory.h"
#include "cuda/ops/device_rows.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {
namespace {

using Attention = cudaError_t (*)(const AttentionTask&, const KvLayer&);
cudaError_t AttendByPosition(const AttentionTask& task, const KvLayer& layer) {
  return Attend(task, layer, nullptr);
}

constexpr int kHeadDim = 64, kNumHeads = 1, kBlockSize = 16;

class OneHead final : public KvCache {
 public:
  explicit OneHead(int num_blocks) : KvCache({1, 1, kHeadDim, kBlockSize, 2}, num_blocks) {}
};

// Queries, keys and values of the slots of a sequence, which lie in order.
struct Slots {
  HostRows queries, keys, values;
};
Slots RandomSlots(Random& random, int count) {
  return {HostRows(random, count, kHeadDim), HostRows(random, count, kHeadDim),
          HostRows(random, count, kHeadDim)};
}

std::vector<std::uint16_t> BFloat16Of(const HostRows& rows, std::size_t padded) {
  std::vector<std::uint16_t> bits(padded);
  std::ranges::transform(rows.values, bits.begin(), FloatToBFloat16);
  return bits;
}

// Of the rows from num_context on, of which those from first_slot on are the nodes of a tree.
HostRows Attended(const Slots& slots, int num_context, const std::vector<std::int32_t>& parents,
                  Attention attention) {
  GpuMemory memory;
  const int num_slots = slots.keys.rows, num_rows = num_slots - num_context;
  const int num_blocks = num_slots / kBlockSize + 1;
  OneHead cache(num_blocks);
  std::vector<BlockId> table(num_blocks);
  for (int i = 0; i < num_blocks; ++i) table[i] = i;
  const std::vector<TokenId> tokens(num_rows);
  const SequenceRows sequence = {0, num_rows, num_context, table, {num_context, parents}};
  DeviceRows rows(nullptr, /*enough_blocks=*/0);
  rows.Upload(
      {.tokens = tokens, .cache = &cache, .sequences = {&sequence, 1}, .num_heads = kNumHeads});
  const std::size_t elements = std::size_t{kHeadDim} * kBlockSize * num_blocks;
  const AlignedBuffer keys(memory, 2 * elements), values(memory, 2 * elements);
  memory.Upload(keys.as<void>(), BFloat16Of(slots.keys, elements).data(), 2 * elements);
  memory.Upload(values.as<void>(), BFloat16Of(slots.values, elements).data(), 2 * elements);
  const GpuRows query(memory, slots.queries.Slice(num_context, num_rows));
  GpuRows out(memory, num_rows, kHeadDim);
  AttentionTask task = {.query = query.view().data, .query_stride = kHeadDim};
  task.out = out.view().data;
  task.out_stride = kHeadDim;
  task.num_heads = kNumHeads;
  task.scale = 0.125f;
  rows.SetAttention(RowSet::kAll, task);
  EXPECT_EQ(attention(task, {keys.as<void>(), values.as<void>(), 2, 1, kHeadDim, kBlockSize}),
            cudaSuccess);
  return out.Download();
}

// Of so many random trees the nodes, and those whose bits are not those of their path alone.
struct Count {
  int nodes = 0, differ = 0;
};
Count Compare(Attention attention) {
  Random random(1);
  Count count;
  for (int i = 0; i < 12; ++i) {
    const int num_context = random.Between(1, 40), num_nodes = random.Between(4, 15);
    const Slots slots = RandomSlots(random, num_context + num_nodes);
    std::vector<std::int32_t> parents = {-1};
    while (std::ssize(parents) < num_nodes) {
      parents.push_back(random.Between(-1, static_cast<int>(std::ssize(parents)) - 1));
    }
    const HostRows together = Attended(slots, num_context, parents, attention);
    for (int node = 0; node < num_nodes; ++node) {
      std::vector<int> path;
      for (int n = node; n >= 0; n = parents[n]) path.push_back(num_context + n);
      Slots alone = {slots.queries.Slice(0, num_context), slots.keys.Slice(0, num_context),
                     slots.values.Slice(0, num_context)};
      for (auto slot = path.rbegin(); slot != path.rend(); ++slot) {
        alone.queries.Append(slots.queries, *slot);
        alone.keys.Append(slots.keys, *slot);
        alone.values.Append(slots.values, *slot);
      }
      const HostRows expected = Attended(alone, num_context, {}, attention);
      const float* last = expected.row(expected.rows - 1);
      for (int c = 0; c < kHeadDim; ++c) EXPECT_NEAR(together.row(node)[c], last[c], 1e-3);
      ++count.nodes;
      count.differ += SameBits(together.row(node), last, kHeadDim) ? 0 : 1;
    }
  }
  return count;
}

TEST(SlotMaskTest, NodesDifferFromTheirPathsInTheirLastBits) {
  const Count by_slot = Compare(AttendBySlot);
  EXPECT_GT(by_slot.differ, by_slot.nodes / 10);
  EXPECT_EQ(Compare(AttendByPosition).differ, 0);
}

}  // namespace
}  // namespace forerun::cuda
