// Draws a token from a row of masses that are computed, not stored.
//
// The first pass adds up the masses of tiles of tokens, one warp a tile. The draw finds the tile in
// which its point lies, and one warp reads that tile once more.
#ifndef FORERUN_CUDA_VERIFY_RESIDUAL_CUH_
#define FORERUN_CUDA_VERIFY_RESIDUAL_CUH_

#include "cuda/portable.cuh"
#include "cuda/verify/row_reader.cuh"

namespace forerun::cuda {

inline constexpr int kMaxMassTiles = 256;
inline constexpr int kMinMassTile = 1024;  // tokens

// What of a row's kept tokens may be drawn.
template <typename T>
struct Residual {
  const RowReader<T>& row;
  const RowState& state;
  const float* draft_weights;  // [vocab_size]; null: the draft is certain
  double target_scale, draft_scale;

  // Of a unit of mass.
  __device__ double unit() const { return draft_weights == nullptr ? 0x1p-32 : 0x1p-52; }
  // What the draft leaves of the target; the token's weight where the draft is certain.
  __device__ Mass operator()(TokenId token) const {
    const Mass weight = row.KeptWeight(state, token);
    if (weight == 0 || draft_weights == nullptr) return weight;
    const double mass =
        static_cast<double>(weight) * 0x1p-32 * target_scale - draft_weights[token] * draft_scale;
    return mass > 0.0 ? static_cast<Mass>(RoundMass(mass) * 0x1p52) : 0;
  }
};

__device__ inline int LaneIndex() { return static_cast<int>(threadIdx.x) % kWarpSize; }

__device__ inline int MassTileSize(int vocab_size) {
  int size = kMinMassTile;
  while (size * kMaxMassTiles < vocab_size) size *= 2;
  return size;
}

// tiles[i] = the mass of the tokens [i, i + 1) * MassTileSize. By all threads of the block, which
// has to wait before `tiles` are read.
template <typename MassOf>
__device__ void SumTiles(int vocab_size, const MassOf& mass_of, Mass* tiles) {
  const int tile_size = MassTileSize(vocab_size);
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int tile = static_cast<int>(threadIdx.x) / kWarpSize; tile * tile_size < vocab_size;
       tile += num_warps) {
    const int end = min((tile + 1) * tile_size, vocab_size);
    Mass sum = 0;
    for (int token = tile * tile_size + LaneIndex(); token < end; token += kWarpSize) {
      sum += mass_of(token);
    }
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, mask);
    }
    if (LaneIndex() == 0) tiles[tile] = sum;
  }
}

__device__ inline int NumMassTiles(int vocab_size) {
  return (vocab_size - 1) / MassTileSize(vocab_size) + 1;
}
__device__ inline Mass SumOfTiles(int vocab_size, const Mass* tiles) {
  Mass sum = 0;
  for (int i = 0; i < NumMassTiles(vocab_size); ++i) sum += tiles[i];
  return sum;
}

// A tile and the mass before it.
struct TileStart {
  int tile;
  Mass before;
};

// The tile in which the mass of all tokens up to one exceeds `point`. By one thread.
__device__ inline TileStart FindTile(int vocab_size, const Mass* tiles, double unit, double point) {
  const int num_tiles = NumMassTiles(vocab_size);
  TileStart start = {0, 0};
  while (start.tile + 1 < num_tiles &&
         static_cast<double>(start.before + tiles[start.tile]) * unit <= point) {
    start.before += tiles[start.tile++];
  }
  return start;
}

// The first token of the tile with which the mass exceeds `point`. By one warp; all lanes get it.
template <typename MassOf>
__device__ TokenId FindToken(int vocab_size, const MassOf& mass_of, TileStart start, double unit,
                             double point) {
  const int tile_size = MassTileSize(vocab_size);
  const int end = min((start.tile + 1) * tile_size, vocab_size);
  Mass before = start.before;
  for (int first = start.tile * tile_size; first < end; first += kWarpSize) {
    const int token = first + LaneIndex();
    Mass sum = token < end ? mass_of(token) : 0;
#pragma unroll
    for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
      const Mass earlier = __shfl_up_sync(kFullWarp, sum, delta);
      if (LaneIndex() >= static_cast<int>(delta)) sum += earlier;
    }
    const unsigned beyond =
        __ballot_sync(kFullWarp, static_cast<double>(before + sum) * unit > point);
    if (beyond != 0) return first + __ffs(static_cast<int>(beyond)) - 1;
    before += __shfl_sync(kFullWarp, sum, kWarpSize - 1);
  }
  return -1;
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_RESIDUAL_CUH_
