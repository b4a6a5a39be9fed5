#include "cpp/verify/verifier.h"

#include <algorithm>

#include "cpp/sampling/logits_row.h"
#include "cpp/sampling/logprobs.h"
#include "cpp/util/check.h"

namespace forerun {
namespace {

// The `count` first tokens of the order of preference. A heap whose front is the last of them, so
// that a count of the whole vocabulary is no slower than a sort.
void FindTop(const Row& row, int count, std::vector<RankedToken>& top) {
  top.clear();
  const auto wanted = [&](float group_max) {
    return static_cast<int>(top.size()) < count || group_max > top.front().logit;
  };
  row.VisitGroups(wanted, [&](TokenId first_token, const float* logits) {
    for (int i = 0; i < kScanGroup && first_token + i < row.size(); ++i) {
      const RankedToken token = {logits[i], first_token + i};
      if (static_cast<int>(top.size()) == count) {
        if (!Before(token, top.front())) continue;
        std::ranges::pop_heap(top, Before);
        top.pop_back();
      }
      top.push_back(token);
      std::ranges::push_heap(top, Before);
    }
  });
  std::ranges::sort_heap(top, Before);
}

void ScorePrompt(const SampleRequest& request, RowLogits logits, SamplerScratch& scratch,
                 LogprobRange& range, std::vector<TokenLogprob>& logprobs) {
  for (TokenId token : request.scored_tokens) {
    AppendLogprobs(logits.row(range.num_tokens), token, *request.prompt_logprobs, scratch,
                   logprobs);
    ++range.num_tokens;
  }
}

void ScoreVerdict(const SampleRequest& request, RowLogits logits, SamplerScratch& scratch,
                  Outcome& outcome, std::vector<TokenLogprob>& logprobs) {
  const std::vector<TokenId>* const others = request.logprob_token_ids;
  const int num_top = request.logprobs.value_or(0);
  std::vector<TokenId>& tokens = outcome.verdict.tokens;
  int& num_scored = outcome.logprobs.num_tokens;
  outcome.logprobs.begin = logprobs.size();
  outcome.logprobs.per_token = others != nullptr ? 1 + static_cast<int>(others->size())
                                                 : NumLogprobEntries(num_top, logits.vocab_size);
  try {
    for (; num_scored < std::ssize(tokens); ++num_scored) {
      const auto row = logits.row(outcome.verdict.row(num_scored));
      if (others != nullptr) {
        AppendLogprobsOf(row, tokens[num_scored], *others, scratch, logprobs);
      } else {
        AppendLogprobs(row, tokens[num_scored], num_top, scratch, logprobs);
      }
    }
  } catch (const NumericError& error) {
    outcome.error = error.what();
    outcome.is_corrupted = true;
    tokens.resize(num_scored);
  }
}

}  // namespace

void Outcome::Clear() {
  verdict.tokens.clear();
  verdict.accepted_nodes.clear();
  error.clear();
  is_corrupted = false;
  prompt_logprobs = logprobs = {};
}

void VerifyRequest(const SampleRequest& request, RowLogits logits, SamplerScratch& scratch,
                   Outcome& outcome, std::vector<TokenLogprob>& logprobs) {
  outcome.Clear();
  outcome.prompt_logprobs.begin = logprobs.size();
  outcome.prompt_logprobs.per_token =
      NumLogprobEntries(request.prompt_logprobs.value_or(0), logits.vocab_size);
  try {
    ScorePrompt(request, logits, scratch, outcome.prompt_logprobs, logprobs);
    logits.data += request.num_scored() * logits.stride;
    if (request.samples) {
      Verify(*request.draft, logits, *request.rule, request.first_output_index, scratch,
             outcome.verdict);
    }
  } catch (const NumericError& error) {
    outcome.error = error.what();
    outcome.is_corrupted = true;
  } catch (const RequestError& error) {
    outcome.error = error.what();
  }
  if (request.wants_logprobs()) ScoreVerdict(request, logits, scratch, outcome, logprobs);
}

void HostVerifier::Begin(ConstRows logits, std::span<const SampleRequest> requests) {
  int num_rows = 0;
  for (const SampleRequest& request : requests) num_rows += request.num_rows();
  FORERUN_CHECK(num_rows == logits.rows, "the requests have every row of logits");
  FORERUN_CHECK(requests.size() <= outcomes_.size(), "more requests than the verifier's limit");
  logits_ = logits;
  requests_ = requests;
}

std::span<const Outcome> HostVerifier::Finish() {
  logprobs_.clear();
  int row = 0;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    VerifyRequest(requests_[i], {logits_.row(row), logits_.cols, logits_.stride}, scratch_,
                  outcomes_[i], logprobs_);
    row += requests_[i].num_rows();
  }
  return std::span(outcomes_).first(requests_.size());
}

const float* Verifier::StartDraws(ConstRows /*logits*/, std::span<const Draw> /*draws*/,
                                  const TokenId* /*ids*/, std::size_t /*begin*/) {
  FORERUN_CHECK(false, "the host draws by itself");
  return nullptr;
}

void Verifier::Top(ConstRows logits, int count, std::span<TopToken> out) {
  FORERUN_CHECK(std::ssize(out) == std::int64_t{logits.rows} * count, "top tokens: [rows, count]");
  StartTop(logits, count, /*begin=*/0);
  FinishTop(out);
}

const TopToken* HostVerifier::StartTop(ConstRows logits, int count, std::size_t begin) {
  const std::size_t end = begin + static_cast<std::size_t>(logits.rows) * count;
  FORERUN_CHECK(begin == 0 || end <= found_.size(), "more top tokens than the verifier's limit");
  if (found_.size() < end) found_.resize(end);
  const std::span out = std::span(found_).subspan(begin, end - begin);
  std::ranges::fill(out, TopToken());
  for (int i = 0; i < logits.rows; ++i) {
    const std::span row(logits.row(i), static_cast<std::size_t>(logits.cols));
    try {
      const KeptTokens kept = KeepTokens(row, SamplingRule{.temperature = 1.0}, scratch_);
      FindTop(kept.row, count, top_);
      for (std::size_t rank = 0; rank < top_.size(); ++rank) {
        const double weight = kept.row.WeightAt(top_[rank].logit);
        if (weight == 0.0) break;
        out[std::size_t{0} + i * count + rank] = {top_[rank].token,
                                                  static_cast<float>(weight / kept.mass)};
      }
    } catch (const NumericError&) {
      // The row has no candidates.
    }
  }
  return out.data();
}

void HostVerifier::FinishTop(std::span<TopToken> out) {
  std::ranges::copy_n(found_.begin(), std::ssize(out), out.begin());
}

}  // namespace forerun
