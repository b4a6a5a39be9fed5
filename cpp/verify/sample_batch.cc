#include "cpp/verify/sample_batch.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpp/sampling/logits_processors.h"
#include "cpp/sampling/logits_row.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/util/request_error.h"

namespace forerun {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool NeedsDraftWeights(const SampleRequest& request) {
  return request.rule->acceptance_method != AcceptanceMethod::kCoupled &&
         request.rule->temperature != 0.0;
}

int NumDrawn(const DraftTree& draft) {
  return static_cast<int>(std::ranges::count_if(
      draft.parents, [&](std::int32_t parent) { return !draft.RowAfter(parent).empty(); }));
}

// Beside a token's own.
int NumLogprobs(const std::optional<int>& number, int vocab_size) {
  return NumLogprobEntries(number.value_or(0), vocab_size) - 1;
}

bool NeedsHost(const SampleRequest& request, int vocab_size) {
  if (request.num_scored() > 0 &&
      NumLogprobs(request.prompt_logprobs, vocab_size) > kMaxBatchLogprobs) {
    return true;
  }
  if (!request.samples) return false;
  const std::vector<TokenId>* const ids = request.logprob_token_ids;
  if ((ids != nullptr ? std::ssize(*ids) : NumLogprobs(request.logprobs, vocab_size)) >
      kMaxBatchLogprobs) {
    return true;
  }
  const LogitsProcessors* const processors = request.rule->processors;
  if (processors != nullptr && processors->hooks().logits_hook != nullptr) return true;
  if (!NeedsDraftWeights(request)) return false;
  const int num_drawn = NumDrawn(*request.draft);
  return num_drawn > 0 && !(request.draft->is_chain() && num_drawn == request.draft->size());
}

}  // namespace

void SampleBatch::Clear(int num_tokens) {
  rules.clear();
  rows.clear();
  tokens.clear();
  parents.clear();
  edits.clear();
  bans.clear();
  masks.clear();
  scored_tokens.clear();
  logprob_ids.clear();
  drawn_rows.clear();
  host_requests.clear();
  failures_.clear();
  vocab_size = num_tokens;
  words_per_mask = (num_tokens + 31) / 32;
}

void SampleBatch::Build(std::span<const SampleRequest> requests, int num_tokens) {
  Clear(num_tokens);
  for (const SampleRequest& request : requests) AddRequest(request);
}

void SampleBatch::BuildDraws(std::span<const Draw> draws, int num_tokens) {
  static const DraftTree kNoDraft;
  static const SamplingRule kNoRule;
  Clear(num_tokens);
  for (const Draw& draw : draws) {
    SamplingRule rule = draw.rule != nullptr ? *draw.rule : kNoRule;
    rule.processors = nullptr;
    AddRequest({.draft = &kNoDraft, .rule = &rule, .first_output_index = draw.first_output_index});
    SampleRow& row = rows.back();
    row.depth = draw.depth;
    row.needs_mass = 1;
    if (draw.rule == nullptr) row.node = kHostRow;
    rules.back().drawn_row = draw.weights_row;
  }
}

void SampleBatch::AddRequest(const SampleRequest& request) {
  const auto index = static_cast<std::int32_t>(rules.size());
  SampleRule& rule = rules.emplace_back(SampleRule{});
  rule.first_row = static_cast<std::int32_t>(rows.size());
  rule.num_top = rule.mask = rule.drawn_row = -1;
  rule.penalties.repetition = 1.0f;
  SampleRow row = {};
  row.request = index;
  row.node = kHostRow;
  row.mask = -1;
  if (NeedsHost(request, vocab_size)) {
    host_requests.push_back(index);
    rows.insert(rows.end(), request.num_rows(), row);
    return;
  }
  row.node = kScoredRow;
  rows.insert(rows.end(), request.num_scored(), row);
  rule.num_scored = request.num_scored();
  rule.first_scored = static_cast<std::int32_t>(scored_tokens.size());
  rule.num_prompt_top = NumLogprobs(request.prompt_logprobs, vocab_size);
  scored_tokens.insert(scored_tokens.end(), request.scored_tokens.begin(),
                       request.scored_tokens.end());
  if (!request.samples) return;
  AddRule(request, rule);
  if (request.rule->processors != nullptr) AddEdits(request, rule);
  AddSampledRows(request, index);
}

void SampleBatch::AddRule(const SampleRequest& request, SampleRule& rule) {
  const SamplingRule& given = *request.rule;
  const DraftTree& draft = *request.draft;
  rule.samples = 1;
  rule.top_p = 1.0;
  rule.min_p_depth = -std::numeric_limits<double>::infinity();
  rule.seed = given.seed;
  rule.method = static_cast<std::int32_t>(AcceptanceMethod::kCoupled);
  rule.first_output_index = request.first_output_index;
  if (given.temperature != 0.0) {
    rule.inverse_temperature = InverseTemperature(given.temperature);
    rule.top_p = given.top_p;
    if (given.min_p > 0.0) rule.min_p_depth = std::log(given.min_p) / rule.inverse_temperature;
    rule.top_k = given.top_k >= vocab_size ? 0 : std::max(0, given.top_k);
    rule.method = static_cast<std::int32_t>(given.acceptance_method);
  }
  rule.num_nodes = draft.size();
  rule.first_node = static_cast<std::int32_t>(tokens.size());
  tokens.insert(tokens.end(), draft.tokens.begin(), draft.tokens.end());
  parents.insert(parents.end(), draft.parents.begin(), draft.parents.end());
  if (NeedsDraftWeights(request) && NumDrawn(draft) > 0) {
    rule.drawn_row = static_cast<std::int32_t>(drawn_rows.size());
    for (std::int32_t parent : draft.parents) {
      drawn_rows.push_back({draft.RowAfter(parent).data(), draft.device_weights != nullptr});
    }
  }
  rule.first_logprob_id = static_cast<std::int32_t>(logprob_ids.size());
  if (request.logprob_token_ids != nullptr) {
    const std::vector<TokenId>& ids = *request.logprob_token_ids;
    rule.num_top = 0;
    rule.num_logprob_ids = static_cast<std::int32_t>(ids.size());
    logprob_ids.insert(logprob_ids.end(), ids.begin(), ids.end());
  } else if (request.logprobs.has_value()) {
    rule.num_top = NumLogprobs(request.logprobs, vocab_size);
  }
}

void SampleBatch::AddEdits(const SampleRequest& request, SampleRule& rule) {
  const LogitsProcessors& processors = *request.rule->processors;
  const SamplingParams& params = processors.params();
  rule.penalties = processors.penalties();
  if (params.allowed_token_ids.has_value()) {
    rule.mask = AddMask();
    std::uint32_t* const words = masks.data() + masks.size() - words_per_mask;
    for (TokenId token : *params.allowed_token_ids) {
      words[token / 32] |= std::uint32_t{1} << token % 32;
    }
  }
  // Tokens that occurred, in the order of counts; then biased ones, ascending; then draft tokens.
  const std::size_t first = edits.size();
  const TokenCounts& counts = processors.counts();
  for (const TokenCounts::Entry& entry : counts.entries()) {
    edits.push_back({entry.token, entry.num_in_output, 0.0f, TokenEdit::kOccurs});
  }
  const std::size_t first_biased = edits.size();
  for (const auto& [token, given_bias] : params.logit_bias) {
    const auto bias = static_cast<float>(given_bias);
    const int index = counts.IndexOf(token);
    if (index < 0) {
      edits.push_back({token, 0, bias, TokenEdit::kBiased});
    } else {
      edits[first + index].bias = bias;
      edits[first + index].flags |= TokenEdit::kBiased;
    }
  }
  const std::size_t first_drafted = edits.size();
  const auto has_edit = [&](TokenId token) {
    const auto biased = std::span(edits).subspan(first_biased, first_drafted - first_biased);
    return counts.IndexOf(token) >= 0 ||
           std::ranges::binary_search(biased, token, {}, &TokenEdit::token) ||
           std::ranges::count(std::span(edits).subspan(first_drafted), token, &TokenEdit::token) >
               0;
  };
  for (TokenId token : request.draft->tokens) {
    if (processors.has_penalties() && !has_edit(token)) edits.push_back({token, 0, 0.0f, 0});
  }
  std::ranges::sort(std::span(edits).subspan(first), {}, &TokenEdit::token);
  rule.first_edit = static_cast<std::int32_t>(first);
  rule.num_edits = static_cast<std::int32_t>(edits.size() - first);
}

void SampleBatch::AddSampledRows(const SampleRequest& request, std::int32_t index) {
  const DraftTree& draft = *request.draft;
  const std::size_t first_row = rows.size();
  for (int node = kDraftRoot; node < draft.size(); ++node) {
    path_.clear();
    for (int i = node; i != kDraftRoot; i = draft.parents[i]) path_.push_back(draft.tokens[i]);
    std::ranges::reverse(path_);
    SampleRow row = {};
    row.request = index;
    row.node = node;
    row.depth = static_cast<std::int32_t>(path_.size());
    row.mask = -1;
    row.first_ban = static_cast<std::int32_t>(bans.size());
    if (request.rule->processors != nullptr) RuleOut(*request.rule->processors, row);
    rows.push_back(row);
  }
  if (rules[index].method == static_cast<std::int32_t>(AcceptanceMethod::kCoupled)) return;
  for (std::int32_t parent : draft.parents) rows[first_row + 1 + parent].needs_mass = 1;
}

void SampleBatch::RuleOut(const LogitsProcessors& processors, SampleRow& row) {
  std::span<const std::uint32_t> allowed;
  if (const ConstraintCursor* const constraint = processors.hooks().constraint) {
    try {
      allowed = constraint->Allowed(row.node + 1);
    } catch (const HookError& error) {
      failures_.emplace_back(error.what());
      row.status = static_cast<std::int32_t>(failures_.size());
      return;
    }
    row.mask = AddMask();
    std::ranges::copy(allowed.first(words_per_mask), masks.end() - words_per_mask);
  }
  processors.AppendBans(allowed, path_, vocab_size, bans);
  row.num_bans = static_cast<std::int32_t>(bans.size()) - row.first_ban;
}

std::int32_t SampleBatch::AddMask() {
  const auto mask = static_cast<std::int32_t>(masks.size() / words_per_mask);
  masks.resize(masks.size() + words_per_mask);
  return mask;
}

SampleArrays SampleBatch::arrays() const {
  return {.rules = rules.data(),
          .rows = rows.data(),
          .tokens = tokens.data(),
          .parents = parents.data(),
          .edits = edits.data(),
          .bans = bans.data(),
          .masks = masks.data(),
          .scored_tokens = scored_tokens.data(),
          .logprob_ids = logprob_ids.data(),
          .draft_rows = nullptr,
          .num_requests = static_cast<int>(rules.size()),
          .num_rows = static_cast<int>(rows.size()),
          .vocab_size = vocab_size,
          .words_per_mask = words_per_mask};
}

void ApplyEdits(const SampleArrays& arrays, int row_index, float* logits) {
  const SampleRow& row = arrays.rows[row_index];
  const SampleRule& rule = arrays.rules[row.request];
  for (TokenId token = 0; token < arrays.vocab_size; ++token) {
    if (arrays.Masks(rule.mask, token) || arrays.Masks(row.mask, token)) {
      logits[token] = kMinusInfinity;
    }
  }
  for (int i = 0; i < row.num_bans; ++i) logits[arrays.bans[row.first_ban + i]] = kMinusInfinity;
  for (int i = 0; i < rule.num_edits; ++i) {
    const TokenEdit& edit = arrays.edits[rule.first_edit + i];
    logits[edit.token] = arrays.Edited(rule, edit, row.node, logits[edit.token]);
  }
}

}  // namespace forerun
