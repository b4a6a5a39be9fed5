// What one step costs a drafter that counts: append a token, propose a draft.
//
//   bench_index [--smoke] [Google Benchmark's own flags]
//
// Rows are METHOD/TEXT/SIZE: a request of SIZE tokens is built, then steps of one token each are
// timed at its end, and the time of a row is that of one step, in processor time, which a busy
// machine disturbs less. Methods:
//   ngram     NgramDrafter
//   rescan    the same answer by searching the whole text at every step
//   suffix    SuffixDrafter, its history empty
//   history   SuffixDrafter, SIZE tokens of past outputs, a new request of 500 tokens
//   arctic    the suffix tree of arctic-inference, when configured with
//             -DFORERUN_ARCTIC_SUFFIX_DIR=<its csrc/suffix_decoding>; driven as vLLM does
// Texts: 4 random tokens; Zipf-distributed tokens with copied passages; one token for ever.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/run_benchmarks.h"
#include "cpp/draft/text/ngram.h"
#include "cpp/draft/text/suffix.h"
#include "forerun/options.h"

#ifdef FORERUN_ARCTIC_SUFFIX
#include "suffix_tree.h"
#endif

namespace forerun {
namespace {

double ProcessorSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

using Tokens = std::vector<TokenId>;

constexpr int kOutputTokens = 500;  // of each past output
constexpr int kMaxSteps = 20000;
constexpr int kMaxRescannedTokens = 100000000;
constexpr int kHistorySteps = 4000;

Tokens RandomText(int size) {
  std::mt19937 random(1);
  Tokens text(size);
  for (TokenId& token : text) token = random() % 4;
  return text;
}

// Ranks drawn by Zipf's law over 32,000 words; a third of the text is copied from before.
Tokens NaturalText(int size) {
  std::mt19937 random(2);
  std::uniform_real_distribution<double> uniform;
  Tokens text;
  while (static_cast<int>(text.size()) < size) {
    if (text.size() > 100 && uniform(random) < 0.02) {
      const std::size_t length = 5 + random() % 40;
      const std::size_t from = random() % (text.size() - 50);
      for (std::size_t i = 0; i < length; ++i) text.push_back(text[from + i]);
    } else {
      text.push_back(static_cast<TokenId>(std::exp(uniform(random) * std::log(32000.0))));
    }
  }
  text.resize(size);
  return text;
}

Tokens RepetitiveText(int size) { return Tokens(size, 7); }

// One way to draft for one request.
class Method {
 public:
  virtual ~Method() = default;
  virtual void Begin(std::span<const TokenId> prompt) = 0;
  virtual int Step(TokenId token) = 0;  // number of drafted tokens
};

constexpr NgramOptions kLookup = {.prompt_lookup_min = 2};
constexpr int kLookupTokens = 5;
constexpr int kSuffixTokens = 24;

template <typename AnyDrafter>
class DrafterMethod : public Method {
 public:
  template <typename Options>
  DrafterMethod(const Options& options, int max_tokens)
      : drafter_(options), max_tokens_(max_tokens) {}

  void Remember(std::span<const TokenId> output) {
    drafter_.Begin({.id = 0, .prompt = {}});
    drafter_.Observe(0, output);
    drafter_.End(0);
  }
  void Begin(std::span<const TokenId> prompt) override {
    drafter_.Begin({.id = 1, .prompt = prompt});
  }
  int Step(TokenId token) override {
    drafter_.Observe(1, {&token, 1});
    draft_.Clear();
    drafter_.Propose({1, max_tokens_, rule_, /*first_output_index=*/0}, draft_);
    return draft_.size();
  }
  const Tokens& draft() const { return draft_.tokens; }

 private:
  AnyDrafter drafter_;
  const int max_tokens_;
  const forerun::SamplingRule rule_;
  forerun::DraftTree draft_;
};

// Stops at the first match of the greatest length, so texts full of matches are cheap.
class RescanMethod : public Method {
 public:
  void Begin(std::span<const TokenId> prompt) override {
    text_.assign(prompt.begin(), prompt.end());
  }
  int Step(TokenId token) override {
    text_.push_back(token);
    int longest = kLookup.prompt_lookup_min - 1;
    int after = 0;
    const int size = static_cast<int>(text_.size());
    for (int end = 1; end < size && longest < kLookup.prompt_lookup_max; ++end) {
      int n = 0;
      while (n < end && n < kLookup.prompt_lookup_max &&
             text_[end - 1 - n] == text_[size - 1 - n]) {
        ++n;
      }
      if (n > longest) {
        longest = n;
        after = end;
      }
    }
    draft_.clear();
    if (after > 0) {
      draft_.assign(text_.begin() + after, text_.begin() + std::min(size, after + kLookupTokens));
    }
    return static_cast<int>(draft_.size());
  }
  const Tokens& draft() const { return draft_; }

 private:
  Tokens text_, draft_;
};

#ifdef FORERUN_ARCTIC_SUFFIX
class ArcticMethod : public Method {
 public:
  void Begin(std::span<const TokenId> prompt) override {
    text_.assign(prompt.begin(), prompt.end());
    tree_.extend(0, prompt);
  }
  int Step(TokenId token) override {
    text_.push_back(token);
    tree_.extend(0, {&token, 1});
    const std::size_t length = std::min<std::size_t>(options_.max_tree_depth, text_.size());
    const auto draft = tree_.speculate(std::span<const TokenId>(text_).last(length), kSuffixTokens,
                                       options_.max_spec_factor, 0, options_.min_token_prob, false);
    return static_cast<int>(draft.token_ids.size());
  }

 private:
  SuffixOptions options_;
  SuffixTree tree_{options_.max_tree_depth};
  Tokens text_;
};
#endif

using MakeText = Tokens (*)(int size);
using MakeMethod = std::function<std::unique_ptr<Method>(const Tokens& text)>;

// The request is text[begin, begin + num_built + num_steps).
struct Range {
  int begin = 0;
  int num_built = 0;
  int num_steps = 0;
};

void TimeSteps(benchmark::State& state, const Tokens& text, const MakeMethod& make, Range range) {
  for (auto unused : state) {
    std::unique_ptr<Method> method = make(text);
    const TokenId* next = text.data() + range.begin;
    const double begin = ProcessorSeconds();
    method->Begin({next, static_cast<std::size_t>(range.num_built)});
    const double built = ProcessorSeconds();
    std::int64_t num_drafted = 0;
    for (int i = 0; i < range.num_steps; ++i)
      num_drafted += method->Step(next[range.num_built + i]);
    state.SetIterationTime((ProcessorSeconds() - built) / range.num_steps);
    state.counters["build_ns_per_token"] = (built - begin) / range.num_built * 1e9;
    state.counters["drafted_per_step"] = static_cast<double>(num_drafted) / range.num_steps;
  }
}

void Register(const std::string& method, const std::string& text_name, MakeText make_text, int size,
              const MakeMethod& make) {
  Range range;
  range.num_steps = std::min(size / 2, kMaxSteps);
  if (method == "rescan") range.num_steps = std::min(range.num_steps, kMaxRescannedTokens / size);
  range.num_built = size - range.num_steps / 2;  // so that the steps lie around `size`
  if (method == "history") {
    range = {.begin = size, .num_built = kOutputTokens, .num_steps = kHistorySteps};
  }
  const std::string name = method + "/" + text_name + "/" + std::to_string(size);
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) {
                                 const Tokens text =
                                     make_text(range.begin + range.num_built + range.num_steps);
                                 TimeSteps(state, text, make, range);
                               })
      ->UseManualTime()
      ->Iterations(1);
}

// The bound is the number of outputs, so the history has all its segments.
std::unique_ptr<Method> MakeWithHistory(const Tokens& text, int size) {
  SuffixOptions options;
  options.max_cached_requests = std::max(1, size / kOutputTokens);
  auto method = std::make_unique<DrafterMethod<SuffixDrafter>>(options, kSuffixTokens);
  for (int from = 0; from + kOutputTokens <= size; from += kOutputTokens) {
    method->Remember(std::span(text).subspan(from, kOutputTokens));
  }
  return method;
}

void RegisterAll(bool smoke) {
  const std::map<std::string, MakeText> texts = {
      {"random", RandomText}, {"natural", NaturalText}, {"repetitive", RepetitiveText}};
  const auto sizes =
      smoke ? std::vector<int>{1000} : std::vector<int>{1000, 10000, 100000, 1000000};
  for (const auto& [name, text] : texts) {
    for (const int size : sizes) {
      Register("ngram", name, text, size, [](const Tokens&) {
        return std::make_unique<DrafterMethod<NgramDrafter>>(kLookup, kLookupTokens);
      });
      Register("rescan", name, text, size,
               [](const Tokens&) { return std::make_unique<RescanMethod>(); });
      Register("suffix", name, text, size, [](const Tokens&) {
        return std::make_unique<DrafterMethod<SuffixDrafter>>(SuffixOptions(), kSuffixTokens);
      });
      Register("history", name, text, size,
               [size](const Tokens& all) { return MakeWithHistory(all, size); });
#ifdef FORERUN_ARCTIC_SUFFIX
      Register("arctic", name, text, size,
               [](const Tokens&) { return std::make_unique<ArcticMethod>(); });
#endif
    }
  }
}

// What is timed must be right: the n-gram drafts are those of the rescan.
bool DraftsAgree() {
  for (const MakeText make_text : {RandomText, NaturalText, RepetitiveText}) {
    DrafterMethod<NgramDrafter> ngram(kLookup, kLookupTokens);
    RescanMethod rescan;
    ngram.Begin({});
    rescan.Begin({});
    for (const TokenId token : make_text(1000)) {
      ngram.Step(token);
      rescan.Step(token);
      if (ngram.draft() != rescan.draft()) return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace forerun

int main(int argc, char** argv) {
  return forerun::bench::RunBenchmarks(argc, argv, [](bool smoke) {
    if (!forerun::DraftsAgree()) return false;
    forerun::RegisterAll(smoke);
    return true;
  });
}
