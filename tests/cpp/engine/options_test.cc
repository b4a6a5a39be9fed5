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
      {"model", [](auto& o) { o.model = ""; }},
      {"eos_token_ids", [](auto& o) { o.eos_token_ids = {2, -1}; }},
      {"dtype", [](auto& o) { o.dtype = "float16"; }},
      {"max_model_len", [](auto& o) { o.max_model_len = 1; }},
      {"max_num_seqs", [](auto& o) { o.max_num_seqs = 0; }},
      {"max_num_batched_tokens", [](auto& o) { o.max_num_batched_tokens = o.max_num_seqs - 1; }},
      {"block_size", [](auto& o) { o.block_size = 24; }},
      {"block_size", [](auto& o) { o.block_size = 0; }},
      {"kv_cache_memory_bytes", [](auto& o) { o.kv_cache_memory_bytes = 0; }},
      {"max_num_seqs", [](auto& o) { o.max_num_seqs = o.max_num_batched_tokens = kIntMax; }},
      {"max_num_batched_tokens", [](auto& o) { o.max_num_batched_tokens = kIntMax; }},
      {"num_threads", [](auto& o) { o.num_threads = -1; }},
      {"num_threads", [](auto& o) { o.num_threads = kIntMax; }},
      {"num_speculative_tokens",
       [](auto& o) { o.speculative.num_speculative_tokens = 100'000'000; }},
      {"prompt_lookup_max", [](auto& o) { o.speculative.prompt_lookup_max = kIntMax; }},
      {"suffix_decoding_max_tree_depth",
       [](auto& o) { o.speculative.suffix_max_tree_depth = kIntMax; }},
      {"draft_tree_depth",
       [](auto& o) {
         o.speculative.method = SpeculativeMethod::kMtp;
         o.speculative.draft_tree_depth = kIntMax;
       }},
      {"num_speculative_tokens", [](auto& o) { o.speculative.num_speculative_tokens = 0; }},
      {"draft_sample_method",
       [](auto& o) { o.speculative.draft_sample_method = DraftSampleMethod::kProbabilistic; }},
      {"prompt_lookup_min", [](auto& o) { o.speculative.prompt_lookup_min = 0; }},
      {"prompt_lookup_max", [](auto& o) { o.speculative.prompt_lookup_max = 1; }},
      {"suffix_decoding_max_tree_depth", [](auto& o) { o.speculative.suffix_max_tree_depth = 1; }},
      {"suffix_decoding_max_cached_requests",
       [](auto& o) { o.speculative.suffix_max_cached_requests = -1; }},
      {"suffix_decoding_max_spec_factor",
       [](auto& o) { o.speculative.suffix_max_spec_factor = 0; }},
      {"suffix_decoding_min_token_prob",
       [](auto& o) { o.speculative.suffix_min_token_prob = std::nan(""); }},
  };
  EngineOptions good;
  good.model = "somewhere";
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

}  // namespace
}  // namespace forerun
