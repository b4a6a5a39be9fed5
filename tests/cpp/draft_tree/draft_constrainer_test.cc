// Drafts under random automata, compared with the definition node by node.
#include "cpp/draft_tree/draft_constrainer.h"

#include <gtest/gtest.h>

#include "cpp/util/request_error.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun {
namespace {

using testing::ToyConstraint;
using testing::ToyGrammar;
using Tokens = std::vector<TokenId>;

Tokens PathOf(const DraftTree& draft, int node) {
  Tokens path;
  for (; node != kDraftRoot; node = draft.parents[node]) path.push_back(draft.tokens[node]);
  std::ranges::reverse(path);
  return path;
}

bool HasPath(const DraftTree& draft, const Tokens& path) {
  for (int node = 0; node < draft.size(); ++node) {
    if (PathOf(draft, node) == path) return true;
  }
  return path.empty();
}

DraftTree Constrained(const ToyGrammar& grammar, int max_nodes, DraftTree draft) {
  ToyConstraint constraint(grammar);
  constraint.toy_batch().Begin();
  const Tokens tokens = {1};
  ConstraintCursor cursor(constraint, tokens, 100, grammar.vocab_size());
  DraftConstrainer().Constrain(cursor, max_nodes, draft);
  return draft;
}

// 0 -1-> 1 -2-> 2 -(1, 2 or 3)-> 0
ToyGrammar SmallGrammar() {
  ToyGrammar grammar;
  grammar.next = {{-1, 1, -1, -1}, {-1, -1, 2, -1}, {-1, 0, 0, 0}};
  return grammar;
}

TEST(DraftConstrainerTest, ForcedTokensAreDraftedWithoutADrafter) {
  const DraftTree draft = Constrained(SmallGrammar(), 8, {});
  EXPECT_EQ(draft.tokens, (Tokens{1, 2}));
  EXPECT_EQ(draft.parents, (std::vector<std::int32_t>{kDraftRoot, 0}));
  EXPECT_EQ(draft.confidence, (std::vector<float>{1.0f, 1.0f}));
  EXPECT_EQ(Constrained(SmallGrammar(), 1, {}).tokens, Tokens{1});
}

TEST(DraftConstrainerTest, ADraftThatAgreesContinuesAfterForcedTokens) {
  DraftTree draft;
  for (TokenId token : {1, 2, 3, 1, 2, 0, 1}) draft.AppendToChain(token, 0.5f);
  EXPECT_EQ(Constrained(SmallGrammar(), 8, draft).tokens, (Tokens{1, 2, 3, 1, 2}))
      << "token 0 is ruled out";
  draft.tokens[1] = 3;
  EXPECT_EQ(Constrained(SmallGrammar(), 8, draft).tokens, (Tokens{1, 2})) << "forced tokens win";
}

TEST(DraftConstrainerTest, ForcedTokensAreInsertedAmongDraftTokens) {
  DraftTree draft;
  for (TokenId token : {1, 2, 3}) draft.AppendToChain(token, 0.5f);
  EXPECT_EQ(Constrained(SmallGrammar(), 8, draft).tokens, (Tokens{1, 2, 3, 1, 2}));
  EXPECT_EQ(Constrained(SmallGrammar(), 4, draft).tokens, (Tokens{1, 2, 3, 1}));
}

TEST(DraftConstrainerTest, RandomTreesKeepWhatTheGrammarAllows) {
  std::mt19937 random(3);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  int num_kept = 0, num_ruled_out = 0, num_put_in = 0;
  for (int round = 0; round < 3000; ++round) {
    const ToyGrammar grammar = ToyGrammar::Random(random, 6, pick(0, 2) * 0.25);
    DraftTree draft;
    for (int size = pick(0, 12); size > 0; --size) {
      const int parent = pick(0, 3) == 0 ? pick(-1, draft.size() - 1) : draft.size() - 1;
      draft.Append(pick(0, 5), parent, 0.5f);
    }
    const int max_nodes = pick(std::max(1, draft.size()), 40);
    const DraftTree got = Constrained(grammar, max_nodes, draft);
    ASSERT_LE(got.size(), max_nodes);
    ASSERT_EQ(got.parents.size(), got.tokens.size());
    ASSERT_EQ(got.confidence.size(), got.tokens.size());
    for (int node = 0; node < got.size(); ++node) {
      ASSERT_LT(got.parents[node], node);
      const Tokens path = PathOf(got, node);
      ASSERT_GE(grammar.StateAfter(path), 0) << "a node that can never be accepted";
      if (!HasPath(draft, path)) {
        const auto before = std::span(path).first(path.size() - 1);
        ASSERT_EQ(grammar.Allowed(grammar.StateAfter(before)).size(), 1u);
        ++num_put_in;
      }
    }
    if (got.size() == max_nodes) continue;
    for (int node = 0; node < draft.size(); ++node) {
      const Tokens path = PathOf(draft, node);
      const bool is_allowed = grammar.StateAfter(path) >= 0;
      ASSERT_EQ(HasPath(got, path), is_allowed);
      ++(is_allowed ? num_kept : num_ruled_out);
    }
  }
  EXPECT_GT(num_kept, 1000);
  EXPECT_GT(num_ruled_out, 1000);
  EXPECT_GT(num_put_in, 1000);
}

TEST(DraftConstrainerTest, AForcedTokenThatTheConstraintRefusesEndsTheHint) {
  struct Optimist : ToyConstraint {
    using ToyConstraint::ToyConstraint;
    void AppendForced(std::vector<TokenId>& tokens) override { tokens = {1, 3, 2}; }
  } constraint(SmallGrammar());
  constraint.toy_batch().Begin();
  const Tokens tokens = {1};
  ConstraintCursor cursor(constraint, tokens, 100, 4);
  DraftTree draft;
  DraftConstrainer().Constrain(cursor, 8, draft);
  EXPECT_EQ(draft.tokens, Tokens{1});
}

TEST(DraftConstrainerTest, AFailureOfTheConstraintIsThrown) {
  ToyConstraint constraint(SmallGrammar(), 1);
  constraint.toy_batch().Begin();
  const Tokens tokens = {1};
  ConstraintCursor cursor(constraint, tokens, 100, 4);
  DraftTree draft;
  EXPECT_THROW(DraftConstrainer().Constrain(cursor, 8, draft), HookError);
}

}  // namespace
}  // namespace forerun
