// What is done to rows one by one.
#ifndef FORERUN_CUDA_OPS_ROW_OPS_H_
#define FORERUN_CUDA_OPS_ROW_OPS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cpp/ops/activation.h"
#include "cpp/ops/forward_rows.h"
#include "cpp/ops/sequence_rows.h"
#include "cpp/tensor/tensor.h"

namespace forerun::cuda {

// As in Ops (cpp/ops/ops.h), on the stream.
cudaError_t RmsNorm(ConstRows x, const float* weight, int group, float eps, Rows out,
                    cudaStream_t stream);
cudaError_t GatedActivation(ConstRows gate_up, Activation activation, Rows out,
                            cudaStream_t stream);
cudaError_t Activate(ConstRows x, const float* bias, Activation activation, Rows out,
                     cudaStream_t stream);
cudaError_t Add(ConstRows y, Rows x, cudaStream_t stream);
cudaError_t Scale(float factor, Rows x, cudaStream_t stream);
cudaError_t SoftCap(Rows x, float cap, cudaStream_t stream);
cudaError_t Zero(Rows x, cudaStream_t stream);

// out[r] = x[indices[r]], or all of x where that is null. out has as many rows.
cudaError_t GatherRows(ConstRows x, const std::int32_t* indices, Rows out, cudaStream_t stream);
// out[indices[r]] = x[r], one after the other: of rows with the same index the last one counts.
cudaError_t ScatterRows(ConstRows x, const std::int32_t* indices, Rows out, cudaStream_t stream);

// tokens[r] = the id of token top[sources[r]], as DeviceTokens says.
cudaError_t TakeTokens(const DeviceTokens& from, const std::int32_t* sources, int num_rows,
                       std::int32_t* tokens, cudaStream_t stream);

// x[to] = x[from], one move after the other. `moves` lie on the GPU.
cudaError_t MoveRows(const KvMove* moves, int num_moves, Rows x, cudaStream_t stream);

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_OPS_ROW_OPS_H_
