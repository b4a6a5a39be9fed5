// Attention of many sequences in one pass: each row gets the bits that it gets alone.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/build_kind.h"
#include "tests/cuda/ops/attention_layer.h"
#include "tests/cuda/ops/gpu_rows.h"

namespace forerun::cuda {
namespace {

using forerun::testing::NumExamples;

// A sequence: the tokens that come first, of which the first num_shared have their keys and values
// in blocks of another sequence, and the rows of the pass after them, which may end with a tree.
struct Sequence {
  HostRows past, rows;
  int num_shared = 0;
  std::vector<BlockId> table;
  std::vector<std::int32_t> parents;  // of the last rows
  int poisoned = -1;                  // a row whose keys and values are NaN

  TreeSlots tree() const {
    if (parents.empty()) return {};
    return {past.rows + rows.rows - static_cast<int>(parents.size()), parents};
  }
  SequenceRows RowsFrom(int row_begin) const {
    return {row_begin, rows.rows, past.rows, table, tree()};
  }
  // The rows on the path of a row, its own last.
  std::vector<int> PathOf(int row) const {
    const SequenceRows sequence = RowsFrom(0);
    std::vector<int> path;
    for (int slot = past.rows + row; slot >= past.rows; slot = sequence.SlotBefore(slot)) {
      path.push_back(slot - past.rows);
    }
    std::reverse(path.begin(), path.end());
    return path;
  }
};

class Batch {
 public:
  static constexpr int kMostRows = 20;

  Batch(CudaOps& ops, Random& random, int element_bytes, int most_context)
      : ops_(ops),
        random_(random),
        layer_(RandomLayer(random, element_bytes, most_context + kMostRows)),
        block_size_(8 * random.Between(1, 4)),
        cos_sin_(ops.memory(), layer_.cos_sin.values) {
    layer_.shape.first_position = 0;
    const int num_sequences = random.Between(2, 5);
    for (int i = 0; i < num_sequences; ++i) AddSequence(random.Between(1, most_context));
    cache_ = ops.MakeKvCache(layer_.KvLayoutOf(2, block_size_), num_blocks_);
    Poison();
  }

  // The tokens that come first, all sequences in one pass.
  void Start() {
    HostRows qkv(0, layer_.qkv.cols);
    std::vector<SequenceRows> sequences;
    for (const Sequence& own : sequences_) {
      const int num_rows = own.past.rows - own.num_shared;
      sequences.push_back({qkv.rows, num_rows, own.num_shared, own.table});
      for (int i = own.num_shared; i < own.past.rows; ++i) qkv.Append(own.past, i);
    }
    const HostRows out = Run(qkv, sequences);
    int row = 0;
    for (const Sequence& own : sequences_) {
      CachedSequence alone(ops_, layer_, 16, 1);
      const HostRows expected = alone.Step(own.past, 0);
      for (int i = own.num_shared; i < own.past.rows; ++i, ++row) {
        ASSERT_TRUE(SameBits(out.row(row), expected.row(i), out.cols)) << "position " << i;
      }
    }
  }

  // The pass, for all rows or for some.
  void Step() {
    HostRows qkv(0, layer_.qkv.cols);
    std::vector<SequenceRows> sequences;
    std::vector<std::int32_t> wanted;
    const bool wants_all = random_.Flip();
    for (const Sequence& own : sequences_) {
      sequences.push_back(own.RowsFrom(qkv.rows));
      for (int i = 0; i < own.rows.rows; ++i) {
        if (wants_all || random_.Between(0, 3) > 0) wanted.push_back(qkv.rows + i);
      }
      for (int i = 0; i < own.rows.rows; ++i) qkv.Append(own.rows, i);
    }
    if (wanted.empty()) return;
    const HostRows out = Run(qkv, sequences, wants_all ? std::vector<std::int32_t>() : wanted);
    std::size_t next = 0;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const int begin = sequences[i].row_begin, end = begin + sequences[i].num_rows;
      for (; next < wanted.size() && wanted[next] < end; ++next) {
        ExpectAsAlone(sequences_[i], wanted[next] - begin, out.row(static_cast<int>(next)));
      }
    }
  }

 private:
  void AddSequence(int num_context) {
    Sequence own = {HostRows(random_, num_context, layer_.qkv.cols),
                    HostRows(random_, random_.Between(1, 5), layer_.qkv.cols),
                    0,
                    {},
                    {},
                    -1};
    if (!sequences_.empty() && random_.Flip()) {
      const Sequence& other =
          sequences_[random_.Between(0, static_cast<int>(std::ssize(sequences_)) - 1)];
      const int num_blocks = std::min(num_context - 1, other.past.rows) / block_size_;
      own.num_shared = num_blocks * block_size_;
      own.table.assign(other.table.begin(), other.table.begin() + num_blocks);
      std::copy_n(other.past.row(0), std::size_t(own.num_shared) * own.past.cols, own.past.row(0));
    }
    if (random_.Flip()) {
      own.rows = HostRows(random_, random_.Between(1, kMostRows), layer_.qkv.cols);
      const int num_nodes = random_.Flip() ? random_.Between(0, own.rows.rows) : 0;
      for (int node = 0; node < num_nodes; ++node) {
        own.parents.push_back(random_.Between(std::max(-1, node - 5), node - 1));
      }
    }
    if (random_.Between(0, 2) == 0) {
      own.poisoned = random_.Between(0, own.rows.rows - 1);
      std::fill_n(own.rows.row(own.poisoned), own.rows.cols, NAN);
    }
    while (std::ssize(own.table) * block_size_ < num_context + own.rows.rows) {
      own.table.push_back(num_blocks_++);
    }
    sequences_.push_back(std::move(own));
  }

  HostRows Run(const HostRows& qkv, const std::vector<SequenceRows>& sequences,
               const std::vector<std::int32_t>& wanted = {}) {
    return RunAttention(ops_, layer_, *cache_, cos_sin_, qkv, sequences, wanted);
  }

  // Every slot of the cache is NaN until a row is stored there.
  void Poison() {
    HostRows qkv(num_blocks_ * block_size_, layer_.qkv.cols);
    std::vector<BlockId> blocks(num_blocks_);
    std::vector<SequenceRows> sequences;
    for (int i = 0; i < num_blocks_; ++i) {
      blocks[i] = i;
      sequences.push_back({i * block_size_, block_size_, 0, {&blocks[i], 1}});
    }
    const std::vector<TokenId> tokens(qkv.rows);
    const ForwardRows& rows =
        ops_.Begin({.tokens = tokens, .cache = cache_.get(), .sequences = sequences});
    for (int layer : {0, 1}) {
      ops_.RotateAndStore(GpuRows(ops_.memory(), qkv), {}, rows, cos_sin_.data(), layer);
    }
  }

  void ExpectAsAlone(const Sequence& own, int row, const float* out) {
    const std::vector<int> path = own.PathOf(row);
    if (std::ranges::find(path, own.poisoned) != path.end()) {
      EXPECT_TRUE(std::isnan(out[0]) || layer_.shape.sliding_window > 0) << row;
      return;
    }
    HostRows rows(0, own.rows.cols);
    for (const int i : path) rows.Append(own.rows, i);
    CachedSequence alone(ops_, layer_, 16, 2);
    alone.Step(own.past, 0);
    const HostRows expected = alone.Step(rows, own.past.rows);
    EXPECT_TRUE(SameBits(out, expected.row(rows.rows - 1), expected.cols))
        << "row " << row << " of " << own.rows.rows << ", of which " << own.parents.size()
        << " in a tree, after " << own.past.rows;
  }

  CudaOps& ops_;
  Random& random_;
  Layer layer_;
  int block_size_;
  FloatVector cos_sin_;
  int num_blocks_ = 0;
  std::vector<Sequence> sequences_;
  std::unique_ptr<KvCache> cache_;
};

class AttentionBatchTest : public ::testing::TestWithParam<int> {};

// Decoded rows, chunks, drafts and trees of sequences that share blocks or do not, among slots of
// NaN.
TEST_P(AttentionBatchTest, EachRowGetsTheBitsThatItGetsAlone) {
  CudaOps ops;
  for (int i = 0; i < NumExamples(testing::IsPlainBuild() ? 3 : 1, 200); ++i) {
    SCOPED_TRACE("example " + std::to_string(i));
    Random random(static_cast<unsigned>(i));
    Batch batch(ops, random, GetParam(), i % 3 == 2 ? 300 : 70);
    batch.Start();
    batch.Step();
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Elements, AttentionBatchTest, ::testing::Values(1, 2, 4), ElementName);

}  // namespace
}  // namespace forerun::cuda
