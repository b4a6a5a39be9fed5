#include "cpp/ops/cpu/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <vector>

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

std::vector<SourceRow> FindRows(std::span<const TensorView> sources, int num_padded) {
  std::vector<SourceRow> rows;
  rows.reserve(num_padded);
  for (const TensorView& source : sources) {
    const std::size_t row_bytes = source.shape[1] * SizeOf(source.dtype);
    const auto* data = static_cast<const std::byte*>(source.data);
    for (std::int64_t i = 0; i < source.shape[0]; ++i) {
      rows.push_back({data + i * row_bytes, source.dtype});
    }
  }
  rows.resize(num_padded);
  return rows;
}

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
void PackTile(const SourceRow* rows, int num_inputs, std::byte* tile) {
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

// Quantizes.
void PackIntegerTile(const SourceRow* rows, int num_inputs, IntegerFormat format, std::byte* tile) {
  float weights[kWeightGroup];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (rows[lane].data == nullptr) continue;
    for (int begin = 0; begin < num_inputs; begin += kWeightGroup) {
      const int count = std::min(kWeightGroup, num_inputs - begin);
      Convert(rows[lane], begin, count, weights);
      PutGroup(QuantizeWeights(weights, count, format), format, begin / kWeightGroup, lane, tile);
    }
  }
}

// Copies. False where a value does not fit.
bool PackIntegerRow(const IntegerView& source, int row, int lane, std::byte* tile) {
  const IntegerFormat format = IntegersOf(source.format);
  const std::int8_t* values = source.values + std::int64_t{row} * source.num_inputs;
  const std::int64_t first_scale = std::int64_t{row} * source.num_groups();
  bool all_fit = true;
  for (int group = 0; group < source.num_groups(); ++group) {
    const int begin = group * kWeightGroup;
    const int count = std::min(kWeightGroup, source.num_inputs - begin);
    WeightGroup packed;
    for (int i = 0; i < count; ++i) {
      const int stored = values[begin + i] + format.zero;
      all_fit = all_fit && stored >= 0 && stored < 1 << format.bits;
      packed.stored[i] = static_cast<std::uint8_t>(stored);
    }
    packed.scale = source.scales[first_scale + group];
    if (format.has_minimum) packed.minimum = source.minima[first_scale + group];
    PutGroup(packed, format, group, lane, tile);
  }
  return all_fit;
}

void CheckIntegers(std::span<const IntegerView> sources) {
  FORERUN_CHECK(!sources.empty(), "no matrix to pack");
  for (const IntegerView& source : sources) {
    const IntegerFormat format = IntegersOf(source.format);
    FORERUN_CHECK(HasIntegers(source.format), std::string("no integers in ") + Name(source.format));
    FORERUN_CHECK(source.format == sources[0].format, "stacked weights differ in format");
    FORERUN_CHECK(source.num_outputs > 0 && source.num_inputs > 0, "an empty weight");
    FORERUN_CHECK(source.num_inputs == sources[0].num_inputs, "stacked weights differ in inputs");
    FORERUN_CHECK(source.values != nullptr && source.scales != nullptr, "a weight without data");
    FORERUN_CHECK((source.minima != nullptr) == format.has_minimum,
                  std::string("minima and ") + Name(source.format));
  }
}

void CheckSources(std::span<const TensorView> sources) {
  FORERUN_CHECK(!sources.empty(), "no matrix to pack");
  for (const TensorView& source : sources) {
    FORERUN_CHECK(source.shape.size() == 2, "a weight must have two dimensions");
    FORERUN_CHECK(source.shape[0] > 0 && source.shape[1] > 0, "an empty weight");
    FORERUN_CHECK(source.shape[1] == sources[0].shape[1], "stacked weights differ in inputs");
    FORERUN_CHECK(source.data != nullptr, "a weight without data");
    FORERUN_CHECK(source.dtype == DType::kFloat32 || source.dtype == DType::kBFloat16 ||
                      source.dtype == DType::kFloat16,
                  std::string("cannot pack from ") + Name(source.dtype));
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

CpuMatrix::CpuMatrix(int num_outputs, int num_inputs, WeightFormat format, WeightArena& arena)
    : PackedMatrix(num_outputs, num_inputs), format_(format), data_(arena.Allocate(num_bytes())) {}

void CpuMatrix::Unpack(int output, float scale, float* out) const {
  const int lane = output % kLanes;
  if (HasIntegers(format_)) {
    const IntegerFormat integers = IntegersOf(format_);
    for (int begin = 0; begin < num_inputs(); begin += kWeightGroup) {
      const WeightGroup group =
          GetGroup(tile(output / kLanes), integers, begin / kWeightGroup, lane);
      const int count = std::min(kWeightGroup, num_inputs() - begin);
      Dequantize(group, integers, scale, count, out + begin);
    }
    return;
  }
  if (format_ == WeightFormat::kBFloat16) {
    const auto* pairs = reinterpret_cast<const std::uint16_t*>(tile(output / kLanes)) + 2 * lane;
    for (int i = 0; i < num_inputs(); ++i) {
      out[i] = scale * BFloat16ToFloat(pairs[(i / 2) * 2 * kLanes + i % 2]);
    }
  } else {
    const auto* values = reinterpret_cast<const float*>(tile(output / kLanes)) + lane;
    for (int i = 0; i < num_inputs(); ++i) out[i] = scale * values[i * kLanes];
  }
}

std::unique_ptr<CpuMatrix> PackMatrix(std::span<const TensorView> sources, WeightFormat format,
                                      ThreadTeam& team, WeightArena& arena) {
  CheckSources(sources);
  std::int64_t num_outputs = 0;
  for (const TensorView& source : sources) num_outputs += source.shape[0];
  const int num_inputs = static_cast<int>(sources[0].shape[1]);
  auto matrix =
      std::make_unique<CpuMatrix>(static_cast<int>(num_outputs), num_inputs, format, arena);
  const std::vector<SourceRow> rows = FindRows(sources, matrix->num_tiles() * kLanes);
  team.Run(matrix->num_tiles(), [&](int tile) {
    const SourceRow* first = rows.data() + tile * kLanes;
    if (HasIntegers(format)) {
      std::memset(matrix->tile(tile), 0, matrix->tile_bytes());
      PackIntegerTile(first, num_inputs, IntegersOf(format), matrix->tile(tile));
    } else if (format == WeightFormat::kBFloat16) {
      PackTile<std::uint16_t, std::uint32_t>(first, num_inputs, matrix->tile(tile));
    } else {
      PackTile<float, float>(first, num_inputs, matrix->tile(tile));
    }
  });
  return matrix;
}

std::unique_ptr<CpuMatrix> PackIntegerMatrix(std::span<const IntegerView> sources, ThreadTeam& team,
                                             WeightArena& arena) {
  CheckIntegers(sources);
  struct Row {
    const IntegerView* source;
    int row;
  };
  std::vector<Row> rows;
  for (const IntegerView& source : sources) {
    for (int row = 0; row < source.num_outputs; ++row) rows.push_back({&source, row});
  }
  const int num_outputs = static_cast<int>(rows.size());
  auto matrix =
      std::make_unique<CpuMatrix>(num_outputs, sources[0].num_inputs, sources[0].format, arena);
  std::atomic<bool> all_fit = true;
  team.Run(matrix->num_tiles(), [&](int tile) {
    std::memset(matrix->tile(tile), 0, matrix->tile_bytes());
    const int count = std::min(kLanes, num_outputs - tile * kLanes);
    for (int lane = 0; lane < count; ++lane) {
      const auto& [source, row] = rows[tile * kLanes + lane];
      if (!PackIntegerRow(*source, row, lane, matrix->tile(tile))) all_fit = false;
    }
  });
  FORERUN_CHECK(all_fit, std::string("a value that ") + Name(sources[0].format) + " cannot hold");
  return matrix;
}

}  // namespace forerun
