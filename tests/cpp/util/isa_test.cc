#include "cpp/util/simd/isa.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <vector>

#include "forerun/error.h"

namespace forerun {
namespace {

TEST(IsaTest, PortableComesLastAndAllThatIsIncludedIsThere) {
  const std::span<const Isa> isas = AvailableIsas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.back(), Isa::kPortable);
  std::vector<Isa> sorted(isas.begin(), isas.end());
  std::ranges::sort(sorted);
  for (std::size_t i = 0; i < sorted.size(); ++i) EXPECT_EQ(static_cast<std::size_t>(sorted[i]), i);
}

// Which of the two is faster depends on the processor; both are before any other.
TEST(IsaTest, TheWidestVectorsComeFirst) {
  const std::span<const Isa> isas = AvailableIsas();
  const Isa widest = *std::ranges::max_element(isas);
  const Isa first = isas.front();
  EXPECT_TRUE(first == widest || (first == Isa::kAvx512 && widest == Isa::kAvx512BFloat16));
}

TEST(IsaTest, IsFoundByItsNameAndTheFastestByNone) {
  for (Isa isa : AvailableIsas()) EXPECT_EQ(FindIsa(Name(isa)), isa);
  EXPECT_EQ(FindIsa(""), AvailableIsas().front());
}

TEST(IsaTest, AnUnknownNameIsRefusedWithTheKnownOnes) {
  try {
    FindIsa("avx1024");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(error.field(), "isa");
    EXPECT_EQ(error.value(), "avx1024");
    for (Isa isa : AvailableIsas()) {
      EXPECT_NE(error.expected().find(Name(isa)), std::string::npos) << Name(isa);
    }
  }
}

}  // namespace
}  // namespace forerun
