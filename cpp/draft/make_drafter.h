#ifndef FORERUN_CPP_DRAFT_MAKE_DRAFTER_H_
#define FORERUN_CPP_DRAFT_MAKE_DRAFTER_H_

#include <memory>

#include "cpp/draft/drafter.h"
#include "forerun/options.h"

namespace forerun {

// A drafter that reads text alone. Null without speculation, for GrammarOptions (the engine itself
// drafts what a constraint forces), and for models (cpp/draft/neural/model_drafter.h).
// REQUIRES: the options passed CheckSpeculativeOptions.
std::unique_ptr<Drafter> MakeDrafter(const SpeculativeOptions& options);

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_MAKE_DRAFTER_H_
