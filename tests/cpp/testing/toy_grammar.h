// A random finite automaton as a grammar, and a constraint that follows it.
#ifndef FORERUN_TESTS_CPP_TESTING_TOY_GRAMMAR_H_
#define FORERUN_TESTS_CPP_TESTING_TOY_GRAMMAR_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "forerun/request_hooks.h"

namespace forerun::testing {

// next[state][token] is the state after the token, or -1 where it is not allowed. State 0 is the
// first; a token 0, the end of sequence, leads to a state that allows nothing else.
struct ToyGrammar {
  std::vector<std::vector<int>> next;

  // Every state but the last allows each token with this probability, and at least one.
  static ToyGrammar Random(std::mt19937& random, int vocab_size, double density) {
    const int num_states = std::uniform_int_distribution<int>(2, 6)(random);
    std::uniform_int_distribution<int> state(0, num_states - 1), token(0, vocab_size - 1);
    std::bernoulli_distribution is_allowed(density);
    ToyGrammar grammar;
    grammar.next.assign(num_states + 1, std::vector<int>(vocab_size, -1));
    for (int from = 0; from < num_states; ++from) {
      for (int& to : grammar.next[from]) to = is_allowed(random) ? state(random) : -1;
      grammar.next[from][token(random)] = state(random);
      if (grammar.next[from][0] >= 0) grammar.next[from][0] = num_states;
    }
    grammar.next[num_states][0] = num_states;
    return grammar;
  }

  // Allows exactly this output, and then the end.
  static ToyGrammar Exactly(std::span<const TokenId> output, int vocab_size) {
    ToyGrammar grammar;
    for (TokenId token : output) {
      std::vector<int>& next = grammar.next.emplace_back(vocab_size, -1);
      next[token] = static_cast<int>(grammar.next.size());
    }
    const int end = static_cast<int>(grammar.next.size());
    grammar.next.emplace_back(vocab_size, -1)[0] = end;
    return grammar;
  }

  int vocab_size() const { return static_cast<int>(next[0].size()); }
  std::vector<TokenId> Allowed(int state) const {
    std::vector<TokenId> allowed;
    for (TokenId token = 0; token < vocab_size(); ++token) {
      if (next[state][token] >= 0) allowed.push_back(token);
    }
    return allowed;
  }
  // The state after an output, or -1.
  int StateAfter(std::span<const TokenId> output) const {
    int state = 0;
    for (TokenId token : output) {
      if (state >= 0) state = next[state][token];
    }
    return state;
  }
};

// Computes masks one by one, and checks that its constraints are called between Begin and End.
class ToyBatch : public ConstraintBatch {
 public:
  void Begin() override {
    EXPECT_FALSE(is_open_);
    is_open_ = true;
    ++num_begins_;
  }
  void End() noexcept override {
    EXPECT_TRUE(is_open_);
    is_open_ = false;
  }
  void FillMasks(const MaskBatch& masks) override;

  bool is_open() const { return is_open_; }
  int num_begins() const { return num_begins_; }
  int num_fills() const { return num_fills_; }
  int num_rows() const { return num_rows_; }

 private:
  bool is_open_ = false;
  int num_begins_ = 0, num_fills_ = 0, num_rows_ = 0;
};

class ToyConstraint : public TokenConstraint {
 public:
  // Throws at its call number num_calls_until_failure, unless that is negative.
  explicit ToyConstraint(ToyGrammar grammar, int num_calls_until_failure = -1,
                         ToyBatch* batch = nullptr)
      : grammar_(std::move(grammar)),
        num_calls_left_(num_calls_until_failure),
        batch_(batch != nullptr ? *batch : own_batch_) {}

  void Restart() override { states_ = {0}; }
  int Advance(std::span<const TokenId> tokens) override {
    CountCall();
    int num_accepted = 0;
    for (TokenId token : tokens) {
      const int state = grammar_.next[states_.back()][token];
      if (state < 0) break;
      states_.push_back(state);
      ++num_accepted;
    }
    return num_accepted;
  }
  void Rollback(int num_tokens) override {
    CountCall();
    ASSERT_LT(num_tokens, std::ssize(states_));
    states_.resize(states_.size() - num_tokens);
  }
  // The next token or two.
  void AppendForced(std::vector<TokenId>& tokens) override {
    CountCall();
    int state = states_.back();
    for (int i = 0; i < 2; ++i) {
      const std::vector<TokenId> allowed = grammar_.Allowed(state);
      if (allowed.size() != 1) return;
      tokens.push_back(allowed[0]);
      state = grammar_.next[state][allowed[0]];
    }
  }
  ConstraintBatch& batch() override { return batch_; }

  virtual void FillAllowed(int state, std::span<std::uint32_t> words) {
    CountCall();
    std::ranges::fill(words, 0);
    for (TokenId token : grammar_.Allowed(state)) words[token / 32] |= 1u << token % 32;
  }

  const ToyGrammar& grammar() const { return grammar_; }
  int state() const { return states_.back(); }
  ToyBatch& toy_batch() { return batch_; }

 private:
  void CountCall() {
    EXPECT_TRUE(batch_.is_open());
    if (num_calls_left_ >= 0 && num_calls_left_-- == 0) throw std::runtime_error("out of order");
  }

  const ToyGrammar grammar_;
  int num_calls_left_;
  std::vector<int> states_ = {0};
  ToyBatch own_batch_;
  ToyBatch& batch_;
};

inline void ToyBatch::FillMasks(const MaskBatch& masks) {
  EXPECT_TRUE(is_open_);
  ++num_fills_;
  for (const MaskRequest& request : masks.requests) {
    auto& constraint = static_cast<ToyConstraint&>(*request.constraint);
    std::vector<int> states = {constraint.state()};
    for (std::size_t i = 0; i < request.tokens.size(); ++i) {
      const int before = states[request.parents[i] + 1];
      states.push_back(before < 0 ? -1 : constraint.grammar().next[before][request.tokens[i]]);
    }
    for (std::size_t i = 0; i < states.size(); ++i) {
      const int row = request.first_row + static_cast<int>(i);
      ++num_rows_;
      try {
        if (states[i] < 0) throw std::runtime_error("not allowed");
        constraint.FillAllowed(states[i], masks.row(row));
      } catch (const std::exception& error) {
        masks.failures[row] = error.what();
      }
    }
  }
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_TOY_GRAMMAR_H_
