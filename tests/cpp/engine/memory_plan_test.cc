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
    PlanMemory(options, 8192, 1000, available);
  } catch (const InvalidArgument& error) {
    return error.field();
  }
  return "accepted";
}

TEST(MemoryPlanTest, WithoutWishesTheModelsFullLengthFits) {
  const MemoryPlan plan = PlanMemory(Options(), 8192, 1000, kPlenty);
  EXPECT_EQ(plan.max_model_len, 8192);
  EXPECT_EQ(plan.num_blocks, 512);
}

TEST(MemoryPlanTest, ShortRequestsGetRoomForAllOfThem) {
  EngineOptions options = Options();
  options.max_model_len = 100;
  EXPECT_EQ(PlanMemory(options, 8192, 1000, kPlenty).num_blocks, 25);
}

TEST(MemoryPlanTest, ASmallMachineShortensTheModelsLength) {
  const MemoryPlan plan = PlanMemory(Options(), 8192, 1000, 10'500);
  EXPECT_EQ(plan.num_blocks, 10);
  EXPECT_EQ(plan.max_model_len, 160);
}

TEST(MemoryPlanTest, WishesThatContradictEachOtherAreRefused) {
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

}  // namespace
}  // namespace forerun
