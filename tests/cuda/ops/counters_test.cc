// What the operations of a forward pass may cost at most, as the emulated GPU counts it: launches,
// bytes of weights, bytes of keys and values, and blocks.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "cpp/model/transformer.h"
#include "cuda/emulation/emulation.h"
#include "cuda/gpu_memory.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/device_rows.h"
#include "tests/cpp/testing/tiny_model.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {
namespace {

// Blocks below which a GPU as large as an H100 has multiprocessors without work.
constexpr std::uint64_t kEnoughBlocks = 132;

// ---- Launches

std::string ConfigOf(int num_layers) {
  return R"({"model_type": "llama", "vocab_size": 101, "hidden_size": 24, "intermediate_size": 36,
      "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": 2,
      "max_position_embeddings": 512, "num_hidden_layers": )" +
         std::to_string(num_layers) + "}";
}

constexpr int kNumRows[] = {1, 5, 64};

// Of forward passes of so many rows each: without a context, then with one that attention splits.
std::vector<std::uint64_t> LaunchesOf(int num_layers) {
  const ModelDirectory directory;
  const ModelSpec spec = WriteTinyModel(directory, ConfigOf(num_layers));
  Checkpoint checkpoint(directory.path());
  CudaOps ops;
  const DType dtype = DType::kBFloat16;
  Transformer model(spec, LoadWeights(spec, checkpoint, UniformFormats(dtype), ops), ops,
                    {512, 512, 16, 32, 512, dtype});
  std::vector<BlockId> table(32);
  std::iota(table.begin(), table.end(), 0);
  const auto forward = [&](int num_context, int num_rows) {
    const std::uint64_t before = emulation::counters().launches;
    const std::vector<TokenId> tokens(num_rows, 7);
    std::vector<std::int32_t> wanted(num_rows);
    std::iota(wanted.begin(), wanted.end(), 0);
    const SequenceRows sequence = {0, num_rows, num_context, table};
    model.Forward({tokens, {&sequence, 1}, wanted});
    cudaDeviceSynchronize();
    return emulation::counters().launches - before;
  };
  std::vector<std::uint64_t> launches;
  for (int num_rows : kNumRows) launches.push_back(forward(0, num_rows));
  forward(0, 300);
  for (int num_rows : kNumRows) launches.push_back(forward(300, num_rows));
  return launches;
}

TEST(CountersTest, ALayerIsSixLaunchesAndOneMoreWhereAttentionIsSplit) {
  if (emulation::DetectsRaces()) GTEST_SKIP() << "launches are the same in all builds";
  const std::vector<std::uint64_t> of_two = LaunchesOf(2), of_three = LaunchesOf(3);
  for (std::size_t i = 0; i < of_two.size(); ++i) {
    EXPECT_EQ(of_three[i] - of_two[i], i < std::size(kNumRows) ? 6 : 7) << i;
  }
}

// ---- Weights

// Bytes of a matrix that a product of so many rows loads.
std::uint64_t LoadedBy(const Matrix& matrix, std::int64_t num_bytes, int num_rows, bool gated) {
  GpuMemory memory;
  int num_outputs = 0;
  for (int part = 0; part < matrix.num_parts; ++part) num_outputs += matrix.parts[part].num_outputs;
  const GpuRows x(memory, HostRows(num_rows, matrix.num_inputs));
  const GpuRows y(memory, num_rows, gated ? num_outputs / 2 : num_outputs);
  ProductTask task = {.x = x.view().data, .x_stride = x.view().stride, .num_rows = num_rows};
  task.gated = gated;
  task.y = y.view().data;
  task.y_stride = y.view().stride;
  emulation::WatchLoads(matrix.tiles, num_bytes);
  emulation::counters().watched_bytes_loaded = 0;
  EXPECT_EQ(Multiply(matrix, task, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  emulation::WatchLoads(nullptr, 0);
  return emulation::counters().watched_bytes_loaded;
}

TEST(CountersTest, WeightsAreLoadedOnceForUpTo64Rows) {
  if (!emulation::DetectsRaces()) GTEST_SKIP() << "only the race build counts loads";
  GpuMemory memory;
  const int num_inputs = 176, num_tiles = 6, num_outputs = num_tiles / 2 * kTileOutputs;
  Matrix matrix = {.format = WeightFormat::kBFloat16,
                   .stored = DType::kBFloat16,
                   .num_inputs = num_inputs,
                   .num_tiles = num_tiles,
                   .num_parts = 2};
  matrix.parts[0] = {0, 0, num_outputs};
  matrix.parts[1] = {num_tiles / 2, num_outputs, num_outputs};
  const std::int64_t num_bytes = num_tiles * TileBytes(matrix);
  const std::vector<std::byte> zeros(num_bytes);
  const AlignedBuffer tiles(memory, num_bytes);
  memory.Upload(tiles.as<void>(), zeros.data(), num_bytes);
  matrix.tiles = tiles.as<void>();
  for (int num_rows : {1, 2, 5, 8, 9, 16, 17, 32, 33, 64}) {
    for (bool gated : {false, true}) {
      EXPECT_EQ(LoadedBy(matrix, num_bytes, num_rows, gated), num_bytes) << num_rows;
    }
  }
}

// ---- Keys and values

// Heads of Llama-3.1-8B, with one KV head of eight: they read nothing of each other.
constexpr int kNumKvHeads = 1, kGroup = 4, kHeadDim = 128, kBlockSize = 16;

class EmptyCache final : public KvCache {
 public:
  EmptyCache(int num_blocks, int element_bytes)
      : KvCache({1, kNumKvHeads, kHeadDim, kBlockSize, element_bytes}, num_blocks) {}
};

// Of keys and values that attention loads for `num_rows` rows after num_context tokens, in terms of
// the floor: the bytes of each position, or slot of a tree, that some row sees, once. Positions
// beyond the last row in the last tile, and those before the window of the first row in the first
// one, are not part of it.
double LoadedByAttention(int num_context, int num_rows, std::vector<std::int32_t> parents,
                         int window, int element_bytes) {
  const int num_blocks = (num_context + num_rows) / kBlockSize + 1;
  GpuMemory memory;
  EmptyCache cache(num_blocks, element_bytes);
  const std::int64_t num_bytes = num_blocks * cache.layout().block_bytes();
  const AlignedBuffer kv(memory, num_bytes);
  const std::vector<std::byte> zeros(num_bytes);
  memory.Upload(kv.as<void>(), zeros.data(), num_bytes);
  std::vector<BlockId> table(num_blocks);
  std::iota(table.begin(), table.end(), 0);
  const std::vector<TokenId> tokens(num_rows);
  SequenceRows sequence = {0, num_rows, num_context, table};
  if (!parents.empty()) {
    sequence.tree = {num_context + num_rows - static_cast<int>(parents.size()), parents};
  }
  DeviceRows rows(nullptr, /*enough_blocks=*/1024);
  const int num_heads = kNumKvHeads * kGroup;
  rows.Upload(
      {.tokens = tokens, .cache = &cache, .sequences = {&sequence, 1}, .num_heads = num_heads});
  const GpuRows query(memory, HostRows(num_rows, num_heads * kHeadDim));
  const GpuRows out(memory, num_rows, num_heads * kHeadDim);
  AttentionTask task = {.query = query.view().data, .query_stride = query.view().stride};
  task.out = out.view().data;
  task.out_stride = out.view().stride;
  task.num_heads = num_heads;
  task.sliding_window = window;
  rows.SetAttention(RowSet::kAll, task);
  emulation::WatchLoads(kv.as<void>(), num_bytes);
  emulation::counters().watched_bytes_loaded = 0;
  std::byte* const values = kv.as<std::byte>() + num_bytes / 2;
  const KvLayer layer = {kv.as<void>(), values, element_bytes, kNumKvHeads, kHeadDim, kBlockSize};
  EXPECT_EQ(Attend(task, layer, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  emulation::WatchLoads(nullptr, 0);

  std::set<int> seen;
  for (int i = 0; i < num_rows; ++i) {
    int position = sequence.PositionOf(num_context + i);
    const int begin = window > 0 ? position + 1 - window : 0;
    for (int slot = num_context + i; slot >= 0 && position >= begin; --position) {
      seen.insert(slot);
      slot = sequence.SlotBefore(slot);
    }
  }
  const int head_bytes = kHeadDim * element_bytes + layer.num_scale_bytes();
  const double floor = 2.0 * head_bytes * kNumKvHeads * static_cast<double>(seen.size());
  return static_cast<double>(emulation::counters().watched_bytes_loaded) / floor;
}

TEST(CountersTest, KeysAndValuesAreLoadedOnceForAllRowsAndHeads) {
  if (!emulation::DetectsRaces()) GTEST_SKIP() << "only the race build counts loads";
  Random random(1);
  struct Case {
    int num_context, window, element_bytes;
  };
  for (const auto [num_context, window, element_bytes] :
       {Case{600, 0, 2}, {4000, 0, 2}, {600, 150, 2}, {600, 0, 1}}) {
    SCOPED_TRACE(std::to_string(num_context) + " tokens, window " + std::to_string(window) +
                 ", elements of " + std::to_string(element_bytes));
    for (int num_rows : {1, 5, 16}) {
      EXPECT_EQ(LoadedByAttention(num_context, num_rows, {}, window, element_bytes), 1.0)
          << num_rows;
    }
    // The token before the tree and fifteen nodes; then sixteen nodes with that one's keys cached.
    for (int num_nodes : {15, 16}) {
      std::vector<std::int32_t> parents;
      for (int i = 0; i < num_nodes; ++i) parents.push_back(random.Between(-1, i - 1));
      EXPECT_EQ(LoadedByAttention(num_context, 16, parents, window, element_bytes), 1.0)
          << num_nodes;
    }
  }
}

// ---- Blocks

// Of a launch that is queued and never run.
std::uint64_t BlocksOf(const Matrix& matrix, bool gated) {
  emulation::options().lazy_streams = true;
  ProductTask task = {.num_rows = 1};
  task.gated = gated;
  const std::uint64_t before = emulation::counters().blocks_queued;
  EXPECT_EQ(Multiply(matrix, task, nullptr), cudaSuccess);
  const std::uint64_t count = emulation::counters().blocks_queued - before;
  emulation::Reset();
  return count;
}

// Llama-3.1-8B.
TEST(CountersTest, EveryProductOfARowKeepsALargeGpuBusy) {
  struct Product {
    std::vector<int> outputs;
    int num_inputs;
    bool gated = false;
  };
  const Product products[] = {{{4096, 1024, 1024}, 4096},
                              {{4096}, 4096},
                              {{14336, 14336}, 4096, /*gated=*/true},
                              {{4096}, 14336},
                              {{128256}, 4096}};
  for (const Product& product : products) {
    Matrix matrix = {.format = WeightFormat::kBFloat16,
                     .stored = DType::kBFloat16,
                     .num_inputs = product.num_inputs};
    int first_output = 0;
    for (int outputs : product.outputs) {
      matrix.parts[matrix.num_parts++] = {matrix.num_tiles, first_output, outputs};
      matrix.num_tiles += outputs / kTileOutputs;
      first_output += outputs;
    }
    EXPECT_GE(BlocksOf(matrix, product.gated), kEnoughBlocks) << first_output;
  }
}

TEST(CountersTest, AttentionOfARowKeepsALargeGpuBusyFrom2048PositionsOn) {
  const KvLayout layout = {1, 8, 128, 16, 2};
  const std::vector<BlockId> table(131072 / 16);
  for (int num_seen : {2048, 2049, 4096, 4097, 8192, 8193, 30000, 131072}) {
    AttentionPlan plan(/*enough_blocks=*/1024);
    AttentionTables tables;
    const SequenceRows sequence = {0, 1, num_seen - 1, table};
    plan.Set({&sequence, 1}, layout, /*num_heads=*/32, tables);
    EXPECT_GE(plan.runs().size() * layout.num_kv_heads, kEnoughBlocks) << num_seen;
  }
}

TEST(CountersTest, RowsAreScatteredSideBySide) {
  CudaOps ops;
  const std::vector<std::int32_t> sources = {3, 1, 2, 0};
  const std::vector<TokenId> tokens(sources.size());
  const ForwardRows& rows = ops.Begin({.tokens = tokens, .sources = sources});
  const GpuRows x(ops.memory(), HostRows(4, 8)), out(ops.memory(), 4, 8);
  const std::uint64_t before = emulation::counters().blocks_queued;
  ops.ScatterRows(x, rows, RowIndices::kSources, out);
  EXPECT_EQ(emulation::counters().blocks_queued - before, sources.size());
}

TEST(CountersTest, TheSharedMemoryOfAKernelIsSetOnce) {
  const std::vector<BlockId> table = {0};
  const SequenceRows sequence = {0, 1, 0, table};
  const std::vector<TokenId> tokens(1);
  CudaOps ops;
  const auto cache = ops.MakeKvCache({1, 1, 64, 16, 2}, 1);
  const GpuRows qkv(ops.memory(), HostRows(1, 3 * 64)), out(ops.memory(), 1, 64);
  const FloatVector cos_sin(ops.memory(), std::vector<float>(64));
  const auto attend = [&] {
    const std::uint64_t before = emulation::counters().function_settings;
    const ForwardRows& rows = ops.Begin(
        {.tokens = tokens, .cache = cache.get(), .sequences = {&sequence, 1}, .num_heads = 1});
    ops.RotateAndStore(qkv, {}, rows, cos_sin.data(), 0);
    ops.Attention(qkv.view().Columns(0, 64), rows, RowSet::kAll, 0, {1, 1, 64}, out);
    return emulation::counters().function_settings - before;
  };
  EXPECT_LE(attend(), 1);
  EXPECT_EQ(attend(), 0);
}

}  // namespace
}  // namespace forerun::cuda
