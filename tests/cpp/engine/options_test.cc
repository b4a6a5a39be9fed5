#include "forerun/options.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "forerun/error.h"

namespace forerun {
namespace {

constexpr int kIntMax = std::numeric_limits<int>::max();

TEST(CheckEngineOptionsTest, NamesTheFirstWrongField) {
  struct Case {
    const char* field;
    std::function<void(EngineOptions&)> spoil;
  };
  const Case cases[] = {
      {"weight_cache.max_bytes", [](auto& o) { o.weight_cache.max_bytes = -1; }},
      {"dtype", [](auto& o) { o.dtype = "float16"; }},
      {"quantization", [](auto& o) { o.quantization.linear = "int3"; }},
      {"quantization", [](auto& o) { o.quantization.embedding = ""; }},
      {"quantization", [](auto& o) { o.quantization.head = "float32"; }},
      {"kv_cache_dtype", [](auto& o) { o.kv_cache_dtype = "int4"; }},
      {"max_model_len", [](auto& o) { o.max_model_len = 1; }},
      {"max_num_seqs", [](auto& o) { o.max_num_seqs = 0; }},
      {"max_num_batched_tokens", [](auto& o) { o.max_num_batched_tokens = o.max_num_seqs - 1; }},
      {"block_size", [](auto& o) { o.block_size = 24; }},
      {"block_size", [](auto& o) { o.block_size = 0; }},
      {"kv_cache_memory_bytes", [](auto& o) { o.kv_cache_memory_bytes = 0; }},
      {"gpu_memory_utilization", [](auto& o) { o.gpu_memory_utilization = 0.0; }},
      {"gpu_memory_utilization", [](auto& o) { o.gpu_memory_utilization = 1.01; }},
      {"max_num_seqs", [](auto& o) { o.max_num_seqs = o.max_num_batched_tokens = kIntMax; }},
      {"max_num_batched_tokens", [](auto& o) { o.max_num_batched_tokens = kIntMax; }},
      {"num_threads", [](auto& o) { o.num_threads = -1; }},
      {"num_threads", [](auto& o) { o.num_threads = kIntMax; }},
      {"num_speculative_tokens",
       [](auto& o) { o.speculative.num_speculative_tokens = 100'000'000; }},
      {"num_speculative_tokens", [](auto& o) { o.speculative.num_speculative_tokens = 0; }},
  };
  const EngineOptions good;
  EXPECT_NO_THROW(CheckEngineOptions(good));
  for (const Case& c : cases) {
    EngineOptions options = good;
    c.spoil(options);
    try {
      CheckEngineOptions(options);
      ADD_FAILURE() << c.field << " was accepted";
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.field(), c.field);
      EXPECT_FALSE(error.expected().empty());
    }
  }
}

TEST(CheckSpeculativeOptionsTest, NamesTheFirstWrongField) {
  const ModelDrafterOptions model = {.model = "somewhere", .method = ModelMethod::kEagle};
  const auto with = [&](const auto& change) {
    ModelDrafterOptions options = model;
    change(options);
    return options;
  };
  const std::vector<std::vector<int>> tree = {{0}, {1}, {0, 0}};
  const auto fix_tree = [&](auto& o) { o.speculative_token_tree = tree; };
  const auto sample = [](auto& o) { o.draft_sample_method = DraftSampleMethod::kProbabilistic; };
  struct Case {
    const char* field;
    SpeculativeMethod method;
  };
  const Case cases[] = {
      {"prompt_lookup_min", NgramOptions{.prompt_lookup_min = 0}},
      {"prompt_lookup_max", NgramOptions{.prompt_lookup_max = 1}},
      {"prompt_lookup_max", NgramOptions{.prompt_lookup_max = kIntMax}},
      {"suffix_decoding_max_tree_depth", SuffixOptions{.max_tree_depth = 1}},
      {"suffix_decoding_max_tree_depth", SuffixOptions{.max_tree_depth = kIntMax}},
      {"suffix_decoding_max_cached_requests", SuffixOptions{.max_cached_requests = -1}},
      {"suffix_decoding_max_spec_factor", SuffixOptions{.max_spec_factor = 0}},
      {"suffix_decoding_min_token_prob", SuffixOptions{.min_token_prob = std::nan("")}},
      {"model", with([](auto& o) { o.model.clear(); })},
      {"vocabulary_bridge", with([](auto& o) { o.vocabulary_bridge.emplace(); })},
      {"draft_tree_width", with([](auto& o) { o.draft_tree_width = 0; })},
      {"draft_tree_width", with([](auto& o) { o.draft_tree_width = 65; })},
      {"draft_tree_width", with([&](auto& o) {
         o.draft_tree_width = 2;
         sample(o);
       })},
      {"draft_tree_depth", with([](auto& o) { o.draft_tree_depth = kIntMax; })},
      {"speculative_token_tree", with([](auto& o) { o.speculative_token_tree = {{0, 0}}; })},
      {"speculative_token_tree", with([&](auto& o) {
         fix_tree(o);
         sample(o);
       })},
      {"speculative_token_tree", with([&](auto& o) {
         fix_tree(o);
         o.draft_tree_depth = 2;
       })},
      {"num_speculative_tokens", with(fix_tree)},
      {"draft_sample_method", HybridOptions{.model = with(sample)}},
      {"speculative_token_tree", HybridOptions{.model = with(fix_tree)}},
      {"model", HybridOptions{.model = with([](auto& o) { o.model.clear(); })}},
      {"suffix_decoding_max_tree_depth",
       HybridOptions{.model = model, .suffix = {.max_tree_depth = 1}}},
  };
  SpeculativeOptions options;
  options.num_speculative_tokens = 4;
  for (const SpeculativeMethod& good :
       {SpeculativeMethod(), SpeculativeMethod(NgramOptions()), SpeculativeMethod(SuffixOptions()),
        SpeculativeMethod(GrammarOptions()), SpeculativeMethod(model),
        SpeculativeMethod(ModelDrafterOptions()), SpeculativeMethod(HybridOptions())}) {
    options.method = good;
    EXPECT_NO_THROW(CheckSpeculativeOptions(options)) << good.index();
  }
  for (const Case& c : cases) {
    options.method = c.method;
    try {
      CheckSpeculativeOptions(options);
      ADD_FAILURE() << c.field << " was accepted";
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.field(), c.field);
      EXPECT_FALSE(error.expected().empty());
    }
  }
}

}  // namespace
}  // namespace forerun
