#include "emulation/emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define FASTRNN_ASAN 1
#else
#define FASTRNN_ASAN 0
#endif

namespace fastrnn::emulation {
namespace {

// Passes over all threads, none of which could run, after which they are held to wait forever. A
// kernel's own time-out has to be shorter.
constexpr uint64_t patience = 1000;

constexpr size_t stack_bytes = FASTRNN_ASAN ? 256 << 10 : 64 << 10;

struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  std::byte given[2][warp_size][exchange_stride];
};

struct Cluster {
  Barrier barrier;
  unsigned first_block = 0;
};

struct Block {
  dim3 index;
  unsigned number = 0;
  Cluster* cluster = nullptr;
  Barrier barrier;
  Barrier named[16];
  std::unique_ptr<std::byte[]> shared;
  std::vector<Warp> warps;
};

struct Stack {
  void* base = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  Stack() {
    if (base == MAP_FAILED) throw std::runtime_error("emulation: no memory for a thread's stack");
  }
  Stack(Stack&& other) noexcept : base(std::exchange(other.base, nullptr)) {}
  ~Stack() {
    if (base) munmap(base, stack_bytes);
  }
};

struct Fiber {
  ucontext_t context;
  Stack* stack = nullptr;
  void* fake_stack = nullptr;
  Block* block = nullptr;
  dim3 index;
  int number = 0;  // within the block
  const std::function<bool()>* waits_for = nullptr;
  bool done = false;
  std::vector<int> copies = {0};  // under way in each group of asynchronous copies, the open one last
};

// The launch that runs, its fibers, and the order they run in.
struct Machine {
  const Launch* launch = nullptr;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> alive;
  std::vector<std::function<void()>> effects;
  std::vector<Stack> stacks;  // kept from launch to launch
  Fiber* current = nullptr;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  uint64_t clock = 0;
  std::mt19937_64 random;
  uint64_t seeded_with = ~uint64_t{0};

  size_t pick(size_t n) { return random() % n; }
};

thread_local Machine machine;

void enter([[maybe_unused]] void* fake_stack) {
#if FASTRNN_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, &machine.scheduler_bottom, &machine.scheduler_size);
#endif
}

void resume(Fiber& fiber) {
  machine.current = &fiber;
#if FASTRNN_ASAN
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack->base, stack_bytes);
#endif
  swapcontext(&machine.scheduler, &fiber.context);
#if FASTRNN_ASAN
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
  machine.current = nullptr;
}

void suspend(Fiber& fiber) {
#if FASTRNN_ASAN
  __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, machine.scheduler_bottom,
                                 machine.scheduler_size);
#endif
  swapcontext(&fiber.context, &machine.scheduler);
  enter(fiber.fake_stack);
}

void main_of_fiber() {
  enter(nullptr);
  (*machine.body)();
  machine.current->done = true;
  suspend(*machine.current);
}

void arrive_and_wait(Barrier& barrier) {
  if (options().skip_barriers) return;
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  wait_until([&] { return barrier.generation != generation; });
}

void add_block(unsigned number, Cluster* cluster) {
  const Launch& launch = *machine.launch;
  auto block = std::make_unique<Block>();
  block->number = number;
  block->index = {number % launch.grid.x, number / launch.grid.x % launch.grid.y,
                  number / launch.grid.x / launch.grid.y};
  block->cluster = cluster;
  const int threads = launch.block.x * launch.block.y * launch.block.z;
  block->barrier.expected = threads;
  block->shared.reset(new std::byte[launch.shared_bytes]);
  std::memset(block->shared.get(), 0xff, launch.shared_bytes);
  block->warps.resize((threads + warp_size - 1) / warp_size);
  const bool absent = launch.cooperative && options().absent_block == int64_t{number};
  for (int i = 0; i < threads; ++i) {
    ++block->warps[i / warp_size].barrier.expected;
    if (absent) continue;
    auto fiber = std::make_unique<Fiber>();
    const size_t place = machine.fibers.size();
    if (place == machine.stacks.size()) machine.stacks.emplace_back();
    fiber->block = block.get();
    fiber->number = i;
    fiber->index = {i % launch.block.x, i / launch.block.x % launch.block.y,
                    i / launch.block.x / launch.block.y};
    machine.fibers.push_back(std::move(fiber));
  }
  machine.blocks.push_back(std::move(block));
}

void prepare(Fiber& fiber, Stack& stack) {
  fiber.stack = &stack;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack.base;
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, main_of_fiber, 0);
  machine.alive.push_back(&fiber);
}

// Runs the fibers there are until all have ended.
void schedule() {
  for (size_t i = 0; i < machine.fibers.size(); ++i) prepare(*machine.fibers[i], machine.stacks[i]);
  std::vector<size_t> order;
  uint64_t idle_passes = 0;
  while (!machine.alive.empty()) {
    // One pass over the living in random order, an effect now and then in between.
    order.resize(machine.alive.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[machine.pick(i)]);
    bool progress = false;
    for (size_t i : order) {
      if (!machine.effects.empty() && machine.pick(4) == 0) {
        std::swap(machine.effects[machine.pick(machine.effects.size())], machine.effects.back());
        auto effect = std::move(machine.effects.back());
        machine.effects.pop_back();
        effect();
        progress = true;
      }
      Fiber& fiber = *machine.alive[i];
      machine.current = &fiber;  // what it waits for may ask who it is
      if (fiber.waits_for && !(*fiber.waits_for)()) continue;
      // Sometimes it is not this thread's turn though it could run.
      if (machine.pick(4) == 0) {
        progress = true;
        continue;
      }
      fiber.waits_for = nullptr;
      progress = true;
      resume(fiber);
    }
    ++machine.clock;
    size_t kept = 0;
    for (Fiber* fiber : machine.alive) {
      if (!fiber->done) machine.alive[kept++] = fiber;
    }
    machine.alive.resize(kept);
    idle_passes = progress ? 0 : idle_passes + 1;
    if (idle_passes > patience) {
      const Fiber& stuck = *machine.alive.front();
      throw std::runtime_error("emulation: " + std::to_string(machine.alive.size()) +
                               " threads wait forever, one of them thread " + std::to_string(stuck.number) +
                               " of block " + std::to_string(stuck.block->number));
    }
  }
  for (auto& effect : machine.effects) effect();
}

void clear() {
  machine.alive.clear();
  machine.effects.clear();
  machine.fibers.clear();
  machine.blocks.clear();
  machine.clusters.clear();
  machine.current = nullptr;
}

}  // namespace

Options& options() {
  thread_local Options value;
  return value;
}

void run(const Launch& launch, const std::function<void()>& body) {
  if (machine.seeded_with != options().seed) {
    machine.seeded_with = options().seed;
    machine.random.seed(options().seed);
  }
  machine.launch = &launch;
  machine.body = &body;
  machine.clock = 0;
  const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  const unsigned group = launch.cooperative ? blocks : launch.cluster;
  if (blocks % launch.cluster != 0 || launch.grid.x % launch.cluster != 0) {
    throw std::runtime_error("emulation: the grid is no multiple of the cluster");
  }
  try {
    for (unsigned first = options().last_only ? blocks - group : 0; first < blocks; first += group) {
      clear();
      for (unsigned block = first; block < first + group; ++block) {
        if (block % launch.cluster == 0) {
          machine.clusters.push_back(std::make_unique<Cluster>());
          machine.clusters.back()->first_block = block - first;
          machine.clusters.back()->barrier.expected =
              launch.cluster * launch.block.x * launch.block.y * launch.block.z;
        }
        add_block(block, machine.clusters.back().get());
      }
      schedule();
    }
  } catch (...) {
    clear();
    throw;
  }
  clear();
}

const dim3& thread_index() { return machine.current->index; }
const dim3& block_index() { return machine.current->block->index; }
const dim3& block_size() { return machine.launch->block; }
const dim3& grid_size() { return machine.launch->grid; }
int lane() { return machine.current->number % warp_size; }

std::byte* shared_memory() { return machine.current->block->shared.get(); }
void sync_threads(int barrier, int threads) {
  Barrier& named = machine.current->block->named[barrier];
  named.expected = threads;
  arrive_and_wait(named);
}
void sync_block() { arrive_and_wait(machine.current->block->barrier); }

void sync_warp() {
  arrive_and_wait(machine.current->block->warps[machine.current->number / warp_size].barrier);
}

const std::byte* exchange(const void* mine, size_t bytes) {
  Warp& warp = machine.current->block->warps[machine.current->number / warp_size];
  // A lane can be one exchange ahead of another, never two: two buffers are enough.
  auto& buffer = warp.given[warp.barrier.generation % 2];
  std::memcpy(buffer[lane()], mine, bytes);
  sync_warp();
  return &buffer[0][0];
}

void begin_copy(void* to, const void* from, size_t bytes) {
  Fiber* fiber = machine.current;
  const size_t group = fiber->copies.size() - 1;
  ++fiber->copies[group];
  later([=] {
    std::memcpy(to, from, bytes);
    --fiber->copies[group];
  });
}
void end_copies() { machine.current->copies.push_back(0); }
void wait_copies(int pending) {
  const std::vector<int>& copies = machine.current->copies;
  const auto ended = std::max<ptrdiff_t>(0, static_cast<ptrdiff_t>(copies.size()) - 1 - pending);
  wait_until(
      [&] { return std::all_of(copies.begin(), copies.begin() + ended, [](int n) { return n == 0; }); });
}

uint64_t& products() {
  thread_local uint64_t count = 0;
  return count;
}

unsigned cluster_rank() { return machine.current->block->number % machine.launch->cluster; }
unsigned cluster_size() { return machine.launch->cluster; }
void sync_cluster() { arrive_and_wait(machine.current->block->cluster->barrier); }

void* map_shared(void* own, unsigned rank) {
  const ptrdiff_t offset = static_cast<std::byte*>(own) - shared_memory();
  if (rank >= machine.launch->cluster) throw std::runtime_error("emulation: no such block in the cluster");
  return machine.blocks[machine.current->block->cluster->first_block + rank]->shared.get() + offset;
}

namespace {

struct MbarrierBits {
  uint16_t phase, arrivals, missing;  // arrivals of every phase, and of this one still to come
  int16_t units;                      // of 4 bytes, announced less stored
};
static_assert(sizeof(MbarrierBits) == sizeof(uint64_t));

template <class Change>
void change(uint64_t* barrier, Change body) {
  MbarrierBits bits;
  std::memcpy(&bits, barrier, sizeof bits);
  body(bits);
  if (bits.missing == 0 && bits.units == 0) {
    bits.missing = bits.arrivals;
    bits.phase ^= 1;
  }
  std::memcpy(barrier, &bits, sizeof bits);
}

}  // namespace

void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
  const auto count = static_cast<uint16_t>(arrivals);
  const MbarrierBits bits{0, count, count, 0};
  std::memcpy(barrier, &bits, sizeof bits);
}
void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
  change(barrier, [&](MbarrierBits& bits) {
    bits.missing = static_cast<uint16_t>(bits.missing - 1);
    bits.units = static_cast<int16_t>(bits.units + static_cast<int>(bytes / 4));
  });
}
void mbarrier_complete(uint64_t* barrier, unsigned bytes) {
  change(barrier, [&](MbarrierBits& bits) {
    bits.units = static_cast<int16_t>(bits.units - static_cast<int>(bytes / 4));
  });
}
bool mbarrier_passed(const uint64_t* barrier, unsigned parity) {
  MbarrierBits bits;
  std::memcpy(&bits, barrier, sizeof bits);
  return bits.phase != parity;
}

void wait_until(const std::function<bool()>& ready) {
  machine.current->waits_for = &ready;
  suspend(*machine.current);
}

void later(std::function<void()> effect) { machine.effects.push_back(std::move(effect)); }

uint64_t clock() { return machine.clock; }

}  // namespace fastrnn::emulation
