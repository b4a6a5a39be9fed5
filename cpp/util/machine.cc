#include "cpp/util/machine.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace forerun {
namespace {

// Absent when there is no such file or it begins with no number.
std::optional<std::int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  std::int64_t number = 0;
  if (!(file >> number)) return {};
  return number;
}

// The sum of the named counters of a file of "name value" or "name: value kB" lines; absent when it
// has none of them.
std::optional<std::int64_t> ReadCounters(const std::string& path,
                                         const std::vector<std::string>& names) {
  std::ifstream file(path);
  std::optional<std::int64_t> sum;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    std::int64_t value = 0;
    if (words >> name >> value && std::ranges::find(names, name) != names.end()) {
      sum = sum.value_or(0) + value;
    }
  }
  return sum;
}

// The process's directories of one controller, from its own up to the root of the mount. A process
// in a container may be told of a path that only its host has: then the mount's root is its own.
std::vector<std::string> CgroupDirectories(const std::string& root, const std::string& controller,
                                           bool is_version_2) {
  std::vector<std::string> directories;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::vector<std::string> mounts = {controllers, controller};
    if (is_version_2) {
      if (!controllers.empty()) continue;
      mounts = {"", "unified"};
    } else if (("," + controllers + ",").find("," + controller + ",") == std::string::npos) {
      continue;
    }
    for (const std::string& mount : mounts) {
      std::string path = line.substr(second + 1);
      while (true) {
        directories.push_back(root + "/sys/fs/cgroup/" + mount + "/" + path);
        if (path.empty()) break;
        const std::size_t slash = path.rfind('/');
        path.resize(slash == std::string::npos ? 0 : slash);
      }
    }
  }
  return directories;
}

// A limit less what is used of it, the page cache not counted: it makes room.
std::optional<std::int64_t> RoomBelow(std::optional<std::int64_t> limit,
                                      std::optional<std::int64_t> used,
                                      std::optional<std::int64_t> page_cache) {
  if (!limit || !used) return {};
  return std::max<std::int64_t>(0,
                                *limit - std::max<std::int64_t>(0, *used - page_cache.value_or(0)));
}

template <typename T>
void TakeLess(std::optional<T> value, std::optional<T>& least) {
  if (value && (!least || *value < *least)) least = value;
}

int NumCoresOfAffinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

std::optional<double> CpuQuota(const std::string& root) {
  std::optional<double> least;
  for (const std::string& directory : CgroupDirectories(root, "cpu", /*is_version_2=*/true)) {
    std::ifstream file(directory + "/cpu.max");  // "max 100000" without a limit
    double quota = 0, period = 0;
    if (file >> quota >> period && quota > 0 && period > 0) {
      TakeLess<double>(quota / period, least);
    }
  }
  for (const std::string& directory : CgroupDirectories(root, "cpu", /*is_version_2=*/false)) {
    const auto quota = ReadNumber(directory + "/cpu.cfs_quota_us");  // -1 without a limit
    const auto period = ReadNumber(directory + "/cpu.cfs_period_us");
    if (quota.value_or(0) > 0 && period.value_or(0) > 0) {
      TakeLess<double>(static_cast<double>(*quota) / static_cast<double>(*period), least);
    }
  }
  return least;
}

int NumUsableCores(const std::string& root) {
  const int num_cores = NumCoresOfAffinity();
  const double quota = CpuQuota(root).value_or(num_cores);
  return std::clamp(static_cast<int>(std::ceil(std::min(quota, 1e6))), 1, num_cores);
}

std::optional<std::int64_t> AvailableMemoryBytes(const std::string& root) {
  std::optional<std::int64_t> least = ReadCounters(root + "/proc/meminfo", {"MemAvailable:"});
  if (least) *least *= 1024;
  for (const std::string& directory : CgroupDirectories(root, "memory", /*is_version_2=*/true)) {
    TakeLess(
        RoomBelow(ReadNumber(directory + "/memory.max"), ReadNumber(directory + "/memory.current"),
                  ReadCounters(directory + "/memory.stat", {"active_file", "inactive_file"})),
        least);
  }
  for (const std::string& directory : CgroupDirectories(root, "memory", /*is_version_2=*/false)) {
    TakeLess(RoomBelow(ReadNumber(directory + "/memory.limit_in_bytes"),
                       ReadNumber(directory + "/memory.usage_in_bytes"),
                       ReadCounters(directory + "/memory.stat",
                                    {"total_active_file", "total_inactive_file"})),
             least);
  }
  return least;
}

}  // namespace forerun
