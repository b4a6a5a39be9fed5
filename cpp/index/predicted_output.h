// Where in its prediction a request's output has got to.
//
// The output is expected to begin as the prediction does. Where it deviates, the continuation of
// its last tokens is looked up again: of the positions at which its last token occurs in the
// prediction, the one that most tokens before agree with (of equals, the next one after the last
// run of agreeing tokens, then the nearest before it). So a replaced, inserted or removed part
// costs the tokens of that part and one or two more.
//
// A deviating token takes time in proportion to the logarithm of the prediction's length, and
// nothing is allocated after construction.
#ifndef FORERUN_CPP_INDEX_PREDICTED_OUTPUT_H_
#define FORERUN_CPP_INDEX_PREDICTED_OUTPUT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "forerun/prediction.h"
#include "forerun/types.h"

namespace forerun {

class PredictedOutput {
 public:
  // As many agreeing tokens are counted at most. An output that has not deviated yet counts as if
  // half of them agreed: somebody expects this text.
  static constexpr int kMaxMatch = 32;

  explicit PredictedOutput(std::shared_ptr<const Prediction> prediction)
      : prediction_(std::move(prediction)) {}

  // `output` is the whole output so far, of which the last num_new tokens are new.
  void Follow(std::span<const TokenId> output, int num_new);

  // What the prediction has after the output's last token; empty where this token is not found.
  std::span<const TokenId> continuation() const {
    const std::span text = prediction_->tokens();
    return text.subspan(match_len_ > 0 ? next_ : text.size());
  }
  // How many of the output's last tokens agree with those before the continuation; at most
  // kMaxMatch.
  int match_len() const { return match_len_; }

 private:
  // Finds the end of the output in the prediction.
  void Realign(std::span<const TokenId> output);
  // How many tokens up to `position` agree with the end of the output.
  int MatchLength(std::span<const TokenId> output, std::int32_t position) const;

  // Other requests have it too, and end before this one or after it.
  const std::shared_ptr<const Prediction> prediction_;

  std::size_t next_ = 0;    // the position of the token that is expected next
  std::size_t anchor_ = 0;  // next_ when the last run of agreeing tokens ended
  int match_len_ = kMaxMatch / 2;
};

}  // namespace forerun

#endif  // FORERUN_CPP_INDEX_PREDICTED_OUTPUT_H_
