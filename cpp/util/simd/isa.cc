#include "cpp/util/simd/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <vector>

#include "forerun/error.h"

namespace forerun {
namespace {

#if defined(__x86_64__)
// Features that not every compiler has names for.
constexpr unsigned kF16cBit = 1u << 29;    // leaf 1, ecx
constexpr unsigned kAvxVnniBit = 1u << 4;  // leaf 7, subleaf 1, eax

struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid CpuidOf(unsigned leaf, unsigned subleaf) {
  Cpuid result;
  if (__get_cpuid_count(leaf, subleaf, &result.eax, &result.ebx, &result.ecx, &result.edx) == 0) {
    return {};
  }
  return result;
}
#endif

std::vector<Isa> DetectIsas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        (CpuidOf(1, 0).ecx & kF16cBit) != 0;
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f");
  // The compiler may use what every processor with AVX512_BF16 has besides.
  const bool has_bfloat16 = has_avx512 && __builtin_cpu_supports("avx512bf16") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl");
  // A product of pairs of bfloat16 takes as long as one of floats on AMD's processors, and four
  // times as long on Intel's: there the widened weights of kAvx512 are no slower with one row, and
  // twice as fast with 64 (measured on a Xeon of the fourth generation).
  const bool has_fast_bfloat16 = __builtin_cpu_is("amd") != 0;
  if (has_bfloat16 && has_fast_bfloat16) isas.push_back(Isa::kAvx512BFloat16);
  if (has_avx512) isas.push_back(Isa::kAvx512);
  if (has_bfloat16 && !has_fast_bfloat16) isas.push_back(Isa::kAvx512BFloat16);
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

bool HasAvxVnni() {
#if defined(__x86_64__)
  static const bool has =
      AvailableIsas().front() >= Isa::kAvx2 && (CpuidOf(7, 1).eax & kAvxVnniBit) != 0;
  return has;
#else
  return false;
#endif
}

bool HasAvx512Vnni() {
#if defined(__x86_64__)
  static const bool has = AvailableIsas().front() >= Isa::kAvx512 &&
                          __builtin_cpu_supports("avx512vnni") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has;
#else
  return false;
#endif
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
