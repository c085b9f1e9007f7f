#include "cpu/threads/partition.h"

#include <algorithm>

#include "cpu/threads/system.h"
#include "cpu/threads/thread_team.h"

namespace fastrnn {

Partition choose_partition(int64_t B, int64_t blocks, int64_t weight_bytes, double step_work, double work) {
  // A barrier costs as much as some ten thousand multiplications, waking the team some hundred thousand.
  constexpr double least_work = 6e5, least_step_work = 2e4;
  const int available = work < least_work ? 1 : available_threads();
  if (available == 1) return {1, false};
  const bool by_batch = B >= 4 * available && (2 * weight_bytes <= level_two_cache() || blocks < available);
  if (by_batch) return {available, true};
  if (step_work < least_step_work) return {1, false};
  return {static_cast<int>(std::min<int64_t>(available, blocks)), false};
}

}  // namespace fastrnn
