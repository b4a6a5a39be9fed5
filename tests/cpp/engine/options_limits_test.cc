// The last valid value of each range, and the first one beyond it.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "forerun/error.h"
#include "forerun/options.h"

namespace forerun {
namespace {

using Set = std::function<void(EngineOptions&, int)>;

// The integers that a field takes, from least to most.
struct Range {
  const char* field;
  Set set;
  int least, most;
};

template <class Method, class SetField>
Set Of(Method method, SetField set) {
  return [=](EngineOptions& o, int value) {
    Method changed = method;
    set(changed, value);
    o.speculative.method = changed;
  };
}

constexpr int kNoLimit = -1;

const Range kRanges[] = {
    {"weight_cache.max_bytes", [](auto& o, int v) { o.weight_cache.max_bytes = v; }, 0, kNoLimit},
    {"max_model_len", [](auto& o, int v) { o.max_model_len = v; }, 2, kNoLimit},
    {"max_num_seqs",
     [](auto& o, int v) {
       o.max_num_seqs = v;
       o.max_num_batched_tokens = 1 << 20;
     },
     1, 1 << 16},
    {"max_waiting_requests", [](auto& o, int v) { o.max_waiting_requests = v; }, 0, kNoLimit},
    {"max_num_batched_tokens", [](auto& o, int v) { o.max_num_batched_tokens = v; }, 32, 1 << 20},
    {"block_size", [](auto& o, int v) { o.block_size = v; }, 16, 1024},
    {"kv_cache_memory_bytes", [](auto& o, int v) { o.kv_cache_memory_bytes = v; }, 1, kNoLimit},
    {"num_threads", [](auto& o, int v) { o.num_threads = v; }, 0, 1024},
    {"num_speculative_tokens", [](auto& o, int v) { o.speculative.num_speculative_tokens = v; }, 1,
     1024},
    {"prompt_lookup_min", Of(NgramOptions{}, [](auto& o, int v) { o.prompt_lookup_min = v; }), 1,
     kNoLimit},
    {"prompt_lookup_max",
     Of(NgramOptions{.prompt_lookup_min = 3}, [](auto& o, int v) { o.prompt_lookup_max = v; }), 3,
     1024},
    {"suffix_decoding_max_tree_depth",
     Of(SuffixOptions{}, [](auto& o, int v) { o.max_tree_depth = v; }), 2, 1024},
    {"suffix_decoding_max_cached_requests",
     Of(SuffixOptions{}, [](auto& o, int v) { o.max_cached_requests = v; }), 0, kNoLimit},
    {"suffix_decoding_min_token_prob",
     Of(SuffixOptions{}, [](auto& o, int v) { o.min_token_prob = v; }), 0, 1},
    {"draft_vocab_size",
     Of(ModelDrafterOptions{.model = "m"}, [](auto& o, int v) { o.draft_vocab_size = v; }), 1,
     kNoLimit},
    {"draft_tree_width",
     Of(ModelDrafterOptions{.model = "m"}, [](auto& o, int v) { o.draft_tree_width = v; }), 1, 64},
    {"draft_tree_depth",
     Of(ModelDrafterOptions{.model = "m"}, [](auto& o, int v) { o.draft_tree_depth = v; }), 1,
     1024},
};

// The field that is refused, or nothing.
std::string Refused(const Set& set, int value) {
  EngineOptions options;
  set(options, value);
  try {
    CheckEngineOptions(options);
  } catch (const InvalidArgument& error) {
    return error.field();
  }
  return "";
}

TEST(OptionsLimitsTest, TheEndsOfEveryRangeAreValidAndTheNextValuesAreNot) {
  for (const Range& range : kRanges) {
    EXPECT_EQ(Refused(range.set, range.least), "") << range.field;
    EXPECT_EQ(Refused(range.set, range.least - 1), range.field);
    if (range.most == kNoLimit) continue;
    EXPECT_EQ(Refused(range.set, range.most), "") << range.field;
    EXPECT_EQ(Refused(range.set, range.most + 1), range.field);
  }
}

TEST(OptionsLimitsTest, BlockSizesAreMultiplesOfSixteen) {
  const Set set = [](auto& o, int v) { o.block_size = v; };
  for (int size = 16; size <= 1024; ++size) {
    EXPECT_EQ(Refused(set, size), size % 16 == 0 ? "" : "block_size") << size;
  }
}

TEST(OptionsLimitsTest, AFixedTreeHasAtMostAsManyNodesAsADraft) {
  const Set chain = [](auto& o, int num_nodes) {
    ModelDrafterOptions model = {.model = "m"};
    for (int i = 1; i <= num_nodes; ++i) model.speculative_token_tree.emplace_back(i, 0);
    o.speculative.method = model;
  };
  EXPECT_EQ(Refused(chain, 1024), "");
  EXPECT_EQ(Refused(chain, 1025), "speculative_token_tree");
}

TEST(OptionsLimitsTest, AFixedTreeHasAsManyTokensAsNodes) {
  for (int num_tokens : {2, 3, 4}) {
    EngineOptions options;
    options.speculative.num_speculative_tokens = num_tokens;
    options.speculative.method =
        ModelDrafterOptions{.model = "m", .speculative_token_tree = {{0}, {1}, {0, 0}}};
    const Set keep = [&](EngineOptions& o, int) { o = options; };
    EXPECT_EQ(Refused(keep, 0), num_tokens == 3 ? "" : "num_speculative_tokens") << num_tokens;
  }
}

}  // namespace
}  // namespace forerun
