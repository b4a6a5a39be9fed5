// Attention over a paged cache, by rows and context.
//
//   bench_attention [--smoke] [--isa NAME] [--threads N] [--rounds N] [--heads NAME]
//                   [--element-bytes 1|2|4] [--context N]
//
// --heads and --context run one case instead of all. Elements of keys and values have 2 bytes
// (bfloat16) unless --element-bytes says otherwise.
//
// As in a model, every call reads another layer, so the keys and values come from memory. Rounds
// over all cases are interleaved with a plain read; the table has the median of the rounds. `ratio`
// is the time over that of one row at the same context.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpp/ops/cpu/cpu_backend.h"
#include "cpp/util/clock.h"
#include "cpp/util/read_bandwidth.h"

namespace forerun {
namespace {

struct Settings {
  bool smoke = false;
  std::string isa, heads;
  int element_bytes = 2;  // of keys and values
  int threads = 0;
  int rounds = 7;
  int context = 0;
};

struct Heads {
  const char* name;
  int num_heads, num_kv_heads, head_dim;
};

constexpr Heads kHeads[] = {{"SmolLM2-135M", 9, 3, 64}, {"Gemma-3-270M", 4, 1, 256}};
constexpr int kContexts[] = {64, 512, 2048, 8192};
constexpr int kRows[] = {1, 2, 5, 9, 64, 512};
constexpr int kBlockSize = 16;

class ContextBench {
 public:
  ContextBench(CpuOps& ops, const Heads& heads, int num_positions, int element_bytes,
               double total_bytes)
      : ops_(ops), heads_(heads), num_positions_(num_positions) {
    KvLayout layout{1, heads.num_kv_heads, heads.head_dim, kBlockSize, element_bytes};
    const int num_blocks = (num_positions + kBlockSize - 1) / kBlockSize;
    layer_bytes_ = static_cast<double>(num_blocks) * layout.block_bytes();
    layout.num_layers = std::clamp(static_cast<int>(total_bytes / layer_bytes_), 1, 500);
    cache_ = ops.MakeKvCache(layout, num_blocks);
    for (int i = 0; i < num_blocks; ++i) table_.push_back((i * 7 + 3) % num_blocks);
    std::sort(table_.begin(), table_.end());
    const int kv_cols = heads.num_kv_heads * heads.head_dim;
    std::vector<float> kv(static_cast<std::size_t>(num_positions) * kv_cols);
    for (std::size_t i = 0; i < kv.size(); ++i) kv[i] = 0.01f * static_cast<float>(i % 113) - 0.5f;
    const ConstRows rows(kv.data(), num_positions, kv_cols);
    const SequenceRows all{0, num_positions, 0, table_};
    for (int i = 0; i < layout.num_layers; ++i) ops.StoreKv(rows, rows, {&all, 1}, i, *cache_);
    query_.assign(static_cast<std::size_t>(512) * heads.num_heads * heads.head_dim, 0.1f);
    out_.resize(query_.size());
  }

  // Seconds of one call for the last `rows` positions.
  double Time(int rows, int calls) {
    const int cols = heads_.num_heads * heads_.head_dim;
    const AttentionShape shape{heads_.num_heads, heads_.num_kv_heads, heads_.head_dim, 0.1f, 0, 0};
    const SequenceRows last{0, rows, num_positions_ - rows, table_};
    const std::vector<TokenId> tokens(rows);
    const ForwardRows& batch =
        ops_.Begin({.tokens = tokens, .cache = cache_.get(), .sequences = {&last, 1}});
    const double begin = Now();
    for (int i = 0; i < calls; ++i) {
      ops_.Attention(ConstRows(query_.data(), rows, cols), batch, RowSet::kAll, next_, shape,
                     Rows(out_.data(), rows, cols));
      next_ = (next_ + 1) % num_layers();
    }
    return (Now() - begin) / calls;
  }

  int num_layers() const { return cache_->layout().num_layers; }
  double layer_bytes() const { return layer_bytes_; }
  // Two products, each a multiplication and an addition per channel and visible position.
  double operations(int rows) const {
    const double visible = num_positions_ - 0.5 * (rows - 1);
    return 4.0 * rows * visible * heads_.num_heads * heads_.head_dim;
  }

 private:
  CpuOps& ops_;
  Heads heads_;
  int num_positions_;
  double layer_bytes_ = 0;
  std::unique_ptr<KvCache> cache_;
  std::vector<BlockId> table_;
  std::vector<float> query_, out_;
  int next_ = 0;
};

void RunContext(CpuOps& ops, MemoryReader& reader, const Heads& heads, int num_positions,
                const Settings& settings) {
  ContextBench layers(ops, heads, num_positions, settings.element_bytes,
                      settings.smoke ? 1e6 : 128e6);
  constexpr int kNumRows = sizeof(kRows) / sizeof(kRows[0]);
  std::vector<double> seconds[kNumRows], read;
  for (int round = 0; round < settings.rounds; ++round) {
    read.push_back(reader.SecondsPerByte());
    for (int i = 0; i < kNumRows; ++i) {
      if (kRows[i] > num_positions || (settings.smoke && kRows[i] > 64)) continue;
      const double budget = settings.smoke ? 1e7 : 2e9;  // operations
      const int calls = std::clamp(static_cast<int>(budget / layers.operations(kRows[i])), 1,
                                   layers.num_layers());
      seconds[i].push_back(layers.Time(kRows[i], calls));
    }
  }
  const double read_rate = 1e-9 / Median(read);
  std::printf("\n%s, context %d; read %.1f GB/s\n", heads.name, num_positions, read_rate);
  std::printf("%6s %10s %8s %8s %9s %7s\n", "rows", "us", "GB/s", "of read", "GFLOP/s", "ratio");
  const double one_row = Median(seconds[0]);
  for (int i = 0; i < kNumRows; ++i) {
    if (seconds[i].empty()) continue;
    const double time = Median(seconds[i]);
    const double rate = layers.layer_bytes() / time * 1e-9;
    std::printf("%6d %10.1f %8.1f %7.0f%% %9.1f %7.2f\n", kRows[i], time * 1e6, rate,
                100 * rate / read_rate, layers.operations(kRows[i]) / time * 1e-9, time / one_row);
  }
}

int Main(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const auto is = [&](const char* name) { return std::strcmp(argv[i], name) == 0; };
    if (is("--smoke")) {
      settings.smoke = true;
      settings.rounds = 1;
    } else if (is("--isa") && i + 1 < argc) {
      settings.isa = argv[++i];
    } else if (is("--threads") && i + 1 < argc) {
      settings.threads = std::atoi(argv[++i]);
    } else if (is("--rounds") && i + 1 < argc) {
      settings.rounds = std::atoi(argv[++i]);
    } else if (is("--heads") && i + 1 < argc) {
      settings.heads = argv[++i];
    } else if (is("--element-bytes") && i + 1 < argc) {
      settings.element_bytes = std::atoi(argv[++i]);
    } else if (is("--context") && i + 1 < argc) {
      settings.context = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr,
                   "usage: bench_attention [--smoke] [--isa NAME] [--threads N] [--rounds N] "
                   "[--heads NAME] [--element-bytes 1|2|4] [--context N]\n");
      return 2;
    }
  }
  CpuBackend backend(settings.threads, settings.isa);
  CpuOps& ops = backend.ops();
  ThreadTeam& team = backend.team();
  std::printf("isa %s, %d threads\n", ops.isa().c_str(), team.num_threads());
  MemoryReader reader(team, settings.smoke ? 4'000'000 : 128'000'000);
  for (const Heads& heads : kHeads) {
    if (!settings.heads.empty() && settings.heads != heads.name) continue;
    for (int context : kContexts) {
      if (settings.smoke && context > 512) continue;
      if (settings.context != 0 && settings.context != context) continue;
      RunContext(ops, reader, heads, context, settings);
    }
  }
  return 0;
}

}  // namespace
}  // namespace forerun

int main(int argc, char** argv) { return forerun::Main(argc, argv); }
