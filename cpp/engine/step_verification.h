// The verify part of a step: what each planned request emits, and its log-probabilities.
#ifndef FORERUN_CPP_ENGINE_STEP_VERIFICATION_H_
#define FORERUN_CPP_ENGINE_STEP_VERIFICATION_H_

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "cpp/sched/step_plan.h"
#include "cpp/tensor/tensor.h"
#include "cpp/verify/verifier.h"
#include "forerun/engine.h"

namespace forerun {

class StepVerification {
 public:
  StepVerification(std::unique_ptr<Verifier> verifier, int max_num_seqs);

  // Before the step's Run. What Logprobs returned stays valid if it is kept, for updates of a step
  // that threw; else until the next Run.
  void BeginStep(bool keep_logprobs);

  // `logits` are those that StepBatch asked for.
  void Run(const StepPlan& plan, ConstRows logits);

  // Of plan.requests[i]. Valid until the next Run.
  const Outcome& outcome(std::size_t i) const { return outcomes_[i]; }
  TokenLogprobs Logprobs(LogprobRange range, int num_tokens) const;

 private:
  const std::unique_ptr<Verifier> verifier_;

  // Change in each step.
  std::vector<SampleRequest> requests_;
  std::span<const Outcome> outcomes_;                     // of plan.requests
  std::vector<std::vector<TokenLogprob>> kept_logprobs_;  // of steps that threw
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_STEP_VERIFICATION_H_
