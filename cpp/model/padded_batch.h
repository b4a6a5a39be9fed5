// A forward pass that is filled up with rows whose results nobody asks for.
#ifndef FORERUN_CPP_MODEL_PADDED_BATCH_H_
#define FORERUN_CPP_MODEL_PADDED_BATCH_H_

#include <cstdint>
#include <vector>

#include "cpp/model/executor.h"

namespace forerun {

// Each row of padding is a sequence of its own, with its keys and values in a slot of blocks that
// no request has.
class PaddedBatch {
 public:
  // Slots that rows of padding may have in a block: from `first` on, below max_model_len.
  struct Slots {
    int block_size, max_model_len, first = 0;
  };
  // At most max_padding rows of padding are added to batches of at most max_rows rows.
  PaddedBatch(int max_rows, int max_padding, const Slots& slots);

  // That hold the keys and values of the padding.
  int num_blocks() const { return static_cast<int>(blocks_.size()); }
  // They are those from `first` on.
  void SetBlocks(BlockId first);

  // The batch with rows of token 0 after its own, up to num_rows. All rows' logits are wanted.
  // Valid until the next call, and as long as what `batch` refers to.
  ForwardBatch Pad(const ForwardBatch& batch, int num_rows);

 private:
  const int first_slot_;
  const int rows_of_block_;
  std::vector<BlockId> blocks_;
  std::vector<TokenId> tokens_;
  std::vector<SequenceRows> sequences_;
  std::vector<std::int32_t> all_rows_, sources_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_PADDED_BATCH_H_
