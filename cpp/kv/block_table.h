// The KV blocks of one request, in the order of its tokens.
//
// A step makes two calls. Reserve(n) makes room for up to n more tokens, or takes
// nothing; until the next Commit those slots belong to this step, which may write them in any way.
// Commit(tokens) says which tokens' keys and values stay: their full blocks become shareable, and
// blocks without a committed token go back to the pool, the rejected part of a draft with them.
//
// Full blocks are stored once: where the pool already knows an equal block, Commit trades this
// table's own copy for it. Their values are equal bit for bit, since they depend on nothing but the
// tokens. A table that holds a block therefore holds all blocks before it, and a prefix leaves the
// cache from its tail.
//
// Only AdoptPrefix, Reserve, Commit, Trim, Drop and moving the table change blocks(). Not
// thread-safe. The pool must outlive the table.
#ifndef FORERUN_CPP_KV_BLOCK_TABLE_H_
#define FORERUN_CPP_KV_BLOCK_TABLE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cpp/kv/block_pool.h"
#include "forerun/types.h"

namespace forerun {

class BlockTable {
 public:
  explicit BlockTable(BlockPool& pool, int max_tokens = 0);
  // Up to max_tokens tokens no call allocates memory from here on.
  void ReserveCapacity(int max_tokens);
  ~BlockTable() { Drop(); }

  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // What the first block comes after: a root of the pool. REQUIRES: empty.
  void SetRoot(PrefixId root);
  PrefixId root() const { return root_; }

  // Starts with the longest known run of full blocks over `tokens`, but leaves at least the last
  // token to be computed: something must produce logits. Returns the number of tokens adopted, now
  // committed. REQUIRES: empty.
  int AdoptPrefix(std::span<const TokenId> tokens);

  // Makes room for num_tokens more than are committed. False, and nothing taken, when the pool is
  // short; what earlier calls reserved stays.
  bool Reserve(int num_tokens);

  // Keeps these tokens, written to the slots after the committed ones in this order, and returns
  // blocks that hold none. Fails on our own bugs only. REQUIRES: room for them.
  void Commit(std::span<const TokenId> tokens);

  // Gives back reserved blocks that num_tokens more than are committed do not need.
  void Trim(int num_tokens);

  // Gives everything back; the table is empty, and can be used again.
  void Drop();

  // blocks()[p / block_size] holds position p.
  std::span<const BlockId> blocks() const { return blocks_; }
  int num_committed() const { return num_committed_; }
  int block_size() const { return pool_->block_size(); }
  // BlockPool::generation of blocks()[index].
  std::uint32_t generation(int index) const { return pool_->generation(blocks_[index]); }
  // Blocks that Reserve(num_tokens) would take from the pool.
  int NumBlocksToReserve(int num_tokens) const;

  // "21 tokens, block size 16: 7(16) 3(5) 12(0)": each block with its committed tokens.
  std::string DebugString() const;

 private:
  void ShareFullBlock(int index);

  BlockPool* pool_;

  PrefixId root_ = kRootPrefix;
  std::vector<BlockId> blocks_;
  int num_committed_ = 0;          // tokens
  PrefixId prefix_ = kRootPrefix;  // of the full committed blocks
  std::vector<TokenId> partial_;   // the committed tokens after them, fewer than block_size
};

}  // namespace forerun

#endif  // FORERUN_CPP_KV_BLOCK_TABLE_H_
