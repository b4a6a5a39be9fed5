// Where the time of a forward pass goes: `forerun bench --profile` without Python.
//
//   bench_profile MODEL_DIRECTORY [--smoke] [--threads N] [--rounds N] [--dtype NAME]
//                 [--quantization NAME] [--head NAME] [--max-context N]
//
// A table for each pass, as cpp/model/profile.h describes them.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>

#include "bench/model_settings.h"
#include "cpp/model/profile.h"

namespace forerun::bench {
namespace {

void Print(const PassProfile& pass) {
  std::printf("\n%d rows at a context of %d: %.2f ms; read %.1f GB/s, arithmetic %.0f GFLOP/s\n",
              pass.num_rows, pass.num_context, 1e3 * pass.seconds, 1e-9 * pass.read_rate,
              1e-9 * pass.arithmetic_rate);
  std::printf("%12s %9s %7s %8s %12s\n", "", "ms", "share", "of read", "of arithmetic");
  for (const OperationProfile& operation : pass.operations) {
    std::printf("%12s %9.3f %6.1f%%", operation.name.c_str(), 1e3 * operation.seconds,
                100 * operation.share);
    if (operation.share_of_read) {
      std::printf(" %7.0f%% %11.0f%%", 100 * *operation.share_of_read,
                  100 * *operation.share_of_arithmetic);
    }
    std::printf("\n");
  }
}

int Main(int argc, char** argv) {
  ModelSettings settings;
  std::optional<int> max_context;
  bool is_valid = true;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--max-context") == 0 && i + 1 < argc) {
      max_context = std::atoi(argv[++i]);
    } else {
      is_valid = settings.Take(argc, argv, i) && is_valid;
    }
  }
  if (!is_valid || settings.model.empty()) {
    std::fprintf(stderr, "usage: bench_profile %s [--max-context N]\n", kModelUsage);
    return 2;
  }
  ProfileOptions options;
  options.model = {.model = settings.model,
                   .dtype = settings.dtype,
                   .quantization = settings.quantization,
                   .kv_cache_dtype = "auto",
                   .num_threads = settings.num_threads,
                   .isa = "",
                   .max_model_len = max_context};
  options.num_rounds = settings.num_rounds;
  options.read_bytes = settings.read_bytes;
  ProfilePasses(options, Print);
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
