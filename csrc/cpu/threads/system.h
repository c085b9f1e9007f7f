// What the CPU driver asks of the operating system.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastrnn {

// Sleeps while *word is `value`, but for 0.2 ms at most.
void sleep_while(std::atomic<uint32_t>* word, uint32_t value);

// Wakes all threads that sleep on the word.
void wake_all(std::atomic<uint32_t>* word);

// Calls `callback` in the child after every fork of this process from now on.
void call_after_fork(void (*callback)());

// Bytes of one core's second-level cache; a guess if the system does not tell.
int64_t level_two_cache();

}  // namespace fastrnn
