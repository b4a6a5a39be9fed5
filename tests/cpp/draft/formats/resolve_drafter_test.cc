#include "cpp/draft/formats/resolve_drafter.h"

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "forerun/error.h"
#include "tests/cpp/testing/model_directory.h"

namespace forerun {
namespace {

std::vector<NamedTensor> EagleTensors() {
  return {Float32Tensor("fc.weight", {1, 2}, {1, 2}),
          Float32Tensor("layers.0.self_attn.q_proj.weight", {1, 1}, {1})};
}

std::string Proposing(const std::string& num_tokens) {
  return R"({"speculators_config": {"proposal_methods": [{"speculative_tokens": )" + num_tokens +
         "}]}}";
}

SpeculativeOptions Resolve(const ModelDirectory& drafter) {
  SpeculativeOptions options;
  options.method = ModelDrafterOptions{.model = drafter.path()};
  return ResolveDrafter(options, "/the/target");
}

// The message of the CheckpointError.
std::string Refused(const ModelDirectory& drafter) {
  try {
    Resolve(drafter);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(ResolveDrafterTest, TakesTheMethodAndTheDraftTokensFromTheCheckpoint) {
  const ModelDirectory drafter;
  drafter.WriteTensors(EagleTensors());
  drafter.Write("config.json", Proposing("1024"));
  const SpeculativeOptions options = Resolve(drafter);
  EXPECT_EQ(std::get<ModelDrafterOptions>(options.method).method, ModelMethod::kEagle);
  EXPECT_EQ(options.num_speculative_tokens, 1024);
}

TEST(ResolveDrafterTest, RefusesMoreDraftTokensThanTheOptionsAllow) {
  const ModelDirectory drafter;
  drafter.WriteTensors(EagleTensors());
  drafter.Write("config.json", Proposing("2147483647"));
  const std::string message = Refused(drafter);
  for (const char* part : {"speculative_tokens", "2147483647", "1024"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST(ResolveDrafterTest, RefusesTwoTensorsThatDifferInTheirPrefixesOnly) {
  const ModelDirectory drafter;
  std::vector<NamedTensor> tensors = EagleTensors();
  tensors.push_back(Float32Tensor("model.fc.weight", {1, 2}, {1, 2}));
  drafter.WriteTensors(tensors);
  drafter.Write("config.json", "{}");
  const std::string message = Refused(drafter);
  for (const char* part : {"'fc.weight'", "'model.fc.weight'"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace forerun
