// The exceptions that cross the public boundary.
#ifndef FORERUN_ERROR_H_
#define FORERUN_ERROR_H_

#include <stdexcept>
#include <string>
#include <utility>

namespace forerun {

// The caller's mistake in a config, an option or a request.
class InvalidArgument : public std::invalid_argument {
 public:
  InvalidArgument(std::string field, std::string value, std::string expected)
      : std::invalid_argument(field + ": got " + value + "; expected " + expected),
        field_(std::move(field)),
        value_(std::move(value)),
        expected_(std::move(expected)) {}

  const std::string& field() const { return field_; }
  const std::string& value() const { return value_; }
  const std::string& expected() const { return expected_; }

 private:
  std::string field_, value_, expected_;
};

// A model directory that is missing, damaged, or of a kind that is not understood.
class CheckpointError : public InvalidArgument {
 public:
  using InvalidArgument::InvalidArgument;
};

// A device, its driver or its library that is missing, does not suit, or failed.
class DeviceError : public std::runtime_error {
 public:
  // `wanted`: what was attempted; `found`: what is there instead; `remedy`: what to do about it.
  // `is_lost`: the device will do nothing more for this process.
  DeviceError(std::string wanted, std::string found, std::string remedy, bool is_lost = false)
      : std::runtime_error("wanted " + wanted + "; found " + found + "; " + remedy),
        wanted_(std::move(wanted)),
        found_(std::move(found)),
        remedy_(std::move(remedy)),
        is_lost_(is_lost) {}

  const std::string& wanted() const { return wanted_; }
  const std::string& found() const { return found_; }
  const std::string& remedy() const { return remedy_; }
  bool is_lost() const { return is_lost_; }

 private:
  std::string wanted_, found_, remedy_;
  bool is_lost_;
};

// As many requests wait as EngineOptions::max_waiting_requests allows.
class QueueFull : public std::runtime_error {
 public:
  explicit QueueFull(int limit)
      : std::runtime_error(std::to_string(limit) +
                           " requests wait already, the most that may (max_waiting_requests)"),
        limit_(limit) {}

  int limit() const { return limit_; }

 private:
  int limit_;
};

// A call while another one runs: from a second thread, or from a hook that the first one called.
class EngineBusy : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// A broken invariant: our bug, never the caller's.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

}  // namespace forerun

#endif  // FORERUN_ERROR_H_
