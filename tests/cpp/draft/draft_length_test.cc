#include "cpp/draft/draft_length.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace forerun {
namespace {

Draft Chain(int length, float confidence) {
  Draft draft;
  for (int i = 0; i < length; ++i) draft.AppendToChain(i, confidence);
  return draft;
}

TEST(StepCostModelTest, FindsTheLineBehindNoisySteps) {
  StepCostModel cost;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> noise(0.97, 1.03);
  for (int i = 0; i < 500; ++i) {
    const int rows = 1 + i % 9;
    cost.Observe(rows, (0.010 + 0.001 * rows) * noise(random));
  }
  EXPECT_NEAR(cost.Seconds(1), 0.011, 0.0005);
  EXPECT_NEAR(cost.Seconds(9), 0.019, 0.0005);
}

TEST(StepCostModelTest, OneStalledStepMovesLittle) {
  StepCostModel cost;
  for (int i = 0; i < 200; ++i) cost.Observe(1 + i % 5, 0.010 + 0.001 * (1 + i % 5));
  const double before = cost.Seconds(5);
  cost.Observe(5, 10.0);
  EXPECT_LT(cost.Seconds(5), 1.15 * before);
}

TEST(StepCostModelTest, LongPlainDecodingKeepsTheSlope) {
  StepCostModel cost;
  for (int i = 0; i < 200; ++i) cost.Observe(1 + i % 5, 0.010 + 0.002 * (1 + i % 5));
  for (int i = 0; i < 2000; ++i) cost.Observe(1, 0.012);
  EXPECT_GT(cost.Seconds(9), 0.02);
}

// Plays requests whose drafts of length 8 are accepted node by node with a fixed probability.
class Play {
 public:
  explicit Play(double accept_probability) : accept_probability_(accept_probability) {}

  // Mean draft length over the last half of the steps.
  double Run(int num_steps, double seconds_per_row) {
    std::mt19937 random(3);
    std::bernoulli_distribution accept(accept_probability_);
    AcceptanceModel::Record record;
    double total = 0;
    for (int step = 0; step < num_steps; ++step) {
      Draft draft = Chain(8, 0.6f);
      const DraftLengthController::Candidate candidate{&draft, &record};
      controller_.Choose({&candidate, 1}, /*num_known_rows=*/1, /*num_emitting=*/1);
      if (step >= num_steps / 2) total += draft.size();
      int num_accepted = 0;
      while (num_accepted < draft.size() && accept(random)) ++num_accepted;
      controller_.ObserveVerdict(draft, num_accepted, record);
      controller_.ObserveStep(1 + draft.size(), 0.010 + seconds_per_row * draft.size());
    }
    return total / (num_steps - num_steps / 2);
  }

 private:
  const double accept_probability_;
  DraftLengthController controller_;
};

TEST(DraftLengthControllerTest, HopelessDraftsAreHardlyEverTried) {
  EXPECT_LT(Play(0.0).Run(2000, 0.001), 0.1);
}

TEST(DraftLengthControllerTest, CertainDraftsAreUsedWhole) {
  EXPECT_GT(Play(1.0).Run(400, 0.001), 7.9);
}

TEST(DraftLengthControllerTest, DearRowsShortenDrafts) {
  const double cheap = Play(0.7).Run(1000, 0.0002);
  const double dear = Play(0.7).Run(1000, 0.004);
  EXPECT_GT(cheap, dear + 1);
}

TEST(DraftLengthControllerTest, ARequestThatBecomesPredictableIsNoticed) {
  DraftLengthController controller;
  AcceptanceModel::Record steady;
  AcceptanceModel::Record changing;
  // Beside a request that always does well; returns how many nodes the changing one was given.
  const auto play = [&](int num_steps, bool accepted) {
    int total = 0;
    for (int step = 0; step < num_steps; ++step) {
      Draft good = Chain(4, 0.6f);
      Draft draft = Chain(4, 0.6f);
      const DraftLengthController::Candidate candidates[] = {{&good, &steady}, {&draft, &changing}};
      controller.Choose(candidates, 2, 2);
      total += draft.size();
      controller.ObserveVerdict(good, good.size(), steady);
      controller.ObserveVerdict(draft, accepted ? draft.size() : 0, changing);
      const int num_rows = 2 + good.size() + draft.size();
      controller.ObserveStep(num_rows, 0.010 + 0.001 * num_rows);
    }
    return total;
  };
  play(100, false);
  EXPECT_LT(play(100, false), 60);
  play(100, true);
  EXPECT_GT(play(50, true), 150);
}

TEST(DraftLengthControllerTest, ThePromisingRequestOfABatchGetsTheRows) {
  DraftLengthController controller;
  for (int i = 0; i < 50; ++i) controller.ObserveStep(1 + i % 9, 0.010 + 0.002 * (1 + i % 9));
  AcceptanceModel::Record good{.num_expected = 20, .num_accepted = 30};
  AcceptanceModel::Record bad{.num_expected = 20, .num_accepted = 0};
  Draft promising = Chain(6, 0.6f);
  Draft hopeless = Chain(6, 0.6f);
  const DraftLengthController::Candidate candidates[] = {{&hopeless, &bad}, {&promising, &good}};
  controller.Choose(candidates, 2, 2);
  EXPECT_GT(promising.size(), 0);
  EXPECT_EQ(hopeless.size(), 0);
}

}  // namespace
}  // namespace forerun
