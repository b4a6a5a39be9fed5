// Quantized weights as GGUF files store them: rows of blocks, each some weights and their scales.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_GGUF_BLOCKS_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_GGUF_BLOCKS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "cpp/model/checkpoint/stored_integers.h"

namespace forerun {

struct BlockType {
  const char* name;  // GGUF's
  WeightFormat format;
  int num_weights;
  int num_bytes;
};

// Those that are read as they are.
std::span<const BlockType> BlockTypes();
// Null: no such type.
const BlockType* FindBlockType(const std::string& name);

// `rows` [outputs, inputs / num_weights] blocks.
std::unique_ptr<StoredIntegers> OpenBlocks(const BlockType& type, const std::byte* rows,
                                           int num_inputs);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_GGUF_BLOCKS_H_
