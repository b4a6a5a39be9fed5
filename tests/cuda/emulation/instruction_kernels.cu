#include "cuda/emulation/instructions.h"
#include "tests/cuda/emulation/instruction_kernels.h"

namespace forerun::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kTile = 128;

__global__ void Collectives(const int* in, int operand, int width, unsigned* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const int value = in[lane];
  const auto bits = static_cast<unsigned>(value);
  const unsigned results[kNumCollectives] = {
      static_cast<unsigned>(__shfl_sync(kAllLanes, value, operand, width)),
      static_cast<unsigned>(
          __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(operand), width)),
      static_cast<unsigned>(
          __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(operand), width)),
      static_cast<unsigned>(__shfl_xor_sync(kAllLanes, value, operand, width)),
      __ballot_sync(kAllLanes, value > 0),
      static_cast<unsigned>(__any_sync(kAllLanes, value > 0)),
      static_cast<unsigned>(__all_sync(kAllLanes, value > 0)),
      __reduce_add_sync(kAllLanes, bits),
      __reduce_min_sync(kAllLanes, bits),
      __reduce_max_sync(kAllLanes, bits),
      static_cast<unsigned>(__reduce_min_sync(kAllLanes, value)),
      static_cast<unsigned>(__reduce_max_sync(kAllLanes, value)),
      __reduce_and_sync(kAllLanes, bits),
      __reduce_or_sync(kAllLanes, bits),
      __reduce_xor_sync(kAllLanes, bits),
      __match_any_sync(kAllLanes, value),
  };
  for (int i = 0; i < kNumCollectives; ++i) out[i * 32 + lane] = results[i];
}

__global__ void WideShuffle(const unsigned long long* in, unsigned long long* out) {
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, in[threadIdx.x], 31);
}

__global__ void Product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  const int group = static_cast<int>(threadIdx.x) / 4;
  const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
  const auto word = [](const __nv_bfloat16* matrix, int i) {
    return *reinterpret_cast<const unsigned*>(matrix + i);
  };
  const unsigned a_words[4] = {word(a, group * 16 + pair), word(a, (group + 8) * 16 + pair),
                               word(a, group * 16 + pair + 8),
                               word(a, (group + 8) * 16 + pair + 8)};
  const unsigned b_words[2] = {word(b, group * 16 + pair), word(b, group * 16 + pair + 8)};
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = out[(group + i / 2 * 8) * 8 + pair + i % 2];
  emulation::MmaM16N8K16(d, a_words, b_words);
  for (int i = 0; i < 4; ++i) out[(group + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}

__global__ void LoadMatrix(const unsigned short* in, bool is_transposed, unsigned* out) {
  __shared__ __align__(16) unsigned short rows[32 * 8];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) rows[lane * 8 + i] = in[lane * 8 + i];
  __syncwarp();
  unsigned result[4];
  if (is_transposed) {
    emulation::LoadMatrixX4Transposed(result, rows + lane * 8);
  } else {
    emulation::LoadMatrixX4(result, rows + lane * 8);
  }
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = result[i];
}

__global__ void PipelinedCopy(const int* in, int num_tiles, int* out) {
  __shared__ __align__(16) int ring[2][kTile];
  const int t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int tile) {
    if (tile < num_tiles) {
      emulation::CopyAsync16(&ring[tile % 2][t * 4], in + tile * kTile + t * 4);
    }
    emulation::CommitCopies();  // of nothing after the last tile: groups are counted
  };
  fetch(0);
  for (int tile = 0; tile < num_tiles; ++tile) {
    fetch(tile + 1);
    emulation::WaitForCopies(1);
    __syncthreads();
    for (int i = t; i < kTile; i += 32) {
      out[tile * kTile + i] = ring[tile % 2][i];
    }
    __syncthreads();
  }
}

__global__ void Atomics(int* out) {
  const int number = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
  atomicAdd(out, number);
  atomicMin(out + 1, 5 - number);
  atomicMax(out + 2, number);
  atomicOr(out + 3, 1 << number % 20);
  atomicAnd(out + 4, ~(1 << number % 20));
  atomicXor(out + 5, number);
  int seen = atomicAdd(out + 6, 0);
  for (int before = -1; before != seen;) {
    before = seen;
    seen = atomicCAS(out + 6, before, before + 1);
  }
  atomicExch(out + 7, number);
}

template <class... Parameters, class... Arguments>
cudaError_t LaunchWarp(void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

cudaError_t LaunchCollectives(const int* in, int operand, int width, unsigned* out) {
  return LaunchWarp(Collectives, in, operand, width, out);
}
cudaError_t LaunchWideShuffle(const unsigned long long* in, unsigned long long* out) {
  return LaunchWarp(WideShuffle, in, out);
}
cudaError_t LaunchProduct(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d) {
  return LaunchWarp(Product, a, b, d);
}
cudaError_t LaunchLoadMatrix(const unsigned short* in, bool is_transposed, unsigned* out) {
  return LaunchWarp(LoadMatrix, in, is_transposed, out);
}
cudaError_t LaunchPipelinedCopy(const int* in, int num_tiles, int* out) {
  return LaunchWarp(PipelinedCopy, in, num_tiles, out);
}
cudaError_t LaunchAtomics(int* out) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(3);
  config.blockDim = dim3(64);
  return cudaLaunchKernelEx(&config, Atomics, out);
}

}  // namespace forerun::cuda
