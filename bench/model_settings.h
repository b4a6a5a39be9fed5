// The command line of benchmarks that run a model.
#ifndef FORERUN_BENCH_MODEL_SETTINGS_H_
#define FORERUN_BENCH_MODEL_SETTINGS_H_

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "forerun/options.h"

namespace forerun::bench {

inline constexpr char kModelUsage[] =
    "MODEL_DIRECTORY [--smoke] [--threads N] [--rounds N] [--dtype NAME] [--quantization NAME] "
    "[--head NAME]";

struct ModelSettings {
  std::string model;
  std::string dtype = "bfloat16";
  QuantizationOptions quantization;
  int num_threads = 0;
  int num_rounds = 9;
  std::size_t read_bytes = 256'000'000;
  bool is_smoke = false;

  // Takes argument i, and the one after it where it has a value. False for any other argument.
  bool Take(int argc, char** argv, int& i) {
    const auto is = [&](const char* name) { return std::strcmp(argv[i], name) == 0; };
    const auto has_value = [&](const char* name) { return is(name) && i + 1 < argc; };
    if (is("--smoke")) {
      is_smoke = true;
      num_rounds = 1;
      read_bytes = 4'000'000;
    } else if (has_value("--threads")) {
      num_threads = std::atoi(argv[++i]);
    } else if (has_value("--rounds")) {
      num_rounds = std::atoi(argv[++i]);
    } else if (has_value("--dtype")) {
      dtype = argv[++i];
    } else if (has_value("--quantization")) {
      ++i;
      quantization = {argv[i], argv[i], argv[i]};
    } else if (has_value("--head")) {
      quantization.head = argv[++i];
    } else if (model.empty() && argv[i][0] != '-') {
      model = argv[i];
    } else {
      return false;
    }
    return true;
  }
};

}  // namespace forerun::bench

#endif  // FORERUN_BENCH_MODEL_SETTINGS_H_
