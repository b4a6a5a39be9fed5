// The steps of a walk that need no whole row: for one thread.
//
// Verify's recursion with an explicit stack. The frame of a node is the WalkRow of the row after
// it; parents lead back. Every number is computed by the operations of Verify in their order.
#ifndef FORERUN_CUDA_VERIFY_WALK_STEPS_CUH_
#define FORERUN_CUDA_VERIFY_WALK_STEPS_CUH_

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/sampling/noise.h"
#include "cuda/verify/walk.h"
#include "forerun/options.h"

namespace forerun::cuda {

// Why a walk stops.
enum class WalkStop : int {
  kEnd,            // the outcome is known
  kSumResiduals,   // wants what a drawn child leaves of the target after node()
  kDrawResidual,   // wants a token drawn from what was summed last
  kDrawUnclaimed,  // wants a token drawn from the kept ones after node() that no child has
};

// What a stopped walk waits for.
struct WalkQuery {
  int node;
  double target_scale, draft_scale;  // of the residuals that were summed last
  double point;  // of the token to be drawn: the mass up to it is the first to exceed this
};

class WalkSteps {
 public:
  // Of a prepared request: the links, token weights and the root's weight of its rows are known.
  __device__ WalkSteps(const WalkArrays& arrays, const SampleRule& rule)
      : arrays_(arrays), rule_(rule) {}

  // Goes on, from the root or from where it stopped.
  __device__ WalkStop Run() {
    if (rule_.method == static_cast<int>(AcceptanceMethod::kCoupled)) return SampleAndCompare();
    while (true) {
      switch (next_) {
        case Next::kVisit:
          if (!BeginVisit()) return WalkStop::kEnd;
          break;
        case Next::kTryChild:
          TryChild();
          break;
        case Next::kRejectChild:
          if (!is_drawn()) {
            RejectCertainChild();
            break;
          }
          target_scale_ = Row(node_).weight / Row(node_).total;
          draft_scale_ = 1.0 / DraftTotal();
          next_ = Next::kSummed;
          return WalkStop::kSumResiduals;
        case Next::kSummed:
          RejectDrawnChild();
          break;
        case Next::kStay:
          if (Stay()) return stop_;
          break;
        case Next::kEmit:
          outcome_.token = drawn_;
          return WalkStop::kEnd;
      }
    }
  }

  // The answers to kSumResiduals, in units of 2^-52, and to the others.
  __device__ void SetSum(Mass sum) { sum_ = sum; }
  __device__ void SetDrawn(TokenId token) { drawn_ = token; }

  __device__ WalkQuery query() {
    const double uniform =
        UniformNoise(rule_.seed, NoisePurpose::kResidual, rule_.first_output_index, 0);
    return {node_, target_scale_, draft_scale_, Row(node_).total * uniform};
  }
  __device__ const WalkOutcome& outcome() const { return outcome_; }

 private:
  enum class Next { kVisit, kTryChild, kRejectChild, kSummed, kStay, kEmit };

  __device__ WalkRow& Row(int node) { return arrays_.scratch[rule_.RowAfter(node)]; }
  __device__ TokenId Token(int node) const { return arrays_.batch.tokens[rule_.first_node + node]; }
  __device__ const RowState& State() const { return arrays_.rows.states[rule_.RowAfter(node_)]; }
  __device__ double KeptMass() const { return static_cast<double>(State().mass) * 0x1p-32; }
  __device__ bool is_drawn() const { return rule_.drawn_row >= 0; }
  // Of the row that the children of the node were drawn from.
  __device__ double DraftTotal() const {
    return static_cast<double>(arrays_.draft_sums[rule_.drawn_row + node_ + 1]) * 0x1p-32;
  }
  __device__ bool Toss(int node, double probability) const {
    return UniformNoise(rule_.seed, NoisePurpose::kAcceptance, rule_.first_output_index, node + 1) <
           probability;
  }

  // Whether nothing can be sampled after the node. If so, that is the outcome.
  __device__ bool Fails() {
    const std::int32_t status = arrays_.batch.rows[rule_.RowAfter(node_)].status;
    const RowState& state = State();
    if (status == 0 && state.status == kRowOk) return false;
    outcome_ = {node_, -1, status, -1, 0.0f};
    if (status == 0) {
      outcome_.status = kWalkBroken + state.status;
      outcome_.broken_token = state.broken_token;
      outcome_.broken_logit = state.broken_logit;
    }
    return true;
  }
  __device__ bool IsBroken() const {
    return arrays_.batch.rows[rule_.RowAfter(node_)].status != 0 || State().status != kRowOk;
  }

  __device__ WalkStop SampleAndCompare();
  __device__ bool BeginVisit();
  __device__ void TryChild();
  __device__ double ShareOfDrawn(const WalkRow& row, int child, double draft_total) const;
  __device__ void RejectCertainChild();
  __device__ void RejectDrawnChild();
  __device__ bool Stay();

  // False after the root.
  __device__ bool GoBack() {
    outcome_ = {kDraftRoot, -1, 0, -1, 0.0f};
    if (node_ == kDraftRoot) return false;
    node_ = arrays_.batch.parents[rule_.first_node + node_];
    next_ = Next::kRejectChild;
    return true;
  }

  const WalkArrays& arrays_;
  const SampleRule& rule_;
  int node_ = kDraftRoot;
  Next next_ = Next::kVisit;
  WalkStop stop_ = WalkStop::kEnd;
  double target_scale_ = 0.0, draft_scale_ = 0.0;
  Mass sum_ = 0;
  TokenId drawn_ = -1;
  WalkOutcome outcome_ = {kDraftRoot, -1, 0, -1, 0.0f};
};

__device__ inline WalkStop WalkSteps::SampleAndCompare() {
  while (!Fails()) {
    const TokenId token = State().sampled;
    int child = Row(node_).first_child;
    while (child != kNoNode && Token(child) != token) child = Row(child).next_sibling;
    if (child == kNoNode) {
      outcome_ = {node_, token, 0, -1, 0.0f};
      break;
    }
    node_ = child;
  }
  return WalkStop::kEnd;
}

// False: the walk ends here, as the row is broken, or as no path was accepted.
__device__ inline bool WalkSteps::BeginVisit() {
  WalkRow& row = Row(node_);
  row.is_whole = 1;
  row.child = row.first_child;
  next_ = row.child == kNoNode ? Next::kStay : Next::kTryChild;
  if (row.child == kNoNode) return true;
  if (!IsBroken()) {
    row.total = KeptMass();
    return true;
  }
  if (!Toss(node_, row.weight)) return GoBack();
  Fails();
  return false;
}

__device__ inline void WalkSteps::TryChild() {
  const WalkRow& row = Row(node_);
  const int child = row.child;
  const double draft_total = is_drawn() && child != kNoNode ? DraftTotal() : 1.0;
  if (child == kNoNode || row.weight == 0.0 || draft_total == 0.0) {
    next_ = Next::kStay;
    return;
  }
  WalkRow& child_row = Row(child);
  double share = child_row.token_weight * row.weight / row.total;
  if (is_drawn()) share = ShareOfDrawn(row, child, draft_total);
  share = share < 1.0 ? share : 1.0;
  if (share == 0.0 && !is_drawn()) {
    Row(node_).child = child_row.next_sibling;
    return;
  }
  next_ = Next::kRejectChild;
  if (!(share > 0.0)) return;
  if (rule_.method == static_cast<int>(AcceptanceMethod::kRejection)) {
    if (!Toss(child, share)) return;
    share = 1.0;
  }
  child_row.weight = share;
  node_ = child;
  next_ = Next::kVisit;
}

// Above 1: surely accepted.
__device__ inline double WalkSteps::ShareOfDrawn(const WalkRow& row, int child,
                                                 double draft_total) const {
  const float* const weights = arrays_.batch.draft_rows[rule_.drawn_row + child];
  const double drafted = weights[Token(child)] * (1.0 / draft_total);
  if (!(drafted > 0.0)) return 0.0;
  const double mass = arrays_.scratch[rule_.RowAfter(child)].token_weight;
  return mass * row.weight / row.total / drafted;
}

__device__ inline void WalkSteps::RejectCertainChild() {
  WalkRow& row = Row(node_);
  const WalkRow& child = Row(row.child);
  row.is_whole = 0;
  const double rejected = (1.0 - row.weight) * row.total;
  row.total -= child.token_weight;
  const double rest = row.weight * row.total;
  row.weight = rest / (rest + rejected);
  row.child = child.next_sibling;
  next_ = Next::kTryChild;
}

__device__ inline void WalkSteps::RejectDrawnChild() {
  WalkRow& row = Row(node_);
  const double rest = static_cast<double>(sum_) * 0x1p-52;
  if (rest == 0.0 && row.weight == 1.0) {
    // Draft and target differ by roundings only, one of which led here.
    row.total = KeptMass();
  } else {
    row.weight = rest / (rest + (1.0 - row.weight));
    row.total = rest;
    row.is_whole = 0;
  }
  next_ = Next::kStay;  // a drawn draft is a chain
}

// Whether the walk stops: the path to the node is accepted, or no path is.
__device__ inline bool WalkSteps::Stay() {
  const WalkRow& row = Row(node_);
  stop_ = WalkStop::kEnd;
  if (!Toss(node_, row.weight)) return !GoBack();
  if (row.is_whole != 0) {
    if (!Fails()) outcome_ = {node_, State().sampled, 0, -1, 0.0f};
    return true;
  }
  outcome_ = {node_, -1, 0, -1, 0.0f};
  stop_ = is_drawn() ? WalkStop::kDrawResidual : WalkStop::kDrawUnclaimed;
  next_ = Next::kEmit;
  return true;
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_WALK_STEPS_CUH_
