// The outcomes of random steps on the GPU against those of HostVerifier, with ==.
#include "cuda/verify/cuda_verifier.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <string>

#include "cuda/emulation/in_every_order.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/verify/random_step.h"

namespace forerun::cuda {
namespace {

using testing::RandomNumbers;
using testing::RandomStep;

// Logits in device memory.
class DeviceRows {
 public:
  explicit DeviceRows(const testing::RandomLogits& logits) : rows_(logits.rows()) {
    const std::span<const float> values = logits.values();
    EXPECT_EQ(cudaMalloc(&data_, values.size_bytes() + 1), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
              cudaSuccess);
    rows_.data = data_;
  }
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;
  ~DeviceRows() { cudaFree(data_); }

  ConstRows rows() const { return rows_; }

 private:
  float* data_ = nullptr;
  ConstRows rows_;
};

// What a verifier says of a step.
struct Answers {
  std::vector<Outcome> outcomes;
  std::vector<TokenLogprob> logprobs;

  Answers(Verifier& verifier, ConstRows logits, const RandomStep& step) {
    verifier.Begin(logits, step.requests());
    const std::span<const Outcome> found = verifier.Finish();
    outcomes.assign(found.begin(), found.end());
    logprobs = verifier.logprobs();
  }
};

// Of tests that compare: what was compared.
struct Account {
  int num_requests = 0, num_tokens = 0, num_accepted = 0, num_errors = 0, num_logprobs = 0;

  void Add(const Answers& answers) {
    for (const Outcome& outcome : answers.outcomes) {
      ++num_requests;
      num_tokens += static_cast<int>(outcome.verdict.tokens.size());
      num_accepted += outcome.verdict.num_accepted();
      num_errors += !outcome.error.empty();
    }
    num_logprobs += static_cast<int>(answers.logprobs.size());
  }
};

bool AreOneStepApart(float a, float b) { return a == b || a == std::nextafter(b, a); }

std::string Described(const SampleRequest& request) {
  std::ostringstream text;
  text << request.num_scored() << " scored tokens";
  if (!request.samples) return text.str();
  const SamplingRule& rule = *request.rule;
  text << ", temperature " << rule.temperature << ", top_k " << rule.top_k << ", top_p "
       << rule.top_p << ", min_p " << rule.min_p << ", method "
       << static_cast<int>(rule.acceptance_method) << (rule.processors != nullptr ? ", edits" : "")
       << "\n"
       << request.draft->DebugString();
  return text.str();
}

void ExpectSameRange(const LogprobRange& found, const LogprobRange& expected) {
  EXPECT_EQ(found.begin, expected.begin);
  EXPECT_EQ(found.num_tokens, expected.num_tokens);
  EXPECT_EQ(found.per_token, expected.per_token);
}

void ExpectSame(const RandomStep& step, const Answers& found, const Answers& expected) {
  ASSERT_EQ(found.outcomes.size(), expected.outcomes.size());
  for (std::size_t i = 0; i < expected.outcomes.size(); ++i) {
    SCOPED_TRACE("request " + std::to_string(i) + ": " + Described(step.requests()[i]));
    const Outcome& outcome = expected.outcomes[i];
    EXPECT_EQ(found.outcomes[i].verdict.tokens, outcome.verdict.tokens);
    EXPECT_EQ(found.outcomes[i].verdict.accepted_nodes, outcome.verdict.accepted_nodes);
    EXPECT_EQ(found.outcomes[i].error, outcome.error);
    EXPECT_EQ(found.outcomes[i].is_corrupted, outcome.is_corrupted);
    ExpectSameRange(found.outcomes[i].prompt_logprobs, outcome.prompt_logprobs);
    ExpectSameRange(found.outcomes[i].logprobs, outcome.logprobs);
  }
  ASSERT_EQ(found.logprobs.size(), expected.logprobs.size());
  for (std::size_t i = 0; i < expected.logprobs.size(); ++i) {
    const TokenLogprob& a = found.logprobs[i];
    const TokenLogprob& b = expected.logprobs[i];
    EXPECT_TRUE(a.token == b.token && a.rank == b.rank && AreOneStepApart(a.logprob, b.logprob))
        << "entry " << i << ": token " << a.token << " " << a.logprob << " rank " << a.rank
        << ", not token " << b.token << " " << b.logprob << " rank " << b.rank;
  }
}

// Kernels with checks of memory or races take many times as long.
bool IsSlow() {
#if defined(__SANITIZE_ADDRESS__)
  return true;
#elif defined(FORERUN_EMULATED_GPU)
  return emulation::DetectsRaces();
#else
  return false;
#endif
}

int PickVocabSize(RandomNumbers& random) {
  if (random.Chance(0.3)) return random.Pick(1, 12);
  return random.Pick(1, random.Chance(0.1) ? 4000 : 300);
}

// Verifies `num_steps` random steps with one verifier, each in every order of threads.
void CompareSteps(RandomNumbers& random, int vocab_size, int num_steps, Account& account) {
  const VerifierLimits limits = {
      .vocab_size = vocab_size, .max_requests = 6, .max_rows = 300, .max_request_tokens = 100};
  HostVerifier host(limits);
  CudaVerifier verifier(limits);
  for (int i = 0; i < num_steps && !::testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("vocabulary " + std::to_string(vocab_size) + ", step " + std::to_string(i));
    const RandomStep step(random, vocab_size, random.Pick(0, 6));
    const Answers expected(host, step.logits().rows(), step);
    const DeviceRows rows(step.logits());
    std::vector<TokenLogprob> first;
    emulation::InEveryOrder([&] {
      if (::testing::Test::HasFailure()) return;  // once is enough
      const Answers found(verifier, rows.rows(), step);
      ExpectSame(step, found, expected);
      if (first.empty()) first = found.logprobs;
      EXPECT_EQ(found.logprobs, first);  // in every bit
    });
    account.Add(expected);
  }
}

TEST(CudaVerifyTest, RandomStepsHaveTheOutcomesOfTheHost) {
  RandomNumbers random(1);
  Account account;
  const int num_requests =
      IsSlow() ? testing::NumExamples(60, 1000) : testing::NumExamples(400, 100000);
  while (account.num_requests < num_requests && !::testing::Test::HasFailure()) {
    CompareSteps(random, PickVocabSize(random), 4, account);
  }
  EXPECT_GT(account.num_tokens, account.num_requests);
  EXPECT_GT(account.num_accepted, account.num_requests / 4);
  EXPECT_GT(account.num_errors, account.num_requests / 100);
  EXPECT_GT(account.num_logprobs, account.num_requests);
  RecordProperty("requests", account.num_requests);
  RecordProperty("tokens", account.num_tokens);
  RecordProperty("accepted", account.num_accepted);
}

}  // namespace
}  // namespace forerun::cuda
