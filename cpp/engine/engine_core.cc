#include "cpp/engine/engine_core.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "cpp/engine/check_request.h"
#include "cpp/engine/invariants.h"
#include "cpp/kv/slot_map.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/util/check.h"
#include "cpp/util/clock.h"
#include "cpp/util/hash.h"

namespace forerun {

EngineCore::EngineCore(EngineConfig config, ModelExecutor& executor, Drafter* drafter)
    : config_(std::move(config)),
      executor_(executor),
      drafter_(drafter),
      pool_(config_.num_blocks, config_.block_size, config_.enable_prefix_caching),
      scheduler_({config_.max_num_seqs, config_.max_num_batched_tokens}, pool_),
      recorder_(config_.max_model_len, config_.num_speculative_tokens, config_.record_draft_steps),
      batch_(config_.max_num_seqs, config_.max_num_batched_tokens) {
  FORERUN_CHECK(config_.num_blocks >= NumBlocksFor(config_.max_model_len, config_.block_size),
                "a request that runs alone must fit");
  vocabulary_.eos_token_ids = config_.eos_token_ids;
  outcomes_.resize(config_.max_num_seqs);
  updates_.reserve(2 * config_.max_num_seqs);
  candidates_.reserve(config_.max_num_seqs);
  PublishMetrics();
}

EngineCore::~EngineCore() = default;

void EngineCore::SetTokenBytes(std::vector<std::string> token_bytes,
                               std::vector<TokenId> special_tokens) {
  const Running running(is_running_);
  // Submit reads the vocabulary.
  const std::lock_guard lock(inbox_mutex_);
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

std::unique_ptr<Request> EngineCore::MakeRequest(RequestId id, std::span<const TokenId> prompt,
                                                 const SamplingParams& params, RequestHooks hooks) {
  const std::int64_t wanted = static_cast<std::int64_t>(prompt.size()) + params.max_tokens;
  const int max_len = static_cast<int>(std::min<std::int64_t>(wanted, config_.max_model_len));
  auto request = std::make_unique<Request>(id, pool_, max_len);
  const std::uint64_t seed = params.seed.value_or(HashCombine(config_.seed, id));
  request->SetUp(prompt, params, std::move(hooks),
                 {config_.acceptance_method, seed, executor_.vocab_size(), config_.eos_token_ids});
  const bool may_draft = params.speculative && config_.num_speculative_tokens > 0;
  request->drafts = may_draft && drafter_ != nullptr;
  request->speculates = request->drafts || (may_draft && request->hooks.constraint != nullptr);
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
  std::lock_guard lock(inbox_mutex_);
  CheckRequest(prompt, params,
               {.vocab_size = executor_.vocab_size(),
                .max_model_len = config_.max_model_len,
                .has_token_bytes = !vocabulary_.token_bytes.empty()});
  const RequestId id = next_id_;
  auto request = MakeRequest(id, prompt, params, std::move(hooks));
  request->priority = options.priority;
  request->cache_salt = options.cache_salt;
  submitted_.push_back(std::move(request));
  try {
    unfinished_.push_back(id);
  } catch (...) {
    submitted_.pop_back();
    throw;
  }
  ++next_id_;
  ++num_unfinished_;
  return id;
}

bool EngineCore::Cancel(RequestId id) {
  std::lock_guard lock(inbox_mutex_);
  if (!std::ranges::binary_search(unfinished_, id)) return false;
  cancelled_.push_back(id);
  return true;
}

void EngineCore::TakeInbox() {
  std::lock_guard lock(inbox_mutex_);
  // One by one: what was taken when something fails is not taken again.
  for (; !submitted_.empty(); submitted_.pop_front()) {
    Request& request = *submitted_.front();
    request.table.SetRoot(pool_.RootOf(request.cache_salt));
    if (request.speculates) history_.try_emplace(request.id);
    scheduler_.Add(std::move(submitted_.front()));
    Guarded(request, [&] { drafter_->Begin(request.id, request.tokens); });
  }
  const std::size_t most = scheduler_.num_requests() + updates_.size();
  updates_.reserve(most);
  finished_.reserve(most);
  for (RequestId id : cancelled_) {
    Request* request = scheduler_.Find(id);
    if (request == nullptr) continue;
    request->finish_reason = FinishReason::kAbort;
    updates_.push_back({.id = id,
                        .num_earlier_tokens = request->num_output_tokens(),
                        .num_earlier_prompt_logprobs = request->num_scored_rows});
    Finish(*request);
  }
  cancelled_.clear();
}

std::span<const RequestUpdate> EngineCore::Step() {
  const Running is_running(is_running_);
  const double begin = Now();
  // What a step did before it failed is told by the next.
  if (!std::exchange(is_interrupted_, true)) {
    updates_.clear();
    finished_.clear();
  }
  TakeInbox();
  const double drafting = Now();
  ProposeDrafts();
  const double planning = Now();
  double model_seconds = 0;
  double verify_seconds = 0;
  try {
    scheduler_.Plan(plan_);
    if (!plan_.requests.empty()) {
      recorder_.Prepare(plan_, config_.enable_prefix_caching);
      batch_.Build(plan_);
      const double running = Now();
      const ConstRows logits = executor_.Forward(batch_.forward());
      const double verifying = Now();
      VerifyDrafts(logits);
      if (!batch_.moves().empty()) executor_.MoveKv(batch_.moves());
      model_seconds = verifying - running;
      verify_seconds = Now() - verifying;
    }
  } catch (...) {
    scheduler_.Abandon(plan_);
    throw;
  }
  if (!plan_.requests.empty()) {
    const bool decodes_only = std::ranges::all_of(
        plan_.requests, [](const PlannedRequest& planned) { return planned.num_pending == 1; });
    if (decodes_only) controller_.ObserveStep(plan_.num_rows, model_seconds);
    recorder_.BeginCommits(Now());
    for (std::size_t i = 0; i < plan_.requests.size(); ++i) {
      CommitRequest(plan_.requests[i], outcomes_[i]);
    }
    recorder_.EndCommits();
  }
  EngineMetrics& counters = recorder_.counters();
  ++counters.num_steps;
  counters.draft_seconds += planning - drafting;
  counters.model_seconds += model_seconds;
  counters.verify_seconds += verify_seconds;
  if (config_.check_invariants) CheckEngineInvariants(scheduler_, pool_);
  counters.other_seconds += Now() - begin - (planning - drafting) - model_seconds - verify_seconds;
  PublishMetrics();
  is_interrupted_ = false;
  return updates_;
}

void EngineCore::VerifyDrafts(ConstRows logits) {
  logprobs_.clear();
  int row = 0;
  for (std::size_t i = 0; i < plan_.requests.size(); ++i) {
    const PlannedRequest& planned = plan_.requests[i];
    outcomes_[i].Clear();
    VerifyRequest(planned, {logits.row(row), logits.cols, logits.stride}, outcomes_[i]);
    if (planned.samples) batch_.AddMoves(planned, outcomes_[i].verdict);
    row += planned.num_scored + (planned.samples ? planned.num_draft + 1 : 0);
  }
}

// `logits` begin with the request's first row of them.
void EngineCore::VerifyRequest(const PlannedRequest& planned, RowLogits logits, Outcome& outcome) {
  const Request& request = *planned.request;
  outcome.prompt_logprobs.begin = logprobs_.size();
  outcome.prompt_logprobs.per_token =
      NumLogprobEntries(request.params.prompt_logprobs.value_or(0), executor_.vocab_size());
  try {
    for (int i = 0; i < planned.num_scored; ++i) {
      AppendLogprobs(logits.row(i), request.tokens[request.num_scored_rows + i + 1],
                     *request.params.prompt_logprobs, scratch_, logprobs_);
      ++outcome.prompt_logprobs.num_tokens;
    }
    logits.data += planned.num_scored * logits.stride;
    if (planned.samples) {
      Verify(request.draft, logits, request.rule, request.num_output_tokens(), scratch_,
             outcome.verdict);
    }
  } catch (const NumericError& error) {
    outcome.error = error.what();
    outcome.is_corrupted = true;
  } catch (const RequestError& error) {
    outcome.error = error.what();
  }
  if (request.params.logprobs || request.params.logprob_token_ids) {
    ScoreVerdict(request.params, logits, outcome);
  }
}

void EngineCore::ScoreVerdict(const SamplingParams& params, RowLogits logits, Outcome& outcome) {
  const std::vector<TokenId>* others =
      params.logprob_token_ids ? &*params.logprob_token_ids : nullptr;
  const int num_top = params.logprobs.value_or(0);
  outcome.logprobs.begin = logprobs_.size();
  outcome.logprobs.per_token = others != nullptr
                                   ? 1 + static_cast<int>(others->size())
                                   : NumLogprobEntries(num_top, executor_.vocab_size());
  std::vector<TokenId>& tokens = outcome.verdict.tokens;
  int& num_scored = outcome.logprobs.num_tokens;
  try {
    for (; num_scored < std::ssize(tokens); ++num_scored) {
      const auto row = logits.row(outcome.verdict.row(num_scored));
      if (others != nullptr) {
        AppendLogprobsOf(row, tokens[num_scored], *others, scratch_, logprobs_);
      } else {
        AppendLogprobs(row, tokens[num_scored], num_top, scratch_, logprobs_);
      }
    }
  } catch (const NumericError& error) {
    outcome.error = error.what();
    outcome.is_corrupted = true;
    tokens.resize(num_scored);
  }
}

void EngineCore::CommitRequest(const PlannedRequest& planned, const Outcome& outcome) {
  Request& request = *planned.request;
  const int num_before = static_cast<int>(request.tokens.size());
  const int num_committed = request.table.num_committed();
  recorder_.CountPrompt(std::max(
      0, std::min(num_committed + planned.num_pending, request.num_prompt_tokens) - num_committed));

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
  Observe(request, num_before, outcome.verdict.accepted_nodes);
  request.draft.Clear();
  if (request.finished()) Finish(request);
}

void EngineCore::AddUpdate(const Request& request, int num_emitted, const Outcome& outcome) {
  const auto view = [this](LogprobRange range, int num_tokens) {
    const std::size_t num_entries = static_cast<std::size_t>(num_tokens) * range.per_token;
    return TokenLogprobs{std::span(logprobs_).subspan(range.begin, num_entries), range.per_token};
  };
  updates_.push_back(
      {.id = request.id,
       .new_tokens = std::span(request.tokens).last(num_emitted),
       .num_earlier_tokens = request.num_output_tokens() - num_emitted,
       .num_cached_tokens = std::max(0, request.num_cached_tokens),
       .logprobs = view(outcome.logprobs, std::min(num_emitted, outcome.logprobs.num_tokens)),
       .prompt_logprobs = view(outcome.prompt_logprobs, outcome.prompt_logprobs.num_tokens),
       .num_earlier_prompt_logprobs =
           request.num_scored_rows - outcome.prompt_logprobs.num_tokens});
}

void EngineCore::Observe(Request& request, int num_before, std::span<const int> accepted_nodes) {
  if (!request.speculates || static_cast<int>(request.tokens.size()) == num_before) return;
  DraftHistory& history = history_[request.id];
  controller_.ObserveVerdict(request.draft, accepted_nodes, history.acceptance);
  Guarded(request, [&] {
    // The model is worth what it adds.
    const Drafter::Share others = drafter_->WithoutModel(request.id, request.draft, accepted_nodes);
    price_.ObserveVerdict(request.draft.size() - others.num_nodes,
                          static_cast<int>(accepted_nodes.size()) - others.num_accepted,
                          history.price);
    drafter_->Observe(request.id, std::span(request.tokens).subspan(num_before));
  });
}

// REQUIRES: the request's update is the last in updates_.
void EngineCore::Finish(Request& request) {
  if (request.drafts) {
    const bool is_whole = request.finish_reason == FinishReason::kStop ||
                          request.finish_reason == FinishReason::kLength;
    Guarded(request, [&] { is_whole ? drafter_->End(request.id) : drafter_->Forget(request.id); });
  }
  if (const auto found = history_.find(request.id); found != history_.end()) {
    price_.End(found->second.price);
    history_.erase(found);
  }
  recorder_.CountFinish(request);
  RequestUpdate& update = updates_.back();
  update.finish_reason = request.finish_reason;
  update.num_cached_tokens = std::max(0, request.num_cached_tokens);
  update.stop_token = request.stop_token;
  update.stop_string_index = request.stop_string_index;
  update.num_text_bytes = vocabulary_.token_bytes.empty() ? -1 : request.num_text_bytes;
  update.error = request.error;
  update.metrics = &request.metrics;
  finished_.push_back(scheduler_.Remove(&request));
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
  if (drafter_ != nullptr) drafter_->Reset();
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
  std::lock_guard lock(inbox_mutex_);
  published_ = counters;
  for (const auto& request : finished_) std::erase(unfinished_, request->id);
  num_unfinished_.store(static_cast<int>(unfinished_.size()));
}

EngineMetrics EngineCore::metrics() const {
  std::lock_guard lock(inbox_mutex_);
  return published_;
}

}  // namespace forerun
