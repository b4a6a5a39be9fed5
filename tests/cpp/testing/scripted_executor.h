// A model without weights: the logits of a row are a pure function of the tokens it can see,
// read back through the block table from a paged store of its own. A lost, stale or misplaced slot
// changes the output.
#ifndef FORERUN_TESTS_CPP_TESTING_SCRIPTED_EXECUTOR_H_
#define FORERUN_TESTS_CPP_TESTING_SCRIPTED_EXECUTOR_H_

#include <algorithm>
#include <functional>
#include <span>
#include <stdexcept>
#include <vector>

#include "cpp/model/executor.h"
#include "cpp/util/check.h"
#include "cpp/util/hash.h"

namespace forerun::testing {

// Mostly a function of the last two tokens, so that texts repeat themselves and drafts are
// accepted; sometimes of all.
inline std::vector<float> HashLogits(std::span<const TokenId> prefix, int vocab_size) {
  std::uint64_t all = 1;
  for (TokenId token : prefix) all = HashCombine(all, static_cast<std::uint64_t>(token));
  std::uint64_t state = all;
  if (all % 4 != 0) {
    state = 2;
    for (TokenId token : prefix.last(std::min<std::size_t>(2, prefix.size()))) {
      state = HashCombine(state, static_cast<std::uint64_t>(token));
    }
  }
  std::vector<float> logits(vocab_size);
  for (int token = 0; token < vocab_size; ++token) {
    const std::uint64_t bits = HashCombine(state, static_cast<std::uint64_t>(token));
    // Few levels, so that exact ties occur and their rule is tested.
    logits[token] = static_cast<float>(bits % 32) / 4.0f;
  }
  return logits;
}

class ScriptedExecutor : public ModelExecutor {
 public:
  using LogitsOf = std::function<std::vector<float>(std::span<const TokenId> prefix)>;

  ScriptedExecutor(int vocab_size, int num_blocks, int block_size, LogitsOf logits_of)
      : vocab_size_(vocab_size),
        block_size_(block_size),
        logits_of_(std::move(logits_of)),
        slots_(static_cast<std::size_t>(num_blocks) * block_size, -1) {}

  ScriptedExecutor(int vocab_size, int num_blocks, int block_size)
      : ScriptedExecutor(vocab_size, num_blocks, block_size,
                         [vocab_size](auto prefix) { return HashLogits(prefix, vocab_size); }) {}

  int vocab_size() const override { return vocab_size_; }

  ConstRows Forward(const ForwardBatch& batch) override {
    MaybeFail();
    for (const SequenceRows& sequence : batch.sequences) {
      FORERUN_CHECK(sequence.IsTreeSound());
      num_trees_ += sequence.tree.parents.empty() ? 0 : 1;
      for (int row = 0; row < sequence.num_rows; ++row) {
        Slot(sequence, sequence.num_context + row) = batch.tokens[sequence.row_begin + row];
      }
    }
    logits_.clear();
    for (std::int32_t row : batch.logits_rows) AppendLogits(batch, row);
    max_rows_seen_ = std::max(max_rows_seen_, static_cast<int>(batch.tokens.size()));
    max_logits_rows_seen_ =
        std::max(max_logits_rows_seen_, static_cast<int>(batch.logits_rows.size()));
    return {logits_.data(), static_cast<int>(batch.logits_rows.size()), vocab_size_};
  }

  void MoveKv(std::span<const KvMove> moves) override {
    MaybeFail();
    for (const KvMove& move : moves) slots_.at(move.to) = slots_.at(move.from);
    num_moved_ += static_cast<int>(moves.size());
  }

  // Forward passes and moves count as calls.
  void FailAfter(int num_calls) { num_calls_before_failure_ = num_calls; }
  int max_rows_seen() const { return max_rows_seen_; }
  int max_logits_rows_seen() const { return max_logits_rows_seen_; }
  int num_moved() const { return num_moved_; }
  int num_trees() const { return num_trees_; }

 private:
  void MaybeFail() {
    if (num_calls_before_failure_ >= 0 && num_calls_before_failure_-- == 0) {
      throw std::runtime_error("scripted failure");
    }
  }

  TokenId& Slot(const SequenceRows& sequence, int slot) {
    const BlockId block = sequence.block_table[slot / block_size_];
    return slots_[static_cast<std::size_t>(block) * block_size_ + slot % block_size_];
  }

  void AppendLogits(const ForwardBatch& batch, int row) {
    for (const SequenceRows& sequence : batch.sequences) {
      if (row < sequence.row_begin || row >= sequence.row_begin + sequence.num_rows) continue;
      std::vector<TokenId> prefix;
      int slot = sequence.num_context + row - sequence.row_begin;
      for (; slot >= 0; slot = sequence.SlotBefore(slot)) prefix.push_back(Slot(sequence, slot));
      std::ranges::reverse(prefix);
      const std::vector<float> logits = logits_of_(prefix);
      logits_.insert(logits_.end(), logits.begin(), logits.end());
    }
  }

  const int vocab_size_;
  const int block_size_;
  const LogitsOf logits_of_;
  std::vector<TokenId> slots_;  // [num_blocks, block_size]
  std::vector<float> logits_;
  int num_calls_before_failure_ = -1;
  int max_rows_seen_ = 0;
  int max_logits_rows_seen_ = 0;
  int num_moved_ = 0;
  int num_trees_ = 0;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_SCRIPTED_EXECUTOR_H_
