// How deeply a JSON text is nested, told before it is parsed: parsers, and what walks over the
// values that they build, recurse.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_JSON_DEPTH_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_JSON_DEPTH_H_

#include <cstddef>
#include <span>

namespace forerun {

// As in the parser that safetensors and tokenizers use; real files have fewer than 20 levels.
inline constexpr int kMaxJsonDepth = 128;

// The most objects and arrays that are open at once. For a text that is not JSON, at least as many
// as a parser meets before the error.
std::size_t JsonDepth(std::span<const std::byte> text);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_JSON_DEPTH_H_
