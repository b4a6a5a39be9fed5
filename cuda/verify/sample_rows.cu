#include <cstdint>

#include "cuda/verify/row_launch.h"
#include "cuda/verify/row_select.cuh"
#include "cuda/verify/sample_rows.h"

namespace forerun::cuda {
namespace {

constexpr std::size_t kAlignment = 16;

std::size_t Aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

template <typename T>
__device__ bool NeedsMass(const RowReader<T>& row) {
  return row.rule().top_p < 1.0 || row.row().needs_mass != 0;
}

// Bins of tokens by how far their logits are below the highest: equally wide, down to the cut or to
// where no token has weight.
class Bins {
 public:
  template <typename T>
  __device__ Bins(const RowReader<T>& row, const RowState& state) {
    const double depth = Min()(-row.Scaled(LogitOf(state.cut), state.max), 24.0);
    per_depth_ = depth > 0.0 ? kDepthBins / depth : 0.0;
  }
  __device__ int BinOf(double scaled) const {
    return static_cast<int>(Min()(-scaled * per_depth_, kDepthBins - 1.0));
  }

  // The most that a token of a bin weighs, up to rounding.
  __device__ Mass MaxWeight(int bin) const {
    return static_cast<Mass>(Weight(per_depth_ > 0.0 ? -bin / per_depth_ : 0.0) * 0x1p32);
  }

 private:
  double per_depth_;
};

struct TileScan {
  Code first, last;
  TokenId broken;
  std::int32_t unused;
};
__device__ TileScan NothingScanned() { return {kKeepAllCode, 0, kNoToken, 0}; }
__device__ TileScan ScanOf(Code code) { return {code, code, kNoToken, 0}; }
struct JoinScans {
  __device__ TileScan operator()(const TileScan& a, const TileScan& b) const {
    return {Min()(a.first, b.first), Max()(a.last, b.last), Min()(a.broken, b.broken), 0};
  }
};

// One block per tile and row: the tile's state, and its groups' maxima if cuts will be needed.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    ScanTiles(DeviceLogits logits, SampleArrays arrays, RowWorkspace work) {
  __shared__ RowCollectives block;
  __shared__ SharedRow shared;
  const int r = static_cast<int>(blockIdx.x), tile = static_cast<int>(blockIdx.y);
  const std::int64_t tile_index = std::int64_t{r} * gridDim.y + tile;
  shared.Load(arrays, r);
  const RowReader<T> row(logits, arrays, r, shared);
  if (!row.is_sampled()) return;

  Quad quads[kQuads];
  TileScan scan = NothingScanned();
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const TokenId token = QuadToken(tile, q);
    quads[q] = row.QuadAt(token);
    for (int i = 0; i < 4; ++i) {
      const float logit = quads[q].logits[i];
      if (logit > -INFINITY && logit < INFINITY) {
        scan = JoinScans()(scan, ScanOf(CodeOf(logit, token + i)));
      } else if (logit != -INFINITY) {
        scan.broken = Min()(scan.broken, token + i);
      }
    }
  }
  if (NeedsMass(row) || row.rule().top_k > 0) {
    work.groups[tile_index * kRowThreads + Thread()] = scan.first;
  }
  scan = block.Reduce(scan, JoinScans());

  double best_score = -INFINITY;
  if (!row.is_greedy() && row.wants_token() && scan.first != kKeepAllCode) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      ScoreQuad(row, LogitOf(scan.first), QuadToken(tile, q), quads[q], best_score,
                [&](Code, double score) { best_score = Max()(best_score, score); });
    }
    best_score = block.Reduce(best_score, Max());
  }
  if (Thread() != 0) return;
  work.tiles[tile_index] = {scan.first, scan.last, best_score, scan.broken, 0, 0};
}

// What the tiles' states say of a row, without the token that is sampled.
template <typename T>
__device__ RowState JoinTiles(const RowReader<T>& row, const TileState* tiles,
                              RowCollectives& block) {
  TileScan scan = NothingScanned();
  for (int tile = Thread(); tile < NumTiles(row.vocab_size()); tile += kRowThreads) {
    scan = JoinScans()(scan, {tiles[tile].first, tiles[tile].last, tiles[tile].broken, 0});
  }
  scan = block.Reduce(scan, JoinScans());
  RowState state = {};
  state.cut = scan.last;
  if (scan.broken != kNoToken) {
    state.status = kRowBroken;
    state.broken_token = scan.broken;
    state.broken_logit = row.At(scan.broken);
  } else if (scan.first == kKeepAllCode) {
    state.status = kRowEmpty;
  } else {
    state.max = LogitOf(scan.first);
    state.sampled = TokenOf(scan.first);
  }
  return state;
}

// The cut of min_p.
__device__ Code MinPCut(const SampleRule& rule, float max) {
  const double floor = max + rule.min_p_depth;
  if (floor < -3.4028234663852886e38) return kKeepAllCode;
  const auto rounded = static_cast<float>(floor);
  return CodeOf(rounded < floor ? nextafterf(rounded, INFINITY) : rounded, kNoToken);
}

// The least mass that is not below a share of another.
__device__ Mass ShareOf(double share, Mass mass) {
  return static_cast<Mass>(ceil(share * (static_cast<double>(mass) * 0x1p-32) * 0x1p32));
}

// Completes the state of a row whose tokens up to state.cut are listed.
template <typename T>
__device__ void FinishListed(RowSelector<T>& selector, const RowReader<T>& row,
                             RowCollectives& block, RowState& state) {
  const auto weight = [&](Code code) { return selector.WeightOf(code); };
  if (NeedsMass(row)) {
    Mass mass = 0;
    selector.VisitList(0, state.cut, [&](Code code) { mass += weight(code); });
    state.mass = block.Reduce(mass, Sum());
  }
  if (row.rule().top_p < 1.0) {
    const auto visit_list = [&](Code from, Code to, auto visit) {
      selector.VisitList(from, to, visit);
    };
    const Mass wanted = ShareOf(row.rule().top_p, state.mass);
    const Selected last =
        selector.Select(CodeOf(state.max, 0), state.cut, wanted, visit_list, weight);
    state.cut = last.code;
    state.mass = last.before + weight(last.code);
  }
  if (row.wants_token()) state.sampled = TokenOf(selector.SampleListed(state.cut));
}

// One block per row: the states of rows that need no mass of more tokens than can be listed.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    RankRows(DeviceLogits logits, SampleArrays arrays, RowWorkspace work) {
  __shared__ SelectScratch scratch;
  __shared__ SharedRow shared;
  const int r = static_cast<int>(blockIdx.x);
  shared.Load(arrays, r);
  const RowReader<T> row(logits, arrays, r, shared);
  if (!row.is_sampled()) return;
  const SampleRule& rule = row.rule();
  const std::int64_t first_tile = std::int64_t{r} * NumTiles(row.vocab_size());
  const TileState* const tiles = work.tiles + first_tile;
  RowState state = JoinTiles(row, tiles, scratch.block);
  if (state.status == kRowOk && !row.is_greedy()) {
    RowSelector<T> selector(row, tiles, work.groups + first_tile * kRowThreads, state.max, scratch);
    state.cut = Min()(state.cut, MinPCut(rule, state.max));
    const bool has_top_k = rule.top_k > 0 && rule.top_k < row.vocab_size();
    if (has_top_k && selector.ListFirst(rule.top_k, state.cut)) {
      FinishListed(selector, row, scratch.block, state);
    } else if (NeedsMass(row)) {
      state.is_pending = 1;
      state.has_tile_masses = rule.top_p == 1.0;
      for (int bin = Thread(); bin < kDepthBins; bin += kRowThreads) {
        work.bins[std::int64_t{r} * kDepthBins + bin] = 0;
      }
    } else {
      state.sampled = TokenOf(selector.Sample(state.cut));
    }
  }
  if (Thread() == 0) work.states[r] = state;
}

// One block per tile and row: adds the weights of the tile's kept tokens to the row's mass and
// bins; without top_p they are the tile's mass, too.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    WeighTiles(DeviceLogits logits, SampleArrays arrays, RowWorkspace work) {
  __shared__ RowCollectives block;
  __shared__ SharedRow shared;
  __shared__ RowState state;
  __shared__ Mass bins[kDepthBins];
  const int r = static_cast<int>(blockIdx.x), tile = static_cast<int>(blockIdx.y);
  for (int bin = Thread(); bin < kDepthBins; bin += kRowThreads) bins[bin] = 0;
  shared.Load(arrays, r);
  const RowReader<T> row(logits, arrays, r, shared);
  if (!row.is_sampled()) return;
  if (Thread() == 0) {
    state.is_pending = work.states[r].is_pending;
    state.max = work.states[r].max;
    state.cut = work.states[r].cut;
  }
  __syncthreads();
  if (!state.is_pending) return;

  const bool has_top_p = row.rule().top_p < 1.0;
  const std::int64_t tile_index = std::int64_t{r} * gridDim.y + tile;
  const Bins bins_of(row, state);
  const Code group = work.groups[tile_index * kRowThreads + Thread()];
  Mass mass = 0;
  if (group <= state.cut && row.Scaled(LogitOf(group), state.max) > kZeroWeight) {
    for (int q = 0; q < kQuads; ++q) {
      const TokenId token = QuadToken(tile, q);
      if (CodeOf(LogitOf(group), token) > state.cut) continue;
      const Quad quad = row.QuadAt(token);
      for (int i = 0; i < 4; ++i) {
        const double scaled = row.Scaled(quad.logits[i], state.max);
        if (!(scaled > kZeroWeight) || CodeOf(quad.logits[i], token + i) > state.cut) continue;
        const Mass weight = row.WeightAt(quad.logits[i], state.max);
        mass += weight;
        if (has_top_p) atomicAdd(&bins[bins_of.BinOf(scaled)], weight);
      }
    }
  }
  mass = block.Reduce(mass, Sum());  // a barrier, too
  if (Thread() == 0 && mass > 0) atomicAdd(&work.states[r].mass, mass);
  if (!has_top_p) {
    if (Thread() == 0) work.tiles[tile_index].mass = mass;
    return;
  }
  for (int bin = Thread(); bin < kDepthBins; bin += kRowThreads) {
    if (bins[bin] > 0) atomicAdd(&work.bins[std::int64_t{r} * kDepthBins + bin], bins[bin]);
  }
}

// The bin in which the weight of the tokens before reaches `limit`, what is before the bin and in
// it.
struct FoundBin {
  int bin;
  Mass before, mass;
};
__device__ FoundBin FindBin(const Mass* bins, Mass limit, SelectScratch& scratch) {
  constexpr int kOwn = kDepthBins / kRowThreads;
  Mass own[kOwn], sum = 0, total;
  for (int i = 0; i < kOwn; ++i) {
    own[i] = bins[Thread() * kOwn + i];
    sum += own[i];
  }
  Mass before = scratch.block.SumBefore(sum, total);
  for (int i = 0; i < kOwn; ++i) {
    if (before < limit && limit <= before + own[i]) {
      scratch.selected_first = static_cast<Code>(Thread() * kOwn + i);
      scratch.selected_before = before;
    }
    before += own[i];
  }
  __syncthreads();
  const auto bin = static_cast<int>(scratch.selected_first);
  return {bin, scratch.selected_before, bins[bin]};
}

// Lowers the cut to that of top_p, unless only the sampled token is wanted and follows without.
template <typename T>
__device__ void FinishTopP(RowSelector<T>& selector, const RowReader<T>& row, const Mass* bins,
                           SelectScratch& scratch, RowState& state) {
  const SampleRule& rule = row.rule();
  const Bins bins_of(row, state);
  const Mass limit = ShareOf(rule.top_p, state.mass);
  const FoundBin found = FindBin(bins, limit, scratch);
  const auto bin_of = [&](Code code) { return bins_of.BinOf(selector.Scaled(LogitOf(code))); };
  Code winner = kKeepAllCode;
  if (row.row().needs_mass == 0) {
    // If the winner over a superset is kept, it also wins over the kept tokens.
    winner = selector.Sample(state.cut);
    state.sampled = TokenOf(winner);
    if (bin_of(winner) < found.bin) return;
  }
  const auto wanted = [&](Code group) { return bin_of(group) <= found.bin; };
  const auto visit_bin = [&](Code from, Code to, auto visit) {
    selector.VisitRow(from, to, wanted, [&](Code code) {
      if (bin_of(code) == found.bin) visit(code);
    });
  };
  const auto visit_list = [&](Code from, Code to, auto visit) {
    selector.VisitList(from, to, visit);
  };
  const auto weight = [&](Code code) { return selector.WeightOf(code); };
  const Code first = CodeOf(state.max, 0);
  const Mass wanted_mass = limit - found.before;
  // A heavy bin has more tokens than can be listed.
  const bool is_light = found.mass <= kMaxListed * bins_of.MaxWeight(found.bin);
  const bool is_listed =
      is_light && selector.Collect([&](auto visit) { visit_bin(first, state.cut, visit); });
  const Selected last = is_listed
                            ? selector.Select(first, state.cut, wanted_mass, visit_list, weight)
                            : selector.Select(first, state.cut, wanted_mass, visit_bin, weight);
  state.cut = last.code;
  state.mass = found.before + last.before + weight(last.code);
  if (winner <= state.cut || rule.samples == 0) return;
  state.sampled = TokenOf(selector.Sample(state.cut));
}

// One block per row: the states that are pending.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    FinishRows(DeviceLogits logits, SampleArrays arrays, RowWorkspace work) {
  __shared__ SelectScratch scratch;
  __shared__ SharedRow shared;
  const int r = static_cast<int>(blockIdx.x);
  shared.Load(arrays, r);
  const RowReader<T> row(logits, arrays, r, shared);
  if (!row.is_sampled()) return;
  RowState state = work.states[r];
  __syncthreads();  // before it is written
  if (!state.is_pending) return;
  state.is_pending = 0;
  const std::int64_t first_tile = std::int64_t{r} * NumTiles(row.vocab_size());
  RowSelector<T> selector(row, work.tiles + first_tile, work.groups + first_tile * kRowThreads,
                          state.max, scratch);
  if (row.rule().top_p < 1.0) {
    FinishTopP(selector, row, work.bins + std::int64_t{r} * kDepthBins, scratch, state);
  } else if (row.wants_token()) {
    state.sampled = TokenOf(selector.Sample(state.cut));
  }
  if (Thread() == 0) work.states[r] = state;
}

template <typename T>
cudaError_t SampleRowsOf(const DeviceLogits& logits, const SampleArrays& arrays, bool needs_mass,
                         const RowWorkspace& work, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(arrays.num_rows);
  const RowGrid tiles = {rows, static_cast<unsigned>(NumTiles(arrays.vocab_size)), stream};
  const RowGrid whole = {rows, 1, stream};
  cudaError_t error = LaunchRows(tiles, ScanTiles<T>, logits, arrays, work);
  if (error == cudaSuccess) error = LaunchRows(whole, RankRows<T>, logits, arrays, work);
  if (!needs_mass) return error;
  if (error == cudaSuccess) error = LaunchRows(tiles, WeighTiles<T>, logits, arrays, work);
  if (error == cudaSuccess) error = LaunchRows(whole, FinishRows<T>, logits, arrays, work);
  return error;
}

}  // namespace

std::size_t RowWorkspace::NumBytes(int max_rows, int vocab_size) {
  const auto rows = static_cast<std::size_t>(max_rows);
  const std::size_t tiles = rows * NumTiles(vocab_size);
  return Aligned(rows * sizeof(RowState)) + Aligned(tiles * sizeof(TileState)) +
         Aligned(tiles * kRowThreads * sizeof(Code)) + rows * kDepthBins * sizeof(Mass);
}

RowWorkspace RowWorkspace::In(void* memory, int max_rows, int vocab_size) {
  const auto rows = static_cast<std::size_t>(max_rows);
  const std::size_t tiles = rows * NumTiles(vocab_size);
  auto* next = static_cast<std::byte*>(memory);
  const auto take = [&next](std::size_t bytes) {
    std::byte* const taken = next;
    next += Aligned(bytes);
    return taken;
  };
  RowWorkspace work = {};
  work.states = reinterpret_cast<RowState*>(take(rows * sizeof(RowState)));
  work.tiles = reinterpret_cast<TileState*>(take(tiles * sizeof(TileState)));
  work.groups = reinterpret_cast<Code*>(take(tiles * kRowThreads * sizeof(Code)));
  work.bins = reinterpret_cast<Mass*>(take(rows * kDepthBins * sizeof(Mass)));
  return work;
}

cudaError_t SampleRows(const DeviceLogits& logits, const SampleArrays& arrays, bool needs_mass,
                       const RowWorkspace& workspace, cudaStream_t stream) {
  return WithLogitsType(logits.dtype, [&](auto type) {
    return SampleRowsOf<decltype(type)>(logits, arrays, needs_mass, workspace, stream);
  });
}

}  // namespace forerun::cuda
