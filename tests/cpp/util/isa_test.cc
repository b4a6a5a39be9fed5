#include "cpp/util/simd/isa.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "forerun/error.h"

namespace forerun {
namespace {

TEST(IsaTest, TheBestComesFirstAndPortableLast) {
  const std::span<const Isa> isas = AvailableIsas();
  ASSERT_FALSE(isas.empty());
  EXPECT_TRUE(std::ranges::is_sorted(isas, std::greater()));
  EXPECT_EQ(isas.back(), Isa::kPortable);
}

TEST(IsaTest, IsFoundByItsNameAndTheBestByNone) {
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
