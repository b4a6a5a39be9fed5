#include "cpp/engine/engine_core.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "cpp/engine/check_request.h"
#include "cpp/engine/invariants.h"
#include "cpp/kv/slot_map.h"
#include "cpp/util/check.h"
#include "cpp/util/hash.h"

namespace forerun {

EngineCore::EngineCore(EngineConfig config, ModelExecutor& executor,
                       std::unique_ptr<Verifier> verifier, Drafter* drafter,
                       std::unique_ptr<PassTimer> timer)
    : config_(std::move(config)),
      executor_(executor),
      timer_(std::move(timer)),
      pool_(config_.num_blocks, config_.block_size, config_.enable_prefix_caching),
      scheduler_({config_.max_num_seqs, config_.max_num_batched_tokens}, pool_),
      planner_(
          {config_.num_speculative_tokens, config_.max_num_seqs, config_.max_num_batched_tokens,
           config_.adaptive, [this](int num_rows) { return executor_.PaddedRows(num_rows); }},
          drafter),
      recorder_(config_.max_model_len, config_.num_speculative_tokens, config_.record_draft_steps),
      masks_(executor.vocab_size()),
      batch_(config_.max_num_seqs, config_.max_num_batched_tokens),
      verification_(std::move(verifier), config_.max_num_seqs),
      inbox_(config_.max_num_seqs, config_.max_waiting_requests) {
  FORERUN_CHECK(config_.num_blocks >= NumBlocksFor(config_.max_model_len, config_.block_size),
                "a request that runs alone must fit");
  vocabulary_.eos_token_ids = config_.eos_token_ids;
  PublishMetrics();
}

EngineCore::~EngineCore() = default;

void EngineCore::SetTokenBytes(std::vector<std::string> token_bytes,
                               const std::vector<TokenId>& special_tokens) {
  const Running running(is_running_);
  // Submit reads the vocabulary.
  const auto lock = inbox_.Lock();
  FORERUN_CHECK(!HasUnfinished(), "token bytes may not change while requests are unfinished");
  if (static_cast<int>(token_bytes.size()) != executor_.vocab_size()) {
    throw InvalidArgument(
        "token_bytes", std::to_string(token_bytes.size()) + " entries",
        "one per token of the vocabulary, " + std::to_string(executor_.vocab_size()));
  }
  for (TokenId token : special_tokens) {
    CheckTokenId("special_tokens", token, executor_.vocab_size());
  }
  vocabulary_.token_bytes = std::move(token_bytes);
  vocabulary_.longest_token = 0;
  for (const std::string& bytes : vocabulary_.token_bytes) {
    vocabulary_.longest_token = std::max(vocabulary_.longest_token, bytes.size());
  }
  vocabulary_.is_special.assign(vocabulary_.token_bytes.size(), false);
  for (TokenId token : special_tokens) vocabulary_.is_special[token] = true;
}

void EngineCore::AddEosTokens(const std::vector<TokenId>& tokens) {
  const Running running(is_running_);
  const auto lock = inbox_.Lock();
  FORERUN_CHECK(!HasUnfinished(), "ends may not change while requests are unfinished");
  std::vector<TokenId> all = vocabulary_.eos_token_ids;
  for (TokenId token : tokens) {
    if (token < 0) throw InvalidArgument("eos_token_ids", std::to_string(token), "ids from 0 on");
    const bool is_known = std::ranges::find(all, token) != all.end();
    if (token < executor_.vocab_size() && !is_known) all.push_back(token);
  }
  vocabulary_.eos_token_ids = std::move(all);
}

std::unique_ptr<Request> EngineCore::MakeRequest(RequestId id, std::span<const TokenId> prompt,
                                                 const SamplingParams& params, RequestHooks hooks,
                                                 const SubmitOptions& options) {
  const std::int64_t wanted = static_cast<std::int64_t>(prompt.size()) + params.max_tokens;
  const int max_len = static_cast<int>(std::min<std::int64_t>(wanted, config_.max_model_len));
  auto request = std::make_unique<Request>(id, pool_, max_len);
  const std::uint64_t seed = params.seed.value_or(HashCombine(config_.seed, id));
  request->SetUp(
      prompt, params, std::move(hooks),
      {config_.acceptance_method, seed, executor_.vocab_size(), vocabulary_.eos_token_ids});
  request->priority = options.priority;
  request->cache_salt = options.cache_salt;
  request->deadline = options.deadline;
  if (params.speculative && options.prediction) request->prediction.emplace(options.prediction);
  planner_.SetUp(*request);
  ReserveTail(vocabulary_, *request);
  recorder_.SetUp(*request);
  return request;
}

RequestId EngineCore::Submit(std::span<const TokenId> prompt, const SamplingParams& params,
                             RequestHooks hooks, const SubmitOptions& options) {
  if (options.priority != 0 && config_.scheduling_policy != SchedulingPolicy::kPriority) {
    throw InvalidArgument("priority", std::to_string(options.priority),
                          "0, unless the engine has scheduling_policy \"priority\"");
  }
  RequestLimits limits = {.vocab_size = executor_.vocab_size(),
                          .max_model_len = config_.max_model_len};
  if (options.prediction) CheckPrediction(options.prediction->tokens(), limits);
  return inbox_.Submit([&](RequestId id) {
    if (lost_) throw DeviceError(*lost_);
    limits.has_token_bytes = !vocabulary_.token_bytes.empty();
    CheckRequest(prompt, params, limits);
    return MakeRequest(id, prompt, params, std::move(hooks), options);
  });
}

void EngineCore::TakeInbox() {
  const auto add = [&](std::unique_ptr<Request>&& submitted) {
    Request& request = *submitted;
    request.table.SetRoot(pool_.RootOf(request.cache_salt));
    planner_.Register(request);
    scheduler_.Add(std::move(submitted));
    next_deadline_ = std::min(next_deadline_, request.deadline);
    planner_.Begin(request);
  };
  const auto abort = [&](std::span<const RequestId> ids) {
    updates_.Reserve(scheduler_.num_requests());
    for (RequestId id : ids) {
      Request* request = scheduler_.Find(id);
      if (request != nullptr) End(*request, FinishReason::kAbort);
    }
  };
  inbox_.Take(add, abort);
}

void EngineCore::EndOverdue() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_deadline_) return;
  std::vector<Request*> overdue;
  auto next_deadline = std::chrono::steady_clock::time_point::max();
  const auto look = [&](const std::unique_ptr<Request>& request) {
    if (request->deadline <= now) {
      overdue.push_back(request.get());
    } else {
      next_deadline = std::min(next_deadline, request->deadline);
    }
  };
  std::ranges::for_each(scheduler_.running(), look);
  std::ranges::for_each(scheduler_.waiting(), look);
  updates_.Reserve(overdue.size());
  for (Request* request : overdue) End(*request, FinishReason::kDeadline);
  next_deadline_ = next_deadline;
}

// REQUIRES: updates_ has room.
void EngineCore::End(Request& request, FinishReason reason) {
  request.finish_reason = reason;
  updates_.Add({.id = request.id,
                .num_earlier_tokens = request.num_output_tokens(),
                .num_earlier_prompt_logprobs = request.num_scored_rows});
  Finish(request);
}

std::span<const RequestUpdate> EngineCore::Step() {
  const Running running(is_running_);
  recorder_.trace().BeginStep();
  verification_.BeginStep(/*keep_logprobs=*/!updates_.BeginStep());
  TakeInbox();
  EndOverdue();
  try {
    RunStep();
  } catch (const DeviceError& error) {
    Abandon();
    const auto lock = inbox_.Lock();
    if (error.is_lost() && !lost_) lost_ = error;
    throw;
  } catch (...) {
    Abandon();
    throw;
  }
  CommitStep();
  if (config_.check_invariants) CheckEngineInvariants(scheduler_, pool_);
  recorder_.EndStep();
  planner_.RethrowFailure();
  PublishMetrics();
  return updates_.EndStep();
}

void EngineCore::Abandon() {
  masks_.Close();
  scheduler_.Abandon();
  recorder_.trace().EndStep(/*failed=*/true);
}

void EngineCore::RunStep() {
  if (lost_ && scheduler_.num_requests() > 0) throw DeviceError(*lost_);
  StepTrace& trace = recorder_.trace();
  trace.BeginPart(StepPart::kDraft);
  planner_.Draft(scheduler_.running(), masks_);

  trace.BeginPart(StepPart::kPlan);
  scheduler_.Plan(plan_);
  if (plan_.requests.empty()) return masks_.Close();
  recorder_.Prepare(plan_, config_.enable_prefix_caching);
  batch_.Build(plan_);
  for (const PlannedRequest& planned : plan_.requests) {
    Request& request = *planned.request;
    if (planned.samples && request.constraint) masks_.Add(*request.constraint, request.draft);
  }

  trace.BeginPart(StepPart::kForward);
  const ConstRows logits = RunForward();

  trace.BeginPart(StepPart::kVerify);
  masks_.Compute();  // while a GPU runs the forward pass
  verification_.Run(plan_, logits);
  if (timer_ != nullptr) {
    forward_seconds_ = timer_->Seconds();
    trace.SetForwardSeconds(forward_seconds_);
  } else {
    forward_seconds_ = trace.seconds(StepPart::kForward);
  }
  for (std::size_t i = 0; i < plan_.requests.size(); ++i) {
    batch_.AddMoves(plan_.requests[i], verification_.outcome(i).verdict);
  }
  if (!batch_.moves().empty()) executor_.MoveKv(batch_.moves());
}

ConstRows EngineCore::RunForward() {
  if (timer_ == nullptr) return executor_.Forward(batch_.forward());
  timer_->Start();
  const ConstRows logits = executor_.Forward(batch_.forward());
  timer_->Stop();
  return logits;
}

void EngineCore::CommitStep() {
  if (plan_.requests.empty()) return;
  StepTrace& trace = recorder_.trace();
  trace.BeginPart(StepPart::kCommit);
  if (executor_.took_usual_time()) planner_.ObserveStep(plan_, forward_seconds_);
  recorder_.BeginCommits(trace.begin(StepPart::kCommit));
  for (std::size_t i = 0; i < plan_.requests.size(); ++i) {
    CommitRequest(plan_.requests[i], verification_.outcome(i));
  }
  recorder_.EndCommits();
}

void EngineCore::CommitRequest(const PlannedRequest& planned, const Outcome& outcome) {
  Request& request = *planned.request;
  const int num_before = static_cast<int>(request.tokens.size());
  const int num_committed = request.table.num_committed();
  const int num_known = std::min(num_committed + planned.num_pending, request.num_prompt_tokens);
  recorder_.CountPrompt(request, std::max(0, num_known - num_committed));

  for (TokenId token : outcome.verdict.tokens) {
    CommitToken(vocabulary_, token, request);
    if (request.finished()) break;
  }
  if (!request.finished() && !outcome.error.empty()) {
    request.finish_reason = FinishReason::kError;
    request.error = outcome.error;
    request.metrics.is_corrupted = outcome.is_corrupted;
  }
  const int num_emitted = static_cast<int>(request.tokens.size()) - num_before;
  // The last emitted token was sampled, not computed: its KV comes with the next step.
  const int num_accepted = std::min(num_emitted, outcome.verdict.num_accepted());
  request.table.Commit({request.tokens.data() + num_committed,
                        static_cast<std::size_t>(planned.num_pending + num_accepted)});
  request.num_scored_rows += outcome.prompt_logprobs.num_tokens;

  recorder_.CountEmitted(request, num_emitted, num_accepted);
  if (planned.samples || planned.num_scored > 0) AddUpdate(request, num_emitted, outcome);
  planner_.Observe(request, std::span(request.tokens).subspan(num_before),
                   outcome.verdict.accepted_nodes);
  request.draft.Clear();
  if (request.finished()) Finish(request);
}

void EngineCore::AddUpdate(const Request& request, int num_emitted, const Outcome& outcome) {
  const int num_logprobs = std::min(num_emitted, outcome.logprobs.num_tokens);
  const int num_prompt_logprobs = outcome.prompt_logprobs.num_tokens;
  updates_.Add(
      {.id = request.id,
       .new_tokens = std::span(request.tokens).last(num_emitted),
       .num_accepted = std::min(num_emitted, outcome.verdict.num_accepted()),
       .num_earlier_tokens = request.num_output_tokens() - num_emitted,
       .num_cached_tokens = std::max(0, request.num_cached_tokens),
       .logprobs = verification_.Logprobs(outcome.logprobs, num_logprobs),
       .prompt_logprobs = verification_.Logprobs(outcome.prompt_logprobs, num_prompt_logprobs),
       .num_earlier_prompt_logprobs = request.num_scored_rows - num_prompt_logprobs});
}

// REQUIRES: the request's update is the last in updates_.
void EngineCore::Finish(Request& request) {
  planner_.End(request);
  recorder_.CountFinish(request);
  RequestUpdate& update = updates_.last();
  update.finish_reason = request.finish_reason;
  update.num_cached_tokens = std::max(0, request.num_cached_tokens);
  update.stop_token = request.stop_token;
  update.stop_string_index = request.stop_string_index;
  update.num_text_bytes = vocabulary_.token_bytes.empty() ? -1 : request.num_text_bytes;
  update.error = request.error;
  update.metrics = &request.metrics;
  updates_.Finish(scheduler_.Remove(&request));
}

bool EngineCore::StartTrace(const std::string& path, const std::string& field) {
  const Running running(is_running_);
  return recorder_.trace().Start(path, field);
}

void EngineCore::StopTrace() {
  const Running running(is_running_);
  recorder_.trace().Stop();
}

bool EngineCore::ResetPrefixCache() {
  const Running running(is_running_);
  if (HasUnfinished()) return false;
  pool_.DropCached();
  return true;
}

void EngineCore::ResetCaches() {
  const Running running(is_running_);
  FORERUN_CHECK(!HasUnfinished(), "caches may not be reset while requests are unfinished");
  pool_.DropCached();
  planner_.Reset();
}

bool EngineCore::RestoreOutputs(std::span<const PastOutput> outputs, bool is_last) {
  const std::lock_guard lock(restoring_);
  for (const PastOutput& output : outputs) {
    for (const TokenId token : output.tokens) {
      CheckTokenId("outputs", token, executor_.vocab_size());
    }
  }
  return planner_.Restore(outputs, is_last);
}

void EngineCore::PublishMetrics() {
  EngineMetrics& counters = recorder_.counters();
  counters.num_preemptions = scheduler_.num_preemptions();
  counters.num_waiting_requests = static_cast<int>(scheduler_.waiting().size());
  counters.num_running_requests = static_cast<int>(scheduler_.running().size());
  counters.num_free_blocks = pool_.num_free();
  counters.num_cached_blocks = pool_.num_cached();
  counters.num_held_blocks = pool_.num_held();
  counters.num_total_blocks = pool_.num_total();
  counters.num_drafting_failures = planner_.num_failures();
  counters.first_drafting_failure = planner_.first_failure();
  inbox_.Publish(counters, updates_.finished());
}

}  // namespace forerun
