// What libforerun_cuda.so offers, and how it is opened.
//
// The library holds all that needs CUDA: kernels, the objects that run them, CUDA's runtime. It is
// opened when a GPU is asked for, so that one build serves machines with and without one. C++
// objects cross the border: both sides are of one build, which their ids say.
#ifndef FORERUN_CPP_OPS_CUDA_LIBRARY_H_
#define FORERUN_CPP_OPS_CUDA_LIBRARY_H_

#include <memory>

#include "cpp/ops/backend.h"

namespace forerun {

class TensorVerifier;

// The table of the library's functions; its only symbol is forerun_cuda_library.
struct CudaLibrary {
  const char* build_id;
  // The first GPU that CUDA shows. Throws DeviceError.
  std::unique_ptr<Backend> (*open_gpu)();
  // On the same GPU. Throws DeviceError.
  std::unique_ptr<TensorVerifier> (*open_tensor_verifier)();
};
using GetCudaLibrary = const CudaLibrary* (*)();
inline constexpr char kGetCudaLibrary[] = "forerun_cuda_library";

// Of the binary that calls it: version, compiler and a hash of all headers.
const char* BuildId();

// Opens the library that the environment variable FORERUN_CUDA_LIBRARY names, or else
// libforerun_cuda.so beside the binary that this code is in; it stays open. Throws DeviceError.
const CudaLibrary& OpenCudaLibrary();

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CUDA_LIBRARY_H_
