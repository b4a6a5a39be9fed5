// main of the Google Benchmark binaries. --smoke runs everything once, as small as it gets.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

int main(int argc, char** argv) {
  std::vector<char*> arguments;
  static char once[] = "--benchmark_min_time=0.001";
  for (int i = 0; i < argc; ++i) {
    arguments.push_back(std::strcmp(argv[i], "--smoke") == 0 ? once : argv[i]);
  }
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
