// For which steps of a request the model is run.
#include "cpp/engine/draft_planner/model_policy.h"

#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

namespace forerun {
namespace {

constexpr double kSecondsPerToken = 0.010, kSecondsPerRow = 0.001;
constexpr int kDraftTokens = 4, kManyTokens = 1000;

// An engine's use of it: drafts of four tokens, by a model that catches up with a request when it
// drafts for it.
class Engine {
 public:
  explicit Engine(double seconds_per_draft) : seconds_per_draft_(seconds_per_draft) {
    // The first step sets the prior of a row's cost: half of it for eight rows.
    cost.ObserveStep(1, 16 * kSecondsPerRow);
    for (int i = 0; i < kDraftTokens; ++i) draft_.AppendToChain(i, 0.5f);
  }

  // Whether a step of the request was drafted for; `accepted` of the four tokens are accepted on
  // average.
  bool Step(double accepted, DraftHistory& history, int num_catch_up_tokens = 0,
            int num_tokens_left = kManyTokens) {
    if (!policy.ShouldRun(kSecondsPerToken, num_catch_up_tokens, num_tokens_left, history)) {
      return false;
    }
    const bool catches_up = num_catch_up_tokens > CostModel::kFreeCatchUpTokens;
    cost.ObserveDrafting(1, kDraftTokens, catches_up ? num_catch_up_tokens : 0,
                         seconds_per_draft_ + 1e-4 * num_catch_up_tokens);
    accepted_so_far_ += accepted;
    std::vector<int> accepted_nodes(static_cast<int>(accepted_so_far_));
    std::iota(accepted_nodes.begin(), accepted_nodes.end(), 0);
    accepted_so_far_ -= static_cast<double>(accepted_nodes.size());
    history.ran_model = true;
    policy.ObserveVerdict(draft_, accepted_nodes, history);
    return true;
  }

  // How many of the steps of a request were drafted for. After its first draft the model has
  // nothing to catch up with.
  int Request(double accepted, int num_steps, int num_catch_up_tokens = 0) {
    DraftHistory history;
    int num_drafts = 0;
    for (int i = 0; i < num_steps; ++i) {
      const int num_tokens = num_drafts == 0 ? num_catch_up_tokens : 0;
      num_drafts += Step(accepted, history, num_tokens, num_steps - i) ? 1 : 0;
    }
    policy.End(history);
    return num_drafts;
  }

  CostModel cost;
  ModelPolicy policy{cost, kDraftTokens};

 private:
  const double seconds_per_draft_;
  DraftTree draft_;
  double accepted_so_far_ = 0;  // not yet counted, less than a token
};

TEST(ModelPolicyTest, DraftsThatSaveTimeAreAlwaysMade) {
  EXPECT_EQ(Engine(0.004).Request(1.5, 400), 400);
}

TEST(ModelPolicyTest, DraftsThatSaveNoTimeAreTriedForASmallShareOfTheTime) {
  // 0.3 tokens of 10 ms for 4 ms of drafting and 4 ms of rows: one in 80.
  const int num_drafts = Engine(0.004).Request(0.3, 4000);
  EXPECT_GT(num_drafts, 40);
  EXPECT_LT(num_drafts, 75);
}

TEST(ModelPolicyTest, ARequestThatBecomesPredictableIsNoticed) {
  Engine engine(0.004);
  DraftHistory history;
  for (int i = 0; i < 500; ++i) engine.Step(0, history);
  int last_skipped = 0;
  for (int i = 0; i < 1500; ++i) {
    if (!engine.Step(4, history)) last_skipped = i;
  }
  EXPECT_GT(last_skipped, 0);
  EXPECT_LT(last_skipped, 400);
}

TEST(ModelPolicyTest, TheCostOfCatchingUpIsNotChargedToLaterDrafts) {
  // After each prompt of 1000 tokens the model takes 100 ms, and then 2 ms for a draft.
  Engine engine(0.002);
  EXPECT_EQ(engine.Request(1.5, 400, 1000), 400);
  EXPECT_NEAR(engine.policy.LeastPathProbability(kSecondsPerToken), (0.001 + 0.0005) / 0.010, 1e-4);
  EXPECT_EQ(engine.Request(1.5, 400, 1000), 400);
}

TEST(ModelPolicyTest, TheTokensLeftMustSaveTheTimeOfCatchingUp) {
  Engine engine(0.002);
  engine.Request(1.0, 100, 1000);
  // A draft saves 10 ms and takes 6 ms: 50 of them save the 100 ms of catching up, 5 do not.
  EXPECT_EQ(engine.Request(1.0, 20, 1000), 0);
  EXPECT_EQ(engine.Request(1.0, 20, 50), 20);
  EXPECT_EQ(engine.Request(1.0, 200, 1000), 200);
}

TEST(ModelPolicyTest, AQuickFirstTimeOfCatchingUpIsCorrectedLater) {
  Engine engine(0.002);
  engine.cost.ObserveDrafting(1, 4, 0, 0.1);
  engine.cost.ObserveDrafting(1, 4, 30, 0.05);  // less than a draft seemed to take
  engine.cost.ObserveDrafting(1, 4, 1000, 0.9);
  for (int i = 0; i < 100; ++i) engine.cost.ObserveDrafting(1, 4, 0, 0.002);
  EXPECT_EQ(engine.Request(1.0, 20, 1000), 0);
}

TEST(ModelPolicyTest, RequestsLearnFromEachOtherAndDecideForThemselves) {
  Engine engine(0.004);
  engine.Request(0.1, 200);
  EXPECT_LE(engine.Request(0.1, 60), 3);
  // Of two requests that are tried now and then, one saves time.
  DraftHistory good, bad;
  int num_good = 0, num_bad = 0;
  for (int i = 0; i < 1000; ++i) {
    num_good += engine.Step(3, good) ? 1 : 0;
    num_bad += engine.Step(0, bad) ? 1 : 0;
  }
  EXPECT_GT(num_good, 600);
  EXPECT_LT(num_bad, 300);
}

TEST(ModelPolicyTest, ShortRequestsShareTheirTrials) {
  Engine engine(0.004);
  engine.Request(0.1, 200);
  int num_drafts = 0;
  for (int i = 0; i < 100; ++i) num_drafts += engine.Request(0.1, 20);
  // Two at first, and one for every fourth.
  EXPECT_GT(num_drafts, 200 + 10);
  EXPECT_LT(num_drafts, 200 + 40);
}

TEST(ModelPolicyTest, ACostlierForwardNeedsMoreProbablePaths) {
  Engine cheap(0), expensive(0);
  cheap.cost.ObserveDrafting(2, 4, 0, 0.001);
  expensive.cost.ObserveDrafting(2, 4, 0, 0.016);
  const double least = cheap.policy.LeastPathProbability(kSecondsPerToken);
  EXPECT_NEAR(least, (0.001 + 0.001 / 8) / 0.010, 1e-9);
  EXPECT_GT(expensive.policy.LeastPathProbability(kSecondsPerToken), least);
}

// Of this draft: 4 (5 (9), 8), 7, where 4, 5 and 6 would have been drafted without the model.
TEST(ModelPolicyTest, TheModelIsCreditedOnlyWithTheNodesThatItAdded) {
  DraftTree without_model;
  for (TokenId token : {4, 5, 6}) without_model.AppendToChain(token, 0.9f);
  DraftTree draft;
  draft.Append(4, kDraftRoot, 0.9f);
  draft.Append(5, 0, 0.9f);
  draft.Append(7, kDraftRoot, 0.5f);
  draft.Append(8, 0, 0.5f);
  draft.Append(9, 1, 0.5f);
  const auto added = [&](const std::vector<int>& accepted_nodes, const DraftTree* without) {
    Engine engine(0);
    DraftHistory history;
    history.ran_model = true;
    history.draft_without_model = without;
    engine.policy.ObserveVerdict(draft, accepted_nodes, history);
    return std::pair(history.model.num_rows, history.model.num_accepted);
  };
  EXPECT_EQ(added({}, &without_model), std::pair(3.0, 0.0));
  EXPECT_EQ(added({2}, &without_model), std::pair(3.0, 1.0));
  EXPECT_EQ(added({0, 3}, &without_model), std::pair(3.0, 1.0));
  EXPECT_EQ(added({0, 1, 4}, &without_model), std::pair(3.0, 1.0));
  EXPECT_EQ(added({0, 1, 4}, nullptr), std::pair(5.0, 3.0));
}

TEST(ModelPolicyTest, AStepInWhichTheModelDidNotRunIsNotObserved) {
  Engine engine(0.004);
  DraftHistory history;
  engine.policy.ObserveVerdict(DraftTree(), {}, history);
  EXPECT_EQ(history.model.num_drafts, 0);
  EXPECT_EQ(history.num_first_left, 2);
}

}  // namespace
}  // namespace forerun
