// The confidence of a draft token that was found by counting.
#ifndef FORERUN_CPP_DRAFT_TEXT_CONFIDENCE_H_
#define FORERUN_CPP_DRAFT_TEXT_CONFIDENCE_H_

namespace forerun {

// The share of a context's occurrences that the draft token followed, smoothed as if the context
// had occurred another 2 / context_len times with some other token after it: ten occurrences are
// stronger evidence than one, and a long context than a short one. In (0, 1).
// REQUIRES: 1 <= count <= num_followed, context_len >= 1.
inline float CountConfidence(int count, int num_followed, int context_len) {
  return static_cast<float>(count / (num_followed + 2.0 / context_len));
}

}  // namespace forerun

#endif  // FORERUN_CPP_DRAFT_TEXT_CONFIDENCE_H_
