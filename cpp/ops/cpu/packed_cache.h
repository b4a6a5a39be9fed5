// The matrices that one load of a model packs: taken from a file where an earlier load wrote them.
#ifndef FORERUN_CPP_OPS_CPU_PACKED_CACHE_H_
#define FORERUN_CPP_OPS_CPU_PACKED_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpp/ops/cpu/packed_file.h"
#include "cpp/ops/cpu/packed_matrix.h"

namespace forerun {

// The key names all that the bytes depend on but the matrices' order and shapes, which the file
// holds: where a load asks for others, it packs them, and the file is written anew. The team must
// outlive it.
class PackedCache {
 public:
  // The file of this path and key; null: there is none. It must outlive the matrices.
  PackedCache(std::string path, std::string key, const PackedFile* file, ThreadTeam& team);

  // The next matrix of the file, if it has this shape; else null.
  std::unique_ptr<CpuMatrix> Restore(std::span<const PartShape> shapes, int num_inputs);
  // A matrix that was packed because Restore returned null.
  void Add(const CpuMatrix& matrix);

  // Whether every matrix was in the file.
  bool is_restored() const { return num_packed_ == 0; }
  // Of all matrices.
  std::int64_t num_bytes() const;
  // Writes the file, if any matrix was packed. Returns what went wrong; empty: nothing.
  std::string Finish();

 private:
  void Record(const CpuMatrix& matrix);

  // Constant after construction.
  const std::string path_, key_;
  const PackedFile* const file_;
  ThreadTeam& team_;

  bool is_usable_ = false;  // for the next matrix
  // Of the file, what was restored.
  std::size_t next_word_ = 0;
  std::int64_t next_byte_ = 0;
  // Of this load.
  int num_packed_ = 0;
  ShapeWords shapes_;
  std::vector<std::span<const std::byte>> data_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_PACKED_CACHE_H_
