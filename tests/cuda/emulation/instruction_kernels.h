// Kernels that hand each lane's result of an instruction to the host.
#ifndef FORERUN_TESTS_CUDA_EMULATION_INSTRUCTION_KERNELS_H_
#define FORERUN_TESTS_CUDA_EMULATION_INSTRUCTION_KERNELS_H_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace forerun::cuda {

constexpr int kNumCollectives = 16;

// out[collective * 32 + lane], by one warp; `operand` is the source lane, distance or lane mask,
// and shuffles are within `width` lanes.
cudaError_t LaunchCollectives(const int* in, int operand, int width, unsigned* out);
// out[lane] for 64-bit values.
cudaError_t LaunchWideShuffle(const unsigned long long* in, unsigned long long* out);
// d[16, 8] = a[16, 16] b[8, 16]^T, from d.
cudaError_t LaunchProduct(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d);
// out[lane * 4 + matrix] of ldmatrix over in[32, 8], rows of 16-bit elements.
cudaError_t LaunchLoadMatrix(const unsigned short* in, bool is_transposed, unsigned* out);
// out = in for num_tiles tiles of 128 ints, through a ring of two asynchronous copies.
cudaError_t LaunchPipelinedCopy(const int* in, int num_tiles, int* out);
// Atomics by all threads of 3 blocks of 64: sum, minimum, maximum, bits or-ed, and-ed and xor-ed,
// threads counted by compare and swap, any thread's number.
cudaError_t LaunchAtomics(int* out);

}  // namespace forerun::cuda

#endif  // FORERUN_TESTS_CUDA_EMULATION_INSTRUCTION_KERNELS_H_
