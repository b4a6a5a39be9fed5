// Each family's config.json as its publishers write it, and what is refused.
#include "cpp/model/spec/spec.h"

#include <gtest/gtest.h>

#include <cmath>

#include "forerun/error.h"
#include "tests/cpp/testing/model_directory.h"
#include "tests/cpp/testing/num_examples.h"
#include "tests/cpp/testing/tiny_model.h"

namespace forerun {
namespace {

ModelSpec Read(const std::string& config, const std::string& generation_config = "") {
  ModelDirectory directory;
  directory.Write("config.json", config);
  if (!generation_config.empty()) directory.Write("generation_config.json", generation_config);
  return ReadModelSpec(directory.path());
}

void ExpectRefused(const std::string& config, const std::string& field, const std::string& value) {
  try {
    Read(config);
    ADD_FAILURE() << "accepted: " << config;
  } catch (const CheckpointError& error) {
    EXPECT_NE(error.field().find(field), std::string::npos) << error.what();
    EXPECT_NE(error.value().find(value), std::string::npos) << error.what();
  }
}

// A config of `family` with more fields.
std::string With(const std::string& family, const std::string& fields) {
  return R"({"model_type": ")" + family + R"(", )" + fields + "}";
}

std::vector<int> Windows(const ModelSpec& spec) {
  std::vector<int> windows;
  for (const LayerSpec& layer : spec.layers) windows.push_back(layer.sliding_window);
  return windows;
}

TEST(SpecTest, MiMoMayBeCalledQwen2) {
  const std::string fields =
      R"("architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1)";
  EXPECT_EQ(Read(With("qwen2", fields)).family, "mimo");
  EXPECT_EQ(Read(With("mimo", fields)).family, "mimo");
  EXPECT_EQ(Read(With("qwen2", R"("architectures": ["Qwen2ForCausalLM"])")).family, "qwen2");
  ExpectRefused(With("qwen3", fields), "architectures", "MiMoForCausalLM");
}

TEST(SpecTest, ReadsLlamaWithItsRopeScaling) {
  const ModelSpec spec = Read(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 2,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})");
  EXPECT_EQ(spec.family, "llama");
  EXPECT_EQ(spec.vocab_size, 128256);
  EXPECT_EQ(spec.hidden_size, 2048);
  EXPECT_EQ(spec.intermediate_size, 8192);
  EXPECT_EQ(spec.num_layers, 2);
  EXPECT_EQ(spec.num_heads, 32);
  EXPECT_EQ(spec.num_kv_heads, 8);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(spec.max_position, 131072);
  EXPECT_EQ(spec.rms_norm_eps, 1e-5f);
  EXPECT_EQ(spec.norm_weight_offset, 0.0f);
  EXPECT_EQ(spec.attention_scale, 0.125f);
  EXPECT_EQ(spec.embedding_scale, 1.0f);
  EXPECT_EQ(spec.activation, Activation::kSilu);
  EXPECT_TRUE(spec.tie_word_embeddings);
  EXPECT_FALSE(spec.qkv_bias || spec.output_bias || spec.mlp_bias || spec.qk_norm);
  EXPECT_FALSE(spec.post_norms);
  EXPECT_EQ(spec.torch_dtype, "bfloat16");
  EXPECT_EQ(spec.eos_token_ids, (std::vector<TokenId>{128001, 128008, 128009}));
  EXPECT_EQ(Windows(spec), (std::vector<int>{0, 0}));
  RopeSpec rope;
  rope.theta = 500000.0;
  rope.scaling = RopeScaling::kLlama3;
  rope.factor = 32.0;
  rope.original_max_position = 8192;
  EXPECT_EQ(spec.ropes, std::vector<RopeSpec>{rope});
}

TEST(SpecTest, OmittedKeysTakeTheFamilysDefaults) {
  const ModelSpec llama = Read(With("llama", R"("num_attention_heads": 16)"));
  EXPECT_EQ(llama.vocab_size, 32000);
  EXPECT_EQ(llama.hidden_size, 4096);
  EXPECT_EQ(llama.num_layers, 32);
  EXPECT_EQ(llama.num_kv_heads, 16);
  EXPECT_EQ(llama.head_dim, 256);
  EXPECT_EQ(llama.max_position, 2048);
  EXPECT_EQ(llama.rms_norm_eps, 1e-6f);
  EXPECT_FALSE(llama.tie_word_embeddings);
  EXPECT_EQ(llama.eos_token_ids, std::vector<TokenId>{2});
  EXPECT_EQ(llama.ropes[0], RopeSpec{});
  EXPECT_EQ(llama.torch_dtype, "");

  const ModelSpec mistral = Read(R"({"model_type": "mistral"})");
  EXPECT_EQ(mistral.num_kv_heads, 8);
  EXPECT_EQ(Windows(mistral), std::vector<int>(32, 4096));
  EXPECT_EQ(Read(With("mistral", R"("sliding_window": null)")).layers[0].sliding_window, 0);
  EXPECT_EQ(Read(With("mistral", R"("num_key_value_heads": null)")).num_kv_heads, 32);

  const ModelSpec qwen2 = Read(R"({"model_type": "qwen2"})");
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias || qwen2.tie_word_embeddings);
  EXPECT_EQ(Windows(qwen2), std::vector<int>(32, 0));
  EXPECT_TRUE(qwen2.eos_token_ids.empty());
  EXPECT_EQ(Read(R"({"model_type": "qwen3", "hidden_size": 64})").head_dim, 128);

  const ModelSpec gemma2 = Read(R"({"model_type": "gemma2"})");
  EXPECT_TRUE(gemma2.tie_word_embeddings);
  EXPECT_EQ(gemma2.head_dim, 256);
  EXPECT_EQ(gemma2.attention_soft_cap, 50.0f);
  EXPECT_EQ(gemma2.final_soft_cap, 30.0f);
  EXPECT_EQ(gemma2.eos_token_ids, std::vector<TokenId>{1});
}

TEST(SpecTest, ReadsQwensSlidingWindowRules) {
  const std::string base = R"("num_hidden_layers": 4, "sliding_window": 9, "max_window_layers": 2)";
  EXPECT_EQ(Windows(Read(With("qwen2", base))), (std::vector<int>{0, 0, 0, 0}));
  EXPECT_EQ(Windows(Read(With("qwen2", base + R"(, "use_sliding_window": true)"))),
            (std::vector<int>{0, 0, 9, 9}));
  EXPECT_EQ(Windows(Read(With("qwen3", base + R"(, "use_sliding_window": true, "layer_types":
      ["sliding_attention", "full_attention", "full_attention", "sliding_attention"])"))),
            (std::vector<int>{9, 0, 0, 9}));
  const ModelSpec qwen3 = Read(With("qwen3", base + R"(, "attention_bias": true)"));
  EXPECT_TRUE(qwen3.qk_norm && qwen3.qkv_bias && qwen3.output_bias);
  ExpectRefused(With("qwen3", base + R"(, "layer_types": ["sliding_attention", "full_attention",
      "full_attention", "full_attention"])"),
                "sliding_window", "9");
}

TEST(SpecTest, ReadsGemma2) {
  const ModelSpec spec = Read(With("gemma2", R"("hidden_size": 3584, "num_hidden_layers": 3,
      "num_attention_heads": 16, "num_key_value_heads": 8, "query_pre_attn_scalar": 144,
      "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
      "attn_logit_softcapping": 20.0, "final_logit_softcapping": null, "sliding_window": 12)"));
  EXPECT_EQ(spec.activation, Activation::kGeluTanh);
  EXPECT_EQ(spec.attention_scale, static_cast<float>(1.0 / 12.0));
  EXPECT_EQ(spec.embedding_scale, static_cast<float>(std::sqrt(3584.0)));
  EXPECT_EQ(spec.norm_weight_offset, 1.0f);
  EXPECT_TRUE(spec.post_norms);
  EXPECT_FALSE(spec.qk_norm);
  EXPECT_EQ(spec.attention_soft_cap, 20.0f);
  EXPECT_EQ(spec.final_soft_cap, 0.0f);
  EXPECT_EQ(Windows(spec), (std::vector<int>{12, 0, 12}));
  EXPECT_EQ(spec.ropes.size(), 1u);
}

TEST(SpecTest, ReadsGemma3InItsOldAndNewWriting) {
  const std::string sizes = R"("hidden_size": 640, "num_attention_heads": 4, "sliding_window": 8,
      "num_hidden_layers": 7, "num_key_value_heads": 1, )";
  const ModelSpec old_spec = Read(With("gemma3_text", sizes + R"("rope_theta": 2000000,
      "rope_local_base_freq": 20000, "sliding_window_pattern": 3,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"})"));
  const ModelSpec new_spec = Read(With("gemma3_text", sizes + R"("layer_types": [
      "sliding_attention", "sliding_attention", "full_attention", "sliding_attention",
      "sliding_attention", "full_attention", "sliding_attention"],
      "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000000},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000}})"));
  for (const ModelSpec* spec : {&old_spec, &new_spec}) {
    EXPECT_EQ(Windows(*spec), (std::vector<int>{8, 8, 0, 8, 8, 0, 8}));
    EXPECT_EQ(spec->layers[2].rope, 0);
    EXPECT_EQ(spec->layers[3].rope, 1);
    EXPECT_EQ(spec->ropes[0].theta, 2e6);
    EXPECT_EQ(spec->ropes[0].factor, 8.0);
    EXPECT_EQ(spec->ropes[0].scaling, RopeScaling::kLinear);
    EXPECT_EQ(spec->ropes[1].theta, 2e4);
    EXPECT_EQ(spec->ropes[1].scaling, RopeScaling::kNone);
    EXPECT_TRUE(spec->qk_norm && spec->post_norms && spec->tie_word_embeddings);
    EXPECT_EQ(spec->final_soft_cap, 0.0f);
  }
  const ModelSpec usual = Read(With("gemma3_text", sizes + R"("rope_parameters": null)"));
  EXPECT_EQ(Windows(usual), (std::vector<int>{8, 8, 8, 8, 8, 0, 8}));
  EXPECT_EQ(usual.ropes[0].theta, 1e6);
  EXPECT_EQ(usual.ropes[1].theta, 1e4);
}

TEST(SpecTest, ReadsTheTextModelOfGemma3WithVision) {
  const ModelSpec spec = Read(R"({"architectures": ["Gemma3ForConditionalGeneration"],
      "model_type": "gemma3", "eos_token_id": [1, 106], "torch_dtype": "bfloat16",
      "vision_config": {"hidden_size": 1152},
      "text_config": {"hidden_size": 2560, "model_type": "gemma3_text", "num_hidden_layers": 6,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}})");
  EXPECT_EQ(spec.family, "gemma3");
  EXPECT_EQ(spec.hidden_size, 2560);
  EXPECT_EQ(spec.vocab_size, 262208);
  EXPECT_EQ(spec.layers[5].sliding_window, 0);
  EXPECT_EQ(spec.torch_dtype, "bfloat16");
  EXPECT_TRUE(spec.tie_word_embeddings);
  EXPECT_EQ(spec.eos_token_ids, (std::vector<TokenId>{1, 106}));
}

TEST(SpecTest, ReadsYarn) {
  const auto rope_of = [](const std::string& fields) {
    return Read(With("llama", R"("max_position_embeddings": 4096, "rope_parameters":
        {"rope_type": "yarn", "rope_theta": 10000.0, )" +
                                  fields + "}"))
        .ropes[0];
  };
  const RopeSpec usual = rope_of(R"("factor": 4.0, "original_max_position_embeddings": 1024)");
  EXPECT_EQ(usual.scaling, RopeScaling::kYarn);
  EXPECT_EQ(usual.original_max_position, 1024);
  EXPECT_EQ(usual.beta_fast, 32.0);
  EXPECT_EQ(usual.beta_slow, 1.0);
  EXPECT_TRUE(usual.truncate);
  EXPECT_DOUBLE_EQ(usual.attention_factor, 0.1 * std::log(4.0) + 1.0);
  const RopeSpec given = rope_of(R"("factor": 4.0, "attention_factor": 0.5, "truncate": false,
      "beta_fast": 16, "beta_slow": 2)");
  EXPECT_EQ(given.attention_factor, 0.5);
  EXPECT_EQ(given.original_max_position, 4096);
  EXPECT_EQ(given.beta_fast, 16.0);
  EXPECT_EQ(given.beta_slow, 2.0);
  EXPECT_FALSE(given.truncate);
  const RopeSpec scaled = rope_of(R"("factor": null, "original_max_position_embeddings": 1024,
      "mscale": 0.7, "mscale_all_dim": 2.0)");
  EXPECT_EQ(scaled.factor, 4.0);
  EXPECT_DOUBLE_EQ(scaled.attention_factor,
                   (0.07 * std::log(4.0) + 1.0) / (0.2 * std::log(4.0) + 1.0));
}

TEST(SpecTest, EndsOfBothConfigsAreJoined) {
  const std::string config = With("llama", R"("eos_token_id": 7)");
  EXPECT_EQ(Read(config, R"({"eos_token_id": [3, 4]})").eos_token_ids,
            (std::vector<TokenId>{3, 4, 7}));
  EXPECT_EQ(Read(config, R"({"eos_token_id": [7, 3, 3]})").eos_token_ids,
            (std::vector<TokenId>{7, 3}));
  EXPECT_EQ(Read(config, R"({"eos_token_id": null})").eos_token_ids, std::vector<TokenId>{7});
  EXPECT_EQ(Read(config, "{}").eos_token_ids, std::vector<TokenId>{7});
  EXPECT_TRUE(Read(With("llama", R"("eos_token_id": null)")).eos_token_ids.empty());
  EXPECT_EQ(Read(With("llama", R"("eos_token_id": null)"), R"({"eos_token_id": 5})").eos_token_ids,
            std::vector<TokenId>{5});
  // Beyond the vocabulary: no token is ever that one.
  EXPECT_TRUE(Read(With("llama", R"("eos_token_id": [-1, 32000])")).eos_token_ids.empty());
}

TEST(SpecTest, UnknownFamiliesAreRefusedByName) {
  ExpectRefused("{}", "model_type", "nothing");
  ExpectRefused(R"({"model_type": "mixtral"})", "model_type", "mixtral");
  ExpectRefused(R"({"model_type": 3})", "model_type", "3");
  ExpectRefused(With("llama", R"("architectures": ["LlamaForSequenceClassification"])"),
                "architectures", "LlamaForSequenceClassification");
  ExpectRefused(R"({"model_type": "gemma3"})", "text_config", "nothing");
}

TEST(SpecTest, FieldsThatChangeTheComputationAreRefused) {
  ExpectRefused(With("llama", R"("quantization_config": {"quant_method": "fp8"})"),
                "quantization_config.quant_method", "fp8");
  ExpectRefused(With("llama", R"("num_local_experts": 8)"), "num_local_experts", "8");
  ExpectRefused(With("llama", R"("attention_chunk_size": 64)"), "attention_chunk_size", "64");
  ExpectRefused(With("llama", R"("alibi": true)"), "alibi", "true");
  ExpectRefused(With("llama", R"("partial_rotary_factor": 0.5)"), "partial_rotary_factor", "0.5");
  ExpectRefused(With("llama", R"("sliding_window": 64)"), "sliding_window", "64");
  ExpectRefused(With("llama", R"("final_logit_softcapping": 30.0)"), "final_logit", "30");
  ExpectRefused(With("llama", R"("query_pre_attn_scalar": 64)"), "query_pre_attn_scalar", "64");
  ExpectRefused(With("mistral", R"("attention_bias": true)"), "attention_bias", "true");
  ExpectRefused(With("qwen2", R"("mlp_bias": true)"), "mlp_bias", "true");
  ExpectRefused(With("qwen2", R"("attention_bias": false)"), "attention_bias", "false");
  ExpectRefused(With("gemma3_text", R"("attn_logit_softcapping": 50.0)"), "attn_logit", "50");
  ExpectRefused(With("gemma3_text", R"("use_bidirectional_attention": true)"), "bidirectional",
                "true");
  ExpectRefused(With("llama", R"("hidden_act": "relu")"), "hidden_act", "relu");
  EXPECT_NO_THROW(Read(With("llama", R"("quantization_config": null, "alibi": false,
      "num_experts": 0, "partial_rotary_factor": 1.0, "some_note": "harmless")")));
}

TEST(SpecTest, RopesThatAreNotUnderstoodAreRefused) {
  const auto expect = [](const std::string& rope, const std::string& field,
                         const std::string& value) {
    ExpectRefused(With("llama", R"("rope_scaling": )" + rope), field, value);
  };
  expect(R"({"type": "dynamic", "factor": 2.0})", "rope_scaling.type", "dynamic");
  expect(R"({"rope_type": "longrope", "factor": 2.0})", "rope_scaling.rope_type", "longrope");
  expect(R"({"rope_type": "linear"})", "rope_scaling.factor", "nothing");
  expect(R"({"rope_type": "linear", "factor": 0})", "rope_scaling.factor", "0");
  expect(R"({"rope_type": "linear", "factor": "2"})", "rope_scaling.factor", "2");
  expect(R"({"rope_type": "default", "mrope_section": [1]})", "mrope_section", "[1]");
  expect(R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1})",
         "high_freq_factor", "1");
  expect("7", "rope_scaling", "7");
  ExpectRefused(With("gemma3_text", R"("rope_parameters": {"rope_type": "default"})"),
                "rope_parameters.rope_type", "default");
  ExpectRefused(With("qwen3", R"("rope_parameters": {"full_attention": {"rope_type": "default"}})"),
                "full_attention", "default");
}

TEST(SpecTest, ValuesOfTheWrongKindAreRefused) {
  ExpectRefused(With("llama", R"("hidden_size": 0)"), "hidden_size", "0");
  ExpectRefused(With("llama", R"("hidden_size": -1)"), "hidden_size", "-1");
  ExpectRefused(With("llama", R"("hidden_size": 64.5)"), "hidden_size", "64.5");
  ExpectRefused(With("llama", R"("hidden_size": null)"), "hidden_size", "null");
  ExpectRefused(With("llama", R"("hidden_size": 18446744073709551615)"), "hidden_size", "1844");
  ExpectRefused(With("llama", R"("num_hidden_layers": 2000000000)"), "num_hidden_layers", "2000");
  ExpectRefused(With("llama", R"("num_key_value_heads": 5)"), "num_key_value_heads", "5");
  ExpectRefused(With("llama", R"("num_attention_heads": 3)"), "hidden_size", "nothing");
  ExpectRefused(With("llama", R"("head_dim": 63)"), "head_dim", "63");
  ExpectRefused(With("llama", R"("rms_norm_eps": "small")"), "rms_norm_eps", "small");
  ExpectRefused(With("llama", R"("tie_word_embeddings": 1)"), "tie_word_embeddings", "1");
  ExpectRefused(With("llama", R"("torch_dtype": "float8")"), "torch_dtype", "float8");
  ExpectRefused(With("llama", R"("eos_token_id": "</s>")"), "eos_token_id", "</s>");
  ExpectRefused(With("gemma2", R"("num_hidden_layers": 2, "layer_types": ["full_attention"])"),
                "layer_types", "full_attention");
  ExpectRefused(With("gemma2", R"("num_hidden_layers": 1, "layer_types": ["linear_attention"])"),
                "layer_types", "linear_attention");
  ExpectRefused("not json", "config.json", "not JSON");
  ExpectRefused("[]", "config.json", "[]");
  const std::string nested = std::string(200'000, '[') + std::string(200'000, ']');
  ExpectRefused(With("llama", R"("unknown_key": )" + nested), "config.json", "200001 levels deep");
  ModelDirectory empty;
  EXPECT_THROW(ReadModelSpec(empty.path()), CheckpointError);
  EXPECT_THROW(ReadModelSpec(empty.path() + "/nowhere"), CheckpointError);
}

TEST(SpecTest, ConfigsOfRandomValuesAreReadOrRefused) {
  const std::vector<std::string> families = {"llama", "mistral", "qwen2",
                                             "qwen3", "gemma2",  "gemma3_text"};
  const std::vector<std::string> keys = {"vocab_size",
                                         "hidden_size",
                                         "num_hidden_layers",
                                         "num_attention_heads",
                                         "num_key_value_heads",
                                         "head_dim",
                                         "rope_theta",
                                         "rope_scaling",
                                         "rope_parameters",
                                         "layer_types",
                                         "sliding_window",
                                         "use_sliding_window",
                                         "sliding_window_pattern",
                                         "max_position_embeddings",
                                         "attn_logit_softcapping",
                                         "query_pre_attn_scalar",
                                         "eos_token_id",
                                         "architectures",
                                         "dtype",
                                         "attention_bias"};
  const std::vector<std::string> values = {
      "null",
      "true",
      "0",
      "1",
      "2",
      "-1",
      "8",
      "1.5",
      "1e300",
      "-0.0",
      "18446744073709551615",
      "\"a\"",
      "[]",
      "{}",
      "[\"full_attention\", \"sliding_attention\"]",
      "[[]]",
      R"({"rope_type": "yarn", "factor": 1e-300, "original_max_position_embeddings": 1})",
      R"({"rope_type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4})",
      R"({"full_attention": null, "sliding_attention": {"type": "linear", "factor": 2}})"};
  TinyRandom random(13);
  ModelDirectory directory;
  for (int example = 0; example < testing::NumExamples(200, 50000); ++example) {
    std::string config = R"({"model_type": ")" + families[random.Below(6)] + "\"";
    for (int field = random.Below(5); field >= 0; --field) {
      config += ", \"" + keys[random.Below(static_cast<int>(keys.size()))] + "\": ";
      config += values[random.Below(static_cast<int>(values.size()))];
    }
    directory.Write("config.json", config + "}");
    try {
      const ModelSpec spec = ReadModelSpec(directory.path());
      ASSERT_EQ(spec.num_heads % spec.num_kv_heads, 0) << config;
      ASSERT_EQ(static_cast<int>(spec.layers.size()), spec.num_layers) << config;
      for (const LayerSpec& layer : spec.layers) {
        ASSERT_LT(layer.rope, static_cast<int>(spec.ropes.size())) << config;
      }
    } catch (const CheckpointError&) {
    }
  }
}

}  // namespace
}  // namespace forerun
