// A random engine over a scripted model, fed with random requests: every output is compared with
// plain decoding, and every account is checked after every step.
#ifndef FORERUN_TESTS_CPP_TESTING_RANDOM_ENGINE_H_
#define FORERUN_TESTS_CPP_TESTING_RANDOM_ENGINE_H_

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpp/draft/hybrid.h"
#include "cpp/draft/make_drafter.h"
#include "cpp/draft/neural/autoregressive.h"
#include "tests/cpp/testing/knowing_drafter.h"
#include "tests/cpp/testing/metrics_account.h"
#include "tests/cpp/testing/naive_generate.h"
#include "tests/cpp/testing/random_params.h"
#include "tests/cpp/testing/random_tree_shape.h"
#include "tests/cpp/testing/scripted_executor.h"
#include "tests/cpp/testing/scripted_network.h"
#include "tests/cpp/testing/test_engine.h"

namespace forerun::testing {

enum class DraftKind {
  kNone,
  kNgram,
  kSuffix,
  kAlwaysRight,
  kAlwaysWrong,
  kRandom,
  kRandomTree,
  kNetwork,
  kNetworkTree,
  kHybrid,
};
inline constexpr int kNumDraftKinds = 10;

class FunctionHook : public LogitsHook {
 public:
  explicit FunctionHook(decltype(NaiveHooks::change_logits) function)
      : function_(std::move(function)) {}
  void Process(std::span<const TokenId> output, std::span<const TokenId> path,
               std::span<float> logits) override {
    std::vector<TokenId> whole(output.begin(), output.end());
    whole.insert(whole.end(), path.begin(), path.end());
    function_(whole, logits);
  }

 private:
  decltype(NaiveHooks::change_logits) function_;
};

inline RequestHooks MakeHooks(const NaiveHooks& hooks) {
  RequestHooks made;
  if (hooks.grammar) made.constraint = std::make_unique<ToyConstraint>(*hooks.grammar);
  if (hooks.change_logits) made.logits_hook = std::make_unique<FunctionHook>(hooks.change_logits);
  return made;
}

class RandomEngine {
 public:
  static constexpr int kVocabSize = 11;
  // Changes the parameters of a request that is about to be submitted.
  using Change = std::function<void(std::mt19937& random, SamplingParams& params)>;

  // What happened in a run.
  struct Totals {
    std::int64_t num_accepted = 0, num_preemptions = 0, num_trees = 0, num_moved = 0;
    void operator+=(const Totals& other) {
      num_accepted += other.num_accepted;
      num_preemptions += other.num_preemptions;
      num_trees += other.num_trees;
      num_moved += other.num_moved;
    }
  };

  RandomEngine(unsigned seed, DraftKind kind, Change change)
      : random_(seed), change_(std::move(change)) {
    model_.logits_of = [](auto prefix) { return HashLogits(prefix, kVocabSize); };
    model_.eos_token_ids = {0};
    model_.special_tokens = {0, 5};
    for (TokenId token = 0; token < kVocabSize; ++token) {
      model_.token_bytes.push_back(std::string(1 + token % 2, "abc"[token % 3]));
    }
    config_.block_size = Pick(1, 5);
    config_.max_model_len = Pick(8, 60);
    const int blocks_for_one = (config_.max_model_len - 1) / config_.block_size + 1;
    config_.num_blocks = blocks_for_one + Pick(0, 2 * blocks_for_one);
    config_.max_num_seqs = Pick(1, 6);
    config_.max_num_batched_tokens = config_.max_num_seqs + Pick(0, 30);
    config_.enable_prefix_caching = Chance(0.7);
    if (Chance(0.4)) config_.scheduling_policy = SchedulingPolicy::kPriority;
    config_.seed = random_();
    config_.num_speculative_tokens = Pick(1, 8);
    config_.adaptive = Chance(0.5);
    if (Chance(0.3)) {
      config_.acceptance_method =
          Chance(0.5) ? AcceptanceMethod::kRejection : AcceptanceMethod::kBlock;
    }
    config_.eos_token_ids = model_.eos_token_ids;
    config_.record_draft_steps = true;
    config_.check_invariants = true;
    model_.max_model_len = config_.max_model_len;
    MakeRandomDrafter(kind);
  }

  // Gives requests a grammar or a logits hook with this probability.
  void SetHookProbability(double probability) { hook_probability_ = probability; }

  // Returns the number of requests that were compared.
  int Run() {
    ScriptedExecutor executor(kVocabSize, config_.num_blocks, config_.block_size);
    TestEngine engine(config_, executor, drafter_.get());
    engine.SetTokenBytes(model_.token_bytes, model_.special_tokens);
    const int num_requests = Pick(1, 12);
    int num_to_submit = num_requests;
    while (num_to_submit > 0 || engine.HasUnfinished()) {
      while (num_to_submit > 0 && (Chance(0.4) || !engine.HasUnfinished())) {
        Submit(engine);
        --num_to_submit;
      }
      if (Chance(0.03) && !expected_.empty()) engine.Cancel(expected_.rbegin()->first);
      for (const RequestUpdate& update : engine.Step()) Check(update);
    }
    EXPECT_TRUE(expected_.empty());
    EXPECT_LE(executor.max_rows_seen(), config_.max_num_batched_tokens);
    const EngineMetrics metrics = engine.metrics();
    EXPECT_EQ(metrics.num_held_blocks, 0);
    account_.ExpectEqual(metrics);
    totals_ = {metrics.spec_decode.num_accepted_tokens, metrics.num_preemptions,
               executor.num_trees(), executor.num_moved()};
    return num_requests;
  }
  const Totals& totals() const { return totals_; }

  // All parameters that NaiveGenerate implements.
  static void SetRandomParams(std::mt19937& random, SamplingParams& params) {
    const auto pick = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
    params.temperature = chance(0.5) ? 0.0 : pick(2, 20) / 10.0;
    params.top_k = chance(0.3) ? pick(1, kVocabSize) : 0;
    params.top_p = chance(0.3) ? pick(1, 10) / 10.0 : 1.0;
    params.min_p = chance(0.3) ? pick(0, 10) / 10.0 : 0.0;
    params.min_tokens = chance(0.3) ? pick(0, params.max_tokens) : 0;
    params.ignore_eos = chance(0.5);
    if (chance(0.2)) params.stop_token_ids = {pick(0, kVocabSize - 1)};
    if (chance(0.3)) params.stop = {chance(0.5) ? "aab" : "bcc", "cb"};
    params.include_stop_str_in_output = chance(0.5);
    params.skip_special_tokens = chance(0.5);
    params.speculative = chance(0.9);
    if (chance(0.2)) params.max_draft_tokens = pick(0, 4);
    RandomParams options(random, kVocabSize, chance(0.5) ? 0.0 : 0.4);
    options.SetLogitsOptions(params);
    options.SetLogprobs(params);
  }

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(random_); }

  void MakeRandomDrafter(DraftKind kind) {
    SpeculativeOptions options;
    if (kind == DraftKind::kNone) return;
    if (kind == DraftKind::kNgram) {
      NgramOptions ngram;
      ngram.prompt_lookup_min = Pick(1, 3);
      ngram.prompt_lookup_max = ngram.prompt_lookup_min + Pick(0, 3);
      options.method = ngram;
      drafter_ = MakeDrafter(options);
    } else if (kind == DraftKind::kSuffix) {
      SuffixOptions suffix;
      suffix.max_tree_depth = Pick(2, 12);
      suffix.max_cached_requests = Pick(0, 10);
      suffix.max_spec_factor = Pick(1, 4);
      suffix.min_token_prob = Pick(0, 5) / 10.0;
      suffix.use_tree = Chance(0.6);
      options.method = suffix;
      drafter_ = MakeDrafter(options);
    } else if (kind >= DraftKind::kNetwork) {
      MakeNetworkDrafter(kind);
    } else {
      const double share_right = kind == DraftKind::kAlwaysRight   ? 1.0
                                 : kind == DraftKind::kAlwaysWrong ? 0.0
                                                                   : Pick(1, 9) / 10.0;
      const bool is_tree = kind == DraftKind::kRandomTree;
      auto knowing = std::make_unique<KnowingDrafter>(kVocabSize, share_right, random_(), is_tree);
      knowing_ = knowing.get();
      drafter_ = std::move(knowing);
    }
  }

  void MakeNetworkDrafter(DraftKind kind) {
    AutoregressiveSetting setting;
    setting.width = kind == DraftKind::kNetworkTree || (kind == DraftKind::kHybrid && Chance(0.5))
                        ? Pick(2, 4)
                        : 1;
    if (kind == DraftKind::kNetworkTree && Chance(0.3)) {
      setting.shape = TreeShape(RandomTreeShape(random_, 12, 5, 4));
    }
    setting.max_depth = setting.shape.empty() ? Pick(1, 6) : setting.shape.depth();
    setting.is_sampled = kind == DraftKind::kNetwork && Chance(0.4);
    setting.vocab_size = kVocabSize;
    const int num_level_rows = std::max(setting.width, setting.shape.most_rows());
    setting.max_rows = config_.max_num_seqs * num_level_rows + Pick(0, 20);
    setting.num_blocks = config_.num_blocks;
    auto model = std::make_unique<AutoregressiveDrafter>(
        std::make_unique<ScriptedNetwork>(kVocabSize, config_.num_blocks, config_.block_size,
                                          Pick(3, 10) / 10.0),
        MakeDrafterVerifier(kVocabSize, setting.max_rows), nullptr, setting);
    if (kind != DraftKind::kHybrid) {
      drafter_ = std::move(model);
      return;
    }
    SuffixOptions options;
    options.max_tree_depth = Pick(2, 12);
    options.use_tree = Chance(0.5);
    drafter_ = std::make_unique<HybridDrafter>(std::make_unique<SuffixDrafter>(options),
                                               std::move(model), Pick(1, 40) / 10.0);
  }

  NaiveHooks RandomHooks() {
    NaiveHooks hooks;
    if (hook_probability_ > 0.0 && Chance(hook_probability_)) {
      hooks.grammar = ToyGrammar::Random(random_, kVocabSize, Pick(0, 3) / 4.0);
    }
    if (hook_probability_ > 0.0 && Chance(hook_probability_)) {
      // Allows again what other options rule out, too.
      hooks.change_logits = [factor = Pick(1, 7)](auto output, auto logits) {
        for (std::size_t i = 0; i < logits.size(); ++i) {
          if ((i + output.size()) % 4 == 0) logits[i] = static_cast<float>(i * factor % 11);
        }
        if (!output.empty()) logits[output.back()] -= 2.0f;
      };
    }
    return hooks;
  }

  void Submit(EngineCore& engine) {
    std::vector<TokenId> prompt;
    // Prompts share prefixes, so that the prefix cache has hits.
    const int num_shared = Pick(0, 12);
    for (int i = 0; i < num_shared; ++i) prompt.push_back(1 + i % 3);
    const int num_own = Pick(1, 12);
    for (int i = 0; i < num_own; ++i) prompt.push_back(Pick(0, kVocabSize - 1));
    if (static_cast<int>(prompt.size()) >= config_.max_model_len) {
      prompt.resize(config_.max_model_len - 1);
    }
    SamplingParams params;
    params.seed = random_();
    params.max_tokens = Pick(1, 40);
    change_(random_, params);
    // The other methods keep the distribution of drafted requests, not their ids.
    const bool keeps_ids = config_.acceptance_method == AcceptanceMethod::kCoupled;
    if (!keeps_ids && params.temperature > 0.0) params.speculative = false;
    const NaiveHooks hooks = RandomHooks();
    NaiveResult expected = NaiveGenerate(model_, prompt, params, *params.seed, hooks);
    SubmitOptions options;
    if (config_.scheduling_policy == SchedulingPolicy::kPriority) options.priority = Pick(-2, 2);
    if (Chance(0.3)) options.cache_salt = Chance(0.5) ? "a" : "b";
    const RequestId id = engine.Submit(prompt, params, MakeHooks(hooks), options);
    account_.Submitted(id, prompt.size(), params.max_tokens);
    if (knowing_ != nullptr) knowing_->Tell(id, expected.tokens);
    expected_.emplace(id, std::move(expected));
  }

  void Check(const RequestUpdate& update) {
    const auto it = expected_.find(update.id);
    ASSERT_NE(it, expected_.end());
    const NaiveResult& expected = it->second;
    account_.Add(update);
    NaiveResult& got = got_[update.id];
    got.tokens.insert(got.tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
    Append(update.logprobs, got.logprobs);
    Append(update.prompt_logprobs, got.prompt_logprobs);
    ASSERT_TRUE(IsBeginning(got.tokens, expected.tokens));
    ASSERT_TRUE(IsBeginning(got.logprobs, expected.logprobs, IsLogprob));
    ASSERT_TRUE(IsBeginning(got.prompt_logprobs, expected.prompt_logprobs, IsLogprob));
    if (update.finish_reason == FinishReason::kNone) return;
    if (update.finish_reason != FinishReason::kAbort) {
      EXPECT_EQ(got.tokens.size(), expected.tokens.size());
      EXPECT_EQ(got.logprobs.size(), expected.logprobs.size());
      EXPECT_EQ(got.prompt_logprobs.size(), expected.prompt_logprobs.size());
      EXPECT_EQ(update.finish_reason, expected.finish_reason);
      EXPECT_EQ(update.num_text_bytes, static_cast<std::int64_t>(expected.text.size()));
      EXPECT_EQ(update.metrics->num_generated_tokens, std::ssize(got.tokens));
    }
    expected_.erase(it);
  }

  template <typename T, typename Equal = std::equal_to<>>
  static bool IsBeginning(const std::vector<T>& part, const std::vector<T>& whole,
                          Equal equal = {}) {
    return part.size() <= whole.size() &&
           std::equal(part.begin(), part.end(), whole.begin(), equal);
  }

  static void Append(const TokenLogprobs& from, std::vector<TokenLogprob>& to) {
    to.insert(to.end(), from.entries.begin(), from.entries.end());
  }

  std::mt19937 random_;
  double hook_probability_ = 0.0;
  const Change change_;
  NaiveModel model_;
  EngineConfig config_;
  std::unique_ptr<Drafter> drafter_;
  MetricsAccount account_;
  KnowingDrafter* knowing_ = nullptr;  // drafter_, if it is one
  std::map<RequestId, NaiveResult> expected_, got_;
  Totals totals_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_RANDOM_ENGINE_H_
