// What changes a request's logits before its next token is sampled: masks, biases, penalties.
//
// A row of logits follows some output: the committed tokens and then a path of the draft, which is
// not committed. Every option is applied as if all of it were committed. docs/sampling.md has the
// options, their order and what each does to a logit.
//
// All in float32, from the row's own logits and the counts alone: not by adding up changes.
#ifndef FORERUN_CPP_SAMPLING_LOGITS_PROCESSORS_H_
#define FORERUN_CPP_SAMPLING_LOGITS_PROCESSORS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cpp/draft_tree/constraint_cursor.h"
#include "cpp/sampling/penalties.h"
#include "cpp/sampling/token_counts.h"
#include "forerun/request_hooks.h"
#include "forerun/sampling_params.h"
#include "forerun/types.h"

namespace forerun {

// Throws InvalidArgument that names the first option out of its range.
void CheckLogitsOptions(const SamplingParams& params);

// The hooks of a request that change rows. Both may be null.
struct RowHooks {
  const ConstraintCursor* constraint = nullptr;
  LogitsHook* logits_hook = nullptr;
};

class LogitsProcessors {
 public:
  // `tokens` holds the prompt now, and later what is committed after it, up to `max_tokens` in
  // all. `end_tokens` cannot be sampled before min_tokens. Both, `params`, whose ids all belong to
  // the vocabulary, and the hooks must outlive this.
  LogitsProcessors(const SamplingParams& params, std::span<const TokenId> end_tokens,
                   const std::vector<TokenId>& tokens, int max_tokens, RowHooks hooks = {});

  LogitsProcessors(const LogitsProcessors&) = delete;
  LogitsProcessors& operator=(const LogitsProcessors&) = delete;

  // Whether any row could ever be changed.
  static bool AreNeeded(const SamplingParams& params, std::span<const TokenId> end_tokens,
                        RowHooks hooks = {});

  // Takes notice of what was committed since the last call. Allocates nothing.
  void ObserveCommitted();

  // The logits to sample from after the committed tokens and then `path`: `logits` themselves
  // where nothing applies, else a changed copy in `copy`. They are row number `row_index` of the
  // request (see ConstraintCursor::Allowed). Throws HookError.
  std::span<const float> Apply(std::span<const float> logits, int row_index,
                               std::span<const TokenId> path, std::vector<float>& copy) const;

  // What Apply does, as data.
  const SamplingParams& params() const { return params_; }
  const RowHooks& hooks() const { return hooks_; }
  bool has_penalties() const { return has_penalties_; }
  const Penalties& penalties() const { return penalties_; }
  // What penalties look at in the committed tokens.
  const TokenCounts& counts() const { return counts_; }
  // Appends the tokens that bad_words and min_tokens rule out after the committed tokens and then
  // `path`, where the constraint allows `allowed` (empty: there is none).
  void AppendBans(std::span<const std::uint32_t> allowed, std::span<const TokenId> path,
                  int vocab_size, std::vector<TokenId>& bans) const;

 private:
  int num_output(std::span<const TokenId> path) const {
    return static_cast<int>(tokens_.size() + path.size()) - num_prompt_;
  }
  template <typename Ban>
  void EachBan(std::span<const std::uint32_t> allowed, std::span<const TokenId> path,
               int vocab_size, Ban ban) const;
  void ApplyHook(std::span<const TokenId> path, std::span<float> logits) const;
  bool Completes(std::span<const TokenId> word, std::span<const TokenId> path) const;
  void Penalize(std::span<const TokenId> path, float* logits) const;

  const SamplingParams& params_;
  const std::span<const TokenId> end_tokens_;
  const std::vector<TokenId>& tokens_;
  const int num_prompt_;
  const Penalties penalties_;
  const bool has_penalties_;
  const RowHooks hooks_;

  TokenCounts counts_;  // of what penalties look at
  int num_counted_;     // of tokens_
};

}  // namespace forerun

#endif  // FORERUN_CPP_SAMPLING_LOGITS_PROCESSORS_H_
