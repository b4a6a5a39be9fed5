// Batches of rows of logits, each row of a request of its own, and random ones.
#ifndef FORERUN_TESTS_CUDA_VERIFY_ROW_BATCHES_H_
#define FORERUN_TESTS_CUDA_VERIFY_ROW_BATCHES_H_

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "tests/cuda/verify/row_testing.h"

namespace forerun::cuda::testing {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Batch {
  void Add(std::vector<float> logits, const SamplingRule& rule, int output_index = 0) {
    batch.vocab_size = static_cast<int>(logits.size());
    batch.words_per_mask = (batch.vocab_size + 31) / 32;
    const auto request = static_cast<std::int32_t>(rules.size());
    batch.rules.push_back(RuleOf(rule, output_index));
    const bool is_coupled =
        batch.rules.back().method == static_cast<std::int32_t>(AcceptanceMethod::kCoupled);
    batch.rows.push_back({request, -1, 0, -1, 0, 0, 0, is_coupled ? 0 : 1});
    rules.push_back(rule);
    rows.push_back(std::move(logits));
  }
  int output_index(std::size_t row) const {
    return batch.rules[row].first_output_index + batch.rows[row].depth;
  }

  std::vector<std::vector<float>> rows;
  std::vector<SamplingRule> rules;
  SampleBatch batch;
};

class RandomBatch : public Batch {
 public:
  RandomBatch(int seed, int max_vocab) : random_(seed) {
    const int vocab_size = Chance(4) ? Uniform(1, max_vocab) : Uniform(1, std::min(max_vocab, 300));
    const bool is_edited = Chance(2);
    for (int r = Uniform(1, 4); r > 0; --r) {
      Add(RandomRow(vocab_size), RandomRule(vocab_size), Uniform(0, 1000));
      if (is_edited) EditRow(batch.rules.back(), batch.rows.back(), vocab_size);
    }
    dtype = std::vector{DType::kFloat32, DType::kBFloat16, DType::kFloat16}[Uniform(0, 2)];
    offset = Chance(2) ? 0 : Uniform(0, 9);
    padding = Chance(2) ? 0 : Uniform(0, 9);
  }

  DType dtype;
  int offset, padding;

 private:
  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(int one_in) { return Uniform(1, one_in) == 1; }
  double Unit() { return std::uniform_real_distribution<double>(0.0, 1.0)(random_); }

  std::vector<float> RandomRow(int size) {
    std::normal_distribution<float> normal(0.0f, 0.5f * static_cast<float>(Uniform(0, 16)));
    const bool has_ties = Chance(3);
    std::vector<float> logits(size);
    for (float& logit : logits) {
      logit = normal(random_);
      if (has_ties) logit = std::round(logit);
      if (Chance(50)) logit = -kInfinity;
    }
    logits[Uniform(0, size - 1)] = Chance(20) ? 1e30f : 1.0f;
    if (Chance(15)) logits[Uniform(0, size - 1)] = Chance(2) ? kNan : kInfinity;
    if (Chance(30)) logits[Uniform(0, size - 1)] = -kNan;
    if (Chance(30)) std::ranges::fill(logits, -kInfinity);
    return logits;
  }
  SamplingRule RandomRule(int size) {
    constexpr double kTemperatures[] = {0.0, 1e-310, 1e-6, 0.1, 0.7, 1.0, 1.3, 5.0, 1e9};
    SamplingRule rule;
    rule.temperature = kTemperatures[Uniform(0, 8)];
    if (Chance(2)) rule.top_k = Uniform(-1, size + 1);
    if (Chance(2)) rule.top_p = Chance(4) ? Unit() * 1e-6 + 1e-300 : 1.0 - Unit();
    if (Chance(3)) rule.min_p = Chance(4) ? 1.0 : std::pow(Unit(), 3);
    rule.seed = std::uint64_t{random_()} << 32 | random_();
    rule.acceptance_method = static_cast<AcceptanceMethod>(Uniform(0, 2));
    return rule;
  }
  std::int32_t AddMask(int vocab_size) {
    for (int first = 0; first < vocab_size; first += 32) {
      batch.masks.push_back(Chance(8) ? 0u : random_() | random_());
    }
    return static_cast<std::int32_t>(batch.masks.size()) / batch.words_per_mask - 1;
  }
  void EditRow(SampleRule& rule, SampleRow& row, int vocab_size) {
    if (Chance(3)) rule.mask = AddMask(vocab_size);
    if (Chance(3)) row.mask = AddMask(vocab_size);
    row.first_ban = static_cast<std::int32_t>(batch.bans.size());
    for (row.num_bans = Chance(2) ? Uniform(0, 3) : 0;
         std::ssize(batch.bans) - row.first_ban < row.num_bans;) {
      batch.bans.push_back(Uniform(0, vocab_size - 1));
    }
    rule.first_node = static_cast<std::int32_t>(batch.tokens.size());
    rule.num_nodes = Uniform(0, 4);
    for (int node = 0; node < rule.num_nodes; ++node) {
      batch.tokens.push_back(Uniform(0, vocab_size - 1));
      batch.parents.push_back(Uniform(-1, node - 1));
    }
    row.node = Uniform(-1, rule.num_nodes - 1);
    row.depth = Uniform(0, 3);
    if (Chance(2)) rule.penalties = {Uniform(5, 20) / 10.0f, Uniform(-20, 20) / 10.0f, 0.3f};
    rule.first_edit = static_cast<std::int32_t>(batch.edits.size());
    const auto is_drafted = [&](TokenId token) {
      return std::count(batch.tokens.begin() + rule.first_node, batch.tokens.end(), token) > 0;
    };
    for (TokenId token = 0; token < vocab_size; ++token) {  // sorted by token
      if (!Chance(10) && !is_drafted(token)) continue;
      TokenEdit edit = {token, 0, 0.0f, 0};
      if (Chance(2)) edit.flags |= TokenEdit::kOccurs;
      if ((edit.flags & TokenEdit::kOccurs) != 0) edit.count = Uniform(0, 4);
      if (Chance(2)) edit.flags |= TokenEdit::kBiased;
      if ((edit.flags & TokenEdit::kBiased) != 0) edit.bias = Uniform(-30, 30) / 7.0f;
      batch.edits.push_back(edit);
    }
    rule.num_edits = static_cast<std::int32_t>(batch.edits.size()) - rule.first_edit;
  }

  std::mt19937 random_;
};

}  // namespace forerun::cuda::testing

#endif  // FORERUN_TESTS_CUDA_VERIFY_ROW_BATCHES_H_
