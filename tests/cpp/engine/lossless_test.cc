// Contract 1 without a model: whatever drafter, draft length, pool, budget, batch and cache, every
// request's output is that of plain decoding, and every block is accounted for after every step.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>

#include "cpp/draft/make_drafter.h"
#include "cpp/engine/engine_core.h"
#include "tests/cpp/testing/naive_generate.h"
#include "tests/cpp/testing/scripted_drafter.h"
#include "tests/cpp/testing/scripted_executor.h"

namespace forerun {
namespace {

using testing::NaiveGenerate;
using testing::NaiveModel;
using testing::NaiveResult;

constexpr int kVocabSize = 11;

int NumExamples(int by_default, int when_long) {
  return std::getenv("FORERUN_LONG_TESTS") != nullptr ? when_long : by_default;
}

class Example {
 public:
  explicit Example(unsigned seed) : random_(seed) {
    model_.logits_of = [](std::span<const TokenId> prefix) {
      return testing::HashLogits(prefix, kVocabSize);
    };
    model_.eos_token_ids = {0};
    for (TokenId token = 0; token < kVocabSize; ++token) {
      model_.token_bytes.push_back(token == 0 ? "" : std::string(1 + token % 2, "abc"[token % 3]));
    }
    config_.block_size = Pick(1, 5);
    config_.max_model_len = Pick(8, 60);
    const int blocks_for_one = (config_.max_model_len - 1) / config_.block_size + 1;
    config_.num_blocks = blocks_for_one + Pick(0, 2 * blocks_for_one);
    config_.max_num_seqs = Pick(1, 6);
    config_.max_num_batched_tokens = config_.max_num_seqs + Pick(0, 30);
    config_.enable_prefix_caching = Chance(0.7);
    config_.seed = random_();
    config_.num_speculative_tokens = Pick(1, 8);
    config_.adaptive = Chance(0.5);
    if (Chance(0.3)) {
      config_.acceptance_method =
          Chance(0.5) ? AcceptanceMethod::kRejection : AcceptanceMethod::kBlock;
    }
    config_.eos_token_ids = model_.eos_token_ids;
    config_.check_invariants = true;
    model_.max_model_len = config_.max_model_len;
    drafter_ = MakeRandomDrafter();
  }

  void Run() {
    testing::ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size);
    EngineCore engine(config_, executor, drafter_.get());
    engine.SetTokenBytes(model_.token_bytes);
    int num_to_submit = Pick(1, 12);
    while (num_to_submit > 0 || engine.HasUnfinished()) {
      while (num_to_submit > 0 && (Chance(0.4) || !engine.HasUnfinished())) {
        Submit(engine);
        --num_to_submit;
      }
      if (Chance(0.03) && !expected_.empty()) engine.Cancel(expected_.rbegin()->first);
      for (const RequestUpdate& update : engine.Step()) Check(update);
    }
    EXPECT_TRUE(expected_.empty());
    EXPECT_LE(executor.max_rows_seen(), config_.max_num_batched_tokens);
    EXPECT_EQ(engine.metrics().num_held_blocks, 0);
  }

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(random_); }

  std::unique_ptr<Drafter> MakeRandomDrafter() {
    SpeculativeOptions options;
    const auto right = [this](std::span<const TokenId> text) {
      return static_cast<TokenId>(std::ranges::max_element(scratch_ = model_.logits_of(text)) -
                                  scratch_.begin());
    };
    switch (Pick(0, 5)) {
      case 0:
        return nullptr;
      case 1:
        options.method = SpeculativeMethod::kNgram;
        options.prompt_lookup_min = Pick(1, 3);
        options.prompt_lookup_max = options.prompt_lookup_min + Pick(0, 3);
        return MakeDrafter(options);
      case 2:
        options.method = SpeculativeMethod::kSuffix;
        options.suffix_max_tree_depth = Pick(2, 12);
        options.suffix_max_cached_requests = Pick(0, 10);
        options.suffix_max_spec_factor = Pick(1, 4);
        options.suffix_min_token_prob = Pick(0, 5) / 10.0;
        return MakeDrafter(options);
      case 3:
        return std::make_unique<testing::ScriptedDrafter>(right);
      case 4:
        return std::make_unique<testing::ScriptedDrafter>(
            [right](std::span<const TokenId> text) { return (right(text) + 1) % kVocabSize; });
      default:
        return std::make_unique<testing::ScriptedDrafter>(
            [this](auto) { return static_cast<TokenId>(Pick(0, kVocabSize - 1)); });
    }
  }

  void Submit(EngineCore& engine) {
    std::vector<TokenId> prompt;
    // Prompts share beginnings, so that the prefix cache has something to find.
    const int num_shared = Pick(0, 12);
    for (int i = 0; i < num_shared; ++i) prompt.push_back(1 + i % 3);
    const int num_own = Pick(1, 12);
    for (int i = 0; i < num_own; ++i) prompt.push_back(Pick(0, kVocabSize - 1));
    if (static_cast<int>(prompt.size()) >= config_.max_model_len) {
      prompt.resize(config_.max_model_len - 1);
    }
    SamplingParams params;
    params.temperature = Chance(0.5) ? 0.0 : Pick(2, 20) / 10.0;
    // The other methods keep the distribution of drafted requests, not their ids.
    const bool keeps_ids = config_.acceptance_method == AcceptanceMethod::kCoupled;
    params.top_k = Chance(0.3) ? Pick(1, kVocabSize) : 0;
    params.top_p = Chance(0.3) ? Pick(1, 10) / 10.0 : 1.0;
    params.min_p = Chance(0.3) ? Pick(0, 10) / 10.0 : 0.0;
    params.seed = random_();
    params.max_tokens = Pick(1, 40);
    params.min_tokens = Chance(0.3) ? Pick(0, params.max_tokens) : 0;
    params.ignore_eos = Chance(0.5);
    if (Chance(0.2)) params.stop_token_ids = {Pick(0, kVocabSize - 1)};
    if (Chance(0.3)) params.stop = {Chance(0.5) ? "aab" : "bcc", "cb"};
    params.include_stop_str_in_output = Chance(0.5);
    params.speculative = (keeps_ids || params.temperature == 0.0) && Chance(0.9);
    if (Chance(0.2)) params.max_draft_tokens = Pick(0, 4);
    const NaiveResult expected = NaiveGenerate(model_, prompt, params, *params.seed);
    expected_.emplace(engine.Submit(prompt, params), expected);
  }

  void Check(const RequestUpdate& update) {
    const auto it = expected_.find(update.id);
    ASSERT_NE(it, expected_.end());
    std::vector<TokenId>& got = got_[update.id];
    got.insert(got.end(), update.new_tokens.begin(), update.new_tokens.end());
    const NaiveResult& expected = it->second;
    ASSERT_LE(got.size(), expected.tokens.size());
    ASSERT_TRUE(std::equal(got.begin(), got.end(), expected.tokens.begin()));
    if (update.finish_reason == FinishReason::kNone) return;
    if (update.finish_reason != FinishReason::kAbort) {
      EXPECT_EQ(got, expected.tokens);
      EXPECT_EQ(update.finish_reason, expected.finish_reason);
      EXPECT_EQ(update.num_text_bytes, static_cast<std::int64_t>(expected.text.size()));
      EXPECT_EQ(update.metrics->num_generated_tokens, static_cast<std::int64_t>(got.size()));
    }
    expected_.erase(it);
  }

  std::mt19937 random_;
  NaiveModel model_;
  EngineConfig config_;
  std::unique_ptr<Drafter> drafter_;
  std::vector<float> scratch_;
  std::map<RequestId, NaiveResult> expected_;
  std::map<RequestId, std::vector<TokenId>> got_;
};

TEST(LosslessTest, EveryOutputIsThatOfPlainDecoding) {
  const int num_examples = NumExamples(400, 20000);
  for (int i = 0; i < num_examples; ++i) {
    SCOPED_TRACE("example " + std::to_string(i));
    Example(static_cast<unsigned>(i)).Run();
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace forerun
