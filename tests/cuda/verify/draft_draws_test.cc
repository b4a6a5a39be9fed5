// Draft tokens that a GPU draws, level after level of a round, beside those of the host.
#include "cuda/verify/draft_draws.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <iterator>
#include <span>
#include <vector>

#include "cpp/sampling/draft_sampling.h"
#include "cuda/verify/cuda_verifier.h"
#include "forerun/error.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/build_kind.h"
#include "tests/cuda/verify/device_logits.h"
#include "tests/cuda/verify/lazy_streams.h"

namespace forerun::cuda {
namespace {

using testing::DeviceRows;
using testing::DeviceValues;
using testing::RandomLogits;
using testing::RandomNumbers;

constexpr int kNumChains = 5, kNumLevels = 3;

// A row's token and, if it is drawn, the weights of the head's tokens.
struct Expected {
  TopToken token;
  std::vector<float> weights = {};
};
using Level = std::vector<Expected>;

Level OfTheHost(const RandomLogits& logits, std::span<const Draw> draws) {
  const int vocab_size = logits.rows().cols;
  std::vector<TopToken> top(draws.size());
  HostVerifier({.vocab_size = vocab_size, .max_requests = 1, .max_rows = kNumChains})
      .Top(logits.rows(), /*count=*/1, top);
  Level level;
  SamplerScratch scratch;
  for (std::size_t row = 0; row < draws.size(); ++row) {
    const Draw& draw = draws[row];
    Expected& expected = level.emplace_back(Expected{top[row]});
    if (draw.rule == nullptr) continue;
    DraftTree draft;
    for (int node = 0; node < draw.depth; ++node) draft.AppendToChain(0, 1.0f);
    const std::span<float> weights = draft.AddRowAfter(draw.depth - 1, vocab_size);
    try {
      FillDraftRow(logits.row(static_cast<int>(row)), *draw.rule, scratch, weights);
    } catch (const NumericError&) {
      expected.token.token = -1;
      continue;
    }
    expected.weights.assign(weights.begin(), weights.end());
    EXPECT_TRUE(AppendDrawnChild(draft, draw.depth - 1, draw.rule->seed, draw.first_output_index));
    expected.token = {draft.tokens.back(), draft.confidence.back()};
  }
  return level;
}

// Every other token of the target's or so, in their order.
std::vector<TokenId> RandomIds(RandomNumbers& random, int vocab_size) {
  std::vector<TokenId> ids;
  for (TokenId next = 0; std::ssize(ids) < vocab_size; ++next) {
    next += random.Pick(0, 2);
    ids.push_back(next);
  }
  return ids;
}

// A round of levels of random chains, by a head that may know a part of the target's tokens.
class RandomRound {
 public:
  explicit RandomRound(RandomNumbers& random)
      : random_(random),
        vocab_size_(random.Pick(1, random.Chance(0.2) ? 2000 : 200)),
        has_ids_(random.Chance(0.5)),
        ids_(RandomIds(random, vocab_size_)),
        device_ids_(ids_),
        num_target_tokens_(has_ids_ ? ids_.back() + random.Pick(1, 9) : vocab_size_),
        verifier_({.vocab_size = vocab_size_,
                   .max_requests = 1,
                   .max_rows = kNumChains,
                   .max_top_tokens = kNumChains * kNumLevels,
                   .max_drawn_rows = kNumChains * kNumLevels,
                   .drawn_vocab_size = num_target_tokens_}),
        rules_(kNumChains) {
    for (SamplingRule& rule : rules_) {
      rule.temperature = random.Uniform(0.1, 2.0);
      if (random.Chance(0.3)) rule.top_k = random.Pick(1, 20);
      if (random.Chance(0.3)) rule.top_p = random.Uniform(0.1, 1.0);
      rule.seed = random.Pick(0, 1 << 30);
      rule.acceptance_method =
          random.Chance(0.5) ? AcceptanceMethod::kRejection : AcceptanceMethod::kBlock;
    }
  }

  void Start() {
    int num_chains = kNumChains;
    for (int depth = 0; depth < kNumLevels; ++depth) {
      RandomLogits logits(random_, vocab_size_);
      std::vector<Draw> draws(num_chains);
      for (int chain = 0; chain < num_chains; ++chain) {
        logits.AddRow();
        weights_rows_.push_back(chain * kNumLevels + depth);
        if (random_.Chance(0.3)) continue;
        draws[chain] = {&rules_[chain], 11 * chain, depth, weights_rows_.back()};
      }
      const int num_before = static_cast<int>(expected_.size());
      Level level = OfTheHost(logits, draws);
      std::ranges::move(level, std::back_inserter(expected_));
      const ConstRows rows = device_rows_.emplace_back(logits).rows();
      verifier_.StartTop(rows, /*count=*/1, num_before);
      weights_ =
          verifier_.StartDraws(rows, draws, has_ids_ ? device_ids_.data() : nullptr, num_before);
      num_chains = random_.Pick(1, num_chains);  // others' drafts may be shorter
    }
  }

  // Returns how many rows were broken.
  int Check() {
    std::vector<TopToken> found(expected_.size());
    verifier_.FinishTop(found);
    int num_broken = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].token, expected_[i].token.token) << i;
      num_broken += found[i].token < 0;
      if (found[i].token < 0) continue;
      EXPECT_EQ(found[i].probability, expected_[i].token.probability) << i;
      const std::vector<float>& weights = expected_[i].weights;
      if (weights.empty()) continue;
      std::vector<float> wanted(num_target_tokens_), kept(num_target_tokens_);
      for (int t = 0; t < vocab_size_; ++t) wanted[has_ids_ ? ids_[t] : t] = weights[t];
      const float* const row = weights_ + std::int64_t{weights_rows_[i]} * num_target_tokens_;
      EXPECT_EQ(cudaMemcpy(kept.data(), row, kept.size() * sizeof(float), cudaMemcpyDeviceToHost),
                cudaSuccess);
      EXPECT_EQ(kept, wanted) << i;
    }
    return num_broken;
  }

 private:
  RandomNumbers& random_;
  const int vocab_size_;
  const bool has_ids_;
  const std::vector<TokenId> ids_;
  const DeviceValues<TokenId> device_ids_;
  const int num_target_tokens_;
  CudaVerifier verifier_;
  std::vector<SamplingRule> rules_;
  std::deque<DeviceRows> device_rows_;  // which the GPU reads until the round is over
  const float* weights_ = nullptr;
  // By token of the round.
  Level expected_;
  std::vector<int> weights_rows_;
};

TEST(DraftDrawsTest, LevelsOfARoundHaveTheTokensAndWeightsOfTheHost) {
  RandomNumbers random(6);
  const int num_rounds = testing::IsPlainBuild() ? testing::NumExamples(80, 2000) : 12;
  int num_broken = 0;
  for (int i = 0; i < num_rounds && !HasFailure(); ++i) {
    SCOPED_TRACE(i);
    const testing::LazyStreams lazy(i % 2 == 0);
    RandomRound round(random);
    round.Start();
    num_broken += round.Check();
  }
  EXPECT_GT(num_broken, 0);
}

TEST(DraftDrawsTest, MoreRowsThanTheLimitAreABug) {
  RandomNumbers random(7);
  RandomLogits logits(random, 20);
  logits.AddRow();
  const DeviceRows rows(logits);
  CudaVerifier verifier({.vocab_size = 20,
                         .max_requests = 1,
                         .max_rows = 1,
                         .max_top_tokens = 1,
                         .max_drawn_rows = 2,
                         .drawn_vocab_size = 20});
  const SamplingRule rule;
  const Draw beyond = {&rule, 0, 0, 2};
  verifier.StartTop(rows.rows(), /*count=*/1, 0);
  EXPECT_THROW(verifier.StartDraws(rows.rows(), {&beyond, 1}, nullptr, 0), InternalError);
}

}  // namespace
}  // namespace forerun::cuda
