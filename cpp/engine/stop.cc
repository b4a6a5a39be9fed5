#include "cpp/engine/stop.h"

#include <algorithm>
#include <string_view>

#include "cpp/util/check.h"

namespace forerun {
namespace {

bool Contains(std::span<const TokenId> tokens, TokenId token) {
  return std::ranges::find(tokens, token) != tokens.end();
}

std::size_t LongestStop(const SamplingParams& params) {
  std::size_t longest = 1;
  for (const std::string& stop : params.stop) longest = std::max(longest, stop.size());
  return longest;
}

// A stop string that ends later may begin in these last bytes.
void TrimTail(Request& request) {
  const std::size_t longest = LongestStop(request.params);
  std::string& tail = request.text_tail;
  if (tail.size() >= longest) tail.erase(0, tail.size() - (longest - 1));
}

// Looks for a stop string that ends within the newest `num_new` bytes of the tail. The leftmost
// wins, then the first in the caller's list.
void MatchStopStrings(std::size_t num_new, Request& request) {
  const std::string& tail = request.text_tail;
  const std::size_t num_old = tail.size() - num_new;
  std::size_t best = std::string::npos;
  for (std::size_t i = 0; i < request.params.stop.size(); ++i) {
    const std::string& stop = request.params.stop[i];
    const std::size_t from = num_old >= stop.size() ? num_old - stop.size() + 1 : 0;
    const std::size_t found = tail.find(stop, from);
    if (found >= best) continue;
    best = found;
    request.stop_string_index = static_cast<int>(i);
  }
  if (best == std::string::npos) return;
  const std::string& stop = request.params.stop[request.stop_string_index];
  const std::size_t end = best + (request.params.include_stop_str_in_output ? stop.size() : 0);
  request.num_text_bytes -= static_cast<std::int64_t>(tail.size() - end);
  request.finish_reason = FinishReason::kStop;
}

// What the token adds to the request's text.
std::string_view Piece(const StopVocabulary& vocabulary, TokenId token,
                       const SamplingParams& params) {
  if (params.skip_special_tokens && vocabulary.is_special[token]) return {};
  return vocabulary.token_bytes[token];
}

}  // namespace

void ReserveTail(const StopVocabulary& vocabulary, Request& request) {
  if (request.params.stop.empty()) return;
  request.text_tail.reserve(LongestStop(request.params) + vocabulary.longest_token);
}

void CommitToken(const StopVocabulary& vocabulary, TokenId token, Request& request) {
  FORERUN_CHECK(!request.finished());
  request.tokens.push_back(token);
  if (request.processors) request.processors->ObserveCommitted();
  const SamplingParams& params = request.params;
  const bool may_stop = request.num_output_tokens() > params.min_tokens;
  const bool is_eos = !params.ignore_eos && Contains(vocabulary.eos_token_ids, token);
  const bool is_stop_token = is_eos || Contains(params.stop_token_ids, token);

  if (is_stop_token && may_stop) {
    // The token stays in the ids; its bytes are not part of the text unless asked for.
    request.finish_reason = FinishReason::kStop;
    request.stop_token = token;
    if (params.include_stop_str_in_output && !vocabulary.token_bytes.empty()) {
      request.num_text_bytes += static_cast<std::int64_t>(Piece(vocabulary, token, params).size());
    }
    return;
  }
  if (!vocabulary.token_bytes.empty()) {
    const std::string_view piece = Piece(vocabulary, token, params);
    request.num_text_bytes += static_cast<std::int64_t>(piece.size());
    if (!params.stop.empty()) {
      request.text_tail += piece;
      if (may_stop) MatchStopStrings(piece.size(), request);
      TrimTail(request);
    }
  }
  if (!request.finished() && static_cast<int>(request.tokens.size()) >= request.max_len) {
    request.finish_reason = FinishReason::kLength;
  }
}

}  // namespace forerun
