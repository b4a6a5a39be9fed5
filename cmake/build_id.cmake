# The id that _core and libforerun_cuda.so must share, since C++ objects cross between them and each has its own copy of
# cpp/: the version, the compiler, the build type and a hash of all sources of cpp/ and cuda/. It is compiled into the
# library, as BuildId() of cpp/ops/cuda_library.h.
#
# Run with -P, this file writes OUT from ROOT and PREFIX: the build does so again when a source has changed, which
# compiles OUT alone and links.
set(patterns cpp/*.h cpp/*.cc cuda/*.h cuda/*.cc cuda/*.cu cuda/*.cuh)
if(CMAKE_SCRIPT_MODE_FILE)
  list(TRANSFORM patterns PREPEND ${ROOT}/)
  file(GLOB_RECURSE sources ${patterns})
  set(hashes "")
  foreach(source IN LISTS sources)
    file(SHA256 ${source} hash)
    string(APPEND hashes " ${hash}")
  endforeach()
  string(SHA256 hash "${hashes}")
  string(SUBSTRING ${hash} 0 16 hash)
  file(WRITE ${OUT} "#include \"cpp/ops/cuda_library.h\"\n\n"
                    "const char* forerun::BuildId() { return \"${PREFIX} ${hash}\"; }\n")
  return()
endif()

list(TRANSFORM patterns PREPEND ${PROJECT_SOURCE_DIR}/)
file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${patterns})
add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/build_id.cc DEPENDS ${sources} VERBATIM
  COMMAND ${CMAKE_COMMAND} -DROOT=${PROJECT_SOURCE_DIR} -DOUT=${PROJECT_BINARY_DIR}/build_id.cc
          "-DPREFIX=${PROJECT_VERSION} ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} ${CMAKE_BUILD_TYPE}"
          -P ${CMAKE_CURRENT_LIST_FILE})
target_sources(forerun PRIVATE ${PROJECT_BINARY_DIR}/build_id.cc)
