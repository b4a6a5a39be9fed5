// Names from the symbol table and the debug lines of the program or library that the emulation is
// linked into: all kernels are in the same one.
#ifndef FORERUN_CUDA_EMULATION_SYMBOLS_H_
#define FORERUN_CUDA_EMULATION_SYMBOLS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace forerun::emulation {

// Demangled, without parameters; an address in digits if the table was stripped.
std::string FunctionName(const void* function);

// A static object of a function that begins as zeros: in a kernel file, shared memory.
struct StaticObject {
  std::uintptr_t begin, end;
  std::string symbol;
  std::string Name() const;  // demangled
};
const std::vector<StaticObject>& StaticObjects();  // by address
// Those of this very function. Objects of functions that it calls are not among them.
std::vector<StaticObject> StaticObjectsOf(const void* function);

// In the code or the data of the program or library.
bool IsInImage(const void* address);

// Offset in the program: what LinesOf takes. 32 bits are enough for one.
std::uint32_t OffsetOf(const void* code);
// The source lines of the call whose return address has the offset, inlined callers after it.
std::string LinesOf(std::uint32_t offset);

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_SYMBOLS_H_
