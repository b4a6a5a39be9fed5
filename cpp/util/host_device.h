// Marks the functions that host code and CUDA kernels share.
#ifndef FORERUN_CPP_UTIL_HOST_DEVICE_H_
#define FORERUN_CPP_UTIL_HOST_DEVICE_H_

#ifdef __CUDACC__
#define FORERUN_HOST_DEVICE __host__ __device__
#else
#define FORERUN_HOST_DEVICE
#endif

#endif  // FORERUN_CPP_UTIL_HOST_DEVICE_H_
