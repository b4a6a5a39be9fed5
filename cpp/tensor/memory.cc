#include "cpp/tensor/memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace forerun {
namespace {

class Host : public Memory {
 public:
  void* Allocate(std::size_t num_bytes) override {
    void* data = std::aligned_alloc(64, (num_bytes + 63) / 64 * 64);
    if (data == nullptr) throw std::bad_alloc();
    return data;
  }
  void Free(void* data) noexcept override { std::free(data); }
  void Upload(void* to, const void* from, std::size_t num_bytes) override {
    std::memcpy(to, from, num_bytes);
  }
  void Download(void* to, const void* from, std::size_t num_bytes) override {
    std::memcpy(to, from, num_bytes);
  }
};

}  // namespace

Memory& HostMemory() {
  static Host host;
  return host;
}

}  // namespace forerun
