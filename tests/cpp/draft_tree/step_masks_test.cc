// The masks of many requests and their drafts, computed in one call.
#include "cpp/draft_tree/step_masks.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>

#include "cpp/util/request_error.h"
#include "tests/cpp/testing/toy_grammar.h"

namespace forerun {
namespace {

using testing::ToyBatch;
using testing::ToyConstraint;
using testing::ToyGrammar;
using Tokens = std::vector<TokenId>;

constexpr int kVocabSize = 40;  // more than a word of bits

Tokens Bits(std::span<const std::uint32_t> words) {
  Tokens tokens;
  for (TokenId token = 0; token < 32 * std::ssize(words); ++token) {
    if ((words[token / 32] >> token % 32 & 1) != 0) tokens.push_back(token);
  }
  return tokens;
}

std::string Failure(const ConstraintCursor& cursor, int row) {
  try {
    cursor.Allowed(row);
  } catch (const HookError& error) {
    return error.what();
  }
  return "";
}

struct Constrained {
  Constrained(ToyGrammar grammar, Tokens output, ToyBatch* batch = nullptr,
              int num_calls_until_failure = -1)
      : constraint(std::move(grammar), num_calls_until_failure, batch),
        cursor(constraint, tokens, 100, constraint.grammar().vocab_size()) {
    tokens.insert(tokens.end(), output.begin(), output.end());
  }
  ToyConstraint constraint;
  Tokens tokens = {7};  // the prompt
  ConstraintCursor cursor;
  DraftTree draft;
};

TEST(StepMasksTest, EachRowAllowsWhatTheGrammarAllowsAfterItsPath) {
  std::mt19937 random(5);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  StepMasks masks(kVocabSize);
  for (int round = 0; round < 200; ++round) {
    std::deque<ToyBatch> batches(pick(1, 3));
    std::deque<Constrained> requests;
    for (int i = pick(0, 6); i > 0; --i) {
      const ToyGrammar grammar = ToyGrammar::Random(random, kVocabSize, 0.1);
      Tokens output;
      for (int length = pick(0, 4); length > 0; --length) {
        const Tokens allowed = grammar.Allowed(grammar.StateAfter(output));
        output.push_back(allowed[pick(0, static_cast<int>(allowed.size()) - 1)]);
      }
      ToyBatch& batch = batches[pick(0, static_cast<int>(batches.size()) - 1)];
      DraftTree& draft = requests.emplace_back(grammar, output, &batch).draft;
      for (int size = pick(0, 8); size > 0; --size) {
        draft.Append(pick(0, kVocabSize - 1), pick(-1, draft.size() - 1), 1.0f);
      }
    }
    for (Constrained& request : requests) masks.Add(request.cursor, request.draft);
    masks.Compute();
    for (const ToyBatch& batch : batches) {
      EXPECT_FALSE(batch.is_open());
      EXPECT_LE(batch.num_begins(), 1);
      EXPECT_EQ(batch.num_fills(), batch.num_begins());
    }
    for (Constrained& request : requests) {
      const ToyGrammar& grammar = request.constraint.grammar();
      for (int row = 0; row <= request.draft.size(); ++row) {
        Tokens path;
        for (int node = row - 1; node != kDraftRoot; node = request.draft.parents[node]) {
          path.insert(path.begin(), request.draft.tokens[node]);
        }
        path.insert(path.begin(), request.tokens.begin() + 1, request.tokens.end());
        const int state = grammar.StateAfter(path);
        if (state < 0) {
          ASSERT_EQ(Failure(request.cursor, row), "the constraint failed: not allowed");
        } else {
          ASSERT_EQ(Bits(request.cursor.Allowed(row)), grammar.Allowed(state));
        }
      }
    }
  }
}

TEST(StepMasksTest, ABatchIsOpenedOncePerStepAndClosedAfterAFailedOne) {
  ToyBatch batch;
  Constrained one({{{0, 0}}}, {}, &batch), other({{{0, 0}}}, {}, &batch);
  StepMasks masks(2);
  masks.Open(batch);
  masks.Open(batch);
  masks.Add(one.cursor, {});
  masks.Add(other.cursor, {});
  EXPECT_TRUE(batch.is_open());
  masks.Close();
  EXPECT_FALSE(batch.is_open());
  EXPECT_EQ(batch.num_begins(), 1);
  masks.Compute();
  EXPECT_EQ(batch.num_fills(), 0) << "what was added belonged to the failed step";
}

TEST(StepMasksTest, AFailureIsItsRowsAlone) {
  const ToyGrammar grammar = {{{0, 0}}};
  ToyBatch batch;
  Constrained fine(grammar, {}, &batch), failing(grammar, {}, &batch, 1);
  failing.draft.AppendToChain(1, 1.0f);
  failing.draft.AppendToChain(1, 1.0f);
  StepMasks masks(2);
  masks.Add(fine.cursor, fine.draft);
  masks.Add(failing.cursor, failing.draft);
  masks.Compute();
  EXPECT_EQ(Failure(fine.cursor, 0), "");
  EXPECT_EQ(Failure(failing.cursor, 0), "");
  EXPECT_EQ(Failure(failing.cursor, 1), "the constraint failed: out of order");
  EXPECT_EQ(Failure(failing.cursor, 2), "");
}

TEST(StepMasksTest, AConstraintThatCannotFollowTheOutputFailsItsRequestAlone) {
  ToyBatch batch;
  Constrained fine({{{0, 0}}}, {}, &batch), refusing({{{-1, 0}}}, {0}, &batch);
  StepMasks masks(2);
  masks.Add(refusing.cursor, refusing.draft);
  masks.Add(fine.cursor, fine.draft);
  masks.Compute();
  EXPECT_EQ(Failure(refusing.cursor, 0), "the constraint refuses token 0, which it allowed before");
  EXPECT_EQ(Failure(fine.cursor, 0), "");
}

TEST(StepMasksTest, AnExceptionOfTheCallFailsItsRequestsAndAnInterruptLeavesIt) {
  struct Throwing : ToyBatch {
    void FillMasks(const MaskBatch& masks) override {
      if (error == 1) throw std::runtime_error("no memory");
      if (error == 2) throw 17;
      ToyBatch::FillMasks(masks);
    }
    int error = 1;
  } batch;
  Constrained request({{{1, -1}, {-1, 1}}}, {0}, &batch);
  StepMasks masks(2);
  masks.Add(request.cursor, request.draft);
  masks.Compute();
  EXPECT_EQ(Failure(request.cursor, 0), "the constraint failed: no memory");
  batch.error = 2;
  masks.Add(request.cursor, request.draft);
  EXPECT_THROW(masks.Compute(), int);
  masks.Close();
  batch.error = 0;
  masks.Add(request.cursor, request.draft);
  masks.Compute();
  EXPECT_EQ(Bits(request.cursor.Allowed(0)), Tokens{1}) << "restarted, and moved to the output";
}

}  // namespace
}  // namespace forerun
