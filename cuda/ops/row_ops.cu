#include "cpp/verify/verifier.h"
#include "cuda/ops/activation.cuh"
#include "cuda/ops/launch.h"
#include "cuda/ops/row_ops.h"
#include "cuda/portable.cuh"
#include "cuda/verify/device.cuh"

namespace forerun::cuda {
namespace {

constexpr int kNormThreads = 256;

__device__ int Thread() { return static_cast<int>(threadIdx.x); }

// One block per row and group: thread t adds the squares of values t, t + kNormThreads and so on.
__global__ void __launch_bounds__(kNormThreads)
    NormGroup(ConstRows x, const float* weight, int group, float eps, Rows out) {
  __shared__ BlockCollectives<kNormThreads> block;
  const int row = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * group;
  const float* in = x.data + row * x.stride + first;
  float sum = 0.0f;
  for (int i = Thread(); i < group; i += kNormThreads) sum = fmaf(in[i], in[i], sum);
  sum = block.Reduce(sum, Sum());
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(group) + eps);
  float* result = out.data + row * out.stride + first;
  for (int i = Thread(); i < group; i += kNormThreads) result[i] = in[i] * inverse * weight[i];
}

// body(row, column) for every element of [rows, cols].
template <typename Body>
__device__ void ForElements(int rows, int cols, Body body) {
  const std::int64_t count = std::int64_t{rows} * cols;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    body(static_cast<int>(i / cols), static_cast<int>(i % cols));
  }
}

template <typename T>
__device__ T& At(const BasicRows<T>& rows, int row, int col) {
  return rows.data[row * rows.stride + col];
}

__global__ void GateRows(ConstRows gate_up, Activation activation, Rows out) {
  ForElements(out.rows, out.cols, [&](int r, int c) {
    At(out, r, c) = Activated(activation, At(gate_up, r, c)) * At(gate_up, r, out.cols + c);
  });
}
__global__ void ActivateRows(ConstRows x, const float* bias, Activation activation, Rows out) {
  ForElements(out.rows, out.cols, [&](int r, int c) {
    const float value = At(x, r, c);
    At(out, r, c) = Activated(activation, bias != nullptr ? value + bias[c] : value);
  });
}
__global__ void AddRows(ConstRows y, Rows x) {
  ForElements(x.rows, x.cols, [&](int r, int c) { At(x, r, c) += At(y, r, c); });
}
__global__ void ScaleRows(float factor, Rows x) {
  ForElements(x.rows, x.cols, [&](int r, int c) { At(x, r, c) *= factor; });
}
__global__ void SoftCapRows(Rows x, float cap) {
  ForElements(x.rows, x.cols, [&](int r, int c) { At(x, r, c) = CapSoftly(At(x, r, c), cap); });
}
__global__ void ZeroRows(Rows x) {
  ForElements(x.rows, x.cols, [&](int r, int c) { At(x, r, c) = 0.0f; });
}
__global__ void Gather(ConstRows x, const std::int32_t* indices, Rows out) {
  ForElements(out.rows, out.cols,
              [&](int r, int c) { At(out, r, c) = At(x, indices != nullptr ? indices[r] : r, c); });
}

// A block per row: of those with the same index only the last one is written.
__global__ void __launch_bounds__(kElementThreads)
    Scatter(ConstRows x, const std::int32_t* indices, Rows out) {
  const int row = static_cast<int>(blockIdx.x), index = indices[row];
  bool is_last = true;
  for (int later = row + 1 + Thread(); later < x.rows; later += int{kElementThreads}) {
    is_last = is_last && indices[later] != index;
  }
  if (__syncthreads_and(is_last)) {
    for (int c = Thread(); c < x.cols; c += int{kElementThreads}) At(out, index, c) = At(x, row, c);
  }
}
// A thread owns a column, so that its writes are in order.
__global__ void Move(const KvMove* moves, int num_moves, Rows x) {
  ForElements(1, x.cols, [&](int, int c) {
    for (int i = 0; i < num_moves; ++i) {
      x.data[moves[i].to * x.stride + c] = x.data[moves[i].from * x.stride + c];
    }
  });
}

template <typename... Parameters, typename... Args>
cudaError_t RunElements(std::int64_t rows, int cols, cudaStream_t stream,
                        void (*kernel)(Parameters...), const Args&... args) {
  return Run({dim3(NumElementBlocks(rows * cols)), kElementThreads, stream}, kernel, args...);
}

__global__ void TakeTopTokens(DeviceTokens from, const int* sources, int num_rows, int* tokens) {
  ForElements(num_rows, 1, [&](int r, int) {
    const int token = max(from.top[sources[r]].token, 0);
    tokens[r] = from.ids != nullptr ? from.ids[token] : token;
  });
}

}  // namespace

cudaError_t RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out,
                    cudaStream_t stream) {
  return Run({dim3(static_cast<unsigned>(x.rows), static_cast<unsigned>(x.cols / group)),
              kNormThreads, stream},
             NormGroup, x, weight, group, eps, out);
}
cudaError_t GatedActivation(ConstRows gate_up, Activation activation, Rows out,
                            cudaStream_t stream) {
  return RunElements(out.rows, out.cols, stream, GateRows, gate_up, activation, out);
}
cudaError_t Activate(ConstRows x, const float* bias, Activation activation, Rows out,
                     cudaStream_t stream) {
  return RunElements(out.rows, out.cols, stream, ActivateRows, x, bias, activation, out);
}
cudaError_t Add(ConstRows y, Rows x, cudaStream_t stream) {
  return RunElements(x.rows, x.cols, stream, AddRows, y, x);
}
cudaError_t Scale(float factor, Rows x, cudaStream_t stream) {
  return RunElements(x.rows, x.cols, stream, ScaleRows, factor, x);
}
cudaError_t SoftCap(Rows x, float cap, cudaStream_t stream) {
  return RunElements(x.rows, x.cols, stream, SoftCapRows, x, cap);
}
cudaError_t Zero(Rows x, cudaStream_t stream) {
  return RunElements(x.rows, x.cols, stream, ZeroRows, x);
}
cudaError_t GatherRows(ConstRows x, const std::int32_t* indices, Rows out, cudaStream_t stream) {
  return RunElements(out.rows, out.cols, stream, Gather, x, indices, out);
}
cudaError_t ScatterRows(ConstRows x, const std::int32_t* indices, Rows out, cudaStream_t stream) {
  return Run({dim3(static_cast<unsigned>(x.rows)), kElementThreads, stream}, Scatter, x, indices,
             out);
}
cudaError_t MoveRows(const KvMove* moves, int num_moves, Rows x, cudaStream_t stream) {
  return RunElements(1, x.cols, stream, Move, moves, num_moves, x);
}

cudaError_t TakeTokens(const DeviceTokens& from, const std::int32_t* sources, int num_rows,
                       std::int32_t* tokens, cudaStream_t stream) {
  return Run({dim3(NumElementBlocks(num_rows)), kElementThreads, stream}, TakeTopTokens, from,
             sources, num_rows, tokens);
}

}  // namespace forerun::cuda
