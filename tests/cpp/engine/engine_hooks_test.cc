// Constraints and logits hooks through the engine: equal to plain decoding whatever is drafted, and
// their failures are their request's alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_engine.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun {
namespace {

using testing::CountingEngineTest;
using testing::DraftKind;
using testing::Finished;
using testing::FunctionHook;
using testing::Greedy;
using testing::kVocabSize;
using testing::RandomEngine;
using testing::RunToEnd;
using testing::ScriptedDrafter;
using testing::ToyConstraint;
using testing::ToyGrammar;
using Tokens = std::vector<TokenId>;

TEST(HooksParityTest, NoDrafterChangesAnythingUnderAnyHook) {
  const int num_examples = testing::NumExamples(150, 5000);
  unsigned seed = 0;
  for (int kind = 0; kind < testing::kNumDraftKinds; ++kind) {
    for (int i = 0; i < num_examples; ++i) {
      SCOPED_TRACE("drafter " + std::to_string(kind) + ", seed " + std::to_string(seed));
      RandomEngine engine(seed++, static_cast<DraftKind>(kind), RandomEngine::SetRandomParams);
      engine.SetHookProbability(0.6);
      engine.Run();
      if (::testing::Test::HasFailure()) return;
    }
  }
}

ToyGrammar Exactly(const Tokens& output) { return ToyGrammar::Exactly(output, kVocabSize); }

RequestHooks Constrain(ToyGrammar grammar, int num_calls_until_failure = -1) {
  RequestHooks hooks;
  hooks.constraint = std::make_unique<ToyConstraint>(std::move(grammar), num_calls_until_failure);
  return hooks;
}

RequestHooks Hook(std::function<void(std::span<const TokenId>, std::span<float>)> function) {
  RequestHooks hooks;
  hooks.logits_hook = std::make_unique<FunctionHook>(std::move(function));
  return hooks;
}

using EngineHooksTest = CountingEngineTest;

TEST_F(EngineHooksTest, ForcedTokensAreDraftedWithoutADrafterUntilTheEnd) {
  const Tokens output = {5, 5, 9, 1, 7, 7, 2, 3, 4};
  testing::TestEngine engine(config_, executor_, nullptr);
  engine.Submit(Tokens{1, 2}, Greedy(30), Constrain(Exactly(output)));
  const Finished result = RunToEnd(engine)[0];
  Tokens expected = output;
  expected.push_back(0);
  EXPECT_EQ(result.tokens, expected);
  EXPECT_EQ(result.last.finish_reason, FinishReason::kStop);
  EXPECT_EQ(result.metrics.num_target_passes, 3) << "the prompt's, and four drafted in each";
  EXPECT_EQ(result.metrics.spec_decode.num_accepted_tokens, 8);
  EXPECT_EQ(engine.metrics().spec_decode.num_accepted_tokens, 8);
}

TEST_F(EngineHooksTest, NothingIsDraftedWhereDraftsAreNotWanted) {
  SamplingParams params = Greedy(30);
  params.speculative = false;
  testing::TestEngine engine(config_, executor_, nullptr);
  engine.Submit(Tokens{1, 2}, params, Constrain(Exactly({5, 5, 9})));
  params.speculative = true;
  params.max_draft_tokens = 1;
  engine.Submit(Tokens{1, 2}, params, Constrain(Exactly({5, 5, 9})));
  config_.num_speculative_tokens = 0;
  testing::TestEngine plain(config_, executor_, nullptr);
  plain.Submit(Tokens{1, 2}, Greedy(30), Constrain(Exactly({5, 5, 9})));
  auto results = RunToEnd(engine);
  EXPECT_EQ(results[0].metrics.num_target_passes, 4);
  EXPECT_EQ(results[1].metrics.num_target_passes, 3);
  EXPECT_EQ(results[1].tokens, results[0].tokens);
  EXPECT_EQ(RunToEnd(plain)[0].metrics.num_target_passes, 4);
}

TEST_F(EngineHooksTest, DraftTokensThatAGrammarRulesOutNeverReachTheTarget) {
  ScriptedDrafter drafter(testing::WrongToken);  // token 0
  config_.adaptive = false;
  testing::TestEngine engine(config_, executor_, &drafter);
  ToyGrammar grammar = {std::vector<std::vector<int>>(1, std::vector<int>(kVocabSize, 0))};
  grammar.next[0][0] = -1;
  engine.Submit(Tokens{1, 2}, Greedy(10), Constrain(grammar));
  const Finished result = RunToEnd(engine)[0];
  EXPECT_EQ(result.tokens.size(), 10u);
  EXPECT_EQ(result.metrics.spec_decode.num_draft_tokens, 0);
}

TEST_F(EngineHooksTest, AFailingHookFailsItsRequestAloneAtTheSameTokenWithAnyDraft) {
  for (const auto& next_token : {testing::RightToken, testing::WrongToken}) {
    ScriptedDrafter drafter(next_token);
    testing::TestEngine engine(config_, executor_, &drafter);
    const auto fail_after_three = [](std::span<const TokenId> output, std::span<float>) {
      if (output.size() == 3) throw std::runtime_error("three is enough");
    };
    engine.Submit(Tokens{1, 2}, Greedy(10));
    engine.Submit(Tokens{1, 2}, Greedy(10), Hook(fail_after_three));
    engine.Submit(Tokens{4}, Greedy(10));
    auto results = RunToEnd(engine);
    EXPECT_EQ(results[1].tokens, (Tokens{3, 4, 5}));
    EXPECT_EQ(results[1].last.finish_reason, FinishReason::kError);
    EXPECT_EQ(results[1].error, "the logits hook failed: three is enough");
    EXPECT_EQ(results[0].tokens, (Tokens{3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
    EXPECT_EQ(results[2].tokens, (Tokens{5, 6, 7, 8, 9, 10, 11, 12, 13, 14}));
    EXPECT_EQ(engine.metrics().num_held_blocks, 0);
  }
}

TEST_F(EngineHooksTest, AConstraintThatFailsAtAnyCallFailsItsRequestAlone) {
  for (int num_calls = 0; num_calls < 12; ++num_calls) {
    ScriptedDrafter drafter(testing::RightToken);
    testing::TestEngine engine(config_, executor_, &drafter);
    const Tokens output = {5, 5, 9, 1, 7, 7, 2, 3, 4, 4, 5};
    engine.Submit(Tokens{1, 2}, Greedy(10));
    engine.Submit(Tokens{1, 2}, Greedy(10), Constrain(Exactly(output), num_calls));
    auto results = RunToEnd(engine);
    EXPECT_EQ(results[1].last.finish_reason, FinishReason::kError);
    EXPECT_EQ(results[1].error, "the constraint failed: out of order");
    EXPECT_TRUE(std::equal(results[1].tokens.begin(), results[1].tokens.end(), output.begin()));
    EXPECT_EQ(results[0].tokens, (Tokens{3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
    EXPECT_EQ(engine.metrics().num_held_blocks, 0);
  }
}

// An interrupt in a hook, such as Ctrl-C in a Python callable.
TEST_F(EngineHooksTest, AnInterruptLeavesTheStepAndChangesNothing) {
  for (int num_calls = 0; num_calls < 8; ++num_calls) {
    ScriptedDrafter drafter(testing::RightToken);
    testing::TestEngine engine(config_, executor_, &drafter);
    int num_left = num_calls;
    engine.Submit(Tokens{1, 2}, Greedy(10));
    engine.Submit(Tokens{1, 2}, Greedy(10), Hook([&](auto, auto) {
                    if (num_left-- == 0) throw 17;
                  }));
    std::map<RequestId, Tokens> tokens;
    int num_interrupts = 0;
    while (engine.HasUnfinished()) {
      try {
        for (const RequestUpdate& update : engine.Step()) {
          tokens[update.id].insert(tokens[update.id].end(), update.new_tokens.begin(),
                                   update.new_tokens.end());
        }
      } catch (int) {
        ++num_interrupts;
      }
    }
    EXPECT_EQ(num_interrupts, 1);
    EXPECT_EQ(tokens[0], (Tokens{3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
    EXPECT_EQ(tokens[1], tokens[0]);
  }
}

TEST_F(EngineHooksTest, AnInterruptWhileDraftingLeavesTheStepAndChangesNothing) {
  struct Interrupting : ToyConstraint {
    using ToyConstraint::ToyConstraint;
    void AppendForced(std::vector<TokenId>& tokens) override {
      if (std::exchange(is_first, false)) throw 17;
      ToyConstraint::AppendForced(tokens);
    }
    bool is_first = true;
  };
  ScriptedDrafter drafter(testing::RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  RequestHooks hooks;
  hooks.constraint = std::make_unique<Interrupting>(Exactly({5, 5, 9}));
  engine.Submit(Tokens{1, 2}, Greedy(10));
  engine.Submit(Tokens{1, 2}, Greedy(10), std::move(hooks));
  engine.Step();
  EXPECT_THROW(engine.Step(), int);
  auto results = RunToEnd(engine);
  EXPECT_EQ(results[0].tokens.size(), 9u) << "the first came with the first step";
  EXPECT_EQ(results[1].tokens, (Tokens{5, 9, 0})) << "the constraint goes on where it was";
  EXPECT_EQ(engine.metrics().num_held_blocks, 0);
}

TEST_F(EngineHooksTest, AStepComputesTheMasksOfAllRequestsAndDraftsInOneCall) {
  testing::ToyBatch batch;
  ScriptedDrafter drafter(testing::RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  const Tokens output = {5, 5, 9, 1, 7, 7, 2, 3, 4};
  for (int i = 0; i < 6; ++i) {  // more than run at a time
    RequestHooks hooks;
    hooks.constraint = std::make_unique<ToyConstraint>(Exactly(output), -1, &batch);
    engine.Submit(Tokens(1 + 7 * i, 2), Greedy(30), std::move(hooks));
  }
  engine.Submit(Tokens{1, 2}, Greedy(30));
  int most_rows = 0;
  while (engine.HasUnfinished()) {
    const int num_begins = batch.num_begins(), num_fills = batch.num_fills();
    const int num_rows = batch.num_rows();
    engine.Step();
    EXPECT_FALSE(batch.is_open());
    EXPECT_LE(batch.num_begins(), num_begins + 1);
    EXPECT_LE(batch.num_fills(), num_fills + 1);
    most_rows = std::max(most_rows, batch.num_rows() - num_rows);
  }
  EXPECT_GT(most_rows, 4) << "rows of requests and of draft nodes";
}

TEST_F(EngineHooksTest, AnInterruptOfTheMasksLeavesTheStepAndChangesNothing) {
  struct Interrupting : testing::ToyBatch {
    void FillMasks(const MaskBatch& masks) override {
      if (num_left-- == 0) throw 17;
      ToyBatch::FillMasks(masks);
    }
    int num_left = 0;
  };
  for (int num_calls = 0; num_calls < 3; ++num_calls) {
    Interrupting batch;
    batch.num_left = num_calls;
    testing::TestEngine engine(config_, executor_, nullptr);
    RequestHooks hooks;
    hooks.constraint = std::make_unique<ToyConstraint>(Exactly({5, 5, 9}), -1, &batch);
    engine.Submit(Tokens{1, 2}, Greedy(10), std::move(hooks));
    Tokens tokens;
    int num_interrupts = 0;
    while (engine.HasUnfinished()) {
      try {
        for (const RequestUpdate& update : engine.Step()) {
          tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
        }
      } catch (int) {
        ++num_interrupts;
      }
      EXPECT_FALSE(batch.is_open());
    }
    EXPECT_EQ(num_interrupts, num_calls < 2 ? 1 : 0) << "two steps, two calls";
    EXPECT_EQ(tokens, (Tokens{5, 5, 9, 0}));
  }
}

TEST_F(EngineHooksTest, AMaskThatFailsAfterARejectedNodeFailsNoRequest) {
  // The second token may be 5 or 6, and after 6 the mask fails.
  struct Failing : ToyConstraint {
    using ToyConstraint::ToyConstraint;
    void FillAllowed(int state, std::span<std::uint32_t> words) override {
      if (state == 2) throw std::runtime_error("a dead end");
      ToyConstraint::FillAllowed(state, words);
    }
  };
  ToyGrammar grammar;
  grammar.next.assign(4, std::vector<int>(kVocabSize, 3));
  std::ranges::fill(grammar.next[0], 1);
  std::ranges::fill(grammar.next[1], -1);
  grammar.next[1][5] = 3;
  grammar.next[1][6] = 2;
  for (const TokenId preferred : {5, 6}) {
    ScriptedDrafter drafter([](std::span<const TokenId>) { return 6; });
    testing::TestEngine engine(config_, executor_, &drafter);
    RequestHooks hooks;
    hooks.constraint = std::make_unique<Failing>(grammar);
    engine.Submit(Tokens{preferred - 2}, Greedy(4), std::move(hooks));
    const Finished result = RunToEnd(engine)[0];
    EXPECT_GT(result.metrics.spec_decode.num_draft_tokens, 0);
    if (preferred == 5) {
      EXPECT_EQ(result.error, "");
      EXPECT_EQ(result.tokens, (Tokens{4, 5, 6, 7}));
    } else {
      EXPECT_EQ(result.error, "the constraint failed: a dead end");
      EXPECT_EQ(result.tokens, (Tokens{5, 6}));
    }
  }
}

// Whether the engine refuses each of the calls that must not overlap.
bool IsBusy(EngineCore& engine) {
  const std::function<void()> calls[] = {
      [&] { engine.Step(); },
      [&] { engine.ResetCaches(); },
      [&] { engine.SetTokenBytes({}); },
  };
  return std::ranges::all_of(calls, [](const auto& call) {
    try {
      call();
    } catch (const EngineBusy&) {
      return true;
    }
    return false;
  });
}

TEST_F(EngineHooksTest, AHookAndAnotherThreadMayNotStepTheEngine) {
  ScriptedDrafter drafter(testing::RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  int num_calls = 0;
  const auto meddle = [&](auto, auto) {
    EXPECT_TRUE(IsBusy(engine));
    std::thread([&] { EXPECT_TRUE(IsBusy(engine)); }).join();
    if (num_calls++ == 0) engine.Submit(Tokens{1, 2}, Greedy(3));
    EXPECT_TRUE(engine.HasUnfinished());
    EXPECT_GE(engine.metrics().num_steps, 0);
  };
  engine.Submit(Tokens{1, 2}, Greedy(4), Hook(meddle));
  const auto results = RunToEnd(engine);
  EXPECT_GT(num_calls, 0);
  EXPECT_EQ(results.at(0).tokens, (Tokens{3, 4, 5, 6}));
  EXPECT_EQ(results.at(1).tokens, (Tokens{3, 4, 5}));
  EXPECT_NO_THROW(engine.ResetCaches());
}

TEST_F(EngineHooksTest, AnUpdateHasTheNumberOfEarlierTokens) {
  ScriptedDrafter drafter(testing::RightToken);
  testing::TestEngine engine(config_, executor_, &drafter);
  SamplingParams params = Greedy(9);
  params.prompt_logprobs = 0;
  engine.Submit(Tokens(40, 2), params);
  const RequestId cancelled = engine.Submit(Tokens{1, 2}, Greedy(50));
  std::map<RequestId, int> num_tokens, num_prompt_logprobs;
  for (int step = 0; engine.HasUnfinished(); ++step) {
    if (step == 3) engine.Cancel(cancelled);
    for (const RequestUpdate& update : engine.Step()) {
      EXPECT_EQ(update.num_earlier_tokens, num_tokens[update.id]);
      EXPECT_EQ(update.num_earlier_prompt_logprobs, num_prompt_logprobs[update.id]);
      num_tokens[update.id] += static_cast<int>(update.new_tokens.size());
      num_prompt_logprobs[update.id] += update.prompt_logprobs.size();
    }
  }
  EXPECT_EQ(num_prompt_logprobs[0], 39);
  EXPECT_EQ(num_tokens[0], 9);
}

}  // namespace
}  // namespace forerun
