// Weights in the layout that the products read; see MatMulTask.
#ifndef FORERUN_CPP_OPS_CPU_PACKED_MATRIX_H_
#define FORERUN_CPP_OPS_CPU_PACKED_MATRIX_H_

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "cpp/ops/cpu/weight_tile.h"
#include "cpp/ops/ops.h"
#include "cpp/tensor/tensor.h"

namespace forerun {

class ThreadTeam;

// Memory for weights, in huge pages where the system has them: products that stream them are a
// tenth faster. Given back all at once, when the arena goes.
class WeightArena {
 public:
  std::byte* Allocate(std::int64_t num_bytes);  // aligned to 64 bytes, uninitialised

 private:
  std::vector<AlignedBuffer> chunks_;
  std::byte* free_ = nullptr;  // in the last chunk
  std::int64_t num_free_ = 0;
};

class CpuMatrix final : public PackedMatrix {
 public:
  // The arena must outlive the matrix.
  CpuMatrix(int num_outputs, int num_inputs, WeightFormat format, WeightArena& arena);

  std::int64_t num_bytes() const override { return tile_bytes() * num_tiles(); }
  void AddBytes(WeightBytes& bytes) const override { bytes[format_] += num_bytes(); }
  WeightFormat format() const { return format_; }
  int num_tiles() const { return (num_outputs() + 15) / 16; }
  std::int64_t tile_bytes() const { return TileBytes(format_, num_inputs()); }
  const std::byte* tile(int index) const { return data_ + index * tile_bytes(); }
  std::byte* tile(int index) { return data_ + index * tile_bytes(); }

  // out[num_inputs] = scale * the weights of one output.
  void Unpack(int output, float scale, float* out) const;

 private:
  WeightFormat format_;
  std::byte* data_;
};

// Reads every source once. Throws InternalError for sources that do not stack.
std::unique_ptr<CpuMatrix> PackMatrix(std::span<const TensorView> sources, WeightFormat format,
                                      ThreadTeam& team, WeightArena& arena);

std::unique_ptr<CpuMatrix> PackIntegerMatrix(std::span<const IntegerView> sources, ThreadTeam& team,
                                             WeightArena& arena);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_PACKED_MATRIX_H_
