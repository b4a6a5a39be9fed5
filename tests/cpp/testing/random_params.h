// Random logits options over a small vocabulary that change most texts.
#ifndef FORERUN_TESTS_CPP_TESTING_RANDOM_PARAMS_H_
#define FORERUN_TESTS_CPP_TESTING_RANDOM_PARAMS_H_

#include <random>
#include <vector>

#include "forerun/sampling_params.h"

namespace forerun::testing {

class RandomParams {
 public:
  // Each option is on with this probability.
  RandomParams(std::mt19937& random, int vocab_size, double density)
      : random_(random), vocab_size_(vocab_size), density_(density) {}

  void SetLogitsOptions(SamplingParams& params) {
    if (IsOn()) {
      // Every token but a few, so that something is left whatever else is ruled out.
      params.allowed_token_ids.emplace();
      const int first_missing = Pick(0, vocab_size_ - 1);
      for (int i = Pick(1, vocab_size_ / 3); i < vocab_size_; ++i) {
        params.allowed_token_ids->push_back((first_missing + i) % vocab_size_);
      }
    }
    if (IsOn()) {
      for (int i = Pick(1, 4); i > 0; --i) {
        std::vector<TokenId>& word = params.bad_words.emplace_back();
        for (int length = Pick(1, 3); length > 0; --length)
          word.push_back(Pick(0, vocab_size_ - 1));
        if (word.size() == 1) word[0] = 1;  // or too little might be left
      }
    }
    if (IsOn()) {
      for (int i = Pick(1, 5); i > 0; --i) {
        params.logit_bias[Pick(0, vocab_size_ - 1)] = Pick(-30, 30) / 7.0;
      }
    }
    if (IsOn()) params.repetition_penalty = Pick(50, 200) / 100.0;
    if (IsOn()) params.frequency_penalty = Pick(-200, 200) / 100.0;
    if (IsOn()) params.presence_penalty = Pick(-200, 200) / 100.0;
  }

  void SetLogprobs(SamplingParams& params) {
    if (IsOn()) params.logprobs = Pick(-1, vocab_size_);
    if (IsOn()) params.prompt_logprobs = Pick(-1, vocab_size_);
  }

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool IsOn() { return std::bernoulli_distribution(density_)(random_); }

  std::mt19937& random_;
  const int vocab_size_;
  const double density_;
};

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_RANDOM_PARAMS_H_
