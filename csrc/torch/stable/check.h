// Errors of the ops: one sentence each, put together only where it is thrown.
//
// torch's Python binding turns std::runtime_error into RuntimeError, std::invalid_argument into ValueError
// and std::bad_alloc into MemoryError.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fastrnn {

inline std::string text(std::string_view value) { return std::string(value); }
inline std::string text(const char* value) { return value; }
inline std::string text(const std::string& value) { return value; }
inline std::string text(int64_t value) { return std::to_string(value); }
inline std::string text(int value) { return std::to_string(value); }

inline std::string text(std::span<const int64_t> sizes) {
  std::string all = "[";
  for (size_t i = 0; i < sizes.size(); ++i) all += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return all + "]";
}

template <class Error, class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void fail(const Parts&... parts) {
  std::string sentence;
  ((sentence += text(parts)), ...);
  throw Error(sentence);
}

}  // namespace fastrnn

#define FASTRNN_CHECK(condition, ...) \
  (static_cast<bool>(condition) ? void() : ::fastrnn::fail<std::runtime_error>(__VA_ARGS__))
#define FASTRNN_CHECK_VALUE(condition, ...) \
  (static_cast<bool>(condition) ? void() : ::fastrnn::fail<std::invalid_argument>(__VA_ARGS__))
