// config.json: any bytes give a ModelSpec that keeps its promises, or a CheckpointError.
#include <cmath>
#include <cstdint>
#include <span>

#include "cpp/model/rope.h"
#include "cpp/model/spec/spec.h"
#include "cpp/util/check.h"
#include "forerun/error.h"
#include "tests/fuzz/scratch_directory.h"

namespace forerun {
namespace {

void CheckSpec(const ModelSpec& spec) {
  FORERUN_CHECK(spec.vocab_size > 0 && spec.hidden_size > 0 && spec.intermediate_size > 0,
                "sizes are positive");
  FORERUN_CHECK(spec.num_layers == static_cast<int>(spec.layers.size()),
                "every layer is described");
  FORERUN_CHECK(spec.num_kv_heads > 0 && spec.num_heads % spec.num_kv_heads == 0,
                "KV heads divide the heads");
  FORERUN_CHECK(spec.head_dim > 0 && spec.head_dim % 2 == 0, "heads can be rotated");
  for (const LayerSpec& layer : spec.layers) {
    FORERUN_CHECK(layer.rope >= 0 && layer.rope < static_cast<int>(spec.ropes.size()),
                  "every layer has its RoPE");
    FORERUN_CHECK(layer.sliding_window >= 0, "windows are not negative");
  }
  for (const TokenId token : spec.eos_token_ids) {
    FORERUN_CHECK(token >= 0, "end-of-sequence tokens are tokens");
  }
  if (spec.head_dim > 1024) return;
  for (const RopeSpec& rope : spec.ropes) {
    const std::vector<float> table = MakeRopeTable(rope, spec.head_dim, 4);
    for (int i = 0; i < 4 * spec.head_dim; ++i) {
      FORERUN_CHECK(std::isfinite(table.as<float>()[i]), "rotations are finite");
    }
  }
}

}  // namespace
}  // namespace forerun

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const forerun::fuzz::ScratchDirectory directory;
  directory.Write("config.json", std::as_bytes(std::span(data, size)));
  try {
    forerun::CheckSpec(forerun::ReadModelSpec(directory.path()));
  } catch (const forerun::CheckpointError&) {
  }
  return 0;
}
