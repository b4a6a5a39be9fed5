// The memory of a waiting request depends on its prompt and parameters, not on max_tokens.
#include <gtest/gtest.h>

#include <functional>

#include "tests/cpp/engine/counted_allocation.h"
#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun {
namespace {

class WaitingRequestTest : public testing::CountingEngineTest {
 protected:
  WaitingRequestTest() {
    config_.max_num_seqs = 1;
    config_.max_model_len = 1 << 20;
    config_.num_blocks = (1 << 20) / config_.block_size;
  }

  // Of each of 16 requests that wait for another one.
  std::int64_t BytesOf(const std::function<void(SamplingParams&, RequestHooks&)>& change) {
    testing::ScriptedExecutor executor(testing::kVocabSize, config_.num_blocks, config_.block_size,
                                       testing::CountingLogits);
    testing::TestEngine engine(config_, executor, nullptr);
    const auto submit = [&] {
      SamplingParams params = testing::Greedy(1 << 20);
      RequestHooks hooks;
      change(params, hooks);
      engine.Submit(std::vector<TokenId>{1, 2, 3}, params, std::move(hooks));
    };
    submit();
    engine.Step();
    const std::int64_t before = testing::NumLiveBytes();
    for (int i = 0; i < 16; ++i) submit();
    engine.Step();
    EXPECT_EQ(engine.metrics().num_waiting_requests, 16);
    return (testing::NumLiveBytes() - before) / 16;
  }
};

TEST_F(WaitingRequestTest, IsSmall) {
  const auto nothing = [](SamplingParams&, RequestHooks&) {};
  EXPECT_LT(BytesOf(nothing), 4096);
}

TEST_F(WaitingRequestTest, IsSmallWithPenalties) {
  EXPECT_LT(BytesOf([](SamplingParams& params, RequestHooks&) { params.repetition_penalty = 1.5; }),
            4096);
  EXPECT_LT(BytesOf([](SamplingParams& params, RequestHooks&) { params.presence_penalty = 1; }),
            4096);
}

TEST_F(WaitingRequestTest, IsSmallWithAConstraint) {
  const auto constrain = [](SamplingParams&, RequestHooks& hooks) {
    hooks.constraint = std::make_unique<testing::ToyConstraint>(
        testing::ToyGrammar{{std::vector<int>(testing::kVocabSize, 0)}});
  };
  EXPECT_LT(BytesOf(constrain), 4096);
}

}  // namespace
}  // namespace forerun
