#include "cpp/draft/formats/detect.h"

#include <gtest/gtest.h>

#include <string>

namespace forerun {
namespace {

JsonObject Config(const char* text) { return {nlohmann::json::parse(text), "config.json: "}; }

const TensorShapes kEagle = {{"fc.weight", {8, 16}}, {"layers.0.self_attn.q_proj.weight", {8, 8}}};
const TensorShapes kEagle3 = {{"layers.0.hidden_norm.weight", {8}},
                              {"layers.0.self_attn.q_proj.weight", {8, 16}},
                              {"layers.0.self_attn.o_proj.weight", {8, 8}}};
const TensorShapes kTarget = {{"embed_tokens.weight", {30, 8}},
                              {"norm.weight", {8}},
                              {"layers.0.self_attn.o_proj.weight", {8, 8}}};
const TensorShapes kMlp = {
    {"emb.0.weight", {30, 8}}, {"proj.0.weight", {8, 8}}, {"head.0.weight", {30, 8}}};

TensorShapes With(TensorShapes tensors, const std::string& name, const Shape& shape = {8, 8}) {
  tensors[name] = shape;
  return tensors;
}

TEST(DetectFormatTest, TheTensorsShowTheFormat) {
  struct Case {
    const char* name;
    TensorShapes tensors;
  };
  const Case cases[] = {
      {"eagle", kEagle},
      {"eagle3", kEagle3},
      {"peagle", With(kEagle3, "mask_hidden")},
      {"dflash", {{"hidden_norm.weight", {8}}, {"fc.weight", {8, 24}}}},
      {"dspark", With(kEagle3, "markov_head.0.weight")},
      {"mlp_speculator", kMlp},
      {"mlp_speculator", {{"forget_emb.0.weight", {30, 8}}}},
      {"medusa", {{"12.0.linear.weight", {8, 8}}}},
      {"medusa", {{"blocks.0.layers.0.weight", {8, 8}}}},
      {"target", kTarget},
      {"target", With(kTarget, "mtp.fc.weight")},
      {"mtp", {{"mtp_layers.0.input_proj.weight", {8, 16}}}},
      {"mtp", {{"layers.31.eh_proj.weight", {8, 16}}}},
  };
  for (const Case& c : cases) {
    const CheckpointFormat format = DetectFormat(c.tensors, Config("{}"));
    EXPECT_EQ(format.name, c.name);
    EXPECT_FALSE(format.evidence.empty());
    const bool runs = format.name != "peagle" && format.name[0] != 'd';
    EXPECT_EQ(format.obstacle.empty(), runs) << format.name;
  }
  EXPECT_THROW(DetectFormat({{"x.weight", {8}}}, Config("{}")), CheckpointError);
  EXPECT_THROW(DetectFormat({{"blocks.x.layers.0.weight", {8}}}, Config("{}")), CheckpointError);
}

TEST(DetectFormatTest, AConfigMustNotContradictTheTensors) {
  EXPECT_NO_THROW(DetectFormat(kEagle, Config(R"({"model_type": "eagle"})")));
  EXPECT_NO_THROW(DetectFormat(kEagle, Config(R"({"architectures": ["LlamaForCausalLM"]})")));
  EXPECT_NO_THROW(DetectFormat(kEagle3, Config(R"({"speculators_model_type": "peagle"})")));
  for (const char* config :
       {R"({"model_type": "medusa"})", R"({"speculators_model_type": "eagle3"})",
        R"({"speculators_model_type": "eagle9"})", R"({"speculators_model_type": ["eagle"]})",
        R"({"architectures": ["LlamaForCausalLMEagle3"]})", R"({"architectures": ["ArcticLSTM"]})",
        R"({"architectures": 3})"}) {
    EXPECT_THROW(DetectFormat(kEagle, Config(config)), CheckpointError) << config;
  }
}

TEST(DetectFormatTest, VariantsThatDoNotRunHaveAnObstacle) {
  EXPECT_NE(DetectFormat(kTarget, Config(R"({"pard_token": 3})")).obstacle, "");
  EXPECT_NE(DetectFormat(kTarget, Config(R"({"spd_type": "pard"})")).obstacle, "");
  EXPECT_NE(DetectFormat(With(kMlp, "emb.0.0.weight"), Config("{}")).obstacle, "");
  EXPECT_EQ(DetectFormat(kMlp, Config("{}")).obstacle, "");
}

TEST(DetectFormatTest, ALanguageModelServesAsADraftModelAndWithItsLayersAsMtp) {
  const CheckpointFormat plain = DetectFormat(kTarget, Config("{}"));
  EXPECT_TRUE(CanServeAs(plain, "draft_model"));
  EXPECT_FALSE(CanServeAs(plain, "mtp"));
  EXPECT_FALSE(CanServeAs(plain, "eagle"));
  const CheckpointFormat with_mtp = DetectFormat(With(kTarget, "mtp.fc.weight"), Config("{}"));
  EXPECT_EQ(with_mtp.mtp_tensor, "mtp.fc.weight");
  EXPECT_TRUE(CanServeAs(with_mtp, "mtp"));
}

TEST(CanonicalDraftNameTest, RemovesThePrefixesOfAllFormats) {
  EXPECT_EQ(CanonicalDraftName("model.language_model.fc.weight"), "fc.weight");
  EXPECT_EQ(CanonicalDraftName("speculator.emb.0.weight"), "emb.0.weight");
  EXPECT_EQ(CanonicalDraftName("midlayer.hidden_norm.weight"), "layers.0.hidden_norm.weight");
  EXPECT_EQ(CanonicalDraftName("lm_head.weight"), "lm_head.weight");
}

TEST(ProposedTokensTest, ReadsWhatASpeculatorsConfigProposes) {
  EXPECT_EQ(ProposedTokens(Config("{}")), std::nullopt);
  EXPECT_EQ(ProposedTokens(Config(R"({"speculators_config": {}})")), std::nullopt);
  EXPECT_EQ(ProposedTokens(Config(R"({"speculators_config": {"proposal_methods": []}})")),
            std::nullopt);
  const char* const given =
      R"({"speculators_config": {"proposal_methods": [{"speculative_tokens": 3}]}})";
  EXPECT_EQ(ProposedTokens(Config(given)), 3);
  for (const char* config :
       {R"({"speculators_config": 3})", R"({"speculators_config": {"proposal_methods": 3}})",
        R"({"speculators_config": {"proposal_methods": [3]}})",
        R"({"speculators_config": {"proposal_methods": [{"speculative_tokens": 0}]}})",
        R"({"speculators_config": {"proposal_methods": [{"speculative_tokens": true}]}})"}) {
    EXPECT_THROW(ProposedTokens(Config(config)), CheckpointError) << config;
  }
}

TEST(ProposedTokensTest, AreAtMostAsManyAsTheOptionsAllow) {
  const auto proposed = [](const std::string& tokens) {
    const std::string config = R"({"speculators_config": {"proposal_methods": )"
                               R"([{"speculative_tokens": )" +
                               tokens + "}]}}";
    return ProposedTokens(Config(config.c_str()));
  };
  EXPECT_EQ(proposed("1024"), 1024);
  for (const std::string tokens : {"1025", "2147483647", "18446744073709551615"}) {
    try {
      proposed(tokens);
      ADD_FAILURE() << tokens;
    } catch (const CheckpointError& error) {
      const std::string message = error.what();
      for (const std::string& part :
           {std::string("speculative_tokens"), tokens, std::string("from 1 to 1024")}) {
        EXPECT_NE(message.find(part), std::string::npos) << message;
      }
    }
  }
}

}  // namespace
}  // namespace forerun
