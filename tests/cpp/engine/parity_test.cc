// The parity matrix over a scripted model: each parameter alone and all of them at random, under
// each kind of drafter, greedy and sampled, in mixed batches over tiny pools. Ids, finish reasons
// and lengths of text equal plain decoding's, and so do log-probabilities, bit by bit.
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/random_engine.h"

namespace forerun {
namespace {

using testing::DraftKind;
using testing::RandomEngine;

constexpr int kVocabSize = RandomEngine::kVocabSize;

struct NamedChange {
  const char* name;
  RandomEngine::Change change;
};

int Pick(std::mt19937& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

std::vector<NamedChange> Parameters() {
  using R = std::mt19937;
  using P = SamplingParams;
  return {
      {"none", [](R&, P&) {}},
      {"top_k", [](R& r, P& p) { p.top_k = Pick(r, 1, kVocabSize); }},
      {"top_p", [](R& r, P& p) { p.top_p = Pick(r, 1, 99) / 100.0; }},
      {"min_p", [](R& r, P& p) { p.min_p = Pick(r, 1, 100) / 100.0; }},
      {"presence_penalty", [](R& r, P& p) { p.presence_penalty = Pick(r, -200, 200) / 100.0; }},
      {"frequency_penalty", [](R& r, P& p) { p.frequency_penalty = Pick(r, -200, 200) / 100.0; }},
      {"repetition_penalty", [](R& r, P& p) { p.repetition_penalty = Pick(r, 20, 300) / 100.0; }},
      {"logit_bias",
       [](R& r, P& p) {
         for (int i = 0; i < 3; ++i) {
           p.logit_bias[Pick(r, 0, kVocabSize - 1)] = Pick(r, -100, 100) / 10.0;
         }
       }},
      {"allowed_token_ids",
       [](R& r, P& p) {
         p.allowed_token_ids.emplace();
         for (int i = Pick(r, 1, 4); i > 0; --i) {
           p.allowed_token_ids->push_back(Pick(r, 0, kVocabSize - 1));
         }
       }},
      {"bad_words",
       [](R& r, P& p) {
         for (int i = Pick(r, 1, 9); i > 0; --i) {
           p.bad_words.push_back({Pick(r, 0, kVocabSize - 1), Pick(r, 0, kVocabSize - 1)});
           if (i % 2 == 0) p.bad_words.back().push_back(Pick(r, 0, kVocabSize - 1));
         }
       }},
      {"min_tokens", [](R& r, P& p) { p.min_tokens = Pick(r, 1, p.max_tokens); }},
      {"max_tokens", [](R& r, P& p) { p.max_tokens = Pick(r, 1, 6); }},
      {"stop", [](R& r, P& p) { p.stop = {Pick(r, 0, 1) == 0 ? "ca" : "bba", "accb"}; }},
      {"include_stop_str_in_output",
       [](R& r, P& p) {
         p.stop = {Pick(r, 0, 1) == 0 ? "ca" : "bba"};
         p.include_stop_str_in_output = true;
       }},
      {"stop_token_ids", [](R& r, P& p) { p.stop_token_ids = {Pick(r, 0, 4), Pick(r, 5, 10)}; }},
      {"ignore_eos", [](R&, P& p) { p.ignore_eos = true; }},
      {"skip_special_tokens",
       [](R&, P& p) {
         p.skip_special_tokens = false;
         p.stop = {"ca"};
       }},
      {"logprobs", [](R& r, P& p) { p.logprobs = Pick(r, -1, kVocabSize); }},
      {"prompt_logprobs", [](R& r, P& p) { p.prompt_logprobs = Pick(r, -1, kVocabSize); }},
      {"everything at random", RandomEngine::SetRandomParams},
  };
}

// Half of a batch has the parameter, the others have random parameters.
RandomEngine::Change Mixed(const NamedChange& named, bool is_greedy) {
  return [change = named.change, is_greedy](std::mt19937& random, SamplingParams& params) {
    if (Pick(random, 0, 1) == 0) return RandomEngine::SetRandomParams(random, params);
    params.temperature = is_greedy ? 0.0 : Pick(random, 1, 20) / 10.0;
    params.logprobs = Pick(random, 0, 2);
    change(random, params);
  };
}

TEST(ParityTest, NoDrafterChangesAnythingUnderAnyParameter) {
  const int num_examples = testing::NumExamples(20, 1000);
  const std::vector<NamedChange> parameters = Parameters();
  int num_requests = 0;
  unsigned seed = 0;
  for (const NamedChange& parameter : parameters) {
    for (int kind = 0; kind < testing::kNumDraftKinds; ++kind) {
      for (bool is_greedy : {true, false}) {
        for (int i = 0; i < num_examples; ++i) {
          SCOPED_TRACE(std::string(parameter.name) + ", drafter " + std::to_string(kind) +
                       ", seed " + std::to_string(seed));
          num_requests +=
              RandomEngine(seed++, static_cast<DraftKind>(kind), Mixed(parameter, is_greedy)).Run();
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
  std::printf(
      "parity matrix: %zu parameters x %d drafters x 2 temperatures x %d engines: %d "
      "requests, all equal\n",
      parameters.size(), testing::kNumDraftKinds, num_examples, num_requests);
}

}  // namespace
}  // namespace forerun
