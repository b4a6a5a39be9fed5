// Draws a token from a row of masses that are computed, not stored.
//
// The first pass adds up the masses of parts of the row, one warp a part; a group of tokens that is
// cut off or weighs nothing, as its first one says, is not read. Where SampleRows has left the
// masses of tiles, nothing is read. The draw finds the part in which its point lies, and one warp
// reads that part once more.
#ifndef FORERUN_CUDA_VERIFY_RESIDUAL_CUH_
#define FORERUN_CUDA_VERIFY_RESIDUAL_CUH_

#include "cuda/portable.cuh"
#include "cuda/verify/row_reader.cuh"

namespace forerun::cuda {

inline constexpr int kMaxRowParts = 256;

// What of a row's kept tokens may be drawn.
template <typename T>
struct Residual {
  const RowReader<T>& row;
  const RowState& state;
  const Code* groups;          // of the row, as in RowWorkspace
  const float* draft_weights;  // [vocab_size]; null: the draft is certain
  double target_scale, draft_scale;

  // Of a unit of mass.
  __device__ double unit() const { return draft_weights == nullptr ? 0x1p-32 : 0x1p-52; }
  // What the draft leaves of the target; the token's weight where the draft is certain.
  __device__ Mass Of(float logit, TokenId token) const {
    if (CodeOf(logit, token) > state.cut) return 0;
    const Mass weight = row.WeightAt(logit, state.max);
    if (weight == 0 || draft_weights == nullptr) return weight;
    const double mass =
        static_cast<double>(weight) * 0x1p-32 * target_scale - draft_weights[token] * draft_scale;
    return mass > 0.0 ? static_cast<Mass>(RoundMass(mass) * 0x1p52) : 0;
  }
  // Whether any of the tokens from this one down can have mass.
  __device__ bool IsWanted(Code first) const {
    return first <= state.cut && row.Scaled(LogitOf(first), state.max) > kZeroWeight;
  }
};

__device__ inline int LaneIndex() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// Parts of a row are whole tiles.
__device__ inline int TilesPerPart(int vocab_size) {
  return (NumTiles(vocab_size) - 1) / kMaxRowParts + 1;
}
__device__ inline int PartTokens(int vocab_size) { return TilesPerPart(vocab_size) * kTileTokens; }
__device__ inline int NumParts(int vocab_size) {
  return (vocab_size - 1) / PartTokens(vocab_size) + 1;
}

template <typename T>
__device__ Mass MassOfTile(const Residual<T>& residual, int tile) {
  Mass sum = 0;
  for (int group = LaneIndex(); group < kRowThreads; group += kWarpSize) {
    if (!residual.IsWanted(residual.groups[tile * kRowThreads + group])) continue;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const TokenId first = tile * kTileTokens + (q * kRowThreads + group) * 4;
      const Quad quad = residual.row.QuadAt(first);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += residual.Of(quad.logits[i], first + i);
    }
  }
  return sum;
}

// parts[i] = the mass of part i. By all threads of the block, which has to wait before `parts` are
// read.
template <typename T>
__device__ void SumParts(int vocab_size, const Residual<T>& residual, Mass* parts) {
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int tiles_per_part = TilesPerPart(vocab_size);
  for (int part = static_cast<int>(threadIdx.x) / kWarpSize; part < NumParts(vocab_size);
       part += num_warps) {
    const int end = min((part + 1) * tiles_per_part, NumTiles(vocab_size));
    Mass sum = 0;
    for (int tile = part * tiles_per_part; tile < end; ++tile) sum += MassOfTile(residual, tile);
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, mask);
    }
    if (LaneIndex() == 0) parts[part] = sum;
  }
}

// The same where the masses are those of the row's tiles.
__device__ inline void SumTiles(int vocab_size, const TileState* tiles, Mass* parts) {
  const int tiles_per_part = TilesPerPart(vocab_size);
  for (int part = static_cast<int>(threadIdx.x); part < NumParts(vocab_size);
       part += static_cast<int>(blockDim.x)) {
    const int end = min((part + 1) * tiles_per_part, NumTiles(vocab_size));
    Mass sum = 0;
    for (int tile = part * tiles_per_part; tile < end; ++tile) sum += tiles[tile].mass;
    parts[part] = sum;
  }
}

__device__ inline Mass SumOfParts(int vocab_size, const Mass* parts) {
  Mass sum = 0;
  for (int i = 0; i < NumParts(vocab_size); ++i) sum += parts[i];
  return sum;
}

// A part and the mass before it.
struct PartStart {
  int part;
  Mass before;
};

// The part in which the mass of all tokens up to one exceeds `point`. By one thread.
__device__ inline PartStart FindPart(int vocab_size, const Mass* parts, double unit, double point) {
  PartStart start = {0, 0};
  while (start.part + 1 < NumParts(vocab_size) &&
         static_cast<double>(start.before + parts[start.part]) * unit <= point) {
    start.before += parts[start.part++];
  }
  return start;
}

// The first token of the part with which the mass exceeds `point`; mass_of(token) says which mass a
// token has. By one warp; all lanes get it.
template <typename MassOf>
__device__ TokenId FindToken(int vocab_size, const MassOf& mass_of, PartStart start, double unit,
                             double point) {
  const int part_tokens = PartTokens(vocab_size);
  const int end = min((start.part + 1) * part_tokens, vocab_size);
  Mass before = start.before;
  for (int first = start.part * part_tokens; first < end; first += kWarpSize) {
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
