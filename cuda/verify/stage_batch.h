// A SampleBatch on its way to the GPU.
#ifndef FORERUN_CUDA_VERIFY_STAGE_BATCH_H_
#define FORERUN_CUDA_VERIFY_STAGE_BATCH_H_

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpp/verify/sample_batch.h"
#include "cuda/verify/step_buffer.h"

namespace forerun::cuda {

// Copies arrays to the host's memory, and says where they will be on the GPU. Without memory it
// counts the bytes.
class Stager {
 public:
  Stager(std::byte* host, const std::byte* device)
      : is_counting_(host == nullptr), host_(host), device_(device) {}

  template <typename T>
  const T* Add(const std::vector<T>& values) {
    T* const copy = host_.Take<T>(values.size());
    if (!is_counting_) std::ranges::copy(values, copy);
    return device_.Take<const T>(values.size());
  }
  // Where each row will be; those that are on the GPU stay where they are.
  const float* const* AddRows(const std::vector<SampleBatch::DrawnRow>& rows, int row_size) {
    const float** const addresses = host_.Take<const float*>(rows.size());
    const float* const* const found = device_.Take<const float*>(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const float* address = rows[i].weights;
      if (!rows[i].is_on_device) {
        float* const copy = host_.Take<float>(row_size);
        if (!is_counting_) std::copy_n(address, row_size, copy);
        address = device_.Take<const float>(row_size);
      }
      if (!is_counting_) addresses[i] = address;
    }
    return found;
  }
  std::size_t num_bytes() const { return host_.num_bytes(); }

 private:
  const bool is_counting_;
  Parts host_, device_;
};

// The batch's arrays, where they will be.
inline SampleArrays Stage(const SampleBatch& batch, Stager& stager) {
  SampleArrays arrays = batch.arrays();
  arrays.rules = stager.Add(batch.rules);
  arrays.rows = stager.Add(batch.rows);
  arrays.tokens = stager.Add(batch.tokens);
  arrays.parents = stager.Add(batch.parents);
  arrays.edits = stager.Add(batch.edits);
  arrays.bans = stager.Add(batch.bans);
  arrays.masks = stager.Add(batch.masks);
  arrays.scored_tokens = stager.Add(batch.scored_tokens);
  arrays.logprob_ids = stager.Add(batch.logprob_ids);
  arrays.draft_rows = stager.AddRows(batch.drawn_rows, batch.vocab_size);
  return arrays;
}

}  // namespace forerun::cuda

#endif  // FORERUN_CUDA_VERIFY_STAGE_BATCH_H_
