// What it costs to sample one row of logits.
//
//   bench_verify [--smoke] [Google Benchmark's own flags]
//
// Rows are RULE/LOGITS/VOCABULARY. Each iteration samples one row, at a new position each time.
// LOGITS: "peaked" falls with the logarithm of the rank, as a model's mostly do (the best token has
// probability 0.4); "flat" is normal with deviation 1, so that half of the vocabulary is in the
// nucleus of top_p = 0.9. "verify" walks a right chain of 4 guesses greedily: 5 rows. Under
// "rejection" and "block" the same chain is sampled at temperature 1; "drawn" chains of 4 come from
// the target's own probabilities with a little noise, and their cost includes a residual where one
// is drawn.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/run_benchmarks.h"
#include "cpp/verify/distribution.h"
#include "cpp/verify/draft_sampling.h"
#include "cpp/verify/verify.h"

namespace forerun {
namespace {

using Logits = std::vector<float>;

constexpr int kNumRows = 8;  // used in turn, so that a row is not always in the nearest cache

struct NamedRule {
  const char* name;
  SamplingRule rule;
};

std::vector<NamedRule> Rules() {
  std::vector<NamedRule> rules = {
      {"greedy", {}}, {"plain", {}}, {"top_k=50", {}}, {"top_p=0.9", {}}, {"min_p=0.05", {}}};
  rules[0].rule.temperature = 0.0;
  rules[2].rule.top_k = 50;
  rules[3].rule.top_p = 0.9;
  rules[4].rule.min_p = 0.05;
  return rules;
}

// [kNumRows, vocab_size]
Logits MakeLogits(bool peaked, int vocab_size) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Logits logits;
  for (int r = 0; r < kNumRows; ++r) {
    Logits row(vocab_size);
    for (int i = 0; i < vocab_size; ++i) {
      row[i] = peaked ? -1.5f * std::log(static_cast<float>(i + 1)) : normal(random);
    }
    std::ranges::shuffle(row, random);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

void SampleRows(benchmark::State& state, const SamplingRule& rule, const Logits& logits) {
  const std::size_t vocab_size = logits.size() / kNumRows;
  SamplerScratch scratch;
  int output_index = 0;
  for (auto _ : state) {
    const float* row = logits.data() + output_index % kNumRows * vocab_size;
    benchmark::DoNotOptimize(SampleToken({row, vocab_size}, rule, output_index++, scratch));
  }
}

void VerifyChain(benchmark::State& state, const Logits& logits) {
  const int vocab_size = static_cast<int>(logits.size()) / kNumRows;
  const RowLogits rows = {logits.data(), vocab_size, vocab_size};
  SamplingRule greedy;
  greedy.temperature = 0.0;
  SamplerScratch scratch;
  Draft draft;
  for (int i = 0; i < 4; ++i) draft.AppendToChain(SampleToken(rows.row(i), greedy, i, scratch), 1);
  Verdict verdict;
  for (auto _ : state) Verify(draft, rows, greedy, 0, scratch, verdict);
  if (verdict.num_accepted() != 4) state.SkipWithError("a right draft was not accepted");
}

// Chains of 4, certain or drawn, a new seed each time.
void VerifySampled(benchmark::State& state, const Logits& logits, SamplingRule rule, bool drawn) {
  const int vocab_size = static_cast<int>(logits.size()) / kNumRows;
  const RowLogits rows = {logits.data(), vocab_size, vocab_size};
  SamplingRule greedy;
  greedy.temperature = 0.0;
  SamplerScratch scratch;
  std::vector<Draft> drafts(drawn ? 16 : 1);
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 0.5f);
  for (Draft& draft : drafts) {
    for (int i = 0; i < 4; ++i) {
      Logits row(rows.row(i).begin(), rows.row(i).end());
      for (float& logit : row) logit += normal(random);
      if (drawn) {
        FillDraftRow(row, rule, scratch, draft.AddRowBehind(i - 1, vocab_size));
        AppendDrawnChild(draft, i - 1, random(), 0);
      } else {
        draft.AppendToChain(SampleToken(rows.row(i), greedy, i, scratch), 1);
      }
    }
  }
  Verdict verdict;
  std::int64_t num_rows = 0;
  for (auto _ : state) {
    rule.seed = static_cast<std::uint64_t>(state.iterations()) + num_rows;
    Verify(drafts[num_rows % drafts.size()], rows, rule, 0, scratch, verdict);
    num_rows += static_cast<std::int64_t>(verdict.tokens.size());
  }
  state.counters["tokens"] =
      benchmark::Counter(static_cast<double>(num_rows), benchmark::Counter::kAvgIterations);
}

bool EqualsSlowDefinition(const SamplingRule& rule, const Logits& logits) {
  const std::size_t vocab_size = logits.size() / kNumRows;
  SamplerScratch scratch;
  for (int i = 0; i < 2; ++i) {
    const std::span<const float> row(logits.data() + i * vocab_size, vocab_size);
    if (SampleToken(row, rule, i, scratch) != SampleTokenSlow(row, rule, i)) return false;
  }
  return true;
}

bool RegisterAll() {
  for (const int vocab_size : {49152, 262144}) {
    for (const bool peaked : {true, false}) {
      static std::vector<Logits> kept;  // registered benchmarks outlive this function
      kept.reserve(4);
      const Logits& logits = kept.emplace_back(MakeLogits(peaked, vocab_size));
      const std::string suffix =
          std::string(peaked ? "/peaked/" : "/flat/") + std::to_string(vocab_size);
      for (const NamedRule& named : Rules()) {
        if (!EqualsSlowDefinition(named.rule, logits)) return false;
        benchmark::RegisterBenchmark((named.name + suffix).c_str(), [rule = named.rule, &logits](
                                                                        benchmark::State& state) {
          SampleRows(state, rule, logits);
        })->Unit(benchmark::kMicrosecond);
      }
      for (const bool drawn : {false, true}) {
        for (const AcceptanceMethod method :
             {AcceptanceMethod::kCoupled, AcceptanceMethod::kRejection, AcceptanceMethod::kBlock}) {
          if (drawn && (method == AcceptanceMethod::kCoupled || vocab_size > 49152)) continue;
          constexpr const char* kNames[] = {"coupled", "rejection", "block"};
          SamplingRule rule;
          rule.acceptance_method = method;
          const std::string name = std::string("verify_") + kNames[static_cast<int>(method)] +
                                   (drawn ? "_drawn" : "") + suffix;
          benchmark::RegisterBenchmark(name.c_str(), [rule, drawn,
                                                      &logits](benchmark::State& state) {
            VerifySampled(state, logits, rule, drawn);
          })->Unit(benchmark::kMicrosecond);
        }
      }
      if (!peaked) continue;
      benchmark::RegisterBenchmark(("verify" + suffix).c_str(), [&logits](benchmark::State& state) {
        VerifyChain(state, logits);
      })->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}

}  // namespace
}  // namespace forerun

int main(int argc, char** argv) {
  return forerun::bench::RunBenchmarks(argc, argv, [](bool) { return forerun::RegisterAll(); });
}
