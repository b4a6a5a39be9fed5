// Plain decoding in the most obvious way: the oracle of every engine test.
#ifndef FORERUN_TESTS_CPP_TESTING_NAIVE_GENERATE_H_
#define FORERUN_TESTS_CPP_TESTING_NAIVE_GENERATE_H_

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cpp/verify/distribution.h"
#include "cpp/verify/logprobs.h"
#include "forerun/sampling_params.h"
#include "tests/cpp/testing/naive_processors.h"

namespace forerun::testing {

struct NaiveResult {
  std::vector<TokenId> tokens;
  std::vector<TokenLogprob> logprobs, prompt_logprobs;
  FinishReason finish_reason = FinishReason::kNone;
  std::string text;  // up to and without a stop string
};

struct NaiveModel {
  std::function<std::vector<float>(std::span<const TokenId>)> logits_of;
  std::vector<TokenId> eos_token_ids;
  std::vector<std::string> token_bytes;
  std::vector<TokenId> special_tokens;
  int max_model_len = 0;
};

inline void AddLogprobs(std::span<const float> logits, TokenId token, int num_top,
                        std::vector<TokenLogprob>& out) {
  SamplerScratch scratch;
  AppendLogprobs(logits, token, num_top, scratch, out);
}

// The earliest place where a stop string ends at or behind `from`, as the text's new length.
inline std::optional<std::size_t> FindStop(const std::string& text, std::size_t from,
                                           const SamplingParams& params) {
  std::optional<std::size_t> best;
  std::size_t best_begin = std::string::npos;
  for (const std::string& stop : params.stop) {
    for (std::size_t begin = 0; begin + stop.size() <= text.size(); ++begin) {
      if (begin + stop.size() <= from || text.compare(begin, stop.size(), stop) != 0) continue;
      if (begin < best_begin) {
        best_begin = begin;
        best = begin + (params.include_stop_str_in_output ? stop.size() : 0);
      }
      break;
    }
  }
  return best;
}

inline NaiveResult NaiveGenerate(const NaiveModel& model, std::vector<TokenId> text,
                                 const SamplingParams& params, std::uint64_t seed,
                                 const NaiveHooks& hooks = {}) {
  NaiveResult result;
  std::vector<TokenId> ends = params.stop_token_ids;
  if (!params.ignore_eos) {
    ends.insert(ends.end(), model.eos_token_ids.begin(), model.eos_token_ids.end());
  }
  const SamplingRule rule = MakeSamplingRule(params, seed);
  const std::vector<TokenId> prompt = text;
  for (std::size_t i = 1; params.prompt_logprobs && i < prompt.size(); ++i) {
    AddLogprobs(model.logits_of(std::span(prompt).first(i)), prompt[i], *params.prompt_logprobs,
                result.prompt_logprobs);
  }
  while (result.finish_reason == FinishReason::kNone) {
    const int index = static_cast<int>(result.tokens.size());
    const std::vector<float> logits = model.logits_of(text);
    const std::vector<float> processed =
        NaiveProcess(logits, params, prompt, result.tokens, ends, hooks);
    TokenId token = 0;
    try {
      token = SampleTokenSlow(processed, rule, index);
    } catch (const NumericError&) {
      result.finish_reason = FinishReason::kError;
      break;
    }
    if (params.logprobs) AddLogprobs(logits, token, *params.logprobs, result.logprobs);
    text.push_back(token);
    result.tokens.push_back(token);
    const bool may_stop = static_cast<int>(result.tokens.size()) > params.min_tokens;
    const bool is_skipped =
        params.skip_special_tokens && NumOccurrences(model.special_tokens, token) > 0;
    const std::string piece = is_skipped ? "" : model.token_bytes[token];
    if (may_stop && std::ranges::count(ends, token) > 0) {
      result.finish_reason = FinishReason::kStop;
      if (params.include_stop_str_in_output) result.text += piece;
      break;
    }
    const std::size_t old_size = result.text.size();
    result.text += piece;
    if (may_stop) {
      if (const auto cut = FindStop(result.text, old_size, params)) {
        result.text.resize(*cut);
        result.finish_reason = FinishReason::kStop;
        break;
      }
    }
    if (static_cast<int>(result.tokens.size()) == params.max_tokens ||
        static_cast<int>(text.size()) == model.max_model_len) {
      result.finish_reason = FinishReason::kLength;
    }
  }
  return result;
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_NAIVE_GENERATE_H_
