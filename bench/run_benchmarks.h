// main of the Google Benchmark binaries.
#ifndef FORERUN_BENCH_RUN_BENCHMARKS_H_
#define FORERUN_BENCH_RUN_BENCHMARKS_H_

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstring>

namespace forerun::bench {

// --smoke runs everything once, as small as it gets. `prepare(smoke)` checks the answers and
// registers what is not registered yet; false ends the run as a failure.
template <typename Prepare>
int RunBenchmarks(int argc, char** argv, const Prepare& prepare) {
  static char once[] = "--benchmark_min_time=0.001";
  bool smoke = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--smoke") != 0) continue;
    argv[i] = once;
    smoke = true;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  if (!prepare(smoke)) {
    std::fprintf(stderr, "a benchmarked function gives a wrong answer\n");
    return 1;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace forerun::bench

#endif  // FORERUN_BENCH_RUN_BENCHMARKS_H_
