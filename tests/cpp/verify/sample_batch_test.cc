// What a batch says about each row, against LogitsProcessors::Apply and the requests themselves.
#include "cpp/verify/sample_batch.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <type_traits>

#include "cpp/draft_tree/step_masks.h"
#include "cpp/sampling/logits_processors.h"
#include "cpp/sampling/logits_row.h"
#include "cpp/util/request_error.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_params.h"
#include "tests/cpp/testing/random_tree.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

static_assert(std::is_trivially_copyable_v<SampleRule> && std::is_trivial_v<SampleRule>);
static_assert(std::is_trivially_copyable_v<SampleRow> && std::is_trivial_v<SampleRow>);
static_assert(std::is_trivially_copyable_v<TokenEdit> && std::is_trivial_v<TokenEdit>);

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(engine_); }
  std::mt19937& engine() { return engine_; }

  Tokens Text(int size, int alphabet) {
    Tokens text(size);
    for (TokenId& token : text) token = Pick(0, alphabet - 1);
    return text;
  }
  std::vector<float> Logits(int size) {
    std::vector<float> logits(size);
    for (float& logit : logits) {
      logit = static_cast<float>(Pick(-900, 900)) / 100.0f;
      if (Chance(0.02)) logit = Chance(0.5) ? kNan : kInfinity;
      if (Chance(0.1)) logit = Chance(0.5) ? -0.0f : -kInfinity;
    }
    return logits;
  }

 private:
  std::mt19937 engine_;
};

// A request with random parameters, some output, and a draft; with a grammar in some cases, which
// the draft may break.
class RandomRequest {
 public:
  RandomRequest(Random& random, int vocab_size) {
    const int alphabet = random.Pick(1, vocab_size);
    testing::RandomParams options(random.engine(), vocab_size, 0.4);
    options.SetLogitsOptions(params_);
    params_.min_tokens = random.Pick(0, 8);
    params_.temperature = random.Chance(0.3) ? 0.0 : random.Pick(1, 20) / 10.0;
    ends_ = random.Text(random.Pick(0, 3), vocab_size);
    text_ = random.Text(random.Pick(1, 12), alphabet);
    num_prompt_ = static_cast<int>(text_.size());
    if (random.Chance(0.4)) {
      constraint_ = std::make_unique<testing::ToyConstraint>(
          testing::ToyGrammar::Random(random.engine(), vocab_size, 0.5));
      cursor_.emplace(*constraint_, text_, kMaxTokens, vocab_size);
    }
    processors_.emplace(params_, ends_, text_, kMaxTokens,
                        RowHooks{cursor_ ? &*cursor_ : nullptr, nullptr});
    int state = 0;
    for (int i = random.Pick(0, 8); i > 0; --i) text_.push_back(Next(random, alphabet, state));
    processors_->ObserveCommitted();
    for (std::int32_t parent :
         testing::RandomParents(random.Pick(0, 7), [&](int n) { return random.Pick(0, n - 1); })) {
      draft_.Append(random.Pick(0, alphabet - 1), parent, 1.0f);
    }
    rule_ = MakeSamplingRule(params_, random.engine()());
    rule_.processors = &*processors_;
    request_ = {.draft = &draft_, .rule = &rule_, .first_output_index = num_output()};
    if (random.Chance(0.3)) {
      request_.scored_tokens = std::span(text_).first(random.Pick(1, num_prompt_));
      request_.prompt_logprobs = random.Pick(0, 3);
    }
  }

  void AddTo(StepMasks& masks) {
    if (cursor_) masks.Add(*cursor_, draft_);
  }
  const SampleRequest& request() const { return request_; }
  const DraftTree& draft() const { return draft_; }
  int num_output() const { return static_cast<int>(text_.size()) - num_prompt_; }

  // The row's logits by definition, or why there are none.
  std::vector<float> Apply(const std::vector<float>& logits, int node, std::string& error) const {
    Tokens path;
    for (int i : testing::PathTo(draft_.parents, node)) path.push_back(draft_.tokens[i]);
    std::vector<float> copy;
    try {
      const auto row = processors_->Apply(logits, node + 1, path, copy);
      return {row.begin(), row.end()};
    } catch (const HookError& failure) {
      error = failure.what();
      return {};
    }
  }

 private:
  static constexpr int kMaxTokens = 40;

  TokenId Next(Random& random, int alphabet, int& state) {
    if (!constraint_) return random.Pick(0, alphabet - 1);
    const Tokens allowed = constraint_->grammar().Allowed(state);
    const TokenId token = allowed[random.Pick(0, static_cast<int>(allowed.size()) - 1)];
    state = constraint_->grammar().next[state][token];
    return token;
  }

  SamplingParams params_;
  Tokens ends_, text_;
  int num_prompt_ = 0;
  std::unique_ptr<testing::ToyConstraint> constraint_;
  std::optional<ConstraintCursor> cursor_;
  std::optional<LogitsProcessors> processors_;
  DraftTree draft_;
  SamplingRule rule_;
  SampleRequest request_;
};

bool AreSame(float a, float b) {
  return std::isnan(a) ? std::isnan(b)
                       : std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

TEST(SampleBatchTest, EditsOfARowAreWhatTheProcessorsDo) {
  Random random(1);
  SampleBatch batch;
  int num_rows = 0, num_failures = 0, num_changed = 0;
  for (int example = 0; example < testing::NumExamples(1500, 100000); ++example) {
    const int vocab_size = random.Pick(3, 150);
    std::vector<std::unique_ptr<RandomRequest>> requests;
    std::vector<SampleRequest> wanted;
    StepMasks masks(vocab_size);
    for (int i = random.Pick(1, 3); i > 0; --i) {
      requests.push_back(std::make_unique<RandomRequest>(random, vocab_size));
      requests.back()->AddTo(masks);
      wanted.push_back(requests.back()->request());
    }
    masks.Compute();
    batch.Build(wanted, vocab_size);
    ASSERT_EQ(batch.rules.size(), requests.size());
    const SampleArrays arrays = batch.arrays();
    int row = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const SampleRule& rule = batch.rules[i];
      ASSERT_EQ(rule.first_row, row);
      for (TokenId token : wanted[i].scored_tokens) {
        EXPECT_EQ(batch.rows[row].node, kScoredRow);
        EXPECT_EQ(batch.scored_tokens[rule.first_scored + row - rule.first_row], token);
        ++row;
      }
      for (int node = kDraftRoot; node < requests[i]->draft().size(); ++node, ++row) {
        ASSERT_EQ(rule.RowAfter(node), row);
        EXPECT_EQ(batch.rows[row].request, static_cast<int>(i));
        EXPECT_EQ(batch.rows[row].node, node);
        EXPECT_EQ(batch.rows[row].depth,
                  std::ssize(testing::PathTo(requests[i]->draft().parents, node)));
        std::vector<float> logits = random.Logits(vocab_size);
        std::string error;
        const std::vector<float> expected = requests[i]->Apply(logits, node, error);
        const std::int32_t status = batch.rows[row].status;
        ASSERT_EQ(status != 0, !error.empty());
        if (status != 0) {
          EXPECT_EQ(batch.failure(status), error);
          ++num_failures;
          continue;
        }
        const std::vector<float> raw = logits;
        ApplyEdits(arrays, row, logits.data());
        for (TokenId token = 0; token < vocab_size; ++token) {
          ASSERT_TRUE(AreSame(logits[token], expected[token]))
              << "example " << example << " row " << row << " token " << token << ": "
              << logits[token] << ", not " << expected[token];
          num_changed += !AreSame(raw[token], logits[token]);
        }
        ++num_rows;
      }
    }
    ASSERT_EQ(row, std::ssize(batch.rows));
    for (const SampleRule& rule : batch.rules) {
      const auto edits = std::span(batch.edits).subspan(rule.first_edit, rule.num_edits);
      ASSERT_TRUE(std::ranges::is_sorted(edits, {}, &TokenEdit::token));
    }
  }
  EXPECT_GT(num_rows, 1000);
  EXPECT_GT(num_failures, 100);
  EXPECT_GT(num_changed, 10000);
}

SampleRequest Wanted(const DraftTree& draft, const SamplingRule& rule) {
  return {.draft = &draft, .rule = &rule, .first_output_index = 7};
}

SampleBatch Built(const SampleRequest& request, int vocab_size = 100) {
  SampleBatch batch;
  batch.Build({&request, 1}, vocab_size);
  return batch;
}

TEST(SampleBatchTest, ARuleHasTheParametersInTheirNeutralForm) {
  DraftTree draft;
  draft.AppendToChain(4, 1.0f);
  draft.AppendToChain(5, 1.0f);
  SamplingRule rule = {.temperature = 0.5, .top_k = 40, .top_p = 0.9, .min_p = 0.25, .seed = 11};
  rule.acceptance_method = AcceptanceMethod::kBlock;
  SampleRule made = Built(Wanted(draft, rule)).rules[0];
  EXPECT_EQ(made.inverse_temperature, 2.0);
  EXPECT_EQ(made.top_k, 40);
  EXPECT_EQ(made.top_p, 0.9);
  EXPECT_EQ(made.min_p_depth, std::log(0.25) / 2.0);
  EXPECT_EQ(made.seed, 11u);
  EXPECT_EQ(made.method, static_cast<int>(AcceptanceMethod::kBlock));
  EXPECT_EQ(made.first_output_index, 7);
  EXPECT_EQ(made.num_nodes, 2);
  EXPECT_EQ(made.drawn_row, -1);
  EXPECT_EQ(made.num_top, -1);
  EXPECT_EQ(made.mask, -1);
  EXPECT_EQ(made.samples, 1);
  // As many tokens as there are: all of them. Only min_p 1 keeps none but the best.
  rule.top_k = 100;
  rule.min_p = 1.0;
  made = Built(Wanted(draft, rule)).rules[0];
  EXPECT_EQ(made.top_k, 0);
  EXPECT_EQ(made.min_p_depth, 0.0);
  rule.min_p = 0.0;
  EXPECT_EQ(Built(Wanted(draft, rule)).rules[0].min_p_depth, -kInfinity);
  rule.temperature = 0.0;
  rule.top_k = 3;
  made = Built(Wanted(draft, rule)).rules[0];
  EXPECT_EQ(made.inverse_temperature, 0.0);
  EXPECT_EQ(made.method, static_cast<int>(AcceptanceMethod::kCoupled));
  EXPECT_EQ(made.top_k, 0);
  EXPECT_EQ(made.top_p, 1.0);
}

TEST(SampleBatchTest, ARequestThatOnlyScoresItsPromptSamplesNoRow) {
  const Tokens scored = {3, 1};
  SampleRequest request = {.samples = false};
  request.scored_tokens = scored;
  request.prompt_logprobs = 500;
  SampleBatch batch = Built(request, 20);
  EXPECT_EQ(batch.rules[0].samples, 0);
  EXPECT_EQ(batch.rules[0].num_scored, 2);
  EXPECT_EQ(batch.rules[0].num_prompt_top, 20);
  EXPECT_EQ(batch.rows.size(), 2u);
  EXPECT_EQ(batch.scored_tokens, scored);
  // A step without any row of the request.
  request.scored_tokens = {};
  batch = Built(request);
  EXPECT_TRUE(batch.rows.empty());
  EXPECT_TRUE(batch.host_requests.empty());
}

TEST(SampleBatchTest, LogprobsAreCountedAsTheDefinitionCountsThem) {
  const DraftTree draft;
  const SamplingRule rule;
  SampleRequest request = Wanted(draft, rule);
  request.logprobs = -1;
  EXPECT_EQ(Built(request, 30).rules[0].num_top, 30);
  request.logprobs = 0;
  EXPECT_EQ(Built(request, 30).rules[0].num_top, 0);
  const Tokens ids = {9, 2, 2};
  request.logprob_token_ids = &ids;
  request.logprobs = 5;  // the ids come instead
  const SampleBatch batch = Built(request);
  EXPECT_EQ(batch.rules[0].num_top, 0);
  EXPECT_EQ(batch.rules[0].num_logprob_ids, 3);
  EXPECT_EQ(batch.logprob_ids, ids);
}

struct NoHook : LogitsHook {
  void Process(std::span<const TokenId>, std::span<const TokenId>, std::span<float>) override {}
};

bool IsForHost(const SampleRequest& request) {
  const SampleBatch batch = Built(request);
  const bool is_for_host = !batch.host_requests.empty();
  for (const SampleRow& row : batch.rows) {
    EXPECT_EQ(row.node == kHostRow, is_for_host);
  }
  if (is_for_host) {
    EXPECT_EQ(batch.rules[0].samples, 0);
    EXPECT_EQ(batch.rules[0].num_scored, 0);
  }
  EXPECT_EQ(std::ssize(batch.rows), request.num_rows());
  return is_for_host;
}

TEST(SampleBatchTest, HooksAndManyLogprobsAreLeftToTheHost) {
  DraftTree draft;
  draft.AppendToChain(4, 1.0f);
  SamplingRule rule;
  SampleRequest request = Wanted(draft, rule);
  EXPECT_FALSE(IsForHost(request));
  request.logprobs = 32;
  EXPECT_FALSE(IsForHost(request));
  request.logprobs = 33;
  EXPECT_TRUE(IsForHost(request));
  request.logprobs = -1;
  EXPECT_TRUE(IsForHost(request));
  const Tokens few(32, 1), many(33, 1);
  request.logprob_token_ids = &few;
  EXPECT_FALSE(IsForHost(request));
  request.logprob_token_ids = &many;
  EXPECT_TRUE(IsForHost(request));

  request = Wanted(draft, rule);
  request.prompt_logprobs = 33;
  EXPECT_FALSE(IsForHost(request));  // no row is scored
  request.scored_tokens = few;
  EXPECT_TRUE(IsForHost(request));

  NoHook hook;
  const Tokens text = {1};
  const LogitsProcessors processors({}, {}, text, 10, {nullptr, &hook});
  rule.processors = &processors;
  EXPECT_TRUE(IsForHost(Wanted(draft, rule)));
}

TEST(SampleBatchTest, DrawnChainsGiveTheirRowsAndDrawnTreesAreLeftToTheHost) {
  DraftTree draft;
  for (TokenId token : {4, 5}) {
    std::ranges::fill(draft.AddRowAfter(draft.size() - 1, 100), 0.5f);
    draft.AppendToChain(token, 1.0f);
  }
  SamplingRule rule;
  rule.acceptance_method = AcceptanceMethod::kRejection;
  const SampleBatch batch = Built(Wanted(draft, rule));
  EXPECT_TRUE(batch.host_requests.empty());
  EXPECT_EQ(batch.rules[0].drawn_row, 0);
  EXPECT_EQ(batch.drawn_rows,
            (std::vector<SampleBatch::DrawnRow>{{draft.RowAfter(-1).data(), false},
                                                {draft.RowAfter(0).data(), false}}));
  // Who does not look at weights does not need them.
  rule.acceptance_method = AcceptanceMethod::kCoupled;
  EXPECT_TRUE(Built(Wanted(draft, rule)).drawn_rows.empty());
  rule = {.temperature = 0.0, .acceptance_method = AcceptanceMethod::kBlock};
  EXPECT_TRUE(Built(Wanted(draft, rule)).drawn_rows.empty());

  rule.temperature = 1.0;
  draft.Append(6, 0, 1.0f);  // a sibling
  EXPECT_TRUE(IsForHost(Wanted(draft, rule)));
  rule.acceptance_method = AcceptanceMethod::kCoupled;
  EXPECT_FALSE(IsForHost(Wanted(draft, rule)));
  // A chain of which a part is certain.
  draft.Truncate(2);
  draft.AppendToChain(6, 1.0f);
  rule.acceptance_method = AcceptanceMethod::kBlock;
  EXPECT_TRUE(IsForHost(Wanted(draft, rule)));
}

}  // namespace
}  // namespace forerun
