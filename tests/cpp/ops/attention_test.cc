#include <cmath>

#include "tests/cpp/ops/attention_testing.h"

namespace forerun {
namespace {

class AttentionTest : public OpsTest {};

TEST_P(AttentionTest, EqualsADoublePrecisionSoftmax) {
  for (const AttentionCase& test : AllAttentionCases()) {
    AttentionModel model(test, /*num_positions=*/330, /*seed=*/11);
    const TestRows out = model.Run(*ops_, {{0, 0, 330}});
    for (int position : {0, 1, 15, 16, 17, 63, 64, 65, 100, 255, 256, 257, 300, 329}) {
      for (int head = 0; head < test.shape.num_heads; ++head) {
        const std::vector<double> expected = model.Naive(position, head);
        for (int i = 0; i < test.shape.head_dim; ++i) {
          ASSERT_NEAR(out.row(position)[head * test.shape.head_dim + i], expected[i], 4e-6)
              << test << " position " << position << " head " << head << " channel " << i;
        }
      }
    }
  }
}

TEST_P(AttentionTest, ChunksOfAnyLengthGiveTheSameBits) {
  Random random(12);
  for (const AttentionCase& test : AllAttentionCases()) {
    AttentionModel model(test, /*num_positions=*/330, /*seed=*/13);
    const TestRows whole = model.Run(*ops_, {{0, 0, 330}});
    std::vector<AttentionModel::Part> parts;
    for (int position = 0; position < 330;) {
      const int count = std::min(330 - position,
                                 random.Below(4) == 0 ? 1 + random.Below(70) : 1 + random.Below(9));
      parts.push_back({0, position, count});
      position += count;
    }
    for (const AttentionModel::Part& part : parts) {
      const TestRows chunk = model.Run(*ops_, {part});
      for (int i = 0; i < part.num_rows; ++i) {
        ASSERT_TRUE(SameBits(chunk.row(i), whole.row(part.position + i), whole.view.cols))
            << test << " position " << part.position << " + " << i << " of " << part.num_rows;
      }
    }
  }
}

TEST_P(AttentionTest, NeighboursAndTheirOrderChangeNothing) {
  Random random(14);
  for (const AttentionCase& test : AllAttentionCases()) {
    AttentionModel model(test, /*num_positions=*/300, /*seed=*/15, /*num_sequences=*/4);
    std::vector<TestRows> whole;
    for (int s = 0; s < 4; ++s) whole.push_back(model.Run(*ops_, {{s, 0, 300}}));
    for (int trial = 0; trial < testing::NumExamples(5, 5); ++trial) {
      std::vector<AttentionModel::Part> parts;
      for (int s : random.Permutation(4)) {
        const int position = random.Below(300);
        parts.push_back({s, position, 1 + random.Below(std::min(300 - position, 20))});
      }
      const TestRows out = model.Run(*ops_, parts);
      int row = 0;
      for (const AttentionModel::Part& part : parts) {
        for (int i = 0; i < part.num_rows; ++i, ++row) {
          ASSERT_TRUE(
              SameBits(out.row(row), whole[part.sequence].row(part.position + i), out.view.cols))
              << test << " sequence " << part.sequence;
        }
      }
    }
  }
}

TEST_P(AttentionTest, ThePagesAndTheBlockSizeChangeNothing) {
  for (AttentionCase test : AllAttentionCases()) {
    AttentionModel first(test, /*num_positions=*/130, /*seed=*/16);
    const TestRows expected = first.Run(*ops_, {{0, 0, 130}});
    for (int block_size : {16, 32, 48, 128}) {
      test.block_size = block_size;
      AttentionModel other(test, 130, /*seed=*/16, /*num_sequences=*/1, /*paging_seed=*/17);
      EXPECT_TRUE(SameBits(other.Run(*ops_, {{0, 0, 130}}), expected)) << test;
    }
  }
}

TEST_P(AttentionTest, TheNumberOfThreadsChangesNothing) {
  for (const AttentionCase& test : AllAttentionCases()) {
    AttentionModel model(test, /*num_positions=*/300, /*seed=*/18, /*num_sequences=*/2);
    const std::vector<AttentionModel::Part> parts = {{0, 3, 80}, {1, 290, 5}};
    const TestRows expected = model.Run(*ops_, parts);
    for (int threads : {1, 3, 4}) {
      ThreadTeam team(threads);
      const auto ops = MakeTestedOps(team, GetParam());
      EXPECT_TRUE(SameBits(model.Run(*ops, parts), expected)) << test << " " << threads;
    }
  }
}

// What follows a row's own position, in its last block or in later rows, does not reach it, were
// it NaN or infinite.
TEST_P(AttentionTest, LaterPositionsNeverLeak) {
  for (const AttentionCase& test : AllAttentionCases()) {
    AttentionModel model(test, /*num_positions=*/100, /*seed=*/19);
    const TestRows expected = model.Run(*ops_, {{0, 70, 30}});
    model.PoisonFrom(85);
    const TestRows out = model.Run(*ops_, {{0, 70, 30}});
    for (int i = 0; i < 15; ++i) {
      ASSERT_TRUE(SameBits(out.row(i), expected.row(i), out.view.cols)) << test << " row " << i;
    }
    for (int i = 15; i < 30; ++i) EXPECT_TRUE(std::isnan(out.row(i)[0])) << test;
  }
}

TEST_P(AttentionTest, PositionsBeforeTheWindowNeverLeak) {
  for (const AttentionCase& test : AllAttentionCases()) {
    const int window = test.shape.sliding_window;
    if (window == 0) continue;
    AttentionModel model(test, /*num_positions=*/100, /*seed=*/20);
    const TestRows expected = model.Run(*ops_, {{0, 60, 40}});
    model.PoisonBefore(70);
    const TestRows out = model.Run(*ops_, {{0, 60, 40}});
    for (int i = std::max(0, 10 + window - 1); i < 40; ++i) {
      ASSERT_TRUE(SameBits(out.row(i), expected.row(i), out.view.cols)) << test << " row " << i;
    }
  }
}

// Slots before the first position hold nothing: they are as good as not there.
TEST_P(AttentionTest, NoRowSeesPositionsBeforeTheFirst) {
  for (AttentionCase test : AllAttentionCases()) {
    for (int first : {1, 5, 70}) {
      if (test.shape.sliding_window > 0 && test.shape.sliding_window < 30) continue;
      test.shape.first_position = first;
      AttentionModel model(test, /*num_positions=*/100, /*seed=*/22);
      model.PoisonBefore(first);
      const TestRows out = model.Run(*ops_, {{0, first, 100 - first}});
      for (int position : {first, first + 1, 99}) {
        for (int head = 0; head < test.shape.num_heads; ++head) {
          const std::vector<double> expected = model.Naive(position, head);
          const float* got = out.row(position - first) + head * test.shape.head_dim;
          for (int i = 0; i < test.shape.head_dim; ++i) ASSERT_NEAR(got[i], expected[i], 2e-2);
        }
      }
    }
  }
}

TEST_P(AttentionTest, ContradictingShapesThrow) {
  const AttentionCase test = AllAttentionCases().front();
  AttentionModel model(test, /*num_positions=*/40, /*seed=*/21);
  const auto cache = model.Store(*ops_, {{0, 0, 40}});
  const int cols = test.shape.num_heads * test.shape.head_dim;
  TestRows q(2, cols), out(2, cols), narrow(2, cols - 1);
  const std::vector<BlockId> blocks = {0, 1, 2}, absent = {0, 1, 1000};
  const SequenceRows good{0, 2, 38, blocks}, outside{1, 2, 38, blocks}, beyond{0, 2, 47, blocks},
      no_block{0, 2, 38, absent};
  AttentionShape shape = test.shape;
  Attend(*ops_, q, *cache, 0, shape, {&good, 1}, out);
  EXPECT_THROW(Attend(*ops_, q, *cache, 0, shape, {&outside, 1}, out), InternalError);
  EXPECT_THROW(Attend(*ops_, q, *cache, 0, shape, {&beyond, 1}, out), InternalError);
  EXPECT_THROW(Attend(*ops_, q, *cache, 0, shape, {&no_block, 1}, out), InternalError);
  EXPECT_THROW(Attend(*ops_, q, *cache, 1, shape, {&good, 1}, out), InternalError);
  EXPECT_THROW(Attend(*ops_, narrow, *cache, 0, shape, {&good, 1}, out), InternalError);
  shape.num_kv_heads += 1;
  EXPECT_THROW(Attend(*ops_, q, *cache, 0, shape, {&good, 1}, out), InternalError);
  EXPECT_THROW(ops_->StoreKv(narrow, narrow, {&good, 1}, 0, *cache), InternalError);
}

// The value of the only position, which is all that its row sees.
std::vector<float> KeptInInt8(CpuOps& ops, const std::vector<float>& value) {
  const int head_dim = static_cast<int>(value.size());
  const auto cache = ops.MakeKvCache({1, 1, head_dim, 16, /*element_bytes=*/1}, 1);
  TestRows values(1, head_dim), keys(1, head_dim), out(1, head_dim);
  std::copy(value.begin(), value.end(), values.row(0));
  std::fill_n(keys.row(0), head_dim, 1.0f);
  const std::vector<BlockId> blocks = {0};
  const SequenceRows row{0, 1, 0, blocks};
  ops.StoreKv(keys, values, {&row, 1}, 0, *cache);
  Attend(ops, keys, *cache, 0, {1, 1, head_dim, 1.0f, 0.0f, 0}, {&row, 1}, out);
  return {out.row(0), out.row(0) + head_dim};
}

TEST_P(AttentionTest, Int8ValuesAreMultiplesOfTheLargestOver127) {
  using Floats = std::vector<float>;
  EXPECT_EQ(KeptInInt8(*ops_, {127, 1, 0.4f, 0.6f, -0.5f, 1.5f, 2.5f, -126.6f}),
            (Floats{127, 1, 0, 1, 0, 2, 2, -127}));
  EXPECT_EQ(KeptInInt8(*ops_, {-254, 1, 0.9f, 200}), (Floats{-254, 0, 0, 200}));
  EXPECT_EQ(KeptInInt8(*ops_, Floats(8, 0.0f)), Floats(8, 0.0f));
  EXPECT_EQ(KeptInInt8(*ops_, {1e-40f, 0, -1e-40f, 0}), Floats(4, 0.0f));  // too small to divide by
  const float most = std::numeric_limits<float>::max() / 2;
  const Floats large = KeptInInt8(*ops_, {most, -most, most / 2, 0});
  EXPECT_NEAR(large[1] / most, -1, 1e-6);
  EXPECT_NEAR(large[2] / most, 64.0 / 127, 1e-6);  // 63.5, to even
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    for (const float kept : KeptInInt8(*ops_, {1, bad, 3, 4})) EXPECT_TRUE(std::isnan(kept));
  }
}

TEST_P(AttentionTest, AnUnfitKvLayoutThrows) {
  EXPECT_THROW(ops_->MakeKvCache({1, 1, 8, 24, 4}, 4), InternalError);
  EXPECT_THROW(ops_->MakeKvCache({1, 1, 8, 16, 3}, 4), InternalError);
  EXPECT_THROW(ops_->MakeKvCache({0, 1, 8, 16, 4}, 4), InternalError);
}

FORERUN_FOR_EVERY_ISA(AttentionTest);

}  // namespace
}  // namespace forerun
