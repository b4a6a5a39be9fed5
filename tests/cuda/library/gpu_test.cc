// The GPU as a backend of the engine.
#include "cuda/library/gpu.h"

#include <gtest/gtest.h>

#include <memory>

#include "cpp/tensor/tensor.h"
#include "cuda/emulation/emulation.h"
#include "forerun/error.h"

namespace forerun::cuda {
namespace {

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override { emulation::Reset(); }
  void TearDown() override { emulation::Reset(); }
};

TEST_F(GpuTest, APassIsTimedByWhatTheGpuDidInIt) {
  const std::unique_ptr<Backend> gpu = OpenGpu();
  const std::unique_ptr<PassTimer> timer = gpu->MakePassTimer();
  const AlignedBuffer memory(gpu->memory(), 64 * sizeof(float));
  const Rows rows(memory.as<float>(), 4, 16);
  emulation::options().lazy_streams = true;
  emulation::options().launch_us = 250;
  gpu->ops().Zero(rows);
  timer->Start();
  for (int i = 0; i < 4; ++i) gpu->ops().Zero(rows);
  timer->Stop();
  gpu->ops().Zero(rows);
  EXPECT_EQ(emulation::counters().waits, 0u);
  EXPECT_THROW(timer->Seconds(), DeviceError) << "before it was waited for";
  float value = 1.0f;
  gpu->memory().Download(&value, rows.data, sizeof value);
  EXPECT_EQ(timer->Seconds(), 0.001);
  EXPECT_EQ(value, 0.0f);

  emulation::options().launch_us = 0;
  emulation::options().block_us = 500;
  timer->Start();
  gpu->ops().Zero(rows);
  timer->Stop();
  gpu->memory().Download(&value, rows.data, sizeof value);
  EXPECT_EQ(timer->Seconds(), 0.0005) << "one block";
}

}  // namespace
}  // namespace forerun::cuda
