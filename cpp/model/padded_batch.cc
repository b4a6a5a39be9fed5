#include "cpp/model/padded_batch.h"

#include <algorithm>
#include <numeric>

#include "cpp/util/check.h"

namespace forerun {

PaddedBatch::PaddedBatch(int max_rows, int max_padding, const Slots& slots)
    : first_slot_(slots.first),
      rows_of_block_(std::min(slots.block_size, slots.max_model_len) - slots.first),
      blocks_((max_padding + rows_of_block_ - 1) / rows_of_block_),
      all_rows_(max_rows + max_padding) {
  tokens_.reserve(all_rows_.size());
  sequences_.reserve(all_rows_.size());
  sources_.reserve(all_rows_.size());
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
}

void PaddedBatch::SetBlocks(BlockId first) { std::iota(blocks_.begin(), blocks_.end(), first); }

ForwardBatch PaddedBatch::Pad(const ForwardBatch& batch, int num_rows) {
  const int num_given = static_cast<int>(batch.tokens.size());
  FORERUN_CHECK(num_given <= num_rows && num_rows <= std::ssize(all_rows_) &&
                    num_rows - num_given <= std::ssize(blocks_) * rows_of_block_,
                "more rows than are padded");
  tokens_.assign(batch.tokens.begin(), batch.tokens.end());
  tokens_.resize(num_rows, 0);
  sequences_.assign(batch.sequences.begin(), batch.sequences.end());
  for (int i = 0; i < num_rows - num_given; ++i) {
    sequences_.push_back({.row_begin = num_given + i,
                          .num_rows = 1,
                          .num_context = first_slot_ + i % rows_of_block_,
                          .block_table = {&blocks_[i / rows_of_block_], 1}});
  }
  ForwardBatch padded = batch;
  padded.tokens = tokens_;
  padded.sequences = sequences_;
  padded.logits_rows = std::span(all_rows_).first(num_rows);
  if (!batch.sources.empty()) {
    sources_.assign(batch.sources.begin(), batch.sources.end());
    sources_.resize(num_rows, batch.sources.front());
    padded.sources = sources_;
  }
  return padded;
}

}  // namespace forerun
