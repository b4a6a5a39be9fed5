// Every field of SamplingParams that can be wrong is refused by name.
#include "forerun/sampling_params.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "forerun/error.h"

namespace forerun {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Change = std::function<void(SamplingParams&)>;

// "field: value", or "" when the parameters are accepted.
std::string Refusal(const Change& change) {
  SamplingParams params;
  change(params);
  try {
    CheckSamplingParams(params);
  } catch (const InvalidArgument& error) {
    EXPECT_FALSE(error.expected().empty());
    return error.field() + ": " + error.value();
  }
  return "";
}

TEST(SamplingParamsTest, DefaultsAreValid) {
  EXPECT_EQ(Refusal([](SamplingParams&) {}), "");
}

TEST(SamplingParamsTest, LimitsAreValid) {
  EXPECT_EQ(Refusal([](SamplingParams& params) {
              params.temperature = 0.0;
              params.top_k = -1;
              params.top_p = 1e-9;
              params.min_p = 1.0;
              params.max_tokens = 1;
              params.min_tokens = 1;
              params.stop_token_ids = {0, 1000000};
              params.stop = {"x"};
              params.max_draft_tokens = 0;
              params.allowed_token_ids = {{0, 1000000}};
              params.bad_words = {{0}};
              params.logit_bias = {{0, -100.0}, {7, 100.0}};
              params.repetition_penalty = 1e-300;
              params.frequency_penalty = -2.0;
              params.presence_penalty = 2.0;
              params.logprobs = -1;
              params.prompt_logprobs = 0;
            }),
            "");
  EXPECT_EQ(Refusal([](SamplingParams& params) { params.min_p = 0.0; }), "");
}

TEST(SamplingParamsTest, WrongValuesAreRefusedByName) {
  using P = SamplingParams;
  EXPECT_EQ(Refusal([](P& p) { p.temperature = -0.5; }), "temperature: -0.5");
  EXPECT_EQ(Refusal([](P& p) { p.temperature = kNan; }), "temperature: nan");
  EXPECT_EQ(Refusal([](P& p) { p.temperature = kInfinity; }), "temperature: inf");
  EXPECT_EQ(Refusal([](P& p) { p.top_k = -2; }), "top_k: -2");
  EXPECT_EQ(Refusal([](P& p) { p.top_p = 0.0; }), "top_p: 0");
  EXPECT_EQ(Refusal([](P& p) { p.top_p = 1.5; }), "top_p: 1.5");
  EXPECT_EQ(Refusal([](P& p) { p.top_p = kNan; }), "top_p: nan");
  EXPECT_EQ(Refusal([](P& p) { p.min_p = -1e-9; }), "min_p: -1e-09");
  EXPECT_EQ(Refusal([](P& p) { p.min_p = 1.01; }), "min_p: 1.01");
  EXPECT_EQ(Refusal([](P& p) { p.min_p = kNan; }), "min_p: nan");
  EXPECT_EQ(Refusal([](P& p) { p.max_tokens = 0; }), "max_tokens: 0");
  EXPECT_EQ(Refusal([](P& p) { p.min_tokens = -1; }), "min_tokens: -1");
  EXPECT_EQ(Refusal([](P& p) { p.min_tokens = 17; }), "min_tokens: 17");  // of 16
  EXPECT_EQ(Refusal([](P& p) { p.stop_token_ids = {3, -4}; }), "stop_token_ids: -4");
  EXPECT_EQ(Refusal([](P& p) { p.stop = {"a", ""}; }), "stop: an empty string");
  EXPECT_EQ(Refusal([](P& p) { p.max_draft_tokens = -1; }), "max_draft_tokens: -1");
  EXPECT_EQ(Refusal([](P& p) { p.allowed_token_ids.emplace(); }),
            "allowed_token_ids: an empty list");
  EXPECT_EQ(Refusal([](P& p) { p.allowed_token_ids = {{1, -2}}; }), "allowed_token_ids: -2");
  EXPECT_EQ(Refusal([](P& p) { p.bad_words = {{1}, {}}; }), "bad_words: a word without tokens");
  EXPECT_EQ(Refusal([](P& p) { p.bad_words = {{1, -3}}; }), "bad_words: -3");
  EXPECT_EQ(Refusal([](P& p) { p.logit_bias = {{-1, 0.0}}; }), "logit_bias: -1");
  EXPECT_EQ(Refusal([](P& p) { p.logit_bias = {{1, 100.5}}; }), "logit_bias: 100.5");
  EXPECT_EQ(Refusal([](P& p) { p.logit_bias = {{1, kNan}}; }), "logit_bias: nan");
  EXPECT_EQ(Refusal([](P& p) { p.repetition_penalty = 0.0; }), "repetition_penalty: 0");
  EXPECT_EQ(Refusal([](P& p) { p.repetition_penalty = kInfinity; }), "repetition_penalty: inf");
  EXPECT_EQ(Refusal([](P& p) { p.frequency_penalty = 2.5; }), "frequency_penalty: 2.5");
  EXPECT_EQ(Refusal([](P& p) { p.presence_penalty = kNan; }), "presence_penalty: nan");
  EXPECT_EQ(Refusal([](P& p) { p.logprobs = -2; }), "logprobs: -2");
  EXPECT_EQ(Refusal([](P& p) { p.prompt_logprobs = -5; }), "prompt_logprobs: -5");
}

TEST(SamplingParamsTest, TheMessageSaysWhatIsValid) {
  SamplingParams params;
  params.top_p = 2.0;
  try {
    CheckSamplingParams(params);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "top_p: got 2; expected a number in (0, 1], 1 for all");
  }
}

}  // namespace
}  // namespace forerun
