// What kernels of a whole recurrence in one launch share, however they divide it among blocks and hand h
// on: weights that stay on the chip, products with them, and the cell of one unit of one sequence.
//
// Sequences are computed in slices of 8, units in groups of 16: one tensor-core product has 16 units of
// one gate, 8 sequences and a tile of k.
#pragma once

#include <type_traits>

#include "cuda/common/columns.h"
#include "cuda/common/sequence.cuh"
#include "cuda/ptx/instructions.cuh"

namespace fastrnn::cuda {

constexpr int slice_rows = 8;                             // sequences of a slice
constexpr int group_units = 16;                           // units of a group
constexpr int group_elements = slice_rows * group_units;  // of a group for one slice
constexpr int k_tile_words = 8;                           // words that a tensor-core product sums over
constexpr int k_tile_bytes = k_tile_words * int{sizeof(Word)};

// ---- Rows and steps ----

// One unit of one sequence.
struct Element {
  int b = 0, unit = 0;
  int length = 0;     // steps of the sequence
  bool owns = false;  // both exist

  __device__ Element() {}
  __device__ Element(const DeviceSequence& q, int64_t H, int64_t b_, int unit_)
      : b(static_cast<int>(b_)), unit(unit_), owns(unit_ < H && b_ < q.B) {
    if (b_ < q.B) length = static_cast<int>(q.lengths && q.lengths[b] < q.T ? q.lengths[b] : q.T);
  }
  __device__ int64_t state(int64_t H) const { return b * H + unit; }  // of [B, H]
};

// Row and masks of one sequence at one step. T, B and H are below 2^31 each, their products are not.
struct RowAt {
  int64_t start;  // row * H
  bool exists, active, resets;
};

// Of the sequence that an element belongs to.
__device__ __forceinline__ RowAt row_at(const DeviceSequence& q, int64_t H, int k, const Element& e) {
  const int T = static_cast<int>(q.T);
  if (k < 0 || k >= T) return {0, false, false, false};
  const int t = q.reverse ? T - 1 - k : k;
  int64_t row;
  bool exists;
  if (q.first) {
    row = q.first[t] + e.b;
    exists = row < q.first[t + 1];
  } else {
    row = int64_t{t} * static_cast<int>(q.B) + e.b;
    exists = e.b < q.B;
  }
  const bool active = exists && t < e.length;
  return {row * static_cast<int>(H), exists, active, active && q.reset && q.reset[row]};
}

__device__ __forceinline__ bool resets_at(const DeviceSequence& q, int k, const Element& e) {
  return q.reset && row_at(q, 0, k, e).resets;
}

// Steps in the order of computation.
struct Span {
  int begin, end;

  __device__ bool empty() const { return begin >= end; }
  __device__ bool has(int64_t k) const { return begin <= k && k < end; }
  __device__ Span within(int64_t k0, int64_t k1) const {
    return {static_cast<int>(begin > k0 ? begin : k0), static_cast<int>(end < k1 ? end : k1)};
  }
};

// The steps at which some sequence of a slice is active. At all others there is nothing to compute: what
// is due there is zeros. Every block that has a part in the slice finds the same.
__device__ inline Span active_steps(const DeviceSequence& q, int64_t slice) {
  int64_t steps = q.T;  // t < steps
  if (q.first) {        // sizes of batches never increase
    int64_t low = 0;
    while (low < steps) {
      const int64_t middle = (low + steps) / 2;
      if (q.first[middle + 1] - q.first[middle] > slice) {
        low = middle + 1;
      } else {
        steps = middle;
      }
    }
  } else if (q.lengths) {
    int64_t longest = 0;
    for (int64_t b = slice; b < slice + slice_rows && b < q.B; ++b) {
      if (q.lengths[b] > longest) longest = q.lengths[b];
    }
    if (longest < steps) steps = longest;
  }
  const int T = static_cast<int>(q.T), active = static_cast<int>(steps);
  return q.reverse ? Span{T - active, T} : Span{0, active};
}

// ---- Forward ----

template <class Storage>
struct RecurrenceForward {
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

// What an element reads of one step.
template <class Cell>
struct ForwardRead {
  float input[Cell::gates];
};

// Of a step of this launch, or one whose row is not active.
template <class Cell, class Storage>
__device__ __forceinline__ ForwardRead<Cell> read_forward(const RecurrenceForward<Storage>& a,
                                                          const Element& e, const RowAt& at) {
  ForwardRead<Cell> read{};
  if (!e.owns || !at.active) return read;
  const float* const from = a.input + (at.start - a.first_row * a.H) * Cell::gates + e.unit;
#pragma unroll
  for (int g = 0; g < Cell::gates; ++g) read.input[g] = from[g * a.H];
  return read;
}

// What stays with an element from step to step.
template <class Cell>
struct State {
  float h = 0, c = 0;
};

// A state as it is before step `k`.
template <class Cell, class Storage>
__device__ __forceinline__ State<Cell> state_before(const RecurrenceForward<Storage>& a, const Element& e,
                                                    int k) {
  State<Cell> state;
  if (!e.owns || resets_at(a.sequence, k, e)) return state;
  state.h = a.h[e.state(a.H)];
  if (Cell::has_c) state.c = a.c[e.state(a.H)];
  return state;
}

template <class Cell, class Storage>
__device__ __forceinline__ void keep_state(const RecurrenceForward<Storage>& a, const Element& e,
                                           const State<Cell>& state) {
  if (!e.owns) return;
  a.h[e.state(a.H)] = state.h;
  if (Cell::has_c) a.c[e.state(a.H)] = state.c;
}

// Both biases of a unit, in the slots that they are added to.
template <class Cell>
struct Biases {
  float slot[Cell::slots] = {};
};

template <class Cell, class Storage>
__device__ __forceinline__ Biases<Cell> biases_of(const RecurrenceForward<Storage>& a, int unit) {
  constexpr Columns<Cell> columns;
  Biases<Cell> biases;
  if (unit >= a.H) return biases;
#pragma unroll
  for (int g = 0; g < Cell::gates; ++g) {
    if (a.b_ih) biases.slot[columns.x_slot[g]] += widen(a.b_ih[g * a.H + unit]);
    if (a.b_hh) biases.slot[columns.h_slot[g]] += widen(a.b_hh[g * a.H + unit]);
  }
  return biases;
}

// What an element leaves of one step.
template <class Cell>
struct ForwardWritten {
  float y, c, s[Cell::slots];
};

// Computes a step, given the recurrent product. The state is then as the next step of this launch finds it:
// zero where that `resets_next`.
template <class Cell>
__device__ __forceinline__ ForwardWritten<Cell> advance(const Element& e, const RowAt& at,
                                                        const ForwardRead<Cell>& read, bool resets_next,
                                                        const Biases<Cell>& biases,
                                                        const float (&product)[Cell::gates],
                                                        State<Cell>& state) {
  constexpr Columns<Cell> columns;
  ForwardWritten<Cell> written{};
  if (e.owns && at.active) {
    float h, c = 0;
#pragma unroll
    for (int j = 0; j < Cell::slots; ++j) written.s[j] = biases.slot[j];
#pragma unroll
    for (int g = 0; g < Cell::gates; ++g) {
      written.s[columns.x_slot[g]] += read.input[g];
      written.s[columns.h_slot[g]] += product[g];
    }
    Cell::forward(written.s, state.h, state.c, h, c);
    written.y = state.h = h;
    written.c = state.c = c;
  }
  if (resets_next) state = {};
  return written;
}

template <class Cell, class Storage>
__device__ __forceinline__ void write_forward(const RecurrenceForward<Storage>& a, const Element& e,
                                              const RowAt& at, const ForwardWritten<Cell>& written) {
  if (!e.owns || !at.exists) return;
  narrow(written.y, a.y[at.start + e.unit]);
  if (Cell::has_c && a.c_out) narrow(written.c, a.c_out[at.start + e.unit]);
  if (Cell::keeps_slots && a.slots) {
    Storage* const slots = a.slots + at.start * Cell::slots + e.unit;
#pragma unroll
    for (int j = 0; j < Cell::slots; ++j) narrow(written.s[j], slots[j * a.H]);
  }
}

// The zeros of steps at which nothing of the element's slice is active.
template <class Cell, class Storage>
__device__ inline void write_zeros(const RecurrenceForward<Storage>& a, const Element& e, Span active) {
  for (int k = static_cast<int>(a.k0); k < a.k1; ++k) {
    if (active.has(k)) {
      k = active.end - 1;
    } else {
      write_forward<Cell>(a, e, row_at(a.sequence, a.H, k, e), ForwardWritten<Cell>{});
    }
  }
}

// ---- Backward ----

template <class Storage>
struct RecurrenceBackward {
  DeviceSequence sequence;
  int64_t H;
  const Storage* w_hh;           // [G * H, H]
  const Storage *h0, *c0;        // [B, H]
  const Storage *y, *c, *slots;  // [rows, H], [rows, H], [rows, S * H]
  const Storage *dy, *dc;        // [rows, H] or null
  float *carry_h, *carry_c;      // [B, H] in and out
  Storage* d;                    // [rows, S * H] by Columns; may be `slots`
};

template <class Cell>
struct BackwardRead {
  float s[Cell::slots], h, h_prev, c, c_prev, dy, dc;
};

// Of a step and the one before it.
template <class Cell, class Storage>
__device__ __forceinline__ BackwardRead<Cell> read_backward(const RecurrenceBackward<Storage>& a,
                                                            const Element& e, const RowAt& at,
                                                            const RowAt& before) {
  BackwardRead<Cell> read{};
  if (!e.owns || !at.active) return read;
  const int64_t here = at.start + e.unit, previous = before.active ? before.start + e.unit : e.state(a.H);
  if (Cell::keeps_slots) {
    const Storage* const slots = a.slots + at.start * Cell::slots + e.unit;
#pragma unroll
    for (int j = 0; j < Cell::slots; ++j) read.s[j] = widen(slots[j * a.H]);
  }
  read.h = widen(a.y[here]);
  if (!at.resets) read.h_prev = widen((before.active ? a.y : a.h0)[previous]);
  if (Cell::has_c) {
    read.c = widen(a.c[here]);
    if (!at.resets) read.c_prev = widen((before.active ? a.c : a.c0)[previous]);
    if (a.dc) read.dc = widen(a.dc[here]);
  }
  if (a.dy) read.dy = widen(a.dy[here]);
  return read;
}

template <class Cell, class Storage>
__device__ __forceinline__ State<Cell> carry_of(const RecurrenceBackward<Storage>& a, const Element& e) {
  State<Cell> carry;
  if (!e.owns) return carry;
  carry.h = a.carry_h[e.state(a.H)];
  if (Cell::has_c) carry.c = a.carry_c[e.state(a.H)];
  return carry;
}

template <class Cell, class Storage>
__device__ __forceinline__ void keep_carry(const RecurrenceBackward<Storage>& a, const Element& e,
                                           const State<Cell>& carry) {
  if (!e.owns) return;
  a.carry_h[e.state(a.H)] = carry.h;
  if (Cell::has_c) a.carry_c[e.state(a.H)] = carry.c;
}

// Computes a step, given what the product with the gradients of the step after gives for dh, unless that
// step `reset_after`: the gradients of the slots as they are stored. The carry is then what is known for
// the step before.
template <class Cell, class Storage>
__device__ __forceinline__ void retreat(const Element& e, const RowAt& at, const BackwardRead<Cell>& read,
                                        float product, bool reset_after, State<Cell>& carry,
                                        Storage (&rounded)[Cell::slots]) {
  float d[Cell::slots] = {};
  if (!reset_after) carry.h += product;
  if (e.owns && at.active) {
    float dh_prev, dc_prev = 0;
    Cell::backward(read.s, read.h, read.h_prev, read.c, read.c_prev, carry.h + read.dy, carry.c + read.dc,
                   d, dh_prev, dc_prev);
    carry.h = at.resets ? 0 : dh_prev;
    carry.c = at.resets ? 0 : dc_prev;
  }
#pragma unroll
  for (int j = 0; j < Cell::slots; ++j) narrow(d[j], rounded[j]);
}

template <class Cell, class Storage>
__device__ __forceinline__ void write_backward(const RecurrenceBackward<Storage>& a, const Element& e,
                                               const RowAt& at, const Storage (&rounded)[Cell::slots]) {
  constexpr Columns<Cell> columns;
  if (!e.owns || !at.exists) return;
  Storage* const d = a.d + at.start * Cell::slots + e.unit;
#pragma unroll
  for (int j = 0; j < Cell::slots; ++j) d[columns.of_slot[j] * a.H] = rounded[j];
}

template <class Cell, class Storage>
__device__ inline void write_zeros(const RecurrenceBackward<Storage>& a, const Element& e, Span active) {
  const Storage zeros[Cell::slots] = {};
  for (int k = 0; k < a.sequence.T; ++k) {
    if (active.has(k)) {
      k = active.end - 1;
    } else {
      write_backward<Cell>(a, e, row_at(a.sequence, a.H, k, e), zeros);
    }
  }
}

// ---- Weights and products ----

// A number as it lies in an operand.
template <class Storage>
using OperandBits = decltype(operand_bits(Storage{}));

template <class Storage>
__device__ __forceinline__ OperandBits<Storage> rounded_operand(float x) {
  Storage rounded;
  narrow(x, rounded);
  return operand_bits(rounded);
}

// Word `word` of a row whose numbers are at(column).
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

__device__ __forceinline__ Words2 column_fragment(const unsigned char* rows, int row_bytes, int k_tile) {
  const auto* words = reinterpret_cast<const Word*>(rows + lane() / 4 * row_bytes) + k_tile * k_tile_words;
  return {{words[lane() % 4], words[lane() % 4 + 4]}};
}

// A warp's fragments of a matrix: those of the first `Resident` tiles of k in registers, the others in
// shared memory.
template <class Storage, int Tiles, int Resident>
struct Fragments {
  Words4 kept[Resident][Tiles];
  Words4* others;  // [k_tiles - Resident][Tiles][32]
  int k_tiles;

  // Bytes of shared memory for a warp.
  __host__ __device__ static int others_bytes(int k_tiles) {
    return (k_tiles > Resident ? k_tiles - Resident : 0) * Tiles * 32 * int{sizeof(Words4)};
  }

  // From at(k_tile, tile).
  template <class At>
  __device__ __forceinline__ Fragments(unsigned char* memory, int k_tiles_, At at)
      : others(reinterpret_cast<Words4*>(memory)), k_tiles(k_tiles_) {
#pragma unroll
    for (int k_tile = 0; k_tile < Resident; ++k_tile) {
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        kept[k_tile][tile] = k_tile < k_tiles ? at(k_tile, tile) : Words4{};
      }
    }
    for (int k_tile = Resident; k_tile < k_tiles; ++k_tile) {
      for (int tile = 0; tile < Tiles; ++tile) {
        others[((k_tile - Resident) * Tiles + tile) * 32 + lane()] = at(k_tile, tile);
      }
    }
  }

  // Adds the products of `Count` tiles with the 8 rows of an operand. Few tiles are summed in several
  // chains, since a product waits for the one before it.
  template <int Count>
  __device__ __forceinline__ void multiply(int first_tile, const unsigned char* rows, int row_bytes,
                                           float (&acc)[Count][4]) const {
    constexpr int chains = Count > 2 ? 1 : 2;
    float sums[chains][Count][4] = {};  // from the second chain on; the first is in acc
    const auto sum_of = [&](int chain, int tile) -> float (&)[4] {
      return chain == 0 ? acc[tile] : sums[chain][tile];
    };
#pragma unroll
    for (int k_tile = 0; k_tile < Resident; ++k_tile) {
      if (k_tile >= k_tiles) break;
      const Words2 b = column_fragment(rows, row_bytes, k_tile);
#pragma unroll
      for (int tile = 0; tile < Count; ++tile) {
        mma<Storage>(sum_of(k_tile % chains, tile), kept[k_tile][first_tile + tile], b);
      }
    }
    for (int first = Resident; first < k_tiles; first += chains) {
#pragma unroll
      for (int chain = 0; chain < chains; ++chain) {
        const int k_tile = first + chain;
        if (k_tile >= k_tiles) break;
        const Words2 b = column_fragment(rows, row_bytes, k_tile);
#pragma unroll
        for (int tile = 0; tile < Count; ++tile) {
          mma<Storage>(sum_of(chain, tile),
                       others[((k_tile - Resident) * Tiles + first_tile + tile) * 32 + lane()], b);
        }
      }
    }
#pragma unroll
    for (int chain = 1; chain < chains; ++chain) {
#pragma unroll
      for (int tile = 0; tile < Count; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[tile][i] += sums[chain][tile][i];
      }
    }
  }
};

// Where warps share a sum over k, each leaves its part of every tile: [warps][tiles][4][33], the numbers
// of fragments and the lanes apart.
constexpr int part_floats = 4 * 33;

template <int Tiles>
__device__ __forceinline__ void leave_part(float* parts, int part, const float (&acc)[Tiles][4]) {
#pragma unroll
  for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[(part * Tiles + tile) * part_floats + i * 33 + lane()] = acc[tile][i];
  }
}

// Their sum for a unit of the group and a row of the slice.
template <int Tiles>
__device__ __forceinline__ float sum_of_parts(const float* parts, int warps, int tile, int unit, int row) {
  const int from = (unit / 8 * 2 + row % 2) * 33 + unit % 8 * 4 + row / 2;
  float sum = 0;
#pragma unroll 4
  for (int w = 0; w < warps; ++w) sum += parts[(w * Tiles + tile) * part_floats + from];
  return sum;
}

}  // namespace fastrnn::cuda
