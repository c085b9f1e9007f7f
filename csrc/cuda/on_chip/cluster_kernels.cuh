// Kernels of the cluster driver and of the block driver: a whole recurrence in one launch, w_hh on the
// chip from its first step to its last, and nothing that a slice of 8 sequences needs from other slices.
//
// A cluster of C blocks computes a slice, or one block alone (C = 1). Each block owns U hidden units (a
// multiple of 16, the last blocks' may lie beyond H and are zero), with all their gates. A group of warps
// owns 16 units; where it has several, they share the sum over k among them. A thread owns one unit of
// one sequence, or several: their h, c and biases are in registers, and everything they read of the next
// step is fetched a step ahead, or, where that takes too many registers, before the products.
//
//   forward   every block has h of all units, [8][C * U], in its inbox, sent there by their owners
//   backward  every block multiplies the gradients of its own gates with its rows of w_hh and sends what
//             they give for dh of other units to their owners, [C][U][8], who add it in the order of ranks
//
// Inboxes are double: whoever sends for the step after next has had something from everyone for the
// next, which they sent after reading the last.
//
// Steps at which no sequence of the slice is active are not computed.
#pragma once

#include "cuda/on_chip/recurrence.cuh"

namespace fastrnn::cuda {

// Sizes of a launch, the same on the host and on the device.
struct SliceShape {
  int blocks;       // C
  int units;        // U
  int group_warps;  // of 16 units

  __host__ __device__ int groups() const { return units / group_units; }
  __host__ __device__ int warps() const { return groups() * group_warps; }
  __host__ __device__ int all_units() const { return blocks * units; }
};

constexpr int sums_row = slice_rows + 2;  // floats of a unit in the inbox of backward, padded

// ---- How blocks exchange what they compute ----

// Elements of a thread in a group of `Warps` warps: with one warp those whose sums a product leaves with
// it, with four one element, 16 lanes being the units of one sequence.
template <int Warps>
struct Elements {
  static constexpr int count = 4 / Warps;
  static constexpr int sequences = Warps == 1 ? 2 : 1;  // element e is of the one of element e % sequences
  static_assert(Warps == 1 || Warps == 4);
  // Whether blocks of so many threads have registers for what a step and the next one read.
  static constexpr bool read_ahead(int threads) { return count * threads <= 1024; }

  __device__ static int unit(int e) {
    return Warps == 1 ? lane() / 4 + e / 2 * 8 : threadIdx.x % group_units;
  }
  __device__ static int row(int e) {
    return Warps == 1 ? lane() % 4 * 2 + e % 2 : threadIdx.x % group_elements / group_units;
  }
};

#ifdef FASTRNN_CLUSTERS

// Blocks of a cluster send each other messages, numbered from 0, that report to a barrier of whom they
// reach.
class InCluster {
 public:
  static constexpr int group_warps = 4;
  static constexpr bool available = true;

  __device__ explicit InCluster(unsigned char* memory) : arrived_(reinterpret_cast<Mbarrier*>(memory)) {}
  __device__ int rank() const { return static_cast<int>(cluster_rank()); }

  // Before the first message, and after the last.
  __device__ void open() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) mbarrier_init(&arrived_[i], 1);
      mbarrier_init_fence();
    }
    sync_block();
    sync_cluster();
  }
  __device__ void close() { sync_cluster(); }

  // Before anyone can send message `n`: its bytes that this block will get.
  __device__ void expect(int n, int bytes) {
    if (threadIdx.x == 0) mbarrier_arrive_expect(&arrived_[n % 2], bytes);
  }
  __device__ void wait(int n) { mbarrier_wait(&arrived_[n % 2], n / 2 % 2); }

  // Message `n` of forward: h of this warp's two sequences and 16 units from `first_unit` on goes to all
  // blocks, in pieces of 16 bytes put together in `stage`.
  template <class Storage>
  __device__ void send_h(int n, SliceShape shape, const float (&h)[1], unsigned char* inbox, int row_bytes,
                         unsigned char* stage, int first_unit) {
    constexpr int pieces = 2 * group_units * sizeof(Storage) / 16;
    const int warp = threadIdx.x / 32, piece = lane() % pieces;
    stage += warp * 2 * group_units * sizeof(Storage);
    reinterpret_cast<OperandBits<Storage>*>(stage)[lane()] = rounded_operand<Storage>(h[0]);
    sync_warp();
    const Words4 value = reinterpret_cast<const Words4*>(stage)[piece];
    unsigned char* to = inbox + (warp % group_warps * 2 + piece / (pieces / 2)) * row_bytes +
                        first_unit * sizeof(Storage) + piece % (pieces / 2) * 16;
    for (int other = lane() / pieces; other < shape.blocks; other += 32 / pieces) {
      send(to, other, value, &arrived_[n % 2]);
    }
  }

  // Message `n` of backward: sums for the units of all blocks go to their owners.
  template <int Tiles>
  __device__ void send_sums(int n, SliceShape shape, const float (&acc)[Tiles][4], float* inbox) {
    const int groups = shape.groups();
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
      const int place = threadIdx.x / 32 + tile * shape.warps();
      float* to =
          sums_of(n, shape, inbox, rank(), place % groups * group_units + lane() / 4) + lane() % 4 * 2;
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        send(to + high * 8 * sums_row, place / groups,
             Words2{{bits_as<Word>(acc[tile][high * 2]), bits_as<Word>(acc[tile][high * 2 + 1])}},
             &arrived_[n % 2]);
      }
    }
  }
  // What it brought for elements, in the order of ranks.
  __device__ void receive_sums(int n, SliceShape shape, const float* inbox, int first_unit,
                               float (&sums)[1]) {
    wait(n);
    sums[0] = 0;
    for (int from = 0; from < shape.blocks; ++from) {
      sums[0] += sums_of(n, shape, inbox, from,
                         first_unit + Elements<group_warps>::unit(0))[Elements<group_warps>::row(0)];
    }
  }

 private:
  template <class Float>
  __device__ static Float* sums_of(int n, SliceShape shape, Float* inbox, int from, int unit) {
    return inbox + ((n % 2 * shape.blocks + from) * shape.units + unit) * sums_row;
  }

  Mbarrier* const arrived_;  // [2]
};

#else

struct InCluster {
  static constexpr int group_warps = 4;
  static constexpr bool available = false;
};

#endif

// One block has all units, a warp for 16 of them: what it gives itself is stored in shared memory, or
// stays in the registers that it will be taken from.
class InBlock {
 public:
  static constexpr int group_warps = 1;
  static constexpr bool available = true;

  __device__ explicit InBlock(unsigned char*) {}
  __device__ int rank() const { return 0; }
  __device__ void open() { sync_block(); }
  __device__ void close() {}
  __device__ void expect(int, int) {}
  __device__ void wait(int) { sync_block(); }

  template <class Storage>
  __device__ void send_h(int, SliceShape, const float (&h)[4], unsigned char* inbox, int row_bytes,
                         unsigned char*, int first_unit) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      auto* row = reinterpret_cast<OperandBits<Storage>*>(inbox + Elements<1>::row(e) * row_bytes);
      row[first_unit + Elements<1>::unit(e)] = rounded_operand<Storage>(h[e]);
    }
  }

  __device__ void send_sums(int, SliceShape, const float (&acc)[1][4], float*) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums_[e] = acc[0][e];
  }
  __device__ void receive_sums(int, SliceShape, const float*, int, float (&sums)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[e] = sums_[e];
  }

 private:
  float sums_[4];
};

// ---- Forward ----

template <class Storage>
struct SliceForward {
  SliceShape shape;
  RecurrenceForward<Storage> recurrence;
};

// Shared memory of a block, in bytes from its start.
template <class Cell, class Storage, int Resident>
struct ForwardLayout {
  int k_tiles;  // of a warp: its part of C * U
  int row;      // bytes of a row of the inbox, which is padded against bank conflicts
  int inbox, parts, stage, weights, bytes;

  __host__ __device__ explicit ForwardLayout(SliceShape shape) {
    const int all = shape.all_units() * int{sizeof(Storage)} / k_tile_bytes, warps = shape.warps();
    k_tiles = (all + shape.group_warps - 1) / shape.group_warps;
    row = shape.group_warps * k_tiles * k_tile_bytes + 16;
    inbox = 2 * sizeof(Mbarrier);
    parts = inbox + 2 * slice_rows * row;
    const bool shares = shape.group_warps > 1;
    stage = parts + (shares ? 2 * warps * Cell::gates * part_floats * 4 : 0);
    weights = stage + (shares ? warps * 2 * group_units * int{sizeof(Storage)} : 0);
    bytes = weights + warps * Fragments<Storage, Cell::gates, Resident>::others_bytes(k_tiles);
  }
};

template <class Cell, class Storage, class Exchange, int Resident, int Threads>
__global__ void __launch_bounds__(Threads, 1) slice_forward(SliceForward<Storage> args) {
  if constexpr (Exchange::available) {
    constexpr int G = Cell::gates, W = Exchange::group_warps;
    using Mine = Elements<W>;
    constexpr int E = Mine::count, N = Mine::sequences;
    constexpr bool ahead = Mine::read_ahead(Threads);
    const RecurrenceForward<Storage>& a = args.recurrence;
    const DeviceSequence& q = a.sequence;
    const SliceShape shape = args.shape;
    const ForwardLayout<Cell, Storage, Resident> layout(shape);
    unsigned char* const memory = shared_memory();
    Exchange exchange(memory);
    const int H = static_cast<int>(a.H), warp = threadIdx.x / 32, group = warp / W, part = warp % W;
    const int64_t slice = blockIdx.x / shape.blocks * slice_rows;
    const int first_unit = exchange.rank() * shape.units + group * group_units;
    Element element[E];
#pragma unroll
    for (int e = 0; e < E; ++e) {
      element[e] = Element(q, H, slice + Mine::row(e), first_unit + Mine::unit(e));
    }
    // Operands of step n, from 0: the inbox of message n - 1.
    const auto operand = [&](int n) {
      return memory + layout.inbox + (n + 1) % 2 * slice_rows * layout.row;
    };

    const Span span = active_steps(q, slice).within(a.k0, a.k1);
#pragma unroll
    for (int e = 0; e < E; ++e) write_zeros<Cell>(a, element[e], span);
    if (span.empty()) return;

    // This warp's part of k.
    const int first_k_tile = part * layout.k_tiles;
    using Weights = Fragments<Storage, G, Resident>;
    const Weights weights(memory + layout.weights + warp * Weights::others_bytes(layout.k_tiles),
                          layout.k_tiles, [&](int k_tile, int g) {
                            return fragment<Storage>(
                                first_unit, (first_k_tile + k_tile) * k_tile_words, [&](int u, int column) {
                                  return u < H && column < H ? a.w_hh[(int64_t{g} * H + u) * H + column]
                                                             : Storage{};
                                });
                          });

    Biases<Cell> biases[E];
    State<Cell> state[E];
    RowAt at[N];
    ForwardRead<Cell> read[E];
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = row_at(q, a.H, span.begin, element[i]);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      biases[e] = biases_of<Cell>(a, first_unit + Mine::unit(e));
      state[e] = state_before<Cell>(a, element[e], span.begin);
      if (ahead) read[e] = read_forward<Cell>(a, element[e], at[e % N]);
    }

    // The first step's operand is filled by its own block.
    for (int i = threadIdx.x; i < 2 * slice_rows * layout.row / 4; i += blockDim.x) {
      reinterpret_cast<Word*>(memory + layout.inbox)[i] = 0;
    }
    sync_block();
    for (int i = threadIdx.x; i < slice_rows * H; i += blockDim.x) {
      const Element e(q, H, slice + i / H, i % H);
      reinterpret_cast<OperandBits<Storage>*>(operand(0) + i / H * layout.row)[e.unit] =
          rounded_operand<Storage>(state_before<Cell>(a, e, span.begin).h);
    }
    exchange.open();

    for (int k = span.begin; k < span.end; ++k) {
      const int n = k - span.begin;
      const bool last = k + 1 == span.end;
      if (!last) exchange.expect(n, slice_rows * shape.all_units() * int{sizeof(Storage)});
      RowAt next_at[N];
      ForwardRead<Cell> next[E];
#pragma unroll
      for (int i = 0; i < N; ++i) next_at[i] = last ? RowAt{} : row_at(q, a.H, k + 1, element[i]);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        (ahead ? next : read)[e] = read_forward<Cell>(a, element[e], (ahead ? next_at : at)[e % N]);
      }
      if (n > 0) exchange.wait(n - 1);

      float acc[G][4] = {};
      weights.template multiply<G>(0, operand(n) + first_k_tile * k_tile_bytes, layout.row, acc);
      float product[E][G];
      if constexpr (W == 1) {
#pragma unroll
        for (int e = 0; e < E; ++e) {
#pragma unroll
          for (int g = 0; g < G; ++g) product[e][g] = acc[g][e];
        }
      } else {
        auto* const parts = reinterpret_cast<float*>(memory + layout.parts) +
                            (n % 2 * shape.groups() + group) * W * G * part_floats;
        leave_part(parts, part, acc);
        sync_warps(1 + group, W * 32);
#pragma unroll
        for (int g = 0; g < G; ++g)
          product[0][g] = sum_of_parts<G>(parts, W, g, Mine::unit(0), Mine::row(0));
      }

      ForwardWritten<Cell> written[E];
      float h[E];
#pragma unroll
      for (int e = 0; e < E; ++e) {
        written[e] =
            advance(element[e], at[e % N], read[e], next_at[e % N].resets, biases[e], product[e], state[e]);
        h[e] = state[e].h;
      }
      if (!last) {
        exchange.template send_h<Storage>(n, shape, h, operand(n + 1), layout.row, memory + layout.stage,
                                          first_unit);
      }
#pragma unroll
      for (int e = 0; e < E; ++e) {
        write_forward(a, element[e], at[e % N], written[e]);
        if (ahead) read[e] = next[e];
      }
#pragma unroll
      for (int i = 0; i < N; ++i) at[i] = next_at[i];
    }
#pragma unroll
    for (int e = 0; e < E; ++e) keep_state(a, element[e], state[e]);
    exchange.close();
  }
}

// ---- Backward ----

template <class Storage>
struct SliceBackward {
  SliceShape shape;
  RecurrenceBackward<Storage> recurrence;
};

template <class Cell, class Storage>
struct BackwardLayout {
  int k_tiles;  // of every warp: all gates of this block's units
  int row;      // bytes of a row of the operand, padded
  int inbox, operand, weights;

  __host__ __device__ explicit BackwardLayout(SliceShape shape) {
    k_tiles = Cell::gates * shape.units * int{sizeof(Storage)} / k_tile_bytes;
    row = k_tiles * k_tile_bytes + 16;
    inbox = 2 * sizeof(Mbarrier);
    operand = inbox + (shape.blocks > 1 ? 2 * shape.all_units() * sums_row * 4 : 0);
    weights = operand + 2 * slice_rows * row;
  }
  // Of a block whose warps have `tiles` tiles each, of which `resident` steps stay in registers.
  template <int tiles, int resident>
  __host__ __device__ int bytes(SliceShape shape) const {
    return weights + shape.warps() * Fragments<Storage, tiles, resident>::others_bytes(k_tiles);
  }
};

// A block computes products for the units of all blocks: `Tiles` tiles of 16 units a warp.
template <class Cell, class Storage, class Exchange, int Tiles, int Resident, int Threads>
__global__ void __launch_bounds__(Threads, 1) slice_backward(SliceBackward<Storage> args) {
  if constexpr (Exchange::available) {
    constexpr int G = Cell::gates, S = Cell::slots, W = Exchange::group_warps;
    constexpr Columns<Cell> columns;
    using Mine = Elements<W>;
    constexpr int E = Mine::count, N = Mine::sequences;
    constexpr bool ahead = Mine::read_ahead(Threads);
    const RecurrenceBackward<Storage>& a = args.recurrence;
    const DeviceSequence& q = a.sequence;
    const SliceShape shape = args.shape;
    const BackwardLayout<Cell, Storage> layout(shape);
    unsigned char* const memory = shared_memory();
    Exchange exchange(memory);
    auto* const inbox = reinterpret_cast<float*>(memory + layout.inbox);
    const int H = static_cast<int>(a.H), U = shape.units, rank = exchange.rank();
    const int warp = threadIdx.x / 32, local = warp / W * group_units;  // first unit in the block
    const int64_t slice = blockIdx.x / shape.blocks * slice_rows;
    Element element[E];
#pragma unroll
    for (int e = 0; e < E; ++e) {
      element[e] = Element(q, H, slice + Mine::row(e), rank * U + local + Mine::unit(e));
    }

    const Span span = active_steps(q, slice);
#pragma unroll
    for (int e = 0; e < E; ++e) write_zeros<Cell>(a, element[e], span);
    if (span.empty()) return;

    // Rows of w_hh' are units of all blocks, columns the gates of this one's.
    using Weights = Fragments<Storage, Tiles, Resident>;
    const Weights weights(
        memory + layout.weights + warp * Weights::others_bytes(layout.k_tiles), layout.k_tiles,
        [&](int k_tile, int tile) {
          return fragment<Storage>(
              (warp + tile * shape.warps()) * group_units, k_tile * k_tile_words, [&](int to, int column) {
                const int from = rank * U + column % U;
                return to < H && from < H ? a.w_hh[(int64_t{column / U} * H + from) * H + to] : Storage{};
              });
        });

    State<Cell> carry[E];
    RowAt at[N], before[N];
    bool reset_after[N] = {};
    BackwardRead<Cell> read[E];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      at[i] = row_at(q, a.H, span.end - 1, element[i]);
      before[i] = row_at(q, a.H, span.end - 2, element[i]);
    }
#pragma unroll
    for (int e = 0; e < E; ++e) {
      carry[e] = carry_of<Cell>(a, element[e]);
      read[e] = read_backward<Cell>(a, element[e], at[e % N], before[e % N]);
    }
    for (int i = threadIdx.x; i < 2 * slice_rows * layout.row / 4; i += blockDim.x) {
      reinterpret_cast<Word*>(memory + layout.operand)[i] = 0;
    }
    exchange.open();

    float sums[E] = {};
    for (int k = span.end - 1; k >= span.begin; --k) {
      const int n = span.end - 1 - k;
      exchange.expect(n, shape.all_units() * slice_rows * int{sizeof(float)});
      RowAt next_before[N];
      BackwardRead<Cell> next[E];
#pragma unroll
      for (int i = 0; i < N; ++i) next_before[i] = row_at(q, a.H, k - 2, element[i]);
      const auto read_next = [&] {
#pragma unroll
        for (int e = 0; e < E; ++e) {
          next[e] = read_backward<Cell>(a, element[e], before[e % N], next_before[e % N]);
        }
      };
      if (ahead) read_next();
      if (n > 0) exchange.receive_sums(n - 1, shape, inbox, local, sums);

      unsigned char* const operand = memory + layout.operand + n % 2 * slice_rows * layout.row;
      Storage rounded[E][S];
#pragma unroll
      for (int e = 0; e < E; ++e) {
        retreat(element[e], at[e % N], read[e], sums[e], reset_after[e % N], carry[e], rounded[e]);
        auto* const row = reinterpret_cast<OperandBits<Storage>*>(operand + Mine::row(e) * layout.row);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          row[g * U + local + Mine::unit(e)] = operand_bits(rounded[e][columns.h_slot[g]]);
        }
      }
      sync_block();
      const auto write_and_go_on = [&] {
#pragma unroll
        for (int e = 0; e < E; ++e) {
          write_backward<Cell>(a, element[e], at[e % N], rounded[e]);
          read[e] = next[e];
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
          reset_after[i] = at[i].resets;
          at[i] = before[i];
          before[i] = next_before[i];
        }
      };
      if (!ahead) {
        read_next();
        write_and_go_on();
      }

      float acc[Tiles][4] = {};
      weights.template multiply<Tiles>(0, operand, layout.row, acc);
      exchange.send_sums(n, shape, acc, inbox);
      if (ahead) write_and_go_on();
    }
    exchange.receive_sums(span.end - 1 - span.begin, shape, inbox, local, sums);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      if (!reset_after[e % N]) carry[e].h += sums[e];
      keep_carry(a, element[e], carry[e]);
    }
    exchange.close();
  }
}

}  // namespace fastrnn::cuda
