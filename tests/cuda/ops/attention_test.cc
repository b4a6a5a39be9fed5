#include <algorithm>
#include <array>
#include <memory>
#include <ostream>
#include <vector>

#include "cuda/emulation/in_every_order.h"
#include "cuda/ops/cuda_ops.h"
#include "forerun/error.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/build_kind.h"
#include "tests/cuda/ops/attention_layer.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {
namespace {

using emulation::InEveryOrder;
using forerun::testing::NumExamples;

class AttentionTest : public ::testing::TestWithParam<int> {
 protected:
  CudaOps ops_;
};

TEST_P(AttentionTest, AgreesWithDoublePrecision) {
  Random random(1);
  for (int i = 0; i < NumExamples(40, 200); ++i) {
    const bool is_long = i % 10 == 0;
    const int num_positions = is_long ? random.Between(250, 600) : random.Between(2, 70);
    const int num_rows = random.Between(1, std::min(num_positions, 9));
    const Layer layer = RandomLayer(random, GetParam(), num_positions);
    CachedSequence run(ops_, layer, 8 * random.Between(1, 8), i);
    const int num_context = num_positions - num_rows;
    if (num_context > 0) run.Step(layer.qkv.Slice(0, num_context), 0);
    const HostRows out = run.Step(layer.qkv.Slice(num_context, num_rows), num_context);
    const Reference reference(layer);
    // Weights are rounded to bfloat16 too.
    const double precision = layer.element_bytes == 4 ? 1e-5 : 0x1p-7;
    // One of the rows is enough where the context is long.
    for (int r = is_long ? num_rows - 1 : 0; r < num_rows; ++r) {
      if (num_context + r < layer.shape.first_position) continue;
      for (int head = 0; head < layer.shape.num_heads; ++head) {
        const std::vector<double> expected = reference.Attended(num_context + r, head);
        for (int c = 0; c < layer.shape.head_dim; ++c) {
          ASSERT_NEAR(out.row(r)[head * layer.shape.head_dim + c], expected[c], 3 * precision)
              << i << " " << r << " " << head;
        }
      }
    }
  }
}

// The same bits in one pass or in many, for every row.
TEST_P(AttentionTest, ChunksChangeNoBit) {
  Random random(2);
  for (int i = 0; i < NumExamples(4, 30); ++i) {
    const Layer layer = RandomLayer(random, GetParam(), i % 3 == 0 ? 300 : 70);
    CachedSequence one(ops_, layer, 16, 1), many(ops_, layer, 8, 2);
    const HostRows whole = one.Step(layer.qkv, 0);
    for (int begin = 0; begin < layer.num_positions;) {
      const int count = std::min(random.Between(1, 40), layer.num_positions - begin);
      const HostRows chunk = many.Step(layer.qkv.Slice(begin, count), begin);
      for (int r = 0; r < count; ++r) {
        if (begin + r < layer.shape.first_position) continue;
        ASSERT_TRUE(SameBits(chunk.row(r), whole.row(begin + r), chunk.cols)) << i << " " << begin;
      }
      begin += count;
    }
  }
}

// A node of a tree gets what it gets where its path is all that follows the context.
TEST_P(AttentionTest, ANodesBitsDependOnItsPathAlone) {
  Random random(3);
  for (int i = 0; i < NumExamples(4, 40); ++i) {
    const int num_context = random.Between(1, 130), num_nodes = random.Between(1, 8);
    const Layer layer = RandomLayer(random, GetParam(), num_context + num_nodes + 1);
    const HostRows nodes(random, num_nodes + 1, layer.qkv.cols);
    std::vector<std::int32_t> parents;
    for (int node = 0; node < num_nodes; ++node) parents.push_back(random.Between(-1, node - 1));
    // The token before the tree comes in the same pass.
    CachedSequence run(ops_, layer, 16, 3);
    run.Step(layer.qkv.Slice(0, num_context), 0);
    const HostRows out = run.Step(nodes, num_context, {num_context + 1, parents});
    for (int node = -1; node < num_nodes; ++node) {
      std::vector<int> path = {node};
      while (path.back() >= 0) path.push_back(parents[path.back()]);
      std::reverse(path.begin(), path.end());
      HostRows chain(static_cast<int>(path.size()), nodes.cols);
      for (std::size_t p = 0; p < path.size(); ++p) {
        std::copy_n(nodes.row(path[p] + 1), nodes.cols, chain.row(static_cast<int>(p)));
      }
      CachedSequence alone(ops_, layer, 16, 4);
      alone.Step(layer.qkv.Slice(0, num_context), 0);
      const HostRows expected = alone.Step(chain, num_context);
      ASSERT_TRUE(SameBits(out.row(node + 1), expected.row(chain.rows - 1), out.cols))
          << i << " " << node;
    }
  }
}

// A block that takes all parts joins them as states are joined; parts before a window are empty.
TEST_P(AttentionTest, BlocksThatTakeAllPartsChangeNoBit) {
  CudaOps whole(/*enough_blocks=*/0);
  Random random(9);
  for (int window : {20, 0}) {
    if (window == 0 && !testing::IsPlainBuild()) break;
    Layer layer(random, 1, 2, 8, GetParam(), 600);
    layer.shape.sliding_window = window;
    CachedSequence split(ops_, layer, 16, 1), together(whole, layer, 16, 2);
    split.Step(layer.qkv.Slice(0, 597), 0);
    together.Step(layer.qkv.Slice(0, 597), 0);
    const HostRows rows = layer.qkv.Slice(597, 3);
    ASSERT_EQ(split.Step(rows, 597).values, together.Step(rows, 597).values) << window;
  }
}

TEST_P(AttentionTest, WantedRowsGetTheBitsOfAll) {
  Random random(4);
  const Layer layer = RandomLayer(random, GetParam(), 60);
  CachedSequence all(ops_, layer, 16, 5), some(ops_, layer, 16, 6);
  const HostRows whole = all.Step(layer.qkv, 0);
  const std::vector<std::int32_t> wanted = {3, 4, 5, 20, 59};
  const HostRows out = some.Step(layer.qkv, 0, {}, wanted);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_TRUE(SameBits(out.row(static_cast<int>(i)), whole.row(wanted[i]), out.cols));
  }
}

// Keys and values of a later row, or of one before the window, may be NaN or infinite.
TEST_P(AttentionTest, WhatARowDoesNotSeeHarmsItNot) {
  Random random(5);
  for (int i = 0; i < NumExamples(4, 30); ++i) {
    Layer layer = RandomLayer(random, GetParam(), 80);
    layer.shape.sliding_window = 30;
    layer.shape.first_position = 0;
    CachedSequence run(ops_, layer, 16, 7), poisoned(ops_, layer, 16, 7);
    const HostRows expected = run.Step(layer.qkv, 0);
    HostRows qkv = layer.qkv;
    const int bad = random.Between(10, 60);
    std::fill_n(qkv.row(bad), qkv.cols, i % 2 == 0 ? NAN : INFINITY);
    const HostRows out = poisoned.Step(qkv, 0);
    for (int r = 0; r < 80; ++r) {
      if (r < bad || r >= bad + 30) {
        ASSERT_TRUE(SameBits(out.row(r), expected.row(r), out.cols)) << bad << " " << r;
      } else {
        ASSERT_TRUE(std::isnan(out.row(r)[0])) << bad << " " << r;
      }
    }
  }
}

TEST_P(AttentionTest, ThreadsMayRunInAnyOrder) {
  Random random(6);
  const Layer layer = RandomLayer(random, GetParam(), 300);
  std::vector<HostRows> results;
  InEveryOrder(
      [&] {
        CachedSequence run(ops_, layer, 16, 8);
        run.Step(layer.qkv.Slice(0, 297), 0);
        results.push_back(run.Step(layer.qkv.Slice(297, 3), 297));
        ASSERT_EQ(results[0].values, results.back().values);
      },
      /*num_random=*/1);
}

// Moves are made one after the other, in all layers: the second may read what the first has
// written.
TEST_P(AttentionTest, MovedTokensAreSeenWhereTheyAre) {
  Random random(7);
  const Layer layer = RandomLayer(random, GetParam(), 40);
  CachedSequence run(ops_, layer, 8, 9), straight(ops_, layer, 8, 10);
  const HostRows nodes(random, 4, layer.qkv.cols);
  run.Step(layer.qkv.Slice(0, 20), 0);
  const std::vector<std::int32_t> parents = {-1, -1, 1, 2};  // 20; 21 at 20, 22 at 21, 23 at 22
  run.Step(nodes, 20, {20, parents});
  std::vector<KvMove> moves;
  for (int i = 0; i < 3; ++i) {
    const auto slot = [&](int s) { return std::int64_t{run.table()[s / 8]} * 8 + s % 8; };
    moves.push_back({slot(21 + i), slot(20 + i)});
  }
  ops_.MoveKv(moves, run.cache());
  straight.Step(layer.qkv.Slice(0, 20), 0);
  straight.Step(nodes.Slice(1, 3), 20);
  const HostRows last = layer.qkv.Slice(30, 1);
  ASSERT_EQ(run.Step(last, 23).values, straight.Step(last, 23).values);
}

TEST_P(AttentionTest, NormsOfHeadsComeBeforeTheRotation) {
  Random random(8);
  const Layer layer = RandomLayer(random, GetParam(), 3);
  const AttentionShape& shape = layer.shape;
  const FloatVector cos_sin(ops_.memory(), layer.cos_sin.values);
  const std::vector<float> query_norm = random.Normals(shape.head_dim);
  const std::vector<float> key_norm = random.Normals(shape.head_dim);
  const FloatVector query_weight(ops_.memory(), query_norm), key_weight(ops_.memory(), key_norm);
  const auto cache =
      ops_.MakeKvCache({1, shape.num_kv_heads, shape.head_dim, 16, layer.element_bytes}, 1);
  const BlockId block = 0;
  const SequenceRows sequence = {0, 3, 0, {&block, 1}};
  const std::vector<TokenId> tokens(3);
  const ForwardRows& rows =
      ops_.Begin({.tokens = tokens, .cache = cache.get(), .sequences = {&sequence, 1}});
  GpuRows on_device(ops_.memory(), layer.qkv, 2);
  ops_.RotateAndStore(on_device, {query_weight.data(), key_weight.data(), 1e-5f}, rows,
                      cos_sin.data(), 0);
  const HostRows out = on_device.Download();
  const int d = shape.head_dim, num_rotated = shape.num_heads + shape.num_kv_heads;
  for (int p = 0; p < 3; ++p) {
    for (int head = 0; head < num_rotated + shape.num_kv_heads; ++head) {
      std::vector<double> x(layer.qkv.row(p) + head * d, layer.qkv.row(p) + (head + 1) * d);
      if (head < num_rotated) {
        const std::vector<float>& weight = head < shape.num_heads ? query_norm : key_norm;
        double squares = 0;
        for (double value : x) squares += value * value;
        for (int i = 0; i < d; ++i) x[i] *= weight[i] / std::sqrt(squares / d + 1e-5f);
        for (int i = 0; i < d / 2; ++i) {
          const double first = x[i], second = x[d / 2 + i];
          const double cosine = layer.cos_sin.row(p)[i], sine = layer.cos_sin.row(p)[d / 2 + i];
          x[i] = first * cosine - second * sine;
          x[d / 2 + i] = second * cosine + first * sine;
        }
      }
      for (int i = 0; i < d; ++i) ASSERT_NEAR(out.row(p)[head * d + i], x[i], 1e-5);
    }
  }
}

TEST_P(AttentionTest, CachesThatKernelsCannotReadAreRefused) {
  EXPECT_THROW(ops_.MakeKvCache({1, 1, 264, 16, GetParam()}, 1), InvalidArgument);
  const auto cache = ops_.MakeKvCache({1, 1, 64, 16, GetParam()}, 1);
  const KvMove move = {0, 16};
  EXPECT_THROW(ops_.MoveKv({&move, 1}, *cache), InternalError);
  EXPECT_THROW(ops_.MakeKvCache({1, 1, 64, 4, GetParam()}, 1), InternalError);
}

#ifdef FORERUN_EMULATED_GPU
// A block has 99 KiB of shared memory on such a GPU, and 163 KiB on one of 8.0.
TEST_P(AttentionTest, HeadsThatABlockHasNoRoomForAreRefused) {
  for (const auto [capability, fits, too_wide] : {std::array{86, 144, 152}, {80, 240, 256}}) {
    emulation::options().capability = capability;
    EXPECT_NO_THROW(ops_.MakeKvCache({1, 1, fits, 16, GetParam()}, 1));
    if (GetParam() == 4) {
      EXPECT_THROW(ops_.MakeKvCache({1, 1, too_wide, 16, 4}, 1), InvalidArgument);
    } else {
      EXPECT_NO_THROW(ops_.MakeKvCache({1, 1, too_wide, 16, GetParam()}, 1));
    }
  }
  emulation::Reset();
}
#endif

INSTANTIATE_TEST_SUITE_P(Elements, AttentionTest, ::testing::Values(1, 2, 4), ElementName);

}  // namespace
}  // namespace forerun::cuda
