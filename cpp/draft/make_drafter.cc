#include "cpp/draft/make_drafter.h"

#include "cpp/draft/text/ngram.h"
#include "cpp/draft/text/suffix.h"

namespace forerun {

std::unique_ptr<Drafter> MakeDrafter(const SpeculativeOptions& options) {
  switch (options.method) {
    case SpeculativeMethod::kNone:
    case SpeculativeMethod::kGrammar:
      return nullptr;
    case SpeculativeMethod::kNgram:
      return std::make_unique<NgramDrafter>(options);
    case SpeculativeMethod::kSuffix:
      return std::make_unique<SuffixDrafter>(options);
    default:
      break;
  }
  return nullptr;
}

}  // namespace forerun
