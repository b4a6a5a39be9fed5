// Attention of draft trees: every node's bits are those of its path decoded alone.
#include <cmath>

#include "tests/cpp/ops/attention_testing.h"
#include "tests/cpp/testing/random_tree.h"

namespace forerun {
namespace {

using testing::PathTo;
using testing::RandomParents;

// A context and a tree after it, with a query, a key and a value for every slot.
struct TreeSequence {
  TreeSequence(Random& random, const AttentionCase& test, int context, int num_nodes)
      : num_context(context),
        parents(RandomParents(num_nodes, [&](int n) { return random.Below(n); })),
        query(random.NormalRows(num_slots(), test.shape.num_heads * test.shape.head_dim, 1.5f)),
        keys(random.NormalRows(num_slots(), test.shape.num_kv_heads * test.shape.head_dim)),
        values(random.NormalRows(num_slots(), test.shape.num_kv_heads * test.shape.head_dim)) {}

  int num_nodes() const { return static_cast<int>(parents.size()); }
  int num_slots() const { return num_context + num_nodes(); }
  // The slots that `node` sees.
  std::vector<int> SlotsOf(int node) const {
    std::vector<int> slots(num_context);
    for (int i = 0; i < num_context; ++i) slots[i] = i;
    for (int ancestor : PathTo(parents, node)) slots.push_back(num_context + ancestor);
    return slots;
  }
  void Poison(int slot) {
    for (int i = 0; i < keys.view.cols; ++i) {
      keys.row(slot)[i] = std::numeric_limits<float>::quiet_NaN();
      values.row(slot)[i] = slot % 2 == 0 ? std::numeric_limits<float>::infinity()
                                          : std::numeric_limits<float>::quiet_NaN();
    }
  }

  int num_context;
  std::vector<std::int32_t> parents;
  TestRows query, keys, values;
};

TestRows Gathered(const TestRows& rows, const std::vector<int>& slots) {
  TestRows out(static_cast<int>(slots.size()), rows.view.cols);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    std::copy_n(rows.row(slots[i]), rows.view.cols, out.row(static_cast<int>(i)));
  }
  return out;
}

class TreeAttentionTest : public OpsTest {
 protected:
  // A cache of NaNs with random pages for each of the sequences.
  void MakeCache(CpuOps& ops, const AttentionCase& test, std::vector<int> num_slots) {
    int num_blocks = 3;
    for (int slots : num_slots) num_blocks += (slots + test.block_size - 1) / test.block_size;
    cache_ = ops.MakeKvCache(
        {1, test.shape.num_kv_heads, test.shape.head_dim, test.block_size, test.element_bytes},
        num_blocks);
    const int cols = test.shape.num_kv_heads * test.shape.head_dim;
    const TestRows poison(num_blocks * test.block_size, cols);
    std::vector<BlockId> all(num_blocks);
    for (int i = 0; i < num_blocks; ++i) all[i] = i;
    const SequenceRows every{0, poison.view.rows, 0, all};
    ops.StoreKv(poison, poison, {&every, 1}, 0, *cache_);
    const std::vector<int> order = random_.Permutation(num_blocks);
    tables_.clear();
    for (auto begin = order.begin(); int slots : num_slots) {
      const auto end = begin + (slots + test.block_size - 1) / test.block_size;
      tables_.emplace_back(begin, end);
      begin = end;
    }
  }

  // What each node's row gives when its path is all there is.
  std::vector<std::vector<float>> PathsAlone(const AttentionCase& test, const TreeSequence& tree) {
    std::vector<std::vector<float>> rows(tree.num_nodes());
    for (int node = 0; node < tree.num_nodes(); ++node) {
      const std::vector<int> slots = tree.SlotsOf(node);
      const int size = static_cast<int>(slots.size());
      MakeCache(*ops_, test, {size});
      const SequenceRows whole{0, size, 0, tables_[0]}, last{0, 1, size - 1, tables_[0]};
      ops_->StoreKv(Gathered(tree.keys, slots), Gathered(tree.values, slots), {&whole, 1}, 0,
                    *cache_);
      TestRows out(1, tree.query.view.cols);
      Attend(*ops_, Gathered(tree.query, {slots.back()}), *cache_, 0, test.shape, {&last, 1}, out);
      rows[node] = out.values;
    }
    return rows;
  }

  // One batch of all trees, each with its last `num_known` context rows in front.
  TestRows Together(CpuOps& ops, const AttentionCase& test,
                    const std::vector<const TreeSequence*>& trees, int num_known) {
    std::vector<int> num_slots;
    int num_rows = 0;
    for (const TreeSequence* tree : trees) {
      num_slots.push_back(tree->num_slots());
      num_rows += num_known + tree->num_nodes();
    }
    MakeCache(ops, test, num_slots);
    std::vector<SequenceRows> sequences;
    const int cols = test.shape.num_heads * test.shape.head_dim;
    TestRows query(num_rows, cols, /*padding=*/5), out(num_rows, cols, /*padding=*/2);
    num_rows = 0;
    for (std::size_t t = 0; t < trees.size(); ++t) {
      const TreeSequence& tree = *trees[t];
      const SequenceRows whole{0, tree.num_slots(), 0, tables_[t]};
      ops.StoreKv(tree.keys, tree.values, {&whole, 1}, 0, *cache_);
      const int first = tree.num_context - num_known;
      sequences.push_back({num_rows,
                           tree.num_slots() - first,
                           first,
                           tables_[t],
                           {tree.num_context, tree.parents}});
      for (int slot = first; slot < tree.num_slots(); ++slot, ++num_rows) {
        std::copy_n(tree.query.row(slot), cols, query.row(num_rows));
      }
    }
    Attend(ops, query, *cache_, 0, test.shape, sequences, out);
    return out;
  }

  Random random_{31};
  std::unique_ptr<KvCache> cache_;
  std::vector<std::vector<BlockId>> tables_;
};

TEST_P(TreeAttentionTest, EveryNodeHasTheBitsOfItsPathAlone) {
  const int contexts[] = {1, 2, 15, 16, 17, 31, 47, 63, 64, 65, 79, 130, 255, 256, 257, 270, 320};
  for (const AttentionCase& test : AllAttentionCases()) {
    for (int trial = 0; trial < testing::NumExamples(6, 6); ++trial) {
      const TreeSequence first(random_, test, contexts[random_.Below(17)], 1 + random_.Below(33));
      const TreeSequence second(random_, test, contexts[random_.Below(17)], 1 + random_.Below(7));
      const int num_known = random_.Below(2);
      std::vector<const TreeSequence*> trees = {&first};
      if (trial % 2 == 1) trees = {&second, &first};
      ThreadTeam team(1 + random_.Below(4));
      const auto ops = MakeTestedOps(team, GetParam());
      const TestRows out = Together(*ops, test, trees, num_known);
      int row = 0;
      for (const TreeSequence* tree : trees) {
        row += num_known;
        const auto expected = PathsAlone(test, *tree);
        for (int node = 0; node < tree->num_nodes(); ++node, ++row) {
          ASSERT_TRUE(SameBits(out.row(row), expected[node].data(), out.view.cols))
              << test << " context " << tree->num_context << " node " << node << " of "
              << tree->num_nodes();
        }
      }
    }
  }
}

TEST_P(TreeAttentionTest, OtherBranchesNeverLeak) {
  for (const AttentionCase& test : AllAttentionCases()) {
    for (int context : {3, 60, 250}) {
      TreeSequence tree(random_, test, context, 17);
      const TestRows expected = Together(*ops_, test, {&tree}, 1);
      const std::vector<int> path = PathTo(tree.parents, random_.Below(17));
      for (int node = 0; node < 17; ++node) {
        if (std::ranges::count(path, node) == 0) tree.Poison(context + node);
      }
      const TestRows out = Together(*ops_, test, {&tree}, 1);
      for (int node : path) {
        ASSERT_TRUE(SameBits(out.row(1 + node), expected.row(1 + node), out.view.cols))
            << test << " context " << context << " node " << node;
      }
      for (int node = 0; node < 17; ++node) {
        if (std::ranges::count(path, node) > 0) continue;
        EXPECT_TRUE(std::isnan(out.row(1 + node)[0])) << test << " node " << node;
      }
    }
  }
}

TEST_P(TreeAttentionTest, SomeOfTheRowsGiveTheSameBits) {
  const AttentionCase test = AllAttentionCases().front();
  const TreeSequence tree(random_, test, 70, 20);
  const TestRows expected = Together(*ops_, test, {&tree}, 0);
  for (int begin = 0; begin < 20; begin += 3) {
    const int count = std::min(5, 20 - begin);
    const SequenceRows rows{0, count, 70 + begin, tables_[0], {70, tree.parents}};
    TestRows query(count, tree.query.view.cols), out(count, tree.query.view.cols);
    for (int i = 0; i < count; ++i) {
      std::copy_n(tree.query.row(70 + begin + i), query.view.cols, query.row(i));
    }
    Attend(*ops_, query, *cache_, 0, test.shape, {&rows, 1}, out);
    for (int i = 0; i < count; ++i) {
      ASSERT_TRUE(SameBits(out.row(i), expected.row(begin + i), out.view.cols)) << begin + i;
    }
  }
}

// The path's keys and values, moved to follow the context, serve as if they had been written there.
TEST_P(TreeAttentionTest, AMovedPathServesAsContext) {
  for (const AttentionCase& test : AllAttentionCases()) {
    const int context = 1 + random_.Below(90);
    const TreeSequence tree(random_, test, context, 12);
    const std::vector<int> path = PathTo(tree.parents, 11);
    Together(*ops_, test, {&tree}, 0);
    const auto slot_of = [&](int slot) {
      return std::int64_t{tables_[0][slot / test.block_size]} * test.block_size +
             slot % test.block_size;
    };
    std::vector<KvMove> moves;
    for (std::size_t i = 0; i < path.size(); ++i) {
      moves.push_back({slot_of(context + path[i]), slot_of(context + static_cast<int>(i))});
    }
    ops_->MoveKv(moves, *cache_);
    const int position = context + static_cast<int>(path.size()) - 1;
    const SequenceRows last{0, 1, position, tables_[0]};
    TestRows out(1, tree.query.view.cols);
    Attend(*ops_, Gathered(tree.query, {context + 11}), *cache_, 0, test.shape, {&last, 1}, out);
    EXPECT_TRUE(SameBits(out.row(0), PathsAlone(test, tree)[11].data(), out.view.cols)) << test;
  }
}

TEST_P(TreeAttentionTest, MovesReachEveryLayerAndNothingElse) {
  const KvLayout layout{3, 2, 8, 16, 4};
  const auto cache = ops_->MakeKvCache(layout, 3);
  const std::vector<BlockId> blocks = {0, 1, 2};
  const TestRows keys = random_.NormalRows(48, 16), values = random_.NormalRows(48, 16);
  const SequenceRows all{0, 48, 0, blocks};
  for (int layer = 0; layer < 3; ++layer) ops_->StoreKv(keys, values, {&all, 1}, layer, *cache);
  // The second move takes what the first one left.
  const std::vector<KvMove> moves = {{40, 3}, {3, 17}};
  ops_->MoveKv(moves, *cache);
  const auto* kv = static_cast<const CpuKvCache*>(cache.get());
  for (int layer = 0; layer < 3; ++layer) {
    for (int slot = 0; slot < 48; ++slot) {
      const int source = slot == 3 || slot == 17 ? 40 : slot;
      for (int head = 0; head < 2; ++head) {
        const KvOffsets offsets = kv->OffsetsOf(slot, head);
        for (int i = 0; i < 8; ++i) {
          const float* k = reinterpret_cast<const float*>(kv->keys(layer));
          const float* v = reinterpret_cast<const float*>(kv->values(layer));
          ASSERT_EQ(k[offsets.key + i * 16], keys.row(source)[head * 8 + i]) << slot;
          ASSERT_EQ(v[offsets.value + i], values.row(source)[head * 8 + i]) << slot;
        }
      }
    }
  }
  EXPECT_THROW(ops_->MoveKv(std::vector<KvMove>{{0, 48}}, *cache), InternalError);
  EXPECT_THROW(ops_->MoveKv(std::vector<KvMove>{{-1, 0}}, *cache), InternalError);
}

TEST_P(TreeAttentionTest, TreesThatContradictTheirRowsThrow) {
  const AttentionCase test = AllAttentionCases().front();
  const TreeSequence tree(random_, test, 20, 4);
  Together(*ops_, test, {&tree}, 0);
  const auto attend = [&](const std::vector<std::int32_t>& parents, int first_slot) {
    const SequenceRows rows{0, 4, 20, tables_[0], {first_slot, parents}};
    TestRows query(4, tree.query.view.cols), out(4, tree.query.view.cols);
    Attend(*ops_, query, *cache_, 0, test.shape, {&rows, 1}, out);
  };
  EXPECT_NO_THROW(attend({-1, -1, 0, 1}, 20));
  EXPECT_THROW(attend({-1, 1, 0, 1}, 20), InternalError);
  EXPECT_THROW(attend({-2, 0, 0, 1}, 20), InternalError);
  EXPECT_THROW(attend({-1, -1, 0}, 20), InternalError);
  EXPECT_THROW(attend({-1, -1, 0, 1}, -1), InternalError);
}

FORERUN_FOR_EVERY_ISA(TreeAttentionTest);

}  // namespace
}  // namespace forerun
