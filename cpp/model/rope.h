// Rotary position embeddings: the angles that a RopeSpec means.
#ifndef FORERUN_CPP_MODEL_ROPE_H_
#define FORERUN_CPP_MODEL_ROPE_H_

#include <vector>

#include "cpp/model/spec/spec.h"

namespace forerun {

// Radians per position of each of the head_dim / 2 pairs.
std::vector<double> RopeFrequencies(const RopeSpec& spec, int head_dim);

// Floats [num_positions, head_dim] as Ops::RotateAndStore wants them: per position head_dim / 2
// cosines, then as many sines, both times the spec's attention factor.
std::vector<float> MakeRopeTable(const RopeSpec& spec, int head_dim, int num_positions);

}  // namespace forerun

#endif  // FORERUN_CPP_MODEL_ROPE_H_
