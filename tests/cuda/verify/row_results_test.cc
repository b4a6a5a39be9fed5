// Top tokens, log-probabilities and draws from rows against cpp/sampling and HostVerifier.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpp/sampling/draft_sampling.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/verify/verifier.h"
#include "cuda/verify/logprob_rows.h"
#include "cuda/verify/sample_drafts.h"
#include "cuda/verify/sample_rows.h"
#include "cuda/verify/top_rows.h"
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

struct Workspace {
  Workspace(std::size_t rows, int vocab_size)
      : memory(RowWorkspace::NumBytes(static_cast<int>(rows), vocab_size)),
        arrays(RowWorkspace::In(memory.data(), static_cast<int>(rows), vocab_size)) {}

  const DeviceArray<std::byte> memory;
  const RowWorkspace arrays;
};

void ExpectTop(std::vector<std::vector<float>> rows, int count, DType dtype) {
  const int vocab_size = static_cast<int>(rows[0].size());
  const DeviceRows device_rows(rows, dtype, 3, 1);
  const SampleBatch batch = TopBatch(static_cast<int>(rows.size()), vocab_size);
  const DeviceBatch device_batch(batch);
  const Workspace work(rows.size(), vocab_size);
  const DeviceArray<TopToken> out(rows.size() * count);
  testing::Expect(TopRows(device_rows.logits(), device_batch.arrays(), count, work.arrays,
                          out.data(), nullptr));

  std::vector<float> logits;
  for (const std::vector<float>& row : rows) logits.insert(logits.end(), row.begin(), row.end());
  std::vector<TopToken> expected(rows.size() * count);
  HostVerifier host({.vocab_size = vocab_size});
  host.Top(ConstRows(logits.data(), static_cast<int>(rows.size()), vocab_size), count, expected);
  const std::vector<TopToken> found = out.Download();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(found[i].token, expected[i].token) << "row " << i / count << " rank " << i % count;
    EXPECT_EQ(found[i].probability, expected[i].probability) << i;
  }
}

TEST(TopRowsTest, TokensAndProbabilitiesAreThoseOfTheHost) {
  const int num_batches = NumExamples(25, 1000);
  for (int seed = 0; seed < num_batches && !HasFailure(); ++seed) {
    InEveryOrder([&] {
      const RandomBatch batch(seed, 4000);
      const int counts[] = {1, 4, 32, batch.batch.vocab_size + 1};
      ExpectTop(batch.rows, std::min(counts[seed % 4], kMaxTopTokens), batch.dtype);
    });
  }
}

TEST(TopRowsTest, TiesBeyondTheListGoToTheLowestIds) {
  ExpectTop({std::vector<float>(9000, 0.5f)}, 1000, DType::kFloat32);
}

TEST(TopRowsTest, CountsOutOfRangeAreRefused) {
  const SampleBatch batch = TopBatch(1, 10);
  for (const int count : {0, -1, kMaxTopTokens + 1}) {
    EXPECT_EQ(TopRows({}, batch.arrays(), count, {}, nullptr, nullptr), cudaErrorInvalidValue);
  }
}

// A batch of scored and emitting rows with their tokens.
struct LogprobBatch : RandomBatch {
  explicit LogprobBatch(int seed) : RandomBatch(seed, 4000), random(seed + 1) {
    const int vocab_size = batch.vocab_size;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      SampleRule& rule = batch.rules[r];
      const bool has_ids = Uniform(0, 1) == 1;
      rule.first_row = static_cast<std::int32_t>(r);
      rule.num_top = has_ids ? 0 : Uniform(0, std::min(vocab_size, kMaxBatchLogprobs));
      rule.num_prompt_top = Uniform(0, std::min(vocab_size, kMaxBatchLogprobs));
      rule.first_logprob_id = static_cast<std::int32_t>(batch.logprob_ids.size());
      rule.num_logprob_ids = has_ids ? Uniform(0, kMaxBatchLogprobs) : 0;
      for (int i = 0; i < rule.num_logprob_ids; ++i) {
        batch.logprob_ids.push_back(Uniform(0, vocab_size - 1));
      }
      rule.first_scored = static_cast<std::int32_t>(batch.scored_tokens.size());
      const TokenId token = Uniform(0, vocab_size - 1);
      const bool is_scored = Uniform(0, 2) == 0;
      if (is_scored) {
        batch.rows[r].node = kScoredRow;
        batch.scored_tokens.push_back(token);
      }
      emitted.push_back(is_scored ? 0 : Uniform(0, 7) == 0 ? -1 : token);
      first_entry.push_back(Uniform(0, 7) == 0 ? -1 : num_entries);
      num_entries += NumEntries(r);
    }
  }

  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
  bool is_scored(std::size_t r) const { return batch.rows[r].node == kScoredRow; }
  int NumEntries(std::size_t r) const {
    const SampleRule& rule = batch.rules[r];
    return 1 + (is_scored(r) ? rule.num_prompt_top : rule.num_top + rule.num_logprob_ids);
  }
  // By definition; throws NumericError.
  std::vector<TokenLogprob> Entries(std::size_t r) const {
    const SampleRule& rule = batch.rules[r];
    SamplerScratch scratch;
    std::vector<TokenLogprob> entries;
    if (is_scored(r)) {
      const TokenId token = batch.scored_tokens[rule.first_scored];
      AppendLogprobs(rows[r], token, rule.num_prompt_top, scratch, entries);
    } else if (rule.num_logprob_ids > 0) {
      const auto ids = std::span(batch.logprob_ids).subspan(rule.first_logprob_id);
      AppendLogprobsOf(rows[r], emitted[r], ids.first(rule.num_logprob_ids), scratch, entries);
    } else {
      AppendLogprobs(rows[r], emitted[r], rule.num_top, scratch, entries);
    }
    return entries;
  }

  std::mt19937 random;
  std::vector<TokenId> emitted;
  std::vector<std::int32_t> first_entry;
  int num_entries = 0;
};

// Equal, or neighbours.
bool AreClose(float a, float b) { return a == b || std::nextafter(a, b) == b; }

void ExpectEntries(const LogprobBatch& batch, std::size_t r, const LogprobStatus& status,
                   const TokenLogprob* found) {
  try {
    const std::vector<TokenLogprob> expected = batch.Entries(r);
    ASSERT_EQ(status.status, kRowOk);
    ASSERT_EQ(std::ssize(expected), batch.NumEntries(r));
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(found[i].token, expected[i].token) << i;
      EXPECT_EQ(found[i].rank, expected[i].rank) << i;
      EXPECT_TRUE(AreClose(found[i].logprob, expected[i].logprob))
          << i << ": " << found[i].logprob << ", not " << expected[i].logprob;
    }
  } catch (const NumericError& error) {
    const std::string message = status.status == kRowBroken
                                    ? BrokenLogitMessage(status.broken_token, status.broken_logit)
                                    : kNothingToSample;
    ASSERT_NE(status.status, kRowOk);
    EXPECT_EQ(message, error.what());
  }
}

// Runs the kernel; the bytes of the entries.
std::vector<std::byte> CheckLogprobs(LogprobBatch& batch) {
  const DeviceRows rows(batch.rows, batch.dtype, batch.offset, batch.padding);
  const DeviceBatch device_batch(batch.batch);
  const DeviceArray<TokenId> emitted(batch.emitted);
  const DeviceArray<std::int32_t> first_entry(batch.first_entry);
  const DeviceArray<LogprobStatus> statuses(batch.rows.size());
  const DeviceArray<TokenLogprob> entries(batch.num_entries);
  statuses.Poison();
  entries.Poison();
  const Workspace work(batch.rows.size(), batch.batch.vocab_size);
  const LogprobArrays arrays = {device_batch.arrays(), emitted.data(), first_entry.data(),
                                statuses.data(), entries.data()};
  testing::Expect(LogprobRows(rows.logits(), arrays, work.arrays, nullptr));
  const std::vector<TokenLogprob> found = entries.Download();
  const std::vector<LogprobStatus> found_statuses = statuses.Download();
  for (std::size_t r = 0; r < batch.rows.size(); ++r) {
    if (batch.first_entry[r] < 0 || (!batch.is_scored(r) && batch.emitted[r] < 0)) continue;
    SCOPED_TRACE("row " + std::to_string(r));
    ExpectEntries(batch, r, found_statuses[r], found.data() + batch.first_entry[r]);
  }
  std::vector<std::byte> bytes(found.size() * sizeof(TokenLogprob));
  std::memcpy(bytes.data(), found.data(), bytes.size());
  return bytes;
}

TEST(LogprobRowsTest, EntriesAreThoseOfTheHostAndEqualInEveryOrder) {
  const int num_batches = NumExamples(30, 1500);
  for (int seed = 0; seed < num_batches && !HasFailure(); ++seed) {
    std::vector<std::byte> first;
    InEveryOrder([&] {
      LogprobBatch batch(seed);
      const std::vector<std::byte> entries = CheckLogprobs(batch);
      if (first.empty()) first = entries;
      EXPECT_TRUE(entries == first) << "another order gives other bits";
    });
  }
}

TEST(SampleDraftsTest, WeightsAndTokensAreThoseOfTheHost) {
  const int num_batches = NumExamples(25, 1000);
  for (int seed = 0; seed < num_batches && !HasFailure(); ++seed) {
    InEveryOrder([&] {
      RandomBatch batch(seed, 4000);
      const int vocab_size = batch.batch.vocab_size;
      for (std::size_t r = 0; r < batch.rows.size(); ++r) {
        if (batch.rules[r].temperature == 0.0) batch.rules[r].temperature = 1.0;
        batch.rules[r].acceptance_method = AcceptanceMethod::kBlock;
        const SampleRule sampling = testing::RuleOf(batch.rules[r], 0);
        batch.batch.rules[r].inverse_temperature = sampling.inverse_temperature;
        batch.batch.rules[r].min_p_depth = sampling.min_p_depth;
        batch.batch.rules[r].method = sampling.method;
        batch.batch.rows[r].needs_mass = 1;
      }
      const DeviceRows rows(batch.rows, batch.dtype, batch.offset, batch.padding);
      const DeviceBatch device_batch(batch.batch);
      const Workspace work(batch.rows.size(), vocab_size);
      const DeviceArray<float> weights(batch.rows.size() * vocab_size);
      weights.Poison();
      const DeviceArray<TopToken> drawn(batch.rows.size());
      testing::Expect(SampleRows(rows.logits(), device_batch.arrays(), true, work.arrays, nullptr));
      testing::Expect(SampleDrafts(rows.logits(), device_batch.arrays(), work.arrays,
                                   weights.data(), drawn.data(), nullptr));
      const std::vector<float> found_weights = weights.Download();
      const std::vector<TopToken> found = drawn.Download();
      for (std::size_t r = 0; r < batch.rows.size(); ++r) {
        std::vector<float> logits = batch.rows[r];
        ApplyEdits(batch.batch.arrays(), static_cast<int>(r), logits.data());
        DraftTree draft;
        const int depth = batch.batch.rows[r].depth;
        for (int node = 0; node < depth; ++node) draft.AppendToChain(0, 1.0f);
        const std::span<float> row = draft.AddRowAfter(depth - 1, vocab_size);
        SamplerScratch scratch;
        try {
          FillDraftRow(logits, batch.rules[r], scratch, row);
        } catch (const NumericError&) {
          EXPECT_EQ(found[r].token, -1);
          continue;
        }
        EXPECT_TRUE(std::equal(row.begin(), row.end(), found_weights.begin() + r * vocab_size));
        ASSERT_TRUE(AppendDrawnChild(draft, depth - 1, batch.rules[r].seed,
                                     batch.batch.rules[r].first_output_index));
        EXPECT_EQ(found[r].token, draft.tokens.back());
        EXPECT_EQ(found[r].probability, draft.confidence.back());
      }
    });
  }
}

TEST(SampleDraftsTest, WeightsGoToTheTokensOfTheTarget) {
  constexpr int kVocabSize = 37, kNumTokens = 90, kNumScattered = 9;
  const std::vector<std::int32_t> drawn_rows = {4, -1, 0,
                                                7};  // of rows of weights; -1: not sampled
  std::vector<float> weights(drawn_rows.size() * kVocabSize);
  std::iota(weights.begin(), weights.end(), 1.0f);
  std::vector<TokenId> ids;
  for (int i = 0; i < kVocabSize; ++i) ids.push_back(2 * i + i / 20);
  SampleBatch batch;
  std::vector<Draw> draws;
  SamplingRule rule;
  for (const std::int32_t drawn_row : drawn_rows) {
    draws.push_back({drawn_row < 0 ? nullptr : &rule, 0, 0, std::max(drawn_row, 0)});
  }
  batch.BuildDraws(draws, kVocabSize);
  const DeviceBatch device_batch(batch);
  const DeviceArray<float> device_weights(weights);
  const DeviceArray<TokenId> device_ids(ids);
  for (const bool has_ids : {false, true}) {
    const int num_tokens = has_ids ? kNumTokens : kVocabSize;
    const DeviceArray<float> scattered(std::vector<float>(kNumScattered * num_tokens, -1.0f));
    testing::Expect(
        ScatterDraftWeights(device_batch.arrays(),
                            {device_weights.data(), has_ids ? device_ids.data() : nullptr,
                             num_tokens, scattered.data()},
                            nullptr));
    std::vector<float> expected(kNumScattered * num_tokens, -1.0f);
    for (std::size_t r = 0; r < drawn_rows.size(); ++r) {
      if (drawn_rows[r] < 0) continue;
      const auto row = expected.begin() + drawn_rows[r] * num_tokens;
      std::fill_n(row, num_tokens, 0.0f);
      for (int i = 0; i < kVocabSize; ++i) row[has_ids ? ids[i] : i] = weights[r * kVocabSize + i];
    }
    EXPECT_EQ(scattered.Download(), expected);
  }
}

}  // namespace
}  // namespace forerun::cuda
