// Random draft trees, as parents of nodes.
#ifndef FORERUN_TESTS_CPP_TESTING_RANDOM_TREE_H_
#define FORERUN_TESTS_CPP_TESTING_RANDOM_TREE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

namespace forerun::testing {

// Parents of `size` nodes: one chain, a bush of chains, anything, or all children of one node.
// `below(n)` draws from [0, n).
template <typename Below>
std::vector<std::int32_t> RandomParents(int size, const Below& below) {
  const int kind = below(5);
  std::vector<std::int32_t> parents;
  for (int i = 0; i < size; ++i) {
    switch (kind) {
      case 0:
        parents.push_back(i - 1);
        break;
      case 1:
        parents.push_back(-1);
        break;
      case 2:
        parents.push_back(below(4) == 0 ? below(i + 1) - 1 : i - 1);
        break;
      case 3:
        parents.push_back(std::max(-1, i - 1 - below(3)));
        break;
      default:
        parents.push_back(below(i + 1) - 1);
    }
  }
  return parents;
}

// The nodes from the root to `node`.
inline std::vector<int> PathTo(const std::vector<std::int32_t>& parents, int node) {
  std::vector<int> path;
  for (; node >= 0; node = parents[node]) path.insert(path.begin(), node);
  return path;
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_RANDOM_TREE_H_
