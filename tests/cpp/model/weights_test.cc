// How tensors become packed weights, and which checkpoints do not.
#include "cpp/model/weights.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "forerun/error.h"
#include "tests/cpp/testing/naive_ops.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

ModelWeights Load(const ModelDirectory& directory, const std::string& dtype = "auto") {
  NaiveOps ops;
  Checkpoint checkpoint(directory.path());
  const ModelSpec spec = ReadModelSpec(directory.path());
  return LoadWeights(spec, checkpoint, UniformFormats(ResolveDType(dtype, spec, checkpoint)), ops);
}

// A tiny model whose tensors a test may spoil before they are written.
struct Draft {
  explicit Draft(const std::string& config) {
    directory.Write("config.json", config);
    tensors = TinyTensors(ReadModelSpec(directory.path()), 5);
  }
  NamedTensor& at(const std::string& name) {
    return *std::find_if(tensors.begin(), tensors.end(),
                         [&](const NamedTensor& tensor) { return tensor.name == name; });
  }
  ModelWeights Load() {
    directory.WriteTensors(tensors);
    return forerun::Load(directory);
  }
  void ExpectRefused(const std::string& field, const std::string& value) {
    try {
      Load();
      ADD_FAILURE() << "accepted";
    } catch (const CheckpointError& error) {
      EXPECT_EQ(error.field(), field);
      EXPECT_NE(error.value().find(value), std::string::npos) << error.what();
    }
  }

  ModelDirectory directory;
  std::vector<NamedTensor> tensors;
};

float At(const PackedMatrix& matrix, int output, int input) {
  return static_cast<const NaiveMatrix&>(matrix).at(output, input);
}

float Element(const NamedTensor& tensor, int index) {
  return reinterpret_cast<const float*>(tensor.bytes.data())[index];
}

TEST(WeightsTest, StacksProjectionsInOrder) {
  Draft draft(TinyConfig("llama", R"("attention_bias": true, "mlp_bias": true)"));
  const ModelWeights weights = draft.Load();
  ASSERT_EQ(weights.layers.size(), 3u);
  const LayerWeights& layer = weights.layers[1];
  const std::string name = "model.layers.1.";
  EXPECT_EQ(layer.qkv->num_outputs(), 40 + 20 + 20);
  EXPECT_EQ(At(*layer.qkv, 0, 3), Element(draft.at(name + "self_attn.q_proj.weight"), 3));
  EXPECT_EQ(At(*layer.qkv, 40, 3), Element(draft.at(name + "self_attn.k_proj.weight"), 3));
  EXPECT_EQ(At(*layer.qkv, 61, 3), Element(draft.at(name + "self_attn.v_proj.weight"), 24 + 3));
  EXPECT_EQ(layer.qkv_bias.size(), 80);
  EXPECT_EQ(layer.qkv_bias.data()[60], Element(draft.at(name + "self_attn.v_proj.bias"), 0));
  EXPECT_EQ(layer.attention_output_bias.size(), 24);
  EXPECT_EQ(At(*layer.gate_up, 36, 0), Element(draft.at(name + "mlp.up_proj.weight"), 0));
  EXPECT_EQ(layer.gate_up_bias.data()[36], Element(draft.at(name + "mlp.up_proj.bias"), 0));
  EXPECT_EQ(At(*layer.down, 2, 1), Element(draft.at(name + "mlp.down_proj.weight"), 72 + 1));
  EXPECT_EQ(layer.mlp_norm.data()[4],
            Element(draft.at(name + "post_attention_layernorm.weight"), 4));
  EXPECT_TRUE(layer.post_attention_norm.empty() && layer.q_norm.empty());
  EXPECT_NE(weights.lm_head, nullptr);
  EXPECT_EQ(weights.num_bytes() - weights.num_bytes_per_token(), 101 * 24 * 4);
}

TEST(WeightsTest, GemmaNormsHaveTheirOffsetFoldedIn) {
  Draft draft(TinyConfig("gemma3_text"));
  const ModelWeights weights = draft.Load();
  const LayerWeights& layer = weights.layers[0];
  const std::string name = "model.layers.0.";
  EXPECT_EQ(layer.attention_norm.data()[7],
            1.0f + Element(draft.at(name + "input_layernorm.weight"), 7));
  EXPECT_EQ(layer.post_attention_norm.data()[7],
            1.0f + Element(draft.at(name + "post_attention_layernorm.weight"), 7));
  EXPECT_EQ(layer.mlp_norm.data()[7],
            1.0f + Element(draft.at(name + "pre_feedforward_layernorm.weight"), 7));
  EXPECT_EQ(layer.q_norm.data()[7], 1.0f + Element(draft.at(name + "self_attn.q_norm.weight"), 7));
  EXPECT_EQ(weights.lm_head, nullptr);
  EXPECT_EQ(&weights.head(), weights.embedding.get());
  EXPECT_EQ(weights.num_bytes(), weights.num_bytes_per_token());
}

TEST(WeightsTest, TheAutomaticDTypeFollowsTheCheckpoint) {
  ModelDirectory directory;
  const auto resolve = [&](const std::string& name, const std::string& fields) {
    WriteTinyModel(directory, TinyConfig("llama", fields));
    Checkpoint checkpoint(directory.path());
    return ResolveDType(name, ReadModelSpec(directory.path()), checkpoint);
  };
  EXPECT_EQ(resolve("auto", R"("torch_dtype": "bfloat16")"), DType::kBFloat16);
  EXPECT_EQ(resolve("auto", R"("torch_dtype": "float16")"), DType::kFloat32);
  EXPECT_EQ(resolve("auto", R"("dtype": "float32")"), DType::kFloat32);
  EXPECT_EQ(resolve("auto", ""), DType::kFloat32);  // as the tensors are
  EXPECT_EQ(resolve("bfloat16", R"("dtype": "float32")"), DType::kBFloat16);
  EXPECT_EQ(resolve("float32", R"("dtype": "bfloat16")"), DType::kFloat32);
  EXPECT_THROW(resolve("int3", ""), InvalidArgument);
}

TEST(WeightsTest, MissingTensorsAreNamed) {
  for (const std::string name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
        "model.layers.2.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.bias"}) {
    Draft draft(TinyConfig("qwen2"));
    draft.tensors.erase(draft.tensors.begin() + (&draft.at(name) - draft.tensors.data()));
    draft.ExpectRefused("tensor '" + name + "'", "nothing");
  }
}

TEST(WeightsTest, ShapesThatContradictTheConfigAreNamed) {
  Draft narrow(TinyConfig("llama"));
  narrow.at("model.layers.1.self_attn.k_proj.weight").shape = {24, 20};
  narrow.ExpectRefused("tensor 'model.layers.1.self_attn.k_proj.weight'", "[24, 20]");
  Draft flat(TinyConfig("llama"));
  flat.at("model.norm.weight").shape = {24, 1};
  flat.ExpectRefused("tensor 'model.norm.weight'", "[24, 1]");
  Draft integers(TinyConfig("llama"));
  integers.at("model.norm.weight").dtype = "I32";
  integers.ExpectRefused("tensor 'model.norm.weight'", "int32");
}

TEST(WeightsTest, TensorsThatNothingReadsAreRefusedUnlessHarmless) {
  Draft draft(TinyConfig("llama"));
  draft.tensors.push_back(Float32Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", {1}, {1}));
  EXPECT_NO_THROW(draft.Load());
  draft.tensors.push_back(Float32Tensor("model.layers.0.self_attn.q_proj.bias", {1}, {1}));
  draft.ExpectRefused("tensor 'model.layers.0.self_attn.q_proj.bias'", "present");
}

TEST(WeightsTest, ATiedHeadMayBeStoredTwiceButNotDiffer) {
  Draft draft(TinyConfig("llama", R"("tie_word_embeddings": true)"));
  NamedTensor head = draft.at("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  draft.tensors.push_back(head);
  EXPECT_EQ(draft.Load().lm_head, nullptr);
  draft.at("lm_head.weight").bytes[5] ^= 1;
  draft.ExpectRefused("tie_word_embeddings", "lm_head.weight");
}

TEST(WeightsTest, Gemma3WithVisionFindsItsTextModel) {
  for (const std::string prefix : {"model.language_model.", "language_model.model."}) {
    Draft draft(R"({"model_type": "gemma3", "text_config": )" + TinyConfig("gemma3_text") + "}");
    for (NamedTensor& tensor : draft.tensors) tensor.name = prefix + tensor.name.substr(6);
    draft.tensors.push_back(Float32Tensor("vision_tower.x.weight", {1}, {1}));
    EXPECT_EQ(draft.Load().layers.size(), 3u);
  }
}

}  // namespace
}  // namespace forerun
