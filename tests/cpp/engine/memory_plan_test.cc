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

}  // namespace
}  // namespace forerun
