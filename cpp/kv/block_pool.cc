#include "cpp/kv/block_pool.h"

#include <algorithm>
#include <bit>
#include <string>
#include <unordered_set>

#include "cpp/util/check.h"
#include "cpp/util/hash.h"
#include "forerun/error.h"

namespace forerun {
namespace {

std::uint64_t HashBlock(PrefixId parent, std::span<const TokenId> tokens) {
  std::uint64_t hash = MixBits(parent);
  for (TokenId token : tokens) hash = MixBits(hash ^ static_cast<std::uint32_t>(token));
  return hash;
}

void CheckAccount(const char* name, int counted, int recorded) {
  FORERUN_CHECK(counted == recorded, std::string(name) + ": recorded " + std::to_string(recorded) +
                                         ", counted " + std::to_string(counted));
}

}  // namespace

BlockPool::BlockPool(int num_blocks, int block_size, bool enable_prefix_caching)
    : num_total_(num_blocks), block_size_(block_size), prefix_caching_(enable_prefix_caching) {
  if (num_blocks < 1) {
    throw InvalidArgument("num_blocks", std::to_string(num_blocks), "at least 1");
  }
  if (block_size < 1) {
    throw InvalidArgument("block_size", std::to_string(block_size), "at least 1");
  }
  blocks_.resize(num_blocks);
  if (prefix_caching_) {
    tokens_.resize(std::size_t(num_blocks) * block_size);
    buckets_.assign(std::bit_ceil(2 * std::size_t(num_blocks)), kNoBlock);
    bucket_mask_ = buckets_.size() - 1;
  }
  for (BlockId block = num_blocks - 1; block >= 0; --block) PushFree(block);
}

bool BlockPool::TryAllocate(int n, std::vector<BlockId>& out) {
  if (n > num_available()) return false;
  for (int i = 0; i < n; ++i) {
    BlockId block = free_head_;
    if (block != kNoBlock) {
      free_head_ = blocks_[block].next;
      --num_free_;
    } else {
      block = oldest_cached_;
      UnlinkCached(block);
      Unregister(block);
    }
    blocks_[block].state = State::kHeld;
    blocks_[block].num_references = 1;
    ++blocks_[block].generation;
    ++num_held_;
    out.push_back(block);
  }
  return true;
}

void BlockPool::Release(BlockId block) {
  FORERUN_CHECK(block >= 0 && block < num_total_ && blocks_[block].state == State::kHeld,
                "block " + std::to_string(block) + " is not held");
  if (--blocks_[block].num_references > 0) return;
  --num_held_;
  if (IsRegistered(block)) {
    PushCached(block);
  } else {
    PushFree(block);
  }
}

PrefixId BlockPool::Register(BlockId block, PrefixId parent, std::span<const TokenId> tokens) {
  FORERUN_CHECK(block >= 0 && block < num_total_ && blocks_[block].state == State::kHeld &&
                    !IsRegistered(block),
                "block " + std::to_string(block) + " is not held, or registered already");
  FORERUN_CHECK(std::ssize(tokens) == block_size_);
  if (!prefix_caching_) return kRootPrefix;
  const std::uint64_t hash = HashBlock(parent, tokens);
  const std::size_t bucket = FindBucket(hash, parent, tokens);
  if (buckets_[bucket] != kNoBlock) return blocks_[buckets_[bucket]].prefix;
  std::copy(tokens.begin(), tokens.end(),
            tokens_.begin() + std::ptrdiff_t{block} * std::ptrdiff_t{block_size_});
  blocks_[block].parent = parent;
  blocks_[block].prefix = next_prefix_++;
  blocks_[block].hash = hash;
  buckets_[bucket] = block;
  return blocks_[block].prefix;
}

std::optional<BlockPool::Hit> BlockPool::Lookup(PrefixId parent, std::span<const TokenId> tokens) {
  FORERUN_CHECK(std::ssize(tokens) == block_size_);
  if (!prefix_caching_) return std::nullopt;
  const BlockId block = buckets_[FindBucket(HashBlock(parent, tokens), parent, tokens)];
  if (block == kNoBlock) return std::nullopt;
  if (blocks_[block].state == State::kCached) {
    UnlinkCached(block);
    blocks_[block].state = State::kHeld;
    ++num_held_;
  }
  ++blocks_[block].num_references;
  return Hit{block, blocks_[block].prefix};
}

PrefixId BlockPool::RootOf(const std::string& salt) {
  if (salt.empty() || !prefix_caching_) return kRootPrefix;
  if (const auto found = roots_.find(salt); found != roots_.end()) return found->second;
  if (roots_.size() >= 2 * static_cast<std::size_t>(num_total_)) ForgetUnusedRoots();
  return roots_[salt] = next_prefix_++;
}

// A request that runs may keep the id of a forgotten root: ids are never used twice, so that it
// only shares nothing with requests that come later.
void BlockPool::ForgetUnusedRoots() {
  std::unordered_set<PrefixId> parents;
  for (BlockId block = 0; block < num_total_; ++block) {
    if (IsRegistered(block)) parents.insert(blocks_[block].parent);
  }
  std::erase_if(roots_, [&](const auto& root) { return !parents.contains(root.second); });
}

void BlockPool::DropCached() {
  while (oldest_cached_ != kNoBlock) {
    const BlockId block = oldest_cached_;
    UnlinkCached(block);
    Unregister(block);
    PushFree(block);
  }
}

std::size_t BlockPool::FindBucket(std::uint64_t hash, PrefixId parent,
                                  std::span<const TokenId> tokens) const {
  for (std::size_t bucket = hash & bucket_mask_;; bucket = (bucket + 1) & bucket_mask_) {
    const BlockId block = buckets_[bucket];
    if (block == kNoBlock) return bucket;
    if (blocks_[block].parent == parent && std::ranges::equal(TokensOf(block), tokens))
      return bucket;
  }
}

void BlockPool::Unregister(BlockId block) {
  std::size_t hole = FindBucket(blocks_[block].hash, blocks_[block].parent, TokensOf(block));
  blocks_[block].prefix = kRootPrefix;
  // Linear probing must find no hole on its way: move back the blocks that probed past this one.
  for (std::size_t bucket = hole;;) {
    bucket = (bucket + 1) & bucket_mask_;
    if (buckets_[bucket] == kNoBlock) break;
    const std::size_t home = blocks_[buckets_[bucket]].hash & bucket_mask_;
    if (((bucket - home) & bucket_mask_) < ((bucket - hole) & bucket_mask_)) continue;
    buckets_[hole] = buckets_[bucket];
    hole = bucket;
  }
  buckets_[hole] = kNoBlock;
}

void BlockPool::PushFree(BlockId block) {
  blocks_[block].state = State::kFree;
  blocks_[block].next = free_head_;
  free_head_ = block;
  ++num_free_;
}

void BlockPool::PushCached(BlockId block) {
  blocks_[block].state = State::kCached;
  blocks_[block].previous = newest_cached_;
  blocks_[block].next = kNoBlock;
  (newest_cached_ == kNoBlock ? oldest_cached_ : blocks_[newest_cached_].next) = block;
  newest_cached_ = block;
  ++num_cached_;
}

void BlockPool::UnlinkCached(BlockId block) {
  const auto [previous, next] = std::pair(blocks_[block].previous, blocks_[block].next);
  (previous == kNoBlock ? oldest_cached_ : blocks_[previous].next) = next;
  (next == kNoBlock ? newest_cached_ : blocks_[next].previous) = previous;
  --num_cached_;
}

void BlockPool::CheckInvariants() const {
  CheckAccount("num_free + num_cached + num_held", num_free_ + num_cached_ + num_held_, num_total_);
  int num_in_state[3] = {};
  for (BlockId id = 0; id < num_total_; ++id) {
    const Block& block = blocks_[id];
    ++num_in_state[static_cast<int>(block.state)];
    FORERUN_CHECK((block.num_references > 0) == (block.state == State::kHeld),
                  "references of block " + std::to_string(id));
    FORERUN_CHECK(
        block.state == State::kHeld || IsRegistered(id) == (block.state == State::kCached),
        "registration of block " + std::to_string(id));
  }
  CheckAccount("num_free", num_in_state[static_cast<int>(State::kFree)], num_free_);
  CheckAccount("num_cached", num_in_state[static_cast<int>(State::kCached)], num_cached_);
  CheckAccount("num_held", num_in_state[static_cast<int>(State::kHeld)], num_held_);
  CheckLists();
  CheckRegistry();
}

void BlockPool::CheckLists() const {
  int length = 0;
  for (BlockId block = free_head_; block != kNoBlock; block = blocks_[block].next) {
    FORERUN_CHECK(++length <= num_free_ && blocks_[block].state == State::kFree, "free list");
  }
  CheckAccount("free list", length, num_free_);
  length = 0;
  BlockId previous = kNoBlock;
  for (BlockId block = oldest_cached_; block != kNoBlock; block = blocks_[block].next) {
    FORERUN_CHECK(++length <= num_cached_ && blocks_[block].state == State::kCached &&
                      blocks_[block].previous == previous,
                  "cached list");
    previous = block;
  }
  FORERUN_CHECK(newest_cached_ == previous, "end of the cached list");
  CheckAccount("cached list", length, num_cached_);
}

void BlockPool::CheckRegistry() const {
  int num_registered = 0;
  for (BlockId block = 0; block < num_total_; ++block) {
    if (!IsRegistered(block)) continue;
    ++num_registered;
    const Block& record = blocks_[block];
    FORERUN_CHECK(record.hash == HashBlock(record.parent, TokensOf(block)) &&
                      buckets_[FindBucket(record.hash, record.parent, TokensOf(block))] == block,
                  "registered block " + std::to_string(block) + " cannot be found");
  }
  const auto num_buckets = buckets_.size() - std::ranges::count(buckets_, kNoBlock);
  CheckAccount("registered blocks", num_registered, static_cast<int>(num_buckets));
}

}  // namespace forerun
