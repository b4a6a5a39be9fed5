// Verification of chains and trees against decoding one token after the other. The model is a
// hash: its logits at any point depend on all tokens before it.
#include "cpp/verify/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cpp/util/hash.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kVocabSize = 7;

std::vector<float> LogitsAfter(const Tokens& text) {
  std::uint64_t state = 1;
  for (TokenId token : text) state = HashCombine(state, token);
  std::vector<float> logits;
  for (int token = 0; token < kVocabSize; ++token) {
    logits.push_back(static_cast<float>(HashCombine(state, token) % 1000) * 0.004f);
  }
  return logits;
}

Tokens DecodePlainly(const SamplingRule& rule, int first_output_index, int count) {
  Tokens text;
  for (int i = 0; i < count; ++i) {
    text.push_back(SampleTokenSlow(LogitsAfter(text), rule, first_output_index + i));
  }
  return text;
}

// Rows of a draft's nodes, kStride floats apart; gaps are NaN.
class Rows {
 public:
  static constexpr int kStride = kVocabSize + 3;

  explicit Rows(const DraftTree& draft) : data_((draft.size() + 1) * kStride, kNan) {
    std::vector<Tokens> paths = {{}};
    Write(0, paths[0]);
    for (int node = 0; node < draft.size(); ++node) {
      paths.push_back(paths[draft.parents[node] + 1]);
      paths.back().push_back(draft.tokens[node]);
      Write(node + 1, paths.back());
    }
  }

  void Poison(int row) { std::fill_n(data_.begin() + row * kStride, kVocabSize, kNan); }
  RowLogits view() const { return {data_.data(), kVocabSize, kStride}; }

 private:
  void Write(int row, const Tokens& path) {
    std::ranges::copy(LogitsAfter(path), data_.begin() + row * kStride);
  }
  std::vector<float> data_;
};

DraftTree Chain(const Tokens& tokens) {
  DraftTree draft;
  for (TokenId token : tokens) draft.AppendToChain(token, 1.0f);
  return draft;
}

void AddNode(DraftTree& draft, int parent, TokenId token) {
  draft.parents.push_back(parent);
  draft.tokens.push_back(token);
  draft.confidence.push_back(1.0f);
}

Verdict VerifyRows(const DraftTree& draft, const Rows& rows, const SamplingRule& rule,
                   int first_output_index = 0) {
  SamplerScratch scratch;
  Verdict verdict;
  Verify(draft, rows.view(), rule, first_output_index, scratch, verdict);
  return verdict;
}

std::vector<SamplingRule> Rules() {
  std::vector<SamplingRule> rules(4);
  rules[0].temperature = 0.0;
  rules[2].temperature = 0.6;
  rules[2].top_k = 4;
  rules[3].top_p = 0.7;
  for (SamplingRule& rule : rules) rule.seed = 12345;
  return rules;
}

TEST(VerifyTest, AnEmptyDraftIsPlainDecoding) {
  const DraftTree draft;
  for (const SamplingRule& rule : Rules()) {
    const Verdict verdict = VerifyRows(draft, Rows(draft), rule, 9);
    EXPECT_TRUE(verdict.accepted_nodes.empty());
    EXPECT_EQ(verdict.tokens, DecodePlainly(rule, 9, 1));
  }
}

TEST(VerifyTest, ARightChainIsAcceptedWholeAndFollowedByABonus) {
  for (const SamplingRule& rule : Rules()) {
    const Tokens output = DecodePlainly(rule, 3, 6);
    const DraftTree draft = Chain({output.begin(), output.end() - 1});
    const Verdict verdict = VerifyRows(draft, Rows(draft), rule, 3);
    EXPECT_EQ(verdict.accepted_nodes, (std::vector<int>{0, 1, 2, 3, 4}));
    EXPECT_EQ(verdict.tokens, output);
  }
}

TEST(VerifyTest, AWrongTokenEndsTheAcceptedPartAndIsCorrected) {
  for (const SamplingRule& rule : Rules()) {
    const Tokens output = DecodePlainly(rule, 0, 6);
    for (int wrong = 0; wrong < 5; ++wrong) {
      Tokens tokens(output.begin(), output.end() - 1);
      tokens[wrong] = (tokens[wrong] + 1) % kVocabSize;
      const DraftTree draft = Chain(tokens);
      const Verdict verdict = VerifyRows(draft, Rows(draft), rule);
      EXPECT_EQ(verdict.num_accepted(), wrong);
      EXPECT_EQ(verdict.tokens, Tokens(output.begin(), output.begin() + wrong + 1));
    }
  }
}

TEST(VerifyTest, RepeatedStepsReproducePlainDecodingWhateverTheDrafts) {
  std::mt19937 random(5);
  for (const SamplingRule& rule : Rules()) {
    const Tokens output = DecodePlainly(rule, 0, 60);
    for (int error_in = 1; error_in <= 4; ++error_in) {
      Tokens text;
      while (text.size() < 50) {
        // A chain that is sometimes wrong, with rows computed after the text so far.
        const int length = static_cast<int>(random() % 6);
        DraftTree draft;
        std::vector<float> rows = LogitsAfter(text);
        Tokens path = text;
        for (int i = 0; i < length; ++i) {
          const TokenId right = output[text.size() + i];
          const bool wrong = random() % error_in == 0;
          draft.AppendToChain(wrong ? static_cast<TokenId>(random() % kVocabSize) : right, 1.0f);
          path.push_back(draft.tokens.back());
          std::ranges::copy(LogitsAfter(path), std::back_inserter(rows));
        }
        SamplerScratch scratch;
        Verdict verdict;
        Verify(draft, {rows.data(), kVocabSize, kVocabSize}, rule, static_cast<int>(text.size()),
               scratch, verdict);
        ASSERT_EQ(verdict.tokens.size(), verdict.accepted_nodes.size() + 1);
        text.insert(text.end(), verdict.tokens.begin(), verdict.tokens.end());
      }
      EXPECT_TRUE(std::equal(text.begin(), text.end(), output.begin()));
    }
  }
}

TEST(VerifyTest, ATreeIsWalkedAlongTheOutput) {
  for (const SamplingRule& rule : Rules()) {
    const Tokens output = DecodePlainly(rule, 0, 4);
    const auto other = [&](int i) { return (output[i] + 1) % kVocabSize; };
    DraftTree draft;
    AddNode(draft, kDraftRoot, other(0));
    AddNode(draft, kDraftRoot, output[0]);
    AddNode(draft, 0, output[1]);  // right token, wrong parent
    AddNode(draft, 1, other(1));
    AddNode(draft, 1, output[1]);
    AddNode(draft, 4, other(2));
    const Verdict verdict = VerifyRows(draft, Rows(draft), rule);
    EXPECT_EQ(verdict.accepted_nodes, (std::vector<int>{1, 4}));
    EXPECT_EQ((std::vector<int>{verdict.row(0), verdict.row(1), verdict.row(2)}),
              (std::vector<int>{0, 2, 5}));
    EXPECT_EQ(verdict.tokens, Tokens(output.begin(), output.begin() + 3));
  }
}

TEST(VerifyTest, OfChildrenWithTheSameTokenTheFirstIsAccepted) {
  const SamplingRule rule = Rules()[0];
  const Tokens output = DecodePlainly(rule, 0, 2);
  DraftTree draft;
  for (int i = 0; i < 3; ++i) AddNode(draft, kDraftRoot, output[0]);
  EXPECT_EQ(VerifyRows(draft, Rows(draft), rule).accepted_nodes, (std::vector<int>{0}));
}

// The longest path of the tree that agrees with plain decoding, found by trying every node.
TEST(VerifyTest, RandomTreesYieldThePlainOutputAndTheDeepestAgreeingNode) {
  std::mt19937 random(11);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    SamplingRule rule = Rules()[repeat % 4];
    rule.seed = random();
    const int first_output_index = static_cast<int>(random() % 100);
    const Tokens output = DecodePlainly(rule, first_output_index, 12);
    DraftTree draft;
    std::set<std::pair<int, TokenId>> siblings;
    std::vector<int> depth = {0};       // of the row's node
    std::vector<bool> agrees = {true};  // its path is the output's beginning
    int deepest = 0;
    for (int i = 0; i < 10; ++i) {
      const int parent = static_cast<int>(random() % (draft.size() + 1)) - 1;
      const TokenId right = output[depth[parent + 1]];
      const TokenId token = random() % 2 == 0 ? right : static_cast<TokenId>(random() % kVocabSize);
      if (!siblings.emplace(parent, token).second) continue;
      AddNode(draft, parent, token);
      depth.push_back(depth[parent + 1] + 1);
      agrees.push_back(agrees[parent + 1] && token == right);
      if (agrees.back()) deepest = std::max(deepest, depth.back());
    }
    const Verdict verdict = VerifyRows(draft, Rows(draft), rule, first_output_index);
    ASSERT_EQ(verdict.num_accepted(), deepest);
    ASSERT_EQ(verdict.tokens, Tokens(output.begin(), output.begin() + deepest + 1));
    int parent = kDraftRoot;
    for (int node : verdict.accepted_nodes) {
      ASSERT_EQ(draft.parents[node], parent);
      parent = node;
    }
  }
}

TEST(VerifyTest, RowsOffTheAcceptedPathAreNotRead) {
  const SamplingRule rule = Rules()[1];
  const Tokens output = DecodePlainly(rule, 0, 3);
  DraftTree draft = Chain({output[0], (output[1] + 1) % kVocabSize, 0});
  AddNode(draft, kDraftRoot, (output[0] + 1) % kVocabSize);
  Rows rows(draft);
  for (int row : {2, 3, 4}) rows.Poison(row);
  EXPECT_EQ(VerifyRows(draft, rows, rule).tokens, Tokens(output.begin(), output.begin() + 2));
}

TEST(VerifyTest, ANumericErrorLeavesTheTokensBeforeIt) {
  const SamplingRule rule = Rules()[1];
  const Tokens output = DecodePlainly(rule, 0, 3);
  const DraftTree draft = Chain({output[0], output[1]});
  Rows rows(draft);
  rows.Poison(2);
  SamplerScratch scratch;
  Verdict verdict;
  EXPECT_THROW(Verify(draft, rows.view(), rule, 0, scratch, verdict), NumericError);
  EXPECT_EQ(verdict.tokens, Tokens(output.begin(), output.begin() + 2));
  EXPECT_EQ(verdict.num_accepted(), 2);
}

TEST(VerifyTest, AVerdictCanBeUsedAgain) {
  const SamplingRule rule = Rules()[0];
  const Tokens output = DecodePlainly(rule, 0, 3);
  const DraftTree draft = Chain({output[0], output[1]});
  const Rows rows(draft);
  SamplerScratch scratch;
  Verdict verdict;
  for (int i = 0; i < 2; ++i) {
    Verify(draft, rows.view(), rule, 0, scratch, verdict);
    EXPECT_EQ(verdict.tokens, output);
    EXPECT_EQ(verdict.num_accepted(), 2);
  }
}

}  // namespace
}  // namespace forerun
