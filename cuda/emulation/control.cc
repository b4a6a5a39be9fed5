// Options, counters, and their interface in C for programs that load the library.
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <mutex>
#include <optional>

#include "cuda/emulation/detector.h"
#include "cuda/emulation/emulation.h"
#include "cuda/emulation/streams.h"

namespace forerun::emulation {
namespace {

struct Named {
  std::string_view name, valid;
  // False for a value that is not valid.
  bool (*set)(Options& options, std::string_view value);
};

template <class T>
std::optional<T> Number(std::string_view text) {
  T number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < T{}) return {};
  return number;
}

template <auto kMember>
bool SetNumber(Options& options, std::string_view value) {
  using T = std::remove_reference_t<decltype(options.*kMember)>;
  const auto number = Number<T>(value);
  if (number) options.*kMember = *number;
  return number.has_value();
}

bool SetOrder(Options& options, std::string_view value) {
  constexpr std::string_view kNames[] = {"forward", "depth_first", "reverse", "random"};
  const auto* found = std::find(std::begin(kNames), std::end(kNames), value);
  if (found == std::end(kNames)) return false;
  options.order = static_cast<Order>(found - std::begin(kNames));
  return true;
}

bool SetLazyStreams(Options& options, std::string_view value) {
  options.lazy_streams = value == "1";
  return value == "0" || value == "1";
}

bool SetMemory(Options& options, std::string_view value) {
  const auto mebibytes = Number<std::size_t>(value);
  if (mebibytes) options.memory_bytes = *mebibytes << 20;
  return mebibytes.has_value();
}

bool SetLaunchError(Options& options, std::string_view value) {
  const auto code = Number<int>(value);
  if (code != cudaErrorMemoryAllocation && code != cudaErrorLaunchOutOfResources &&
      code != cudaErrorLaunchFailure && code != cudaErrorIllegalAddress) {
    return false;
  }
  options.launch_error = static_cast<cudaError_t>(*code);
  return true;
}

bool SetStartError(Options& options, std::string_view value) {
  const auto code = Number<int>(value);
  if (code) options.start_error = static_cast<cudaError_t>(*code);
  return code.has_value();
}

constexpr std::string_view kCount = "a number from 0";
constexpr Named kOptions[] = {
    {"order", "forward, depth_first, reverse or random", SetOrder},
    {"seed", kCount, SetNumber<&Options::seed>},
    {"lazy_streams", "0 or 1", SetLazyStreams},
    {"launch_us", kCount, SetNumber<&Options::launch_us>},
    {"block_us", kCount, SetNumber<&Options::block_us>},
    {"driver_version", kCount, SetNumber<&Options::driver_version>},
    {"start_error", kCount, SetStartError},
    {"num_devices", kCount, SetNumber<&Options::num_devices>},
    {"capability", kCount, SetNumber<&Options::capability>},
    {"memory_mib", kCount, SetMemory},
    {"failing_allocation", kCount, SetNumber<&Options::failing_allocation>},
    {"failing_launch", kCount, SetNumber<&Options::failing_launch>},
    {"launch_error", "2, 700, 701 or 719", SetLaunchError},
};

void SetOption(Options& options, std::string_view word) {
  const auto equals = std::min(word.find('='), word.size());
  const std::string_view name = word.substr(0, equals);
  std::string names;
  for (const Named& option : kOptions) {
    names += (names.empty() ? "" : ", ") + std::string(option.name);
    if (option.name != name) continue;
    if (equals < word.size() && option.set(options, word.substr(equals + 1))) return;
    throw std::invalid_argument("emulated GPU: '" + std::string(word) + "': " + std::string(name) +
                                " is " + std::string(option.valid));
  }
  throw std::invalid_argument("emulated GPU: '" + std::string(word) +
                              "' is not a name=value with one of the names " + names);
}

Options FromWords(Options options, std::string_view words) {
  while (!words.empty()) {
    const auto space = std::min(words.find(' '), words.size());
    if (space > 0) SetOption(options, words.substr(0, space));
    words.remove_prefix(std::min(space + 1, words.size()));
  }
  return options;
}

Options FromEnvironment() {
  const char* const words = std::getenv("FORERUN_EMULATED_GPU");
  return FromWords({}, words != nullptr ? words : "");
}

}  // namespace

Options& options() {
  static Options instance = FromEnvironment();
  return instance;
}

Counters& counters() {
  static Counters instance{};
  return instance;
}

AddressRange watched_loads;

void WatchLoads(const void* address, std::size_t bytes) {
  const std::lock_guard lock(ApiMutex());
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  watched_loads = {begin, begin + (address != nullptr ? bytes : 0)};
}

void Configure(std::string_view words) {
  const std::lock_guard lock(ApiMutex());
  options() = FromWords(options(), words);
}

void Reset() {
  const std::lock_guard lock(ApiMutex());
  options() = FromEnvironment();
  counters() = {};
  watched_loads = {};
  ForgetKernels();
  ForgetStreams();
}

bool DetectsRaces() { return detector != nullptr; }

}  // namespace forerun::emulation

// ---- In C. The text of an error is valid until the next call.
extern "C" {

__attribute__((visibility("default"))) const char* forerun_emulation_configure(const char* words) {
  static std::string message;
  try {
    forerun::emulation::Configure(words);
    return nullptr;
  } catch (const std::invalid_argument& error) {
    message = error.what();
    return message.c_str();
  }
}

__attribute__((visibility("default"))) void forerun_emulation_reset() {
  forerun::emulation::Reset();
}

// -1 for an unknown name.
__attribute__((visibility("default"))) std::int64_t forerun_emulation_counter(const char* name) {
  using forerun::emulation::Counters;
  struct Counter {
    std::string_view name;
    std::uint64_t Counters::* member;
  };
  static constexpr Counter kCounters[] = {
      {"launches", &Counters::launches},
      {"graph_launches", &Counters::graph_launches},
      {"copies_to_device", &Counters::copies_to_device},
      {"bytes_to_device", &Counters::bytes_to_device},
      {"copies_from_device", &Counters::copies_from_device},
      {"bytes_from_device", &Counters::bytes_from_device},
      {"waits", &Counters::waits},
      {"allocations", &Counters::allocations},
  };
  const std::lock_guard lock(forerun::emulation::ApiMutex());
  for (const Counter& counter : kCounters) {
    if (counter.name == name) {
      return static_cast<std::int64_t>(forerun::emulation::counters().*counter.member);
    }
  }
  return -1;
}

}  // extern "C"
