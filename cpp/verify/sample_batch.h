// The requests of a step as flat arrays: what kernels read instead of drafts, processors and
// constraints. Plain data made on the CPU; copied to a device array by array.
//
// A row's logits change in this order, as in LogitsProcessors::Apply: masks and bans (to -infinity,
// NaN too), biases, penalties. ApplyEdits does it on the host.
#ifndef FORERUN_CPP_VERIFY_SAMPLE_BATCH_H_
#define FORERUN_CPP_VERIFY_SAMPLE_BATCH_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cpp/sampling/penalties.h"
#include "cpp/util/host_device.h"
#include "cpp/verify/verifier.h"
#include "forerun/types.h"

namespace forerun {

class LogitsProcessors;

// More log-probabilities beside a token's own are left to the host.
inline constexpr int kMaxBatchLogprobs = 32;

// One request. Log-probabilities of a token are its own, then those of the num_top best tokens,
// then those of the logprob_ids: 1 + num_top + num_logprob_ids entries.
struct SampleRule {
  double inverse_temperature;  // 0: greedy
  double top_p;                // 1: all
  double min_p_depth;          // kept logits are >= max + this; -infinity: all
  std::uint64_t seed;
  std::int32_t top_k;   // 0: all
  std::int32_t method;  // AcceptanceMethod; kCoupled if greedy
  std::int32_t first_output_index;
  std::int32_t first_row;   // in the logits and in `rows`; the scored rows come first
  std::int32_t num_nodes;   // of the draft
  std::int32_t first_node;  // in tokens and parents
  std::int32_t num_scored;
  std::int32_t first_scored;    // in scored_tokens
  std::int32_t num_prompt_top;  // of scored tokens
  std::int32_t num_top;         // of emitted tokens; -1: no log-probabilities
  std::int32_t first_logprob_id, num_logprob_ids;
  std::int32_t mask;                   // of allowed_token_ids; -1: none
  std::int32_t first_edit, num_edits;  // by ascending token
  // Of the draft weights from which the chain's first token was drawn, node i from drawn_row + i;
  // -1: all nodes are certain.
  std::int32_t drawn_row;
  std::int32_t samples;  // 0: no row is sampled
  Penalties penalties;

  // The row that follows a node, or the committed tokens (-1).
  FORERUN_HOST_DEVICE int RowAfter(int node) const { return first_row + num_scored + 1 + node; }
};

// Values of SampleRow::node other than nodes and -1.
inline constexpr std::int32_t kScoredRow = -2;  // of the prompt
inline constexpr std::int32_t kHostRow = -3;    // left to the host

// One row of logits.
struct SampleRow {
  std::int32_t request;
  std::int32_t node;   // that it follows; -1: the committed tokens
  std::int32_t depth;  // draft tokens before it: samples output first_output_index + depth
  std::int32_t mask;   // of the constraint; -1: none
  std::int32_t first_ban, num_bans;
  // 0, or why the row cannot be sampled, see SampleBatch::failure. Matters only if the walk gets
  // there, and comes before errors of its logits.
  std::int32_t status;
  // 1: the weight of the tokens that it keeps is wanted, as a draft token after it is accepted or
  // rejected by its share of it.
  std::int32_t needs_mass;
};

// A token of a request with a bias or a penalty, at most one per token.
struct TokenEdit {
  enum Flag : std::uint32_t {
    kOccurs = 1,  // in the prompt or the output, as far as penalties look
    kBiased = 2,
  };

  TokenId token;
  std::int32_t count;  // in the committed output
  float bias;
  std::uint32_t flags;
};

// The arrays, in host or device memory.
struct SampleArrays {
  const SampleRule* rules;
  const SampleRow* rows;
  const TokenId* tokens;  // of the drafts' nodes
  const std::int32_t* parents;
  const TokenEdit* edits;
  const TokenId* bans;
  const std::uint32_t* masks;  // [masks, words_per_mask]; bit i % 32 of word i / 32: token i may be
  const TokenId* scored_tokens;
  const TokenId* logprob_ids;
  const float* const* draft_rows;  // [drawn rows]: vocab_size weights each; null on the host
  int num_requests, num_rows;
  int vocab_size, words_per_mask;

  FORERUN_HOST_DEVICE bool Masks(int mask, TokenId token) const {
    if (mask < 0) return false;
    const std::uint32_t word = masks[static_cast<std::int64_t>(mask) * words_per_mask + token / 32];
    return (word >> (token % 32) & 1) == 0;
  }
  // How often the draft has a token on the path to a node.
  FORERUN_HOST_DEVICE int NumOnPath(const SampleRule& rule, int node, TokenId token) const {
    int count = 0;
    for (; node >= 0; node = parents[rule.first_node + node]) {
      count += tokens[rule.first_node + node] == token;
    }
    return count;
  }
  // What bias and penalties make of a logit that is not masked, after a node.
  FORERUN_HOST_DEVICE float Edited(const SampleRule& rule, const TokenEdit& edit, int node,
                                   float logit) const {
    if ((edit.flags & TokenEdit::kBiased) != 0) logit += edit.bias;
    const int num_on_path = NumOnPath(rule, node, edit.token);
    if ((edit.flags & TokenEdit::kOccurs) == 0 && num_on_path == 0) return logit;
    return Penalized(logit, edit.count + num_on_path, rule.penalties);
  }
};

struct SampleBatch {
  std::vector<SampleRule> rules;  // [requests]
  std::vector<SampleRow> rows;    // [rows of logits]
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> parents;
  std::vector<TokenEdit> edits;
  std::vector<TokenId> bans;
  std::vector<std::uint32_t> masks;
  std::vector<TokenId> scored_tokens, logprob_ids;
  // [drawn rows]: vocab_size weights each, borrowed from the drafts, on the host or on the device.
  struct DrawnRow {
    const float* weights;
    bool is_on_device;

    bool operator==(const DrawnRow&) const = default;
  };
  std::vector<DrawnRow> drawn_rows;

  // Requests that only VerifyRequest can serve: with a logits hook, a drawn draft that is no chain,
  // or many log-probabilities. Their rules and rows ask for nothing.
  std::vector<std::int32_t> host_requests;
  int vocab_size = 0, words_per_mask = 0;

  // Replaces the contents. Borrows from the requests.
  void Build(std::span<const SampleRequest> requests, int num_tokens);
  // The same for draws from rows of a drafter's logits over num_tokens tokens;
  // SampleRule::drawn_row says where a row's weights are to be. A row that is not drawn from is
  // kHostRow.
  void BuildDraws(std::span<const Draw> draws, int num_tokens);

  SampleArrays arrays() const;
  // What HookError says for a row with this status.
  const std::string& failure(std::int32_t status) const { return failures_[status - 1]; }

 private:
  void Clear(int num_tokens);
  void AddRequest(const SampleRequest& request);
  void AddRule(const SampleRequest& request, SampleRule& rule);
  void AddEdits(const SampleRequest& request, SampleRule& rule);
  void AddSampledRows(const SampleRequest& request, std::int32_t index);
  // Fills in the row's mask, bans or status. REQUIRES: path_ leads to it.
  void RuleOut(const LogitsProcessors& processors, SampleRow& row);
  std::int32_t AddMask();  // of zeros

  std::vector<std::string> failures_;
  std::vector<TokenId> path_;  // kept for its memory
};

// Applies a row's masks, bans, biases and penalties to its logits [vocab_size], on the host.
// REQUIRES: the row is sampled, and its status is 0.
void ApplyEdits(const SampleArrays& arrays, int row, float* logits);

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_SAMPLE_BATCH_H_
