// The forward pass on tiny random models: what a row computes depends on its own sequence alone.
// That it is what transformers computes is shown by tests/python/test_families.py.
#include "cpp/model/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/util/simd/isa.h"
#include "cpp/util/simd/isa_macros.h"
#include "cpp/util/thread_team.h"
#include "forerun/error.h"
#include "tests/cpp/testing/naive_ops.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_tree.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

constexpr int kMaxLen = 96;
constexpr int kBlockSize = 16;
constexpr int kNumBlocks = 24;

using Logits = std::vector<std::vector<float>>;  // a row per position

struct Sequence {
  std::vector<TokenId> tokens;
  std::vector<BlockId> blocks;
  int num_computed = 0;
};

// A sequence's next rows in a forward.
struct Chunk {
  Sequence* sequence;
  int num_rows;
};

std::string ConfigOf(const std::string& name) {
  if (name == "llama") return TinyConfig("llama", R"("mlp_bias": true, "attention_bias": true)");
  if (name == "mistral") return TinyConfig("mistral", R"("sliding_window": 11)");
  if (name == "qwen3") return TinyConfig("qwen3", R"("tie_word_embeddings": true)");
  if (name == "gemma2") return TinyConfig("gemma2", R"("sliding_window": 9)");
  return TinyConfig("gemma3_text", R"("sliding_window": 7, "sliding_window_pattern": 2)");
}

std::vector<std::string> OpsNames() {
  std::vector<std::string> names;
  for (Isa isa : AvailableIsas()) {
    names.emplace_back(Name(isa));
    if (FORERUN_SANITIZED) break;  // tests of operations run all of them
  }
  names.push_back("naive");
  return names;
}

// A family, the Ops that run it ("naive" or an instruction set), and the weights' dtype.
using Param = std::tuple<std::string, std::string, DType>;

class TransformerTest : public ::testing::TestWithParam<Param> {
 protected:
  TransformerTest() {
    spec_ = WriteTinyModel(directory_, ConfigOf(std::get<0>(GetParam())));
    const std::string& name = std::get<1>(GetParam());
    if (name == "naive") {
      ops_ = std::make_unique<NaiveOps>();
    } else {
      ops_ = std::make_unique<CpuOps>(team_, FindIsa(name));
    }
  }

  std::unique_ptr<Transformer> Make() const { return Make(*ops_, std::get<2>(GetParam())); }

  std::unique_ptr<Transformer> Make(Ops& ops, DType dtype) const {
    Checkpoint checkpoint(directory_.path());
    const TransformerLimits limits = {4 * kMaxLen, kMaxLen,     kBlockSize,
                                      kNumBlocks,  4 * kMaxLen, dtype};
    return std::make_unique<Transformer>(
        spec_, LoadWeights(spec_, checkpoint, UniformFormats(dtype), ops), ops, limits);
  }

  Sequence RandomSequence(int length, int first_block) {
    Sequence sequence;
    for (int i = 0; i < length; ++i) sequence.tokens.push_back(random_.Below(spec_.vocab_size));
    sequence.blocks.resize((length + kBlockSize - 1) / kBlockSize);
    std::iota(sequence.blocks.begin(), sequence.blocks.end(), first_block);
    return sequence;
  }

  // Runs the chunks in one forward. `rows` are asked for; -1 asks for all.
  static Logits Forward(Transformer& model, const std::vector<Chunk>& chunks,
                        std::vector<std::int32_t> rows = {-1}) {
    std::vector<TokenId> tokens;
    std::vector<SequenceRows> sequences;
    for (const Chunk& chunk : chunks) {
      Sequence& sequence = *chunk.sequence;
      sequences.push_back({static_cast<int>(tokens.size()), chunk.num_rows, sequence.num_computed,
                           sequence.blocks});
      const auto begin = sequence.tokens.begin() + sequence.num_computed;
      tokens.insert(tokens.end(), begin, begin + chunk.num_rows);
      sequence.num_computed += chunk.num_rows;
    }
    if (rows == std::vector<std::int32_t>{-1}) {
      rows.resize(tokens.size());
      std::iota(rows.begin(), rows.end(), 0);
    }
    const ConstRows out = model.Forward({tokens, sequences, rows});
    EXPECT_EQ(out.rows, static_cast<int>(rows.size()));
    Logits logits;
    for (int r = 0; r < out.rows; ++r) logits.emplace_back(out.row(r), out.row(r) + out.cols);
    return logits;
  }

  static Logits Whole(Transformer& model, Sequence sequence) {
    sequence.num_computed = 0;
    return Forward(model, {{&sequence, static_cast<int>(sequence.tokens.size())}});
  }

  ModelDirectory directory_;
  ModelSpec spec_;
  ThreadTeam team_{2};
  std::unique_ptr<Ops> ops_;
  TinyRandom random_{7};
};

TEST_P(TransformerTest, ChunkedPrefillGivesTheSameLogits) {
  const auto model = Make();
  Sequence sequence = RandomSequence(60, 0);
  const Logits whole = Whole(*model, sequence);
  for (int round = 0; round < 3; ++round) {
    Logits chunked;
    sequence.num_computed = 0;
    while (sequence.num_computed < 60) {
      const int chunk = std::min(60 - sequence.num_computed, 1 + random_.Below(25));
      for (auto& row : Forward(*model, {{&sequence, chunk}})) chunked.push_back(std::move(row));
    }
    EXPECT_EQ(chunked, whole);
  }
}

TEST_P(TransformerTest, RowsWithoutLogitsStillStoreTheirKeysAndValues) {
  const auto model = Make();
  Sequence sequence = RandomSequence(50, 3);
  const Logits whole = Whole(*model, sequence);
  // Other numbers in the cache first, so that a row left out would show.
  Whole(*model, RandomSequence(50, 3));
  EXPECT_TRUE(Forward(*model, {{&sequence, 20}}, {}).empty());
  const Logits some = Forward(*model, {{&sequence, 25}}, {0, 3, 4, 5, 24});
  EXPECT_EQ(some, (Logits{whole[20], whole[23], whole[24], whole[25], whole[44]}));
  EXPECT_EQ(Forward(*model, {{&sequence, 5}}, {4}), Logits{whole[49]});
}

TEST_P(TransformerTest, WhereTheBlocksLieDoesNotMatter) {
  const auto model = Make();
  Sequence sequence = RandomSequence(70, 0);
  const Logits whole = Whole(*model, sequence);
  sequence.blocks = {17, 2, 23, 0, 9};
  EXPECT_EQ(Whole(*model, sequence), whole);
}

TEST_P(TransformerTest, BatchMatesAndTheirOrderDoNotMatter) {
  const auto model = Make();
  std::vector<Sequence> sequences = {RandomSequence(33, 0), RandomSequence(1, 4),
                                     RandomSequence(48, 6), RandomSequence(7, 12)};
  std::vector<Logits> alone;
  for (Sequence& sequence : sequences) alone.push_back(Whole(*model, sequence));

  std::vector<int> order = {0, 1, 2, 3};
  do {
    Logits expected, some;
    std::vector<Chunk> chunks;
    std::vector<std::int32_t> last_rows;
    int num_rows = 0;
    for (int i : order) {
      const int length = static_cast<int>(sequences[i].tokens.size());
      sequences[i].num_computed = 0;
      chunks.push_back({&sequences[i], length});
      expected.push_back(alone[i].back());
      num_rows += length;
      last_rows.push_back(num_rows - 1);
    }
    EXPECT_EQ(Forward(*model, chunks, last_rows), expected);
  } while (std::next_permutation(order.begin(), order.begin() + 3));
}

TEST_P(TransformerTest, DecodingBesidePrefillGivesTheSameLogits) {
  const auto model = Make();
  Sequence decoded = RandomSequence(40, 0), prefilled = RandomSequence(40, 8);
  const Logits alone_decoded = Whole(*model, decoded), alone_prefilled = Whole(*model, prefilled);
  Forward(*model, {{&decoded, 30}}, {});
  for (int step = 0; step < 10; ++step) {
    const Logits logits = Forward(*model, {{&decoded, 1}, {&prefilled, 4}});
    EXPECT_EQ(logits[0], alone_decoded[30 + step]);
    EXPECT_EQ(logits[4], alone_prefilled[4 * step + 3]);
  }
}

// A context of random length in the cache, then one forward over the known tokens after it and a
// tree; beside it the sequences that the paths would be.
TEST_P(TransformerTest, ATreesLogitsAreThoseOfItsPathsAlone) {
  const auto model = Make(), alone = Make();
  const auto below = [&](int n) { return random_.Below(n); };
  for (int trial = 0; trial < testing::NumExamples(6, 6); ++trial) {
    const int num_context = below(70), num_known = 1 + below(3), num_nodes = 1 + below(20);
    const int first = num_context + num_known;
    const std::vector<std::int32_t> parents = testing::RandomParents(num_nodes, below);
    Sequence tree = RandomSequence(first + num_nodes, 0), other = RandomSequence(20, 12);
    if (num_context > 0) Forward(*model, {{&tree, num_context}}, {});

    // The known rows but the last have no logits, so that the rows are chosen from.
    std::vector<TokenId> tokens(other.tokens);
    tokens.insert(tokens.end(), tree.tokens.begin() + num_context, tree.tokens.end());
    const SequenceRows sequences[] = {
        {0, 20, 0, other.blocks},
        {20, num_known + num_nodes, num_context, tree.blocks, {first, parents}}};
    std::vector<std::int32_t> rows(1 + num_nodes);
    std::iota(rows.begin(), rows.end(), 20 + num_known - 1);
    const ConstRows logits = model->Forward({tokens, sequences, rows});
    Logits got;
    for (int r = 0; r < logits.rows; ++r) got.emplace_back(logits.row(r), logits.row(r) + 101);

    for (int node = 0; node < num_nodes; ++node) {
      Sequence path = RandomSequence(first, 0);
      std::copy_n(tree.tokens.begin(), first, path.tokens.begin());
      for (int i : testing::PathTo(parents, node)) path.tokens.push_back(tree.tokens[first + i]);
      path.blocks.resize((path.tokens.size() + kBlockSize - 1) / kBlockSize);
      std::iota(path.blocks.begin(), path.blocks.end(), 0);
      const Logits expected = Whole(*alone, path);
      ASSERT_EQ(got[0], expected[first - 1]);
      ASSERT_EQ(got[1 + node], expected.back()) << "node " << node << " of " << num_nodes;
    }

    // Accept the last node's path: decoding goes on as if nothing else had been there.
    const std::vector<int> path = testing::PathTo(parents, num_nodes - 1);
    std::vector<KvMove> moves;
    Sequence next = tree;
    next.tokens.resize(first);
    for (int i = 0; i < static_cast<int>(path.size()); ++i) {
      const auto row_of = [&](int slot) {
        return std::int64_t{tree.blocks[slot / kBlockSize]} * kBlockSize + slot % kBlockSize;
      };
      moves.push_back({row_of(first + path[i]), row_of(first + i)});
      next.tokens.push_back(tree.tokens[first + path[i]]);
    }
    model->MoveKv(moves);
    next.num_computed = static_cast<int>(next.tokens.size());
    next.tokens.push_back(below(spec_.vocab_size));
    next.blocks.push_back(20);
    EXPECT_EQ(Forward(*model, {{&next, 1}})[0], Whole(*alone, next).back());
  }
}

TEST_P(TransformerTest, TheLogitsAreThoseOfTheNaiveOperations) {
  NaiveOps naive;
  const DType dtype = std::get<2>(GetParam());
  const auto model = Make(), oracle = Make(naive, dtype);
  const Sequence sequence = RandomSequence(60, 0);
  const Logits logits = Whole(*model, sequence), expected = Whole(*oracle, sequence);
  // In bfloat16, keys and values near the middle of two numbers round either way.
  const double tolerance = dtype == DType::kFloat32 ? 1e-4 : 0.2;
  for (std::size_t r = 0; r < logits.size(); ++r) {
    for (std::size_t c = 0; c < logits[r].size(); ++c) {
      ASSERT_NEAR(logits[r][c], expected[r][c], tolerance) << r << " " << c;
    }
  }
}

TEST_P(TransformerTest, CountsItsWeightsAndItsCache) {
  NaiveOps naive;
  const auto model = Make(naive, DType::kBFloat16);
  const int layer = 24 * 80 + 24 * 40 + 3 * 24 * 36, head = 101 * 24;
  EXPECT_EQ(model->num_bytes_per_token(), 2 * (3 * layer + head));
  EXPECT_EQ(model->num_weight_bytes() - model->num_bytes_per_token(),
            spec_.tie_word_embeddings ? 0 : 2 * head);
  EXPECT_EQ(model->kv_layout().element_bytes, 2);
  EXPECT_EQ(model->kv_layout().block_bytes(), 2 * 3 * 2 * 10 * kBlockSize * 2);
}

TEST_P(TransformerTest, BatchesThatBreakTheContractAreBugs) {
  const auto model = Make();
  const std::vector<BlockId> blocks = {0};
  const auto run = [&](std::vector<TokenId> tokens, SequenceRows rows,
                       std::vector<std::int32_t> logits_rows) {
    model->Forward({tokens, std::span(&rows, 1), logits_rows});
  };
  EXPECT_NO_THROW(run({1, 2}, {0, 2, 0, blocks}, {1}));
  EXPECT_THROW(run({1, 101}, {0, 2, 0, blocks}, {1}), InternalError);
  EXPECT_THROW(run({1, -1}, {0, 2, 0, blocks}, {1}), InternalError);
  EXPECT_THROW(run({1, 2}, {0, 1, 0, blocks}, {0}), InternalError);
  EXPECT_THROW(run({1, 2}, {1, 1, 0, blocks}, {0}), InternalError);
  EXPECT_THROW(run({1, 2}, {0, 2, 15, blocks}, {1}), InternalError);
  EXPECT_THROW(run({1, 2}, {0, 2, kMaxLen - 1, blocks}, {1}), InternalError);
  EXPECT_THROW(run({1, 2}, {0, 2, 0, blocks}, {1, 0}), InternalError);
  EXPECT_THROW(run({1, 2}, {0, 2, 0, blocks}, {2}), InternalError);
  const std::vector<std::int32_t> parents = {-1, 1};
  EXPECT_THROW(run({1, 2}, {0, 2, 0, blocks, {0, parents}}, {1}), InternalError);
}

std::string NameOf(const ::testing::TestParamInfo<Param>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param) + "_" +
         Name(std::get<2>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Families, TransformerTest,
                         ::testing::Combine(::testing::Values("llama", "mistral", "qwen3", "gemma2",
                                                              "gemma3_text"),
                                            ::testing::ValuesIn(OpsNames()),
                                            ::testing::Values(DType::kFloat32, DType::kBFloat16)),
                         NameOf);

}  // namespace
}  // namespace forerun
