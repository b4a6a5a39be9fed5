// A GPU's memory as buffers and vectors take it.
#include "cuda/gpu_memory.h"

#include <gtest/gtest.h>

#include <vector>

#include "cpp/tensor/tensor.h"
#include "cuda/emulation/emulation.h"
#include "forerun/error.h"

namespace forerun::cuda {
namespace {

class GpuMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override { emulation::Reset(); }
  void TearDown() override { emulation::Reset(); }

  GpuMemory memory_;
};

TEST_F(GpuMemoryTest, VectorsAreUploadedOnceAndComeBackUnchanged) {
  std::vector<float> values(1000);
  for (int i = 0; i < 1000; ++i) values[i] = 0.5f * static_cast<float>(i);
  const FloatVector vector(memory_, values);
  EXPECT_EQ(emulation::counters().copies_to_device, 1u);
  EXPECT_EQ(emulation::counters().bytes_to_device, 4000u);
  std::vector<float> back(1000, -1.0f);
  memory_.Download(back.data(), vector.data(), 4000);
  EXPECT_EQ(back, values);
}

TEST_F(GpuMemoryTest, EmptyVectorsAndBuffersTakeNothing) {
  const FloatVector vector(memory_, {});
  const AlignedBuffer buffer(memory_, 0);
  EXPECT_EQ(vector.data(), nullptr);
  EXPECT_EQ(buffer.as<float>(), nullptr);
  EXPECT_EQ(emulation::counters().allocations, 0u);
}

TEST_F(GpuMemoryTest, ShortMemoryIsADeviceErrorThatSaysHowMuchIsFree) {
  emulation::options().failing_allocation = 1;
  try {
    memory_.Allocate(12345);
    ADD_FAILURE() << "allocated";
  } catch (const DeviceError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("12345 bytes of GPU memory"), std::string::npos) << message;
    EXPECT_NE(message.find("free of"), std::string::npos) << message;
  }
  const AlignedBuffer next(memory_, 12345);
  EXPECT_NE(next.as<float>(), nullptr);
}

}  // namespace
}  // namespace forerun::cuda
