#include "cpu/threads/system.h"

#include <pthread.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#elif defined(__APPLE__)
#include <sys/sysctl.h>

#include <chrono>
#include <thread>
#endif

namespace fastrnn {
namespace {

// Zero or less if unknown.
int64_t reported_cache() {
#if defined(__linux__)
  return sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  int64_t bytes = 0;
  size_t size = sizeof(bytes);
  return sysctlbyname("hw.l2cachesize", &bytes, &size, nullptr, 0) == 0 ? bytes : 0;
#endif
}

}  // namespace

#if defined(__linux__)
void sleep_while(std::atomic<uint32_t>* word, uint32_t value) {
  constexpr timespec at_most = {0, 200'000};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, value, &at_most, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}
#else
// macOS has no public call to wait on a word before version 14.4: the thread looks again after a while.
void sleep_while(std::atomic<uint32_t>* word, uint32_t value) {
  if (word->load() == value) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

void wake_all(std::atomic<uint32_t>*) {}
#endif

void call_after_fork(void (*callback)()) { pthread_atfork(nullptr, nullptr, callback); }

int64_t level_two_cache() {
  static const int64_t size = [] {
    const int64_t reported = reported_cache();
    return reported > 0 ? reported : int64_t{1} << 20;
  }();
  return size;
}

}  // namespace fastrnn
