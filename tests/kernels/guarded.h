// An array whose surroundings must not be touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastrnn {

// A copy of some bytes in pages of their own, between two pages that can't be read or written. The bytes
// are at the end of their pages, or at the start; the rest is filled with a pattern.
class Guarded {
 public:
  Guarded(const std::string& bytes, bool at_end) : size_(bytes.size()) {
    const size_t page = sysconf(_SC_PAGESIZE);
    inner_ = std::max(page, (size_ + page - 1) / page * page);
    mapped_ = inner_ + 2 * page;
    void* memory = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("out of memory");
    base_ = static_cast<char*>(memory);
    first_ = base_ + page;
    mprotect(first_, inner_, PROT_READ | PROT_WRITE);
    std::fill_n(first_, inner_, pattern);
    data_ = at_end ? first_ + inner_ - size_ : first_;
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;

  char* data() const { return data_; }
  std::string bytes() const { return std::string(data_, size_); }
  bool surroundings_untouched() const {
    const auto is_pattern = [](char byte) { return byte == pattern; };
    return std::all_of(first_, data_, is_pattern) &&
           std::all_of(data_ + size_, first_ + inner_, is_pattern);
  }

 private:
  static constexpr char pattern = 0x5b;
  size_t size_, inner_, mapped_;
  char *base_, *first_, *data_;
};

}  // namespace fastrnn
