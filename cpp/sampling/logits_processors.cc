#include "cpp/sampling/logits_processors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>
#include <limits>
#include <string>

#include "cpp/util/check.h"
#include "cpp/util/request_error.h"
#include "cpp/util/require.h"

namespace forerun {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 ||
         params.presence_penalty != 0.0;
}

// A row that is copied when it is first written.
class LazyCopy {
 public:
  LazyCopy(std::span<const float> logits, std::vector<float>& copy)
      : logits_(logits), copy_(copy) {}

  float* data() {
    if (!is_copied_) copy_.assign(logits_.begin(), logits_.end());
    is_copied_ = true;
    return copy_.data();
  }

  void KeepOnly(std::span<const TokenId> tokens) {
    copy_.assign(logits_.size(), kMinusInfinity);
    for (TokenId token : tokens) copy_[token] = logits_[token];
    is_copied_ = true;
  }

  // One bit per token.
  void KeepOnly(std::span<const std::uint32_t> words) {
    float* const logits = data();
    const auto size = static_cast<int>(copy_.size());
    for (int first = 0; first < size; first += 32) {
      const std::uint32_t word = words[first / 32];
      if (word == ~std::uint32_t{0}) continue;
      if (word == 0) {  // most words of most grammars
        std::fill_n(logits + first, std::min(size - first, 32), kMinusInfinity);
        continue;
      }
      for (int i = 0; i < 32 && first + i < size; ++i) {
        if ((word >> i & 1) == 0) logits[first + i] = kMinusInfinity;
      }
    }
  }

  std::span<float> changed() { return {data(), copy_.size()}; }
  std::span<const float> get() const {
    return is_copied_ ? std::span<const float>(copy_) : logits_;
  }

 private:
  const std::span<const float> logits_;
  std::vector<float>& copy_;
  bool is_copied_ = false;
};

// Whether every allowed token is one of `tokens`. `allowed` has a bit per token, and may be empty.
bool AllowsOnly(std::span<const std::uint32_t> allowed, std::span<const TokenId> tokens,
                int vocab_size) {
  if (allowed.empty()) return false;
  int num_allowed = 0;
  for (int first = 0; first < vocab_size; first += 32) {
    const int num_bits = std::min(vocab_size - first, 32);
    num_allowed += std::popcount(allowed[first / 32] & (~std::uint32_t{0} >> (32 - num_bits)));
  }
  int num_shared = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const bool is_repeated = std::ranges::count(tokens.first(i), tokens[i]) > 0;
    if (!is_repeated) num_shared += static_cast<int>(allowed[tokens[i] / 32] >> tokens[i] % 32 & 1);
  }
  return num_allowed == num_shared;
}

}  // namespace

void CheckLogitsOptions(const SamplingParams& params) {
  if (params.allowed_token_ids.has_value()) {
    Require(!params.allowed_token_ids->empty(), "allowed_token_ids", "an empty list",
            "at least one token id, or absent for all tokens");
    for (TokenId token : *params.allowed_token_ids) RequireTokenId("allowed_token_ids", token);
  }
  for (const std::vector<TokenId>& word : params.bad_words) {
    Require(!word.empty(), "bad_words", "a word without tokens", "words of at least one token");
    for (TokenId token : word) RequireTokenId("bad_words", token);
  }
  for (const auto& [token, bias] : params.logit_bias) {
    RequireTokenId("logit_bias", token);
    Require(bias >= -100.0 && bias <= 100.0, "logit_bias", bias, "numbers in [-100, 100]");
  }
  Require(std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0.0,
          "repetition_penalty", params.repetition_penalty, "a finite number above 0, 1 for none");
  Require(params.frequency_penalty >= -2.0 && params.frequency_penalty <= 2.0, "frequency_penalty",
          params.frequency_penalty, "a number in [-2, 2], 0 for none");
  Require(params.presence_penalty >= -2.0 && params.presence_penalty <= 2.0, "presence_penalty",
          params.presence_penalty, "a number in [-2, 2], 0 for none");
}

LogitsProcessors::LogitsProcessors(const SamplingParams& params,
                                   std::span<const TokenId> end_tokens,
                                   const std::vector<TokenId>& tokens, int max_tokens,
                                   RowHooks hooks)
    : params_(params),
      end_tokens_(end_tokens),
      tokens_(tokens),
      num_prompt_(static_cast<int>(tokens.size())),
      penalties_{static_cast<float>(std::clamp(params.repetition_penalty, 1e-30, 1e30)),
                 static_cast<float>(params.frequency_penalty),
                 static_cast<float>(params.presence_penalty)},
      has_penalties_(HasPenalties(params)),
      hooks_(hooks),
      counts_(has_penalties_ ? max_tokens : 0),
      num_counted_(num_prompt_) {
  if (penalties_.repetition == 1.0f) return;  // the others do not look at the prompt
  for (TokenId token : tokens) counts_.AddFromPrompt(token);
}

bool LogitsProcessors::AreNeeded(const SamplingParams& params, std::span<const TokenId> end_tokens,
                                 RowHooks hooks) {
  return hooks.constraint != nullptr || hooks.logits_hook != nullptr ||
         params.allowed_token_ids.has_value() || !params.bad_words.empty() ||
         (params.min_tokens > 0 && !end_tokens.empty()) || !params.logit_bias.empty() ||
         HasPenalties(params);
}

void LogitsProcessors::ObserveCommitted() {
  if (!has_penalties_) return;
  for (; num_counted_ < static_cast<int>(tokens_.size()); ++num_counted_) {
    counts_.AddFromOutput(tokens_[num_counted_]);
  }
}

std::span<const float> LogitsProcessors::Apply(std::span<const float> logits, int row_index,
                                               std::span<const TokenId> path,
                                               std::vector<float>& copy) const {
  LazyCopy row(logits, copy);
  std::span<const std::uint32_t> allowed;
  if (params_.allowed_token_ids.has_value()) row.KeepOnly(*params_.allowed_token_ids);
  if (hooks_.constraint != nullptr) {
    allowed = hooks_.constraint->Allowed(row_index);
    row.KeepOnly(allowed);
  }
  EachBan(allowed, path, static_cast<int>(logits.size()),
          [&](TokenId token) { row.data()[token] = kMinusInfinity; });
  for (const auto& [token, bias] : params_.logit_bias) {
    row.data()[token] += static_cast<float>(bias);
  }
  if (hooks_.logits_hook != nullptr) {
    ApplyHook(path, row.changed());
    if (!allowed.empty()) row.KeepOnly(allowed);
  }
  if (has_penalties_ && !(counts_.entries().empty() && path.empty())) Penalize(path, row.data());
  return row.get();
}

void LogitsProcessors::AppendBans(std::span<const std::uint32_t> allowed,
                                  std::span<const TokenId> path, int vocab_size,
                                  std::vector<TokenId>& bans) const {
  EachBan(allowed, path, vocab_size, [&](TokenId token) { bans.push_back(token); });
}

template <typename Ban>
void LogitsProcessors::EachBan(std::span<const std::uint32_t> allowed,
                               std::span<const TokenId> path, int vocab_size, Ban ban) const {
  for (const std::vector<TokenId>& word : params_.bad_words) {
    if (Completes(word, path)) ban(word.back());
  }
  if (num_output(path) >= params_.min_tokens || AllowsOnly(allowed, end_tokens_, vocab_size)) {
    return;
  }
  for (TokenId token : end_tokens_) ban(token);
}

void LogitsProcessors::ApplyHook(std::span<const TokenId> path, std::span<float> logits) const {
  try {
    hooks_.logits_hook->Process(std::span(tokens_).subspan(num_prompt_), path, logits);
  } catch (const std::exception& error) {
    throw HookError(std::string("the logits hook failed: ") + error.what());
  }
}

// Whether the output ends with all of the word but its last token.
bool LogitsProcessors::Completes(std::span<const TokenId> word,
                                 std::span<const TokenId> path) const {
  const int num_before = static_cast<int>(word.size()) - 1;
  const int num_output_tokens = num_output(path);
  if (num_before > num_output_tokens) return false;
  const int num_committed = num_output_tokens - static_cast<int>(path.size());
  for (int i = 0; i < num_before; ++i) {
    const int index = num_output_tokens - num_before + i;
    const TokenId token =
        index < num_committed ? tokens_[num_prompt_ + index] : path[index - num_committed];
    if (token != word[i]) return false;
  }
  return true;
}

void LogitsProcessors::Penalize(std::span<const TokenId> path, float* logits) const {
  FORERUN_CHECK(num_counted_ == static_cast<int>(tokens_.size()), "a committed token is uncounted");
  const auto bit_of = [](TokenId token) { return std::uint64_t{1} << (token % 64); };
  const auto num_in_path = [path](TokenId token) {
    return static_cast<int>(std::ranges::count(path, token));
  };
  std::uint64_t path_bits = 0;  // spares most tokens a look at the path
  for (TokenId token : path) path_bits |= bit_of(token);
  for (const TokenCounts::Entry& entry : counts_.entries()) {
    int count = entry.num_in_output;
    if ((path_bits & bit_of(entry.token)) != 0) count += num_in_path(entry.token);
    logits[entry.token] = Penalized(logits[entry.token], count, penalties_);
  }
  for (std::size_t i = 0; i < path.size(); ++i) {
    const bool is_done =
        counts_.Contains(path[i]) || std::ranges::count(path.first(i), path[i]) > 0;
    if (is_done) continue;
    logits[path[i]] = Penalized(logits[path[i]], num_in_path(path[i]), penalties_);
  }
}

}  // namespace forerun
