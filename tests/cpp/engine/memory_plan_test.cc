#include "cpp/engine/memory_plan.h"

#include <gtest/gtest.h>

#include "forerun/error.h"

namespace forerun {
namespace {

constexpr std::int64_t kPlenty = std::int64_t{1} << 40;

EngineOptions Options() {
  EngineOptions options;
  options.block_size = 16;
  options.max_num_seqs = 4;
  return options;
}

std::string FieldOf(const EngineOptions& options, std::int64_t available) {
  try {
    PlanMemory(options, 8192, /*num_rows=*/100, {.block = 1000}, available);
  } catch (const InvalidArgument& error) {
    return error.field();
  }
  return "accepted";
}

TEST(MemoryPlanTest, TheModelsFullLengthFitsByDefault) {
  const MemoryPlan plan = PlanMemory(Options(), 8192, /*num_rows=*/100, {.block = 1000}, kPlenty);
  EXPECT_EQ(plan.max_model_len, 8192);
  EXPECT_EQ(plan.num_blocks, 512);
}

TEST(MemoryPlanTest, AllShortRequestsFitAtOnce) {
  EngineOptions options = Options();
  options.max_model_len = 100;
  EXPECT_EQ(PlanMemory(options, 8192, /*num_rows=*/100, {.block = 1000}, kPlenty).num_blocks, 25);
}

TEST(MemoryPlanTest, ASmallMachineShortensTheModelsLength) {
  const MemoryPlan plan = PlanMemory(Options(), 8192, /*num_rows=*/100, {.block = 1000}, 21'000);
  EXPECT_EQ(plan.num_blocks, 10);
  EXPECT_EQ(plan.max_model_len, 160);
}

TEST(MemoryPlanTest, OptionsThatContradictEachOtherAreRefused) {
  EngineOptions options = Options();
  options.max_model_len = 8193;
  EXPECT_EQ(FieldOf(options, kPlenty), "max_model_len");
  options.max_model_len = 161;
  options.kv_cache_memory_bytes = 10'999;
  EXPECT_EQ(FieldOf(options, kPlenty), "kv_cache_memory_bytes");
  options.max_model_len = 160;
  EXPECT_EQ(FieldOf(options, kPlenty), "accepted");
  options.kv_cache_memory_bytes.reset();
  EXPECT_EQ(FieldOf(options, 9'999), "kv_cache_memory_bytes");
}

TEST(MemoryPlanTest, AnExplicitLengthMayTakeAllMemoryThatWeightsAndBuffersLeave) {
  EngineOptions options = Options();
  options.max_model_len = 160;
  const MemoryNeeds needs = {.block = 1000, .row = 10, .weights = 4'000};
  EXPECT_EQ(PlanMemory(options, 8192, 100, needs, 15'000).num_blocks, 10);
  EXPECT_THROW(PlanMemory(options, 8192, 100, needs, 14'999), InvalidArgument);
  options.max_model_len.reset();
  EXPECT_EQ(PlanMemory(options, 8192, 100, needs, 15'000).num_blocks, 7) << "half of it";
  EXPECT_EQ(PlanMemory(options, 8192, 100, needs, 8'000).num_blocks, 3) << "what is left";
}

TEST(MemoryPlanTest, LogitsMustFitAndLeaveTheBlocksAsTheyAre) {
  EngineOptions options = Options();
  MemoryNeeds needs = {.block = 1000, .row = 10};
  const int num_blocks = PlanMemory(options, 8192, 100, needs, 20'000).num_blocks;
  needs.logits = 19'000;
  EXPECT_EQ(PlanMemory(options, 8192, 100, needs, 20'000).num_blocks, num_blocks);
  needs.logits = 19'001;
  EXPECT_THROW(PlanMemory(options, 8192, 100, needs, 20'000), InvalidArgument);
}

// The message of the error.
std::string Refusal(const EngineOptions& options, std::int64_t num_rows) {
  try {
    PlanMemory(options, 8192, num_rows, {.block = 1000, .row = 10, .weights = 0}, 1 << 20);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(MemoryPlanTest, MoreMemoryThanTheMachineHasIsRefusedWithBothNumbers) {
  EngineOptions options = Options();
  EXPECT_EQ(Refusal(options, 100), "accepted");
  options.kv_cache_memory_bytes = std::int64_t{100} << 30;
  EXPECT_EQ(Refusal(options, 100),
            "kv_cache_memory_bytes: got 107374182400; expected at most the 1048576 bytes of memory "
            "that are available");
  options.max_num_batched_tokens = 1 << 20;
  EXPECT_EQ(Refusal(options, options.max_num_batched_tokens),
            "max_num_batched_tokens: got 1048576; expected a number whose buffers fit: these take "
            "10485760 bytes, and 1048576 are available");
  options.max_num_batched_tokens = 1 << 10;
  options.max_num_seqs = 1 << 9;
  EXPECT_NE(Refusal(options, 1 << 19).find("max_num_seqs: got 512;"), std::string::npos);
}

// On a GPU of 100,000 bytes, of which 90,000 are free once 5,000 are used for weights and buffers.
MemoryPlan PlanOnGpu(const EngineOptions& options, std::int64_t free_bytes = 90'000) {
  return PlanGpuMemory(options, 8192, /*block_bytes=*/1000, /*used_bytes=*/5'000,
                       {.free = free_bytes, .total = 100'000});
}

std::string RefusalOnGpu(const EngineOptions& options, std::int64_t free_bytes = 90'000) {
  try {
    PlanOnGpu(options, free_bytes);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(MemoryPlanTest, OnAGpuTheCacheGetsWhatIsLeftOfTheFraction) {
  EngineOptions options = Options();
  options.gpu_memory_utilization = 0.5;
  EXPECT_EQ(PlanOnGpu(options).num_blocks, 45) << "50,000 bytes less those used";
  EXPECT_EQ(PlanOnGpu(options).max_model_len, 45 * 16);
  EXPECT_EQ(PlanOnGpu(options, 20'000).num_blocks, 19) << "what is free, but for a little";
  options.gpu_memory_utilization = 1.0;
  EXPECT_EQ(PlanOnGpu(options).num_blocks, 88);
}

TEST(MemoryPlanTest, OnAGpuTheCacheIsNoLargerThanRequestsCanFill) {
  EngineOptions options = Options();
  options.max_model_len = 33;
  EXPECT_EQ(PlanOnGpu(options).num_blocks, 4 * 3);
  options.kv_cache_memory_bytes = 30'500;
  EXPECT_EQ(PlanOnGpu(options).num_blocks, 30) << "but for what was asked for";
}

TEST(MemoryPlanTest, WithoutAnOptionNoLengthIsPreparedThatCouldNotFit) {
  EngineOptions options = Options();
  const MemoryNeeds needs = {.block = 1000};
  EXPECT_EQ(MostModelLen(options, 8192, needs, 50'000), 50 * options.block_size);
  EXPECT_EQ(MostModelLen(options, 8192, needs, 0), options.block_size);
  EXPECT_EQ(MostModelLen(options, 100, needs, 50'000), 100);
  options.max_model_len = 8000;
  EXPECT_EQ(MostModelLen(options, 8192, needs, 50'000), 8000)
      << "what is asked for is refused later";
}

TEST(MemoryPlanTest, OnAGpuWhatDoesNotFitIsRefusedWithTheNumbers) {
  EngineOptions options = Options();
  options.max_model_len = 161;
  options.gpu_memory_utilization = 0.125;
  EXPECT_EQ(RefusalOnGpu(options),
            "gpu_memory_utilization: got 0.125, which leaves 7500 bytes for keys and values; "
            "expected at least 11000 for one request of 161 tokens, or a smaller max_model_len: "
            "weights and buffers take 5000 bytes, and 90000 bytes are free of the GPU's 100000");
  options.gpu_memory_utilization = 0.04;
  EXPECT_NE(RefusalOnGpu(options).find("leaves 0 bytes"), std::string::npos);
  options.gpu_memory_utilization = 0.9;
  EXPECT_EQ(RefusalOnGpu(options), "accepted");
  EXPECT_NE(RefusalOnGpu(options, 9'000).find("9000 bytes are free"), std::string::npos);
  options.kv_cache_memory_bytes = 90'001;
  EXPECT_EQ(
      RefusalOnGpu(options),
      "kv_cache_memory_bytes: got 90001; expected at most 88594, what weights and buffers leave: "
      "90000 bytes are free of the GPU's 100000");
  options.kv_cache_memory_bytes = 10'999;
  EXPECT_EQ(RefusalOnGpu(options),
            "kv_cache_memory_bytes: got 10999; expected at least 11000 for one request of 161 "
            "tokens, or a smaller max_model_len: 90000 bytes are free of the GPU's 100000");
  options.kv_cache_memory_bytes = 88'594;
  EXPECT_EQ(RefusalOnGpu(options), "accepted");
  options.max_model_len = 8193;
  EXPECT_EQ(RefusalOnGpu(options).find("max_model_len: got 8193"), 0u);
}

}  // namespace
}  // namespace forerun
