// Kernels of the cluster driver: a whole recurrence in one launch, w_hh on the chip from its first step
// to its last.
//
// A cluster of C blocks computes a slice of 8 sequences. Each block owns U hidden units (a multiple of
// 16, the last blocks' may lie beyond H and are zero), with all their gates. Four warps, a group, own 16
// units; they share the sum over k among them. A thread of a group then is one unit of one sequence: its
// h, c and biases are in registers, and everything it reads of the next step is fetched a step ahead.
//
//   forward   every block has h of all units, [8][C * U], in its inbox, sent there by their owners
//   backward  every block multiplies the gradients of its own gates with its rows of w_hh and sends what
//             they give for dh of other units to their owners, [C][U][8], who add it in the order of ranks
//
// Inboxes are double: whoever sends for the step after next has had something from everyone for the
// next, which they sent after reading the last.
//
// Fragments of w_hh stay in registers where they fit, `Resident` steps of k, the others in shared memory.
#pragma once

#include "cluster.cuh"
#include "step_kernels.cuh"

namespace fastrnn::cuda {

constexpr int slice_rows = 8;    // sequences of a cluster
constexpr int group_units = 16;  // units of a group
constexpr int group_warps = 4;
constexpr int group_threads = 32 * group_warps;
constexpr int words_a_k = 8;  // words that a tensor-core product sums over

// Sizes of a launch, the same on the host and on the device.
struct ClusterShape {
  int blocks;  // C
  int units;   // U

  __host__ __device__ int groups() const { return units / group_units; }
  __host__ __device__ int threads() const { return groups() * group_threads; }
  __host__ __device__ int all_units() const { return blocks * units; }
};

// Shared memory of a block, in bytes from its start.
template <class Cell, class Storage, int Resident>
struct ForwardLayout {
  int k_steps;  // of a warp: a quarter of C * U
  int row;      // bytes of a row of the inbox, which is padded against bank conflicts
  int inbox, partial, stage, weights, bytes;

  __host__ __device__ explicit ForwardLayout(ClusterShape shape) {
    const int words = shape.all_units() * int{sizeof(Storage)} / 4, warps = shape.threads() / 32;
    k_steps = (words / words_a_k + group_warps - 1) / group_warps;
    row = group_warps * k_steps * words_a_k * 4 + 16;
    inbox = 2 * sizeof(Mbarrier);
    partial = inbox + 2 * slice_rows * row;
    stage = partial + 2 * warps * Cell::gates * 4 * 33 * 4;
    weights = (stage + warps * 2 * group_units * int{sizeof(Storage)} + 15) / 16 * 16;
    const int left = k_steps > Resident ? k_steps - Resident : 0;
    bytes = weights + warps * left * Cell::gates * 32 * int{sizeof(Words4)};
  }
};

template <class Storage>
struct ClusterForward {
  ClusterShape shape;
  DeviceSequence sequence;
  int64_t k0, k1, H;   // steps of this launch in the order of computation
  const float* input;  // [rows from first_row on, G * H]
  int64_t first_row;
  const Storage* w_hh;  // [G * H, H]
  const Storage *b_ih, *b_hh;
  float *h, *c;    // [B, H] states, in and out
  Storage* y;      // [rows, H]
  Storage* c_out;  // [rows, H] or null
  Storage* slots;  // [rows, S * H] or null
};

// Rows and masks of one sequence at one step.
struct ClusterRow {
  int64_t row;
  bool exists, active, resets;
};

__device__ __forceinline__ ClusterRow row_at(const DeviceSequence& q, int64_t k, int64_t b,
                                             int64_t length) {
  if (k < 0 || k >= q.T) return {0, false, false, false};
  const int64_t t = q.reverse ? q.T - 1 - k : k;
  const int64_t first = q.first ? q.first[t] : t * q.B;
  const int64_t batch = q.first ? q.first[t + 1] - first : q.B;
  const bool exists = b < batch, active = exists && t < length;
  return {first + b, exists, active, active && q.reset && q.reset[first + b]};
}

// Word `word` of row `row` of a matrix whose rows are `width` numbers, zero outside.
template <class Storage, class At>
__device__ __forceinline__ Word word_of(int word, At at) {
  if constexpr (sizeof(Storage) == 2) {
    return static_cast<Word>(operand_bits(at(2 * word))) | static_cast<Word>(operand_bits(at(2 * word + 1)))
                                                               << 16;
  } else {
    return operand_bits(at(word));
  }
}

// The fragment of 16 rows from `row0` and 8 words from `word0` of the matrix at(row, column).
template <class Storage, class At>
__device__ __forceinline__ Words4 fragment(int row0, int word0, At at) {
  const int row = row0 + lane() / 4, word = word0 + lane() % 4;
  Words4 a;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a.word[i] = word_of<Storage>(word + i / 2 * 4, [&](int column) { return at(row + i % 2 * 8, column); });
  }
  return a;
}

__device__ __forceinline__ Words2 column_fragment(const unsigned char* rows, int row_bytes, int k_step) {
  const auto* words = reinterpret_cast<const Word*>(rows + lane() / 4 * row_bytes) + k_step * words_a_k;
  return {{words[lane() % 4], words[lane() % 4 + 4]}};
}

// Products of `Tiles` tiles of 16 rows, whose fragments are `kept` and, beyond them, `shared`
// [k - Resident][Tiles][32].
template <class Storage, int Tiles, int Resident>
__device__ __forceinline__ void multiply_tiles(float (&acc)[Tiles][4],
                                               const Words4 (&kept)[Resident][Tiles], const Words4* shared,
                                               int k_steps, int first_k, const unsigned char* rows,
                                               int row_bytes) {
#pragma unroll
  for (int k = 0; k < Resident; ++k) {
    if (k >= k_steps) break;
    const Words2 b = column_fragment(rows, row_bytes, first_k + k);
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) mma<Storage>(acc[tile], kept[k][tile], b);
  }
  for (int k = Resident; k < k_steps; ++k) {
    const Words2 b = column_fragment(rows, row_bytes, first_k + k);
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
      mma<Storage>(acc[tile], shared[((k - Resident) * Tiles + tile) * 32 + lane()], b);
    }
  }
}

template <class Cell, class Storage, int Resident, int Threads>
__global__ void __launch_bounds__(Threads, 1) cluster_forward(ClusterForward<Storage> a) {
#ifdef FASTRNN_CLUSTERS
  constexpr int G = Cell::gates;
  constexpr Columns<Cell> columns;
  const ForwardLayout<Cell, Storage, Resident> layout(a.shape);
  unsigned char* const memory = shared_memory();
  auto* const arrived = reinterpret_cast<Mbarrier*>(memory);  // [2] an inbox is complete
  const int H = static_cast<int>(a.H), C = a.shape.blocks, U = a.shape.units;
  const int warp = threadIdx.x / 32, group = warp / group_warps, part = warp % group_warps;
  const int rank = static_cast<int>(cluster_rank());
  const int64_t slice = blockIdx.x / C * slice_rows;
  const int group_first = rank * U + group * group_units;  // unit

  // This thread's element: 16 lanes are the units of one sequence.
  const int unit_in_group = threadIdx.x % group_units;
  const int row_in_slice = threadIdx.x % group_threads / group_units;
  const int unit = group_first + unit_in_group;
  const int64_t b = slice + row_in_slice;
  const bool owns = unit < H && b < a.sequence.B;

  // Weights of this warp's quarter of k.
  const int first_k = part * layout.k_steps;
  auto* const shared_weights = reinterpret_cast<Words4*>(memory + layout.weights) +
                               warp * (layout.k_steps > Resident ? layout.k_steps - Resident : 0) * G * 32;
  Words4 kept[Resident][G];
  const auto weights = [&](int k, int g) {
    return fragment<Storage>(group_first, (first_k + k) * words_a_k, [&](int u, int column) {
      return u < H && column < H ? a.w_hh[(int64_t{g} * H + u) * H + column] : Storage{};
    });
  };
#pragma unroll
  for (int k = 0; k < Resident; ++k) {
#pragma unroll
    for (int g = 0; g < G; ++g) kept[k][g] = k < layout.k_steps ? weights(k, g) : Words4{};
  }
  for (int k = Resident; k < layout.k_steps; ++k) {
    for (int g = 0; g < G; ++g) shared_weights[((k - Resident) * G + g) * 32 + lane()] = weights(k, g);
  }

  float b_x[G] = {}, b_h[G] = {}, h = 0, c = 0;
  const int64_t state = b * H + unit;
  if (owns) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      if (a.b_ih) b_x[g] = widen(a.b_ih[g * H + unit]);
      if (a.b_hh) b_h[g] = widen(a.b_hh[g * H + unit]);
    }
    h = a.h[state];
    if (Cell::has_c) c = a.c[state];
  }
  const int64_t length = owns && a.sequence.lengths ? a.sequence.lengths[b] : a.sequence.T;
  ClusterRow now{};
  float input[G] = {};
  const auto fetch = [&](int64_t k, ClusterRow& at, float (&to)[G]) {
    at = owns ? row_at(a.sequence, k, b, length) : ClusterRow{};
    if (at.active && k < a.k1) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        to[g] = a.input[((at.row - a.first_row) * G + g) * H + unit];
      }
    }
  };
  fetch(a.k0, now, input);

  // The first step's inbox is filled by its own block.
  for (int i = threadIdx.x; i < 2 * slice_rows * layout.row / 4; i += blockDim.x) {
    reinterpret_cast<Word*>(memory + layout.inbox)[i] = 0;
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(&arrived[i], 1);
    mbarrier_init_fence();
  }
  sync_block();
  for (int i = threadIdx.x; i < slice_rows * H; i += blockDim.x) {
    const int64_t row = slice + i / H;
    if (row >= a.sequence.B) break;
    Storage rounded;
    narrow(a.h[row * H + i % H], rounded);
    auto* to = memory + layout.inbox + i / H * layout.row;
    reinterpret_cast<decltype(operand_bits(rounded))*>(to)[i % H] = operand_bits(rounded);
  }
  sync_block();
  sync_cluster();

  for (int64_t k = a.k0; k < a.k1; ++k) {
    const int step = static_cast<int>(k - a.k0), half = step % 2;
    const bool last = k + 1 == a.k1;
    if (threadIdx.x == 0 && !last) {
      mbarrier_arrive_expect(&arrived[1 - half], slice_rows * C * U * sizeof(Storage));
    }
    ClusterRow next;
    float next_input[G] = {};
    fetch(k + 1, next, next_input);
    if (step > 0) mbarrier_wait(&arrived[half], (step - 1) / 2 % 2);

    float acc[G][4] = {};
    multiply_tiles<Storage, G, Resident>(acc, kept, shared_weights, layout.k_steps, first_k,
                                         memory + layout.inbox + half * slice_rows * layout.row,
                                         layout.row);
    // Each warp's part of every gate: [warp][gate][4][33], one number of lanes and of fragments apart.
    auto* const partial = reinterpret_cast<float*>(memory + layout.partial) +
                          (half * (blockDim.x / 32) + group * group_warps) * G * 4 * 33;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[((part * G + g) * 4 + i) * 33 + lane()] = acc[g][i];
    }
    sync_warps(1 + group, group_threads);

    float s[Cell::slots] = {};
    const int from_lane = unit_in_group % 8 * 4 + row_in_slice / 2;
    const int from_number = unit_in_group / 8 * 2 + row_in_slice % 2;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < group_warps; ++w) {
        sum += partial[((w * G + g) * 4 + from_number) * 33 + from_lane];
      }
      s[columns.x_slot[g]] += input[g] + b_x[g];
      s[columns.h_slot[g]] += sum + b_h[g];
    }
    float new_h = 0, new_c = 0;
    if (now.active) {
      Cell::forward(s, h, c, new_h, new_c);
      h = new_h;
      c = new_c;
    }
    const float y = now.active ? h : 0, c_y = now.active ? c : 0;
    if (next.resets) h = c = 0;

    if (!last) {
      // Two sequences' 16 units a warp, in pieces of 16 bytes, to every block.
      auto* const stage = reinterpret_cast<decltype(operand_bits(Storage{}))*>(memory + layout.stage) +
                          warp * 2 * group_units;
      Storage rounded;
      narrow(owns ? h : 0.0f, rounded);
      stage[lane()] = operand_bits(rounded);
      sync_warp();
      constexpr int pieces = 2 * group_units * sizeof(Storage) / 16;
      const int piece = lane() % pieces;
      const Words4 value = reinterpret_cast<const Words4*>(stage)[piece];
      unsigned char* to = memory + layout.inbox +
                          ((1 - half) * slice_rows + part * 2 + piece / (pieces / 2)) * layout.row +
                          group_first * sizeof(Storage) + piece % (pieces / 2) * 16;
      for (int other = lane() / pieces; other < C; other += 32 / pieces) {
        send(to, other, value, &arrived[1 - half]);
      }
    }

    if (now.exists) {
      narrow(y, a.y[now.row * H + unit]);
      if (Cell::has_c && a.c_out) narrow(c_y, a.c_out[now.row * H + unit]);
      if (Cell::keeps_slots && a.slots) {
#pragma unroll
        for (int j = 0; j < Cell::slots; ++j) {
          narrow(now.active ? s[j] : 0.0f, a.slots[(now.row * Cell::slots + j) * H + unit]);
        }
      }
    }
    now = next;
#pragma unroll
    for (int g = 0; g < G; ++g) input[g] = next_input[g];
  }
  if (owns) {
    a.h[state] = h;
    if (Cell::has_c) a.c[state] = c;
  }
  sync_cluster();
#endif
}

template <class Cell, class Storage>
struct BackwardLayout {
  int k_steps;  // of every warp: all gates of this block's units
  int row;      // bytes of a row of the operand, padded
  int inbox, operand, weights, left;

  static constexpr int sums_row = slice_rows + 2;  // floats of a unit in the inbox, padded

  __host__ __device__ BackwardLayout(ClusterShape shape, int resident) {
    k_steps = Cell::gates * shape.units * int{sizeof(Storage)} / 4 / words_a_k;
    row = k_steps * words_a_k * 4 + 16;
    inbox = 2 * sizeof(Mbarrier);
    operand = inbox + 2 * shape.all_units() * sums_row * 4;
    weights = operand + 2 * slice_rows * row;
    left = k_steps > resident ? k_steps - resident : 0;
  }
  // Of a block whose warps have `tiles` tiles each.
  __host__ __device__ int bytes(ClusterShape shape, int tiles) const {
    return weights + shape.threads() / 32 * left * tiles * 32 * int{sizeof(Words4)};
  }
};

template <class Storage>
struct ClusterBackward {
  ClusterShape shape;
  DeviceSequence sequence;
  int64_t H;
  const Storage* w_hh;           // [G * H, H]
  const Storage *h0, *c0;        // [B, H]
  const Storage *y, *c, *slots;  // [rows, H], [rows, H], [rows, S * H]
  const Storage *dy, *dc;        // [rows, H] or null
  float *carry_h, *carry_c;      // [B, H] in and out
  Storage* d;                    // [rows, S * H] by Columns; may be `slots`
};

// What backward reads of one step for one unit of one sequence.
template <class Cell>
struct ClusterSaved {
  ClusterRow at;
  float s[Cell::slots], h, h_prev, c, c_prev, dy, dc;
};

// `Tiles` is a quarter of the cluster's blocks: every warp multiplies that many tiles of 16 units.
template <class Cell, class Storage, int Tiles, int Resident, int Threads>
__global__ void __launch_bounds__(Threads, 1) cluster_backward(ClusterBackward<Storage> a) {
#ifdef FASTRNN_CLUSTERS
  constexpr int G = Cell::gates, S = Cell::slots;
  constexpr Columns<Cell> columns;
  const BackwardLayout<Cell, Storage> layout(a.shape, Resident);
  unsigned char* const memory = shared_memory();
  auto* const arrived = reinterpret_cast<Mbarrier*>(memory);  // [2] an inbox is complete
  auto* const inbox = reinterpret_cast<float*>(memory + layout.inbox);
  constexpr int sums_row = BackwardLayout<Cell, Storage>::sums_row;
  const int H = static_cast<int>(a.H), C = a.shape.blocks, U = a.shape.units;
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, group = warp / group_warps;
  const int rank = static_cast<int>(cluster_rank());
  const int64_t slice = blockIdx.x / C * slice_rows;

  const int local = group * group_units + threadIdx.x % group_units;  // unit of this block
  const int row_in_slice = threadIdx.x % group_threads / group_units;
  const int unit = rank * U + local;
  const int64_t b = slice + row_in_slice, B = a.sequence.B;
  const bool owns = unit < H && b < B;

  // Rows of w_hh' are units of all blocks, columns the gates of this one's.
  auto* const shared_weights =
      reinterpret_cast<Words4*>(memory + layout.weights) + warp * layout.left * Tiles * 32;
  Words4 kept[Resident][Tiles];
  const auto weights = [&](int k, int tile) {
    return fragment<Storage>((warp + tile * warps) * group_units, k * words_a_k, [&](int to, int column) {
      const int from = rank * U + column % U;
      return to < H && from < H ? a.w_hh[(int64_t{column / U} * H + from) * H + to] : Storage{};
    });
  };
#pragma unroll
  for (int k = 0; k < Resident; ++k) {
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
      kept[k][tile] = k < layout.k_steps ? weights(k, tile) : Words4{};
    }
  }
  for (int k = Resident; k < layout.k_steps; ++k) {
    for (int tile = 0; tile < Tiles; ++tile) {
      shared_weights[((k - Resident) * Tiles + tile) * 32 + lane()] = weights(k, tile);
    }
  }

  const int64_t state = b * H + unit;
  float carry_h = owns ? a.carry_h[state] : 0, carry_c = owns && Cell::has_c ? a.carry_c[state] : 0;
  const int64_t length = owns && a.sequence.lengths ? a.sequence.lengths[b] : a.sequence.T;
  const auto fetch = [&](int64_t k) {
    ClusterSaved<Cell> saved{};
    saved.at = owns ? row_at(a.sequence, k, b, length) : ClusterRow{};
    if (!saved.at.active) return saved;
    const ClusterRow before = row_at(a.sequence, k - 1, b, length);
    const int64_t at = saved.at.row * H + unit, at_before = before.row * H + unit;
    if (Cell::keeps_slots) {
#pragma unroll
      for (int j = 0; j < S; ++j) saved.s[j] = widen(a.slots[(saved.at.row * S + j) * H + unit]);
    }
    saved.h = widen(a.y[at]);
    if (!saved.at.resets) saved.h_prev = widen(before.active ? a.y[at_before] : a.h0[state]);
    if (Cell::has_c) {
      saved.c = widen(a.c[at]);
      if (!saved.at.resets) saved.c_prev = widen(before.active ? a.c[at_before] : a.c0[state]);
      if (a.dc) saved.dc = widen(a.dc[at]);
    }
    if (a.dy) saved.dy = widen(a.dy[at]);
    return saved;
  };
  // What all blocks' products of step `n` give for this element, in the order of ranks.
  const auto received = [&](int n) {
    mbarrier_wait(&arrived[n % 2], n / 2 % 2);
    float sum = 0;
    for (int from = 0; from < C; ++from) {
      sum += inbox[((n % 2 * C + from) * U + local) * sums_row + row_in_slice];
    }
    return sum;
  };

  for (int i = threadIdx.x; i < 2 * slice_rows * layout.row / 4; i += blockDim.x) {
    reinterpret_cast<Word*>(memory + layout.operand)[i] = 0;
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(&arrived[i], 1);
    mbarrier_init_fence();
  }
  sync_block();
  sync_cluster();

  const int steps = static_cast<int>(a.sequence.T);
  ClusterSaved<Cell> now = fetch(steps - 1);
  bool reset_after = false;
  for (int n = 0; n < steps; ++n) {
    const int half = n % 2;
    if (threadIdx.x == 0) mbarrier_arrive_expect(&arrived[half], C * U * slice_rows * sizeof(float));
    const ClusterSaved<Cell> next = fetch(steps - 2 - n);

    float dh = carry_h;
    if (n > 0) {
      const float sum = received(n - 1);
      if (!reset_after) dh += sum;
    }
    float d[S] = {};
    carry_h = dh;
    if (now.at.active) {
      float dc_prev = 0, dh_prev;
      Cell::backward(now.s, now.h, now.h_prev, now.c, now.c_prev, dh + now.dy, carry_c + now.dc, d, dh_prev,
                     dc_prev);
      carry_h = now.at.resets ? 0 : dh_prev;
      carry_c = now.at.resets ? 0 : dc_prev;
    }
    reset_after = now.at.resets;

    unsigned char* const operand = memory + layout.operand + half * slice_rows * layout.row;
    Storage rounded[S];
#pragma unroll
    for (int j = 0; j < S; ++j) narrow(d[j], rounded[j]);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const Storage one = rounded[columns.h_slot[g]];
      reinterpret_cast<decltype(operand_bits(one))*>(operand + row_in_slice * layout.row)[g * U + local] =
          operand_bits(one);
    }
    sync_block();

    float acc[Tiles][4] = {};
    multiply_tiles<Storage, Tiles, Resident>(acc, kept, shared_weights, layout.k_steps, 0, operand,
                                             layout.row);
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
      const int place = warp + tile * warps, to = place / a.shape.groups();
      float* sums =
          inbox + ((half * C + rank) * U + place % a.shape.groups() * group_units + lane() / 4) * sums_row +
          lane() % 4 * 2;
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        send(sums + high * 8 * sums_row, to,
             Words2{{bits_as<Word>(acc[tile][high * 2]), bits_as<Word>(acc[tile][high * 2 + 1])}},
             &arrived[half]);
      }
    }
    if (now.at.exists) {
#pragma unroll
      for (int j = 0; j < S; ++j) {
        a.d[(now.at.row * S + columns.of_slot[j]) * H + unit] = rounded[j];
      }
    }
    now = next;
  }
  const float sum = received(steps - 1);
  if (!reset_after) carry_h += sum;
  if (owns) {
    a.carry_h[state] = carry_h;
    if (Cell::has_c) a.carry_c[state] = carry_c;
  }
  sync_cluster();
#endif
}

}  // namespace fastrnn::cuda
