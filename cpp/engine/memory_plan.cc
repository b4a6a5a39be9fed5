#include "cpp/engine/memory_plan.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <string>

#include "cpp/kv/slot_map.h"
#include "forerun/error.h"

namespace forerun {
namespace {

// By default the KV cache holds this many tokens for each request that may run, or one request of
// full length if that is more.
constexpr std::int64_t kTokensPerRequest = 1024;

// What the KV cache leaves of a GPU's free memory: for the rounding of allocations, and for what
// the driver takes when kernels first run.
constexpr std::int64_t kSpareShare = 64;

// Without max_model_len a request may be shorter than the model's limit, but not this short.
constexpr int kLeastModelLen = 2;

struct Room {
  std::int64_t num_blocks;
  // For an error: what limits it, its value, and what else there is to say.
  std::string field, value, rest;
};

MemoryPlan PlanFor(const EngineOptions& options, std::int64_t wanted_len, std::int64_t block_bytes,
                   const Room& room) {
  // A slot is an int.
  const std::int64_t most = std::numeric_limits<int>::max() / options.block_size;
  const std::int64_t num_blocks = std::min(room.num_blocks, most);
  const std::int64_t needed_len = options.max_model_len.value_or(kLeastModelLen);
  if (num_blocks < NumBlocksFor(needed_len, options.block_size)) {
    const std::int64_t needed_bytes = NumBlocksFor(needed_len, options.block_size) * block_bytes;
    throw InvalidArgument(room.field, room.value,
                          "at least " + std::to_string(needed_bytes) + " for one request of " +
                              std::to_string(needed_len) + " tokens, or a smaller max_model_len" +
                              room.rest);
  }
  const std::int64_t max_model_len = std::min(wanted_len, num_blocks * options.block_size);
  return {static_cast<int>(max_model_len), static_cast<int>(num_blocks)};
}

std::int64_t BufferBytes(std::int64_t num_rows, const MemoryNeeds& needs) {
  return num_rows * needs.row + needs.logits;
}

[[noreturn]] void ThrowTooManyRows(const EngineOptions& options, std::int64_t num_rows,
                                   std::int64_t buffer_bytes, const std::string& available) {
  const bool by_seqs = num_rows > options.max_num_batched_tokens;
  throw InvalidArgument(
      by_seqs ? "max_num_seqs" : "max_num_batched_tokens",
      std::to_string(by_seqs ? options.max_num_seqs : options.max_num_batched_tokens),
      "a number whose buffers fit: these take " + std::to_string(buffer_bytes) + " bytes, and " +
          available);
}

}  // namespace

int WantedModelLen(const EngineOptions& options, int model_max_len) {
  if (options.max_model_len && *options.max_model_len > model_max_len) {
    throw InvalidArgument(
        "max_model_len", std::to_string(*options.max_model_len),
        "at most " + std::to_string(model_max_len) + ", the model's max_position_embeddings");
  }
  return options.max_model_len.value_or(model_max_len);
}

int MostModelLen(const EngineOptions& options, int model_max_len, const MemoryNeeds& needs,
                 std::int64_t available_bytes) {
  const std::int64_t wanted = WantedModelLen(options, model_max_len);
  if (options.max_model_len) return static_cast<int>(wanted);
  const std::int64_t most = std::max<std::int64_t>(available_bytes / needs.block, 1);
  return static_cast<int>(std::min(wanted, most * options.block_size));
}

void CheckBuffers(const EngineOptions& options, std::int64_t num_rows, const MemoryNeeds& needs,
                  std::int64_t available_bytes) {
  const std::int64_t buffer_bytes = BufferBytes(num_rows, needs);
  if (buffer_bytes <= available_bytes) return;
  ThrowTooManyRows(options, num_rows, buffer_bytes,
                   std::to_string(available_bytes) + " are available");
}

void CheckGpuBuffers(const EngineOptions& options, std::int64_t num_rows, const MemoryNeeds& needs,
                     const MemorySize& size) {
  const std::int64_t buffer_bytes = BufferBytes(num_rows, needs);
  if (buffer_bytes <= size.free) return;
  ThrowTooManyRows(options, num_rows, buffer_bytes,
                   std::to_string(size.free) + " are free of the GPU's " +
                       std::to_string(size.total) + ", for weights too");
}

MemoryPlan PlanMemory(const EngineOptions& options, int model_max_len, std::int64_t num_rows,
                      const MemoryNeeds& needs, std::int64_t available_bytes) {
  const std::int64_t wanted_len = WantedModelLen(options, model_max_len);
  CheckBuffers(options, num_rows, needs, available_bytes);
  const std::int64_t spare_bytes =
      std::max<std::int64_t>(0, available_bytes - num_rows * needs.row - needs.weights);
  if (options.kv_cache_memory_bytes && *options.kv_cache_memory_bytes > available_bytes) {
    throw InvalidArgument(
        "kv_cache_memory_bytes", std::to_string(*options.kv_cache_memory_bytes),
        "at most the " + std::to_string(available_bytes) + " bytes of memory that are available");
  }
  const int block_size = options.block_size;
  std::int64_t num_blocks = 0;
  if (options.kv_cache_memory_bytes) {
    num_blocks = *options.kv_cache_memory_bytes / needs.block;
  } else {
    const std::int64_t num_tokens =
        std::max(wanted_len, options.max_num_seqs * std::min(kTokensPerRequest, wanted_len));
    const std::int64_t default_limit = std::min(spare_bytes, available_bytes / 2) / needs.block;
    num_blocks = std::min(NumBlocksFor(num_tokens, block_size), default_limit);
    // An explicit max_model_len may take more than the default.
    if (options.max_model_len) {
      num_blocks = std::max(
          num_blocks, std::min(NumBlocksFor(wanted_len, block_size), spare_bytes / needs.block));
    }
  }
  const bool asked = options.kv_cache_memory_bytes.has_value();
  return PlanFor(options, wanted_len, needs.block,
                 {num_blocks, "kv_cache_memory_bytes",
                  std::to_string(num_blocks * needs.block) + (asked ? "" : " available"), ""});
}

MemoryPlan PlanGpuMemory(const EngineOptions& options, int model_max_len, std::int64_t block_bytes,
                         std::int64_t used_bytes, const MemorySize& size) {
  const std::int64_t wanted_len = WantedModelLen(options, model_max_len);
  const std::int64_t most_free = size.free - size.free / kSpareShare;
  const std::string left =
      std::to_string(size.free) + " bytes are free of the GPU's " + std::to_string(size.total);
  if (options.kv_cache_memory_bytes) {
    const std::int64_t asked = *options.kv_cache_memory_bytes;
    if (asked > most_free) {
      throw InvalidArgument(
          "kv_cache_memory_bytes", std::to_string(asked),
          "at most " + std::to_string(most_free) + ", what weights and buffers leave: " + left);
    }
    return PlanFor(
        options, wanted_len, block_bytes,
        {asked / block_bytes, "kv_cache_memory_bytes", std::to_string(asked), ": " + left});
  }
  const double fraction = options.gpu_memory_utilization;
  std::ostringstream text;
  text << fraction;
  const auto allowed = static_cast<std::int64_t>(fraction * static_cast<double>(size.total));
  const std::int64_t room = std::max<std::int64_t>(0, std::min(allowed - used_bytes, most_free));
  const std::int64_t most = options.max_num_seqs * NumBlocksFor(wanted_len, options.block_size);
  return PlanFor(
      options, wanted_len, block_bytes,
      {std::min(room / block_bytes, most), "gpu_memory_utilization",
       text.str() + ", which leaves " + std::to_string(room) + " bytes for keys and values",
       ": weights and buffers take " + std::to_string(used_bytes) + " bytes, and " + left});
}

}  // namespace forerun
