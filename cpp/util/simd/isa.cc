#include "cpp/util/simd/isa.h"

#include <vector>

#include "forerun/error.h"

namespace forerun {
namespace {

std::vector<Isa> DetectIsas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f");
  // The compiler may use what every processor with AVX512_BF16 has besides.
  const bool has_bfloat16 = has_avx512 && __builtin_cpu_supports("avx512bf16") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl");
  if (has_bfloat16) isas.push_back(Isa::kAvx512BFloat16);
  if (has_avx512) isas.push_back(Isa::kAvx512);
  if (has_avx2) isas.push_back(Isa::kAvx2);
#endif
  isas.push_back(Isa::kPortable);
  return isas;
}

}  // namespace

const char* Name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512BFloat16:
      return "avx512bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kPortable:
      break;
  }
  return "portable";
}

std::span<const Isa> AvailableIsas() {
  static const std::vector<Isa> isas = DetectIsas();
  return isas;
}

Isa FindIsa(const std::string& name) {
  if (name.empty()) return AvailableIsas().front();
  std::string known;
  for (Isa isa : AvailableIsas()) {
    if (name == Name(isa)) return isa;
    known += (known.empty() ? "" : ", ") + std::string(Name(isa));
  }
  throw InvalidArgument("isa", name, "one that this machine has: " + known);
}

}  // namespace forerun
