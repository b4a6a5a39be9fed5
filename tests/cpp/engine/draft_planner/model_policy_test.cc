// For which requests of a step the model is run.
#include "cpp/engine/draft_planner/model_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace forerun {
namespace {

constexpr int kDraftTokens = 4, kMaxRequests = 64;

// What passes take on a machine of the test.
struct Machine {
  double step = 0.008, step_row = 0.0008;
  double draft_pass = 0.0002, draft_pass_row = 0.00003;
  double catch_up_token = 0.00003;
  double noise = 0.0;  // times are uniform within this share

  double Step(int num_rows) const { return step + step_row * num_rows; }
  double Drafts(int num_requests) const {
    return kDraftTokens * (draft_pass + draft_pass_row * num_requests);
  }
};

// How many of the tokens of a draft are accepted, on average, by request and output index.
using Acceptance = std::function<double(int request, int index)>;

// Decodes on a machine with a drafter that drafts four tokens.
class Engine {
 public:
  explicit Engine(const Machine& machine = {}) : machine_(machine) {
    for (int i = 0; i < kDraftTokens; ++i) draft_.AppendToChain(i, 0.5f);
  }

  struct Result {
    double seconds = 0, plain_seconds = 0;
    std::vector<int> num_drafts;  // by request
    double speed() const { return plain_seconds / seconds; }
  };

  // Requests that begin at the same time and have as many tokens each.
  Result Run(int num_requests, int num_tokens, int num_prompt_tokens,
             const Acceptance& acceptance) {
    Result result;
    result.num_drafts.resize(num_requests);
    result.plain_seconds = num_tokens * machine_.Step(num_requests);
    std::vector<DraftHistory> histories(num_requests);
    std::vector<int> lengths(num_requests), num_missing(num_requests, num_prompt_tokens);
    std::vector<ModelPolicy::Candidate> candidates;
    std::vector<int> requests;
    while (true) {
      candidates.clear();
      requests.clear();
      for (int i = 0; i < num_requests; ++i) {
        if (lengths[i] >= num_tokens) continue;
        requests.push_back(i);
        candidates.push_back({&histories[i], num_missing[i], num_tokens - lengths[i]});
      }
      if (requests.empty()) return result;
      const auto num_rows = static_cast<int>(requests.size());
      if (cost.known()) policy.Choose(num_rows, candidates);
      result.seconds += DraftAndStep(num_rows, candidates);
      for (std::size_t c = 0; c < requests.size(); ++c) {
        const int i = requests[c];
        const int num_accepted =
            candidates[c].runs ? Accept(acceptance(i, lengths[i]), histories[i]) : 0;
        result.num_drafts[i] += candidates[c].runs ? 1 : 0;
        num_missing[i] = candidates[c].runs ? num_accepted : num_missing[i] + 1;
        lengths[i] += 1 + num_accepted;
      }
    }
  }

  CostModel cost;
  ModelPolicy policy{cost, kDraftTokens, kMaxRequests};

 private:
  double Noisy(double seconds) {
    return seconds *
           std::uniform_real_distribution(1 - machine_.noise, 1 + machine_.noise)(random_);
  }

  double DraftAndStep(int num_rows, const std::vector<ModelPolicy::Candidate>& candidates) {
    int num_drafting = 0, num_catch_up_tokens = 0;
    for (const ModelPolicy::Candidate& candidate : candidates) {
      if (!candidate.runs) continue;
      ++num_drafting;
      if (candidate.num_catch_up_tokens <= CostModel::kFreeCatchUpTokens) continue;
      num_catch_up_tokens += candidate.num_catch_up_tokens;
    }
    double drafting = 0;
    if (num_drafting > 0) {
      drafting =
          Noisy(machine_.Drafts(num_drafting) + machine_.catch_up_token * num_catch_up_tokens);
      cost.ObserveDrafting(num_drafting, kDraftTokens, num_catch_up_tokens, drafting);
    }
    num_rows += kDraftTokens * num_drafting;
    const double step = Noisy(machine_.Step(num_rows));
    cost.ObserveStep(num_rows, step);
    return drafting + step;
  }

  int Accept(double mean, DraftHistory& history) {
    const double whole = std::floor(mean);
    const bool one_more = std::uniform_real_distribution(0.0, 1.0)(random_) < mean - whole;
    std::vector<int> nodes(static_cast<int>(whole) + (one_more ? 1 : 0));
    std::iota(nodes.begin(), nodes.end(), 0);
    history.ran_model = true;
    policy.ObserveVerdict(draft_, nodes, history);
    return static_cast<int>(nodes.size());
  }

  const Machine machine_;
  std::mt19937 random_{7};
  DraftTree draft_;
};

Acceptance Always(double accepted) {
  return [=](int, int) { return accepted; };
}
// As where a text copies for 50 tokens, and then does not.
Acceptance Flips(double accepted) {
  return [=](int, int index) { return index / 50 % 2 == 0 ? accepted : 0.0; };
}

int Sum(const std::vector<int>& counts) { return std::accumulate(counts.begin(), counts.end(), 0); }

TEST(ModelPolicyTest, ADrafterThatSavesNoTimeCostsAlmostNothing) {
  for (const double noise : {0.0, 0.1}) {
    for (const int num_requests : {1, 4, 16, 64}) {
      for (const int num_prompt_tokens : {0, 100, 1000}) {
        for (const auto& [name, acceptance] : {std::pair("never", Always(0)),
                                               {"seldom", Always(0.1)},
                                               {"sometimes", Always(0.4)},
                                               {"seldom, then never", Flips(0.5)},
                                               {"always, then never", Flips(4)}}) {
          Machine machine;
          machine.noise = noise;
          Engine engine(machine);
          // The first requests cost the credit, once.
          engine.Run(num_requests, 200, num_prompt_tokens, acceptance);
          const auto result = engine.Run(num_requests, 1000, num_prompt_tokens, acceptance);
          EXPECT_GT(result.speed(), 0.98)
              << "accepted " << name << ", " << num_requests << " requests, prompts of "
              << num_prompt_tokens << ", noise " << noise;
        }
      }
    }
  }
}

TEST(ModelPolicyTest, TheFirstRequestsOfAnEngineLoseAFewStepsAtMost) {
  for (const int num_requests : {1, 4, 16, 64}) {
    for (const int num_prompt_tokens : {0, 100, 1000}) {
      Engine engine;
      const auto result = engine.Run(num_requests, 200, num_prompt_tokens, Always(0));
      const double lost_steps =
          (result.seconds - result.plain_seconds) / Machine().Step(num_requests);
      EXPECT_LT(lost_steps, 9) << num_requests << " requests, prompts of " << num_prompt_tokens;
    }
  }
}

TEST(ModelPolicyTest, ShortRequestsAreNotSlowedByADrafterThatSavedTimeForOthers) {
  for (const int num_requests : {1, 4, 16, 64}) {
    Engine engine;
    double seconds = 0, plain_seconds = 0;
    engine.Run(num_requests, 400, 50, Always(2));
    for (int i = 0; i < 20; ++i) {
      const auto result = engine.Run(num_requests, 48, 300, Always(0));
      seconds += result.seconds;
      plain_seconds += result.plain_seconds;
    }
    EXPECT_GT(plain_seconds / seconds, 0.98) << num_requests;
  }
}

TEST(ModelPolicyTest, DraftsThatSaveTimeAreMade) {
  Machine machine;
  machine.step_row = 0.0002;
  for (const int num_requests : {1, 4, 16}) {
    Engine engine(machine);
    engine.Run(num_requests, 200, 50, Always(1.5));
    const auto result = engine.Run(num_requests, 400, 50, Always(1.5));
    for (const int num_drafts : result.num_drafts) EXPECT_GT(num_drafts, 100) << num_requests;
  }
}

TEST(ModelPolicyTest, DraftsOfManyRequestsAreNotAsExpensiveAsSoManyDrafts) {
  // A pass for one request takes as long as one for sixteen.
  Machine machine;
  machine.draft_pass = 0.001;
  machine.draft_pass_row = 0;
  machine.step_row = 0.00002;
  Engine engine(machine);
  engine.Run(1, 400, 0, Always(1.5));
  EXPECT_GT(Sum(engine.Run(16, 400, 0, Always(1.5)).num_drafts), 16 * 140);
}

TEST(ModelPolicyTest, DraftsThatSaveNoTimeAreTriedForASmallShareOfTheTime) {
  const int num_drafts = Sum(Engine().Run(1, 10'000, 0, Always(0.1)).num_drafts);
  EXPECT_GT(num_drafts, 30);
  EXPECT_LT(num_drafts, 250);
}

TEST(ModelPolicyTest, ARequestThatBecomesPredictableIsNoticed) {
  Engine engine;
  const auto result =
      engine.Run(1, 3000, 0, [](int, int index) { return index < 1000 ? 0.0 : 4.0; });
  // Of the 400 drafts of five tokens that there could have been.
  EXPECT_GT(Sum(result.num_drafts), 250);
}

TEST(ModelPolicyTest, RequestsLearnFromEachOtherAndDecideForThemselves) {
  Engine engine;
  engine.Run(1, 500, 0, Always(0.1));
  // Of two requests that are tried now and then, one saves time.
  const auto result = engine.Run(2, 2000, 0, [](int request, int) { return request == 0 ? 3 : 0; });
  EXPECT_GT(result.num_drafts[0], 300);
  EXPECT_LT(result.num_drafts[1], 300);
}

TEST(ModelPolicyTest, TheTokensLeftMustSaveTheTimeOfCatchingUp) {
  Engine engine;
  engine.Run(1, 400, 100, Always(1.0));
  // Ten drafts save 70 ms, and catching up takes 150.
  EXPECT_EQ(Sum(engine.Run(1, 40, 5000, Always(1.0)).num_drafts), 0);
  EXPECT_GT(Sum(engine.Run(1, 40, 50, Always(1.0)).num_drafts), 10);
  EXPECT_GT(Sum(engine.Run(1, 1000, 5000, Always(1.0)).num_drafts), 400);
}

TEST(ModelPolicyTest, ACostlierForwardNeedsMoreProbablePaths) {
  const auto least = [](double draft_pass) {
    Machine machine;
    machine.draft_pass = draft_pass;
    Engine engine(machine);
    engine.Run(1, 200, 0, Always(3.0));
    return engine.policy.least_path_probability();
  };
  EXPECT_NEAR(least(0.0002), (0.0008 + 0.00023) / 0.0088, 0.05);
  EXPECT_NEAR(least(0.0020) - least(0.0002), 0.0018 / 0.0088, 0.05);
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
    Engine engine;
    engine.Run(1, 10, 0, Always(0));
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
  Engine engine;
  DraftHistory history;
  engine.policy.ObserveVerdict(DraftTree(), {}, history);
  EXPECT_EQ(history.model.num_drafts, 0);
}

}  // namespace
}  // namespace forerun
