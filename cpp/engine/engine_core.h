// The draft/verify loop over any executor and any drafter.
//
// A step has five parts: draft, plan, forward, verify, commit. Until commit, a failed step can be
// retried: an exception leaves Step after reservations were given back and drafts dropped, and no
// output or KV was committed. A request whose own logits or hooks are broken fails alone.
#ifndef FORERUN_CPP_ENGINE_ENGINE_CORE_H_
#define FORERUN_CPP_ENGINE_ENGINE_CORE_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpp/draft/draft_limits.h"
#include "cpp/draft/drafter.h"
#include "cpp/draft_tree/step_masks.h"
#include "cpp/engine/draft_planner/draft_planner.h"
#include "cpp/engine/inbox.h"
#include "cpp/engine/metrics_recorder.h"
#include "cpp/engine/step_batch.h"
#include "cpp/engine/step_updates.h"
#include "cpp/engine/step_verification.h"
#include "cpp/engine/stop.h"
#include "cpp/kv/block_pool.h"
#include "cpp/model/executor.h"
#include "cpp/ops/pass_timer.h"
#include "cpp/sched/scheduler.h"
#include "cpp/verify/verifier.h"
#include "forerun/engine.h"
#include "forerun/error.h"

namespace forerun {

// Everything resolved: no optional fields, no "auto".
struct EngineConfig {
  int max_model_len = 0;
  int num_blocks = 0;
  int block_size = 0;
  int max_num_seqs = 0;
  std::optional<int> max_waiting_requests;
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

  VerifierLimits verifier_limits(int vocab_size) const {
    return {vocab_size, max_num_seqs, max_logits_rows()};
  }
  // Of one step: 256 for what predictions add and for rows of prompts that are scored, where each
  // request may have one beyond the limit, and of each request the newest token's and its draft's.
  int max_logits_rows() const {
    const std::int64_t num_rows = SchedulerLimits().max_scored_rows + kPredictedTokens +
                                  std::int64_t{max_num_seqs} * (2 + num_speculative_tokens);
    return static_cast<int>(std::min<std::int64_t>(num_rows, max_num_batched_tokens));
  }
};

class EngineCore {
 public:
  // The verifier reads logits where the executor leaves them; it has room for
  // config.verifier_limits. The executor and the drafter (null: plain decoding) must outlive the
  // core. The timer is of the device that the executor runs on; null: a forward pass is over when
  // the executor returns.
  EngineCore(EngineConfig config, ModelExecutor& executor, std::unique_ptr<Verifier> verifier,
             Drafter* drafter, std::unique_ptr<PassTimer> timer = nullptr);
  ~EngineCore();

  // As in forerun::Engine.
  void SetTokenBytes(std::vector<std::string> token_bytes,
                     const std::vector<TokenId>& special_tokens = {});
  void AddEosTokens(const std::vector<TokenId>& tokens);
  const std::vector<TokenId>& eos_token_ids() const { return vocabulary_.eos_token_ids; }
  RequestId Submit(std::span<const TokenId> prompt, const SamplingParams& params,
                   RequestHooks hooks = {}, const SubmitOptions& options = {});
  void CheckRoom(int num_requests) const { inbox_.CheckRoom(num_requests); }
  bool Cancel(RequestId id) { return inbox_.Cancel(id); }
  RequestId CancelStarted() noexcept { return inbox_.CancelStarted(); }
  bool HasUnfinished() const { return inbox_.num_unfinished() > 0; }
  std::span<const RequestUpdate> Step();
  void ResetCaches();
  bool RestoreOutputs(std::span<const PastOutput> outputs, bool is_last);
  bool ResetPrefixCache();
  // `field` is what an error names.
  bool StartTrace(const std::string& path, const std::string& field = "path");
  void StopTrace();
  EngineMetrics metrics() const { return inbox_.metrics(); }

 private:
  // Held while one of the calls runs that must not overlap.
  class Running {
   public:
    explicit Running(std::atomic<bool>& is_running) : is_running_(is_running) {
      if (is_running_.exchange(true)) {
        throw EngineBusy(
            "the engine is running: one thread at a time may call it, and its hooks must not call "
            "it");
      }
    }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() { is_running_.store(false); }

   private:
    std::atomic<bool>& is_running_;
  };

  std::unique_ptr<Request> MakeRequest(RequestId id, std::span<const TokenId> prompt,
                                       const SamplingParams& params, RequestHooks hooks,
                                       const SubmitOptions& options);

  void TakeInbox();
  void EndOverdue();
  void End(Request& request, FinishReason reason);
  // After a step that threw.
  void Abandon();
  // The parts that may throw, and the commit, which may not.
  void RunStep();
  ConstRows RunForward();
  void CommitStep();
  void CommitRequest(const PlannedRequest& planned, const Outcome& outcome);
  void AddUpdate(const Request& request, int num_emitted, const Outcome& outcome);
  void Finish(Request& request);
  void PublishMetrics();

  // Constant after construction.
  const EngineConfig config_;
  ModelExecutor& executor_;
  const std::unique_ptr<PassTimer> timer_;

  // Changed by the thread that steps. The first two are locked by the inbox, since Submit reads
  // them.
  StopVocabulary vocabulary_;
  std::optional<DeviceError> lost_;  // the error with which the device was lost
  BlockPool pool_;
  Scheduler scheduler_;
  DraftPlanner planner_;
  MetricsRecorder recorder_;
  // No scheduled request has an earlier one.
  std::chrono::steady_clock::time_point next_deadline_ =
      std::chrono::steady_clock::time_point::max();

  // This step's; kept for their memory.
  StepPlan plan_;
  StepMasks masks_;
  StepBatch batch_;
  StepVerification verification_;
  double forward_seconds_ = 0;
  StepUpdates updates_;

  // Shared with other threads.
  std::mutex restoring_;  // held while outputs are restored
  std::atomic<bool> is_running_{false};
  Inbox inbox_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_ENGINE_CORE_H_
