// Where the time of a forward pass goes, beside what the machine gives.
#ifndef FORERUN_CPP_MODEL_PROFILE_H_
#define FORERUN_CPP_MODEL_PROFILE_H_

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cpp/model/scorer.h"

namespace forerun {

struct ProfileOptions {
  ScorerOptions model;
  int num_rounds = 9;                    // measurements of a pass, of which the median is given
  std::size_t read_bytes = 256'000'000;  // of memory that is read for its rate
};

struct OperationProfile {
  std::string name;
  double seconds = 0;
  double share = 0;  // of the pass
  // Of products: the rate at which they read weights, by that of plain reading, and their
  // arithmetic rate, by that of the same products with many rows of a matrix that stays in cache.
  std::optional<double> share_of_read, share_of_arithmetic;
};

struct PassProfile {
  int num_rows = 0;
  int num_context = 0;  // tokens before the rows
  double seconds = 0;
  double read_rate = 0;                      // bytes a second, measured in turns with the passes
  double arithmetic_rate = 0;                // multiplications and additions a second, likewise
  std::vector<OperationProfile> operations;  // in the order of a layer; the last is all between
};

// Passes of 1, 5 and 16 rows, each with logits, and prompts of 512 tokens, at every context that
// max_model_len leaves room for; calls report(pass) after each. Throws as Scorer does, and
// InvalidArgument where num_rounds is below 1 or max_model_len leaves room for no pass.
void ProfilePasses(const ProfileOptions& options,
                   const std::function<void(const PassProfile&)>& report);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_PROFILE_H_
