// Fields of ModelDrafterOptions that only some formats have.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "cpp/draft/neural/model_drafter.h"
#include "forerun/error.h"

namespace forerun {
namespace {

struct Field {
  const char* name;
  ModelMethod owner;
  std::function<void(ModelDrafterOptions&)> set;
};

const Field kFields[] = {
    {"aux_hidden_state_layer_ids", ModelMethod::kEagle3,
     [](auto& o) { o.aux_hidden_state_layer_ids = {1}; }},
    {"norm_output", ModelMethod::kEagle3, [](auto& o) { o.norm_output = false; }},
    {"norm_before_residual", ModelMethod::kEagle3, [](auto& o) { o.norm_before_residual = false; }},
    {"norm_target_state", ModelMethod::kMtp, [](auto& o) { o.norm_target_state = false; }},
};

constexpr ModelMethod kMethods[] = {ModelMethod::kDraftModel,    ModelMethod::kEagle,
                                    ModelMethod::kEagle3,        ModelMethod::kMtp,
                                    ModelMethod::kMlpSpeculator, ModelMethod::kMedusa};

TEST(ModelDrafterSourceTest, RefusesFieldsOfOtherFormatsBeforeItReadsTheDrafter) {
  for (const Field& field : kFields) {
    for (ModelMethod method : kMethods) {
      if (method == field.owner) continue;
      ModelDrafterOptions model = {.model = "/does/not/exist", .method = method};
      field.set(model);
      for (bool is_hybrid : {false, true}) {
        SpeculativeOptions options;
        options.method = model;
        if (is_hybrid) options.method = HybridOptions{.model = model};
        try {
          ModelDrafterSource source(options, ModelSpec(), "/does/not/exist");
          ADD_FAILURE() << field.name;
        } catch (const InvalidArgument& error) {
          EXPECT_EQ(error.field(), field.name);
        }
      }
    }
  }
}

}  // namespace
}  // namespace forerun
