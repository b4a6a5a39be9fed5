// A device's verifier for logits that the CPU computed.
#ifndef FORERUN_CPP_VERIFY_UPLOADING_VERIFIER_H_
#define FORERUN_CPP_VERIFY_UPLOADING_VERIFIER_H_

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cpp/tensor/memory.h"
#include "cpp/tensor/tensor.h"
#include "cpp/util/check.h"
#include "cpp/verify/verifier.h"

namespace forerun {

// Takes logits in host memory, copies them to the device in one piece and has them verified there,
// by a verifier that works in the order of the memory's operations. The memory must outlive it.
class UploadingVerifier : public Verifier {
 public:
  UploadingVerifier(std::unique_ptr<Verifier> verifier, Memory& memory,
                    const VerifierLimits& limits)
      : verifier_(std::move(verifier)),
        memory_(memory),
        logits_(memory, sizeof(float) * static_cast<std::size_t>(limits.max_rows) *
                            static_cast<std::size_t>(limits.vocab_size)) {}

  void Begin(ConstRows logits, std::span<const SampleRequest> requests) override {
    verifier_->Begin(Upload(logits), requests);
  }
  std::span<const Outcome> Finish() override { return verifier_->Finish(); }
  std::vector<TokenLogprob>& logprobs() override { return verifier_->logprobs(); }
  const TopToken* StartTop(ConstRows logits, int count, std::size_t begin) override {
    return verifier_->StartTop(Upload(logits), count, begin);
  }
  void FinishTop(std::span<TopToken> out) override { verifier_->FinishTop(out); }

 private:
  ConstRows Upload(ConstRows logits) {
    const std::size_t num_bytes = sizeof(float) * static_cast<std::size_t>(logits.rows) *
                                  static_cast<std::size_t>(logits.cols);
    FORERUN_CHECK(logits.stride == logits.cols && num_bytes <= logits_.num_bytes());
    if (num_bytes > 0) memory_.StartUpload(logits_.as<float>(), logits.data, num_bytes);
    return {logits_.as<float>(), logits.rows, logits.cols};
  }

  std::unique_ptr<Verifier> verifier_;
  Memory& memory_;
  AlignedBuffer logits_;  // [max_rows, vocab_size], on the device
};

}  // namespace forerun

#endif  // FORERUN_CPP_VERIFY_UPLOADING_VERIFIER_H_
