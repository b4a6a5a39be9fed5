// The directory of packed weights: which file belongs to a model, and how large all may become.
#ifndef FORERUN_CPP_ENGINE_WEIGHT_CACHE_H_
#define FORERUN_CPP_ENGINE_WEIGHT_CACHE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "cpp/model/model_files.h"
#include "cpp/ops/cpu/cpu_ops.h"
#include "forerun/options.h"

namespace forerun {

// All that a model's packed weights depend on: the build of this library and its instruction set,
// the weight files and their index by name, size, times and samples of their bytes, the whole
// config.json, and the formats.
std::string WeightCacheKey(const ModelFiles& files, const std::string& isa);

// `directory`/<a hash of the key>.packed
std::string WeightCachePath(const std::string& directory, const std::string& key);

// Removes files of the directory, least recently used first, until `num_bytes` more are within
// `max_bytes`, and what writers that died left there. Returns why so many do not fit; empty: they
// do.
std::string MakeRoom(const std::string& directory, std::int64_t num_bytes, std::int64_t max_bytes);

// Calls `load`, whose matrices come from the directory if they are there, and else go there.
// Nothing that is wrong with the directory fails it. Returns ModelLimits::weight_cache.
std::string LoadWithCache(const WeightCacheOptions& options, const ModelFiles& files, CpuOps& ops,
                          const std::function<void()>& load);

}  // namespace forerun

#endif  // FORERUN_CPP_ENGINE_WEIGHT_CACHE_H_
