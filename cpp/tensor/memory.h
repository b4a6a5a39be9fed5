// The memory that a backend computes in: the host's, or a device's. Rows, vectors and buffers of a
// backend lie in it; only the backend's operations read and write them.
#ifndef FORERUN_CPP_TENSOR_MEMORY_H_
#define FORERUN_CPP_TENSOR_MEMORY_H_

#include <cstddef>

namespace forerun {

class Memory {
 public:
  virtual ~Memory() = default;

  // Uninitialised, aligned to 64 bytes. Throws std::bad_alloc, or DeviceError for a device.
  virtual void* Allocate(std::size_t num_bytes) = 0;
  virtual void Free(void* data) noexcept = 0;

  // Copies from the host into this memory and back, after all operations that were started before.
  // The copy is complete on return.
  virtual void Upload(void* to, const void* from, std::size_t num_bytes) = 0;
  virtual void Download(void* to, const void* from, std::size_t num_bytes) = 0;

  // An upload that need not be complete on return: operations that are started later find the copy,
  // and `from` stays as it is until one of them, or a download, was waited for.
  virtual void StartUpload(void* to, const void* from, std::size_t num_bytes) {
    Upload(to, from, num_bytes);
  }
};

Memory& HostMemory();

}  // namespace forerun

#endif  // FORERUN_CPP_TENSOR_MEMORY_H_
