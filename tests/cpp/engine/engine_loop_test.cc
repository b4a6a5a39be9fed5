// The thread that steps an engine: wakes, cancellations, failures, and its end.
#include "forerun/engine_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace forerun {
namespace {

// Every request has one token a step, its number of earlier tokens, and `kLength` of them. A step
// throws while `num_failures` is above 0.
class CountingEngine : public Engine {
 public:
  static constexpr int kLength = 50;

  RequestId Submit(std::span<const TokenId>, const SamplingParams&, RequestHooks,
                   const SubmitOptions&) override {
    const std::lock_guard lock(mutex_);
    lengths_[next_id_] = 0;
    return next_id_++;
  }
  void CheckRoom(int) const override {}
  bool Cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    return lengths_.erase(id) > 0;
  }
  RequestId CancelStarted() noexcept override { return 0; }
  bool HasUnfinished() const override {
    const std::lock_guard lock(mutex_);
    return !lengths_.empty();
  }
  std::span<const RequestUpdate> Step() override {
    const std::lock_guard lock(mutex_);
    ++num_steps;
    if (num_failures > 0) {
      --num_failures;
      throw std::runtime_error("on purpose");
    }
    updates_.clear();
    for (auto& [id, length] : lengths_) {
      updates_.push_back({.id = id, .num_earlier_tokens = length++});
      if (length == kLength) updates_.back().finish_reason = FinishReason::kLength;
    }
    std::erase_if(lengths_, [](const auto& pair) { return pair.second == kLength; });
    return updates_;
  }

  void SetTokenBytes(std::vector<std::string>, std::vector<TokenId>) override {}
  void AddEosTokens(const std::vector<TokenId>&) override {}
  void ResetCaches() override {}
  bool RestoreOutputs(std::span<const PastOutput>, bool) override { return false; }
  bool ResetPrefixCache() override { return false; }
  bool StartTrace(const std::string&) override { return false; }
  void StopTrace() override {}
  EngineMetrics metrics() const override { return {}; }
  const ModelLimits& limits() const override { return limits_; }

  std::atomic<int> num_steps = 0;
  std::atomic<int> num_failures = 0;

 private:
  mutable std::mutex mutex_;
  std::map<RequestId, int> lengths_;
  RequestId next_id_ = 0;
  std::vector<RequestUpdate> updates_;
  ModelLimits limits_;
};

class Recorder : public EngineLoop::Listener {
 public:
  void OnUpdates(std::span<const RequestUpdate> updates) override {
    const std::lock_guard lock(mutex_);
    for (const RequestUpdate& update : updates) {
      EXPECT_EQ(update.num_earlier_tokens, num_tokens_[update.id]++);
      if (update.finish_reason != FinishReason::kNone) ++num_finished_;
    }
    changed_.notify_all();
  }
  void OnFailure(std::exception_ptr error) noexcept override {
    const std::lock_guard lock(mutex_);
    EXPECT_THROW(std::rethrow_exception(error), std::runtime_error);
    ++num_failures_;
    changed_.notify_all();
  }

  void WaitForFinished(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_finished_ >= count; });
  }
  void WaitForFailures(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_failures_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, int> num_tokens_;
  int num_finished_ = 0;
  int num_failures_ = 0;
};

class EngineLoopTest : public ::testing::Test {
 protected:
  RequestId Submit() { return engine_.Submit({}, {}, {}, {}); }

  CountingEngine engine_;
  Recorder recorder_;
};

TEST_F(EngineLoopTest, EveryUpdateReachesTheListenerInOrder) {
  EngineLoop loop(engine_, recorder_);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 20; ++j) {
        Submit();
        loop.Wake();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  recorder_.WaitForFinished(80);
  EXPECT_FALSE(engine_.HasUnfinished());
}

TEST_F(EngineLoopTest, ItTakesNoStepWithoutARequest) {
  EngineLoop loop(engine_, recorder_);
  loop.Wake();
  Submit();
  loop.Wake();
  recorder_.WaitForFinished(1);
  loop.Wake();
  loop.Cancel({});
  loop.Stop();
  EXPECT_EQ(engine_.num_steps, CountingEngine::kLength);
}

TEST_F(EngineLoopTest, AFailedStepIsTriedAgainOnlyWhenTheLoopIsWoken) {
  engine_.num_failures = 2;
  Submit();
  EngineLoop loop(engine_, recorder_);
  recorder_.WaitForFailures(1);
  EXPECT_EQ(engine_.num_steps, 1);
  loop.Wake();
  recorder_.WaitForFailures(2);
  EXPECT_EQ(engine_.num_steps, 2);
  loop.Wake();
  recorder_.WaitForFinished(1);
}

TEST_F(EngineLoopTest, CancelledRequestsAreNotTriedAgain) {
  engine_.num_failures = 1;
  const std::vector<RequestId> ids = {Submit(), Submit(), Submit()};
  EngineLoop loop(engine_, recorder_);
  recorder_.WaitForFailures(1);
  loop.Cancel(ids);
  EXPECT_FALSE(engine_.HasUnfinished());
  loop.Stop();
  EXPECT_EQ(engine_.num_steps, 1);
}

TEST_F(EngineLoopTest, StopLeavesUnfinishedRequests) {
  EngineLoop loop(engine_, recorder_);
  for (int i = 0; i < 100; ++i) {
    loop.Wake();
    Submit();
  }
  loop.Stop();
  loop.Stop();
  const int num_steps = engine_.num_steps;
  Submit();
  loop.Wake();
  EXPECT_TRUE(engine_.HasUnfinished());
  EXPECT_EQ(engine_.num_steps, num_steps);
  EXPECT_FALSE(loop.IsCurrentThread());
}

}  // namespace
}  // namespace forerun
