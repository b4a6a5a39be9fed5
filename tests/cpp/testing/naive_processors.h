// What happens to logits before a token is sampled, by the shortest route from the documentation:
// everything is looked up in the whole text, every time.
#ifndef FORERUN_TESTS_CPP_TESTING_NAIVE_PROCESSORS_H_
#define FORERUN_TESTS_CPP_TESTING_NAIVE_PROCESSORS_H_

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "forerun/sampling_params.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun::testing {

inline int NumOccurrences(std::span<const TokenId> text, TokenId token) {
  return static_cast<int>(std::ranges::count(text, token));
}

inline bool EndsWith(std::span<const TokenId> text, std::span<const TokenId> end) {
  return text.size() >= end.size() && std::ranges::equal(text.last(end.size()), end);
}

struct NaiveHooks {
  std::optional<ToyGrammar> grammar;
  std::function<void(std::span<const TokenId> output, std::span<float> logits)> change_logits;
};

inline void RuleOut(const ToyGrammar& grammar, std::span<const TokenId> output,
                    std::vector<float>& logits) {
  const int state = grammar.StateAfter(output);
  for (TokenId token = 0; token < std::ssize(logits); ++token) {
    if (state < 0 || grammar.next[state][token] < 0) {
      logits[token] = -std::numeric_limits<float>::infinity();
    }
  }
}

inline std::vector<float> NaiveProcess(std::vector<float> logits, const SamplingParams& params,
                                       std::span<const TokenId> prompt,
                                       std::span<const TokenId> output,
                                       std::span<const TokenId> end_tokens,
                                       const NaiveHooks& hooks = {}) {
  constexpr float kRuledOut = -std::numeric_limits<float>::infinity();
  const auto repetition = static_cast<float>(params.repetition_penalty);
  const auto frequency = static_cast<float>(params.frequency_penalty);
  const auto presence = static_cast<float>(params.presence_penalty);
  bool may_go_on = true;  // with a token that is no end
  if (hooks.grammar) {
    std::vector<float> kept(logits.size(), 0.0f);
    RuleOut(*hooks.grammar, output, kept);
    may_go_on = false;
    for (TokenId token = 0; token < std::ssize(kept); ++token) {
      may_go_on |= kept[token] == 0.0f && NumOccurrences(end_tokens, token) == 0;
    }
    RuleOut(*hooks.grammar, output, logits);
  }
  for (TokenId token = 0; token < std::ssize(logits); ++token) {
    float& logit = logits[token];
    if (params.allowed_token_ids && NumOccurrences(*params.allowed_token_ids, token) == 0) {
      logit = kRuledOut;
    }
    for (const std::vector<TokenId>& word : params.bad_words) {
      const bool is_next = EndsWith(output, std::span(word).first(word.size() - 1));
      if (word.back() == token && is_next) logit = kRuledOut;
    }
    const bool is_short = std::ssize(output) < params.min_tokens;
    if (is_short && may_go_on && NumOccurrences(end_tokens, token) > 0) {
      logit = kRuledOut;
    }
    if (params.logit_bias.contains(token)) {
      logit += static_cast<float>(params.logit_bias.at(token));
    }
  }
  if (hooks.change_logits) hooks.change_logits(output, logits);
  if (hooks.grammar) RuleOut(*hooks.grammar, output, logits);
  for (TokenId token = 0; token < std::ssize(logits); ++token) {
    float& logit = logits[token];
    const int num_in_output = NumOccurrences(output, token);
    if (num_in_output + NumOccurrences(prompt, token) > 0 && repetition != 1.0f) {
      logit = logit > 0.0f ? logit / repetition : logit * repetition;
    }
    logit -= frequency * static_cast<float>(num_in_output);
    if (num_in_output > 0) logit -= presence;
  }
  return logits;
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_NAIVE_PROCESSORS_H_
