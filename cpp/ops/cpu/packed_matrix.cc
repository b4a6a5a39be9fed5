#include "cpp/ops/cpu/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <vector>

#include "cpp/ops/cpu/integer_kernels.h"
#include "cpp/ops/cpu/weight_groups.h"
#include "cpp/util/check.h"
#include "cpp/util/thread_team.h"

namespace forerun {
namespace {

// One output's weights in its source: unaligned, since a checkpoint promises nothing.
struct SourceRow {
  const std::byte* data = nullptr;  // null: padding, all zeros
  DType dtype = DType::kFloat32;
};

template <typename T>
T ReadAs(const std::byte* data, int i) {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof(T));
  return value;
}

// Values [begin, begin + count) of a row, as bfloat16 or float32.
void Convert(const SourceRow& row, int begin, int count, std::uint16_t* out) {
  if (row.data == nullptr) {
    std::fill_n(out, count, std::uint16_t{0});
  } else if (row.dtype == DType::kBFloat16) {
    std::memcpy(out, row.data + begin * 2, count * 2);
  } else if (row.dtype == DType::kFloat32) {
    for (int i = 0; i < count; ++i) out[i] = FloatToBFloat16(ReadAs<float>(row.data, begin + i));
  } else {
    for (int i = 0; i < count; ++i) {
      out[i] = FloatToBFloat16(Float16ToFloat(ReadAs<std::uint16_t>(row.data, begin + i)));
    }
  }
}

void Convert(const SourceRow& row, int begin, int count, float* out) {
  if (row.data == nullptr) {
    std::fill_n(out, count, 0.0f);
  } else if (row.dtype == DType::kFloat32) {
    std::memcpy(out, row.data + begin * 4, count * 4);
  } else if (row.dtype == DType::kBFloat16) {
    for (int i = 0; i < count; ++i) {
      out[i] = BFloat16ToFloat(ReadAs<std::uint16_t>(row.data, begin + i));
    }
  } else {
    for (int i = 0; i < count; ++i) {
      out[i] = Float16ToFloat(ReadAs<std::uint16_t>(row.data, begin + i));
    }
  }
}

// A panel of inputs at a time, small enough to turn in the first-level cache. Element is what moves
// as one: a pair of bfloat16, or a float32.
template <typename T, typename Element>
void TransposeTile(const SourceRow* rows, int num_inputs, std::byte* tile) {
  constexpr int kPanel = 128;
  constexpr int kPerElement = sizeof(Element) / sizeof(T);
  alignas(64) T panel[kLanes][kPanel];
  auto* out = reinterpret_cast<Element*>(tile);
  for (int begin = 0; begin < num_inputs; begin += kPanel) {
    const int count = std::min(kPanel, num_inputs - begin);
    const int padded = (count + 1) / 2 * 2;
    for (int lane = 0; lane < kLanes; ++lane) {
      Convert(rows[lane], begin, count, panel[lane]);
      if (padded != count) panel[lane][count] = 0;
    }
    for (int i = 0; i < padded; i += kPerElement) {
      for (int lane = 0; lane < kLanes; ++lane) {
        std::memcpy(out++, &panel[lane][i], sizeof(Element));
      }
    }
  }
}

// A group of weights, input after input: what QuantizeGroup takes. Padding counts as 0.
void GatherGroup(const SourceRow* rows, int begin, int count, float* weights) {
  float row[kWeightGroup] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    Convert(rows[lane], begin, count, row);
    for (int i = 0; i < kWeightGroup; ++i) weights[i * kLanes + lane] = row[i];
  }
}

void QuantizeTile(const SourceRow* rows, int num_inputs, WeightFormat format,
                  const IntegerKernels& kernels, std::byte* tile) {
  alignas(64) float weights[kWeightGroup * kLanes];
  for (int begin = 0; begin < num_inputs; begin += kWeightGroup) {
    const int count = std::min(kWeightGroup, num_inputs - begin);
    GatherGroup(rows, begin, count, weights);
    QuantizeGroup(weights, count, format, begin / kWeightGroup, kernels, tile);
  }
}

// The rows of a matrix in its tiles' order: a source and a row of it, or null where a part's last
// tile has none.
struct TileLane {
  const WeightSource* source = nullptr;
  int row = 0;
};

int NumOutputs(const WeightSource& source) {
  if (const auto* floats = std::get_if<TensorView>(&source.weights)) {
    return static_cast<int>(floats->shape[0]);
  }
  return std::get<IntegerView>(source.weights).num_outputs;
}

int NumInputs(const WeightSource& source) {
  if (const auto* floats = std::get_if<TensorView>(&source.weights)) {
    return static_cast<int>(floats->shape[1]);
  }
  return std::get<IntegerView>(source.weights).num_inputs;
}

std::vector<TileLane> FindLanes(std::span<const WeightSource> sources, const CpuMatrix& matrix) {
  std::vector<TileLane> lanes(static_cast<std::size_t>(matrix.num_tiles()) * kLanes);
  auto part = matrix.parts().begin();
  int output = 0;
  for (const WeightSource& source : sources) {
    for (int row = 0; row < NumOutputs(source); ++row, ++output) {
      if (output == part->output_begin + part->num_outputs) ++part;
      lanes[part->tile_begin * kLanes + output - part->output_begin] = {&source, row};
    }
  }
  return lanes;
}

SourceRow RowOf(const TileLane& lane) {
  const auto* floats =
      lane.source == nullptr ? nullptr : std::get_if<TensorView>(&lane.source->weights);
  if (floats == nullptr) return {};
  const std::int64_t row_bytes = floats->shape[1] * static_cast<int>(SizeOf(floats->dtype));
  return {static_cast<const std::byte*>(floats->data) + lane.row * row_bytes, floats->dtype};
}

// False where a value does not fit.
bool PackTile(const TileLane* lanes, const MatrixPart& part, int num_inputs,
              const IntegerKernels& kernels, std::byte* tile) {
  SourceRow rows[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) rows[lane] = RowOf(lanes[lane]);
  if (part.format == WeightFormat::kBFloat16) {
    TransposeTile<std::uint16_t, std::uint32_t>(rows, num_inputs, tile);
    return true;
  }
  if (part.format == WeightFormat::kFloat32) {
    TransposeTile<float, float>(rows, num_inputs, tile);
    return true;
  }
  std::memset(tile, 0, TileBytes(part.format, num_inputs));
  const bool has_floats =
      std::any_of(rows, rows + kLanes, [](const SourceRow& row) { return row.data != nullptr; });
  if (has_floats) QuantizeTile(rows, num_inputs, part.format, kernels, tile);
  bool all_fit = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes[lane].source == nullptr) continue;
    const auto* integers = std::get_if<IntegerView>(&lanes[lane].source->weights);
    if (integers != nullptr) all_fit = PutRow(*integers, lanes[lane].row, lane, tile) && all_fit;
  }
  return all_fit;
}

void CheckFloats(const TensorView& floats, WeightFormat format) {
  FORERUN_CHECK(floats.shape.size() == 2, "a weight must have two dimensions");
  FORERUN_CHECK(floats.shape[0] > 0 && floats.shape[1] > 0, "an empty weight");
  FORERUN_CHECK(floats.data != nullptr, "a weight without data");
  FORERUN_CHECK(floats.dtype == DType::kFloat32 || floats.dtype == DType::kBFloat16 ||
                    floats.dtype == DType::kFloat16,
                std::string("cannot pack from ") + Name(floats.dtype));
  FORERUN_CHECK(TakesFloats(format), std::string("cannot quantize to ") + Name(format));
}

void CheckIntegers(const IntegerView& integers) {
  const std::string name = Name(integers.format);
  FORERUN_CHECK(HasIntegers(integers.format), "no integers in " + name);
  FORERUN_CHECK(integers.num_outputs > 0 && integers.num_inputs > 0, "an empty weight");
  const IntegerFormat format = IntegersOf(integers.format);
  FORERUN_CHECK(format.block() == 0 || integers.num_inputs % format.block() == 0,
                "part of a block of " + name);
  const ScaleKind kind = format.scales;
  const bool is_super = kind == ScaleKind::kSuper, is_wide = kind == ScaleKind::kZeroPoint;
  FORERUN_CHECK(integers.values != nullptr, "a weight without data");
  FORERUN_CHECK((integers.scales != nullptr) == !is_wide, "scales and " + name);
  FORERUN_CHECK((integers.minima != nullptr) == (is_super || kind == ScaleKind::kMinimum),
                "minima and " + name);
  FORERUN_CHECK((integers.sub_scales != nullptr) == (is_super || kind == ScaleKind::kSubScale),
                "sub-scales and " + name);
  FORERUN_CHECK((integers.sub_minima != nullptr) == is_super, "sub-minima and " + name);
  FORERUN_CHECK(
      (integers.wide_scales != nullptr) == is_wide && (integers.zeros != nullptr) == is_wide,
      "zero points and " + name);
}

void CheckSources(std::span<const WeightSource> sources) {
  FORERUN_CHECK(!sources.empty(), "no matrix to pack");
  for (const WeightSource& source : sources) {
    if (const auto* floats = std::get_if<TensorView>(&source.weights)) {
      CheckFloats(*floats, source.format);
    } else {
      CheckIntegers(std::get<IntegerView>(source.weights));
    }
    FORERUN_CHECK(NumInputs(source) == NumInputs(sources[0]), "stacked weights differ in inputs");
  }
}

}  // namespace

std::byte* WeightArena::Allocate(std::int64_t num_bytes) {
  constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
  // Pages that no weight touches stay unbacked: what a chunk has left over costs nothing.
  constexpr std::int64_t kChunk = 32 * kHugePage;
  const std::int64_t rounded = (num_bytes + 63) / 64 * 64;
  if (rounded > num_free_) {
    const std::int64_t usable = std::max(rounded, kChunk);
    AlignedBuffer& chunk = chunks_.emplace_back(HostMemory(), usable + kHugePage);
    void* begin = chunk.as<std::byte>();
    std::size_t size = chunk.num_bytes();
    free_ = static_cast<std::byte*>(std::align(kHugePage, usable, begin, size));
    num_free_ = usable;
#if defined(MADV_HUGEPAGE)
    // Best effort: where it fails, the pages are small.
    static_cast<void>(madvise(free_, usable, MADV_HUGEPAGE));
#endif
  }
  std::byte* result = free_;
  free_ += rounded;
  num_free_ -= rounded;
  return result;
}

namespace {

int NumOutputs(std::span<const PartShape> shapes) {
  int num_outputs = 0;
  for (const PartShape& shape : shapes) num_outputs += shape.num_outputs;
  return num_outputs;
}

int NumTiles(int num_outputs) { return (num_outputs + kLanes - 1) / kLanes; }

}  // namespace

CpuMatrix::CpuMatrix(std::span<const PartShape> shapes, int num_inputs, const std::byte* data)
    : PackedMatrix(NumOutputs(shapes), num_inputs) {
  int output = 0, tile = 0;
  for (const PartShape& shape : shapes) {
    const int num_tiles = NumTiles(shape.num_outputs);
    parts_.push_back({shape.format, output, shape.num_outputs, tile, num_tiles, data});
    output += shape.num_outputs;
    tile += num_tiles;
    data += TileBytes(shape.format, num_inputs) * num_tiles;
  }
}

std::int64_t CpuMatrix::BytesOf(std::span<const PartShape> shapes, int num_inputs) {
  std::int64_t num_bytes = 0;
  for (const PartShape& shape : shapes) {
    num_bytes += TileBytes(shape.format, num_inputs) * NumTiles(shape.num_outputs);
  }
  return num_bytes;
}

void CpuMatrix::AddBytes(WeightBytes& bytes) const {
  for (const MatrixPart& part : parts_) {
    bytes[part.format] += TileBytes(part.format, num_inputs()) * part.num_tiles;
  }
}

std::int64_t CpuMatrix::num_bytes() const {
  WeightBytes bytes;
  AddBytes(bytes);
  std::int64_t sum = 0;
  for (const auto& [format, count] : bytes) sum += count;
  return sum;
}

void CpuMatrix::Unpack(int output, float scale, float* out) const {
  const MatrixPart* part = parts_.data();
  while (output >= part->output_begin + part->num_outputs) ++part;
  output -= part->output_begin;
  const std::byte* tile = part->data + output / kLanes * TileBytes(part->format, num_inputs());
  const int lane = output % kLanes;
  if (HasIntegers(part->format)) {
    const IntegerFormat integers = IntegersOf(part->format);
    for (int begin = 0; begin < num_inputs(); begin += integers.group) {
      const std::size_t count = std::min(integers.group, num_inputs() - begin);
      Dequantize(tile, integers, begin / integers.group, lane, scale, {out + begin, count});
    }
    return;
  }
  if (part->format == WeightFormat::kBFloat16) {
    const auto* pairs = reinterpret_cast<const std::uint16_t*>(tile) + 2 * lane;
    for (int i = 0; i < num_inputs(); ++i) {
      out[i] = scale * BFloat16ToFloat(pairs[(i / 2) * 2 * kLanes + i % 2]);
    }
  } else {
    const auto* values = reinterpret_cast<const float*>(tile) + lane;
    for (int i = 0; i < num_inputs(); ++i) out[i] = scale * values[i * kLanes];
  }
}

std::vector<PartShape> ShapesOf(std::span<const WeightSource> sources) {
  std::vector<PartShape> shapes;
  for (const WeightSource& source : sources) {
    AddPart({source.format, NumOutputs(source)}, shapes);
  }
  return shapes;
}

std::unique_ptr<CpuMatrix> PackMatrix(std::span<const WeightSource> sources, ThreadTeam& team,
                                      const IntegerKernels& kernels, WeightArena& arena) {
  CheckSources(sources);
  const int num_inputs = NumInputs(sources[0]);
  const std::vector<PartShape> shapes = ShapesOf(sources);
  std::byte* const packed = arena.Allocate(CpuMatrix::BytesOf(shapes, num_inputs));
  auto matrix = std::make_unique<CpuMatrix>(shapes, num_inputs, packed);
  const std::vector<TileLane> lanes = FindLanes(sources, *matrix);
  std::atomic<bool> all_fit = true;
  team.Run(matrix->num_tiles(), [&](int tile) {
    const MatrixPart* part = matrix->parts().data();
    while (tile >= part->tile_begin + part->num_tiles) ++part;
    std::byte* const out = packed + (part->data - packed) +
                           (tile - part->tile_begin) * TileBytes(part->format, num_inputs);
    if (!PackTile(lanes.data() + tile * kLanes, *part, num_inputs, kernels, out)) all_fit = false;
  });
  FORERUN_CHECK(all_fit, "a value that its format cannot hold");
  return matrix;
}

}  // namespace forerun
