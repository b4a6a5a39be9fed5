#include "cpp/engine/draft_planner/draft_length.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "tests/cpp/testing/random_tree.h"

namespace forerun {
namespace {

DraftTree Chain(int length, float confidence) {
  DraftTree draft;
  for (int i = 0; i < length; ++i) draft.AppendToChain(i, confidence);
  return draft;
}

// The first nodes of a chain.
std::vector<int> First(int count) {
  std::vector<int> nodes(count);
  std::iota(nodes.begin(), nodes.end(), 0);
  return nodes;
}

// Plays requests whose drafts of length 8 are accepted node by node with a fixed probability.
class Play {
 public:
  explicit Play(double accept_probability) : accept_probability_(accept_probability) {}

  // Mean draft length over the last half of the steps.
  double Run(int num_steps, double seconds_per_row) {
    std::mt19937 random(3);
    std::bernoulli_distribution accept(accept_probability_);
    CheckedNodes checked;
    double total = 0;
    for (int step = 0; step < num_steps; ++step) {
      DraftTree draft = Chain(8, 0.6f);
      const DraftLengthController::Candidate candidate{&draft, &checked};
      controller_.Choose(cost_, {&candidate, 1}, /*num_known_rows=*/1, /*num_emitting=*/1);
      if (step >= num_steps / 2) total += draft.size();
      int num_accepted = 0;
      while (num_accepted < draft.size() && accept(random)) ++num_accepted;
      controller_.ObserveVerdict(draft, First(num_accepted), checked);
      cost_.ObserveStep(1 + draft.size(), 0.010 + seconds_per_row * draft.size());
    }
    return total / (num_steps - num_steps / 2);
  }

 private:
  const double accept_probability_;
  CostModel cost_;
  DraftLengthController controller_;
};

TEST(AcceptanceModelTest, AConfidenceOfOneIsBelievedAndNotLearnedFrom) {
  AcceptanceModel model;
  CheckedNodes checked;
  const double before = model.Probability(0.97f, checked);
  for (int i = 0; i < 50; ++i) model.Observe(1.0f, true, checked);
  EXPECT_EQ(model.Probability(0.97f, checked), before);
  for (int i = 0; i < 50; ++i) model.Observe(0.5f, false, checked);
  EXPECT_EQ(model.Probability(1.0f, checked), 0.99);
}

TEST(DraftLengthControllerTest, HopelessDraftsAreHardlyEverTried) {
  EXPECT_LT(Play(0.0).Run(2000, 0.001), 0.1);
}

TEST(DraftLengthControllerTest, CertainDraftsAreUsedWhole) {
  EXPECT_GT(Play(1.0).Run(400, 0.001), 7.9);
}

TEST(DraftLengthControllerTest, ExpensiveRowsShortenDrafts) {
  const double cheap = Play(0.7).Run(1000, 0.0002);
  const double expensive = Play(0.7).Run(1000, 0.004);
  EXPECT_GT(cheap, expensive + 1);
}

TEST(DraftLengthControllerTest, ARequestThatBecomesPredictableIsNoticed) {
  CostModel cost;
  DraftLengthController controller;
  CheckedNodes steady;
  CheckedNodes changing;
  // Beside a request that always does well; returns how many nodes the changing one was given.
  const auto play = [&](int num_steps, bool accepted) {
    int total = 0;
    for (int step = 0; step < num_steps; ++step) {
      DraftTree good = Chain(4, 0.6f);
      DraftTree draft = Chain(4, 0.6f);
      const DraftLengthController::Candidate candidates[] = {{&good, &steady}, {&draft, &changing}};
      controller.Choose(cost, candidates, 2, 2);
      total += draft.size();
      controller.ObserveVerdict(good, First(good.size()), steady);
      controller.ObserveVerdict(draft, First(accepted ? draft.size() : 0), changing);
      const int num_rows = 2 + good.size() + draft.size();
      cost.ObserveStep(num_rows, 0.010 + 0.001 * num_rows);
    }
    return total;
  };
  play(100, false);
  EXPECT_LT(play(100, false), 60);
  play(100, true);
  EXPECT_GT(play(50, true), 150);
}

TEST(DraftLengthControllerTest, TheRequestWithTheHigherAcceptanceGetsTheRows) {
  CostModel cost;
  DraftLengthController controller;
  for (int i = 0; i < 50; ++i) cost.ObserveStep(1 + i % 9, 0.010 + 0.002 * (1 + i % 9));
  CheckedNodes good{.num_expected = 20, .num_accepted = 30};
  CheckedNodes bad{.num_expected = 20, .num_accepted = 0};
  DraftTree promising = Chain(6, 0.6f);
  DraftTree hopeless = Chain(6, 0.6f);
  const DraftLengthController::Candidate candidates[] = {{&hopeless, &bad}, {&promising, &good}};
  controller.Choose(cost, candidates, 2, 2);
  EXPECT_GT(promising.size(), 0);
  EXPECT_EQ(hopeless.size(), 0);
}

TEST(DraftLengthControllerTest, KeepsTheMostProbablePathsOfATree) {
  CostModel cost;
  DraftLengthController controller;
  // Rows that cost much, so that a node must be worth about a seventh of a token.
  for (int i = 0; i < 50; ++i) cost.ObserveStep(1 + i % 9, 0.060 + 0.010 * (1 + i % 9));
  const CheckedNodes checked;
  DraftTree draft;
  draft.Append(10, kDraftRoot, 0.30f);  // 0.30
  draft.Append(11, kDraftRoot, 0.60f);  // 0.60
  draft.Append(12, 0, 0.10f);           // 0.03
  draft.Append(13, 1, 0.90f);           // 0.54
  draft.Append(14, kDraftRoot, 0.01f);  // 0.01
  draft.Append(15, 3, 0.90f);           // 0.49
  draft.Append(16, 3, 0.05f);           // 0.03
  const DraftLengthController::Candidate candidate{&draft, &checked};
  controller.Choose(cost, {&candidate, 1}, 1, 1);
  EXPECT_EQ(draft.tokens, (std::vector<TokenId>{10, 11, 13, 15}));
  EXPECT_EQ(draft.parents, (std::vector<std::int32_t>{-1, -1, 1, 2}));
  EXPECT_EQ(draft.confidence, (std::vector<float>{0.30f, 0.60f, 0.90f, 0.90f}));
}

TEST(DraftLengthControllerTest, TheKeptNodesOfAnyTreeAreClosedUnderParents) {
  std::mt19937 random(5);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  CostModel cost;
  DraftLengthController controller;
  CheckedNodes checkeds[3];
  int num_cut = 0;
  for (int step = 0; step < 500; ++step) {
    cost.ObserveStep(1 + below(20), 0.010 + 0.001 * below(20));
    DraftTree drafts[3], before[3];
    std::vector<DraftLengthController::Candidate> candidates;
    for (int c = 0; c < 3; ++c) {
      // A token is its node's number, so that it tells where the node went.
      for (const std::int32_t parent : forerun::testing::RandomParents(below(12), below)) {
        drafts[c].Append(drafts[c].size(), parent, static_cast<float>(below(100)) / 100);
      }
      before[c] = drafts[c];
      candidates.push_back({&drafts[c], &checkeds[c]});
    }
    controller.Choose(cost, candidates, 3, 3);
    for (int c = 0; c < 3; ++c) {
      num_cut += drafts[c].size() < before[c].size();
      for (int i = 0; i < drafts[c].size(); ++i) {
        const int old = drafts[c].tokens[i];
        ASSERT_LT(drafts[c].parents[i], i);
        const int parent = drafts[c].parents[i];
        ASSERT_EQ(parent < 0 ? -1 : drafts[c].tokens[parent], before[c].parents[old]);
        ASSERT_EQ(drafts[c].confidence[i], before[c].confidence[old]);
      }
      std::vector<int> accepted;
      for (int i = 0; i < drafts[c].size(); ++i) {
        const int last = accepted.empty() ? kDraftRoot : accepted.back();
        if (drafts[c].parents[i] == last && below(2) == 0) accepted.push_back(i);
      }
      controller.ObserveVerdict(drafts[c], accepted, checkeds[c]);
    }
  }
  EXPECT_GT(num_cut, 250);
}

// A node was checked if its parent was accepted; what its siblings did does not matter.
TEST(DraftLengthControllerTest, SiblingsOfTheAcceptedNodeCountAsCheckedAndRejected) {
  CostModel cost;
  DraftLengthController controller;
  CheckedNodes checked;
  DraftTree draft;
  draft.Append(1, kDraftRoot, 0.5f);
  draft.Append(2, kDraftRoot, 0.5f);  // accepted
  draft.Append(3, 0, 0.5f);           // never checked
  draft.Append(4, 1, 0.5f);
  draft.Append(5, 1, 0.5f);  // accepted
  draft.Append(6, 4, 0.5f);
  controller.ObserveVerdict(draft, std::vector<int>{1, 4}, checked);
  EXPECT_EQ(checked.num_accepted, 2);
  // Five nodes, of which the first two of the level were expected at a half each.
  EXPECT_GT(checked.num_expected, 2.0);
  EXPECT_LT(checked.num_expected, 3.0);
}

// How often a node is accepted whose parent was, by output index.
using Acceptance = std::function<double(int index)>;

// How fast requests are that begin at the same time, with drafts of five tokens of a drafter that
// is confident, as a multiple of plain decoding's speed.
double SpeedOfRequests(int num_requests, const Acceptance& acceptance, double seconds_per_row,
                       double noise) {
  constexpr int kNumTokens = 600;
  const auto step = [&](int num_rows) { return 0.008 + seconds_per_row * num_rows; };
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  CostModel cost;
  DraftLengthController controller;
  std::vector<CheckedNodes> checked(num_requests);
  std::vector<int> lengths(num_requests);
  double seconds = 0;
  while (true) {
    std::vector<int> requests;
    for (int i = 0; i < num_requests; ++i) {
      if (lengths[i] < kNumTokens) requests.push_back(i);
    }
    if (requests.empty()) return kNumTokens * step(num_requests) / seconds;
    const auto num_known = static_cast<int>(requests.size());
    std::vector<DraftTree> drafts(num_known);
    std::vector<DraftLengthController::Candidate> candidates;
    for (int c = 0; c < num_known; ++c) {
      for (TokenId token = 0; token < 5; ++token) drafts[c].AppendToChain(token, 0.8f);
      candidates.push_back({&drafts[c], &checked[requests[c]]});
    }
    controller.Choose(cost, candidates, num_known, num_known);
    int num_rows = num_known;
    for (const DraftTree& draft : drafts) num_rows += draft.size();
    const double taken = step(num_rows) * (1 - noise + 2 * noise * uniform(random));
    cost.ObserveStep(num_rows, taken);
    seconds += taken;
    for (int c = 0; c < num_known; ++c) {
      int& length = lengths[requests[c]];
      std::vector<int> accepted;
      while (std::ssize(accepted) < drafts[c].size() && uniform(random) < acceptance(length)) {
        accepted.push_back(static_cast<int>(accepted.size()));
      }
      controller.ObserveVerdict(drafts[c], accepted, checked[requests[c]]);
      length += 1 + static_cast<int>(accepted.size());
    }
  }
}

TEST(DraftLengthControllerTest, DraftsThatSaveNoTimeCostAlmostNothing) {
  const auto always = [](double rate) { return [=](int) { return rate; }; };
  const auto flips = [](double rate) {
    return [=](int index) { return index / 50 % 2 == 0 ? rate : 0.0; };
  };
  const std::pair<const char*, Acceptance> kTexts[] = {{"never", always(0)},
                                                       {"seldom", always(0.2)},
                                                       {"often, then never", flips(0.5)},
                                                       {"always, then never", flips(0.97)}};
  for (const int num_requests : {1, 4, 16, 64}) {
    for (const double seconds_per_row : {0.0005, 0.0008, 0.0016}) {
      for (const double noise : {0.0, 0.1}) {
        for (const auto& [name, acceptance] : kTexts) {
          EXPECT_GT(SpeedOfRequests(num_requests, acceptance, seconds_per_row, noise), 0.98)
              << num_requests << " requests, accepted " << name << ", " << seconds_per_row
              << " s a row, noise " << noise;
        }
      }
    }
  }
}

TEST(DraftLengthControllerTest, TextsThatCopyForFiftyTokensAreStillFaster) {
  const Acceptance flips = [](int index) { return index / 50 % 2 == 0 ? 0.97 : 0.0; };
  EXPECT_GT(SpeedOfRequests(1, flips, 0.0005, 0.1), 1.3);
  EXPECT_GT(SpeedOfRequests(4, flips, 0.0005, 0.1), 1.1);
}

}  // namespace
}  // namespace forerun
