// The draft/verify loop over any executor and any drafter.
//
// A step has six moves: budget and draft, plan and reserve, run, verify, commit, observe. Until
// commit nothing has changed that the next step would not find again: what throws earlier is thrown
// out of Step, reservations are given back, and the requests are as they were. A request whose own
// logits or hooks are broken fails alone.
#ifndef FORERUN_CPP_ENGINE_ENGINE_CORE_H_
#define FORERUN_CPP_ENGINE_ENGINE_CORE_H_

#include <atomic>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "cpp/draft/drafter.h"
#include "cpp/draft_tree/draft_constrainer.h"
#include "cpp/engine/draft_planner/draft_length.h"
#include "cpp/engine/draft_planner/draft_price.h"
#include "cpp/engine/metrics_recorder.h"
#include "cpp/engine/step_batch.h"
#include "cpp/engine/stop.h"
#include "cpp/kv/block_pool.h"
#include "cpp/model/executor.h"
#include "cpp/sched/scheduler.h"
#include "cpp/verify/verify.h"
#include "forerun/engine.h"

namespace forerun {

// Everything resolved: no optional fields, no "auto".
struct EngineConfig {
  int max_model_len = 0;
  int num_blocks = 0;
  int block_size = 0;
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  bool enable_prefix_caching = true;
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  std::uint64_t seed = 0;
  int num_speculative_tokens = 0;
  bool adaptive = true;
  AcceptanceMethod acceptance_method = AcceptanceMethod::kCoupled;
  std::vector<TokenId> eos_token_ids;
  bool record_draft_steps = false;
  bool check_invariants = false;
};

class EngineCore {
 public:
  // The executor and the drafter (null: plain decoding) must outlive the core.
  EngineCore(EngineConfig config, ModelExecutor& executor, Drafter* drafter);
  ~EngineCore();

  // As in forerun::Engine.
  void SetTokenBytes(std::vector<std::string> token_bytes,
                     std::vector<TokenId> special_tokens = {});
  RequestId Submit(std::span<const TokenId> prompt, const SamplingParams& params,
                   RequestHooks hooks = {}, const SubmitOptions& options = {});
  bool Cancel(RequestId id);
  bool HasUnfinished() const { return num_unfinished_.load() > 0; }
  std::span<const RequestUpdate> Step();
  void ResetCaches();
  bool ResetPrefixCache();
  EngineMetrics metrics() const;

 private:
  // Held for as long as one of the calls runs that must not meet.
  class Running {
   public:
    explicit Running(std::atomic<bool>& is_running) : is_running_(is_running) {
      if (is_running_.exchange(true)) {
        throw EngineBusy(
            "the engine runs already: one thread at a time may drive it, and its hooks must not "
            "call it");
      }
    }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() { is_running_.store(false); }

   private:
    std::atomic<bool>& is_running_;
  };

  struct LogprobRange {  // entries of logprobs_
    std::size_t begin = 0;
    int num_tokens = 0, per_token = 1;
  };

  // What the step learned about one planned request.
  struct Outcome {
    Verdict verdict;
    std::string error;
    bool is_corrupted = false;
    LogprobRange prompt_logprobs, logprobs;

    void Clear() {
      verdict.tokens.clear();
      verdict.accepted_nodes.clear();
      error.clear();
      is_corrupted = false;
      prompt_logprobs = logprobs = {};
    }
  };

  std::unique_ptr<Request> MakeRequest(RequestId id, std::span<const TokenId> prompt,
                                       const SamplingParams& params, RequestHooks hooks);

  void TakeInbox();
  void ProposeDrafts();
  // Requests that may draft in this step, with how much, and room for it.
  void FindDraftRequests();
  void PrepareDrafts();
  // Of the step to come without drafts; absent where it decides nothing.
  std::optional<DraftPrice::StepCost> PriceOfStep() const;
  void ProposeDraft(const DraftRequest& wanted, Request& request);
  void VerifyDrafts(ConstRows logits);
  void VerifyRequest(const PlannedRequest& planned, RowLogits logits, Outcome& outcome);
  void ScoreVerdict(const SamplingParams& params, RowLogits logits, Outcome& outcome);
  void CommitRequest(const PlannedRequest& planned, const Outcome& outcome);
  void AddUpdate(const Request& request, int num_emitted, const Outcome& outcome);
  void Observe(Request& request, int num_before, std::span<const int> accepted_nodes);
  void Finish(Request& request);
  void PublishMetrics();

  // Runs a drafter's hook; a drafter that throws is dropped from the request, which goes on without
  // drafts.
  template <typename Hook>
  void Guarded(Request& request, const Hook& hook);

  // Constant after construction.
  const EngineConfig config_;
  ModelExecutor& executor_;
  Drafter* const drafter_;

  // Driven by the thread that calls Step.
  StopVocabulary vocabulary_;
  BlockPool pool_;
  Scheduler scheduler_;
  DraftLengthController controller_;
  struct DraftHistory {
    AcceptanceModel::Record acceptance;
    DraftPrice::Record price;
  };
  std::unordered_map<RequestId, DraftHistory> history_;
  DraftPrice price_;
  SamplerScratch scratch_;
  MetricsRecorder recorder_;

  // This step's; kept for their memory.
  DraftConstrainer constrainer_;
  StepPlan plan_;
  std::vector<Request*> drafting_;
  std::vector<DraftRequest> wanted_;    // [drafting_.size()]
  std::vector<DraftRequest> prepared_;  // those of them that the drafter follows
  std::vector<DraftLengthController::Candidate> candidates_;
  StepBatch batch_;
  std::vector<Outcome> outcomes_;       // [plan_.requests.size()], and more from larger steps
  std::vector<TokenLogprob> logprobs_;  // the updates point into it
  std::vector<RequestUpdate> updates_;
  std::vector<std::unique_ptr<Request>> finished_;  // the updates point into them
  bool is_interrupted_ = false;                     // the last step threw
  std::atomic<bool> is_running_{false};

  // Shared with Submit, Cancel and metrics.
  mutable std::mutex inbox_mutex_;
  std::deque<std::unique_ptr<Request>> submitted_;
  std::vector<RequestId> cancelled_;
  std::vector<RequestId> unfinished_;  // ascending
  RequestId next_id_ = 0;
  EngineMetrics published_;
  std::atomic<int> num_unfinished_{0};
};

template <typename Hook>
void EngineCore::Guarded(Request& request, const Hook& hook) {
  if (!request.drafts) return;
  try {
    hook();
  } catch (const std::exception&) {
    request.drafts = false;
    ++recorder_.counters().num_drafting_failures;
    request.draft.Clear();
    try {
      drafter_->Forget(request.id);
    } catch (const std::exception&) {
      // Nothing more to forget: the request no longer asks it anything.
    }
  }
}

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_ENGINE_CORE_H_
