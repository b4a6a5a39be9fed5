// What it costs to sample one row of logits.
//
//   bench_verify [--smoke] [Google Benchmark's own flags]
//
// Rows are RULE/LOGITS/VOCABULARY. Each iteration samples one row, at a new position each time.
// LOGITS: "peaked" falls with the logarithm of the rank, as a model's mostly do (the best token has
// probability 0.4); "flat" is normal with deviation 1, so that half of the vocabulary is in the
// nucleus of top_p = 0.9. "verify" walks an accepted chain of 4 draft tokens: 5 rows, greedily,
// sampled, and with what processors change. Under "rejection" and "block" the same chain is sampled
// at temperature 1; "drawn" chains of 4 come from the target's own probabilities with a little
// noise, and their cost includes a residual where one is drawn. "processors" is their change alone
// for one row, after a text of 1,000 tokens; "logprobs=N" what a row's log-probabilities cost.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/run_benchmarks.h"
#include "cpp/sampling/draft_sampling.h"
#include "cpp/sampling/logits_processors.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/sampling/sampler.h"
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

// A request in the middle of its output, with some processors.
struct Processed {
  Processed(SamplingParams request_params, int vocab_size)
      : params(std::move(request_params)), processors(params, end_tokens, tokens, 1200) {
    std::mt19937 random(2);
    for (int i = 0; i < 1000; ++i) tokens.push_back(static_cast<TokenId>(random() % vocab_size));
    processors.ObserveCommitted();
  }

  const SamplingParams params;
  const std::vector<TokenId> end_tokens = {0};
  std::vector<TokenId> tokens = {1};
  LogitsProcessors processors;
};

struct NamedParams {
  const char* name;
  SamplingParams params;
};

std::vector<NamedParams> ProcessorParams(int vocab_size) {
  std::vector<NamedParams> all = {{"processors: penalties", {}},
                                  {"processors: bias of 10", {}},
                                  {"processors: 1,000 allowed", {}},
                                  {"processors: 20 bad words, none near", {}}};
  all[0].params.repetition_penalty = 1.1;
  all[0].params.frequency_penalty = 0.5;
  for (int i = 0; i < 10; ++i) all[1].params.logit_bias[i * 100] = 1.0;
  all[2].params.allowed_token_ids.emplace();
  for (int i = 0; i < 1000; ++i) {
    all[2].params.allowed_token_ids->push_back(i * (vocab_size / 1000));
  }
  for (int i = 0; i < 20; ++i) all[3].params.bad_words.push_back({i, i, i});
  return all;
}

void ApplyProcessors(benchmark::State& state, const SamplingParams& params, const Logits& logits) {
  const int vocab_size = static_cast<int>(logits.size()) / kNumRows;
  const Processed request(params, vocab_size);
  const std::vector<TokenId> path = {5, 6, 5};
  std::vector<float> copy;
  int row = 0;
  for (auto _ : state) {
    const std::span<const float> raw(logits.data() + row++ % kNumRows * vocab_size, vocab_size);
    benchmark::DoNotOptimize(request.processors.Apply(raw, 0, path, copy).data());
  }
}

void ScoreRows(benchmark::State& state, int num_top, const Logits& logits) {
  const std::size_t vocab_size = logits.size() / kNumRows;
  SamplerScratch scratch;
  std::vector<TokenLogprob> out;
  int row = 0;
  for (auto _ : state) {
    out.clear();
    AppendLogprobs({logits.data() + row++ % kNumRows * vocab_size, vocab_size}, 7, num_top, scratch,
                   out);
  }
}

void VerifyChain(benchmark::State& state, SamplingRule rule, const Logits& logits) {
  const int vocab_size = static_cast<int>(logits.size()) / kNumRows;
  const RowLogits rows = {logits.data(), vocab_size, vocab_size};
  SamplerScratch scratch;
  DraftTree draft;
  std::vector<TokenId> path;
  for (int i = 0; i < 4; ++i) {
    const auto row = rule.processors == nullptr
                         ? rows.row(i)
                         : rule.processors->Apply(rows.row(i), i, path, scratch.logits);
    path.push_back(SampleToken(row, rule, i, scratch));
    draft.AppendToChain(path.back(), 1);
  }
  Verdict verdict;
  for (auto _ : state) Verify(draft, rows, rule, 0, scratch, verdict);
  if (verdict.num_accepted() != 4) state.SkipWithError("a right draft was not accepted");
}

// Chains of 4, certain or drawn, a new seed each time.
void VerifySampled(benchmark::State& state, const Logits& logits, SamplingRule rule, bool drawn) {
  const int vocab_size = static_cast<int>(logits.size()) / kNumRows;
  const RowLogits rows = {logits.data(), vocab_size, vocab_size};
  SamplingRule greedy;
  greedy.temperature = 0.0;
  SamplerScratch scratch;
  std::vector<DraftTree> drafts(drawn ? 16 : 1);
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 0.5f);
  for (DraftTree& draft : drafts) {
    for (int i = 0; i < 4; ++i) {
      Logits row(rows.row(i).begin(), rows.row(i).end());
      for (float& logit : row) logit += normal(random);
      if (drawn) {
        FillDraftRow(row, rule, scratch, draft.AddRowAfter(i - 1, vocab_size));
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

void RegisterRequests(const Logits& logits, const std::string& suffix) {
  const auto add = [&](const std::string& name, auto function) {
    benchmark::RegisterBenchmark((name + suffix).c_str(), function)->Unit(benchmark::kMicrosecond);
  };
  const int vocab_size = static_cast<int>(logits.size()) / kNumRows;
  static std::vector<std::unique_ptr<Processed>> kept;  // registered benchmarks outlive us
  const std::vector<NamedParams> named = ProcessorParams(vocab_size);
  kept.push_back(std::make_unique<Processed>(named[0].params, vocab_size));
  SamplingRule greedy, sampled, penalized;
  greedy.temperature = 0.0;
  penalized.processors = &kept.back()->processors;
  for (const auto& [name, rule] : {std::pair("verify greedy", greedy),
                                   {"verify sampled", sampled},
                                   {"verify sampled, penalties", penalized}}) {
    add(name, [rule, &logits](benchmark::State& state) { VerifyChain(state, rule, logits); });
  }
  for (const NamedParams& each : named) {
    add(each.name, [params = each.params, &logits](benchmark::State& state) {
      ApplyProcessors(state, params, logits);
    });
  }
  for (int num_top : {0, 5}) {
    add("logprobs=" + std::to_string(num_top),
        [num_top, &logits](benchmark::State& state) { ScoreRows(state, num_top, logits); });
  }
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
      RegisterRequests(logits, suffix);
    }
  }
  return true;
}

}  // namespace
}  // namespace forerun

int main(int argc, char** argv) {
  return forerun::bench::RunBenchmarks(argc, argv, [](bool) { return forerun::RegisterAll(); });
}
