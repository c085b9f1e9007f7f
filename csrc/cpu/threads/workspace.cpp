#include "cpu/threads/workspace.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>

namespace fastrnn {

// Blocks that no call is using. Bounded: what would exceed the bound is freed.
class WorkspacePool {
 public:
  static constexpr size_t most_kept = size_t{512} << 20;
  static constexpr size_t smallest = size_t{256} << 10;

  // The smallest kept block that is large enough, unless it is over four times too large.
  Workspace::Block acquire(size_t bytes) {
    bytes = std::max((bytes + 4095) / 4096 * 4096, smallest);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto best = kept_.end();
      for (auto it = kept_.begin(); it != kept_.end(); ++it) {
        if (it->size >= bytes && (best == kept_.end() || it->size < best->size)) best = it;
      }
      if (best != kept_.end() && best->size <= 4 * bytes) {
        const Workspace::Block block = {best->memory, best->size, 0};
        kept_bytes_ -= best->size;
        kept_.erase(best);
        return block;
      }
    }
    void* memory = std::aligned_alloc(4096, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return {static_cast<char*>(memory), bytes, 0};
  }

  void release(const Workspace::Block& block) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (kept_bytes_ + block.size > most_kept) {
      std::free(block.memory);
      return;
    }
    kept_.push_back(block);
    kept_bytes_ += block.size;
  }

  static WorkspacePool& instance() {
    static WorkspacePool& pool = *new WorkspacePool;  // never destroyed: calls may outlive static data
    return pool;
  }

 private:
  std::mutex mutex_;
  std::vector<Workspace::Block> kept_;
  size_t kept_bytes_ = 0;
};

void* Workspace::take_bytes(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (blocks_.empty() || blocks_.back().size - blocks_.back().used < bytes) {
    blocks_.push_back(WorkspacePool::instance().acquire(bytes));
  }
  Block& block = blocks_.back();
  void* memory = block.memory + block.used;
  block.used += bytes;
  return memory;
}

Workspace::~Workspace() {
  for (const Block& block : blocks_) WorkspacePool::instance().release(block);
}

}  // namespace fastrnn
