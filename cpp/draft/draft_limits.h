// How long drafts may be: what options leave open is decided here alone.
#ifndef FORERUN_CPP_DRAFT_DRAFT_LIMITS_H_
#define FORERUN_CPP_DRAFT_DRAFT_LIMITS_H_

#include "forerun/options.h"

namespace forerun {

// Far above what speeds anything up: a draft costs rows of the step, and counters of each request
// and of each length.
inline constexpr int kMaxDraftTokens = 1024;

// The most tokens that a step drafts from predictions, of all requests together, where that is more
// than the method drafts. More rows than this make a pass of the model slower than they save.
inline constexpr int kPredictedTokens = 32;

// The most tokens of a draft; 0 without speculation.
int MaxDraftTokens(const SpeculativeOptions& options);

// The most tokens of a path that a model drafts. REQUIRES: a method with a model.
int MaxModelPath(const SpeculativeOptions& options);

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_DRAFT_LIMITS_H_
