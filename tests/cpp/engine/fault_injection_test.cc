// Failure at every move of a step: each call of the executor, the verifier and the drafter, and
// each allocation, fails once, in a run of its own. A step that throws is simply called again;
// whatever failed, every request must end with the output it would have had, and every block must
// be accounted for.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "cpp/draft/make_drafter.h"
#include "cpp/draft/text/suffix.h"
#include "tests/cpp/engine/counted_allocation.h"
#include "tests/cpp/testing/metrics_account.h"
#include "tests/cpp/testing/naive_generate.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/scripted_executor.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun {
namespace {

using testing::allocations_before_failure;

constexpr int kVocabSize = 11;
constexpr int kNumRequests = 7;

std::vector<float> LogitsOf(std::span<const TokenId> prefix) {
  return testing::HashLogits(prefix, kVocabSize);
}

// Throws once, in the call that FailAfter selects.
class FailingDrafter : public Drafter {
 public:
  explicit FailingDrafter(std::unique_ptr<Drafter> inner) : inner_(std::move(inner)) {}

  void Begin(const NewRequest& request) override {
    CountDown();
    inner_->Begin(request);
  }
  void Observe(RequestId id, std::span<const TokenId> committed) override {
    CountDown();
    inner_->Observe(id, committed);
  }
  void End(RequestId id) override {
    CountDown();
    inner_->End(id);
  }
  void Forget(RequestId id) override { inner_->Forget(id); }
  std::optional<ModelWork> EstimateModelWork(const DraftRequest& wanted) const override {
    return inner_->EstimateModelWork(wanted);
  }
  DraftingReport Prepare(std::span<const DraftRequest> requests) override {
    return inner_->Prepare(requests);
  }
  void Propose(const DraftRequest& wanted, DraftTree& draft) override {
    inner_->Propose(wanted, draft);
    CountDown();
  }
  void Reset() override { inner_->Reset(); }
  bool Restore(std::span<const PastOutput> outputs, bool is_last) override {
    return inner_->Restore(outputs, is_last);
  }

  // Throws InternalError when what is remembered of past outputs is broken.
  void CheckIntegrity() const {
    const auto* suffix = dynamic_cast<const SuffixDrafter*>(inner_.get());
    if (suffix != nullptr) suffix->histories().CheckIntegrity();
  }
  void FailAfter(int num_calls) { calls_before_failure_ = num_calls; }
  bool has_failed() const { return has_failed_; }

 private:
  void CountDown() {
    if (calls_before_failure_ < 0 || calls_before_failure_-- > 0) return;
    has_failed_ = true;
    throw std::runtime_error("scripted failure");
  }

  const std::unique_ptr<Drafter> inner_;
  int calls_before_failure_ = -1;
  bool has_failed_ = false;
};

// Throws once, in the call that FailAfter selects: before a step is verified, or after.
class FailingVerifier : public Verifier {
 public:
  explicit FailingVerifier(std::unique_ptr<Verifier> inner) : inner_(std::move(inner)) {}

  void Begin(ConstRows logits, std::span<const SampleRequest> requests) override {
    CountDown();
    inner_->Begin(logits, requests);
  }
  std::span<const Outcome> Finish() override {
    const std::span<const Outcome> outcomes = inner_->Finish();
    CountDown();
    return outcomes;
  }
  std::vector<TokenLogprob>& logprobs() override { return inner_->logprobs(); }
  const TopToken* StartTop(ConstRows logits, int count, std::size_t begin) override {
    return inner_->StartTop(logits, count, begin);
  }
  void FinishTop(std::span<TopToken> out) override { inner_->FinishTop(out); }
  void FailAfter(int num_calls) { calls_before_failure_ = num_calls; }

 private:
  void CountDown() {
    if (calls_before_failure_ < 0 || calls_before_failure_-- > 0) return;
    throw DeviceError("a step", "scripted failure", "begin it again");
  }

  const std::unique_ptr<Verifier> inner_;
  int calls_before_failure_ = -1;
};

// One run over a small pool: prompts that share prefixes, stop strings, preemptions, a request
// that is cancelled.
class Scenario {
 public:
  explicit Scenario(const SpeculativeMethod& method) {
    model_.logits_of = LogitsOf;
    model_.eos_token_ids = {0};
    for (TokenId token = 0; token < kVocabSize; ++token) {
      model_.token_bytes.push_back(token == 0 ? "" : std::string(1 + token % 2, "abc"[token % 3]));
    }
    config_.block_size = 3;
    config_.max_model_len = model_.max_model_len = 40;
    config_.num_blocks = 15;
    config_.max_num_seqs = 4;
    config_.max_num_batched_tokens = 16;
    config_.num_speculative_tokens = 5;
    config_.eos_token_ids = model_.eos_token_ids;
    config_.record_draft_steps = true;
    config_.check_invariants = true;
    SpeculativeOptions options;
    options.method = method;
    drafter_ = std::make_unique<FailingDrafter>(MakeDrafter(options));
    executor_ = std::make_unique<testing::ScriptedExecutor>(kVocabSize, config_.num_blocks,
                                                            config_.block_size);
    auto verifier = std::make_unique<FailingVerifier>(
        testing::TestedVerifier().make(config_.verifier_limits(kVocabSize)));
    verifier_ = verifier.get();
    engine_ =
        std::make_unique<EngineCore>(config_, *executor_, std::move(verifier), drafter_.get());
    engine_->SetTokenBytes(model_.token_bytes);
  }

  FailingDrafter& drafter() { return *drafter_; }
  testing::ScriptedExecutor& executor() { return *executor_; }
  FailingVerifier& verifier() { return *verifier_; }

  // Makes the allocation of that number within Submit and Step fail. Returns whether there was one.
  bool ToEnd(std::int64_t failing_allocation = -1) {
    std::mt19937 random(5);
    int num_submitted = 0;
    allocations_left_ = failing_allocation;
    while (num_submitted < kNumRequests || engine_->HasUnfinished()) {
      if (num_submitted < kNumRequests) {
        Submit(random, num_submitted);
        ++num_submitted;
      }
      if (num_submitted == 5) engine_->Cancel(1);
      Step();
    }
    EXPECT_TRUE(expected_.empty());
    EXPECT_NO_THROW(drafter_->CheckIntegrity());
    const EngineMetrics metrics = engine_->metrics();
    EXPECT_EQ(metrics.num_held_blocks, 0);
    EXPECT_EQ(metrics.num_free_blocks + metrics.num_cached_blocks, metrics.num_total_blocks);
    EXPECT_EQ(metrics.num_finished_requests, kNumRequests);
    account_.ExpectEqual(metrics);
    return failing_allocation >= 0 && allocations_left_ < 0;
  }

  int num_failed_steps() const { return num_failed_steps_; }
  std::int64_t num_preemptions() const { return engine_->metrics().num_preemptions; }
  std::int64_t num_drafting_failures() const { return engine_->metrics().num_drafting_failures; }

 private:
  // Calls `attempt` until it does not throw; the armed allocation fails at most once.
  template <typename Attempt>
  void Persist(const Attempt& attempt) {
    for (int i = 0; i < 3; ++i) {
      allocations_before_failure = allocations_left_;
      try {
        attempt();
        allocations_left_ = allocations_before_failure;
        allocations_before_failure = -1;
        return;
      } catch (const std::exception&) {
        allocations_left_ = allocations_before_failure;
        allocations_before_failure = -1;
        ++num_failed_steps_;
      }
    }
    FAIL() << "failed more than once";
  }

  void Submit(std::mt19937& random, int number) {
    std::vector<TokenId> prompt = {1, 2, 3, 1, 2, 3, 1};
    for (int i = 0; i < number; ++i) prompt.push_back(static_cast<TokenId>(random() % kVocabSize));
    SamplingParams params;
    params.temperature = number % 2 == 0 ? 0.0 : 0.8;
    params.seed = random();
    params.max_tokens = 12 + number;
    params.ignore_eos = number % 3 == 0;
    if (number % 3 == 1) params.stop = {"bcc", "aab"};
    const testing::NaiveResult expected =
        testing::NaiveGenerate(model_, prompt, params, *params.seed);
    RequestId id = 0;
    Persist([&] { id = engine_->Submit(prompt, params); });
    account_.Submitted(id, prompt.size(), params.max_tokens);
    expected_.emplace(id, expected);
  }

  void Step() {
    std::span<const RequestUpdate> updates;
    Persist([&] { updates = engine_->Step(); });
    for (const RequestUpdate& update : updates) {
      const auto it = expected_.find(update.id);
      ASSERT_NE(it, expected_.end());
      account_.Add(update);
      std::vector<TokenId>& got = got_[update.id];
      got.insert(got.end(), update.new_tokens.begin(), update.new_tokens.end());
      if (update.finish_reason == FinishReason::kNone) continue;
      if (update.finish_reason == FinishReason::kAbort) {
        EXPECT_EQ(update.id, 1u);
      } else {
        EXPECT_EQ(got, it->second.tokens);
        EXPECT_EQ(update.finish_reason, it->second.finish_reason);
        EXPECT_EQ(update.num_text_bytes, static_cast<std::int64_t>(it->second.text.size()));
      }
      expected_.erase(it);
    }
  }

  testing::NaiveModel model_;
  EngineConfig config_;
  std::unique_ptr<FailingDrafter> drafter_;
  std::unique_ptr<testing::ScriptedExecutor> executor_;
  FailingVerifier* verifier_ = nullptr;  // the engine's
  std::unique_ptr<EngineCore> engine_;
  std::map<RequestId, testing::NaiveResult> expected_;
  std::map<RequestId, std::vector<TokenId>> got_;
  testing::MetricsAccount account_;
  std::int64_t allocations_left_ = -1;
  int num_failed_steps_ = 0;
};

class FaultInjectionTest : public ::testing::TestWithParam<SpeculativeMethod> {};

TEST_P(FaultInjectionTest, TheRunWithoutFailuresPreempts) {
  Scenario run(GetParam());
  run.ToEnd();
  EXPECT_GT(run.num_preemptions(), 0);
}

TEST_P(FaultInjectionTest, AnyCallOfTheExecutorMayFail) {
  int num_calls = 0;
  for (;; num_calls += testing::ExampleStride()) {
    SCOPED_TRACE("call " + std::to_string(num_calls));
    Scenario run(GetParam());
    run.executor().FailAfter(num_calls);
    run.ToEnd();
    if (HasFailure() || run.num_failed_steps() == 0) break;
  }
  EXPECT_GT(num_calls, 10);
}

TEST_P(FaultInjectionTest, AnyCallOfTheVerifierMayFail) {
  int num_calls = 0;
  for (;; num_calls += testing::ExampleStride()) {
    SCOPED_TRACE("call " + std::to_string(num_calls));
    Scenario run(GetParam());
    run.verifier().FailAfter(num_calls);
    run.ToEnd();
    if (HasFailure() || run.num_failed_steps() == 0) break;
  }
  EXPECT_GT(num_calls, 20);
}

TEST_P(FaultInjectionTest, AnyCallOfTheDrafterMayFail) {
  int num_calls = 0;
  std::int64_t num_counted = 0;
  for (;; num_calls += testing::ExampleStride()) {
    SCOPED_TRACE("call " + std::to_string(num_calls));
    Scenario run(GetParam());
    run.drafter().FailAfter(num_calls);
    run.ToEnd();
    EXPECT_EQ(run.num_failed_steps(), 0);
    // A failure in Begin, Observe, End or Propose costs one request its drafter.
    EXPECT_LE(run.num_drafting_failures(), run.drafter().has_failed() ? 1 : 0);
    num_counted += run.num_drafting_failures();
    if (HasFailure() || !run.drafter().has_failed()) break;
  }
  EXPECT_GT(num_calls, 20);
  EXPECT_GT(num_counted, num_calls / testing::ExampleStride() / 2);
}

TEST_P(FaultInjectionTest, AnyAllocationMayFail) {
  if (testing::TestedVerifier().allocates_in_steps) GTEST_SKIP();
  const int stride = testing::NumExamples(7, 1);
  std::int64_t allocation = 0;
  for (;; allocation += stride) {
    SCOPED_TRACE("allocation " + std::to_string(allocation));
    Scenario run(GetParam());
    if (!run.ToEnd(allocation) || HasFailure()) break;
  }
  EXPECT_GT(allocation, 100);
}

INSTANTIATE_TEST_SUITE_P(Methods, FaultInjectionTest,
                         ::testing::Values(NgramOptions{.prompt_lookup_min = 1}, SuffixOptions()),
                         [](const auto& method) {
                           return std::holds_alternative<NgramOptions>(method.param) ? "ngram"
                                                                                     : "suffix";
                         });

}  // namespace
}  // namespace forerun
