// What kernels that keep weights on the chip are made of: tensor-core products from registers, barriers
// of some warps, copies into shared memory that nobody waits for yet, flags between blocks, and, on sm_90,
// clusters: stores into another block's shared memory that report to an mbarrier there.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/numbers.cuh"

namespace fastrnn::cuda {

// Whether the code being compiled may use clusters.
#if defined(FASTRNN_EMULATED) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FASTRNN_CLUSTERS
#endif

// Two numbers of 16 bits, or one of 32.
using Word = uint32_t;
struct alignas(8) Words2 {
  Word word[2];
};
struct alignas(16) Words4 {
  Word word[4];
};

// A barrier in shared memory. A phase ends when `arrivals` arrivals have come and all bytes that were
// announced have been stored.
using Mbarrier = uint64_t;

// A number as tensor cores read it: as it is stored, a float as TF32.
__device__ __forceinline__ uint16_t operand_bits(BFloat16 x) { return x.bits; }
__device__ __forceinline__ uint16_t operand_bits(Half x) { return x.bits; }
__device__ __forceinline__ uint32_t operand_bits(float x) {
#ifdef FASTRNN_EMULATED
  // To nearest, ties away from zero. A NaN stays one: the GPU's own, 0x7fffffff, would become -0 by the
  // sum.
  return x != x ? 0x7fffffff : (bits_as<uint32_t>(x) + 0x1000) & 0xffffe000;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

#ifdef FASTRNN_EMULATED

inline int lane() { return emulation::lane(); }
inline void sync_warp() { emulation::sync_warp(); }
inline void sync_warps(int barrier, int threads) { emulation::sync_threads(barrier, threads); }
inline bool warp_all(bool mine) {
  const std::byte* given = emulation::exchange(&mine, sizeof mine);
  for (int lane = 0; lane < emulation::warp_size; ++lane) {
    bool one;
    memcpy(&one, given + lane * emulation::exchange_stride, sizeof one);
    if (!one) return false;
  }
  return true;
}
inline unsigned cluster_rank() { return emulation::cluster_rank(); }
inline void sync_cluster() { emulation::sync_cluster(); }

inline float shuffle_xor(float value, int mask) {
  const std::byte* given = emulation::exchange(&value, sizeof value);
  float other;
  memcpy(&other, given + (lane() ^ mask) * emulation::exchange_stride, sizeof other);
  return other;
}

inline void mbarrier_init(Mbarrier* barrier, unsigned arrivals) {
  emulation::mbarrier_init(barrier, arrivals);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
  emulation::mbarrier_arrive_expect(barrier, bytes);
}
inline void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  emulation::wait_until([=] { return emulation::mbarrier_passed(barrier, parity); });
}

template <class Value>
void send(void* to, unsigned rank, const Value& value, Mbarrier* barrier) {
  void* there = emulation::map_shared(to, rank);
  auto* reports_to = static_cast<Mbarrier*>(emulation::map_shared(barrier, rank));
  emulation::later([=] {
    memcpy(there, &value, sizeof value);
    emulation::mbarrier_complete(reports_to, sizeof value);
  });
}

// Number `i` of a word of the type.
template <class Storage>
Compute<Storage> number_in(Word word, int i) {
  if constexpr (sizeof(Storage) == 2) {
    return widen(Storage{static_cast<uint16_t>(word >> 16 * i)});
  } else {
    return bits_as<float>(word & 0xffffe000);  // as much of a float as TF32 has
  }
}

template <class Storage>
void mma(float (&acc)[4], const Words4& a, const Words2& b) {
  struct Given {
    Words4 a;
    Words2 b;
  } mine{a, b};
  const std::byte* given = emulation::exchange(&mine, sizeof mine);
  const auto of_lane = [&](int lane) {
    Given one;
    memcpy(&one, given + lane * emulation::exchange_stride, sizeof one);
    return one;
  };
  constexpr int numbers = sizeof(Word) / sizeof(Storage);
  if (lane() == 0) ++emulation::products();
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4, high = i / 2, column = lane() % 4 * 2 + i % 2;
    for (int word = 0; word < 8; ++word) {
      const Word from_a = of_lane(row * 4 + word % 4).a.word[high + word / 4 * 2];
      const Word from_b = of_lane(column * 4 + word % 4).b.word[word / 4];
      for (int n = 0; n < numbers; ++n) {
        acc[i] += number_in<Storage>(from_a, n) * number_in<Storage>(from_b, n);
      }
    }
  }
}

inline void begin_copy(void* to, const void* from) { emulation::begin_copy(to, from, sizeof(Words4)); }
inline void end_copies() { emulation::end_copies(); }
inline void wait_copies(int pending) { emulation::wait_copies(pending); }

inline uint32_t load_relaxed(const uint32_t* from) { return *from; }
inline uint32_t load_acquire(const uint32_t* from) { return *from; }
inline void store_release(uint32_t* to, uint32_t value) { *to = value; }
inline void add_release(uint32_t* to, uint32_t value) { *to += value; }
inline uint64_t clock_now() { return emulation::clock(); }

// Waits until `ready`, at most `patience` of clock_now's units; false where that was not enough.
template <class Ready>
bool wait_for(Ready ready, uint64_t patience) {
  const uint64_t begin = clock_now();
  emulation::wait_until([&] { return ready() || clock_now() - begin > patience; });
  return ready();
}

#else

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
// The warps that name this barrier (1 to 15), `threads` threads of them.
__device__ __forceinline__ void sync_warps(int barrier, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// Whether it holds in every lane. Orders no memory accesses.
__device__ __forceinline__ bool warp_all(bool mine) { return __all_sync(0xffffffff, mine); }
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffff, value, mask);
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#ifdef FASTRNN_CLUSTERS

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// The address in block `rank` of the cluster that corresponds to this block's `own`.
__device__ __forceinline__ uint32_t map_shared(const void* own, unsigned rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(own)), "r"(rank));
  return there;
}

__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
// Makes initialized barriers known to the cluster; a sync_cluster has to follow.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// Waits for the end of the phase of this parity; what was stored in it is then there to be read.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred passed;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 passed, [%0], %1;\n"
      "@!passed bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Stores a value where `to` corresponds to in block `rank`, and its size as arrived at `barrier` there.
__device__ __forceinline__ void send(void* to, unsigned rank, const Words4& value, Mbarrier* barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          map_shared(to, rank)),
      "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3]),
      "r"(map_shared(barrier, rank))
      : "memory");
}
__device__ __forceinline__ void send(void* to, unsigned rank, const Words2& value, Mbarrier* barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                   map_shared(to, rank)),
               "r"(value.word[0]), "r"(value.word[1]), "r"(map_shared(barrier, rank))
               : "memory");
}

#endif

// acc [16, 8] += a [16, k] b [k, 8] by a warp, where k is 16 numbers of 16 bits or 8 of TF32: always 8
// words. With row = lane / 4 and word = lane % 4 a lane holds
//   a: words `word` of rows `row` and `row + 8`, then words `word + 4` of the same
//   b: words `word` and `word + 4` of column `row`
//   acc: columns 2 * word and 2 * word + 1 of row `row`, then of row `row + 8`
template <class Storage>
__device__ __forceinline__ void mma(float (&acc)[4], const Words4& a, const Words2& b) {
#define FASTRNN_MMA(shape, type)                                                                 \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                           \
               ".f32 "                                                                           \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
               : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                          \
               : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), \
                 "r"(b.word[1]))
  if constexpr (std::is_same_v<Storage, BFloat16>) {
    FASTRNN_MMA("m16n8k16", "bf16");
  } else if constexpr (std::is_same_v<Storage, Half>) {
    FASTRNN_MMA("m16n8k16", "f16");
  } else {
    FASTRNN_MMA("m16n8k8", "tf32");
  }
#undef FASTRNN_MMA
}

// Copies 16 bytes of global memory, past the L1 cache, to shared memory at some time from now on. Copies
// up to end_copies() are a group; wait_copies() waits until at most the last `pending` groups (up to 3)
// of this thread are under way.
__device__ __forceinline__ void begin_copy(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_copies(int pending) {
  if (pending <= 0) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  } else if (pending == 1) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  } else if (pending == 2) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  } else {
    asm volatile("cp.async.wait_group 3;" ::: "memory");
  }
}

// A flag that others store with release, as often as one likes. load_acquire() also makes visible what was
// written before the flag, and discards the L1 cache.
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(uint32_t* to, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ void add_release(uint32_t* to, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ uint64_t clock_now() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
}

template <class Ready>
__device__ __forceinline__ bool wait_for(Ready ready, uint64_t patience) {
  if (ready()) return true;
  const uint64_t begin = clock_now();
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
    }
  } while (clock_now() - begin <= patience);
  return false;
}

#endif

}  // namespace fastrnn::cuda
