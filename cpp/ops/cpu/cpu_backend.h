// The host as a backend: a team of threads and the operations on it.
#ifndef FORERUN_CPP_OPS_CPU_CPU_BACKEND_H_
#define FORERUN_CPP_OPS_CPU_CPU_BACKEND_H_

#include <memory>
#include <string>

#include "cpp/ops/backend.h"
#include "cpp/ops/cpu/cpu_ops.h"
#include "cpp/util/thread_team.h"

namespace forerun {

class CpuBackend final : public Backend {
 public:
  // `num_threads` as ThreadTeam takes it, `isa` as FindIsa does (util/simd/isa.h).
  explicit CpuBackend(int num_threads, const std::string& isa = "");

  ThreadTeam& team() { return team_; }
  const std::string& name() const override { return name_; }
  CpuOps& ops() override { return ops_; }
  Memory& memory() override { return HostMemory(); }
  MemorySize memory_size() const override;
  std::unique_ptr<Verifier> MakeVerifier(const VerifierLimits& limits) override {
    return std::make_unique<HostVerifier>(limits);
  }

 private:
  const std::string name_ = "CPU";
  ThreadTeam team_;
  CpuOps ops_;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_CPU_BACKEND_H_
