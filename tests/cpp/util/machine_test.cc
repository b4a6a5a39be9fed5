#include "cpp/util/machine.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace forerun {
namespace {

constexpr std::int64_t kMiB = 1 << 20;

// A directory with the kernel's files as a test wants them.
class MachineTest : public ::testing::Test {
 protected:
  MachineTest()
      : root_(std::filesystem::temp_directory_path() /
              ("machine_test_" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(root_);
  }
  ~MachineTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::map<std::string, std::string>& files) {
    for (const auto& [path, text] : files) {
      std::filesystem::create_directories((root_ / path).parent_path());
      std::ofstream(root_ / path) << text;
    }
  }

  std::string root() const { return root_.string(); }

 private:
  const std::filesystem::path root_;
};

TEST_F(MachineTest, NothingIsLimitedWhereTheKernelSaysNothing) {
  EXPECT_EQ(CpuQuota(root()), std::nullopt);
  EXPECT_EQ(AvailableMemoryBytes(root()), std::nullopt);
  EXPECT_GE(NumUsableCores(root()), 1);
}

TEST_F(MachineTest, VersionTwoQuotasOfAllAncestorsCount) {
  Write({{"proc/self/cgroup", "0::/pod/container\n"},
         {"sys/fs/cgroup/pod/container/cpu.max", "max 100000\n"},
         {"sys/fs/cgroup/pod/cpu.max", "50000 100000\n"},
         {"sys/fs/cgroup/cpu.max", "400000 100000\n"}});
  EXPECT_EQ(CpuQuota(root()), 0.5);
  EXPECT_EQ(NumUsableCores(root()), 1);
}

TEST_F(MachineTest, APathThatOnlyTheHostHasIsTheRoot) {
  Write({{"proc/self/cgroup", "0::/docker/0123456789\n"},
         {"sys/fs/cgroup/cpu.max", "100000 100000\n"}});
  EXPECT_EQ(CpuQuota(root()), 1.0);
}

TEST_F(MachineTest, VersionOneHasAFileForQuotaAndOneForPeriod) {
  const char* const directory = "sys/fs/cgroup/cpu,cpuacct/pod/";
  Write({{"proc/self/cgroup", "11:memory:/pod\n4:cpu,cpuacct:/pod\n0::/\n"},
         {std::string(directory) + "cpu.cfs_quota_us", "150000\n"},
         {std::string(directory) + "cpu.cfs_period_us", "100000\n"},
         {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"},
         {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}});
  EXPECT_EQ(CpuQuota(root()), 1.5);
  EXPECT_LE(NumUsableCores(root()), 2);
}

TEST_F(MachineTest, ALargeQuotaGrantsNoMoreThanTheAffinity) {
  const int num_cores = NumUsableCores(root());
  Write({{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "6400000 100000\n"}});
  EXPECT_EQ(NumUsableCores(root()), num_cores);
}

TEST_F(MachineTest, CoresAreTheLessOfAffinityAndQuota) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  std::vector<int> cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &before)) cores.push_back(i);
  }
  cpu_set_t some;
  CPU_ZERO(&some);
  for (int num_cores = 1; num_cores <= static_cast<int>(cores.size()); ++num_cores) {
    CPU_SET(cores[num_cores - 1], &some);
    ASSERT_EQ(sched_setaffinity(0, sizeof(some), &some), 0);
    for (int quota = 1; quota <= num_cores + 1; ++quota) {
      Write({{"proc/self/cgroup", "0::/\n"},
             {"sys/fs/cgroup/cpu.max", std::to_string(quota * 100000 - 1) + " 100000\n"}});
      EXPECT_EQ(NumUsableCores(root()), std::min(num_cores, quota));
    }
  }
  EXPECT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

TEST_F(MachineTest, ThePageCacheIsAvailable) {
  Write({{"proc/meminfo",
          "MemTotal:       32768000 kB\nMemFree:         2560000 kB\n"
          "MemAvailable:   23552000 kB\nBuffers:           1000 kB\n"}});
  EXPECT_EQ(AvailableMemoryBytes(root()), std::int64_t{23552000} * 1024);
}

TEST_F(MachineTest, ALowerLimitOfACgroupCountsWithoutItsPageCache) {
  Write({{"proc/meminfo", "MemAvailable:   23552000 kB\n"},
         {"proc/self/cgroup", "0::/pod\n"},
         {"sys/fs/cgroup/memory.max", "max\n"},
         {"sys/fs/cgroup/memory.current", "999999999999\n"},
         {"sys/fs/cgroup/pod/memory.max", std::to_string(1000 * kMiB)},
         {"sys/fs/cgroup/pod/memory.current", std::to_string(900 * kMiB)},
         {"sys/fs/cgroup/pod/memory.stat", "anon 1\nfile 2\ninactive_file " +
                                               std::to_string(500 * kMiB) + "\nactive_file " +
                                               std::to_string(100 * kMiB) + "\n"}});
  EXPECT_EQ(AvailableMemoryBytes(root()), 700 * kMiB);
}

TEST_F(MachineTest, VersionOneLimitsMemoryToo) {
  Write({{"proc/meminfo", "MemAvailable:   23552000 kB\n"},
         {"proc/self/cgroup", "9:memory:/pod\n"},
         {"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
         {"sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(5000 * kMiB)},
         {"sys/fs/cgroup/memory/pod/memory.limit_in_bytes", std::to_string(100 * kMiB)},
         {"sys/fs/cgroup/memory/pod/memory.usage_in_bytes", std::to_string(120 * kMiB)},
         {"sys/fs/cgroup/memory/pod/memory.stat",
          "inactive_file 7\ntotal_inactive_file " + std::to_string(10 * kMiB) + "\n"}});
  EXPECT_EQ(AvailableMemoryBytes(root()), 0);
}

}  // namespace
}  // namespace forerun
