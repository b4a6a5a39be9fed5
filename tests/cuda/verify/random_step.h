// Random steps of random requests, for differential tests of verifiers.
#ifndef FORERUN_TESTS_CUDA_VERIFY_RANDOM_STEP_H_
#define FORERUN_TESTS_CUDA_VERIFY_RANDOM_STEP_H_

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "cpp/draft_tree/step_masks.h"
#include "cpp/sampling/draft_sampling.h"
#include "cpp/sampling/logits_processors.h"
#include "cpp/verify/verifier.h"
#include "tests/cpp/testing/random_params.h"
#include "tests/cpp/testing/random_tree.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun::testing {

class RandomNumbers {
 public:
  explicit RandomNumbers(unsigned seed) : engine_(seed) {}

  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(engine_); }
  double Uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  float Normal() { return std::normal_distribution<float>()(engine_); }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
};

// Logits [rows, vocab_size] of which some have ties, infinities or NaN; gaps between rows are NaN.
class RandomLogits {
 public:
  RandomLogits(RandomNumbers& random, int vocab_size)
      : random_(random), vocab_size_(vocab_size), stride_(vocab_size + random.Pick(0, 5)) {}

  void AddRow() {
    const std::size_t begin = values_.size();
    values_.resize(begin + stride_, std::numeric_limits<float>::quiet_NaN());
    const std::span row(values_.data() + begin, static_cast<std::size_t>(vocab_size_));
    const bool has_ties = random_.Chance(0.3);
    const double share_missing = random_.Chance(0.2) ? random_.Uniform(0.0, 1.0) : 0.0;
    const float scale = random_.Chance(0.5) ? 1.0f : static_cast<float>(random_.Pick(0, 12));
    for (float& logit : row) {
      logit = scale * random_.Normal();
      if (has_ties) logit = std::round(2.0f * logit) / 2.0f;
      if (share_missing > 0.0 && random_.Chance(share_missing)) logit = -kInfinity;
    }
    if (random_.Chance(0.03)) Break(row);
  }

  int num_rows() const { return static_cast<int>(std::ssize(values_) / stride_); }
  std::span<const float> row(int i) const {
    return {values_.data() + std::int64_t{i} * stride_, static_cast<std::size_t>(vocab_size_)};
  }
  ConstRows rows() const { return {values_.data(), num_rows(), vocab_size_, stride_}; }
  // With the gaps.
  std::span<const float> values() const { return values_; }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  void Break(std::span<float> row) {
    if (random_.Chance(0.2)) {
      std::ranges::fill(row, -kInfinity);
      return;
    }
    for (int i = random_.Pick(1, 3); i > 0; --i) {
      float& logit = row[random_.Pick(0, vocab_size_ - 1)];
      logit = random_.Chance(0.5) ? kInfinity : std::numeric_limits<float>::quiet_NaN();
      if (random_.Chance(0.3)) logit = -logit;
    }
  }

  RandomNumbers& random_;
  const int vocab_size_, stride_;
  std::vector<float> values_;
};

class MovingHook : public LogitsHook {
 public:
  explicit MovingHook(bool fails) : fails_(fails) {}
  void Process(std::span<const TokenId> output, std::span<const TokenId> path,
               std::span<float> logits) override {
    if (fails_ && path.size() == 1) throw std::runtime_error("no reason");
    logits[(output.size() + 3 * path.size()) % logits.size()] += 2.0f;
  }

 private:
  const bool fails_;
};

// A request with random parameters, hooks, prompt, output and draft. Adds its rows to `logits`.
class RandomRequest {
 public:
  RandomRequest(RandomNumbers& random, int vocab_size, RandomLogits& logits)
      : random_(random), vocab_size_(vocab_size) {
    text_ = Text(random.Pick(1, 8));
    text_.reserve(kMaxTokens);  // or scored tokens would move
    num_prompt_ = static_cast<int>(text_.size());
    if (random.Chance(0.2)) {
      request_.scored_tokens = std::span(text_).first(random.Pick(1, num_prompt_));
      request_.prompt_logprobs = NumLogprobs();
      for (int i = 0; i < request_.num_scored(); ++i) logits.AddRow();
      request_.samples = random.Chance(0.8);
    }
    if (!request_.samples) return;
    PickParams();
    PickOutput();
    first_row_ = logits.num_rows();
    logits.AddRow();
    PickDraft(logits);
    request_.draft = &draft_;
    request_.rule = &rule_;
    request_.first_output_index = static_cast<int>(text_.size()) - num_prompt_;
    if (random.Chance(0.25)) request_.logprobs = NumLogprobs();
    if (random.Chance(0.1)) {
      logprob_ids_ = Text(random.Pick(0, 6));
      if (random.Chance(0.1)) logprob_ids_ = Text(40);
      request_.logprob_token_ids = &logprob_ids_;
    }
  }
  RandomRequest(const RandomRequest&) = delete;
  RandomRequest& operator=(const RandomRequest&) = delete;

  void AddTo(StepMasks& masks) {
    if (cursor_) masks.Add(*cursor_, draft_);
  }
  const SampleRequest& request() const { return request_; }

 private:
  static constexpr int kMaxTokens = 40;

  std::vector<TokenId> Text(int size) {
    std::vector<TokenId> text(size);
    for (TokenId& token : text) token = random_.Pick(0, vocab_size_ - 1);
    return text;
  }
  int NumLogprobs() {
    return random_.Chance(0.1) ? random_.Pick(-1, 40) : random_.Pick(0, std::min(vocab_size_, 8));
  }

  void PickParams() {
    // What needs three tokens, so that one is left.
    if (vocab_size_ >= 3 && random_.Chance(0.5)) {
      RandomParams(random_.engine(), vocab_size_, 0.3).SetLogitsOptions(params_);
      params_.min_tokens = random_.Pick(0, 6);
      ends_ = Text(random_.Pick(0, 2));
    }
    params_.temperature = random_.Chance(0.2) ? 0.0 : random_.Uniform(0.2, 2.0);
    if (random_.Chance(0.05)) params_.temperature = random_.Chance(0.5) ? 1e-20 : 1e20;
    if (random_.Chance(0.3)) params_.top_k = random_.Pick(-1, std::min(vocab_size_ + 1, 60));
    if (random_.Chance(0.3)) params_.top_p = random_.Uniform(0.01, 1.0);
    if (random_.Chance(0.2)) params_.min_p = random_.Chance(0.1) ? 1.0 : random_.Uniform(0.0, 0.3);
    rule_ = MakeSamplingRule(params_, random_.engine()());
    rule_.acceptance_method = static_cast<AcceptanceMethod>(random_.Pick(0, 2));
  }

  void PickOutput() {
    if (vocab_size_ <= 300 && random_.Chance(0.2)) {
      constraint_ = std::make_unique<ToyConstraint>(
          ToyGrammar::Random(random_.engine(), vocab_size_, random_.Uniform(0.2, 1.0)));
      cursor_.emplace(*constraint_, text_, kMaxTokens, vocab_size_);
    }
    if (random_.Chance(0.03)) hook_.emplace(/*fails=*/random_.Chance(0.3));
    const RowHooks hooks = {cursor_ ? &*cursor_ : nullptr, hook_ ? &*hook_ : nullptr};
    if (LogitsProcessors::AreNeeded(params_, ends_, hooks)) {
      processors_.emplace(params_, ends_, text_, kMaxTokens, hooks);
      rule_.processors = &*processors_;
    }
    std::vector<TokenId> output;
    for (int i = random_.Pick(0, 6); i > 0; --i) {
      output.push_back(PickToken(output, random_.Pick(0, vocab_size_ - 1)));
    }
    text_.insert(text_.end(), output.begin(), output.end());
    if (processors_) processors_->ObserveCommitted();
  }

  // Mostly what the grammar allows after the output, and that is `token` if possible.
  TokenId PickToken(const std::vector<TokenId>& output, TokenId token) {
    if (!constraint_ || random_.Chance(0.05)) return token;
    const ToyGrammar& grammar = constraint_->grammar();
    const int state = grammar.StateAfter(output);
    if (state < 0 || grammar.next[state][token] >= 0) return token;
    const std::vector<TokenId> allowed = grammar.Allowed(state);
    return allowed[random_.Pick(0, static_cast<int>(allowed.size()) - 1)];
  }

  void PickDraft(RandomLogits& logits) {
    if (random_.Chance(0.1)) return;
    const bool is_drawn = random_.Chance(0.3);
    std::vector<std::int32_t> parents =
        RandomParents(random_.Pick(1, random_.Chance(0.1) ? 30 : 6),
                      [&](int n) { return random_.Pick(0, n - 1); });
    for (std::size_t i = 0; is_drawn && random_.Chance(0.95) && i < parents.size(); ++i) {
      parents[i] = static_cast<std::int32_t>(i) - 1;
    }
    for (std::int32_t parent : parents) {
      const std::span<const float> row = logits.row(first_row_ + 1 + parent);
      if (!is_drawn) {
        draft_.Append(PickCertain(parent, row), parent, 1.0f);
      } else if (!AppendDrawn(parent, row)) {
        break;
      }
      logits.AddRow();
    }
  }

  std::vector<TokenId> OutputAfter(int node) const {
    std::vector<TokenId> output(text_.begin() + num_prompt_, text_.end());
    for (int i : PathTo(draft_.parents, node)) output.push_back(draft_.tokens[i]);
    return output;
  }

  // Often what is sampled after the parent.
  TokenId PickCertain(int parent, std::span<const float> row) {
    const std::vector<TokenId> output = OutputAfter(parent);
    TokenId token = random_.Pick(0, vocab_size_ - 1);
    try {
      if (random_.Chance(0.7)) {
        token = SampleToken(row, rule_, static_cast<int>(output.size()), scratch_);
      }
    } catch (const NumericError&) {
      // The row is broken.
    }
    return PickToken(output, token);
  }

  // Draws from weights that are near those of the target, or are not.
  bool AppendDrawn(int parent, std::span<const float> row) {
    SamplingRule rule = rule_;
    rule.temperature = random_.Chance(0.5) ? 1.0 : std::max(rule.temperature, 1e-20);
    std::vector<float> logits(row.begin(), row.end());
    const float noise = random_.Chance(0.2) ? 0.0f : static_cast<float>(random_.Uniform(0.0, 2.0));
    for (float& logit : logits) {
      if (!(std::fabs(logit) < 1e6f)) logit = -20.0f;
      if (noise > 0.0f) logit += noise * random_.Normal();
    }
    const bool is_first = std::ranges::count(draft_.parents, parent) == 0;
    if (is_first && random_.Chance(0.97)) {
      const std::span<float> weights = draft_.AddRowAfter(parent, vocab_size_);
      FillDraftRow(logits, rule, scratch_, weights);
      if (random_.Chance(0.02)) {
        std::ranges::fill(weights, 0.0f);  // nothing can have been drawn from it
        draft_.Append(random_.Pick(0, vocab_size_ - 1), parent, 0.0f);
        return true;
      }
    }
    if (draft_.RowAfter(parent).empty()) {
      draft_.Append(random_.Pick(0, vocab_size_ - 1), parent, 1.0f);
      return true;
    }
    const int output_index = static_cast<int>(text_.size()) - num_prompt_;
    return AppendDrawnChild(draft_, parent, rule_.seed, output_index);
  }

  RandomNumbers& random_;
  const int vocab_size_;
  SamplingParams params_;
  std::vector<TokenId> ends_, text_, logprob_ids_;
  int num_prompt_ = 0, first_row_ = 0;
  std::unique_ptr<ToyConstraint> constraint_;
  std::optional<ConstraintCursor> cursor_;
  std::optional<MovingHook> hook_;
  std::optional<LogitsProcessors> processors_;
  DraftTree draft_;
  SamplingRule rule_;
  SampleRequest request_;
  SamplerScratch scratch_;
};

class RandomStep {
 public:
  RandomStep(RandomNumbers& random, int vocab_size, int num_requests)
      : logits_(random, vocab_size), masks_(vocab_size) {
    for (int i = 0; i < num_requests; ++i) {
      owned_.push_back(std::make_unique<RandomRequest>(random, vocab_size, logits_));
      owned_.back()->AddTo(masks_);
      requests_.push_back(owned_.back()->request());
    }
    masks_.Compute();
  }

  const RandomLogits& logits() const { return logits_; }
  std::span<const SampleRequest> requests() const { return requests_; }

 private:
  RandomLogits logits_;
  StepMasks masks_;
  std::vector<std::unique_ptr<RandomRequest>> owned_;
  std::vector<SampleRequest> requests_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CUDA_VERIFY_RANDOM_STEP_H_
