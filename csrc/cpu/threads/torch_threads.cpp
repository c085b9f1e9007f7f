#include "cpu/threads/torch_threads.h"

#include <torch/csrc/stable/c/shim.h>

#include <stdexcept>

// Of the OpenMP that torch uses, if it uses one: torch's stable interface does not tell.
extern "C" __attribute__((weak)) int omp_in_parallel();

namespace fastrnn {

int torch_thread_count() {
  uint32_t count = 1;
  return torch_get_num_threads(&count) == AOTI_TORCH_SUCCESS ? static_cast<int>(count) : 1;
}

bool in_parallel_region() { return omp_in_parallel != nullptr && omp_in_parallel() != 0; }

void run_on_torch_threads(int64_t n, RangeBody body, void* context) {
  if (torch_parallel_for(0, n, 1, body, context) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("fastrnn: torch's threads failed; their message is on stderr");
  }
}

}  // namespace fastrnn
