// What the KV accounts cost in a step.
//
//   bench_kv [--smoke] [Google Benchmark's own flags]
//
// step     Reserve and Commit of one request: room for 1 token and a draft of N, of which half is
//          accepted
// adopt    AdoptPrefix of a cached prompt of N tokens, and Drop
// churn    a request of N tokens in a full pool: every block is allocated by eviction, registered
//          and released
// With a pool of 8,192 blocks of 16 tokens. check is CheckInvariants of that pool.
#include <benchmark/benchmark.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "bench/run_benchmarks.h"
#include "cpp/kv/block_pool.h"
#include "cpp/kv/block_table.h"

namespace forerun {
namespace {

using Tokens = std::vector<TokenId>;

constexpr int kNumBlocks = 8192;
constexpr int kBlockSize = 16;

Tokens Range(int first, int count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Leaves no block free, with `num_tokens` tokens from `first` on as the newest cached ones.
void FillCache(BlockPool& pool, int first, int num_tokens) {
  for (const Tokens& tokens :
       {Range(-kNumBlocks * kBlockSize, kNumBlocks * kBlockSize), Range(first, num_tokens)}) {
    BlockTable table(pool);
    if (table.Reserve(static_cast<int>(tokens.size()))) table.Commit(tokens);
  }
}

void Step(benchmark::State& state) {
  BlockPool pool(kNumBlocks, kBlockSize, true);
  const int draft = static_cast<int>(state.range(0));
  const Tokens accepted = Range(7, 1 + draft / 2);
  constexpr int kMaxTokens = 4096;
  BlockTable table(pool, kMaxTokens);
  for (auto _ : state) {
    if (table.num_committed() + draft >= kMaxTokens) table.Drop();
    if (!table.Reserve(1 + draft)) state.SkipWithError("out of blocks");
    table.Commit(accepted);
  }
  pool.CheckInvariants();
}
BENCHMARK(Step)->Name("step")->Arg(0)->Arg(4)->Arg(16);

void Adopt(benchmark::State& state) {
  const int num_tokens = static_cast<int>(state.range(0));
  BlockPool pool(kNumBlocks, kBlockSize, true);
  FillCache(pool, 1000, num_tokens);
  const Tokens prompt = Range(1000, num_tokens + 1);
  BlockTable table(pool, num_tokens);
  for (auto _ : state) {
    if (table.AdoptPrefix(prompt) != num_tokens) state.SkipWithError("not cached");
    table.Drop();
  }
  pool.CheckInvariants();
}
BENCHMARK(Adopt)->Name("adopt")->Arg(512)->Arg(8192);

void Churn(benchmark::State& state) {
  const int num_tokens = static_cast<int>(state.range(0));
  BlockPool pool(kNumBlocks, kBlockSize, true);
  FillCache(pool, 1000, kBlockSize);
  Tokens tokens = Range(1000000, num_tokens);
  BlockTable table(pool, num_tokens);
  for (auto _ : state) {
    ++tokens[0];  // a new text every time
    if (!table.Reserve(num_tokens)) state.SkipWithError("out of blocks");
    table.Commit(tokens);
    table.Drop();
  }
  if (pool.num_free() != 0) state.SkipWithError("nothing was evicted");
  pool.CheckInvariants();
}
BENCHMARK(Churn)->Name("churn")->Arg(512)->Arg(8192);

void Check(benchmark::State& state) {
  BlockPool pool(kNumBlocks, kBlockSize, true);
  FillCache(pool, 1000, kBlockSize);
  for (auto _ : state) pool.CheckInvariants();
}
BENCHMARK(Check)->Name("check");

}  // namespace
}  // namespace forerun

int main(int argc, char** argv) {
  return forerun::bench::RunBenchmarks(argc, argv, [](bool) { return true; });
}
