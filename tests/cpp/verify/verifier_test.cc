// The outcomes of steps against Verify and the log-probabilities of single rows; candidates of
// drafters against a sort.
#include "cpp/verify/verifier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <numeric>
#include <random>

#include "cpp/sampling/logits_processors.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/util/check.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_tree.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kVocabSize = 13;
constexpr int kStride = kVocabSize + 2;

// Requests of one step and their rows, kStride floats apart; gaps are NaN.
class Step {
 public:
  explicit Step(unsigned seed) : random_(seed) {}

  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  SampleRequest& Add(int num_nodes, const SamplingRule& rule, const Tokens& scored = {}) {
    DraftTree& draft = drafts_.emplace_back();
    for (std::int32_t parent :
         testing::RandomParents(num_nodes, [&](int n) { return Pick(0, n - 1); })) {
      draft.Append(Pick(0, kVocabSize - 1), parent, 1.0f);
    }
    SampleRequest request = {
        .draft = &draft, .rule = &rules_.emplace_back(rule), .first_output_index = Pick(0, 50)};
    request.scored_tokens = scored_.emplace_back(scored);
    if (!scored.empty()) request.prompt_logprobs = Pick(-1, 4);
    first_rows_.push_back(num_rows());
    for (int i = request.num_rows(); i > 0; --i) {
      for (int token = 0; token < kStride; ++token) {
        logits_.push_back(token < kVocabSize ? static_cast<float>(Pick(0, 60)) / 10.0f : kNan);
      }
    }
    requests_.push_back(request);
    return requests_.back();
  }
  float* row(int request, int i) {
    return logits_.data() + (first_rows_[request] + i) * std::int64_t{kStride};
  }
  int num_rows() const { return static_cast<int>(logits_.size()) / kStride; }
  ConstRows logits() const { return {logits_.data(), num_rows(), kVocabSize, kStride}; }
  std::vector<SampleRequest>& requests() { return requests_; }

 private:
  std::mt19937 random_;
  std::deque<DraftTree> drafts_;
  std::deque<SamplingRule> rules_;
  std::deque<Tokens> scored_;
  std::vector<SampleRequest> requests_;
  std::vector<int> first_rows_;
  std::vector<float> logits_;
};

std::vector<TokenLogprob> EntriesOf(Verifier& verifier, const LogprobRange& range) {
  const auto entries = std::span(verifier.logprobs());
  const auto part =
      entries.subspan(range.begin, std::size_t{1} * range.num_tokens * range.per_token);
  return {part.begin(), part.end()};
}

std::vector<Outcome> Finish(Verifier& verifier, Step& step) {
  verifier.Begin(step.logits(), step.requests());
  const std::span<const Outcome> outcomes = verifier.Finish();
  return {outcomes.begin(), outcomes.end()};
}

TEST(HostVerifierTest, EveryRequestHasWhatItsRowsAloneSay) {
  HostVerifier verifier({.max_requests = 4});
  SamplerScratch scratch;
  for (int example = 0; example < testing::NumExamples(500, 50000); ++example) {
    Step step(example);
    for (int i = step.Pick(0, 4); i > 0; --i) {
      SamplingRule rule = {.temperature = step.Pick(0, 3) / 2.0, .seed = 5};
      rule.acceptance_method = static_cast<AcceptanceMethod>(step.Pick(0, 2));
      SampleRequest& request = step.Add(step.Pick(0, 5), rule, Tokens(step.Pick(0, 3), 2));
      if (step.Pick(0, 1) == 0) request.logprobs = step.Pick(-1, 3);
    }
    const std::vector<Outcome> outcomes = Finish(verifier, step);
    ASSERT_EQ(outcomes.size(), step.requests().size());
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      const SampleRequest& request = step.requests()[i];
      const int index = static_cast<int>(i);
      const auto row = [&](int r) {
        return std::span<const float>(step.row(index, r), kVocabSize);
      };
      Verdict verdict;
      Verify(*request.draft, {row(request.num_scored()).data(), kVocabSize, kStride}, *request.rule,
             request.first_output_index, scratch, verdict);
      EXPECT_EQ(outcomes[i].verdict.tokens, verdict.tokens);
      EXPECT_EQ(outcomes[i].verdict.accepted_nodes, verdict.accepted_nodes);
      EXPECT_EQ(outcomes[i].error, "");
      std::vector<TokenLogprob> expected;
      for (int r = 0; r < request.num_scored(); ++r) {
        AppendLogprobs(row(r), 2, *request.prompt_logprobs, scratch, expected);
      }
      EXPECT_EQ(EntriesOf(verifier, outcomes[i].prompt_logprobs), expected);
      EXPECT_EQ(outcomes[i].prompt_logprobs.num_tokens, request.num_scored());
      expected.clear();
      for (std::size_t t = 0; t < verdict.tokens.size() && request.logprobs; ++t) {
        AppendLogprobs(row(request.num_scored() + verdict.row(static_cast<int>(t))),
                       verdict.tokens[t], *request.logprobs, scratch, expected);
      }
      EXPECT_EQ(EntriesOf(verifier, outcomes[i].logprobs), expected);
    }
  }
}

TEST(HostVerifierTest, ABrokenRowFailsItsRequestAlone) {
  HostVerifier verifier({.max_requests = 3});
  const SamplingRule greedy = {.temperature = 0.0};
  Step step(1);
  for (int i = 0; i < 3; ++i) step.Add(2, greedy, {1, 2, 3}).logprobs = 1;
  const std::vector<Outcome> sound = Finish(verifier, step);
  step.row(1, 2)[4] = kNan;                             // of the prompt
  std::fill_n(step.row(2, 3), kVocabSize, -kInfinity);  // after the committed tokens
  const std::vector<Outcome> broken = Finish(verifier, step);

  EXPECT_EQ(broken[0].verdict.tokens, sound[0].verdict.tokens);
  EXPECT_EQ(broken[0].error, "");
  EXPECT_EQ(broken[1].error, "the logit of token 4 is nan");
  EXPECT_TRUE(broken[1].is_corrupted);
  EXPECT_EQ(broken[1].prompt_logprobs.num_tokens, 2);
  EXPECT_TRUE(broken[1].verdict.tokens.empty());
  EXPECT_EQ(broken[1].logprobs.num_tokens, 0);
  EXPECT_EQ(broken[2].error, "no token can be sampled: every logit is -infinity or ruled out");
  EXPECT_EQ(broken[2].prompt_logprobs.num_tokens, 3);
  EXPECT_TRUE(broken[2].verdict.tokens.empty());
}

TEST(HostVerifierTest, ARowWithoutLogprobsCutsTheVerdictBeforeItsToken) {
  HostVerifier verifier({.max_requests = 1});
  SamplingParams params;
  params.allowed_token_ids = {{1, 2}};
  const Tokens text = {0};
  const LogitsProcessors processors(params, {}, text, 10);
  Step step(2);
  SampleRequest& request = step.Add(1, {.temperature = 0.0, .processors = &processors});
  request.logprobs = 0;
  step.row(0, 0)[request.draft->tokens[0]] = 100.0f;
  const_cast<DraftTree*>(request.draft)->tokens[0] = 1;
  step.row(0, 0)[1] = 200.0f;
  step.row(0, 1)[9] = kInfinity;  // not allowed, so that sampling does not see it
  const Outcome outcome = Finish(verifier, step)[0];
  EXPECT_EQ(outcome.verdict.tokens, Tokens{1});
  EXPECT_EQ(outcome.verdict.num_accepted(), 1);
  EXPECT_EQ(outcome.error, "the logit of token 9 is inf");
  EXPECT_TRUE(outcome.is_corrupted);
  EXPECT_EQ(outcome.logprobs.num_tokens, 1);
}

TEST(HostVerifierTest, RowsThatAreNoRequestsAreRefused) {
  HostVerifier verifier({.max_requests = 1});
  Step step(3);
  step.Add(2, {});
  EXPECT_THROW(verifier.Begin(step.logits().Slice(0, 2), step.requests()), InternalError);
  step.Add(2, {});
  EXPECT_THROW(verifier.Begin(step.logits(), step.requests()), InternalError);
}

TEST(HostVerifierTest, TopHasTheBestTokensWithTheirShareOfTheWeights) {
  std::mt19937 random(4);
  HostVerifier verifier({});
  for (int example = 0; example < testing::NumExamples(300, 30000); ++example) {
    const int size = 1 + static_cast<int>(random() % 300);
    const int count = 1 + static_cast<int>(random() % (random() % 3 == 0 ? 400 : 9));
    std::vector<float> logits(size);
    for (float& logit : logits) {
      logit = static_cast<float>(random() % 40) / (random() % 3 == 0 ? 1.0f : 4.0f);
      if (random() % 5 == 0) logit = random() % 2 == 0 ? -kInfinity : -60.0f;
    }
    logits[random() % size] = 5.0f;
    std::vector<TopToken> got(count, {-7, kNan});
    verifier.Top({logits.data(), 1, size}, count, got);

    const std::vector<double> weights = KeptWeightsSlow(logits, {.temperature = 1.0});
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    Tokens order(size);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
    for (int rank = 0; rank < count; ++rank) {
      const bool is_there = rank < size && weights[order[rank]] > 0.0;
      const TopToken expected =
          is_there ? TopToken{order[rank], static_cast<float>(weights[order[rank]] / total)}
                   : TopToken{};
      EXPECT_EQ(got[rank], expected) << "example " << example << " rank " << rank;
    }
  }
}

// In ascending order every token displaces those before it.
TEST(HostVerifierTest, TopListsAWholeVocabulary) {
  const int size = 100000;
  std::vector<float> logits(size);
  for (int i = 0; i < size; ++i) logits[i] = static_cast<float>(i / 2) * 0x1p-12f;
  std::vector<TopToken> got(size);
  HostVerifier({}).Top({logits.data(), 1, size}, size, got);
  for (int rank = 0; rank < size; ++rank) {
    ASSERT_EQ(got[rank].token, size - 2 - rank / 2 * 2 + rank % 2) << rank;
  }
}

TEST(HostVerifierTest, TopHasNoTokensOfABrokenRow) {
  HostVerifier verifier({});
  const std::vector<float> logits = {1, kNan, 2, kInfinity, -kInfinity, -kInfinity, 3, 4};
  std::vector<TopToken> top(8, {9, 1.0f});
  verifier.Top({logits.data(), 4, 2}, 2, top);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(top[i], TopToken());
  EXPECT_EQ(top[6].token, 1);
  EXPECT_EQ(top[7].token, 0);
  EXPECT_THROW(verifier.Top({logits.data(), 4, 2}, 1, top), InternalError);
}

}  // namespace
}  // namespace forerun
