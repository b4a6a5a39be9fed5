#include "cpp/util/fork.h"

#include <pthread.h>

#include <atomic>

namespace forerun {
namespace {

std::atomic<int> num_forks{0};

}  // namespace

int NumForks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++num_forks; });
  static_cast<void>(registered);
  return num_forks.load(std::memory_order_relaxed);
}

}  // namespace forerun
