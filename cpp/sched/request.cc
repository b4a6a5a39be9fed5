#include "cpp/sched/request.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace forerun {

void Request::SetUp(std::span<const TokenId> prompt, const SamplingParams& sampling_params,
                    RequestHooks request_hooks, const RequestSetting& setting) {
  params = sampling_params;
  hooks = std::move(request_hooks);
  num_prompt_tokens = static_cast<int>(prompt.size());
  tokens.assign(prompt.begin(), prompt.end());
  end_tokens = params.stop_token_ids;
  if (!params.ignore_eos) {
    std::ranges::copy_if(setting.eos_token_ids, std::back_inserter(end_tokens),
                         [&](TokenId token) { return token < setting.vocab_size; });
  }
  rule = MakeSamplingRule(params, setting.seed);
  rule.acceptance_method = setting.acceptance_method;
  vocab_size = setting.vocab_size;
}

void Request::Prepare() {
  if (is_prepared) return;
  tokens.reserve(max_len);
  table.ReserveCapacity(max_len);
  if (hooks.constraint != nullptr) {
    constraint.emplace(*hooks.constraint, tokens, max_len, vocab_size);
  }
  const RowHooks row_hooks = {constraint ? &*constraint : nullptr, hooks.logits_hook.get()};
  if (LogitsProcessors::AreNeeded(params, end_tokens, row_hooks)) {
    processors.emplace(params, end_tokens, tokens, max_len, row_hooks);
    rule.processors = &*processors;
  }
  is_prepared = true;
}

int Request::num_predicted() const {
  if (!is_predicted || !draft.is_chain()) return 0;
  const auto end = std::ranges::mismatch(draft.tokens, prediction->continuation()).in1;
  return static_cast<int>(end - draft.tokens.begin());
}

}  // namespace forerun
