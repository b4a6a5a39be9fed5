// Tensors of a Hugging Face model directory, memory-mapped.
//
// FindWeightFiles tells which files of the directory count. All headers are checked when the
// checkpoint is opened: nothing a file claims is believed before it is compared with the file's
// size. Anything wrong throws CheckpointError that names file and tensor.
#ifndef FORERUN_CPP_MODEL_CHECKPOINT_SAFETENSORS_H_
#define FORERUN_CPP_MODEL_CHECKPOINT_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpp/model/checkpoint/gguf_blocks.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

// Where a file keeps one tensor: bytes [begin, end) from its start. One whose bytes are blocks of
// GGUF's is uint8 in the file's header, [rows, bytes of a row]; here, its shape is that of its
// weights.
struct SafetensorsEntry {
  DType dtype = DType::kFloat32;
  const BlockType* blocks = nullptr;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};
using SafetensorsIndex = std::map<std::string, SafetensorsEntry>;

// Reads the header of a whole safetensors file in memory. `label` names the file in errors. The
// tensors fill the rest of the file without holes or overlaps, as the format demands. Its metadata
// names the blocks that a tensor consists of under kBlocksKey and the tensor's name.
inline constexpr char kBlocksKey[] = "gguf:";
SafetensorsIndex ParseSafetensors(std::span<const std::byte> file, const std::string& label);

struct WeightFiles;

// Not thread-safe.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& directory);
  ~Checkpoint();

  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  const std::string& directory() const { return directory_; }
  // Sorted.
  const std::vector<std::string>& names() const { return names_; }
  bool Contains(const std::string& name) const { return tensors_.count(name) != 0; }
  // REQUIRES: Contains(name).
  const std::vector<std::int64_t>& ShapeOf(const std::string& name) const {
    return tensors_.at(name).entry.shape;
  }

  // As stored. REQUIRES: Contains(name).
  DType DTypeOf(const std::string& name) const { return tensors_.at(name).entry.dtype; }

  // Of the tensor's weights; null: it has no blocks. REQUIRES: Contains(name).
  const BlockType* BlocksOf(const std::string& name) const {
    return tensors_.at(name).entry.blocks;
  }

  // As stored, blocks as uint8 [rows, bytes of a row]. Aligned to its element size; valid until the
  // checkpoint dies or drops it. Throws for a name that is not there.
  TensorView Get(const std::string& name);

  // Lets the kernel take back the memory that holds a tensor's mapped pages. A later Get reads the
  // file again.
  void Drop(const std::string& name);

 private:
  class MappedFile;
  struct Tensor {
    const MappedFile* file = nullptr;
    SafetensorsEntry entry;
    AlignedBuffer aligned;  // a copy, for tensors that the file does not align
  };

  const MappedFile& Map(const std::string& file_name);
  void AddFile(const std::string& file_name, const WeightFiles& files);
  Tensor& Find(const std::string& name);

  // Constant after construction, but for Tensor::aligned.
  std::string directory_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, Tensor> tensors_;
  std::vector<std::string> names_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_CHECKPOINT_SAFETENSORS_H_
