#include "forerun/prediction.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace forerun {

Prediction::Prediction(std::vector<TokenId> tokens)
    : tokens_(std::move(tokens)), positions_(tokens_.size()) {
  std::iota(positions_.begin(), positions_.end(), 0);
  std::ranges::stable_sort(positions_, {},
                           [&](std::int32_t position) { return tokens_[position]; });
}

}  // namespace forerun
