// Which of its tokens a drafter proposes.
//
// A small drafter takes most of its time for the logits of tokens that are hardly ever drafted. Its
// output matrix can be cut to the rows of the hot tokens, those that texts have most of. Only
// acceptance can suffer: the target chooses among all tokens as ever.
#ifndef FORERUN_CPP_DRAFT_FORMATS_DRAFT_VOCABULARY_H_
#define FORERUN_CPP_DRAFT_FORMATS_DRAFT_VOCABULARY_H_

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/weight_reader.h"
#include "cpp/model/spec/spec.h"
#include "cpp/ops/ops.h"
#include "forerun/types.h"

namespace forerun {

class DraftVocabulary {
 public:
  // `size` is ModelDrafterOptions::draft_vocab_size. The order of tokens, hottest first: those that
  // end a text, those of hot_tokens.json in the drafter's directory ({"token_ids": [...]}), and the
  // others by their ids, which follow frequencies in most vocabularies. Where there is a file and
  // no size, the tokens of the file are proposed. Throws CheckpointError for a file that is not as
  // it should be.
  DraftVocabulary(std::optional<int> size, const std::string& directory, const ModelSpec& target);

  // Chooses among a drafter's tokens. target_ids has one for each of its num_rows logits, or
  // nothing where they are their own numbers. Returns the rows that are kept, ascending, and leaves
  // their ids; returns nothing and leaves target_ids as they are where all are kept. Throws
  // InvalidArgument (draft_vocab_size) where the drafter has fewer tokens.
  std::vector<TokenId> Choose(int num_rows, std::vector<TokenId>& target_ids) const;

 private:
  const std::optional<int> size_;
  bool has_file_ = false;
  int num_hot_ = 0;         // tokens that end a text and those of the file
  std::vector<int> ranks_;  // by token of the target
};

// The matrix [outputs, inputs] of a layer, or only the rows that DraftVocabulary::Choose returned.
std::unique_ptr<PackedMatrix> TakeOutput(WeightReader& reader, const std::string& layer,
                                         const Shape& shape, std::span<const TokenId> rows,
                                         const MatrixFormat& format, Ops& ops);

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_FORMATS_DRAFT_VOCABULARY_H_
