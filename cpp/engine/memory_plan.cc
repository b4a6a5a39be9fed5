#include "cpp/engine/memory_plan.h"

#include <algorithm>
#include <string>

#include "forerun/error.h"

namespace forerun {
namespace {

// Without a wish, the cache holds this many tokens for each request that may run, or one request of
// full length.
constexpr std::int64_t kTokensPerRequest = 1024;

std::int64_t BlocksFor(std::int64_t num_tokens, int block_size) {
  return (num_tokens + block_size - 1) / block_size;
}

}  // namespace

MemoryPlan PlanMemory(const EngineOptions& options, int model_max_len, std::int64_t block_bytes,
                      std::int64_t available_bytes) {
  if (options.max_model_len && *options.max_model_len > model_max_len) {
    throw InvalidArgument(
        "max_model_len", std::to_string(*options.max_model_len),
        "at most " + std::to_string(model_max_len) + ", the model's max_position_embeddings");
  }
  const int block_size = options.block_size;
  const std::int64_t wanted_len = options.max_model_len.value_or(model_max_len);
  std::int64_t num_blocks = 0;
  if (options.kv_cache_memory_bytes) {
    num_blocks = *options.kv_cache_memory_bytes / block_bytes;
  } else {
    const std::int64_t num_tokens = std::max(
        wanted_len,
        std::min(options.max_num_seqs * kTokensPerRequest, options.max_num_seqs * wanted_len));
    num_blocks = std::min(BlocksFor(num_tokens, block_size), available_bytes / block_bytes);
  }
  num_blocks = std::min<std::int64_t>(num_blocks, 1 << 30);
  const std::int64_t needed_len = options.max_model_len.value_or(2);
  if (num_blocks < BlocksFor(needed_len, block_size)) {
    const std::int64_t needed_bytes = BlocksFor(needed_len, block_size) * block_bytes;
    const bool asked = options.kv_cache_memory_bytes.has_value();
    throw InvalidArgument("kv_cache_memory_bytes",
                          std::to_string(num_blocks * block_bytes) + (asked ? "" : " available"),
                          "at least " + std::to_string(needed_bytes) + " for one request of " +
                              std::to_string(needed_len) + " tokens, or a smaller max_model_len");
  }
  const std::int64_t max_model_len = std::min(wanted_len, num_blocks * block_size);
  return {static_cast<int>(max_model_len), static_cast<int>(num_blocks)};
}

}  // namespace forerun
