// What a drafter's exceptions do: its own failures cost drafts and are reported; our bugs,
// shortages of memory and lost devices leave Step.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <new>
#include <type_traits>

#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun {
namespace {

using testing::CountingEngineTest;
using testing::Finished;
using testing::Greedy;
using testing::RightToken;
using testing::RunToEnd;
using testing::ScriptedDrafter;

enum class Call { kBegin, kEstimate, kPrepare, kPropose, kObserve, kEnd };

// Wraps another drafter; one call throws.
class ThrowingDrafter : public Drafter {
 public:
  explicit ThrowingDrafter(Drafter& inner) : inner_(inner) {}

  // The call of this kind after num_calls others of its kind.
  void ThrowIn(Call call, std::function<void()> thrower, int num_calls = 0) {
    failing_ = call;
    thrower_ = std::move(thrower);
    num_calls_left_ = num_calls;
  }

  void Begin(const NewRequest& request) override {
    inner_.Begin(request);
    MaybeThrow(Call::kBegin);
  }
  void Observe(RequestId id, std::span<const TokenId> committed) override {
    MaybeThrow(Call::kObserve);
    inner_.Observe(id, committed);
  }
  void End(RequestId id) override {
    MaybeThrow(Call::kEnd);
    inner_.End(id);
  }
  void Forget(RequestId id) override { inner_.Forget(id); }
  std::optional<ModelWork> EstimateModelWork(const DraftRequest& request) const override {
    MaybeThrow(Call::kEstimate);
    return inner_.EstimateModelWork(request);
  }
  DraftingReport Prepare(std::span<const DraftRequest> requests) override {
    MaybeThrow(Call::kPrepare);
    return inner_.Prepare(requests);
  }
  void Propose(const DraftRequest& request, DraftTree& draft) override {
    inner_.Propose(request, draft);
    MaybeThrow(Call::kPropose);
  }
  void Reset() override { inner_.Reset(); }
  bool Restore(std::span<const PastOutput> outputs, bool is_last) override {
    return inner_.Restore(outputs, is_last);
  }

 private:
  void MaybeThrow(Call call) const {
    if (call == failing_ && num_calls_left_-- == 0) thrower_();
  }

  Drafter& inner_;
  Call failing_ = Call::kBegin;
  std::function<void()> thrower_;
  mutable int num_calls_left_ = -1;
};

void ThrowOwnFailure() { throw std::runtime_error("the index is broken"); }
void ThrowInternalError() { throw InternalError("a check failed"); }
void ThrowBadAlloc() { throw std::bad_alloc(); }
void ThrowLostDevice() {
  throw DeviceError("a draft", "CUDA error 719", "start again", /*is_lost=*/true);
}

class DrafterFailureTest : public CountingEngineTest {
 protected:
  // Serves two requests of 12 tokens. Steps that throw are repeated. Every token comes with its own
  // log-probability, also where the step before threw.
  std::map<RequestId, Finished> Serve(EngineCore& engine) {
    SamplingParams params = Greedy(12);
    params.logprobs = 1;
    engine.Submit(std::vector<TokenId>{1}, params);
    engine.Submit(std::vector<TokenId>{5}, params);
    std::map<RequestId, Finished> results;
    while (engine.HasUnfinished()) {
      try {
        for (const RequestUpdate& update : engine.Step()) {
          Finished& result = results[update.id];
          result.tokens.insert(result.tokens.end(), update.new_tokens.begin(),
                               update.new_tokens.end());
          for (std::size_t i = 0; i < update.new_tokens.size(); ++i) {
            EXPECT_EQ(update.logprobs[static_cast<int>(i)][0].token, update.new_tokens[i]);
          }
          if (update.metrics != nullptr) result.metrics = *update.metrics;
        }
      } catch (const std::exception&) {
        thrown_ = std::current_exception();
        ++num_thrown_;
      }
    }
    return results;
  }

  static void ExpectWhole(const std::map<RequestId, Finished>& results) {
    ASSERT_EQ(results.size(), 2u);
    for (const auto& [id, result] : results) {
      ASSERT_EQ(result.tokens.size(), 12u);
      EXPECT_EQ(result.tokens[0], id == 0 ? 2 : 6);
      EXPECT_EQ(result.metrics.num_generated_tokens, 12);
    }
  }

  ScriptedDrafter scripted_{RightToken};
  ThrowingDrafter drafter_{scripted_};
  std::exception_ptr thrown_;
  int num_thrown_ = 0;
};

TEST_F(DrafterFailureTest, AFailureInOneRequestsCallCostsThatRequestItsDrafts) {
  for (Call call : {Call::kBegin, Call::kPropose, Call::kObserve}) {
    SCOPED_TRACE(static_cast<int>(call));
    testing::TestEngine engine = MakeEngine(&drafter_);
    drafter_.ThrowIn(call, ThrowOwnFailure);
    const auto results = Serve(engine);
    ExpectWhole(results);
    EXPECT_EQ(num_thrown_, 0);
    EXPECT_EQ(results.at(0).metrics.spec_decode.num_accepted_tokens, 0);
    EXPECT_GT(results.at(1).metrics.spec_decode.num_accepted_tokens, 0);
    EXPECT_EQ(engine.metrics().num_drafting_failures, 1);
    EXPECT_EQ(engine.metrics().first_drafting_failure, "the index is broken");
    EXPECT_EQ(scripted_.num_live(), 0u);
  }
}

TEST_F(DrafterFailureTest, AFailureInPrepareCostsAllRequestsTheirDrafts) {
  testing::TestEngine engine = MakeEngine(&drafter_);
  drafter_.ThrowIn(Call::kPrepare, ThrowOwnFailure);
  const auto results = Serve(engine);
  ExpectWhole(results);
  EXPECT_EQ(num_thrown_, 0);
  for (const auto& [id, result] : results) EXPECT_EQ(result.metrics.spec_decode.num_drafts, 0);
  EXPECT_EQ(engine.metrics().num_drafting_failures, 2);
  EXPECT_EQ(engine.metrics().first_drafting_failure, "the index is broken");
}

TEST_F(DrafterFailureTest, OnlyTheFirstMessageIsKept) {
  testing::TestEngine engine = MakeEngine(&drafter_);
  drafter_.ThrowIn(Call::kBegin, ThrowOwnFailure);
  ExpectWhole(Serve(engine));
  drafter_.ThrowIn(Call::kBegin, [] { throw std::runtime_error("another failure"); });
  engine.Submit(std::vector<TokenId>{1}, Greedy(3));
  RunToEnd(engine);
  EXPECT_EQ(engine.metrics().num_drafting_failures, 2);
  EXPECT_EQ(engine.metrics().first_drafting_failure, "the index is broken");
}

TEST_F(DrafterFailureTest, NoFailureHasNoMessage) {
  testing::TestEngine engine = MakeEngine(&drafter_);
  ExpectWhole(Serve(engine));
  EXPECT_EQ(engine.metrics().num_drafting_failures, 0);
  EXPECT_EQ(engine.metrics().first_drafting_failure, "");
}

TEST_F(DrafterFailureTest, ALostDeviceEndsEveryLaterStepToo) {
  for (Call call : {Call::kEstimate, Call::kPrepare, Call::kPropose}) {
    testing::TestEngine engine = MakeEngine(&drafter_);
    drafter_.ThrowIn(call, ThrowLostDevice);
    engine.Submit(std::vector<TokenId>{1}, Greedy(12));
    int num_lost = 0;
    for (int i = 0; i < 6; ++i) {
      try {
        engine.Step();
        EXPECT_EQ(num_lost, 0);
      } catch (const DeviceError& error) {
        EXPECT_TRUE(error.is_lost());
        ++num_lost;
      }
    }
    EXPECT_GT(num_lost, 3);
    EXPECT_EQ(engine.metrics().num_drafting_failures, 0);
    engine.CancelStarted();
    engine.Step();
    EXPECT_FALSE(engine.HasUnfinished());
  }
}

TEST_F(DrafterFailureTest, BugsAndMemoryShortagesWhileDraftingLeaveStepAndChangeNothing) {
  for (Call call : {Call::kEstimate, Call::kPrepare, Call::kPropose}) {
    for (auto* thrower : {ThrowInternalError, ThrowBadAlloc}) {
      SCOPED_TRACE(static_cast<int>(call));
      testing::TestEngine engine = MakeEngine(&drafter_);
      drafter_.ThrowIn(call, thrower, /*num_calls=*/1);
      num_thrown_ = 0;
      const auto results = Serve(engine);
      EXPECT_EQ(num_thrown_, 1);
      ExpectWhole(results);
      // The prompt's pass emits one token, two passes with drafts five each, the last one token.
      for (const auto& [id, result] : results) EXPECT_EQ(result.metrics.num_target_passes, 4);
      EXPECT_EQ(engine.metrics().num_drafting_failures, 0);
      if (thrower == ThrowInternalError) {
        EXPECT_THROW(std::rethrow_exception(thrown_), InternalError);
      } else {
        EXPECT_THROW(std::rethrow_exception(thrown_), std::bad_alloc);
      }
    }
  }
}

TEST_F(DrafterFailureTest, BugsAndMemoryShortagesAtCommitLeaveStepWhenTheCommitIsWhole) {
  for (Call call : {Call::kBegin, Call::kObserve, Call::kEnd}) {
    for (auto* thrower : {ThrowInternalError, ThrowBadAlloc}) {
      SCOPED_TRACE(static_cast<int>(call));
      testing::TestEngine engine = MakeEngine(&drafter_);
      drafter_.ThrowIn(call, thrower);
      num_thrown_ = 0;
      const auto results = Serve(engine);
      EXPECT_EQ(num_thrown_, 1);
      ExpectWhole(results);
      EXPECT_EQ(engine.metrics().num_drafting_failures, 1);
      EXPECT_EQ(engine.metrics().num_held_blocks, 0);
      EXPECT_EQ(scripted_.num_live(), 0u);
      if (thrower == ThrowInternalError) {
        EXPECT_THROW(std::rethrow_exception(thrown_), InternalError);
      } else {
        EXPECT_THROW(std::rethrow_exception(thrown_), std::bad_alloc);
      }
    }
  }
}

TEST_F(DrafterFailureTest, ADraftBeyondItsLimitIsOurBug) {
  ScriptedDrafter drafter(RightToken,
                          [](int max_nodes) { return ScriptedDrafter::Chain(max_nodes + 1); });
  testing::TestEngine engine = MakeEngine(&drafter);
  engine.Submit(std::vector<TokenId>{1}, Greedy(12));
  engine.Step();
  EXPECT_THROW(engine.Step(), InternalError);
  EXPECT_EQ(engine.metrics().num_drafting_failures, 0);
}

// Forwards what a request's life needs, and forgets EstimateModelWork and Prepare.
class ForgetfulWrapper : public Drafter {
 public:
  void Begin(const NewRequest&) override {}
  void Observe(RequestId, std::span<const TokenId>) override {}
  void End(RequestId) override {}
  void Forget(RequestId) override {}
  void Propose(const DraftRequest&, DraftTree&) override {}
  void Reset() override {}
  bool Restore(std::span<const PastOutput>, bool) override { return false; }
};
static_assert(std::is_abstract_v<ForgetfulWrapper>, "a wrapper must forward every method");

}  // namespace
}  // namespace forerun
