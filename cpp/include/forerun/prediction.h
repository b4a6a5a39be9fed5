// A text that outputs are likely to resemble, and an index of it, made once for any number of
// requests.
//
// Immutable, so threads may share it.
#ifndef FORERUN_PREDICTION_H_
#define FORERUN_PREDICTION_H_

#include <cstdint>
#include <span>
#include <vector>

#include "forerun/types.h"

namespace forerun {

class Prediction {
 public:
  // Sorts the tokens.
  explicit Prediction(std::vector<TokenId> tokens);

  std::span<const TokenId> tokens() const { return tokens_; }
  // Of the tokens: by id, those of equal ones ascending.
  std::span<const std::int32_t> positions() const { return positions_; }

 private:
  std::vector<TokenId> tokens_;
  std::vector<std::int32_t> positions_;
};

}  // namespace forerun

#endif  // FORERUN_PREDICTION_H_
