// How improbable counts are under given probabilities.
#ifndef FORERUN_TESTS_CPP_TESTING_CHI_SQUARE_H_
#define FORERUN_TESTS_CPP_TESTING_CHI_SQUARE_H_

#include <cmath>
#include <numeric>
#include <vector>

namespace forerun::testing {

// Standard deviations by which chi-square exceeds its mean (Wilson and Hilferty's cube root).
// Infinite when something impossible was drawn.
inline double Surprise(const std::vector<int>& counts, const std::vector<double>& expected) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double chi_square = 0.0;
  int degrees = -1;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double mean = expected[i] * total;
    if (mean == 0.0 && counts[i] == 0) continue;
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
    ++degrees;
  }
  if (degrees <= 0) return 0.0;
  const double spread = 2.0 / (9.0 * degrees);
  return (std::cbrt(chi_square / degrees) - (1.0 - spread)) / std::sqrt(spread);
}
inline constexpr double kTooSurprising = 4.5;  // 3 in a million

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_CHI_SQUARE_H_
