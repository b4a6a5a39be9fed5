#include "cpp/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace forerun {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

// Llama 3: long waves are slowed by the factor, short ones kept, those between blended.
double ScaleLlama3(const RopeSpec& spec, double frequency) {
  const double num_waves = spec.original_max_position * frequency / kTwoPi;
  if (num_waves > spec.high_freq_factor) return frequency;
  if (num_waves < spec.low_freq_factor) return frequency / spec.factor;
  const double keep =
      (num_waves - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor);
  return (1.0 - keep) * frequency / spec.factor + keep * frequency;
}

// YaRN: pairs below `low` keep their frequency, pairs above `high` are slowed by the factor.
struct YarnRamp {
  double low, high;

  YarnRamp(const RopeSpec& spec, int head_dim) {
    // The (fractional) pair that turns `num_rotations` times within the original context.
    const auto pair_of = [&](double num_rotations) {
      return head_dim * std::log(spec.original_max_position / (num_rotations * kTwoPi)) /
             (2.0 * std::log(spec.theta));
    };
    low = pair_of(spec.beta_fast);
    high = pair_of(spec.beta_slow);
    if (spec.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, head_dim - 1.0);
    if (low == high) high += 0.001;
  }

  double Slowed(int pair) const { return std::clamp((pair - low) / (high - low), 0.0, 1.0); }
};

}  // namespace

std::vector<double> RopeFrequencies(const RopeSpec& spec, int head_dim) {
  const int num_pairs = head_dim / 2;
  std::vector<double> frequencies(num_pairs);
  for (int i = 0; i < num_pairs; ++i) {
    frequencies[i] = 1.0 / std::pow(spec.theta, 2.0 * i / head_dim);
  }
  switch (spec.scaling) {
    case RopeScaling::kNone:
      break;
    case RopeScaling::kLinear:
      for (double& frequency : frequencies) frequency /= spec.factor;
      break;
    case RopeScaling::kLlama3:
      for (double& frequency : frequencies) frequency = ScaleLlama3(spec, frequency);
      break;
    case RopeScaling::kYarn: {
      const YarnRamp ramp(spec, head_dim);
      for (int i = 0; i < num_pairs; ++i) {
        const double slowed = ramp.Slowed(i);
        frequencies[i] *= slowed / spec.factor + (1.0 - slowed);
      }
      break;
    }
  }
  return frequencies;
}

std::vector<float> MakeRopeTable(const RopeSpec& spec, int head_dim, int num_positions) {
  // Sine and cosine are taken anew at every kStride-th position and turned by one position's angle
  // in between: as exact as float32 can hold, and a long table costs milliseconds.
  constexpr int kStride = 64;
  const int num_pairs = head_dim / 2;
  std::vector<float> table(static_cast<std::size_t>(num_positions) * head_dim);
  const std::vector<double> frequencies = RopeFrequencies(spec, head_dim);
  std::vector<double> cosine(num_pairs), sine(num_pairs), step_cosine(num_pairs),
      step_sine(num_pairs);
  for (int i = 0; i < num_pairs; ++i) {
    step_cosine[i] = std::cos(frequencies[i]);
    step_sine[i] = std::sin(frequencies[i]);
  }
  for (int position = 0; position < num_positions; ++position) {
    float* row = table.data() + std::int64_t{position} * head_dim;
    for (int i = 0; i < num_pairs; ++i) {
      if (position % kStride == 0) {
        cosine[i] = std::cos(position * frequencies[i]);
        sine[i] = std::sin(position * frequencies[i]);
      } else {
        const double turned = cosine[i] * step_cosine[i] - sine[i] * step_sine[i];
        sine[i] = sine[i] * step_cosine[i] + cosine[i] * step_sine[i];
        cosine[i] = turned;
      }
      row[i] = static_cast<float>(cosine[i] * spec.attention_factor);
      row[num_pairs + i] = static_cast<float>(sine[i] * spec.attention_factor);
    }
  }
  return table;
}

}  // namespace forerun
