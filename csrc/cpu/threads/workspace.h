// Scratch memory of one call, kept between calls.
//
// Large allocations are mapped anew by the system each time and every page of them faults on first
// touch, which costs as much as filling them; so blocks go back to a pool instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastrnn {

class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Uninitialized, aligned to a cache line, valid until the workspace is destroyed.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  struct Block {
    char* memory;
    size_t size, used;
  };
  void* take_bytes(size_t bytes);
  std::vector<Block> blocks_;
  friend class WorkspacePool;
};

}  // namespace fastrnn
