// Random moves on tables that share a pool, beside a model made of sets and maps. The model says
// what every account holds, which blocks are shared and which are evicted; only the choice among
// free blocks is the pool's own.
//
// FORERUN_LONG_TESTS=1 runs 10,000 examples.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <list>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cpp/kv/block_pool.h"
#include "cpp/kv/block_table.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;

struct ModelTable {
  Tokens committed;
  std::vector<BlockId> blocks;
};

// A block's content is the whole text from the sequence's first token on.
class ModelPool {
 public:
  ModelPool(int num_blocks, int block_size, bool caching)
      : block_size_(block_size), caching_(caching) {
    for (BlockId block = 0; block < num_blocks; ++block) free_.insert(block);
  }

  int num_free() const { return static_cast<int>(free_.size()); }
  int num_cached() const { return static_cast<int>(cached_.size()); }
  int num_held() const { return static_cast<int>(references_.size()); }

  int AdoptPrefix(ModelTable& table, const Tokens& tokens) {
    while (table.committed.size() + block_size_ < tokens.size()) {
      const Tokens text(tokens.begin(),
                        tokens.begin() + (table.blocks.size() + 1) * std::size_t(block_size_));
      const auto known = block_of_.find(text);
      if (known == block_of_.end()) break;
      Reference(known->second);
      table.blocks.push_back(known->second);
      table.committed = text;
    }
    return static_cast<int>(table.committed.size());
  }

  // `actual` are the real table's blocks after its own Reserve.
  void Reserve(ModelTable& table, int num_tokens, bool granted, std::span<const BlockId> actual) {
    const std::size_t needed =
        (table.committed.size() + num_tokens + block_size_ - 1) / block_size_;
    const std::size_t held = table.blocks.size();
    const bool enough = needed <= held || needed - held <= free_.size() + cached_.size();
    ASSERT_EQ(granted, enough);
    ASSERT_EQ(actual.size(), granted ? std::max(needed, held) : held);
    for (std::size_t i = held; i < actual.size(); ++i) {
      if (free_.empty()) {
        ASSERT_EQ(actual[i], cached_.front());
        Forget(cached_.front());
      }
      ASSERT_EQ(free_.erase(actual[i]), 1u);
      references_[actual[i]] = 1;
      table.blocks.push_back(actual[i]);
    }
  }

  void Commit(ModelTable& table, const Tokens& tokens) {
    for (TokenId token : tokens) {
      table.committed.push_back(token);
      if (!caching_ || table.committed.size() % block_size_ != 0) continue;
      BlockId& block = table.blocks[table.committed.size() / block_size_ - 1];
      const auto [known, is_new] = block_of_.try_emplace(table.committed, block);
      if (is_new) {
        text_of_[block] = table.committed;
      } else {
        Reference(known->second);
        Release(block);
        block = known->second;
      }
    }
    while (table.blocks.size() * block_size_ >= table.committed.size() + block_size_) {
      Release(table.blocks.back());
      table.blocks.pop_back();
    }
  }

  void Drop(ModelTable& table) {
    for (; !table.blocks.empty(); table.blocks.pop_back()) Release(table.blocks.back());
    table.committed.clear();
  }

  void DropCached() {
    while (!cached_.empty()) Forget(cached_.front());
  }

 private:
  void Reference(BlockId block) {
    cached_.remove(block);
    ++references_[block];
  }
  void Release(BlockId block) {
    if (--references_.at(block) > 0) return;
    references_.erase(block);
    if (text_of_.contains(block)) {
      cached_.push_back(block);
    } else {
      free_.insert(block);
    }
  }
  void Forget(BlockId block) {
    cached_.remove(block);
    block_of_.erase(text_of_.at(block));
    text_of_.erase(block);
    free_.insert(block);
  }

  int block_size_;
  bool caching_;
  std::set<BlockId> free_;
  std::list<BlockId> cached_;  // oldest first
  std::map<BlockId, int> references_;
  std::map<Tokens, BlockId> block_of_;
  std::map<BlockId, Tokens> text_of_;
};

// One pool, a few tables and their models. Texts are over two tokens, so prefixes often meet.
class Example {
 public:
  explicit Example(int seed) : random_(seed) {
    const int num_blocks = Uniform(1, 24), block_size = Uniform(1, 5), num_tables = Uniform(1, 5);
    const bool caching = Uniform(0, 7) != 0;
    pool_.emplace(num_blocks, block_size, caching);
    model_.emplace(num_blocks, block_size, caching);
    for (int i = 0; i < num_tables; ++i) tables_.emplace_back(*pool_);
    models_.resize(num_tables);
  }

  void Run(int num_moves) {
    for (int i = 0; i < num_moves && !::testing::Test::HasFatalFailure(); ++i) {
      const std::string move = Move();
      Check(move);
    }
    for (BlockTable& table : tables_) table.Drop();
    EXPECT_EQ(pool_->num_held(), 0);
    pool_->CheckInvariants();
  }

 private:
  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  Tokens Text(int length) {
    Tokens tokens(length);
    for (TokenId& token : tokens) token = Uniform(0, 9) == 0;
    return tokens;
  }

  std::string Move() {
    const int which = Uniform(0, static_cast<int>(tables_.size()) - 1);
    BlockTable& table = tables_[which];
    ModelTable& model = models_[which];
    const int kind = Uniform(0, 99);
    if (kind < 12) {
      table.Drop();
      model_->Drop(model);
      return "Drop";
    }
    if (kind == 12) {
      pool_->DropCached();
      model_->DropCached();
      return "DropCached";
    }
    if (table.blocks().empty() && kind < 60) {
      const Tokens prompt = Text(Uniform(0, 30));
      EXPECT_EQ(table.AdoptPrefix(prompt), model_->AdoptPrefix(model, prompt));
      return "AdoptPrefix";
    }
    const int num_tokens = Uniform(0, 14);
    const bool granted = table.Reserve(num_tokens);
    model_->Reserve(model, num_tokens, granted, table.blocks());
    if (granted && kind < 90) {
      const Tokens kept = Text(Uniform(0, num_tokens));
      table.Commit(kept);
      model_->Commit(model, kept);
      return "Reserve and Commit";
    }
    return "Reserve";
  }

  void Check(const std::string& move) {
    pool_->CheckInvariants();
    ASSERT_EQ(pool_->num_free() + pool_->num_cached() + pool_->num_held(), pool_->num_total());
    ASSERT_EQ(pool_->num_free(), model_->num_free()) << move;
    ASSERT_EQ(pool_->num_cached(), model_->num_cached()) << move;
    ASSERT_EQ(pool_->num_held(), model_->num_held()) << move;
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      ASSERT_EQ(tables_[i].num_committed(), std::ssize(models_[i].committed)) << move;
      ASSERT_TRUE(std::ranges::equal(tables_[i].blocks(), models_[i].blocks)) << move;
    }
  }

  std::mt19937 random_;
  std::optional<BlockPool> pool_;  // before the tables, which it must outlive
  std::optional<ModelPool> model_;
  std::vector<BlockTable> tables_;
  std::vector<ModelTable> models_;
};

TEST(BlockTableModelTest, RandomMovesAgreeWithASetBasedModel) {
  const char* long_tests = std::getenv("FORERUN_LONG_TESTS");
  const int num_examples = long_tests != nullptr && std::string(long_tests) == "1" ? 10000 : 500;
  for (int seed = 0; seed < num_examples && !HasFailure(); ++seed) {
    SCOPED_TRACE("example " + std::to_string(seed));
    Example(seed).Run(/*num_moves=*/100);
  }
}

}  // namespace
}  // namespace forerun
