#include "cpp/model/scorer.h"

#include <algorithm>
#include <numeric>

#include "cpp/kv/slot_map.h"
#include "cpp/model/model_files.h"
#include "forerun/error.h"

namespace forerun {
namespace {

constexpr int kBlockSize = 16;
constexpr int kDefaultMaxLen = 4096;
constexpr int kDefaultChunk = 256;
constexpr int kMaxChunk = 1024;

}  // namespace

int CheckThreads(int num_threads) {
  if (num_threads < 0 || num_threads > 1024) {
    throw InvalidArgument("num_threads", std::to_string(num_threads), "0 to 1024");
  }
  return num_threads;
}

int ResolveMaxLen(const ScorerOptions& options, const ModelSpec& spec) {
  const int length = options.max_model_len.value_or(std::min(spec.max_position, kDefaultMaxLen));
  if (length < 1 || length > spec.max_position) {
    throw InvalidArgument("max_model_len", std::to_string(length),
                          "1 to " + std::to_string(spec.max_position) + ", the model's limit");
  }
  return length;
}

Scorer::Scorer(const ScorerOptions& options)
    : backend_(CheckThreads(options.num_threads), options.isa) {
  ModelFiles files(options.model, options.dtype, options.quantization);
  dtype_ = files.dtype;
  max_model_len_ = ResolveMaxLen(options, files.spec);
  TransformerLimits limits;
  limits.max_rows = std::min(max_model_len_, kMaxChunk);
  limits.max_logits_rows = limits.max_rows;
  limits.max_model_len = max_model_len_;
  limits.block_size = kBlockSize;
  limits.num_blocks = NumBlocksFor(max_model_len_, kBlockSize);
  limits.kv_dtype = files.KvDType(options.kv_cache_dtype);
  transformer_ = files.Load(ops_, limits);
  blocks_.resize(limits.num_blocks);
  std::iota(blocks_.begin(), blocks_.end(), 0);
}

void Scorer::CheckTokens(std::span<const TokenId> tokens, std::span<const int> chunks) const {
  if (tokens.empty() || tokens.size() > static_cast<std::size_t>(max_model_len_)) {
    throw InvalidArgument("token_ids", std::to_string(tokens.size()) + " tokens",
                          "1 to max_model_len = " + std::to_string(max_model_len_));
  }
  for (TokenId token : tokens) {
    if (token < 0 || token >= vocab_size()) {
      throw InvalidArgument("token_ids", std::to_string(token),
                            "ids from 0 to " + std::to_string(vocab_size() - 1));
    }
  }
  if (chunks.empty()) return;
  std::int64_t sum = 0;
  for (int chunk : chunks) {
    if (chunk < 1) throw InvalidArgument("chunks", std::to_string(chunk), "sizes of at least 1");
    sum += chunk;
  }
  if (sum != static_cast<std::int64_t>(tokens.size())) {
    throw InvalidArgument("chunks", "sizes that add up to " + std::to_string(sum),
                          std::to_string(tokens.size()) + ", the number of tokens");
  }
}

void Scorer::ComputeLogits(std::span<const TokenId> tokens, std::span<const int> chunks, Rows out) {
  const int num_tokens = static_cast<int>(tokens.size());
  int num_context = 0;
  const auto run_until = [&](int end, int most_rows) {
    while (num_context < end) {
      const int num_rows = std::min(most_rows, end - num_context);
      RunChunk(tokens, num_context, num_rows, out);
      num_context += num_rows;
    }
  };
  for (int chunk : chunks) run_until(num_context + chunk, kMaxChunk);
  run_until(num_tokens, kDefaultChunk);
}

void Scorer::RunChunk(std::span<const TokenId> tokens, int num_context, int num_rows, Rows out) {
  const SequenceRows sequence = {0, num_rows, num_context, blocks_};
  rows_.resize(num_rows);
  std::iota(rows_.begin(), rows_.end(), 0);
  const ConstRows logits = transformer_->Forward(
      {tokens.subspan(num_context, num_rows), std::span(&sequence, 1), rows_});
  for (int r = 0; r < num_rows; ++r) {
    backend_.memory().Download(out.row(num_context + r), logits.row(r),
                               sizeof(float) * logits.cols);
  }
}

}  // namespace forerun
