// Sequences with known queries, keys and values, run through a paged cache, beside a plain softmax.
#ifndef FORERUN_TESTS_CPP_OPS_ATTENTION_TESTING_H_
#define FORERUN_TESTS_CPP_OPS_ATTENTION_TESTING_H_

#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <ostream>
#include <span>
#include <vector>

#include "cpp/util/simd/isa_macros.h"
#include "tests/cpp/ops/ops_testing.h"
#include "tests/cpp/testing/num_examples.h"

namespace forerun {

struct AttentionCase {
  AttentionShape shape;
  int element_bytes;
  int block_size;
};

inline std::ostream& operator<<(std::ostream& out, const AttentionCase& test) {
  return out << "heads " << test.shape.num_heads << "/" << test.shape.num_kv_heads << " head_dim "
             << test.shape.head_dim << " window " << test.shape.sliding_window << " cap "
             << test.shape.soft_cap << " bytes " << test.element_bytes << " block "
             << test.block_size;
}

inline std::vector<AttentionCase> AllAttentionCases() {
  const AttentionCase cases[] = {
      {{9, 3, 64, 0.125f, 0.0f, 0}, 2, 16}, {{4, 2, 8, 0.35f, 0.0f, 0}, 4, 16},
      {{2, 2, 16, 0.25f, 0.0f, 20}, 2, 16}, {{4, 1, 24, 0.2f, 5.0f, 0}, 4, 32},
      {{3, 1, 80, 0.11f, 0.0f, 37}, 4, 16}, {{8, 1, 32, 0.18f, 3.0f, 64}, 2, 48},
      {{2, 1, 128, 0.09f, 0.0f, 1}, 2, 16}, {{4, 1, 256, 0.06f, 50.0f, 33}, 2, 16},
      {{14, 2, 40, 0.16f, 0.0f, 0}, 2, 16}, {{70, 1, 8, 0.35f, 0.0f, 50}, 4, 16},
      {{5, 5, 96, 0.1f, 0.0f, 0}, 4, 16},   {{9, 3, 64, 0.125f, 0.0f, 0}, 1, 16},
      {{4, 1, 40, 0.2f, 5.0f, 37}, 1, 48},  {{70, 1, 8, 0.35f, 0.0f, 50}, 1, 32},
      {{4, 2, 128, 0.09f, 0.0f, 0}, 1, 64},
  };
  // Every other one has all of it: windows, soft caps, each size of an element.
  std::vector<AttentionCase> chosen;
  for (std::size_t i = 0; i < std::size(cases); i += FORERUN_SANITIZED ? 2 : 1) {
    chosen.push_back(cases[i]);
  }
  return chosen;
}

// The attention of the sequences' rows, as in a forward pass of these.
inline void Attend(Ops& ops, ConstRows query, KvCache& cache, int layer,
                   const AttentionShape& shape, std::span<const SequenceRows> sequences, Rows out) {
  const std::vector<TokenId> tokens(query.rows);
  const ForwardRows& rows = ops.Begin({.tokens = tokens, .cache = &cache, .sequences = sequences});
  ops.Attention(query, rows, RowSet::kAll, layer, shape, out);
}

class AttentionModel {
 public:
  struct Part {
    int sequence;
    int position;
    int num_rows;
  };

  AttentionModel(const AttentionCase& test, int num_positions, unsigned seed, int num_sequences = 1,
                 unsigned paging_seed = 5)
      : test_(test), num_positions_(num_positions) {
    Random random(seed);
    const int kv_cols = test.shape.num_kv_heads * test.shape.head_dim;
    for (int s = 0; s < num_sequences; ++s) {
      queries_.push_back(
          random.NormalRows(num_positions, test.shape.num_heads * test.shape.head_dim, 1.5f));
      keys_.push_back(random.NormalRows(num_positions, kv_cols));
      values_.push_back(random.NormalRows(num_positions, kv_cols));
    }
    // Random pages, some of them nobody's.
    Random paging(paging_seed);
    const int blocks = (num_positions + test.block_size - 1) / test.block_size;
    num_blocks_ = blocks * num_sequences + 3;
    const std::vector<int> order = paging.Permutation(num_blocks_);
    for (int s = 0; s < num_sequences; ++s) {
      tables_.emplace_back(order.begin() + s * blocks, order.begin() + (s + 1) * blocks);
    }
  }

  // A cache whose every slot is NaN, but for the positions that the parts may see.
  std::unique_ptr<KvCache> Store(CpuOps& ops, const std::vector<Part>& parts) const {
    const KvLayout layout{1, test_.shape.num_kv_heads, test_.shape.head_dim, test_.block_size,
                          test_.element_bytes};
    auto cache = ops.MakeKvCache(layout, num_blocks_);
    const TestRows poison(num_blocks_ * test_.block_size,
                          test_.shape.num_kv_heads * test_.shape.head_dim);
    std::vector<BlockId> all(num_blocks_);
    for (int i = 0; i < num_blocks_; ++i) all[i] = i;
    const SequenceRows every{0, poison.view.rows, 0, all};
    ops.StoreKv(poison, poison, {&every, 1}, 0, *cache);
    for (const Part& part : parts) {
      const SequenceRows rows{0, part.position + part.num_rows, 0, tables_[part.sequence]};
      ops.StoreKv(keys_[part.sequence].view, values_[part.sequence].view, {&rows, 1}, 0, *cache);
    }
    return cache;
  }

  TestRows Run(CpuOps& ops, const std::vector<Part>& parts) const {
    const auto cache = Store(ops, parts);
    int num_rows = 0;
    std::vector<SequenceRows> sequences;
    for (const Part& part : parts) {
      sequences.push_back({num_rows, part.num_rows, part.position, tables_[part.sequence]});
      num_rows += part.num_rows;
    }
    const int cols = test_.shape.num_heads * test_.shape.head_dim;
    TestRows query(num_rows, cols, /*padding=*/7), out(num_rows, cols, /*padding=*/3);
    for (std::size_t p = 0; p < parts.size(); ++p) {
      for (int i = 0; i < parts[p].num_rows; ++i) {
        std::copy_n(queries_[parts[p].sequence].row(parts[p].position + i), cols,
                    query.row(sequences[p].row_begin + i));
      }
    }
    Attend(ops, query, *cache, 0, test_.shape, sequences, out);
    return out;
  }

  // The attention of a head of sequence 0 in double precision, over what the cache keeps.
  std::vector<double> Naive(int position, int head) const {
    const AttentionShape& shape = test_.shape;
    const int kv = head / (shape.num_heads / shape.num_kv_heads) * shape.head_dim;
    const float* query = queries_[0].row(position) + head * shape.head_dim;
    const int begin = std::max(shape.first_position,
                               shape.sliding_window > 0 ? position + 1 - shape.sliding_window : 0);
    const auto [keys, values] = KeptOfHead(kv, begin, position + 1);
    std::vector<double> scores;
    double max = -std::numeric_limits<double>::infinity();
    for (int p = begin; p <= position; ++p) {
      double score = 0;
      for (int i = 0; i < shape.head_dim; ++i) score += query[i] * keys[p - begin][i];
      score *= shape.scale;
      if (shape.soft_cap > 0) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
      scores.push_back(score);
      max = std::max(max, score);
    }
    double sum = 0;
    std::vector<double> out(shape.head_dim, 0.0);
    for (int p = begin; p <= position; ++p) {
      const double weight = std::exp(scores[p - begin] - max);
      sum += weight;
      for (int i = 0; i < shape.head_dim; ++i) out[i] += weight * values[p - begin][i];
    }
    for (double& value : out) value /= sum;
    return out;
  }

  void PoisonFrom(int begin) { Poison(begin, num_positions_); }
  void PoisonBefore(int end) { Poison(0, end); }

 private:
  // A head's channels from column `kv` on, at positions [begin, end) of sequence 0.
  std::array<std::vector<std::vector<double>>, 2> KeptOfHead(int kv, int begin, int end) const {
    std::array<std::vector<std::vector<double>>, 2> kept;
    for (int p = begin; p < end; ++p) {
      kept[0].push_back(
          Kept({keys_[0].row(p) + kv, static_cast<std::size_t>(test_.shape.head_dim)}));
      kept[1].push_back(
          Kept({values_[0].row(p) + kv, static_cast<std::size_t>(test_.shape.head_dim)}));
    }
    return kept;
  }

  std::vector<double> Kept(std::span<const float> channels) const {
    std::vector<double> kept(channels.begin(), channels.end());
    if (test_.element_bytes == 2) {
      for (double& x : kept) x = BFloat16ToFloat(FloatToBFloat16(static_cast<float>(x)));
    }
    if (test_.element_bytes == 1) {
      double largest = 0;
      for (double x : kept) largest = std::max(largest, std::abs(x));
      const float scale = static_cast<float>(largest) / 127.0f;
      for (double& x : kept) x = scale * std::nearbyint(static_cast<float>(x * (127.0 / largest)));
    }
    return kept;
  }

  void Poison(int begin, int end) {
    for (int s = 0; s < static_cast<int>(keys_.size()); ++s) {
      for (int p = begin; p < end; ++p) {
        for (int i = 0; i < keys_[s].view.cols; ++i) {
          keys_[s].row(p)[i] = std::numeric_limits<float>::quiet_NaN();
          values_[s].row(p)[i] = p % 2 == 0 ? std::numeric_limits<float>::infinity()
                                            : std::numeric_limits<float>::quiet_NaN();
        }
      }
    }
  }

  AttentionCase test_;
  int num_positions_;
  int num_blocks_ = 0;
  std::vector<TestRows> queries_, keys_, values_;  // by sequence
  std::vector<std::vector<BlockId>> tables_;
};

}  // namespace forerun

#endif  // FORERUN_TESTS_CPP_OPS_ATTENTION_TESTING_H_
