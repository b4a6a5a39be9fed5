# The id that _core and libforerun_cuda.so must share, since C++ objects cross between them: the version, the compiler
# and a hash of every header of cpp/. It is compiled into the library, as BuildId() of cpp/ops/cuda_library.h.
#
# Run with -P, this file writes OUT from ROOT and PREFIX: the build does so again when a header has changed.
if(CMAKE_SCRIPT_MODE_FILE)
  file(GLOB_RECURSE headers ${ROOT}/cpp/*.h)
  set(hashes "")
  foreach(header IN LISTS headers)
    file(SHA256 ${header} hash)
    string(APPEND hashes " ${hash}")
  endforeach()
  string(SHA256 hash "${hashes}")
  string(SUBSTRING ${hash} 0 16 hash)
  file(WRITE ${OUT} "#include \"cpp/ops/cuda_library.h\"\n\n"
                    "const char* forerun::BuildId() { return \"${PREFIX} ${hash}\"; }\n")
  return()
endif()

file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cpp/*.h)
add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/build_id.cc DEPENDS ${headers} VERBATIM
  COMMAND ${CMAKE_COMMAND} -DROOT=${PROJECT_SOURCE_DIR} -DOUT=${PROJECT_BINARY_DIR}/build_id.cc
          "-DPREFIX=${PROJECT_VERSION} ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
          -P ${CMAKE_CURRENT_LIST_FILE})
target_sources(forerun PRIVATE ${PROJECT_BINARY_DIR}/build_id.cc)
