# forerun_isa_source(isa source): a source of the library for one instruction set of cpp/util/simd/isa.h, compiled with
# its flags; left out where the processor's family has no such instruction set.
function(forerun_isa_source isa source)
  # GCC reports false warnings about uninitialized variables inside its own intrinsics.
  set(no_false_alarm "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized>")
  set(portable_flags "")
  set(avx2_flags "-mavx2;-mfma;-mf16c")
  set(avxvnni_flags "-mavxvnni;${avx2_flags}")
  set(avx512_flags "-mavx512f;${avx2_flags};${no_false_alarm}")
  set(avx512vnni_flags "-mavx512bw;-mavx512vl;-mavx512vnni;${avx512_flags}")
  set(avx512bf16_flags "-mavx512bw;-mavx512vl;-mavx512bf16;${avx512_flags}")
  if(isa STREQUAL portable OR CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    target_sources(forerun PRIVATE ${source})
    set_source_files_properties(${source} TARGET_DIRECTORY forerun PROPERTIES COMPILE_OPTIONS "${${isa}_flags}")
  endif()
endfunction()
