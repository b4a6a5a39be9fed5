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
struct IntegerKernels;

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

// Neighbouring outputs of a matrix that have one format, in tiles of their own.
struct MatrixPart {
  WeightFormat format;
  int output_begin = 0;
  int num_outputs = 0;
  int tile_begin = 0;  // counts over the matrix
  int num_tiles = 0;
  const std::byte* data = nullptr;
};

class CpuMatrix final : public PackedMatrix {
 public:
  // data [BytesOf(shapes, num_inputs)] must outlive the matrix.
  CpuMatrix(std::span<const PartShape> shapes, int num_inputs, const std::byte* data);
  static std::int64_t BytesOf(std::span<const PartShape> shapes, int num_inputs);

  std::int64_t num_bytes() const override;
  void AddBytes(WeightBytes& bytes) const override;
  std::span<const MatrixPart> parts() const { return parts_; }
  std::span<const std::byte> data() const {
    return {parts_.front().data, static_cast<std::size_t>(num_bytes())};
  }
  int num_tiles() const { return parts_.back().tile_begin + parts_.back().num_tiles; }

  // out[num_inputs] = scale * the weights of one output.
  void Unpack(int output, float scale, float* out) const;

 private:
  std::vector<MatrixPart> parts_;
};

// Sources of one format that follow each other are one part.
std::vector<PartShape> ShapesOf(std::span<const WeightSource> sources);

// Reads every source once; the kernels quantize. Throws InternalError for sources that do not
// stack.
std::unique_ptr<CpuMatrix> PackMatrix(std::span<const WeightSource> sources, ThreadTeam& team,
                                      const IntegerKernels& kernels, WeightArena& arena);

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_PACKED_MATRIX_H_
