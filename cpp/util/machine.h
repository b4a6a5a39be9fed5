// What this process may use of the machine.
//
// Read from the kernel's files, which a test lays out below another root: affinity and memory, and
// the limits of the process's cgroups (version 1 or 2), as containers set them. What cannot be read
// limits nothing.
#ifndef FORERUN_CPP_UTIL_MACHINE_H_
#define FORERUN_CPP_UTIL_MACHINE_H_

#include <cstdint>
#include <optional>
#include <string>

namespace forerun {

// Cores' worth of time that the cgroups grant.
std::optional<double> CpuQuota(const std::string& root = "/");

// The cores of the affinity mask, or the quota rounded up where that is less; at least 1.
int NumUsableCores(const std::string& root = "/");

// Bytes that can be allocated without swapping: those that are free and those of the page cache, or
// what the cgroups' limits leave where that is less. Absent when the kernel does not say.
std::optional<std::int64_t> AvailableMemoryBytes(const std::string& root = "/");

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_MACHINE_H_
