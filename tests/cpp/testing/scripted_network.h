// A draft network without weights: its logits for a row are a function of the tokens in its own
// paged slots, where it stores only the rows that it was given. A slot that was not synced, or that
// holds another request's token, changes the draft.
#ifndef FORERUN_TESTS_CPP_TESTING_SCRIPTED_NETWORK_H_
#define FORERUN_TESTS_CPP_TESTING_SCRIPTED_NETWORK_H_

#include <stdexcept>
#include <utility>

#include "cpp/draft/neural/draft_network.h"
#include "tests/cpp/testing/scripted_executor.h"

namespace forerun::testing {

class ScriptedNetwork : public DraftNetwork {
 public:
  // After this share of all texts its logits are those of the scripted model.
  ScriptedNetwork(int vocab_size, int num_blocks, int block_size, double share_known)
      : model_(vocab_size, num_blocks, block_size, [vocab_size, share_known](auto prefix) {
          std::uint64_t hash = 3;
          for (TokenId token : prefix) hash = HashCombine(hash, static_cast<std::uint64_t>(token));
          if (hash % 1000 < share_known * 1000) return HashLogits(prefix, vocab_size);
          std::vector<TokenId> other(prefix.begin(), prefix.end());
          other.push_back(1);
          return HashLogits(other, vocab_size);
        }) {}

  ConstRows Forward(const DraftBatch& batch) override {
    if (std::exchange(fails_, false)) throw std::runtime_error("scripted failure");
    num_rows_ += static_cast<int>(batch.tokens.size());
    return model_.Forward({batch.tokens, batch.sequences, batch.logits_rows});
  }
  int first_slot() const override { return 0; }

  int num_rows() const { return num_rows_; }
  void FailNextForward() { fails_ = true; }

 private:
  ScriptedExecutor model_;
  int num_rows_ = 0;
  bool fails_ = false;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_SCRIPTED_NETWORK_H_
