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
  TextTail& tail = request.text_tail;
  for (std::string* bytes : {&tail.shown, &tail.named, &tail.marks}) {
    if (bytes->size() >= longest) bytes->erase(0, bytes->size() - (longest - 1));
  }
}

bool IsHidden(const StopVocabulary& vocabulary, TokenId token, const SamplingParams& params) {
  return params.skip_special_tokens && vocabulary.is_special[token];
}

void AppendToTail(std::string_view name, bool is_hidden, Request& request) {
  TextTail& tail = request.text_tail;
  if (!is_hidden) tail.shown += name;
  if (!request.params.skip_special_tokens || name.empty()) return;
  tail.named += name;
  tail.marks.append(name.size(), is_hidden ? TextTail::kNameInside : TextTail::kShown);
  if (is_hidden) tail.marks[tail.marks.size() - name.size()] = TextTail::kNameBegin;
}

// A stop string in the text, by the number of bytes from its begin and from its end to the end of
// the text.
struct StopMatch {
  int index = -1;
  std::size_t after_begin = 0;
  std::size_t after_end = 0;

  void Offer(const StopMatch& other) {
    if (index < 0 || other.after_begin > after_begin) *this = other;
  }
};

// The first position from which `stop` would end within the newest `num_new` of `size` bytes.
std::size_t FirstBegin(std::size_t size, std::size_t num_new, const std::string& stop) {
  const std::size_t num_old = size - num_new;
  return num_old >= stop.size() ? num_old - stop.size() + 1 : 0;
}

void MatchShown(const TextTail& tail, const std::string& stop, std::size_t num_new, int index,
                StopMatch& best) {
  const std::string& text = tail.shown;
  const std::size_t found = text.find(stop, FirstBegin(text.size(), num_new, stop));
  if (found == std::string::npos) return;
  best.Offer({index, text.size() - found, text.size() - found - stop.size()});
}

void MatchNamed(const TextTail& tail, const std::string& stop, std::size_t num_new, int index,
                StopMatch& best) {
  const std::string& text = tail.named;
  const auto is_inside = [&](std::size_t at) {
    return at < text.size() && tail.marks[at] == TextTail::kNameInside;
  };
  const auto num_shown_after = [&](std::size_t at) -> std::size_t {
    return std::count(tail.marks.begin() + static_cast<std::ptrdiff_t>(at), tail.marks.end(),
                      TextTail::kShown);
  };
  std::size_t found = text.find(stop, FirstBegin(text.size(), num_new, stop));
  while (found != std::string::npos) {
    const std::size_t end = found + stop.size();
    if (!is_inside(found) && !is_inside(end)) {
      best.Offer({index, num_shown_after(found), num_shown_after(end)});
      return;
    }
    found = text.find(stop, found + 1);
  }
}

// Searches for a stop string that ends within the newest token, whose name has `num_new` bytes. The
// leftmost match wins, then the first in the caller's list.
void MatchStopStrings(std::size_t num_new, bool is_hidden, Request& request) {
  StopMatch best;
  for (std::size_t i = 0; i < request.params.stop.size(); ++i) {
    const std::string& stop = request.params.stop[i];
    const int index = static_cast<int>(i);
    if (!is_hidden) MatchShown(request.text_tail, stop, num_new, index, best);
    if (!request.text_tail.named.empty()) {
      MatchNamed(request.text_tail, stop, num_new, index, best);
    }
  }
  if (best.index < 0) return;
  request.stop_string_index = best.index;
  const bool keeps = request.params.include_stop_str_in_output;
  request.num_text_bytes -= static_cast<std::int64_t>(keeps ? best.after_end : best.after_begin);
  request.finish_reason = FinishReason::kStop;
}

// Adds the token to the text, and finishes the request if a stop string ends in it.
void AddText(const StopVocabulary& vocabulary, TokenId token, bool may_stop, Request& request) {
  const std::string_view name = vocabulary.token_bytes[token];
  const bool is_hidden = IsHidden(vocabulary, token, request.params);
  if (!is_hidden) request.num_text_bytes += static_cast<std::int64_t>(name.size());
  if (request.params.stop.empty()) return;
  AppendToTail(name, is_hidden, request);
  if (may_stop) MatchStopStrings(name.size(), is_hidden, request);
  TrimTail(request);
}

}  // namespace

void ReserveTail(const StopVocabulary& vocabulary, Request& request) {
  if (request.params.stop.empty()) return;
  const std::size_t size = LongestStop(request.params) + vocabulary.longest_token;
  TextTail& tail = request.text_tail;
  for (std::string* bytes : {&tail.shown, &tail.named, &tail.marks}) bytes->reserve(size);
}

void CommitToken(const StopVocabulary& vocabulary, TokenId token, Request& request) {
  FORERUN_CHECK(!request.finished());
  request.tokens.push_back(token);
  if (request.processors) request.processors->ObserveCommitted();
  const SamplingParams& params = request.params;
  const bool may_stop = request.num_output_tokens() > params.min_tokens;
  const bool is_eos = !params.ignore_eos && Contains(vocabulary.eos_token_ids, token);
  const bool is_stop_token = is_eos || Contains(params.stop_token_ids, token);

  const std::int64_t num_bytes_before = request.num_text_bytes;
  if (!vocabulary.token_bytes.empty()) AddText(vocabulary, token, may_stop, request);
  if (request.finished()) return;
  // Under a constraint a stop token is sampled before min_tokens only where nothing else is
  // allowed.
  if (is_stop_token && (may_stop || request.constraint)) {
    // The token stays in the ids; its bytes are not part of the text unless asked for.
    request.finish_reason = FinishReason::kStop;
    request.stop_token = token;
    if (!params.include_stop_str_in_output) request.num_text_bytes = num_bytes_before;
  } else if (static_cast<int>(request.tokens.size()) >= request.max_len) {
    request.finish_reason = FinishReason::kLength;
  }
}

}  // namespace forerun
