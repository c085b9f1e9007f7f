// CUDA's execution model on the host, for tests: the kernels' own source is compiled by the host's
// compiler against this header in place of cuda_runtime.h and runs without a GPU.
//
// Every CUDA thread is a fiber with a stack of its own. Blocks that may wait for each other (those of
// one cluster; all blocks of a cooperative launch) are alive together, others run one after another.
// One fiber runs until it waits, then a random one of those that can run is taken. So a thread's
// writes reach its neighbors early or late from run to run, and a missing barrier gives a wrong
// result on most of them. Asynchronous stores are applied at random moments too.
//
// Shared memory starts as NaN and has exactly the size asked for; under the address sanitizer an
// access beside it, or beside any buffer, is an error. A launch whose threads all wait for what can no
// longer come fails with a message in place of hanging.
//
// What is not modeled: time, warps in lockstep, the weak order of ordinary memory accesses (an
// acquire that is missing goes unnoticed), bank conflicts, the number of registers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (::fastrnn::emulation::thread_index())
#define blockIdx (::fastrnn::emulation::block_index())
#define blockDim (::fastrnn::emulation::block_size())
#define gridDim (::fastrnn::emulation::grid_size())

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

using cudaStream_t = void*;

namespace fastrnn::emulation {

constexpr int warp_size = 32;

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks of a cluster, along x
  bool cooperative = false;  // all blocks are alive together
};

// What tests set before a launch.
struct Options {
  uint64_t seed = 0;           // of the order in which threads run; every launch continues it
  int64_t absent_block = -1;   // a block (number within the grid) of cooperative launches, never started
  int multiprocessors = 132;   // of the device; a block that keeps weights on the chip takes one
  int shared_bytes = 232448;   // that a block can have
  bool skip_barriers = false;  // plants the bug that tests of the emulation must see: barriers don't wait
  bool last_only = false;      // only the last block runs (or cluster), over arrays too large to visit
};
Options& options();

// Runs `body` once in every thread. Throws std::runtime_error if threads wait forever.
void run(const Launch& launch, const std::function<void()>& body);

// The rest is called by threads of the kernel that runs.

const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();
int lane();

std::byte* shared_memory();
void sync_block();
void sync_warp();
// A barrier of some of the block's threads: as many as they say.
void sync_threads(int barrier, int threads);

// All lanes of the warp give `bytes` bytes (at most 64) and may read what each gave until the warp
// exchanges again.
const std::byte* exchange(const void* mine, size_t bytes);
constexpr size_t exchange_stride = 64;

// Copies at some moment from now on. Copies up to end_copies() are a group; wait_copies() waits for all
// of this thread's groups but the last `pending`.
void begin_copy(void* to, const void* from, size_t bytes);
void end_copies();
void wait_copies(int pending);

// Products by tensor cores so far in this thread of the host, for tests to count.
uint64_t& products();

unsigned cluster_rank();
unsigned cluster_size();
void sync_cluster();
// The address in block `rank` of the cluster that corresponds to `own` in this block.
void* map_shared(void* own, unsigned rank);

// An mbarrier in 64 bits of shared memory.
void mbarrier_init(uint64_t* barrier, unsigned arrivals);
void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes);
void mbarrier_complete(uint64_t* barrier, unsigned bytes);
// Whether the phase of this parity has ended.
bool mbarrier_passed(const uint64_t* barrier, unsigned parity);

// Lets others run until `ready` holds.
void wait_until(const std::function<bool()>& ready);
// Will be applied at some moment from now on, in any order with others.
void later(std::function<void()> effect);
// A number that grows while the launch runs; stands for the clock that time-outs are measured by.
uint64_t clock();

}  // namespace fastrnn::emulation
