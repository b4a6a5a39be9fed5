// The kernels that sample rows against cpp/sampling, which defines what they compute: bit for bit.
#include "cuda/verify/sample_rows.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <string>

#include "cpp/sampling/logits_row.h"
#include "cpp/sampling/noise.h"
#include "cuda/emulation/in_every_order.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/verify/row_batches.h"
#include "tests/cuda/verify/row_testing.h"

namespace forerun::cuda {
namespace {

using emulation::InEveryOrder;
using forerun::testing::NumExamples;
using testing::Batch;
using testing::DeviceArray;
using testing::DeviceBatch;
using testing::DeviceRows;
using testing::RandomBatch;

using testing::kInfinity;
using testing::kNan;

bool NeedsMass(const SampleBatch& batch) {
  return std::ranges::any_of(batch.rules,
                             [](const SampleRule& rule) { return rule.top_p < 1.0; }) ||
         std::ranges::any_of(batch.rows, [](const SampleRow& row) { return row.needs_mass != 0; });
}

constexpr int kUntouched = 0xff;  // a byte of a state that no kernel writes

std::vector<RowState> StatesOf(const DeviceLogits& logits, const SampleBatch& batch) {
  const DeviceBatch device_batch(batch);
  const int num_rows = static_cast<int>(batch.rows.size());
  const DeviceArray<std::byte> memory(RowWorkspace::NumBytes(num_rows, batch.vocab_size));
  const RowWorkspace work = RowWorkspace::In(memory.data(), num_rows, batch.vocab_size);
  testing::Expect(cudaMemset(work.states, kUntouched, num_rows * sizeof(RowState)));
  testing::Expect(SampleRows(logits, device_batch.arrays(), NeedsMass(batch), work, nullptr));
  std::vector<RowState> states(num_rows);
  testing::Expect(
      cudaMemcpy(states.data(), work.states, num_rows * sizeof(RowState), cudaMemcpyDeviceToHost));
  return states;
}

// What is wrong with a row's state; empty: nothing.
std::string Difference(const Batch& batch, std::size_t r, const RowState& state) {
  std::vector<float> logits = batch.rows[r];
  ApplyEdits(batch.batch.arrays(), static_cast<int>(r), logits.data());
  const SamplingRule& rule = batch.rules[r];
  SamplerScratch scratch;
  try {
    const TokenId token = SampleToken(logits, rule, batch.output_index(r), scratch);
    if (state.status != kRowOk) return "status " + std::to_string(state.status);
    if (state.sampled != token) {
      return "sampled " + std::to_string(state.sampled) + ", not " + std::to_string(token);
    }
  } catch (const NumericError& error) {
    const std::string found = state.status == kRowBroken
                                  ? BrokenLogitMessage(state.broken_token, state.broken_logit)
                              : state.status == kRowEmpty ? kNothingToSample
                                                          : "none";
    return found == error.what() ? "" : "error '" + found + "', not '" + error.what() + "'";
  }
  if (batch.batch.rows[r].needs_mass == 0) return "";
  const KeptTokens kept = KeepTokens(logits, rule, scratch);
  if (static_cast<double>(state.mass) * 0x1p-32 != kept.mass) return "another mass";
  for (TokenId token = 0; token < std::ssize(logits); ++token) {
    const bool is_kept = CodeOf(logits[token], token) <= state.cut;
    const double weight = is_kept ? kept.row.WeightAt(logits[token]) : 0.0;
    if (weight != kept.WeightOf(token)) return "another weight of token " + std::to_string(token);
  }
  return "";
}

void ExpectAsDefined(Batch& batch, DType dtype, int offset, int padding) {
  const DeviceRows rows(batch.rows, dtype, offset, padding);
  const std::vector<std::byte> before = rows.Download();
  const std::vector<RowState> states = StatesOf(rows.logits(), batch.batch);
  for (std::size_t r = 0; r < batch.rows.size(); ++r) {
    EXPECT_EQ(Difference(batch, r, states[r]), "")
        << "row " << r << " of " << batch.rows.size() << ", vocabulary " << batch.rows[r].size()
        << ", temperature " << batch.rules[r].temperature << ", top_k " << batch.rules[r].top_k
        << ", top_p " << batch.rules[r].top_p << ", min_p " << batch.rules[r].min_p << ", method "
        << batch.batch.rules[r].method << ", " << Name(dtype);
  }
  EXPECT_TRUE(before == rows.Download()) << "the logits have changed";
}

TEST(SampleRowsTest, StatesAreThoseOfTheDefinitionOnRandomRows) {
  const int num_batches = NumExamples(60, 4000);
  for (int seed = 0; seed < num_batches && !HasFailure(); ++seed) {
    InEveryOrder([&] {
      RandomBatch batch(seed, seed % 8 == 0 ? 9000 : 600);
      ExpectAsDefined(batch, batch.dtype, batch.offset, batch.padding);
    });
  }
}

SamplingRule Coupled(std::uint64_t seed, double temperature = 1.0) {
  return {.temperature = temperature, .seed = seed};
}
SamplingRule Rejection(std::uint64_t seed, double top_p = 1.0) {
  SamplingRule rule = {.top_p = top_p, .seed = seed};
  rule.acceptance_method = AcceptanceMethod::kRejection;
  return rule;
}

// Peaked as those of language models, or flat.
std::vector<float> RowOf(int size, float spread, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = normal(random);
  if (spread > 1.0f) logits[seed % size] += 12.0f;
  return logits;
}

// Rules that lead through every kernel, with candidates that fit into the list and that do not.
std::vector<SamplingRule> RulesOfAllPaths() {
  std::vector<SamplingRule> rules = {{.temperature = 0.0}, Coupled(1), Coupled(2, 3.0)};
  rules.push_back({.min_p = 0.02, .seed = 3});
  rules.push_back({.top_k = 50, .top_p = 0.9, .seed = 4});
  rules.push_back({.top_k = 5000, .top_p = 0.5, .min_p = 1e-4, .seed = 5});
  rules.push_back({.top_p = 0.3, .seed = 6});
  rules.push_back({.top_p = 0.95, .seed = 7});
  rules.push_back(Rejection(8));
  rules.push_back(Rejection(9, 0.8));
  rules.push_back(Rejection(10, 0.8));
  rules.back().top_k = 3000;
  return rules;
}

TEST(SampleRowsTest, StatesAreThoseOfTheDefinitionInLargeVocabularies) {
  const bool is_fast = !testing::DetectsRaces() && NumExamples(0, 1) == 1;
  for (const int size : is_fast ? std::vector{49152, 128256, 262144} : std::vector{30000}) {
    for (const float spread : {0.0f, 0.05f, 3.0f}) {
      Batch batch;
      for (const SamplingRule& rule : RulesOfAllPaths()) {
        batch.Add(RowOf(size, spread, static_cast<int>(rule.seed)), rule, 5);
      }
      ExpectAsDefined(batch, DType::kFloat32, 0, 0);
    }
  }
}

// Some two of 2^18 noises of a seed are equal (about 8 pairs are expected). At the highest
// temperature nothing but noise counts.
TEST(SampleRowsTest, EqualScoresGoToTheLowestId) {
  std::map<double, TokenId> token_of;
  TokenId low = 0, high = 0;
  for (TokenId token = 0; token < 262144 && high == 0; ++token) {
    const auto [equal, is_new] = token_of.try_emplace(GumbelNoise(0, 0, token), token);
    if (!is_new) {
      low = equal->second;
      high = token;
    }
  }
  ASSERT_LT(low, high);
  Batch batch;
  for (const float logit_of_low : {1.0f, 2.0f, 3.0f}) {
    std::vector<float> logits(high + 1, -kInfinity);
    logits[low] = logit_of_low;
    logits[high] = 2.0f;
    batch.Add(logits, Coupled(0, 1e30));
  }
  const DeviceRows rows(batch.rows, DType::kFloat32, 0, 0);
  for (const RowState& state : StatesOf(rows.logits(), batch.batch)) EXPECT_EQ(state.sampled, low);
}

TEST(SampleRowsTest, RowsThatAreNotSampledAreLeftAlone) {
  Batch batch;
  for (int i = 0; i < 3; ++i) batch.Add({0.0f, 1.0f}, Coupled(1));
  batch.batch.rows[0].node = kScoredRow;
  batch.batch.rows[2].node = kHostRow;
  const DeviceRows rows(batch.rows, DType::kFloat32, 0, 0);
  const std::vector<RowState> states = StatesOf(rows.logits(), batch.batch);
  RowState untouched;
  std::memset(&untouched, kUntouched, sizeof untouched);
  EXPECT_EQ(std::memcmp(&states[0], &untouched, sizeof untouched), 0);
  EXPECT_EQ(states[1].status, kRowOk);
  EXPECT_EQ(std::memcmp(&states[2], &untouched, sizeof untouched), 0);
}

// More than a grid has blocks along y.
TEST(SampleRowsTest, TensOfThousandsOfRowsAreSampledAtOnce) {
  if (!testing::IsPlainBuild()) GTEST_SKIP() << "the plain build alone is fast enough";
  Batch batch;
  for (int i = 0; i < 70000; ++i) {
    const bool is_sampled = i % 10000 == 9999;
    batch.Add({0.0f, static_cast<float>(i % 3)}, Rejection(i, 0.9));
    if (!is_sampled) batch.batch.rows[i].node = kScoredRow;  // what only takes time
  }
  const DeviceRows rows(batch.rows, DType::kFloat32, 0, 0);
  const std::vector<RowState> states = StatesOf(rows.logits(), batch.batch);
  for (int i = 9999; i < 70000; i += 10000) EXPECT_EQ(Difference(batch, i, states[i]), "");
}

TEST(SampleRowsTest, OtherTypesAreRefused) {
  Batch batch;
  batch.Add({0.0f, 1.0f}, Coupled(1));
  const DeviceRows rows(batch.rows, DType::kFloat32, 0, 0);
  DeviceLogits logits = rows.logits();
  logits.dtype = DType::kInt32;
  const DeviceBatch device_batch(batch.batch);
  EXPECT_EQ(SampleRows(logits, device_batch.arrays(), false, {}, nullptr), cudaErrorInvalidValue);
}

#ifdef FORERUN_EMULATED_GPU
// How often a row of this size is read, from what kernels load of the logits.
double NumReads(const SamplingRule& rule, float spread) {
  constexpr int kSize = 20 * kTileTokens - 7;
  double reads = 0.0;
  for (int seed = 0; seed < 2; ++seed) {
    Batch batch;
    batch.Add(RowOf(kSize, spread, seed), rule, seed);
    const DeviceRows rows(batch.rows, DType::kFloat32, 0, 0);
    emulation::WatchLoads(rows.logits().data, kSize * sizeof(float));
    const std::uint64_t before = emulation::counters().watched_bytes_loaded;
    StatesOf(rows.logits(), batch.batch);
    reads += static_cast<double>(emulation::counters().watched_bytes_loaded - before);
    emulation::WatchLoads(nullptr, 0);
  }
  return reads / 2 / (kSize * sizeof(float));
}

TEST(SampleRowsTest, RowsAreReadAsOftenAsPromised) {
  if (!testing::DetectsRaces()) GTEST_SKIP() << "loads are counted in the race build alone";
  const double tile = 1.0 / 19;
  for (const float spread : {0.0f, 0.05f, 3.0f}) {
    EXPECT_EQ(NumReads({.temperature = 0.0}, spread), 1.0);
    EXPECT_LE(NumReads(Coupled(1), spread), 1.0 + tile + 1e-9);
    EXPECT_LE(NumReads({.min_p = 0.01, .seed = 1}, spread), 1.5);
    EXPECT_LE(NumReads(Rejection(1), spread), 2.0 + tile + 1e-9);
    EXPECT_LE(NumReads({.top_k = 50, .top_p = 0.9, .seed = 1}, spread), 2.0);
  }
  for (const double top_p : {0.3, 0.9}) {
    double sum = 0.0;
    for (const float spread : {0.0f, 0.05f, 3.0f}) {
      sum += NumReads(Rejection(1, top_p), spread);
      EXPECT_LE(NumReads(Rejection(1, top_p), spread), 10.0);
      EXPECT_LE(NumReads({.top_k = 10000, .seed = 1}, spread), 10.0);
    }
    EXPECT_LE(sum / 3, 3.0);
  }
}
#endif

}  // namespace
}  // namespace forerun::cuda
