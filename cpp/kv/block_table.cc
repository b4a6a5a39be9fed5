#include "cpp/kv/block_table.h"

#include <algorithm>
#include <sstream>
#include <string>
#include <utility>

#include "cpp/kv/slot_map.h"
#include "cpp/util/check.h"

namespace forerun {

BlockTable::BlockTable(BlockPool& pool, int max_tokens) : pool_(&pool) {
  if (max_tokens > 0) ReserveCapacity(max_tokens);
}

void BlockTable::ReserveCapacity(int max_tokens) {
  blocks_.reserve(NumBlocksFor(max_tokens, block_size()));
  partial_.reserve(block_size());
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : pool_(other.pool_),
      root_(other.root_),
      blocks_(std::exchange(other.blocks_, {})),
      num_committed_(std::exchange(other.num_committed_, 0)),
      prefix_(std::exchange(other.prefix_, other.root_)),
      partial_(std::exchange(other.partial_, {})) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this == &other) return *this;
  Drop();
  pool_ = other.pool_;
  root_ = other.root_;
  blocks_ = std::exchange(other.blocks_, {});
  num_committed_ = std::exchange(other.num_committed_, 0);
  prefix_ = std::exchange(other.prefix_, other.root_);
  partial_ = std::exchange(other.partial_, {});
  return *this;
}

void BlockTable::SetRoot(PrefixId root) {
  FORERUN_CHECK(blocks_.empty(), "only an empty table can get another root");
  root_ = prefix_ = root;
}

int BlockTable::AdoptPrefix(std::span<const TokenId> tokens) {
  FORERUN_CHECK(blocks_.empty(), "only an empty table can adopt a prefix");
  const std::size_t block_size = pool_->block_size();
  while (num_committed_ + block_size < tokens.size()) {
    const auto hit = pool_->Lookup(prefix_, tokens.subspan(num_committed_, block_size));
    if (!hit) break;
    blocks_.push_back(hit->block);
    prefix_ = hit->prefix;
    num_committed_ += static_cast<int>(block_size);
  }
  return num_committed_;
}

int BlockTable::NumBlocksToReserve(int num_tokens) const {
  const int num_needed = NumBlocksFor(num_committed_ + num_tokens, block_size());
  return std::max(0, num_needed - static_cast<int>(blocks_.size()));
}

bool BlockTable::Reserve(int num_tokens) {
  return pool_->TryAllocate(NumBlocksToReserve(num_tokens), blocks_);
}

void BlockTable::Commit(std::span<const TokenId> tokens) {
  FORERUN_CHECK(
      NumBlocksToReserve(static_cast<int>(tokens.size())) == 0,
      std::to_string(tokens.size()) + " tokens do not fit after " + std::to_string(num_committed_));
  const int block_size = pool_->block_size();
  for (TokenId token : tokens) {
    partial_.push_back(token);
    ++num_committed_;
    if (static_cast<int>(partial_.size()) == block_size) {
      ShareFullBlock(num_committed_ / block_size - 1);
      partial_.clear();
    }
  }
  Trim(0);
}

void BlockTable::Trim(int num_tokens) {
  const std::size_t num_kept = NumBlocksFor(num_committed_ + num_tokens, block_size());
  for (; blocks_.size() > num_kept; blocks_.pop_back()) pool_->Release(blocks_.back());
}

void BlockTable::ShareFullBlock(int index) {
  if (const auto hit = pool_->Lookup(prefix_, partial_)) {
    pool_->Release(blocks_[index]);
    blocks_[index] = hit->block;
    prefix_ = hit->prefix;
  } else {
    prefix_ = pool_->Register(blocks_[index], prefix_, partial_);
  }
}

std::string BlockTable::DebugString() const {
  std::ostringstream text;
  text << num_committed_ << " tokens, block size " << block_size() << ':';
  int num_left = num_committed_;
  for (BlockId block : blocks_) {
    const int num_tokens = std::min(num_left, block_size());
    text << ' ' << block << '(' << num_tokens << ')';
    num_left -= num_tokens;
  }
  return text.str();
}

void BlockTable::Drop() {
  for (; !blocks_.empty(); blocks_.pop_back()) pool_->Release(blocks_.back());
  num_committed_ = 0;
  prefix_ = root_;
  partial_.clear();
}

}  // namespace forerun
