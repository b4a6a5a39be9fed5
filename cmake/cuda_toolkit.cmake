# Finds nvcc and CUDA's runtime, as FORERUN_CUDA asks. Sets FORERUN_NVCC (empty: CUDA is left out, which one line says),
# FORERUN_CUDA_INCLUDE_DIR and FORERUN_CUDART; defines forerun_nvcc_objects.
#
# This is not CMake's CUDA language: that one's test of the compiler does not link with the packages of PyPI, whose
# libraries are in lib where nvcc looks into lib64, and it keeps no log of ptxas, which tools/cuda_table.py reads.
set(FORERUN_CUDA AUTO CACHE STRING "Build libforerun_cuda.so: ON, OFF, or AUTO, where nvcc is found")
set_property(CACHE FORERUN_CUDA PROPERTY STRINGS AUTO ON OFF)
set(FORERUN_CUDA_ARCHITECTURES 80 90 100 CACHE STRING
    "Compute capabilities that have machine code; the last has PTX too, for later ones")
set(FORERUN_CUDA_PACKAGES "cuda-toolkit[nvcc,cudart,cccl]==13.0.*")
set(FORERUN_NVCC_MINIMUM 12.8)  # the first that knows compute capability 10.0

# forerun_list_nvcc(paths): nvcc of $CUDACXX, of the PATH or /usr/local/cuda, and of PyPI's packages in the environment of
# the Python that is used.
function(forerun_list_nvcc paths)
  if(Python3_EXECUTABLE)
    set(python ${Python3_EXECUTABLE})
  elseif(Python_EXECUTABLE)
    set(python ${Python_EXECUTABLE})
  else()
    set(python python3)
  endif()
  execute_process(COMMAND ${python} -c "import sysconfig; print(sysconfig.get_path('platlib'))"
                  OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_program(chosen NO_CACHE NAMES $ENV{CUDACXX} nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
  find_program(package NO_CACHE NAMES nvcc PATHS ${packages}/nvidia/cu13/bin NO_DEFAULT_PATH)
  set(found ${chosen} ${package})
  list(FILTER found EXCLUDE REGEX "-NOTFOUND$")
  set(${paths} ${found} PARENT_SCOPE)
endfunction()

# forerun_check_toolkit(nvcc problem): sets FORERUN_CUDA_INCLUDE_DIR and FORERUN_CUDART, or says what is wrong.
function(forerun_check_toolkit nvcc problem)
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT text MATCHES "release [0-9.]+, V([0-9.]+)")
    set(${problem} "${nvcc} does not run" PARENT_SCOPE)
    return()
  endif()
  set(version ${CMAKE_MATCH_1})
  if(version VERSION_LESS FORERUN_NVCC_MINIMUM)
    set(${problem} "${nvcc} is version ${version}, older than ${FORERUN_NVCC_MINIMUM}" PARENT_SCOPE)
    return()
  endif()
  # The toolkit that belongs to nvcc, which may be a script somewhere else.
  execute_process(COMMAND ${nvcc} --dryrun -x cu -c /dev/null -o /dev/null ERROR_VARIABLE text OUTPUT_VARIABLE text)
  string(REGEX MATCH "TOP=([^\n]+)" _ "${text}")
  get_filename_component(root "${CMAKE_MATCH_1}" ABSOLUTE)
  set(targets ${root}/targets/${CMAKE_HOST_SYSTEM_PROCESSOR}-linux)
  find_path(include_dir NO_CACHE NAMES cuda_runtime.h HINTS ${root}/include ${targets}/include)
  find_library(cudart NO_CACHE NAMES libcudart_static.a HINTS ${root}/lib64 ${root}/lib ${targets}/lib)
  # cuda_fp16.h includes it; in PyPI it is a package of its own.
  find_path(cccl_dir NO_CACHE NAMES nv/target HINTS ${include_dir} ${include_dir}/cccl)
  if(NOT include_dir OR NOT cudart OR NOT cccl_dir)
    set(${problem} "${root} lacks cuda_runtime.h, nv/target or libcudart_static.a" PARENT_SCOPE)
    return()
  endif()
  set(${problem} "" PARENT_SCOPE)
  set(FORERUN_CUDA_INCLUDE_DIR ${include_dir} PARENT_SCOPE)
  set(FORERUN_CUDART ${cudart} PARENT_SCOPE)
  set(FORERUN_NVCC_VERSION ${version} PARENT_SCOPE)
endfunction()

set(FORERUN_NVCC "")
if(FORERUN_CUDA STREQUAL "OFF")
  set(problem "FORERUN_CUDA is OFF")
else()
  set(problem "nvcc was not found")
  forerun_list_nvcc(candidates)
  foreach(nvcc IN LISTS candidates)
    forerun_check_toolkit(${nvcc} problem)
    if(NOT problem)
      set(FORERUN_NVCC ${nvcc})
      break()
    endif()
  endforeach()
endif()
if(FORERUN_NVCC)
  file(WRITE ${PROJECT_BINARY_DIR}/nvcc/version.txt "${FORERUN_NVCC_VERSION}\n")  # beside the logs
  message(STATUS "CUDA: ${FORERUN_NVCC} ${FORERUN_NVCC_VERSION}, compute capabilities ${FORERUN_CUDA_ARCHITECTURES}")
elseif(FORERUN_CUDA STREQUAL "ON")
  message(FATAL_ERROR "FORERUN_CUDA is ON, but ${problem}. Install nvcc ${FORERUN_NVCC_MINIMUM} or later, for example by "
                      "'pip install \"${FORERUN_CUDA_PACKAGES}\"', or set CUDACXX to its path.")
elseif(FORERUN_CUDA STREQUAL "OFF")
  message(STATUS "CUDA left out: ${problem}")
else()
  message(STATUS "CUDA left out: ${problem} (pip install \"${FORERUN_CUDA_PACKAGES}\" has it)")
endif()

# forerun_nvcc_objects(result source...): compiles CUDA sources for every architecture; sets `result` to the objects.
# Each object has a .log beside it with what ptxas says of its kernels.
function(forerun_nvcc_objects result)
  set(flags -std=c++20 -O3 -fmad=false -Werror all-warnings -Xptxas -v -ccbin ${CMAKE_CXX_COMPILER}
      -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror,-ffp-contract=off
      -I${PROJECT_SOURCE_DIR} -I${PROJECT_SOURCE_DIR}/cpp/include)
  # Most of the time goes to making PTX. 9.0 gets the same registers from the PTX for 8.0; 10.0 would spill more.
  set(architectures ${FORERUN_CUDA_ARCHITECTURES})
  if(80 IN_LIST architectures AND 90 IN_LIST architectures)
    list(REMOVE_ITEM architectures 80 90)
    list(APPEND flags -gencode=arch=compute_80,code=[sm_80,sm_90])
  endif()
  foreach(architecture IN LISTS architectures)
    list(APPEND flags -gencode=arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  list(GET FORERUN_CUDA_ARCHITECTURES -1 last)
  list(APPEND flags -gencode=arch=compute_${last},code=compute_${last})
  set(objects "")
  foreach(source IN LISTS ARGN)
    get_filename_component(path ${source} ABSOLUTE)
    file(RELATIVE_PATH name ${PROJECT_SOURCE_DIR} ${path})
    set(object ${PROJECT_BINARY_DIR}/nvcc/${name}.o)
    get_filename_component(folder ${object} DIRECTORY)
    file(MAKE_DIRECTORY ${folder})
    add_custom_command(OUTPUT ${object} BYPRODUCTS ${object}.log DEPENDS ${path} DEPFILE ${object}.d VERBATIM
      COMMENT "Building CUDA object ${name}"
      COMMAND sh ${PROJECT_SOURCE_DIR}/cmake/logged.sh ${object}.log
              ${FORERUN_NVCC} ${flags} -MD -MF ${object}.d -c ${path} -o ${object})
    list(APPEND objects ${object})
  endforeach()
  set(${result} ${objects} PARENT_SCOPE)
endfunction()
