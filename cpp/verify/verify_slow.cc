#include <algorithm>
#include <numeric>

#include "cpp/sampling/weight_math.h"
#include "cpp/verify/verify.h"

namespace forerun {
namespace {

using Masses = std::vector<double>;

double Sum(const Masses& masses) { return std::accumulate(masses.begin(), masses.end(), 0.0); }

struct SlowWalk {
  const DraftTree& draft;
  const RowLogits logits;
  const SamplingRule& rule;
  const int first_output_index;
  Verdict& out;

  int output_index() const { return first_output_index + out.num_accepted(); }

  bool Toss(int node, double probability) const {
    return UniformNoise(rule.seed, NoisePurpose::kAcceptance, first_output_index, node + 1) <
           probability;
  }

  // The masses after `node`, relative to their sum, from which child number `rank` was drawn.
  Masses DraftMasses(int node, const std::vector<int>& children, std::size_t rank) const {
    Masses masses(logits.vocab_size, 0.0);
    const auto row = draft.RowAfter(node);
    if (row.empty()) {
      masses[draft.tokens[children[rank]]] = 1.0;
      return masses;
    }
    std::ranges::copy(row, masses.begin());
    for (std::size_t i = 0; i < rank; ++i) masses[draft.tokens[children[i]]] = 0.0;
    return masses;
  }

  bool Visit(int node, double weight) {
    std::vector<int> children;
    for (int i = node + 1; i < draft.size(); ++i) {
      if (draft.parents[i] == node) children.push_back(i);
    }
    std::vector<float> copy;
    const auto row = LogitsAfter(node, out.tokens, logits, rule, copy);
    Masses masses;  // a token's mass is weight x masses[token] / Sum(masses)
    try {
      masses = KeptWeightsSlow(row, rule);
    } catch (const RequestError&) {
      if (!Toss(node, weight)) return false;
      throw;
    }
    bool is_whole = true;
    for (std::size_t rank = 0; rank < children.size(); ++rank) {
      const TokenId token = draft.tokens[children[rank]];
      const Masses draft_masses = DraftMasses(node, children, rank);
      if (Sum(draft_masses) == 0.0) break;  // no child can have been drawn from nothing
      const double scale = weight / Sum(masses);
      const double draft_scale = 1.0 / Sum(draft_masses);
      const double drafted = draft_masses[token] * draft_scale;
      const double target = masses[token] * weight / Sum(masses);
      const double share = drafted > 0.0 ? std::min(1.0, target / drafted) : 0.0;
      if (share > 0.0 && Descend(children[rank], share)) return true;
      if (draft.RowAfter(node).empty()) {
        if (share == 0.0) continue;
        is_whole = false;
        const double rejected = (1.0 - weight) * Sum(masses);
        masses[token] = 0.0;
        const double rest = weight * Sum(masses);
        weight = rest / (rest + rejected);
      } else {
        is_whole = false;
        for (std::size_t t = 0; t < masses.size(); ++t) {
          masses[t] = RoundMass(std::max(0.0, masses[t] * scale - draft_masses[t] * draft_scale));
        }
        const double rest = Sum(masses);
        if (rest == 0.0 && weight == 1.0) {
          // Draft and target differ by roundings only, one of which led here.
          masses = KeptWeightsSlow(row, rule);
          is_whole = true;
        } else {
          weight = rest / (rest + (1.0 - weight));
        }
      }
      if (weight == 0.0) return false;
    }
    if (!Toss(node, weight)) return false;
    out.tokens.push_back(is_whole ? SampleTokenSlow(row, rule, output_index()) : Draw(masses));
    return true;
  }

  bool Descend(int child, double weight) {
    if (rule.acceptance_method == AcceptanceMethod::kRejection) {
      if (!Toss(child, weight)) return false;
      weight = 1.0;
    }
    out.accepted_nodes.push_back(child);
    out.tokens.push_back(draft.tokens[child]);
    if (Visit(child, weight)) return true;
    out.accepted_nodes.pop_back();
    out.tokens.pop_back();
    return false;
  }

  TokenId Draw(const Masses& masses) const {
    const double point =
        Sum(masses) * UniformNoise(rule.seed, NoisePurpose::kResidual, first_output_index, 0);
    double sum = 0.0;
    TokenId token = -1;
    while (sum <= point) sum += masses[++token];
    return token;
  }
};

}  // namespace

void VerifySlow(const DraftTree& draft, RowLogits logits, const SamplingRule& rule,
                int first_output_index, Verdict& out) {
  out.accepted_nodes.clear();
  out.tokens.clear();
  if (rule.acceptance_method != AcceptanceMethod::kCoupled && rule.temperature > 0.0) {
    SlowWalk{draft, logits, rule, first_output_index, out}.Visit(kDraftRoot, 1.0);
    return;
  }
  int node = kDraftRoot;
  do {
    std::vector<float> copy;
    const auto row = LogitsAfter(node, out.tokens, logits, rule, copy);
    const TokenId token = SampleTokenSlow(row, rule, first_output_index + out.num_accepted());
    out.tokens.push_back(token);
    int child = node + 1;
    while (child < draft.size() && (draft.parents[child] != node || draft.tokens[child] != token)) {
      ++child;
    }
    node = child < draft.size() ? child : kDraftRoot;
    if (node != kDraftRoot) out.accepted_nodes.push_back(node);
  } while (node != kDraftRoot);
}

}  // namespace forerun
