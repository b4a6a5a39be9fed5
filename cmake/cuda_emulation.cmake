# Kernels on the emulated GPU (cuda/emulation/emulation.h): .cu files compiled as C++, in three
# variants. Needs GNU g++ or a compiler that takes its flags; the race variant rests on the calls
# that -fsanitize=thread puts into the kernels, and not on its library.

set(FORERUN_EMULATION_VARIANTS plain asan race)
set(FORERUN_EMULATION_ROOT ${CMAKE_CURRENT_LIST_DIR}/..)
set(_FORERUN_ASAN -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)

# forerun_emulation_<variant>: the emulated GPU, a static library.
function(_forerun_add_emulation variant)
  set(target forerun_emulation_${variant})
  if(TARGET ${target})
    return()
  endif()
  set(root ${FORERUN_EMULATION_ROOT}/cuda/emulation)
  set(sources captures collectives control device_memory fibers instructions launches runtime_api scheduler streams symbols)
  if(variant STREQUAL race)
    list(APPEND sources race)
  endif()
  list(TRANSFORM sources PREPEND ${root}/)
  list(TRANSFORM sources APPEND .cc)
  add_library(${target} STATIC EXCLUDE_FROM_ALL ${sources})
  target_include_directories(${target} BEFORE PUBLIC ${root}/include ${FORERUN_EMULATION_ROOT}
                                                     ${FORERUN_EMULATION_ROOT}/cpp/include)
  target_compile_definitions(${target} PUBLIC FORERUN_EMULATED_GPU=1)
  # Kernels reach one memory through types of several widths, as they may on a GPU.
  target_compile_options(${target}
    PUBLIC -fno-strict-aliasing -Wno-unknown-pragmas
    PRIVATE -O2 -g1)
  target_link_libraries(${target} PRIVATE forerun_flags PUBLIC ${CMAKE_DL_LIBS})
  if(variant STREQUAL asan)
    target_compile_options(${target} PUBLIC ${_FORERUN_ASAN})
    target_link_options(${target} PUBLIC ${_FORERUN_ASAN})
  endif()
endfunction()

# forerun_add_emulated(name KERNELS a.cu... [VARIANTS plain asan race] [LINK library...])
#
# A static library <name>_<variant> of the kernels for each variant, with the emulated GPU.
# Link it together with host code that is compiled without instrumentation, or for asan with it.
function(forerun_add_emulated name)
  cmake_parse_arguments(arg "" "" "KERNELS;VARIANTS;LINK" ${ARGN})
  if(NOT arg_VARIANTS)
    set(arg_VARIANTS ${FORERUN_EMULATION_VARIANTS})
  endif()
  set(kernels ${arg_KERNELS})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  foreach(variant IN LISTS arg_VARIANTS)
    _forerun_add_emulation(${variant})
    set(target ${name}_${variant})
    add_library(${target} STATIC EXCLUDE_FROM_ALL ${arg_KERNELS})
    target_link_libraries(${target} PUBLIC forerun_emulation_${variant} ${arg_LINK} PRIVATE forerun_flags)
    if(variant STREQUAL plain)
      target_compile_options(${target} PRIVATE -O2 -g1)
    else()
      target_compile_options(${target} PRIVATE -O1 -g)
    endif()
    if(variant STREQUAL race)
      target_compile_options(${target} PRIVATE -fsanitize=thread)
    endif()
  endforeach()
endfunction()

# forerun_add_emulated_test(name SOURCES test.cc... KERNELS library... [VARIANTS ...] [LINK ...])
#
# For each variant the test binary forerun_<name>_<variant>_test of the libraries <KERNELS>_<variant>.
# Its tests are <variant>.<Suite>.<Test> in CTest, labelled cuda.
function(forerun_add_emulated_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;KERNELS;VARIANTS;LINK" ${ARGN})
  if(NOT arg_VARIANTS)
    set(arg_VARIANTS ${FORERUN_EMULATION_VARIANTS})
  endif()
  # The asan variant's -fsanitize=undefined watches kernels and host code; tests would take a third longer to compile.
  set(tests ${arg_SOURCES})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  set_property(SOURCE ${tests} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=undefined)
  foreach(variant IN LISTS arg_VARIANTS)
    set(target forerun_${name}_${variant}_test)
    list(TRANSFORM arg_KERNELS APPEND _${variant} OUTPUT_VARIABLE kernels)
    # The host's code is the same in both of these.
    if(variant STREQUAL race AND TARGET forerun_${name}_plain_test)
      add_executable(${target} $<TARGET_OBJECTS:forerun_${name}_plain_test>)
    else()
      add_executable(${target} ${arg_SOURCES})
    endif()
    target_link_libraries(${target} PRIVATE ${kernels} ${arg_LINK} forerun_flags GTest::gtest_main)
    target_compile_options(${target} PRIVATE -O1 -g1)
    gtest_discover_tests(${target} TEST_PREFIX ${variant}. DISCOVERY_TIMEOUT 60 PROPERTIES LABELS cuda)
  endforeach()
endfunction()
