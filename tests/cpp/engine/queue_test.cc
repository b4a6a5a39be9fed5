// How many requests may wait, until when they may run, and what other threads do with the inbox.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpp/engine/inbox.h"
#include "cpp/kv/block_pool.h"
#include "forerun/error.h"
#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun {
namespace {

using Clock = std::chrono::steady_clock;
using testing::Greedy;

const std::vector<TokenId> kPrompt{1};

class QueueTest : public testing::CountingEngineTest {
 protected:
  static SubmitOptions Until(Clock::time_point deadline) { return {.deadline = deadline}; }
};

TEST_F(QueueTest, ARequestEndsAfterItsDeadlineWithWhatItHas) {
  config_.max_model_len = 1 << 20;
  config_.num_blocks = (1 << 20) / config_.block_size;
  testing::ScriptedExecutor executor(testing::kVocabSize, config_.num_blocks, config_.block_size,
                                     testing::CountingLogits);
  testing::ScriptedDrafter drafter(testing::RightToken);
  testing::TestEngine engine(config_, executor, &drafter);
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(20);
  const RequestId id = engine.Submit(kPrompt, Greedy(1 << 20), {}, Until(deadline));
  const auto results = testing::RunToEnd(engine);
  EXPECT_GE(Clock::now(), deadline);
  const testing::Finished& result = results.at(id);
  EXPECT_EQ(result.last.finish_reason, FinishReason::kDeadline);
  ASSERT_GT(result.tokens.size(), 0u);
  EXPECT_EQ(result.last.num_earlier_tokens, static_cast<int>(result.tokens.size()));
  TokenId last = kPrompt.back();
  for (TokenId token : result.tokens) {
    ASSERT_EQ(token, testing::Successor(last));
    last = token;
  }
  EXPECT_EQ(drafter.num_forgotten(), 1);
  EXPECT_EQ(engine.metrics().num_held_blocks, 0);
  const auto kDeadline = static_cast<std::size_t>(FinishReason::kDeadline);
  EXPECT_EQ(engine.metrics().num_finished_by_reason[kDeadline], 1);
}

TEST_F(QueueTest, RequestsOfAFailedStepCanBeCancelledApartFromLaterOnes) {
  config_.max_num_seqs = 1;
  config_.max_waiting_requests = 1;
  testing::TestEngine engine = MakeEngine();
  std::vector<RequestId> failed = {engine.Submit(kPrompt, Greedy(9)),
                                   engine.Submit(kPrompt, Greedy(9))};
  executor_.FailAfter(0);
  EXPECT_THROW(engine.Step(), std::runtime_error);
  EXPECT_THROW(engine.Submit(kPrompt, Greedy(9)), QueueFull);
  EXPECT_EQ(engine.CancelStarted(), failed.back() + 1);
  const RequestId later = engine.Submit(kPrompt, Greedy(9));
  const auto results = testing::RunToEnd(engine);
  for (const RequestId id : failed) {
    EXPECT_EQ(results.at(id).last.finish_reason, FinishReason::kAbort);
  }
  EXPECT_EQ(results.at(later).tokens.size(), 9u);
  EXPECT_EQ(engine.metrics().num_held_blocks, 0);
}

TEST_F(QueueTest, ARequestThatWaitsPastItsDeadlineEndsWithoutAToken) {
  config_.max_num_seqs = 1;
  testing::TestEngine engine = MakeEngine();
  const RequestId runs = engine.Submit(kPrompt, Greedy(9));
  engine.Step();
  const RequestId waits = engine.Submit(kPrompt, Greedy(9), {}, Until(Clock::now()));
  const RequestId has_time =
      engine.Submit(kPrompt, Greedy(9), {}, Until(Clock::now() + std::chrono::hours(1)));
  const auto updates = engine.Step();
  ASSERT_FALSE(updates.empty());
  EXPECT_EQ(updates[0].id, waits);
  EXPECT_EQ(updates[0].finish_reason, FinishReason::kDeadline);
  EXPECT_TRUE(updates[0].new_tokens.empty());
  const auto results = testing::RunToEnd(engine);
  EXPECT_EQ(results.at(runs).last.finish_reason, FinishReason::kLength);
  EXPECT_EQ(results.at(has_time).tokens.size(), 9u);
}

TEST_F(QueueTest, EachOfManyDeadlinesEndsItsOwnRequest) {
  testing::TestEngine engine = MakeEngine();
  std::vector<Clock::time_point> deadlines;
  for (int i = 0; i < 12; ++i) {
    deadlines.push_back(Clock::now() + std::chrono::milliseconds(5 * (i * 7 % 12)));
    engine.Submit(kPrompt, Greedy(20), {}, Until(deadlines.back()));
  }
  int num_overdue = 0;
  while (engine.HasUnfinished()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const Clock::time_point before = Clock::now();
    for (const RequestUpdate& update : engine.Step()) {
      const bool is_overdue = update.finish_reason == FinishReason::kDeadline;
      num_overdue += is_overdue;
      // What was overdue before the step got no token in it, and nothing else ended.
      EXPECT_TRUE(is_overdue || before < deadlines[update.id]) << update.id;
      EXPECT_TRUE(!is_overdue || Clock::now() >= deadlines[update.id]) << update.id;
    }
  }
  EXPECT_GT(num_overdue, 0);
}

TEST_F(QueueTest, AFullQueueRefusesUntilARequestFinishesOrIsCancelled) {
  config_.max_num_seqs = 2;
  config_.max_waiting_requests = 1;
  testing::TestEngine engine = MakeEngine();
  for (int i = 0; i < 3; ++i) engine.Submit(kPrompt, Greedy(4 + i));
  try {
    engine.Submit(kPrompt, Greedy(4));
    FAIL() << "it was taken";
  } catch (const QueueFull& full) {
    EXPECT_EQ(full.limit(), 1);
  }
  EXPECT_TRUE(engine.Cancel(0));
  EXPECT_TRUE(engine.Cancel(0));
  const RequestId taken = engine.Submit(kPrompt, Greedy(4));
  EXPECT_EQ(taken, 3u);  // what was refused had no id
  EXPECT_THROW(engine.Submit(kPrompt, Greedy(4)), QueueFull);
  testing::RunToEnd(engine);
  for (int i = 0; i < 3; ++i) engine.Submit(kPrompt, Greedy(4));
  EXPECT_THROW(engine.Submit(kPrompt, Greedy(4)), QueueFull);
  EXPECT_EQ(testing::RunToEnd(engine).size(), 3u);
}

TEST_F(QueueTest, RoomIsCheckedForSeveralRequests) {
  config_.max_num_seqs = 2;
  config_.max_waiting_requests = 2;
  testing::TestEngine engine = MakeEngine();
  engine.CheckRoom(4);
  EXPECT_THROW(engine.CheckRoom(5), InvalidArgument);
  engine.Submit(kPrompt, Greedy(4));
  engine.CheckRoom(3);
  EXPECT_THROW(engine.CheckRoom(4), QueueFull);
  config_.max_waiting_requests.reset();
  MakeEngine().CheckRoom(1 << 30);
}

TEST_F(QueueTest, ThreadsTogetherNeverExceedTheLimit) {
  config_.max_waiting_requests = 5;
  testing::TestEngine engine = MakeEngine();
  std::atomic<int> num_taken = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 10; ++j) {
        try {
          engine.Submit(kPrompt, Greedy(4));
          ++num_taken;
        } catch (const QueueFull&) {
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_taken, config_.max_num_seqs + 5);
  EXPECT_EQ(testing::RunToEnd(engine).size(), static_cast<std::size_t>(num_taken));
}

class InboxTest : public ::testing::Test {
 protected:
  RequestId Submit() {
    return inbox_.Submit([&](RequestId id) { return std::make_unique<Request>(id, pool_, 8); });
  }

  BlockPool pool_{4, 4, /*prefix_caching=*/false};
  Inbox inbox_{1, {}};
};

TEST_F(InboxTest, CancelStartedLeavesRequestsThatWereNotPassedOn) {
  EXPECT_EQ(inbox_.CancelStarted(), 0u);
  Submit();
  Submit();
  const auto take = [&](std::unique_ptr<Request>&& request) {
    const std::unique_ptr<Request> taken = std::move(request);
    if (taken->id == 1) Submit();
  };
  std::vector<RequestId> aborted;
  const auto abort = [&](std::span<const RequestId> ids) {
    aborted.assign(ids.begin(), ids.end());
  };
  inbox_.Take(take, abort);
  EXPECT_EQ(aborted, std::vector<RequestId>());
  EXPECT_TRUE(inbox_.Cancel(1));
  EXPECT_EQ(inbox_.CancelStarted(), 2u);
  inbox_.Take(take, abort);
  EXPECT_EQ(aborted, (std::vector<RequestId>{0, 1}));
  EXPECT_EQ(inbox_.CancelStarted(), 3u);
}

TEST_F(InboxTest, CancelStartedCountsARequestThatCannotBeAdded) {
  Submit();
  Submit();
  const auto fail = [](std::unique_ptr<Request>&&) { throw std::bad_alloc(); };
  const auto abort = [](std::span<const RequestId>) {};
  EXPECT_THROW(inbox_.Take(fail, abort), std::bad_alloc);
  EXPECT_EQ(inbox_.CancelStarted(), 1u);
}

TEST_F(InboxTest, CancelDoesNotWaitForARequestThatIsMade) {
  const RequestId first = Submit();
  inbox_.Submit([&](RequestId id) {
    std::thread([&] { EXPECT_TRUE(inbox_.Cancel(first)); }).join();
    return std::make_unique<Request>(id, pool_, 8);
  });
}

TEST_F(InboxTest, ACancellationIsPassedOnAfterItsRequest) {
  Submit();
  std::vector<std::string> calls;
  const auto add = [&](std::unique_ptr<Request>&& request) {
    const std::unique_ptr<Request> taken = std::move(request);
    calls.push_back("add " + std::to_string(taken->id));
    if (taken->id == 0) inbox_.Cancel(Submit());
  };
  const auto abort = [&](std::span<const RequestId> ids) {
    for (RequestId id : ids) calls.push_back("abort " + std::to_string(id));
  };
  inbox_.Take(add, abort);
  EXPECT_EQ(calls, std::vector<std::string>{"add 0"});
  inbox_.Take(add, abort);
  EXPECT_EQ(calls, (std::vector<std::string>{"add 0", "add 1", "abort 1"}));
}

}  // namespace
}  // namespace forerun
