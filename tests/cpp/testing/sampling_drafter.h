// A drafter that samples its draft tokens from the probabilities of a given model.
#ifndef FORERUN_TESTS_CPP_TESTING_SAMPLING_DRAFTER_H_
#define FORERUN_TESTS_CPP_TESTING_SAMPLING_DRAFTER_H_

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "cpp/sampling/draft_sampling.h"
#include "tests/cpp/testing/scripted_drafter.h"

namespace forerun::testing {

// Drafts chains as long as allowed.
class SamplingDrafter : public ScriptedDrafter {
 public:
  using LogitsOf = std::function<std::vector<float>(std::span<const TokenId> text)>;

  explicit SamplingDrafter(LogitsOf logits_of)
      : ScriptedDrafter([](auto) { return TokenId{0}; }), logits_of_(std::move(logits_of)) {}

  void Propose(const DraftRequest& wanted, DraftTree& draft) override {
    std::vector<TokenId> text = this->text(wanted.id);
    for (int i = 0; i < wanted.max_tokens; ++i) {
      const std::vector<float> logits = logits_of_(text);
      const int output_index = wanted.first_output_index + i;
      if (wanted.rule.temperature == 0 ||
          wanted.rule.acceptance_method == AcceptanceMethod::kCoupled) {
        draft.AppendToChain(SampleToken(logits, wanted.rule, output_index, scratch_), 0.5f);
      } else {
        const auto row = draft.AddRowAfter(i - 1, static_cast<int>(logits.size()));
        FillDraftRow(logits, wanted.rule, scratch_, row);
        FORERUN_CHECK(AppendDrawnChild(draft, i - 1, wanted.rule.seed, wanted.first_output_index));
      }
      text.push_back(draft.tokens.back());
    }
  }

 private:
  const LogitsOf logits_of_;
  SamplerScratch scratch_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_SAMPLING_DRAFTER_H_
