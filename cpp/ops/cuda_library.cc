#include "cpp/ops/cuda_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "forerun/error.h"

namespace forerun {
namespace {

constexpr char kVariable[] = "FORERUN_CUDA_LIBRARY";

[[noreturn]] void Fail(const std::string& found, const std::string& remedy) {
  throw DeviceError("a library for CUDA", found, remedy + ", or use device 'cpu'");
}

std::filesystem::path LibraryPath() {
  // Absolute, or the loader would search its own folders for it.
  if (const char* path = std::getenv(kVariable); path != nullptr && *path != '\0')
    return std::filesystem::absolute(path);
  Dl_info self;
  const void* code = reinterpret_cast<const void*>(&OpenCudaLibrary);
  if (dladdr(code, &self) == 0 || self.dli_fname == nullptr) return "libforerun_cuda.so";
  return std::filesystem::absolute(self.dli_fname).parent_path() / "libforerun_cuda.so";
}

}  // namespace

const CudaLibrary& OpenCudaLibrary() {
  const std::filesystem::path path = LibraryPath();
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    Fail("no file " + path.string(),
         "build with nvcc (pip install \"cuda-toolkit[nvcc,cudart,cccl]==13.0.*\") and "
         "FORERUN_CUDA=ON, or set " +
             std::string(kVariable));
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) Fail(dlerror(), "build it again");
  void* symbol = dlsym(library, kGetCudaLibrary);
  if (symbol == nullptr)
    Fail(path.string() + " without the symbol " + kGetCudaLibrary,
         "set " + std::string(kVariable) + " to a library of Forerun's");
  const CudaLibrary& table = *reinterpret_cast<GetCudaLibrary>(symbol)();
  if (std::string_view(table.build_id) != BuildId()) {
    Fail(path.string() + " of build " + table.build_id,
         std::string("build it together with this one, ") + BuildId());
  }
  return table;
}

}  // namespace forerun
