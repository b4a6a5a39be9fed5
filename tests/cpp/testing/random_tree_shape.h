// Trees of random shape, as paths of ranks.
#ifndef FORERUN_TESTS_CPP_TESTING_RANDOM_TREE_SHAPE_H_
#define FORERUN_TESTS_CPP_TESTING_RANDOM_TREE_SHAPE_H_

#include <random>
#include <set>
#include <vector>

namespace forerun::testing {

// At most so many nodes and levels, and ranks below num_ranks; in no order.
inline std::vector<std::vector<int>> RandomTreeShape(std::mt19937& random, int max_nodes,
                                                     int max_depth, int num_ranks) {
  std::set<std::vector<int>> paths;
  std::vector<std::vector<int>> grown = {{}};
  const int num_nodes = 1 + static_cast<int>(random() % max_nodes);
  for (int i = 0; i < num_nodes; ++i) {
    std::vector<int> path = grown[random() % grown.size()];
    if (static_cast<int>(path.size()) == max_depth) continue;
    path.push_back(static_cast<int>(random() % num_ranks));
    if (paths.insert(path).second) grown.push_back(path);
  }
  if (paths.empty()) paths.insert(std::vector<int>{0});
  return {paths.rbegin(), paths.rend()};
}

}  // namespace forerun::testing

#endif  // FORERUN_TESTS_CPP_TESTING_RANDOM_TREE_SHAPE_H_
