// The outcomes of random steps on the GPU against those of HostVerifier, with ==.
#include "cuda/verify/cuda_verifier.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>

#include "cuda/emulation/in_every_order.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cuda/build_kind.h"
#include "tests/cuda/verify/device_logits.h"
#include "tests/cuda/verify/lazy_streams.h"
#include "tests/cuda/verify/random_step.h"

namespace forerun::cuda {
namespace {

using testing::DeviceRows;
using testing::DeviceValues;
using testing::RandomNumbers;
using testing::RandomStep;

// What a verifier says of a step.
struct Answers {
  std::vector<Outcome> outcomes;
  std::vector<TokenLogprob> logprobs;

  // Of the step that was begun.
  explicit Answers(Verifier& verifier) {
    const std::span<const Outcome> found = verifier.Finish();
    outcomes.assign(found.begin(), found.end());
    logprobs = verifier.logprobs();
  }
  Answers(Verifier& verifier, ConstRows logits, const RandomStep& step)
      : Answers((verifier.Begin(logits, step.requests()), verifier)) {}
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

// Within one float step: the sums of exponentials are rounded in another order.
bool AreSameLogprobs(float a, float b) { return a == b || a == std::nextafter(b, a); }

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
    EXPECT_TRUE(a.token == b.token && a.rank == b.rank && AreSameLogprobs(a.logprob, b.logprob))
        << "entry " << i << ": token " << a.token << " " << a.logprob << " rank " << a.rank
        << ", not token " << b.token << " " << b.logprob << " rank " << b.rank;
  }
}

int PickVocabSize(RandomNumbers& random) {
  if (random.Chance(0.3)) return random.Pick(1, 12);
  return random.Pick(1, random.Chance(0.1) ? 4000 : 300);
}

// Verifies `num_steps` random steps with one verifier, each in every order of threads.
void CompareSteps(RandomNumbers& random, int vocab_size, int num_steps, Account& account) {
  const VerifierLimits limits = {.vocab_size = vocab_size, .max_requests = 6, .max_rows = 300};
  HostVerifier host(limits);
  CudaVerifier verifier(limits);
  for (int i = 0; i < num_steps && !::testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("vocabulary " + std::to_string(vocab_size) + ", step " + std::to_string(i));
    const RandomStep step(random, vocab_size, random.Pick(0, 6));
    const Answers expected(host, step.logits().rows(), step);
    const DeviceRows rows(step.logits());
    std::vector<TokenLogprob> first;
    int run = 0;
    emulation::InEveryOrder(
        [&] {
          if (::testing::Test::HasFailure()) return;              // once is enough
          const testing::LazyStreams lazy((i + run++) % 2 == 0);  // in some order of each step
          const Answers found(verifier, rows.rows(), step);
          ExpectSame(step, found, expected);
          if (first.empty()) first = found.logprobs;
          EXPECT_EQ(found.logprobs, first);  // in every bit
        },
        /*num_random=*/1);
    account.Add(expected);
  }
}

// Several seeds, so that a long run uses several cores.
class CudaVerifySeedTest : public ::testing::TestWithParam<int> {};

TEST_P(CudaVerifySeedTest, RandomStepsHaveTheOutcomesOfTheHost) {
  RandomNumbers random(GetParam());
  Account account;
  const int num_requests =
      testing::IsPlainBuild() ? testing::NumExamples(100, 25000) : testing::NumExamples(15, 250);
  while (account.num_requests < num_requests && !HasFailure()) {
    CompareSteps(random, PickVocabSize(random), 4, account);
  }
  std::cout << "compared " << account.num_requests << " requests with " << account.num_tokens
            << " tokens, " << account.num_accepted << " of them accepted, " << account.num_errors
            << " errors and " << account.num_logprobs << " log-probabilities\n";
  EXPECT_GT(account.num_tokens, 0);
  if (account.num_requests < 100) return;  // too few for what follows
  EXPECT_GT(account.num_tokens, account.num_requests);
  EXPECT_GT(account.num_accepted, account.num_requests / 4);
  EXPECT_GT(account.num_errors, account.num_requests / 100);
  EXPECT_GT(account.num_logprobs, account.num_requests);
}

INSTANTIATE_TEST_SUITE_P(Seeds, CudaVerifySeedTest, ::testing::Range(1, 5));

TEST(CudaVerifyTest, LargeVocabulariesToo) {
  if (!testing::IsPlainBuild()) GTEST_SKIP() << "too slow with checks of memory or races";
  RandomNumbers random(2);
  for (int vocab_size : {49152, 128256, 262144}) {
    Account account;
    const int num_requests = testing::NumExamples(2, 200);
    while (account.num_requests < num_requests && !HasFailure()) {
      CompareSteps(random, vocab_size, 1, account);
    }
    EXPECT_GT(account.num_tokens, 0);
  }
}

// Logits of 16 bits, and what they are as floats.
template <DType kType>
void CompareTyped() {
  constexpr int kVocabSize = 70;
  RandomNumbers random(3);
  const VerifierLimits limits = {.vocab_size = kVocabSize, .max_requests = 6, .max_rows = 300};
  HostVerifier host(limits);
  CudaVerifier verifier(limits);
  for (int i = 0; i < (testing::IsPlainBuild() ? 40 : 5); ++i) {
    const RandomStep step(random, kVocabSize, 4);
    const ConstRows rows = step.logits().rows();
    std::vector<std::uint16_t> bits;
    std::vector<float> floats;
    for (float logit : step.logits().values()) {
      bits.push_back(FloatToBFloat16(logit));
      floats.push_back(kType == DType::kBFloat16 ? BFloat16ToFloat(bits.back())
                                                 : Float16ToFloat(bits.back()));
    }
    host.Begin({floats.data(), rows.rows, rows.cols, rows.stride}, step.requests());
    const Answers expected(host);
    const DeviceValues<std::uint16_t> values(bits);
    verifier.Begin({values.data(), kType, rows.stride}, rows.rows, step.requests());
    ExpectSame(step, Answers(verifier), expected);
  }
}
TEST(CudaVerifyTest, BFloat16LogitsAreWhatTheyAreAsFloats) { CompareTyped<DType::kBFloat16>(); }
// Any bits are some float16.
TEST(CudaVerifyTest, Float16LogitsAreWhatTheyAreAsFloats) { CompareTyped<DType::kFloat16>(); }

TEST(CudaVerifyTest, TopTokensAreThoseOfTheHost) {
  RandomNumbers random(4);
  for (int i = 0; i < (testing::IsPlainBuild() ? 30 : 5); ++i) {
    const testing::LazyStreams lazy(i % 2 == 0);
    const int vocab_size = PickVocabSize(random);
    const VerifierLimits limits = {.vocab_size = vocab_size, .max_requests = 1, .max_rows = 9};
    HostVerifier host(limits);
    CudaVerifier verifier(limits);
    for (int num_rows : {0, 3, 9}) {
      testing::RandomLogits logits(random, vocab_size);
      for (int row = 0; row < num_rows; ++row) logits.AddRow();
      const int count = random.Pick(1, 9);
      std::vector<TopToken> expected(num_rows * count), found(num_rows * count);
      host.Top(logits.rows(), count, expected);
      const DeviceRows rows(logits);
      verifier.Top(rows.rows(), count, found);
      EXPECT_EQ(found, expected);
    }
  }
}

#ifdef FORERUN_EMULATED_GPU

bool NeedsLogits(const SampleRequest& request, int vocab_size) {
  SampleBatch batch;
  batch.Build({&request, 1}, vocab_size);
  return !batch.host_requests.empty();
}

std::size_t NumHosts(const RandomStep& step, int vocab_size) {
  return std::ranges::count_if(step.requests(), [&](const SampleRequest& request) {
    return NeedsLogits(request, vocab_size);
  });
}

TEST(CudaVerifyTest, AStepIsOneCopyEachWayAndOneWait) {
  RandomNumbers random(5);
  constexpr int kVocabSize = 1500;
  const VerifierLimits limits = {.vocab_size = kVocabSize, .max_requests = 8, .max_rows = 300};
  CudaVerifier verifier(limits);
  std::int64_t num_host_rows = 0;
  for (int i = 0; i < (testing::IsPlainBuild() ? 40 : 5); ++i) {
    const RandomStep step(random, kVocabSize, 8);
    const DeviceRows rows(step.logits());
    Answers(verifier, rows.rows(), step);  // after which its memory has grown
    std::size_t max_bytes = 0, num_logits = 0;
    const emulation::Counters before = emulation::counters();
    const Answers found(verifier, rows.rows(), step);
    const emulation::Counters& after = emulation::counters();
    for (std::size_t r = 0; r < found.outcomes.size(); ++r) {
      const SampleRequest& request = step.requests()[r];
      const bool is_hosts = NeedsLogits(request, kVocabSize);
      if (is_hosts) num_logits += request.num_rows();
      max_bytes += 256 + 16 * found.outcomes[r].verdict.tokens.size();
      if (request.num_scored() > 0 || request.wants_logprobs()) {
        max_bytes += request.num_rows() * (12 + 33 * sizeof(TokenLogprob));
      }
    }
    num_host_rows += 2 * static_cast<std::int64_t>(num_logits);
    EXPECT_EQ(verifier.num_host_verified_rows(), num_host_rows);
    EXPECT_LE(after.bytes_from_device - before.bytes_from_device,
              max_bytes + num_logits * kVocabSize * sizeof(float));
    EXPECT_EQ(after.copies_to_device - before.copies_to_device, 1u);
    EXPECT_EQ(after.copies_from_device - before.copies_from_device, 1 + num_logits);
    EXPECT_EQ(after.allocations, before.allocations);
    EXPECT_EQ(after.waits - before.waits, 1 + NumHosts(step, kVocabSize));
  }
  EXPECT_GT(num_host_rows, 0);
}

constexpr int kReadVocabSize = 10 * kTileTokens;

// How often steps read each of their logits: the first with rows whose logits are normal with this
// standard deviation, the second with peaks.
double NumReads(const SamplingRule& rule, float spread, bool is_drawn, int num_steps = 2) {
  constexpr int kVocabSize = kReadVocabSize, kNumDrafted = 4;
  RandomNumbers random(7);
  const VerifierLimits limits = {
      .vocab_size = kVocabSize, .max_requests = 1, .max_rows = 1 + kNumDrafted};
  CudaVerifier verifier(limits);
  SamplerScratch scratch;
  std::vector<float> logits((1 + kNumDrafted) * kVocabSize);
  for (int i = 0; i < num_steps; ++i) {
    for (float& logit : logits) logit = spread * random.Normal();
    for (std::size_t t = 7; i == 1 && t < logits.size(); t += kVocabSize / 4) logits[t] += 35.0f;
    DraftTree draft;
    for (int node = 0; node < kNumDrafted; ++node) {
      const std::span row(logits.data() + node * kVocabSize, kVocabSize);
      if (is_drawn) {
        std::vector<float> near(row.begin(), row.end());
        for (float& logit : near) logit += 0.5f * random.Normal();
        FillDraftRow(near, rule, scratch, draft.AddRowAfter(node - 1, kVocabSize));
        AppendDrawnChild(draft, node - 1, rule.seed, i);
      } else {
        draft.AppendToChain(SampleToken(row, rule, i + node + random.Pick(0, 1), scratch), 1.0f);
      }
    }
    const SampleRequest request = {.draft = &draft, .rule = &rule, .first_output_index = i};
    const DeviceValues<float> values(logits);
    emulation::WatchLoads(values.data(), logits.size() * sizeof(float));
    verifier.Begin({values.data(), 1 + kNumDrafted, kVocabSize}, {&request, 1});
    const Outcome& found = verifier.Finish()[0];
    HostVerifier host(limits);
    host.Begin({logits.data(), 1 + kNumDrafted, kVocabSize}, {&request, 1});
    EXPECT_EQ(found.verdict.tokens, host.Finish()[0].verdict.tokens);
  }
  emulation::WatchLoads(nullptr, 0);
  const std::uint64_t num_bytes = std::exchange(emulation::counters().watched_bytes_loaded, 0);
  return static_cast<double>(num_bytes) / (logits.size() * sizeof(float) * num_steps);
}

TEST(CudaVerifyTest, RowsAreReadAsSeldomAsTheRuleAllows) {
  if (!emulation::DetectsRaces()) GTEST_SKIP() << "only the race build counts loads";
  constexpr double kOneTile = 0.1;  // is read again to sample from it
  for (AcceptanceMethod method :
       {AcceptanceMethod::kCoupled, AcceptanceMethod::kRejection, AcceptanceMethod::kBlock}) {
    const double limit = method == AcceptanceMethod::kCoupled ? 1.0 + kOneTile : 2.0;
    for (float spread : {1.0f, 3.0f, 6.0f}) {
      SCOPED_TRACE("method " + std::to_string(static_cast<int>(method)) + ", spread " +
                   std::to_string(spread));
      const SamplingRule rule = {.seed = 3, .acceptance_method = method};
      EXPECT_LE(NumReads(rule, spread, /*is_drawn=*/false), limit);
      const SamplingRule greedy = {.temperature = 0.0, .acceptance_method = method};
      EXPECT_LE(NumReads(greedy, spread, /*is_drawn=*/false), 1.0 + kOneTile);
      SamplingRule cut = rule;
      cut.top_p = 0.9;
      EXPECT_LE(NumReads(cut, spread, /*is_drawn=*/false), 3.0);
      cut.top_k = 50;
      EXPECT_LE(NumReads(cut, spread, /*is_drawn=*/false), 3.0);
      if (method == AcceptanceMethod::kCoupled) continue;
      // Of a flat step: all rows twice but the last one, a tile of each, and a part.
      EXPECT_LE(NumReads(rule, spread, /*is_drawn=*/false, /*num_steps=*/1),
                1.0 + 4.0 / 5 + kOneTile + kOneTile / 5);
      EXPECT_LE(NumReads(rule, spread, /*is_drawn=*/true), limit);
      EXPECT_LE(NumReads(cut, spread, /*is_drawn=*/true), 3.0);
    }
  }
}

TEST(CudaVerifyTest, AStepWhoseLaunchFailedCanBeBegunAgain) {
  RandomNumbers random(6);
  const VerifierLimits limits = {.vocab_size = 50, .max_requests = 6, .max_rows = 300};
  HostVerifier host(limits);
  CudaVerifier verifier(limits);
  const RandomStep step(random, 50, 6);
  const Answers expected(host, step.logits().rows(), step);
  const DeviceRows rows(step.logits());
  int num_failures = 0;
  for (int launch = 1; num_failures == launch - 1; ++launch) {
    emulation::options().launch_error = cudaErrorLaunchOutOfResources;
    emulation::options().failing_launch = launch;
    try {
      Answers(verifier, rows.rows(), step);
    } catch (const DeviceError& error) {
      EXPECT_EQ(error.wanted(), "the verification of drafts on the GPU");
      ++num_failures;
    }
    emulation::options().failing_launch = 0;
    ExpectSame(step, Answers(verifier, rows.rows(), step), expected);
  }
  EXPECT_GE(num_failures, 5);  // sampling, walking, scoring
}

TEST(CudaVerifyTest, AStepThatWasNotFinishedIsWaitedFor) {
  RandomNumbers random(8);
  const VerifierLimits limits = {.vocab_size = 50, .max_requests = 6, .max_rows = 300};
  const RandomStep step(random, 50, 6);
  const DeviceRows rows(step.logits());
  CudaVerifier verifier(limits);
  const Answers expected(verifier, rows.rows(), step);  // after which its memory has grown
  const testing::LazyStreams lazy;
  const std::uint64_t& num_run = emulation::counters().launches;
  const std::uint64_t before = num_run;
  verifier.Begin(rows.rows(), step.requests());
  EXPECT_EQ(num_run, before);
  verifier.Begin(rows.rows(), step.requests());  // writes what the first one reads
  EXPECT_GT(num_run, before);
  ExpectSame(step, Answers(verifier), expected);
  CudaVerifier(limits).Begin(rows.rows(), step.requests());  // and gone
}

TEST(CudaVerifyTest, MemoryThatIsShortIsADeviceError) {
  const VerifierLimits limits = {.vocab_size = 50, .max_requests = 6, .max_rows = 300};
  int num_failures = 0;
  for (int allocation = 1; num_failures == allocation - 1; ++allocation) {
    emulation::options().failing_allocation = allocation;
    try {
      CudaVerifier verifier(limits);
    } catch (const DeviceError& error) {
      EXPECT_NE(error.wanted().find(" memory for the data of a step"), std::string::npos);
      ++num_failures;
    }
    emulation::options().failing_allocation = 0;
  }
  EXPECT_EQ(num_failures, 4);
}

#endif  // FORERUN_EMULATED_GPU

}  // namespace
}  // namespace forerun::cuda
