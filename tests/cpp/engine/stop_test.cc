// Where CommitToken ends a text: stop strings with and without the names of special tokens.
#include "cpp/engine/stop.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/cpp/testing/naive_generate.h"
#include "tests/cpp/testing/num_examples.h"

namespace forerun {
namespace {

using testing::NaiveText;

struct Ending {
  int num_tokens = 0;
  std::int64_t num_text_bytes = 0;
  int stop_string_index = -1;
  TokenId stop_token = -1;
};

// Token i has the i-th text; names in angle brackets are special.
class StopTest : public ::testing::Test {
 protected:
  void SetTokens(std::vector<std::string> texts) {
    vocabulary_.token_bytes = std::move(texts);
    vocabulary_.is_special.clear();
    for (const std::string& text : vocabulary_.token_bytes) {
      vocabulary_.is_special.push_back(text.starts_with("<"));
      vocabulary_.longest_token = std::max(vocabulary_.longest_token, text.size());
    }
  }

  // Commits the tokens up to the one that ends the text.
  Ending Commit(const std::vector<TokenId>& tokens, const SamplingParams& params) {
    BlockPool pool(16, 16, /*enable_prefix_caching=*/false);
    Request request(0, pool, 200);
    request.SetUp(std::vector<TokenId>{0}, params, {}, {.vocab_size = 32, .eos_token_ids = {}});
    ReserveTail(vocabulary_, request);
    const std::size_t capacity = request.text_tail.named.capacity();
    for (TokenId token : tokens) {
      if (request.finished()) break;
      CommitToken(vocabulary_, token, request);
    }
    EXPECT_EQ(request.text_tail.named.capacity(), capacity);
    return {request.num_output_tokens(), request.num_text_bytes, request.stop_string_index,
            request.stop_token};
  }

  StopVocabulary vocabulary_;
};

SamplingParams Stopping(std::vector<std::string> stops) {
  SamplingParams params;
  params.max_tokens = 100;
  params.stop = std::move(stops);
  return params;
}

TEST_F(StopTest, OmittedTokensMatchStopStringsByTheirNames) {
  SetTokens({"big", "<|im_end|>", "dog", "\n"});
  const std::vector<TokenId> text = {2, 0, 1, 3};
  EXPECT_EQ(Commit(text, Stopping({"<|im_end|>"})).num_text_bytes, 6);
  EXPECT_EQ(Commit(text, Stopping({"big<|im_end|>"})).num_text_bytes, 3);
  EXPECT_EQ(Commit(text, Stopping({"gbig<|im_end|>\n"})).num_text_bytes, 2);
  EXPECT_EQ(Commit(text, Stopping({"<|im_end|>\n"})).num_tokens, 4);
  EXPECT_EQ(Commit(text, Stopping({"<|im_end|>"})).num_tokens, 3);
}

TEST_F(StopTest, APartOfAnOmittedNameDoesNotStop) {
  SetTokens({"big", "<|im_end|>", "|", "<"});
  for (const char* stop : {"|", "im", "<|", "|>", "g<", "end|>b"}) {
    EXPECT_EQ(Commit({0, 1, 0}, Stopping({stop})).stop_string_index, -1) << stop;
  }
  EXPECT_EQ(Commit({0, 1, 2}, Stopping({"|"})).num_text_bytes, 3);
  SamplingParams shown = Stopping({"|"});
  shown.skip_special_tokens = false;
  EXPECT_EQ(Commit({0, 1, 0}, shown).num_text_bytes, 4);
}

TEST_F(StopTest, AStopStringMaySpanOmittedTokens) {
  SetTokens({"a", "<x>", "b"});
  EXPECT_EQ(Commit({0, 0, 1, 2}, Stopping({"ab"})).num_text_bytes, 1);
  EXPECT_EQ(Commit({0, 0, 1, 2}, Stopping({"a<x>b"})).num_text_bytes, 1);
}

TEST_F(StopTest, AnIncludedStopStringShowsNoOmittedNames) {
  SetTokens({"a", "<x>", "b"});
  SamplingParams params = Stopping({"a<x>b"});
  params.include_stop_str_in_output = true;
  EXPECT_EQ(Commit({0, 0, 1, 2}, params).num_text_bytes, 3);
  params.skip_special_tokens = false;
  EXPECT_EQ(Commit({0, 0, 1, 2}, params).num_text_bytes, 6);
}

TEST_F(StopTest, ATokenThatEndsTheTextMayCompleteAStopString) {
  SetTokens({"big", "<|im_end|>"});
  vocabulary_.eos_token_ids = {1};
  Ending ending = Commit({0, 1}, Stopping({"g<|im_end|>"}));
  EXPECT_EQ(ending.num_text_bytes, 2);
  EXPECT_EQ(ending.stop_string_index, 0);
  ending = Commit({0, 1}, Stopping({"other"}));
  EXPECT_EQ(ending.num_text_bytes, 3);
  EXPECT_EQ(ending.stop_token, 1);
}

TEST_F(StopTest, RandomTextsEndWhereTheNaiveSearchSays) {
  std::mt19937 random(7);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  int num_stopped = 0, num_examples = testing::NumExamples(4000, 200000);
  for (int example = 0; example < num_examples; ++example) {
    const auto word = [&](int least, int most) {
      std::string text;
      for (int i = pick(least, most); i > 0; --i) text += "ab<"[pick(0, 5) / 2];
      return text;
    };
    std::vector<std::string> texts;
    for (int i = 0; i < 4; ++i) texts.push_back(word(0, 3));
    for (int i = 0; i < 3; ++i) texts.push_back(std::string("<").append(word(0, 2)));
    SetTokens(texts);
    SamplingParams params = Stopping({});
    for (int i = pick(1, 3); i > 0; --i) {
      params.stop.push_back(word(1, 2));
      if (pick(0, 1) == 1) params.stop.back() += texts[pick(4, 6)] + word(0, 2);
    }
    params.skip_special_tokens = pick(0, 3) > 0;
    params.include_stop_str_in_output = pick(0, 1) == 1;
    params.min_tokens = pick(0, 4);
    std::vector<TokenId> tokens;
    for (int i = pick(1, 14); i > 0; --i) tokens.push_back(pick(0, 6));

    NaiveText text;
    std::size_t length = 0;
    int num_tokens = 0;
    for (TokenId token : tokens) {
      const bool is_shown = !params.skip_special_tokens || !vocabulary_.is_special[token];
      text.pieces.push_back({vocabulary_.token_bytes[token], is_shown});
      length = text.Shown().size();
      if (++num_tokens <= params.min_tokens) continue;
      if (const auto cut = text.FindStop(params)) {
        length = *cut;
        ++num_stopped;
        break;
      }
    }
    const Ending ending = Commit(tokens, params);
    ASSERT_EQ(ending.num_tokens, num_tokens) << example;
    ASSERT_EQ(ending.num_text_bytes, static_cast<std::int64_t>(length)) << example;
  }
  EXPECT_GT(num_stopped, num_examples / 4);
}

}  // namespace
}  // namespace forerun
