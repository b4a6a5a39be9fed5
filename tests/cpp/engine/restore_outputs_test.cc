// Outputs of earlier engines, from which a new engine's requests draft.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "cpp/draft/text/suffix.h"
#include "forerun/error.h"
#include "tests/cpp/testing/counting_engine.h"

namespace forerun {
namespace {

using testing::CountingEngineTest;
using testing::Greedy;
using testing::RunToEnd;

using RestoreOutputsTest = CountingEngineTest;

const std::vector<TokenId> kPrompt = {1, 2}, kOutput = {3, 4, 5, 6, 7, 8, 9, 10};

std::int64_t NumAccepted(EngineCore& engine, const SubmitOptions& options) {
  const RequestId id = engine.Submit(kPrompt, Greedy(8), {}, options);
  const testing::Finished result = RunToEnd(engine).at(id);
  EXPECT_EQ(result.tokens, kOutput);
  return result.metrics.spec_decode.num_accepted_tokens;
}

TEST_F(RestoreOutputsTest, RequestsDraftFromOutputsWithTheirSaltOnly) {
  SuffixDrafter drafter{SuffixOptions()};
  testing::TestEngine engine(config_, executor_, &drafter);
  const PastOutput output = {kOutput, "a"};
  EXPECT_TRUE(engine.RestoreOutputs(std::span(&output, 1), /*is_last=*/true));
  EXPECT_EQ(NumAccepted(engine, {}), 0);
  EXPECT_EQ(NumAccepted(engine, {.cache_salt = "b"}), 0);
  EXPECT_GT(NumAccepted(engine, {.cache_salt = "a"}), 3);
}

TEST_F(RestoreOutputsTest, TokensBeyondTheVocabularyAreRefused) {
  SuffixDrafter drafter{SuffixOptions()};
  testing::TestEngine engine(config_, executor_, &drafter);
  for (const TokenId token : {-1, testing::kVocabSize}) {
    const std::vector<TokenId> tokens = {3, token};
    const PastOutput outputs[] = {{kOutput}, {tokens}};
    EXPECT_THROW(engine.RestoreOutputs(outputs, /*is_last=*/true), InvalidArgument);
  }
  EXPECT_EQ(NumAccepted(engine, {}), 0);
}

TEST_F(RestoreOutputsTest, AnEngineThatDoesNotLearnWantsNone) {
  const PastOutput output = {kOutput};
  EXPECT_FALSE(MakeEngine().RestoreOutputs(std::span(&output, 1), /*is_last=*/true));
}

TEST_F(RestoreOutputsTest, OtherThreadsRestoreWhileRequestsRun) {
  SuffixDrafter drafter{SuffixOptions()};
  testing::TestEngine engine(config_, executor_, &drafter);
  const auto restore = [&] {
    const PastOutput output = {kOutput, "a"};
    for (int i = 0; i < 200; ++i) engine.RestoreOutputs(std::span(&output, 1), i % 20 == 0);
  };
  std::thread first(restore), second(restore);
  for (int i = 0; i < 20; ++i) NumAccepted(engine, {.cache_salt = "a"});
  first.join();
  second.join();
  engine.RestoreOutputs({}, /*is_last=*/true);
  EXPECT_GT(NumAccepted(engine, {.cache_salt = "a"}), 3);
  drafter.histories().CheckIntegrity();
}

}  // namespace
}  // namespace forerun
