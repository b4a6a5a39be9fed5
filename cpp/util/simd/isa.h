// The instruction sets that kernels are compiled for, and those that this machine has.
//
// Kernels are written once, on top of vec.h, and compiled for each instruction set in a source of
// its own (cmake/isa_sources.cmake has the flags). Such a source puts a table of functions into the
// namespace of its instruction set, and one switch over Isa per table chooses at run time.
//
// A source compiled for more than the machine may have must not use anything inline or templated
// from outside that namespace (std containers and algorithms included), unless it is always
// inlined: the linker keeps one copy of such functions, and it might keep the one that old
// processors cannot run.
#ifndef FORERUN_CPP_UTIL_SIMD_ISA_H_
#define FORERUN_CPP_UTIL_SIMD_ISA_H_

#include <span>
#include <string>

namespace forerun {

// Each includes those before it.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512BFloat16 };

// "portable", "avx2", "avx512", "avx512bf16".
const char* Name(Isa isa);

// The fastest first; the last one is kPortable.
std::span<const Isa> AvailableIsas();

// Dot products of bytes, which change no bit: an Isa does not say whether there are any.
bool HasAvxVnni();     // AVX-VNNI and all of kAvx2
bool HasAvx512Vnni();  // AVX512_VNNI, _BW, _VL and all of kAvx512

// An available one by its name, the fastest for an empty name. Throws InvalidArgument for any
// other.
Isa FindIsa(const std::string& name);

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_SIMD_ISA_H_
