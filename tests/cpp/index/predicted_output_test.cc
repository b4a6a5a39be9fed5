#include "cpp/index/predicted_output.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "tests/cpp/testing/num_examples.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;

Tokens Range(TokenId first, TokenId end) {
  Tokens tokens(end - first);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

PredictedOutput Follower(const Tokens& text) {
  return PredictedOutput(std::make_shared<const Prediction>(text));
}

// What is drafted after the output, which came token by token.
Tokens DraftAfter(PredictedOutput prediction, const Tokens& output) {
  for (std::size_t i = 1; i <= output.size(); ++i) prediction.Follow(std::span(output).first(i), 1);
  const auto continuation = prediction.continuation();
  return {continuation.begin(), continuation.end()};
}

// How many tokens of the output were not the next ones of the prediction.
int NumSurprises(const Tokens& text, const Tokens& output) {
  PredictedOutput prediction = Follower(text);
  int count = 0;
  for (std::size_t i = 0; i < output.size(); ++i) {
    const auto expected = prediction.continuation();
    count += expected.empty() || expected.front() != output[i] ? 1 : 0;
    prediction.Follow(std::span(output).first(i + 1), 1);
  }
  return count;
}

TEST(PredictedOutputTest, HasNothingWithoutTokens) {
  EXPECT_EQ(DraftAfter(Follower({}), {}), Tokens());
  EXPECT_EQ(DraftAfter(Follower({}), {4, 5}), Tokens());
}

TEST(PredictedOutputTest, FollowersOfOnePredictionAreIndependent) {
  const auto prediction = std::make_shared<const Prediction>(Tokens{4, 5, 6, 7});
  PredictedOutput first(prediction), second(prediction);
  first.Follow(Tokens{4, 5}, 2);
  second.Follow(Tokens{6}, 1);
  EXPECT_EQ(first.continuation().front(), 6);
  EXPECT_EQ(second.continuation().front(), 7);
  EXPECT_EQ(first.continuation().data(), prediction->tokens().data() + 2) << "not a copy";
}

TEST(PredictionTest, SortsPositionsByTokenAndThenAscending) {
  const Prediction prediction(Tokens{7, 5, 7, 5, 6, 7});
  const auto positions = prediction.positions();
  EXPECT_EQ(std::vector<std::int32_t>(positions.begin(), positions.end()),
            (std::vector<std::int32_t>{1, 3, 4, 0, 2, 5}));
}

TEST(PredictedOutputTest, IsExpectedFromItsBeginning) {
  EXPECT_EQ(DraftAfter(Follower({4, 5, 6}), {}), (Tokens{4, 5, 6}));
  EXPECT_EQ(DraftAfter(Follower({4, 5, 6}), {4, 5}), (Tokens{6}));
  EXPECT_EQ(DraftAfter(Follower({4, 5, 6}), {4, 5, 6}), Tokens());
}

TEST(PredictedOutputTest, HasNothingAfterATokenThatItLacks) {
  EXPECT_EQ(DraftAfter(Follower({4, 5, 6}), {4, 9}), Tokens());
  EXPECT_EQ(Follower({4, 5, 6}).match_len(), PredictedOutput::kMaxMatch / 2);
}

TEST(PredictedOutputTest, CountsTheTokensThatAgree) {
  PredictedOutput prediction = Follower(Range(0, 100));
  Tokens output = {200};
  prediction.Follow(output, 1);
  EXPECT_EQ(prediction.match_len(), 0);
  output = output + Range(50, 53);
  prediction.Follow(output, 3);
  EXPECT_EQ(prediction.match_len(), 3);
  output = output + Range(53, 99);
  prediction.Follow(output, 46);
  EXPECT_EQ(prediction.match_len(), PredictedOutput::kMaxMatch);
}

TEST(PredictedOutputTest, AnEditCostsItsOwnTokensAndOneMore) {
  const Tokens text = Range(0, 60);
  const Tokens added = Range(100, 107);
  const Tokens begin = Range(0, 20);
  EXPECT_EQ(NumSurprises(text, text), 0);
  EXPECT_EQ(NumSurprises(text, begin + added + Range(20, 60)), 7 + 1) << "inserted";
  EXPECT_EQ(NumSurprises(text, begin + added + Range(27, 60)), 7 + 1) << "replaced";
  EXPECT_EQ(NumSurprises(text, begin + Range(27, 60)), 1) << "removed";
  EXPECT_EQ(NumSurprises(text, added + text), 7 + 1) << "put before it";
  EXPECT_EQ(NumSurprises(text, Range(30, 60) + begin), 2) << "moved";
}

TEST(PredictedOutputTest, OfRepeatedLinesItTakesTheNextOne) {
  // Every line ends with the tokens 1, 2, 3, and differs in its begin.
  Tokens text;
  for (TokenId line = 10; line < 20; ++line) text = text + Tokens{line, 1, 2, 3};
  // The begin of line 14 is another one; its end occurs ten times.
  const Tokens output = Tokens(text.begin(), text.begin() + 16) + Tokens{99, 1};
  EXPECT_EQ(DraftAfter(Follower(text), output), Tokens(text.begin() + 18, text.end()));
}

TEST(PredictedOutputTest, ALongerMatchWinsOverANearerOne) {
  const Tokens text = {1, 2, 3, 4, 5, 6, 7, 5, 8, 20, 21, 22, 7, 5, 9};
  // After the deviation, "7 5" is found with "22" before it, though "7 5" comes earlier.
  EXPECT_EQ(DraftAfter(Follower(text), {1, 2, 3, 4, 22, 7, 5}), (Tokens{9}));
}

TEST(PredictedOutputTest, LooksAtABoundedNumberOfEqualTokens) {
  // Of a million equal tokens those near the anchor are compared: this would take minutes else.
  PredictedOutput prediction = Follower(Tokens(1'000'000, 7));
  Tokens output;
  for (int i = 0; i < 2'000; ++i) {
    output.push_back(i % 2 == 0 ? 8 : 7);
    prediction.Follow(output, 1);
  }
  EXPECT_EQ(prediction.match_len(), 1);
}

// The definition, for texts with less than 64 occurrences of a token.
struct SlowPrediction {
  Tokens text;
  std::ptrdiff_t next = 0, anchor = 0;
  int match_len = PredictedOutput::kMaxMatch / 2;

  void Push(const Tokens& output) {
    const auto size = std::ssize(text);
    if (match_len > 0 && next < size && text[next] == output.back()) {
      ++next;
      match_len = std::min(match_len + 1, PredictedOutput::kMaxMatch);
      return;
    }
    if (match_len >= 4) anchor = next;
    match_len = 0;
    const auto rank = [&](std::ptrdiff_t position) {
      return position >= anchor ? position - anchor : size + anchor - position;
    };
    for (std::ptrdiff_t position = 0; position < size; ++position) {
      int length = 0;
      while (length < PredictedOutput::kMaxMatch && length <= position &&
             length < std::ssize(output) &&
             text[position - length] == output[output.size() - 1 - length]) {
        ++length;
      }
      const bool wins =
          length > match_len || (length == match_len && rank(position) < rank(next - 1));
      if (length > 0 && wins) {
        match_len = length;
        next = position + 1;
      }
    }
  }
};

TEST(PredictedOutputTest, FollowsRandomEditsAsDefined) {
  std::mt19937 random(5);
  const int num_examples = testing::NumExamples(300, 20'000);
  for (int example = 0; example < num_examples; ++example) {
    const int num_kinds = 2 + random() % 12;
    Tokens text(1 + random() % 60), output;
    for (TokenId& token : text) token = static_cast<TokenId>(random() % num_kinds);
    for (const TokenId token : text) {
      if (random() % 8 == 0) output.push_back(static_cast<TokenId>(random() % num_kinds));
      if (random() % 8 != 0) output.push_back(token);
    }
    PredictedOutput prediction = Follower(text);
    SlowPrediction slow{text};
    for (std::size_t begin = 0, end = 0; begin < output.size(); begin = end) {
      end = std::min(output.size(), begin + 1 + random() % 4);
      prediction.Follow(std::span(output).first(end), static_cast<int>(end - begin));
      for (std::size_t i = begin; i < end; ++i) {
        slow.Push(Tokens(output.begin(), output.begin() + static_cast<std::ptrdiff_t>(i) + 1));
      }
      const std::ptrdiff_t rest = slow.match_len > 0 ? std::ssize(text) - slow.next : 0;
      ASSERT_EQ(prediction.match_len(), slow.match_len);
      ASSERT_EQ(std::ssize(prediction.continuation()), rest);
    }
  }
}

}  // namespace
}  // namespace forerun
