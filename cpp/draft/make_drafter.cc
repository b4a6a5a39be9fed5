#include "cpp/draft/make_drafter.h"

#include "cpp/draft/text/ngram.h"
#include "cpp/draft/text/suffix.h"

namespace forerun {

std::unique_ptr<Drafter> MakeDrafter(const SpeculativeOptions& options) {
  if (const auto* ngram = std::get_if<NgramOptions>(&options.method)) {
    return std::make_unique<NgramDrafter>(*ngram);
  }
  if (const auto* suffix = std::get_if<SuffixOptions>(&options.method)) {
    return std::make_unique<SuffixDrafter>(*suffix, options.num_speculative_tokens);
  }
  return nullptr;
}

}  // namespace forerun
