// From a directory to the method of a drafter that is a model.
#ifndef FORERUN_CPP_DRAFT_FORMATS_RESOLVE_DRAFTER_H_
#define FORERUN_CPP_DRAFT_FORMATS_RESOLVE_DRAFTER_H_

#include <string>

#include "forerun/options.h"

namespace forerun {

// Fills in what the options of a model leave open: the method, by the format of the checkpoint, and
// with it the number of draft tokens that the checkpoint proposes for chains. A directory that is
// the target's own means its layers for multi-token prediction, if it has any. Other methods stay
// as they are. Throws CheckpointError for a checkpoint that does not run as a drafter.
SpeculativeOptions ResolveDrafter(SpeculativeOptions options, const std::string& target_directory);

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_FORMATS_RESOLVE_DRAFTER_H_
