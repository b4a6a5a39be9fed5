#include "cpp/sched/scheduler.h"

#include <gtest/gtest.h>

namespace forerun {
namespace {

std::unique_ptr<Request> MakeRequest(RequestId id, BlockPool& pool, int num_tokens) {
  auto request = std::make_unique<Request>(id, pool, /*max_tokens=*/64);
  // Tokens of different requests differ, so that nothing is shared by accident.
  for (int i = 0; i < num_tokens; ++i) {
    request->tokens.push_back(static_cast<TokenId>(1000 * id + i));
  }
  request->num_prompt_tokens = num_tokens;
  return request;
}

// Runs the plan as an executor that always emits one token.
void Execute(const StepPlan& plan) {
  for (const PlannedRequest& planned : plan.requests) {
    Request& request = *planned.request;
    const int num_committed = request.table.num_committed();
    request.table.Commit(std::span(request.tokens).subspan(num_committed, planned.num_pending));
    if (planned.samples) request.tokens.push_back(7);
    request.draft.Clear();
  }
}

TEST(RequestTest, EveryPromptTokenButTheFirstIsScored) {
  BlockPool pool(/*num_blocks=*/8, /*block_size=*/4, /*enable_prefix_caching=*/true);
  const std::unique_ptr<Request> request = MakeRequest(0, pool, 3);
  EXPECT_FALSE(request->scores_prompt()) << "not asked for";
  request->params.prompt_logprobs = 0;
  for (int num_scored : {0, 1, 2}) {
    request->num_scored_rows = num_scored;
    EXPECT_EQ(request->scores_prompt(), num_scored < 2) << num_scored;
    EXPECT_EQ(request->num_rows_to_score(9), 2 - num_scored);
  }
}

class SchedulerTest : public ::testing::Test {
 protected:
  BlockPool pool_{/*num_blocks=*/8, /*block_size=*/4, /*enable_prefix_caching=*/true};
  Scheduler scheduler_{{.max_num_seqs = 3, .max_num_batched_tokens = 10}, pool_};
  StepPlan plan_;
};

TEST_F(SchedulerTest, ALongPromptIsChunkedAndEmitsOnlyWithItsLastChunk) {
  scheduler_.Add(MakeRequest(0, pool_, 23));
  std::vector<int> chunks;
  std::vector<bool> samples;
  for (int step = 0; step < 3; ++step) {
    scheduler_.Plan(plan_);
    ASSERT_EQ(plan_.requests.size(), 1u);
    chunks.push_back(plan_.requests[0].num_pending);
    samples.push_back(plan_.requests[0].samples);
    Execute(plan_);
  }
  EXPECT_EQ(chunks, (std::vector<int>{10, 10, 3}));
  EXPECT_EQ(samples, (std::vector<bool>{false, false, true}));
}

TEST_F(SchedulerTest, RunningRequestsAreServedBeforeNewOnesWithinTheBudget) {
  scheduler_.Add(MakeRequest(0, pool_, 4));
  scheduler_.Plan(plan_);
  Execute(plan_);
  scheduler_.Add(MakeRequest(1, pool_, 20));
  scheduler_.Plan(plan_);
  ASSERT_EQ(plan_.requests.size(), 2u);
  EXPECT_EQ(plan_.requests[0].request->id, 0u);
  EXPECT_EQ(plan_.requests[0].num_pending, 1);
  EXPECT_EQ(plan_.requests[1].num_pending, 9);
  EXPECT_EQ(plan_.num_rows, 10);
}

TEST_F(SchedulerTest, NoMoreThanMaxNumSeqsRun) {
  for (RequestId id = 0; id < 5; ++id) scheduler_.Add(MakeRequest(id, pool_, 1));
  scheduler_.Plan(plan_);
  EXPECT_EQ(plan_.requests.size(), 3u);
  EXPECT_EQ(scheduler_.waiting().size(), 2u);
}

TEST_F(SchedulerTest, ADraftIsDroppedBeforeARequestIsPreempted) {
  scheduler_.Add(MakeRequest(0, pool_, 8));
  scheduler_.Plan(plan_);
  Execute(plan_);
  auto filler = MakeRequest(9, pool_, 20);
  ASSERT_TRUE(filler->table.Reserve(20));  // leaves one block
  Request& request = *scheduler_.running()[0];
  for (TokenId token = 0; token < 6; ++token) request.draft.AppendToChain(token, 0.5f);
  scheduler_.Plan(plan_);
  ASSERT_EQ(plan_.requests.size(), 1u);
  EXPECT_EQ(plan_.requests[0].num_draft, 0);
  EXPECT_EQ(plan_.num_preempted, 0);
}

TEST_F(SchedulerTest, TheLatestArrivalIsPreemptedAndAdmittedAgainFirst) {
  scheduler_.Add(MakeRequest(0, pool_, 4));
  scheduler_.Plan(plan_);
  Execute(plan_);
  scheduler_.Add(MakeRequest(1, pool_, 4));
  scheduler_.Plan(plan_);
  Execute(plan_);
  scheduler_.Add(MakeRequest(2, pool_, 9));
  // Both grow until the pool of eight blocks is full.
  bool preempted = false;
  for (int step = 0; step < 40 && !preempted; ++step) {
    scheduler_.Plan(plan_);
    preempted = plan_.num_preempted > 0;
    if (!preempted) Execute(plan_);
  }
  ASSERT_TRUE(preempted);
  ASSERT_FALSE(scheduler_.waiting().empty());
  EXPECT_TRUE(scheduler_.waiting().front()->table.blocks().empty());
  EXPECT_EQ(scheduler_.running()[0]->id, 0u);
  EXPECT_LT(scheduler_.waiting().front()->id, 3u);
  EXPECT_GE(scheduler_.waiting().front()->metrics.num_preemptions, 1);
}

TEST_F(SchedulerTest, LowerPrioritiesRunFirstAndEqualOnesInOrderOfArrival) {
  const int priorities[] = {5, 0, 5, -1, 0};
  for (RequestId id = 0; id < 5; ++id) {
    auto request = MakeRequest(id, pool_, 1);
    request->priority = priorities[id];
    scheduler_.Add(std::move(request));
  }
  scheduler_.Plan(plan_);
  std::vector<RequestId> ids;
  for (const PlannedRequest& planned : plan_.requests) ids.push_back(planned.request->id);
  EXPECT_EQ(ids, (std::vector<RequestId>{3, 1, 4}));
  EXPECT_EQ(scheduler_.waiting().front()->id, 0u);
}

TEST_F(SchedulerTest, TheHighestPriorityValueIsPreemptedFirstEvenIfItArrivedFirst) {
  for (RequestId id = 0; id < 3; ++id) {
    auto request = MakeRequest(id, pool_, 4);
    request->priority = id == 0 ? 3 : 1;
    scheduler_.Add(std::move(request));
    scheduler_.Plan(plan_);
    Execute(plan_);
  }
  ASSERT_EQ(scheduler_.running().size(), 3u);
  for (int step = 0; step < 40 && scheduler_.waiting().empty(); ++step) {
    scheduler_.Plan(plan_);
    Execute(plan_);
  }
  ASSERT_EQ(scheduler_.waiting().size(), 1u);
  EXPECT_EQ(scheduler_.waiting().front()->id, 0u);
  EXPECT_EQ(scheduler_.running()[0]->id, 1u);
}

TEST_F(SchedulerTest, APromptWaitsForAnEqualOneOnlyUnderTheSameSalt) {
  const auto add = [&](RequestId id, const std::string& salt) {
    auto request = MakeRequest(id, pool_, 0);
    for (int i = 0; i < 6; ++i) request->tokens.push_back(i);
    request->num_prompt_tokens = 6;
    request->table.SetRoot(pool_.RootOf(salt));
    scheduler_.Add(std::move(request));
  };
  add(0, "a");
  add(1, "b");
  add(2, "a");
  scheduler_.Plan(plan_);
  EXPECT_EQ(plan_.requests.size(), 2u);
  EXPECT_EQ(scheduler_.waiting().front()->id, 2u);
}

TEST_F(SchedulerTest, AbandonGivesBackWhatThePlanReserved) {
  scheduler_.Add(MakeRequest(0, pool_, 9));
  scheduler_.Plan(plan_);
  EXPECT_EQ(pool_.num_held(), 3);
  scheduler_.Abandon();
  EXPECT_EQ(pool_.num_held(), 0);
  scheduler_.Plan(plan_);
  EXPECT_EQ(plan_.requests.size(), 1u);
}

TEST_F(SchedulerTest, AbandonGivesBackWhatDraftingReserved) {
  scheduler_.Add(MakeRequest(0, pool_, 4));
  scheduler_.Plan(plan_);
  Execute(plan_);
  Request& request = *scheduler_.Find(0);
  EXPECT_EQ(pool_.num_held(), 1);
  ASSERT_TRUE(request.table.Reserve(9));
  request.draft.AppendToChain(7, 0.5f);
  EXPECT_EQ(pool_.num_held(), 4);
  scheduler_.Abandon();
  EXPECT_EQ(pool_.num_held(), 1);
  EXPECT_TRUE(request.draft.empty());
}

TEST_F(SchedulerTest, ThePlansDebugStringHasALineForEachRequest) {
  scheduler_.Add(MakeRequest(0, pool_, 4));
  scheduler_.Plan(plan_);
  Execute(plan_);
  for (TokenId token : {1, 2, 3}) scheduler_.Find(0)->draft.AppendToChain(token, 0.5f);
  scheduler_.Add(MakeRequest(1, pool_, 20));
  scheduler_.Find(1)->params.prompt_logprobs = 0;
  scheduler_.Plan(plan_);
  EXPECT_EQ(DebugString(plan_),
            "2 requests, 10 rows, 0 preempted\n"
            "request 0: 4 committed, 1 pending, 3 of 3 draft tokens, samples\n"
            "request 1: 0 committed, 6 pending, 0 of 0 draft tokens, 6 scored");
}

TEST_F(SchedulerTest, ACandidateWaitsUntilAllItsTokensFit) {
  scheduler_.Add(MakeRequest(0, pool_, 20));  // five blocks
  scheduler_.Plan(plan_);
  Execute(plan_);
  scheduler_.Plan(plan_);
  Execute(plan_);
  scheduler_.Add(MakeRequest(1, pool_, 16));  // four blocks, three are left
  scheduler_.Plan(plan_);
  EXPECT_EQ(plan_.requests.size(), 1u);
  scheduler_.Abandon();
  scheduler_.Remove(scheduler_.Find(0));
  scheduler_.Plan(plan_);
  ASSERT_EQ(plan_.requests.size(), 1u);
  EXPECT_EQ(plan_.requests[0].request->id, 1u);
}

}  // namespace
}  // namespace forerun
