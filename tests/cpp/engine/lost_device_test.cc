// A device that does nothing more for the process ends the engine: what is unfinished fails with
// its error, and so does each later request.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "forerun/error.h"
#include "tests/cpp/testing/counting_engine.h"

namespace forerun {
namespace {

using testing::Greedy;

// Fails from the second step on.
class BreakingVerifier : public HostVerifier {
 public:
  BreakingVerifier(const VerifierLimits& limits, bool is_lost)
      : HostVerifier(limits), is_lost_(is_lost) {}

  void Begin(ConstRows logits, std::span<const SampleRequest> requests) override {
    if (++num_calls_ >= 2) {
      throw DeviceError("call " + std::to_string(num_calls_), "none", "start again", is_lost_);
    }
    HostVerifier::Begin(logits, requests);
  }
  int num_calls() const { return num_calls_; }

 private:
  const bool is_lost_;
  int num_calls_ = 0;
};

class LostDeviceTest : public testing::CountingEngineTest {
 protected:
  // Submits two requests and runs a step.
  std::unique_ptr<EngineCore> Start(bool is_lost) {
    auto verifier =
        std::make_unique<BreakingVerifier>(config_.verifier_limits(testing::kVocabSize), is_lost);
    verifier_ = verifier.get();
    auto engine = std::make_unique<EngineCore>(config_, executor_, std::move(verifier), nullptr);
    for (int i = 0; i < 2; ++i) engine->Submit(std::vector<TokenId>{1}, Greedy(8));
    EXPECT_EQ(engine->Step().size(), 2u);
    return engine;
  }
  static std::string Wanted(const std::function<void()>& call) {
    try {
      call();
    } catch (const DeviceError& error) {
      EXPECT_TRUE(error.is_lost());
      return error.wanted();
    }
    return "nothing";
  }

  BreakingVerifier* verifier_ = nullptr;
};

TEST_F(LostDeviceTest, EachStepAndEachNewRequestFailWithTheFirstError) {
  const std::unique_ptr<EngineCore> engine = Start(/*is_lost=*/true);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Wanted([&] { engine->Step(); }), "call 2");
  EXPECT_EQ(verifier_->num_calls(), 2) << "the device is left alone";
  EXPECT_EQ(Wanted([&] { engine->Submit(std::vector<TokenId>{1}, Greedy(8)); }), "call 2");
  EXPECT_EQ(engine->metrics().num_running_requests, 2);

  EXPECT_EQ(engine->CancelStarted(), 2u);
  const std::span<const RequestUpdate> updates = engine->Step();
  ASSERT_EQ(updates.size(), 2u);
  for (const RequestUpdate& update : updates) {
    EXPECT_EQ(update.finish_reason, FinishReason::kAbort);
  }
  EXPECT_FALSE(engine->HasUnfinished());
  EXPECT_TRUE(engine->Step().empty());
  EXPECT_EQ(engine->metrics().num_held_blocks, 0);
}

TEST_F(LostDeviceTest, AnErrorThatPassesDoesNotEndTheEngine) {
  const std::unique_ptr<EngineCore> engine = Start(/*is_lost=*/false);
  EXPECT_THROW(engine->Step(), DeviceError);
  EXPECT_THROW(engine->Step(), DeviceError);
  EXPECT_EQ(verifier_->num_calls(), 3);
  EXPECT_NO_THROW(engine->Submit(std::vector<TokenId>{1}, Greedy(8)));
}

}  // namespace
}  // namespace forerun
