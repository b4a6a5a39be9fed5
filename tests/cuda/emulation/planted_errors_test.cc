// Each planted error is found, by the builds that its list names and in every order of threads.
#include "tests/cuda/emulation/planted_errors.h"

#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <set>

#include "cuda/emulation/in_every_order.h"

namespace forerun::cuda {
namespace {

using emulation::DetectsRaces;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kIsAsanBuild = true;
#else
constexpr bool kIsAsanBuild = false;
#endif

const char* MessageHere(const FoundBy& by) {
  return kIsAsanBuild ? by.asan : DetectsRaces() ? by.race : by.plain;
}

std::vector<PlantedError> AllPlanted() {
  std::vector<PlantedError> all;
  for (const auto list : {PlantedDivergence, PlantedRaces, PlantedAccesses, PlantedHostErrors}) {
    const std::vector<PlantedError> planted = list();
    all.insert(all.end(), planted.begin(), planted.end());
  }
  return all;
}

// What this build is to find.
std::vector<PlantedError> PlantedForThisBuild() {
  std::vector<PlantedError> planted = AllPlanted();
  std::erase_if(planted, [](const PlantedError& error) {
    return *MessageHere(error.found_by) == '\0' && !error.found_by.by_death_in_plain_and_race;
  });
  return planted;
}

class PlantedErrorTest : public testing::TestWithParam<PlantedError> {
 protected:
  void SetUp() override { emulation::Reset(); }
  void TearDown() override { emulation::Reset(); }
};

std::string Found(const PlantedError& planted) {
  try {
    return planted.run();
  } catch (const emulation::Error& error) {
    return error.what();
  }
}

TEST_P(PlantedErrorTest, IsFound) {
  const FoundBy& by = GetParam().found_by;
  const char* const message = MessageHere(by);
  if (kIsAsanBuild ? by.by_death_in_asan : by.by_death_in_plain_and_race) {
    if (kIsAsanBuild) {
      EXPECT_DEATH(Found(GetParam()), message);
    } else {
      EXPECT_EXIT(Found(GetParam()), testing::KilledBySignal(SIGSEGV), message);
    }
    return;
  }
  emulation::InEveryOrder([&] {
    const std::string found = Found(GetParam());
    EXPECT_NE(found.find(message), std::string::npos)
        << "wanted: " << message << "\nfound: " << found;
  });
}

INSTANTIATE_TEST_SUITE_P(, PlantedErrorTest, testing::ValuesIn(PlantedForThisBuild()),
                         [](const auto& planted) { return std::string(planted.param.name); });

TEST(PlantedErrorsTest, AreManyAndEachIsFoundBySomeBuild) {
  std::set<std::string> names;
  for (const PlantedError& planted : AllPlanted()) {
    const FoundBy& by = planted.found_by;
    EXPECT_TRUE(*by.plain != '\0' || *by.asan != '\0' || *by.race != '\0') << planted.name;
    EXPECT_TRUE(names.insert(planted.name).second) << planted.name;
  }
  EXPECT_GE(names.size(), 40u);
}

// The list in the repository, one error a line with the builds that find it.
TEST(PlantedErrorsTest, AreListed) {
  std::string expected;
  for (const PlantedError& planted : AllPlanted()) {
    const FoundBy& by = planted.found_by;
    expected += planted.name;
    if (*by.plain != '\0' || by.by_death_in_plain_and_race) expected += " plain";
    if (*by.asan != '\0') expected += " asan";
    if (*by.race != '\0' || by.by_death_in_plain_and_race) expected += " race";
    expected += '\n';
  }
  std::ifstream list(FORERUN_PLANTED_ERRORS);
  const std::string listed((std::istreambuf_iterator<char>(list)), {});
  EXPECT_EQ(listed, expected);
}

// A kernel that was given up leaves nothing that the next one trips over.
TEST(PlantedErrorsTest, DoNotDisturbTheNextLaunch) {
  emulation::Reset();
  for (const PlantedError& planted : PlantedDivergence()) {
    EXPECT_NE(Found(planted), "") << planted.name;
    const Scratch out(256);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
}

// Each is found after all that come before it, too.
TEST(PlantedErrorsTest, AreFoundOneAfterTheOther) {
  for (const PlantedError& planted : PlantedForThisBuild()) {
    const FoundBy& by = planted.found_by;
    if (kIsAsanBuild ? by.by_death_in_asan : by.by_death_in_plain_and_race) continue;
    emulation::Reset();
    emulation::InEveryOrder([&] {
      const std::string found = Found(planted);
      EXPECT_NE(found.find(MessageHere(by)), std::string::npos) << planted.name << ": " << found;
    });
  }
  emulation::Reset();
}

}  // namespace
}  // namespace forerun::cuda
