#include "cuda/ops/cuda_matrix.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <string>
#include <variant>

#include "cpp/util/check.h"
#include "cuda/check_cuda.h"
#include "cuda/use_gpu.h"

namespace forerun::cuda {
namespace {

int NumInputs(const WeightSource& source) {
  if (const auto* floats = std::get_if<TensorView>(&source.weights)) {
    return static_cast<int>(floats->shape.at(1));
  }
  return std::get<IntegerView>(source.weights).num_inputs;
}

int NumOutputs(const WeightSource& source) {
  if (const auto* floats = std::get_if<TensorView>(&source.weights)) {
    return static_cast<int>(floats->shape.at(0));
  }
  return std::get<IntegerView>(source.weights).num_outputs;
}

void CheckIntegers(const IntegerView& view) {
  const IntegerFormat format = IntegersOf(view.format);
  FORERUN_CHECK(format.block() == 0 || view.num_inputs % format.block() == 0,
                "a part of a block of inputs");
  const std::span values(view.values, static_cast<std::size_t>(view.num_outputs) * view.num_inputs);
  const int most = (1 << format.bits) - 1;
  bool all_fit = std::ranges::all_of(
      values, [&](int value) { return value + format.zero >= 0 && value + format.zero <= most; });
  if (format.scales == ScaleKind::kZeroPoint) {
    const std::span scales(view.wide_scales,
                           static_cast<std::size_t>(view.num_outputs) * view.num_scales());
    all_fit = all_fit && std::ranges::all_of(scales, [](float scale) {
                return (std::bit_cast<std::uint32_t>(scale) & 0xffu) == 0;
              });
  }
  FORERUN_CHECK(all_fit, "a value that its format cannot hold");
}

void CheckSources(std::span<const WeightSource> sources) {
  FORERUN_CHECK(!sources.empty(), "no matrix to pack");
  for (const WeightSource& source : sources) {
    const auto* floats = std::get_if<TensorView>(&source.weights);
    FORERUN_CHECK(floats == nullptr || floats->shape.size() == 2, "weights: [outputs, inputs]");
    FORERUN_CHECK(NumInputs(source) == NumInputs(sources[0]), "stacked weights differ in inputs");
    if (const auto* integers = std::get_if<IntegerView>(&source.weights)) CheckIntegers(*integers);
  }
}

int CheckedOutputs(std::span<const WeightSource> sources) {
  CheckSources(sources);
  int sum = 0;
  for (const WeightSource& source : sources) sum += NumOutputs(source);
  return sum;
}

// Packs sources on a stream. What it uploads lives until Wait.
class Packer {
 public:
  Packer(Memory& memory, cudaStream_t stream) : memory_(memory), stream_(stream) {}

  void Pack(const WeightSource& source, void* tiles) {
    const auto* floats = std::get_if<TensorView>(&source.weights);
    if (floats == nullptr) {
      PackIntegers(std::get<IntegerView>(source.weights), tiles);
    } else {
      PackFloats(*floats, source.format, tiles);
    }
  }

 private:
  template <typename T>
  const T* Upload(const T* values, std::int64_t count) {
    if (values == nullptr) return nullptr;
    const std::size_t num_bytes = sizeof(T) * static_cast<std::size_t>(count);
    AlignedBuffer& buffer = uploads_.emplace_back(memory_, num_bytes);
    memory_.Upload(buffer.as<void>(), values, num_bytes);
    return buffer.as<T>();
  }

  void PackIntegers(IntegerView view, void* tiles) {
    const std::int64_t num_outputs = view.num_outputs;
    const std::int64_t num_scales = num_outputs * view.num_scales();
    const std::int64_t num_groups = num_outputs * view.num_groups();
    view.values = Upload(view.values, num_outputs * view.num_inputs);
    view.scales = Upload(view.scales, num_scales);
    view.minima = Upload(view.minima, num_scales);
    view.sub_scales = Upload(view.sub_scales, num_groups);
    view.sub_minima = Upload(view.sub_minima, num_groups);
    view.wide_scales = Upload(view.wide_scales, num_scales);
    view.zeros = Upload(view.zeros, num_scales);
    CheckCuda(PackIntegerTiles(view, tiles, stream_), "packed integers");
  }

  void PackFloats(const TensorView& floats, WeightFormat format, void* tiles) {
    const auto* bytes = static_cast<const std::byte*>(floats.data);
    const auto num_bytes = static_cast<std::int64_t>(floats.num_elements() * SizeOf(floats.dtype));
    const MatrixSource rows = {Upload(bytes, num_bytes), floats.dtype,
                               static_cast<int>(floats.shape[0]),
                               static_cast<int>(floats.shape[1])};
    if (!HasIntegers(format)) {
      CheckCuda(PackTiles(rows, format, tiles, stream_), "packed weights");
      return;
    }
    IntegerView view = {
        .format = format, .num_outputs = rows.num_outputs, .num_inputs = rows.num_inputs};
    const AlignedBuffer values(memory_, floats.num_elements());
    const AlignedBuffer scales(memory_,
                               sizeof(std::uint16_t) * view.num_outputs * view.num_scales());
    CheckCuda(
        QuantizeRows(rows, format, {values.as<std::int8_t>(), scales.as<std::uint16_t>()}, stream_),
        "quantized weights");
    view.values = values.as<std::int8_t>();
    view.scales = scales.as<std::uint16_t>();
    CheckCuda(PackIntegerTiles(view, tiles, stream_), "packed integers");
  }

  Memory& memory_;
  cudaStream_t stream_;
  std::vector<AlignedBuffer> uploads_;
};

}  // namespace

CudaMatrix::CudaMatrix(std::span<const WeightSource> sources, Memory& memory, cudaStream_t stream)
    : PackedMatrix(CheckedOutputs(sources), NumInputs(sources[0])) {
  int first_output = 0;
  for (const WeightSource& source : sources) {
    const auto* floats = std::get_if<TensorView>(&source.weights);
    const DType stored =
        StoredType(source.format, floats != nullptr ? floats->dtype : DType::kFloat32);
    if (stretches_.empty() || stretches_.back().format != source.format ||
        stretches_.back().stored != stored || stretches_.back().num_parts == kMaxParts) {
      stretches_.push_back({.format = source.format,
                            .integers = IntegersOf(source.format),
                            .stored = stored,
                            .num_inputs = num_inputs()});
    }
    Matrix& stretch = stretches_.back();
    const int count = NumOutputs(source);
    stretch.parts[stretch.num_parts++] = {stretch.num_tiles, first_output, count};
    stretch.num_tiles += (count + kTileOutputs - 1) / kTileOutputs;
    first_output += count;
  }
  const UseGpu use;
  std::size_t next = 0;
  for (Matrix& stretch : stretches_) {
    const std::int64_t tile_bytes = TileBytes(stretch);
    auto* tiles = tiles_.emplace_back(memory, stretch.num_tiles * tile_bytes).as<std::byte>();
    stretch.tiles = tiles;
    for (int part = 0; part < stretch.num_parts; ++part) {
      Packer(memory, stream)
          .Pack(sources[next++], tiles + stretch.parts[part].first_tile * tile_bytes);
    }
  }
}

std::int64_t CudaMatrix::num_bytes() const {
  std::int64_t sum = 0;
  for (const AlignedBuffer& tiles : tiles_) sum += static_cast<std::int64_t>(tiles.num_bytes());
  return sum;
}

void CudaMatrix::AddBytes(WeightBytes& bytes) const {
  for (std::size_t i = 0; i < stretches_.size(); ++i) {
    bytes[stretches_[i].format] += static_cast<std::int64_t>(tiles_[i].num_bytes());
  }
}

const CudaMatrix& MatrixOf(const PackedMatrix& weight) {
  const auto* matrix = dynamic_cast<const CudaMatrix*>(&weight);
  FORERUN_CHECK(matrix != nullptr, "packed by another Ops");
  return *matrix;
}

}  // namespace forerun::cuda
