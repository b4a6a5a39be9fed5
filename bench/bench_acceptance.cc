// How many draft tokens the acceptance methods accept of the same drafts, and how many they should.
//
//   bench_acceptance [--smoke]
//
// The target's logits are those of a peaked distribution over 1,000 tokens, other ones in every
// context; the drafter's are the target's plus normal noise. Each figure is the mean number of
// accepted draft tokens per step, from Verify, with two standard errors; below it, for chains, what
// the formulas of docs/acceptance.md say of the contexts that were met.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpp/sampling/draft_sampling.h"
#include "cpp/util/hash.h"
#include "cpp/verify/verify.h"

namespace forerun {
namespace {

constexpr int kVocabSize = 1000;
constexpr int kNumContexts = 64;

using Probabilities = std::vector<double>;

struct Model {
  std::vector<std::vector<float>> logits;  // [kNumContexts][kVocabSize]
  std::vector<Probabilities> probs;

  void Normalise() {
    for (const auto& row : logits) {
      Probabilities& prob = probs.emplace_back();
      double total = 0.0;
      for (float logit : row) total += prob.emplace_back(std::exp(double{logit}));
      for (double& p : prob) p /= total;
    }
  }
};

Model MakeTarget() {
  std::mt19937 random(1);
  Model target;
  for (int c = 0; c < kNumContexts; ++c) {
    std::vector<float>& row = target.logits.emplace_back();
    for (int i = 0; i < kVocabSize; ++i) row.push_back(-1.5f * std::log(i + 1.0f));
    std::ranges::shuffle(row, random);
  }
  target.Normalise();
  return target;
}

Model MakeDrafter(const Model& target, float noise) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  Model drafter = {target.logits, {}};
  for (auto& row : drafter.logits) {
    for (float& logit : row) logit += noise * normal(random);
  }
  drafter.Normalise();
  return drafter;
}

int NextContext(int context, TokenId token) {
  return static_cast<int>(HashCombine(context + 1, token) % kNumContexts);
}

struct Mean {
  double sum = 0.0, sum_of_squares = 0.0;
  int count = 0;

  void Add(double value) {
    sum += value;
    sum_of_squares += value * value;
    ++count;
  }
  double value() const { return sum / count; }
  double error() const {
    return std::sqrt(std::max(0.0, sum_of_squares / count - value() * value()) / count);
  }
};

struct Experiment {
  const Model& target;
  const Model& drafter;
  bool is_sampled;
  std::vector<int> shape;  // parents
  SamplingRule rule = {};

  SamplerScratch scratch = {};
  DraftTree draft = {};
  std::vector<int> contexts = {};  // [draft.size() + 1], after the root and the nodes

  bool is_chain() const {
    for (int node = 0; node < static_cast<int>(shape.size()); ++node) {
      if (shape[node] != node - 1) return false;
    }
    return true;
  }

  // With the target's noise, or the best: token number `rank` is the best without those before it.
  TokenId DrawToken(int parent, int output_index) {
    std::vector<float> logits = drafter.logits[contexts[parent + 1]];
    for (int node = parent + 1; node < draft.size(); ++node) {
      if (draft.parents[node] == parent) logits[draft.tokens[node]] = -INFINITY;
    }
    SamplingRule how = rule;
    if (!is_sampled) how.temperature = 0.0;
    return SampleToken(logits, how, output_index, scratch);
  }

  void Propose(int context) {
    draft.Clear();
    contexts.assign(1, context);
    std::vector<int> depths = {0};
    for (int parent : shape) {
      if (is_sampled && rule.acceptance_method != AcceptanceMethod::kCoupled) {
        if (draft.RowAfter(parent).empty()) {
          FillDraftRow(drafter.logits[contexts[parent + 1]], rule, scratch,
                       draft.AddRowAfter(parent, kVocabSize));
        }
        AppendDrawnChild(draft, parent, rule.seed, 0);
      } else {
        const TokenId token = DrawToken(parent, depths[parent + 1]);
        draft.parents.push_back(parent);
        draft.tokens.push_back(token);
        draft.confidence.push_back(0.5f);
      }
      contexts.push_back(NextContext(contexts[parent + 1], draft.tokens.back()));
      depths.push_back(depths[parent + 1] + 1);
    }
  }

  double DraftProb(int context, TokenId token) const {
    return is_sampled ? drafter.probs[context][token] : 1.0;
  }

  // The probability that a draft token in this context is accepted, before it is drawn.
  double AcceptanceRate(int context, TokenId token) const {
    const Probabilities& p = target.probs[context];
    const Probabilities& q = drafter.probs[context];
    if (!is_sampled) return p[token];
    double rate = 0.0;
    for (int t = 0; t < kVocabSize; ++t) {
      if (rule.acceptance_method == AcceptanceMethod::kRejection) {
        rate += std::min(p[t], q[t]);
        continue;
      }
      if (p[t] < 1e-5 && q[t] < 1e-5) continue;
      double sum = 0.0;
      for (int u = 0; u < kVocabSize; ++u) sum += std::max(p[u] / p[t], q[u] / q[t]);
      rate += 1.0 / sum;
    }
    return rate;
  }

  // What the formulas say of this chain.
  double ExpectedAccepted(int num_accepted, std::vector<double>& rates) const {
    double expected = 0.0, weight = 1.0;
    for (int i = 0; i < draft.size(); ++i) {
      const int context = contexts[i];
      if (rule.acceptance_method == AcceptanceMethod::kBlock) {
        const TokenId token = draft.tokens[i];
        weight = std::min(1.0, weight * target.probs[context][token] / DraftProb(context, token));
        expected += weight;
      } else if (i <= num_accepted) {
        if (rates[context] < 0.0) rates[context] = AcceptanceRate(context, draft.tokens[i]);
        expected += rates[context];
      }
    }
    return expected;
  }

  std::pair<Mean, Mean> Run(int num_steps) {
    Mean measured, expected;
    Verdict verdict;
    std::vector<float> logits;
    std::vector<double> rates(kNumContexts, -1.0);
    for (int step = 0; step < num_steps; ++step) {
      rule.seed = static_cast<std::uint64_t>(step);
      Propose(step % kNumContexts);
      logits.clear();
      for (int context : contexts) {
        logits.insert(logits.end(), target.logits[context].begin(), target.logits[context].end());
      }
      Verify(draft, {logits.data(), kVocabSize, kVocabSize}, rule, 0, scratch, verdict);
      measured.Add(verdict.num_accepted());
      if (is_chain()) expected.Add(ExpectedAccepted(verdict.num_accepted(), rates));
    }
    return {measured, expected};
  }
};

void PrintRow(const char* name, Experiment experiment, int num_steps) {
  std::string formulas;
  std::printf("%-22s", name);
  for (AcceptanceMethod method :
       {AcceptanceMethod::kCoupled, AcceptanceMethod::kRejection, AcceptanceMethod::kBlock}) {
    experiment.rule.acceptance_method = method;
    const auto [measured, expected] = experiment.Run(num_steps);
    std::printf("   %6.3f +- %.3f", measured.value(), 2 * measured.error());
    char text[40];
    std::snprintf(text, sizeof(text), "   %6.3f         ", expected.value());
    if (expected.count > 0) formulas += text;
  }
  std::printf("\n");
  if (!formulas.empty()) std::printf("%-22s%s\n", "  by formula", formulas.c_str());
}

void Compare(int num_steps) {
  const Model target = MakeTarget();
  const std::vector<int> chain4 = {-1, 0, 1, 2};
  const std::vector<int> chain8 = {-1, 0, 1, 2, 3, 4, 5, 6};
  const std::vector<int> tree8 = {-1, -1, 0, 0, 1, 2, 2, 5};
  for (const float noise : {0.3f, 1.0f, 2.0f}) {
    const Model drafter = MakeDrafter(target, noise);
    std::printf("noise %.1f                 %-16s   %-15s   %s\n", noise, "coupled", "rejection",
                "block");
    for (const bool is_sampled : {false, true}) {
      const std::string kind = is_sampled ? "sampled, " : "certain, ";
      PrintRow((kind + "chain of 4").c_str(), {target, drafter, is_sampled, chain4}, num_steps);
      PrintRow((kind + "chain of 8").c_str(), {target, drafter, is_sampled, chain8}, num_steps);
      PrintRow((kind + "tree of 8").c_str(), {target, drafter, is_sampled, tree8}, num_steps);
    }
  }
}

}  // namespace
}  // namespace forerun

int main(int argc, char** argv) {
  const bool smoke = argc > 1 && std::strcmp(argv[1], "--smoke") == 0;
  forerun::Compare(smoke ? 20 : 20000);
}
