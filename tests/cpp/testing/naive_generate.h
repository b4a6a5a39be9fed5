// Plain decoding in the most obvious way: the oracle of every engine test.
#ifndef FORERUN_TESTS_CPP_TESTING_NAIVE_GENERATE_H_
#define FORERUN_TESTS_CPP_TESTING_NAIVE_GENERATE_H_

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cpp/sampling/logprobs.h"
#include "cpp/sampling/sampler.h"
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

// An output so far as a list of tokens' texts, some of them omitted from what is shown.
struct NaiveText {
  struct Piece {
    std::string bytes;
    bool is_shown = true;
  };
  std::vector<Piece> pieces;

  std::string Shown() const {
    std::string text;
    for (const Piece& piece : pieces) text += piece.is_shown ? piece.bytes : "";
    return text;
  }

  // The length of the shown text, cut at the stop string that ends in the last piece; the leftmost
  // wins, then the first in the list. Tried at every boundary where it may begin: each byte that is
  // shown, and each omitted piece as a whole; once with the omitted pieces left out, once with
  // them.
  std::optional<std::size_t> FindStop(const SamplingParams& params) const {
    std::optional<std::size_t> best;
    std::size_t best_begin = std::string::npos;
    for (const std::string& stop : params.stop) {
      for (bool with_names : {false, true}) {
        // Atoms: bytes that are shown, one each, and whole names.
        std::vector<Piece> atoms;
        std::size_t num_old = 0;
        for (std::size_t i = 0; i < pieces.size(); ++i) {
          if (i + 1 == pieces.size()) num_old = atoms.size();
          if (pieces[i].is_shown) {
            for (char byte : pieces[i].bytes) atoms.push_back({std::string(1, byte), true});
          } else if (with_names && !pieces[i].bytes.empty()) {
            atoms.push_back(pieces[i]);
          }
        }
        std::size_t shown_begin = 0;
        for (std::size_t begin = 0; begin < atoms.size(); ++begin) {
          std::string joined;
          std::size_t shown_end = shown_begin;
          for (std::size_t i = begin; i < atoms.size() && joined.size() < stop.size(); ++i) {
            joined += atoms[i].bytes;
            shown_end += atoms[i].is_shown ? 1 : 0;
            if (joined == stop && i >= num_old && shown_begin < best_begin) {
              best_begin = shown_begin;
              best = params.include_stop_str_in_output ? shown_end : shown_begin;
            }
          }
          shown_begin += atoms[begin].is_shown ? 1 : 0;
        }
      }
    }
    return best;
  }
};

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
  NaiveText output;
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
    output.pieces.push_back({model.token_bytes[token], !is_skipped});
    if (may_stop) {
      if (const auto cut = output.FindStop(params)) {
        result.text = output.Shown().substr(0, *cut);
        result.finish_reason = FinishReason::kStop;
        break;
      }
    }
    // A grammar leaves an end in a short text only where it allows nothing else.
    if ((may_stop || hooks.grammar) && std::ranges::count(ends, token) > 0) {
      result.finish_reason = FinishReason::kStop;
      if (params.include_stop_str_in_output) result.text = output.Shown();
      break;
    }
    result.text = output.Shown();
    if (static_cast<int>(result.tokens.size()) == params.max_tokens ||
        static_cast<int>(text.size()) == model.max_model_len) {
      result.finish_reason = FinishReason::kLength;
    }
  }
  return result;
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_NAIVE_GENERATE_H_
