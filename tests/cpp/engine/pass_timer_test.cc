// Where a device runs the forward pass while the host goes on, its own time counts: for what is
// drafted, in the metrics and in the trace.
#include "cpp/ops/pass_timer.h"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpp/util/hash.h"
#include "tests/cpp/testing/counting_engine.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun {
namespace {

using testing::Greedy;

// What the device of a test does, in order.
struct Device {
  std::vector<std::string> calls;
  int num_rows = 0;  // of the last forward pass
  std::function<double(int num_rows)> seconds;
};

class DeviceTimer : public PassTimer {
 public:
  explicit DeviceTimer(Device& device) : device_(device) {}

  void Start() override { device_.calls.push_back("start"); }
  void Stop() override { device_.calls.push_back("stop"); }
  double Seconds() override {
    device_.calls.push_back("seconds");
    return device_.seconds(device_.num_rows);
  }

 private:
  Device& device_;
};

class DeviceExecutor : public testing::ScriptedExecutor {
 public:
  DeviceExecutor(Device& device, int num_blocks, int block_size)
      : ScriptedExecutor(testing::kVocabSize, num_blocks, block_size, testing::CountingLogits),
        device_(device) {}

  ConstRows Forward(const ForwardBatch& batch) override {
    device_.calls.push_back("forward");
    device_.num_rows = static_cast<int>(batch.tokens.size());
    return ScriptedExecutor::Forward(batch);
  }

 private:
  Device& device_;
};

class DeviceVerifier : public HostVerifier {
 public:
  DeviceVerifier(Device& device, const VerifierLimits& limits)
      : HostVerifier(limits), device_(device) {}

  std::span<const Outcome> Finish() override {
    device_.calls.push_back("wait");
    return HostVerifier::Finish();
  }

 private:
  Device& device_;
};

// Runs a request of which half of the draft tokens are right.
EngineMetrics Generate(Device& device, int num_tokens) {
  EngineConfig config = testing::SmallConfig();
  config.max_model_len = 512;
  config.num_blocks = 128;
  config.adaptive = true;
  DeviceExecutor executor(device, config.num_blocks, config.block_size);
  testing::ScriptedDrafter drafter(
      [](std::span<const TokenId> text) {
        const bool is_right = HashCombine(7, text.size()) % 2 == 0;
        return is_right ? testing::RightToken(text) : testing::WrongToken(text);
      },
      /*confidence=*/0.5f);
  EngineCore engine(
      config, executor,
      std::make_unique<DeviceVerifier>(device, config.verifier_limits(testing::kVocabSize)),
      &drafter, std::make_unique<DeviceTimer>(device));
  engine.Submit(std::vector<TokenId>{1}, Greedy(num_tokens));
  while (engine.HasUnfinished()) engine.Step();
  return engine.metrics();
}

TEST(PassTimerTest, ThePassIsTimedAloneAndAskedForAfterTheWait) {
  Device device;
  device.seconds = [](int) { return 0.001; };
  Generate(device, /*num_tokens=*/1);
  EXPECT_EQ(device.calls,
            (std::vector<std::string>{"start", "forward", "stop", "wait", "seconds"}));
}

TEST(PassTimerTest, WhereRowsAreDearLessIsDrafted) {
  const auto num_drafted = [](const std::function<double(int num_rows)>& seconds) {
    Device device;
    device.seconds = seconds;
    return Generate(device, 400).spec_decode.num_draft_tokens;
  };
  const std::int64_t where_free = num_drafted([](int) { return 0.01; });
  const std::int64_t where_dear =
      num_drafted([](int num_rows) { return 0.01 * num_rows * num_rows; });
  EXPECT_GT(where_free, 200);
  EXPECT_LT(where_dear, where_free / 2) << where_free;
}

TEST(PassTimerTest, MetricsHaveTheDevicesTimeAndNoMoreThanTheStep) {
  Device device;
  device.seconds = [](int) { return 0.0; };
  EngineMetrics metrics = Generate(device, 40);
  EXPECT_EQ(metrics.model_seconds, 0.0);
  EXPECT_GT(metrics.verify_seconds, 0.0);
  device.seconds = [](int) { return 1e6; };
  metrics = Generate(device, 40);
  EXPECT_GT(metrics.model_seconds, 0.0);
  EXPECT_LT(metrics.model_seconds, 1e6);
  EXPECT_GE(metrics.verify_seconds, 0.0);
  EXPECT_GE(metrics.other_seconds, 0.0);
}

}  // namespace
}  // namespace forerun
