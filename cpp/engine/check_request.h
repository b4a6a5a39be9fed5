// Checks that the engine can serve a request.
#ifndef FORERUN_CPP_ENGINE_CHECK_REQUEST_H_
#define FORERUN_CPP_ENGINE_CHECK_REQUEST_H_

#include <span>
#include <string>

#include "forerun/sampling_params.h"
#include "forerun/types.h"

namespace forerun {

struct RequestLimits {
  int vocab_size = 0;
  int max_model_len = 0;
  bool has_token_bytes = false;
};

// Throws InvalidArgument for `field` unless the token belongs to the vocabulary.
void CheckTokenId(const std::string& field, TokenId token, int vocab_size);

// Throws InvalidArgument that names the first wrong field.
void CheckRequest(std::span<const TokenId> prompt, const SamplingParams& params,
                  const RequestLimits& limits);

// The same of SubmitOptions::prediction.
void CheckPrediction(std::span<const TokenId> prediction, const RequestLimits& limits);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_CHECK_REQUEST_H_
