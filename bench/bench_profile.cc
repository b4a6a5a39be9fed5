// Where the time of a forward pass goes.
//
//   bench_profile MODEL_DIRECTORY [--smoke] [--threads N] [--rounds N] [--dtype NAME]
//                 [--quantization NAME] [--head NAME] [--max-context N]
//
// For passes of 1, 5 and 16 rows at several contexts, and for prompts, a line for each kind of
// operation, medians of rounds that take turns: its time, its share of the pass, the rate at which
// it reads weights as a share of what the bus gave in the same rounds, and its arithmetic rate as a
// share of what the same products reach with many rows of a matrix that stays in cache.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/model_settings.h"
#include "bench/read_bandwidth.h"
#include "bench/timed_ops.h"
#include "cpp/model/model_files.h"
#include "cpp/model/transformer.h"
#include "cpp/model/weights.h"
#include "cpp/ops/cpu/cpu_backend.h"

namespace forerun::bench {
namespace {

struct Settings : ModelSettings {
  int max_context = 4096;
};

struct Pass {
  int num_rows, num_context, num_logits;
};

class Profile {
 public:
  explicit Profile(const Settings& settings)
      : settings_(settings),
        backend_(settings.num_threads),
        ops_(backend_.ops()),
        reader_(backend_.team(), settings.read_bytes) {
    ModelFiles files(settings.model, settings.dtype, settings.quantization);
    const int max_len = std::min(settings.max_context + kMostRows, files.spec.max_position);
    max_context_ = max_len - kMostRows;
    const int num_blocks = (max_len + kBlockSize - 1) / kBlockSize;
    model_ =
        files.Load(ops_, {kMostRows, max_len, kBlockSize, num_blocks, kMostLogits, files.dtype});
    ops_.SetHead(&model_->weights().head());
    block_table_.resize(num_blocks);
    std::iota(block_table_.begin(), block_table_.end(), 0);
    for (int i = 0; i < kMostRows; ++i) tokens_.push_back((i * 7919) % files.spec.vocab_size);
    std::printf("%s, %d threads\n", ops_.isa().c_str(), backend_.team().num_threads());
  }

  void Run() {
    for (int begin = 0; begin + kMostRows <= max_context_; begin += kMostRows) {
      Forward({kMostRows, begin, 1});  // so that no cache is read that was never written
    }
    for (int num_context : {50, 600, 4000}) {
      if (num_context > max_context_) continue;
      for (int num_rows : {1, 5, 16}) Report({num_rows, num_context, num_rows});
    }
    for (int num_context : {0, 2048}) {
      if (num_context <= max_context_) Report({kMostRows, num_context, 1});
    }
  }

 private:
  static constexpr int kBlockSize = 16;
  static constexpr int kMostRows = 512;
  static constexpr int kMostLogits = 16;

  double Forward(const Pass& pass) {
    const SequenceRows sequence{0, pass.num_rows, pass.num_context, block_table_};
    std::vector<std::int32_t> wanted(pass.num_logits);
    std::iota(wanted.begin(), wanted.end(), pass.num_rows - pass.num_logits);
    const double begin = Now();
    model_->Forward({std::span(tokens_).first(pass.num_rows), {&sequence, 1}, wanted});
    return Now() - begin;
  }

  // Multiplications and additions a second of a gate_up matrix alone that stays in cache.
  double ArithmeticRate() {
    const PackedMatrix& matrix = *model_->weights().layers[0].gate_up;
    constexpr int kRows = 64;
    std::vector<float> x(static_cast<std::size_t>(kRows) * matrix.num_inputs(), 0.01f);
    std::vector<float> y(static_cast<std::size_t>(kRows) * matrix.num_outputs());
    const double begin = Now();
    backend_.ops().MatMul(ConstRows(x.data(), kRows, matrix.num_inputs()), matrix, nullptr, false,
                          Rows(y.data(), kRows, matrix.num_outputs()));
    return 2.0 * kRows * matrix.num_inputs() * matrix.num_outputs() / (Now() - begin);
  }

  void Report(const Pass& pass) {
    std::vector<double> total, read, arithmetic;
    std::vector<std::vector<double>> seconds(kNumOperations);
    for (int round = 0; round < settings_.num_rounds; ++round) {
      read.push_back(reader_.SecondsPerByte());
      ArithmeticRate();
      arithmetic.push_back(ArithmeticRate());
      ops_.Clear();
      total.push_back(Forward(pass));
      for (int i = 0; i < kNumOperations; ++i) seconds[i].push_back(ops_.times()[i].seconds);
    }
    const double whole = Median(total);
    const double peak = Median(arithmetic);
    std::printf("\n%d rows at a context of %d: %.2f ms; read %.1f GB/s, arithmetic %.0f GFLOP/s\n",
                pass.num_rows, pass.num_context, 1e3 * whole, 1e-9 / Median(read), 1e-9 * peak);
    std::printf("%12s %9s %7s %8s %12s\n", "", "ms", "share", "of read", "of arithmetic");
    double left = whole;
    for (int i = 0; i < kNumOperations; ++i) {
      const double time = Median(seconds[i]);
      left -= time;
      const OperationTime& one = ops_.times()[i];
      std::printf("%12s %9.3f %6.1f%%", kOperationNames[i], 1e3 * time, 100 * time / whole);
      if (one.operations > 0) {
        std::printf(" %7.0f%% %11.0f%%", 100 * one.weight_bytes * Median(read) / time,
                    100 * one.operations / time / peak);
      }
      std::printf("\n");
    }
    std::printf("%12s %9.3f %6.1f%%\n", "between", 1e3 * left, 100 * left / whole);
  }

  const Settings& settings_;
  CpuBackend backend_;
  TimedOps ops_;
  Reader reader_;
  int max_context_ = 0;
  std::unique_ptr<Transformer> model_;
  std::vector<BlockId> block_table_;
  std::vector<TokenId> tokens_;
};

int Main(int argc, char** argv) {
  Settings settings;
  bool is_valid = true;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--max-context") == 0 && i + 1 < argc) {
      settings.max_context = std::atoi(argv[++i]);
    } else {
      is_valid = settings.Take(argc, argv, i) && is_valid;
    }
  }
  if (!is_valid || settings.model.empty()) {
    std::fprintf(stderr, "usage: bench_profile %s [--max-context N]\n", kModelUsage);
    return 2;
  }
  if (settings.is_smoke) settings.max_context = 1024;
  Profile(settings).Run();
  return 0;
}

}  // namespace
}  // namespace forerun::bench

int main(int argc, char** argv) {
  try {
    return forerun::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
