// The packed product on the shapes of SmolLM2-135M and one of a larger model, by number of rows.
//
//   bench_matmul [--smoke] [--isa NAME] [--integers NAME] [--threads N] [--rounds N]
//                [--format NAME] [--shape NAME] [--megabytes N]
//
// --integers chooses among the kernels of integer formats that the machine has, --format and
// --shape run one instead of all.
//
// Each shape has enough copies of its matrix, --megabytes in all, to overflow the last-level cache,
// so every product reads memory as decoding does. Rounds over all row counts are interleaved with a
// plain read of as many bytes; the table has the median of the rounds. `ratio` is the time over
// that of one row.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/util/clock.h"
#include "cpp/util/read_bandwidth.h"
#include "cpp/util/simd/isa.h"
#include "cpp/util/thread_team.h"

namespace forerun {
namespace {

struct Settings {
  bool smoke = false;
  std::string isa, integers, format, shape;
  int threads = 0;
  double total_bytes = 192e6;
  int rounds = 7;
};

struct Shape {
  const char* name;
  int num_outputs;
  int num_inputs;
};

constexpr Shape kShapes[] = {{"qkv", 960, 576},   {"o", 576, 576},      {"gate_up", 3072, 576},
                             {"down", 576, 1536}, {"head", 49152, 576}, {"large", 8192, 2048}};
constexpr int kRows[] = {1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 32, 64, 512};

class ShapeBench {
 public:
  ShapeBench(Ops& ops, const Shape& shape, WeightFormat format, double total_bytes)
      : ops_(ops), shape_(shape) {
    std::vector<float> weight(static_cast<std::size_t>(shape.num_outputs) * shape.num_inputs);
    for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = 0.001f * ((i * 2654435761u) % 997);
    const TensorView view{weight.data(), DType::kFloat32, {shape.num_outputs, shape.num_inputs}};
    matrices_.push_back(ops.Pack({&view, 1}, format));
    const int copies = std::max(1, static_cast<int>(total_bytes / matrix_bytes()));
    while (num_matrices() < copies) matrices_.push_back(ops.Pack({&view, 1}, format));
    x_.assign(static_cast<std::size_t>(512) * shape.num_inputs, 0.5f);
    y_.resize(static_cast<std::size_t>(512) * shape.num_outputs);
  }

  // Seconds of one product, over `matrices` of the copies.
  double Time(int rows, int matrices) {
    const double begin = Now();
    for (int i = 0; i < matrices; ++i) {
      ops_.MatMul(ConstRows(x_.data(), rows, shape_.num_inputs), *matrices_[next_], nullptr, false,
                  Rows(y_.data(), rows, shape_.num_outputs));
      next_ = (next_ + 1) % matrices_.size();
    }
    return (Now() - begin) / matrices;
  }

  int num_matrices() const { return static_cast<int>(matrices_.size()); }
  double matrix_bytes() const { return static_cast<double>(matrices_[0]->num_bytes()); }
  double operations(int rows) const { return 2.0 * rows * shape_.num_outputs * shape_.num_inputs; }

 private:
  Ops& ops_;
  Shape shape_;
  std::vector<std::unique_ptr<PackedMatrix>> matrices_;
  std::vector<float> x_, y_;
  std::size_t next_ = 0;
};

void RunShape(Ops& ops, MemoryReader& reader, const Shape& shape, WeightFormat format,
              const Settings& settings) {
  ShapeBench product(ops, shape, format, settings.total_bytes);
  constexpr int kNumRows = sizeof(kRows) / sizeof(kRows[0]);
  std::vector<double> seconds[kNumRows], read;
  for (int round = 0; round < settings.rounds; ++round) {
    read.push_back(reader.SecondsPerByte());
    for (int i = 0; i < kNumRows; ++i) {
      if (settings.smoke && kRows[i] > 64) continue;
      // Many rows take long: fewer products do.
      const int matrices =
          std::clamp(product.num_matrices() * 8 / kRows[i], 1, product.num_matrices());
      seconds[i].push_back(product.Time(kRows[i], matrices));
    }
  }
  const double read_rate = 1e-9 / Median(read);
  std::printf("\n%s %s [%d, %d], %d matrices; read %.1f GB/s\n", Name(format), shape.name,
              shape.num_outputs, shape.num_inputs, product.num_matrices(), read_rate);
  std::printf("%6s %10s %8s %8s %9s %7s\n", "rows", "us", "GB/s", "of read", "GFLOP/s", "ratio");
  const double one_row = Median(seconds[0]);
  for (int i = 0; i < kNumRows; ++i) {
    if (seconds[i].empty()) continue;
    const double time = Median(seconds[i]);
    const double rate = product.matrix_bytes() / time * 1e-9;
    std::printf("%6d %10.1f %8.1f %7.0f%% %9.1f %7.2f\n", kRows[i], time * 1e6, rate,
                100 * rate / read_rate, product.operations(kRows[i]) / time * 1e-9, time / one_row);
  }
}

const IntegerKernels& FindIntegers(const Settings& settings) {
  if (settings.integers.empty()) return IntegerKernelsOf(FindIsa(settings.isa));
  for (const IntegerKernels* kernels : AvailableIntegerKernels()) {
    if (settings.integers == kernels->name) return *kernels;
  }
  std::fprintf(stderr, "no integer kernels named %s here\n", settings.integers.c_str());
  std::exit(2);
}

Settings ParseSettings(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const auto is = [&](const char* name) { return std::strcmp(argv[i], name) == 0; };
    if (is("--smoke")) {
      settings.smoke = true;
      settings.total_bytes = 4e6;
      settings.rounds = 1;
    } else if (is("--isa") && i + 1 < argc) {
      settings.isa = argv[++i];
    } else if (is("--integers") && i + 1 < argc) {
      settings.integers = argv[++i];
    } else if (is("--threads") && i + 1 < argc) {
      settings.threads = std::atoi(argv[++i]);
    } else if (is("--format") && i + 1 < argc) {
      settings.format = argv[++i];
    } else if (is("--rounds") && i + 1 < argc) {
      settings.rounds = std::atoi(argv[++i]);
    } else if (is("--shape") && i + 1 < argc) {
      settings.shape = argv[++i];
    } else if (is("--megabytes") && i + 1 < argc) {
      settings.total_bytes = 1e6 * std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr,
                   "usage: bench_matmul [--smoke] [--isa NAME] [--integers NAME] [--threads N] "
                   "[--rounds N] [--format NAME] [--shape NAME] [--megabytes N]\n");
      std::exit(2);
    }
  }
  return settings;
}

int Main(int argc, char** argv) {
  const Settings settings = ParseSettings(argc, argv);
  const Isa isa = FindIsa(settings.isa);
  const IntegerKernels& integers = FindIntegers(settings);
  ThreadTeam team(settings.threads);
  std::printf("isa %s, integers %s, %d threads\n", Name(isa), integers.name, team.num_threads());
  MemoryReader reader(team, static_cast<std::size_t>(settings.total_bytes));
  for (const Shape& shape : kShapes) {
    if (!settings.shape.empty() && settings.shape != shape.name) continue;
    for (WeightFormat format : kWeightFormats) {
      if (!TakesFloats(format)) continue;
      if (!settings.format.empty() && settings.format != Name(format)) continue;
      // An Ops keeps the memory of weights that are gone.
      CpuOps ops(team, Name(isa), CpuKernelsOf(isa), integers);
      RunShape(ops, reader, shape, format, settings);
    }
  }
  return 0;
}

}  // namespace
}  // namespace forerun

int main(int argc, char** argv) { return forerun::Main(argc, argv); }
