// The account of all KV blocks: who holds how many, which contents are worth keeping, what is free.
//
// Every block is exactly one of
//   free     no content
//   cached   content registered for sharing, not held; evicted least recently used first
//   held     one or more references; registered or not
// and free + cached + held == total after every call. The pool knows block ids only, never memory.
//
// Contents are shared by prefix. A registered block is known by what comes before it (the PrefixId
// of the block before it, a root for the first) and by its own tokens; both are compared in
// full, so that two prefixes that hash alike are still two prefixes. Ids are never used twice.
//
// Nothing but RootOf allocates after construction. Not thread-safe.
#ifndef FORERUN_CPP_KV_BLOCK_POOL_H_
#define FORERUN_CPP_KV_BLOCK_POOL_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "forerun/types.h"

namespace forerun {

// All tokens from a sequence's first to the last of some full block.
using PrefixId = std::uint64_t;
inline constexpr PrefixId kRootPrefix = 0;

class BlockPool {
 public:
  struct Hit {
    BlockId block;
    PrefixId prefix;
  };

  // Throws InvalidArgument for sizes below one.
  BlockPool(int num_blocks, int block_size, bool enable_prefix_caching);

  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  int num_total() const { return num_total_; }
  int num_free() const { return num_free_; }
  int num_cached() const { return num_cached_; }
  int num_held() const { return num_held_; }
  int num_available() const { return num_free_ + num_cached_; }
  // How often the block was allocated; its content may differ from one time to the next.
  std::uint32_t generation(BlockId block) const { return blocks_[block].generation; }
  int block_size() const { return block_size_; }
  bool prefix_caching() const { return prefix_caching_; }

  // Appends n blocks, each with one reference: free ones first, then the least recently used cached
  // ones, whose contents are forgotten. False, and nothing taken, when fewer are available.
  bool TryAllocate(int n, std::vector<BlockId>& out);

  // Gives one reference back. The last one makes a registered block the most recently used cached
  // block and frees any other; so release a prefix from its tail to its head, and the tail goes
  // first. REQUIRES: held.
  void Release(BlockId block);

  // Makes a full block, whose content will not change any more, available to Lookup. When an equal
  // block is registered already, this one stays private. Returns the id of the prefix that ends
  // with `tokens`; kRootPrefix with prefix caching off. REQUIRES: held, not registered,
  // tokens.size() == block_size.
  PrefixId Register(BlockId block, PrefixId parent, std::span<const TokenId> tokens);

  // The block with these tokens after `parent`, with one more reference.
  std::optional<Hit> Lookup(PrefixId parent, std::span<const TokenId> tokens);

  // The parent of a sequence's first block. Equal salts have the same root as long as one of their
  // blocks is registered, and different ones never; the empty salt's is kRootPrefix.
  PrefixId RootOf(const std::string& salt);

  // Frees every cached block.
  void DropCached();

  // Recomputes every account. Throws InternalError that names the first broken one.
  void CheckInvariants() const;

 private:
  static constexpr BlockId kNoBlock = -1;

  enum class State : std::uint8_t { kFree, kCached, kHeld };

  // Links a block into its list: next alone when free, both when cached.
  struct Block {
    std::int32_t num_references = 0;
    std::uint32_t generation = 0;
    State state = State::kFree;
    BlockId previous = kNoBlock;
    BlockId next = kNoBlock;
    PrefixId parent = kRootPrefix;
    PrefixId prefix = kRootPrefix;  // kRootPrefix: not registered
    std::uint64_t hash = 0;         // of parent and tokens, when registered
  };

  std::span<const TokenId> TokensOf(BlockId block) const {
    return {tokens_.data() + std::size_t{static_cast<std::uint32_t>(block)} * block_size_,
            static_cast<std::size_t>(block_size_)};
  }
  bool IsRegistered(BlockId block) const { return blocks_[block].prefix != kRootPrefix; }
  // The bucket of an equal block, or the empty bucket where it would go.
  std::size_t FindBucket(std::uint64_t hash, PrefixId parent,
                         std::span<const TokenId> tokens) const;
  void Unregister(BlockId block);
  // Of salts that no registered block has.
  void ForgetUnusedRoots();
  void PushFree(BlockId block);
  void PushCached(BlockId block);
  void UnlinkCached(BlockId block);
  void CheckLists() const;
  void CheckRegistry() const;

  // Constant after construction.
  const int num_total_;
  const int block_size_;
  const bool prefix_caching_;
  std::size_t bucket_mask_ = 0;

  std::vector<Block> blocks_;     // [num_total]
  std::vector<TokenId> tokens_;   // [num_total, block_size], of registered blocks
  std::vector<BlockId> buckets_;  // open addressing over registered blocks, at most half full
  BlockId free_head_ = kNoBlock;  // last freed, first reused: likely still in a CPU cache
  BlockId oldest_cached_ = kNoBlock;
  BlockId newest_cached_ = kNoBlock;
  int num_free_ = 0;
  int num_cached_ = 0;
  int num_held_ = 0;
  PrefixId next_prefix_ = kRootPrefix + 1;
  std::unordered_map<std::string, PrefixId> roots_;  // by salt; at most two per block
};

}  // namespace forerun

#endif  // FORERUN_CPP_KV_BLOCK_POOL_H_
