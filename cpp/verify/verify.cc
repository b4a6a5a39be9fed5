#include "cpp/verify/verify.h"

#include <algorithm>

#include "cpp/sampling/logits_processors.h"
#include "cpp/sampling/logits_row.h"
#include "cpp/sampling/weight_math.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// The next child of `node` after node `after`, or the draft's size.
int NextChild(const DraftTree& draft, int node, int after) {
  int child = after + 1;
  while (child < draft.size() && draft.parents[child] != node) ++child;
  return child;
}

// The first child of `node` with `token`, or kDraftRoot.
int FindChild(const DraftTree& draft, int node, TokenId token) {
  for (int child = NextChild(draft, node, node); child < draft.size();
       child = NextChild(draft, node, child)) {
    if (draft.tokens[child] == token) return child;
  }
  return kDraftRoot;
}

// VerifySlow's recursion with three differences: sums are computed only where they are needed,
// certain children are subtracted from the target by their own weights alone, and the logits of a
// node are read again where its masses are needed once more.
class Walk {
 public:
  Walk(const DraftTree& draft, RowLogits logits, const SamplingRule& rule, int first_output_index,
       SamplerScratch& scratch, Verdict& out)
      : draft_(draft),
        logits_(logits),
        rule_(rule),
        first_output_index_(first_output_index),
        scratch_(scratch),
        out_(out) {}

  void SampleAndCompare();
  bool Visit(int node, double weight);

 private:
  // What is left of the target's distribution after a node once some of its children were rejected.
  struct Target {
    double weight;
    double total;          // of the masses below
    bool is_whole = true;  // the masses are the kept tokens' weights; else residuals()
  };

  int output_index() const { return first_output_index_ + out_.num_accepted(); }
  std::vector<double>& residuals() { return scratch_.residuals[out_.num_accepted()]; }

  std::span<const float> Logits(int node) const {
    return LogitsAfter(node, out_.tokens, logits_, rule_, scratch_.logits);
  }
  KeptTokens Keep(int node) { return KeepTokens(Logits(node), rule_, scratch_); }
  bool Toss(int node, double probability) const {
    return UniformNoise(rule_.seed, NoisePurpose::kAcceptance, first_output_index_, node + 1) <
           probability;
  }
  double ResidualPoint(double total) const {
    return total * UniformNoise(rule_.seed, NoisePurpose::kResidual, first_output_index_, 0);
  }

  double WeighChildren(int node);
  bool VisitCertainChildren(int node, Target& target);
  bool VisitSampledChildren(int node, Target& target);
  bool Descend(int child, double share);
  void SubtractDraft(int node, int child, double draft_scale, Target& target);
  double SubtractFromKept(int node, double scale, double draft_scale);
  double SubtractFromResiduals(int node, double scale, double draft_scale);
  TokenId DrawBesideChildren(int node, double total);
  TokenId DrawResidual(double total);

  const DraftTree& draft_;
  const RowLogits logits_;
  const SamplingRule& rule_;
  const int first_output_index_;
  SamplerScratch& scratch_;
  Verdict& out_;
};

void Walk::SampleAndCompare() {
  int node = kDraftRoot;
  do {
    const TokenId token = SampleToken(Logits(node), rule_, output_index(), scratch_);
    out_.tokens.push_back(token);
    node = FindChild(draft_, node, token);
    if (node != kDraftRoot) out_.accepted_nodes.push_back(node);
  } while (node != kDraftRoot);
}

// Fills in the weights of the children's tokens and returns the mass of all tokens.
double Walk::WeighChildren(int node) {
  const KeptTokens kept = Keep(node);
  for (int child = NextChild(draft_, node, node); child < draft_.size();
       child = NextChild(draft_, node, child)) {
    scratch_.node_weights[child] = kept.WeightOf(draft_.tokens[child]);
  }
  return kept.mass;
}

// Whether a path through `node` was accepted, which it is with probability `weight`. If so, `out_`
// is complete.
bool Walk::Visit(int node, double weight) {
  const bool is_leaf = NextChild(draft_, node, node) == draft_.size();
  const bool is_certain = draft_.RowAfter(node).empty();
  Target target = {.weight = weight, .total = 0.0};
  if (!is_leaf) {
    try {
      target.total = WeighChildren(node);
    } catch (const RequestError&) {
      if (!Toss(node, weight)) return false;
      throw;
    }
    if (is_certain ? VisitCertainChildren(node, target) : VisitSampledChildren(node, target)) {
      return true;
    }
  }
  if (!Toss(node, target.weight)) return false;
  if (target.is_whole) {
    out_.tokens.push_back(SampleToken(Logits(node), rule_, output_index(), scratch_));
  } else if (is_certain) {
    out_.tokens.push_back(DrawBesideChildren(node, target.total));
  } else {
    out_.tokens.push_back(DrawResidual(target.total));
  }
  return true;
}

bool Walk::VisitCertainChildren(int node, Target& target) {
  for (int child = NextChild(draft_, node, node); child < draft_.size();
       child = NextChild(draft_, node, child)) {
    double& child_weight = scratch_.node_weights[child];
    // A second child with the same token has no mass left.
    if (FindChild(draft_, node, draft_.tokens[child]) != child) child_weight = 0.0;
    const double share = std::min(1.0, child_weight * target.weight / target.total);
    if (share == 0.0) continue;
    if (Descend(child, share)) return true;
    target.is_whole = false;
    const double rejected = (1.0 - target.weight) * target.total;
    target.total -= child_weight;
    const double rest = target.weight * target.total;
    target.weight = rest / (rest + rejected);
    if (target.weight == 0.0) break;
  }
  return false;
}

bool Walk::VisitSampledChildren(int node, Target& target) {
  const std::span<const float> row = draft_.RowAfter(node);
  double draft_total = SumOfWeights(row);
  for (int child = NextChild(draft_, node, node); child < draft_.size();
       child = NextChild(draft_, node, child)) {
    if (draft_total == 0.0) break;  // no child can have been drawn from nothing
    const TokenId token = draft_.tokens[child];
    const bool is_second = FindChild(draft_, node, token) != child;
    const double draft_scale = 1.0 / draft_total;
    const double drafted = is_second ? 0.0 : row[token] * draft_scale;
    const double mass = target.is_whole ? scratch_.node_weights[child] : residuals()[token];
    const double share =
        drafted > 0.0 ? std::min(1.0, mass * target.weight / target.total / drafted) : 0.0;
    if (share > 0.0 && Descend(child, share)) return true;
    SubtractDraft(node, child, draft_scale, target);
    if (target.weight == 0.0) break;
    if (!is_second) draft_total -= row[token];
  }
  return false;
}

bool Walk::Descend(int child, double share) {
  if (rule_.acceptance_method == AcceptanceMethod::kRejection) {
    if (!Toss(child, share)) return false;
    share = 1.0;
  }
  out_.accepted_nodes.push_back(child);
  out_.tokens.push_back(draft_.tokens[child]);
  if (Visit(child, share)) return true;
  out_.accepted_nodes.pop_back();
  out_.tokens.pop_back();
  return false;
}

// Takes the distribution that `child` was drawn from out of the target.
void Walk::SubtractDraft(int node, int child, double draft_scale, Target& target) {
  const auto depth = static_cast<std::size_t>(out_.num_accepted());
  if (scratch_.residuals.size() <= depth) scratch_.residuals.resize(depth + 1);
  residuals().resize(logits_.vocab_size);
  const double scale = target.weight / target.total;
  const auto mass_of = [&](int sibling) {
    return target.is_whole ? scratch_.node_weights[sibling] : residuals()[draft_.tokens[sibling]];
  };
  for (int sibling = NextChild(draft_, node, node); sibling < child;
       sibling = NextChild(draft_, node, sibling)) {
    scratch_.node_weights[sibling] = mass_of(sibling);
  }
  double rest = target.is_whole ? SubtractFromKept(node, scale, draft_scale)
                                : SubtractFromResiduals(node, scale, draft_scale);
  // Earlier siblings' tokens could not be drawn again.
  for (int sibling = NextChild(draft_, node, node); sibling < child;
       sibling = NextChild(draft_, node, sibling)) {
    double& residual = residuals()[draft_.tokens[sibling]];
    rest -= residual;
    residual = RoundMass(scratch_.node_weights[sibling] * scale);
    rest += residual;
  }
  if (rest == 0.0 && target.weight == 1.0) {
    target = {.weight = 1.0, .total = WeighChildren(node)};
    return;
  }
  target = {.weight = rest / (rest + (1.0 - target.weight)), .total = rest, .is_whole = false};
}

double Walk::SubtractFromKept(int node, double scale, double draft_scale) {
  const std::span<const float> row = draft_.RowAfter(node);
  std::vector<double>& rest = residuals();
  std::ranges::fill(rest, 0.0);
  double total = 0.0;
  const KeptTokens kept = Keep(node);
  const auto wanted = [&](float group_max) {
    return group_max >= kept.last.logit && kept.row.Scaled(group_max) > kZeroWeight;
  };
  kept.row.VisitGroups(wanted, [&](TokenId first_token, const float*) {
    const TokenId end = std::min(first_token + kScanGroup, kept.row.size());
    for (TokenId token = first_token; token < end; ++token) {
      const double mass = kept.WeightOf(token) * scale - row[token] * draft_scale;
      rest[token] = RoundMass(std::max(0.0, mass));
      total += rest[token];
    }
  });
  return total;
}

double Walk::SubtractFromResiduals(int node, double scale, double draft_scale) {
  const std::span<const float> row = draft_.RowAfter(node);
  std::vector<double>& rest = residuals();
  double total = 0.0;
  for (std::size_t token = 0; token < rest.size(); ++token) {
    rest[token] = RoundMass(std::max(0.0, rest[token] * scale - row[token] * draft_scale));
    total += rest[token];
  }
  return total;
}

// Draws from the kept tokens that no child has.
TokenId Walk::DrawBesideChildren(int node, double total) {
  const KeptTokens kept = Keep(node);
  const double point = ResidualPoint(total);
  TokenId drawn = -1;
  double mass = 0.0;
  const auto wanted = [&](float group_max) {
    return drawn < 0 && group_max >= kept.last.logit && kept.row.Scaled(group_max) > kZeroWeight;
  };
  kept.row.VisitGroups(wanted, [&](TokenId first_token, const float* group) {
    double group_mass = kept.MassOfGroup(first_token, group);
    for (int child = NextChild(draft_, node, node); child < draft_.size();
         child = NextChild(draft_, node, child)) {
      const int i = draft_.tokens[child] - first_token;
      if (i >= 0 && i < kScanGroup) group_mass -= scratch_.node_weights[child];
    }
    if (mass + group_mass <= point) {
      mass += group_mass;
      return;
    }
    for (drawn = first_token - 1; mass <= point;) {
      if (FindChild(draft_, node, ++drawn) == kDraftRoot) mass += kept.WeightOf(drawn);
    }
  });
  return drawn;
}

TokenId Walk::DrawResidual(double total) {
  const double point = ResidualPoint(total);
  double mass = 0.0;
  TokenId token = -1;
  while (mass <= point) mass += residuals()[++token];
  return token;
}

}  // namespace

std::span<const float> LogitsAfter(int node, std::span<const TokenId> path, RowLogits logits,
                                   const SamplingRule& rule, std::vector<float>& copy) {
  const std::span<const float> row = logits.row(node + 1);
  return rule.processors == nullptr ? row : rule.processors->Apply(row, node + 1, path, copy);
}

void Verify(const DraftTree& draft, RowLogits logits, const SamplingRule& rule,
            int first_output_index, SamplerScratch& scratch, Verdict& out) {
  FORERUN_CHECK(!draft.has_draft_probabilities() || draft.vocab_size == logits.vocab_size,
                "draft probabilities must be over the target's vocabulary");
  FORERUN_CHECK(draft.device_weights == nullptr, "draft probabilities must be on the host");
  out.accepted_nodes.clear();
  out.tokens.clear();
  Walk walk(draft, logits, rule, first_output_index, scratch, out);
  if (rule.acceptance_method == AcceptanceMethod::kCoupled || rule.temperature == 0.0) {
    walk.SampleAndCompare();
    return;
  }
  scratch.node_weights.resize(draft.size());
  walk.Visit(kDraftRoot, 1.0);
}

}  // namespace forerun
