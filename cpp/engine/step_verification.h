// The verify part of a step: what each planned request emits, and its log-probabilities.
//
// A request whose own logits or hooks are broken gets an error, and the others go on.
#ifndef FORERUN_CPP_ENGINE_STEP_VERIFICATION_H_
#define FORERUN_CPP_ENGINE_STEP_VERIFICATION_H_

#include <cstddef>
#include <string>
#include <vector>

#include "cpp/ops/ops.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/sampling/sampler.h"
#include "cpp/sched/step_plan.h"
#include "cpp/verify/verify.h"
#include "forerun/engine.h"

namespace forerun {

class StepVerification {
 public:
  struct LogprobRange {  // entries of the step's log-probabilities
    std::size_t begin = 0;
    int num_tokens = 0, per_token = 1;
  };

  // What was found out about one planned request.
  struct Outcome {
    Verdict verdict;
    std::string error;
    bool is_corrupted = false;
    LogprobRange prompt_logprobs, logprobs;

    void Clear();
  };

  StepVerification(int max_num_seqs, int vocab_size)
      : vocab_size_(vocab_size), outcomes_(max_num_seqs) {}

  // Before the step's Run. What Logprobs returned stays valid if it is kept, for updates of a step
  // that threw; else until the next Run.
  void BeginStep(bool keep_logprobs);

  // `logits` are those that StepBatch asked for.
  void Run(const StepPlan& plan, ConstRows logits);

  // Of plan.requests[i]. Valid until the next Run.
  const Outcome& outcome(std::size_t i) const { return outcomes_[i]; }
  TokenLogprobs Logprobs(LogprobRange range, int num_tokens) const;

 private:
  void VerifyRequest(const PlannedRequest& planned, RowLogits logits, Outcome& outcome);
  void ScoreVerdict(const SamplingParams& params, RowLogits logits, Outcome& outcome);

  const int vocab_size_;
  SamplerScratch scratch_;
  std::vector<Outcome> outcomes_;  // of plan.requests, and more from larger steps
  std::vector<TokenLogprob> logprobs_;
  std::vector<std::vector<TokenLogprob>> kept_logprobs_;  // of steps that threw
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_STEP_VERIFICATION_H_
