// Random numbers for tests of operations, and whether floats are the same to the bit.
#ifndef FORERUN_TESTS_CPP_TESTING_RANDOM_FLOATS_H_
#define FORERUN_TESTS_CPP_TESTING_RANDOM_FLOATS_H_

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace forerun {

class RandomFloats {
 public:
  explicit RandomFloats(unsigned seed) : engine_(seed) {}

  int Between(int least, int most) {
    return std::uniform_int_distribution<int>(least, most)(engine_);
  }
  int Below(int end) { return Between(0, end - 1); }
  bool Flip() { return Between(0, 1) == 1; }
  float Normal(float deviation = 1.0f) {
    return std::normal_distribution<float>(0.0f, deviation)(engine_);
  }
  std::vector<float> Normals(std::size_t count, float deviation = 1.0f) {
    std::vector<float> values(count);
    for (float& value : values) value = Normal(deviation);
    return values;
  }
  std::vector<int> Permutation(int count) {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), engine_);
    return order;
  }

 private:
  std::mt19937 engine_;
};

inline bool SameBits(const float* a, const float* b, int count) {
  return std::memcmp(a, b, sizeof(float) * count) == 0;
}

}  // namespace forerun

#endif  // FORERUN_TESTS_CPP_TESTING_RANDOM_FLOATS_H_
