// Kernels without errors, each with a result that a host computes as easily.
#ifndef FORERUN_TESTS_CUDA_EMULATION_SOUND_KERNELS_H_
#define FORERUN_TESTS_CUDA_EMULATION_SOUND_KERNELS_H_

#include <cuda_runtime.h>

namespace forerun::cuda {

// out[i] = value for num elements.
cudaError_t LaunchFill(int* out, int num, int value, cudaStream_t stream);
// out[0] += the sum of in[0, num); blocks of 96 threads.
cudaError_t LaunchSum(const int* in, int num, unsigned long long* out, cudaStream_t stream);
// out[block * 64 + i] = in[block * 64 + 63 - i], through shared memory; a dependent launch.
cudaError_t LaunchReverse(const int* in, int* out, int num_blocks, bool is_dynamic);

}  // namespace forerun::cuda

#endif  // FORERUN_TESTS_CUDA_EMULATION_SOUND_KERNELS_H_
