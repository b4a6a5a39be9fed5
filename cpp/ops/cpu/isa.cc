#include "cpp/ops/cpu/isa.h"

#include <span>
#include <vector>

#include "cpp/ops/ops.h"
#include "forerun/error.h"

namespace forerun {
namespace {

struct IsaList {
  std::vector<std::string> names;  // best first
  std::vector<const CpuKernels*> kernels;

  IsaList() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f");
    // The compiler may use what every processor with AVX512_BF16 has besides.
    const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (has_bf16) Add("avx512bf16", avx512bf16::kKernels);
    if (has_avx512) Add("avx512", avx512::kKernels);
    if (has_avx2) Add("avx2", avx2::kKernels);
#endif
    Add("portable", portable::kKernels);
  }

  void Add(const char* name, const CpuKernels& table) {
    names.emplace_back(name);
    kernels.push_back(&table);
  }
};

const IsaList& Isas() {
  static const IsaList list;
  return list;
}

}  // namespace

std::span<const std::string> AvailableCpuIsas() { return Isas().names; }

const CpuKernels& FindCpuKernels(const std::string& isa) {
  const IsaList& list = Isas();
  if (isa.empty()) return *list.kernels.front();
  std::string known;
  for (std::size_t i = 0; i < list.names.size(); ++i) {
    if (list.names[i] == isa) return *list.kernels[i];
    known += (i == 0 ? "" : ", ") + list.names[i];
  }
  throw InvalidArgument("isa", isa, "one that this machine has: " + known);
}

}  // namespace forerun
