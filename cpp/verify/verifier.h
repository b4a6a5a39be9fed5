// From the logits of a step to what its requests emit: the interface of every backend.
//
// Verify (cpp/verify/verify.h) and the log-probabilities of cpp/sampling are the definition; a
// verifier computes the same, wherever the logits are. Given the same logits, tokens and accepted
// nodes are equal bit for bit.
#ifndef FORERUN_CPP_VERIFY_VERIFIER_H_
#define FORERUN_CPP_VERIFY_VERIFIER_H_

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpp/draft_tree/draft_tree.h"
#include "cpp/sampling/sampler.h"
#include "cpp/tensor/tensor.h"
#include "cpp/verify/verify.h"
#include "forerun/types.h"

namespace forerun {

// The most that one step has. What a verifier needs per row and request, results included, is
// allocated at construction. What has no such bound (masks, edits, bans, and draft weights of a
// step on their way to a device; rows that it verifies on the host; what Top finds) is kept and
// grows until the largest step was seen.
struct VerifierLimits {
  int vocab_size = 0;
  int max_requests = 0;
  int max_rows = 0;  // of logits
  int max_top_tokens = 0;
  // Of drafts that StartDraws draws: their rows of weights, and the tokens of each.
  int max_drawn_rows = 0, drawn_vocab_size = 0;
};

// What is wanted of one request. Its rows follow each other in the logits: first one per scored
// prompt token, then, if it samples, one after the committed tokens and one after each draft node.
struct SampleRequest {
  const DraftTree* draft = nullptr;
  const SamplingRule* rule = nullptr;
  int first_output_index = 0;  // of the first token that is sampled
  bool samples = true;         // false: prompt tokens alone are scored; no draft, no rule

  // Prompt tokens whose log-probabilities are wanted: row i predicts scored_tokens[i].
  std::span<const TokenId> scored_tokens = {};
  // How many of the most probable tokens are reported with each token; -1: all of them. Absent: no
  // log-probabilities. REQUIRES: prompt_logprobs, where there are scored tokens.
  std::optional<int> prompt_logprobs = {}, logprobs = {};
  // Reported with each sampled token instead of the most probable ones; null: absent.
  const std::vector<TokenId>* logprob_token_ids = nullptr;

  int num_scored() const { return static_cast<int>(scored_tokens.size()); }
  int num_rows() const { return num_scored() + (samples ? draft->size() + 1 : 0); }
  bool wants_logprobs() const { return logprobs.has_value() || logprob_token_ids != nullptr; }
};

// Entries of a step's log-probabilities: `per_token` for each of `num_tokens` tokens.
struct LogprobRange {
  std::size_t begin = 0;
  int num_tokens = 0, per_token = 1;
};

// What was found out about one request.
struct Outcome {
  Verdict verdict;
  std::string error;          // why it fails after the verdict's tokens; empty: it does not
  bool is_corrupted = false;  // the error is that of a row of logits
  LogprobRange prompt_logprobs, logprobs;

  void Clear();
};

// A candidate of a drafter, with the drafter's probability.
struct TopToken {
  TokenId token = -1;  // -1: there is none
  float probability = 0.0f;

  friend bool operator==(const TopToken&, const TopToken&) = default;
};

// A draft token that is to be drawn from a row of a drafter's logits, with no draft token beside
// it.
struct Draw {
  const SamplingRule* rule = nullptr;  // null: none is
  int first_output_index = 0;          // of the first token of the draft
  int depth = 0;                       // draft tokens before it
  int weights_row = 0;                 // where its weights are to be, below max_drawn_rows
};

// One thread at a time.
class Verifier {
 public:
  virtual ~Verifier() = default;

  // Starts the verification of a step. Row by row the logits [rows, vocab_size], in the backend's
  // memory, belong to the requests, in their order. All arguments are borrowed until Finish.
  // Throws DeviceError.
  virtual void Begin(ConstRows logits, std::span<const SampleRequest> requests) = 0;

  // Waits for the outcomes, one per request, valid until the next Begin. A request whose own rows
  // or hooks are broken has an error, and the others are as they would be without it. Throws
  // DeviceError; the step can then be begun again. REQUIRES: Begin was called before.
  virtual std::span<const Outcome> Finish() = 0;

  // What the ranges of the last Finish index. The caller may take the contents away.
  virtual std::vector<TokenLogprob>& logprobs() = 0;

  // Of each row of logits, in the backend's memory, the `count` first tokens in the order of
  // preference, with their share of the weights at temperature 1; tokens without weight are
  // missing, and so are all tokens of a row with NaN, +infinity, or nothing above -infinity.
  // Only starts: what is found is [rows, count] from the `begin`-th token of a round on, which 0
  // begins. Returns where it will be in the backend's memory, until the next round. Throws
  // DeviceError. REQUIRES: with `begin` above 0, a round of at most limits.max_top_tokens.
  virtual const TopToken* StartTop(ConstRows logits, int count, std::size_t begin) = 0;
  // Starts to draw a token from each row, in place of the first that StartTop found from `begin`
  // on: as AppendDrawnChild draws from what FillDraftRow makes of the row without processors. The
  // weights of the target's tokens are left in the backend's memory, where it returns, as
  // [max_drawn_rows, drawn_vocab_size]. ids [logits.cols], ascending and in the backend's memory,
  // are the target's tokens; null: the same. For a verifier with max_drawn_rows, on a device.
  virtual const float* StartDraws(ConstRows logits, std::span<const Draw> draws, const TokenId* ids,
                                  std::size_t begin);
  // Waits for the tokens of a round. Throws DeviceError.
  virtual void FinishTop(std::span<TopToken> out) = 0;
  // Both.
  void Top(ConstRows logits, int count, std::span<TopToken> out);
};

// The outcome of one request, by definition: the prompt's log-probabilities, Verify, then the
// log-probabilities of the tokens that it emits, from the raw rows. The first broken row of the
// prompt ends it; a broken row of an emitted token cuts the verdict before that token. `logits`
// begin with the request's first row, on the host. Appends to `logprobs`; overwrites `outcome`.
void VerifyRequest(const SampleRequest& request, RowLogits logits, SamplerScratch& scratch,
                   Outcome& outcome, std::vector<TokenLogprob>& logprobs);

// On the host, request by request.
class HostVerifier : public Verifier {
 public:
  explicit HostVerifier(const VerifierLimits& limits)
      : outcomes_(limits.max_requests), found_(limits.max_top_tokens) {}

  void Begin(ConstRows logits, std::span<const SampleRequest> requests) override;
  std::span<const Outcome> Finish() override;
  std::vector<TokenLogprob>& logprobs() override { return logprobs_; }
  const TopToken* StartTop(ConstRows logits, int count, std::size_t begin) override;
  void FinishTop(std::span<TopToken> out) override;

 private:
  // Of the step.
  ConstRows logits_;
  std::span<const SampleRequest> requests_;

  // Kept for their memory.
  SamplerScratch scratch_;
  std::vector<Outcome> outcomes_;
  std::vector<TokenLogprob> logprobs_;
  std::vector<RankedToken> top_;
  std::vector<TopToken> found_;  // in the round
};

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_VERIFIER_H_
