// A cursor over random automata: whatever it moves to, in whatever order, the constraint's state is
// a function of the tokens alone.
#include "cpp/draft_tree/constraint_cursor.h"

#include <gtest/gtest.h>

#include "cpp/util/request_error.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun {
namespace {

using testing::ToyConstraint;
using testing::ToyGrammar;
using Tokens = std::vector<TokenId>;

constexpr int kVocabSize = 40;  // more than a word of bits

// Of tokens that are mostly allowed after `state`.
Tokens RandomPath(const ToyGrammar& grammar, int state, std::mt19937& random) {
  Tokens path;
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int length = pick(0, 5); length > 0 && state >= 0; --length) {
    const Tokens allowed = grammar.Allowed(state);
    path.push_back(pick(0, 3) == 0 ? pick(0, kVocabSize - 1)
                                   : allowed[pick(0, static_cast<int>(allowed.size()) - 1)]);
    state = grammar.next[state][path.back()];
  }
  return path;
}

TEST(ConstraintCursorTest, AnswersAreAFunctionOfTheOutputAndThePath) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const ToyGrammar grammar = ToyGrammar::Random(random, kVocabSize, 0.1);
    ToyConstraint constraint(grammar);
    constraint.toy_batch().Begin();
    Tokens tokens = {7, 7, 3};  // the constraint never sees the prompt
    ConstraintCursor cursor(constraint, tokens, 100, kVocabSize);
    for (int step = 0; step < 40; ++step) {
      Tokens output(tokens.begin() + 3, tokens.end());
      const Tokens path = RandomPath(grammar, grammar.StateAfter(output), random);
      output.insert(output.end(), path.begin(), path.end());
      const int state = grammar.StateAfter(output);
      ASSERT_EQ(cursor.MoveTo(path), state >= 0);
      if (state < 0) continue;
      ASSERT_EQ(constraint.state(), state);
      Tokens forced = {1};
      cursor.AppendForced(forced);
      ASSERT_EQ(forced.size() > 1, grammar.Allowed(state).size() == 1);
      ASSERT_EQ(forced[0], 1);
      if (step % 3 == 0) tokens.insert(tokens.end(), path.begin(), path.end());
    }
  }
}

TEST(ConstraintCursorTest, MoveToStopsAfterTheAllowedPrefixOfAPath) {
  ToyGrammar grammar;
  grammar.next = {{-1, 1, -1}, {-1, -1, 0}};
  ToyConstraint constraint(grammar);
  constraint.toy_batch().Begin();
  const Tokens tokens = {0};
  ConstraintCursor cursor(constraint, tokens, 10, 3);
  EXPECT_FALSE(cursor.MoveTo(Tokens{1, 2, 2}));
  EXPECT_EQ(constraint.state(), 0);
  EXPECT_TRUE(cursor.MoveTo(Tokens{1}));
  EXPECT_EQ(constraint.state(), 1);
}

std::string Failure(const std::function<void()>& call) {
  try {
    call();
  } catch (const HookError& error) {
    return error.what();
  }
  return "";
}

TEST(ConstraintCursorTest, AFailureIsThrownAgainByEveryLaterCall) {
  const ToyGrammar grammar = {{{0, 0}}};
  const Tokens tokens = {0};
  for (int num_calls = 0; num_calls < 3; ++num_calls) {
    ToyConstraint constraint(grammar, num_calls);
    constraint.toy_batch().Begin();
    ConstraintCursor cursor(constraint, tokens, 10, 2);
    const auto use = [&] {
      Tokens forced;
      cursor.MoveTo(Tokens{1, 1});
      cursor.AppendForced(forced);
      cursor.MoveTo({});
    };
    EXPECT_EQ(Failure(use), "the constraint failed: out of order");
    EXPECT_EQ(Failure(use), "the constraint failed: out of order");
  }
}

// One call throws something other than a std::exception, before or after it has done its work.
class InterruptedConstraint : public ToyConstraint {
 public:
  InterruptedConstraint(const ToyGrammar& grammar, int interrupted_call, bool works_first)
      : ToyConstraint(grammar), num_calls_left_(interrupted_call), works_first_(works_first) {}

  int Advance(std::span<const TokenId> tokens) override {
    int num_taken = 0;
    Interrupt([&] { num_taken = ToyConstraint::Advance(tokens); });
    return num_taken;
  }
  void Rollback(int num_tokens) override {
    Interrupt([&] { ToyConstraint::Rollback(num_tokens); });
  }

 private:
  template <typename Call>
  void Interrupt(const Call& call) {
    const bool is_now = num_calls_left_-- == 0;
    if (is_now && !works_first_) throw 1;
    call();
    if (is_now) throw 1;
  }

  int num_calls_left_;
  bool works_first_;
};

TEST(ConstraintCursorTest, AnInterruptedConstraintIsRestarted) {
  const ToyGrammar grammar = {{{1, -1}, {-1, 2}, {0, 1}}};
  for (int interrupted_call = 0; interrupted_call < 6; ++interrupted_call) {
    for (const bool works_first : {false, true}) {
      InterruptedConstraint constraint(grammar, interrupted_call, works_first);
      constraint.toy_batch().Begin();
      Tokens tokens = {0};
      ConstraintCursor cursor(constraint, tokens, 10, 2);
      tokens.insert(tokens.end(), {0, 1});
      const auto use = [&] {
        EXPECT_TRUE(cursor.MoveTo(Tokens{1, 1}));
        EXPECT_EQ(constraint.state(), 2);
        EXPECT_FALSE(cursor.MoveTo(Tokens{1, 0}));
        EXPECT_TRUE(cursor.MoveTo(Tokens{0}));
        EXPECT_EQ(constraint.state(), 0);
      };
      EXPECT_THROW(use(), int);
      use();
    }
  }
}

TEST(ConstraintCursorTest, AConstraintThatContradictsItselfIsAFailure) {
  const ToyGrammar grammar = {{{-1, 0}}};
  Tokens tokens = {0};
  ToyConstraint constraint(grammar);
  constraint.toy_batch().Begin();
  ConstraintCursor cursor(constraint, tokens, 10, 2);
  tokens.push_back(0);
  EXPECT_NE(Failure([&] { cursor.MoveTo({}); }).find("refuses token 0"), std::string::npos);

  struct Boasting : ToyConstraint {
    using ToyConstraint::ToyConstraint;
    int Advance(std::span<const TokenId> tokens) override { return std::ssize(tokens) + 1; }
    void AppendForced(std::vector<TokenId>& forced) override { forced = {1, 2, 1}; }
  } boasting(grammar);
  const Tokens prompt = {0};
  ConstraintCursor other(boasting, prompt, 10, 2);
  EXPECT_NE(Failure([&] { other.MoveTo(Tokens{1}); }).find("took 2 of 1"), std::string::npos);
  Tokens forced;
  other.AppendForced(forced);
  EXPECT_EQ(forced, Tokens{1}) << "an id outside the vocabulary ends the hint";
}

}  // namespace
}  // namespace forerun
