// Kernels of the grid driver: a whole recurrence in one cooperative launch, w_hh divided among blocks all
// over the device, on the chip from its first step to its last.
//
// C blocks, a replica, compute some slices of 8 sequences; each owns U hidden units (16 or 32, the last
// block's may lie beyond H and are zero). Replicas know nothing of each other. The warps of a group, which
// owns 16 units, share the sum over k among them, and the group's first four then are one unit of one
// sequence a thread, as in cluster_kernels.cuh; h and c of all slices are in shared memory.
//
//   forward   sums of all gates of a block's units, from h of all units
//   backward  dh of a block's units, from the gradients of all gates of all units; so every sum has one
//             order, whatever the order in which blocks come
//
// What a position, a slice at a step, needs of others is its operand, [8][C * U] numbers in global memory
// (backward: one after another for each gate). Every block writes its units' part of it and then raises
// its flag. Flags say how far a block is: n + 1 where its part of the operand of position n of that slice
// is there. A warp waits only for the owners of its part of k, and copies that to shared memory in pieces
// (backward: a gate each) as far ahead as others have come, so that the exchange of one slice is under way
// during the products of others. Operands are double: whoever writes the one after next has had parts of
// the next from everyone, who wrote them after reading the last.
#pragma once

#include "cuda/on_chip/recurrence.cuh"

namespace fastrnn::cuda {

constexpr int grid_threads = 256;
constexpr int grid_slices = 8;      // of a replica in one launch
constexpr int grid_most_depth = 4;  // pieces under way

// Tiles of k whose fragments stay in registers.
template <class Cell>
constexpr int grid_resident = Cell::gates == 1 ? 16 : 36 / Cell::gates;

// Sizes of a launch, the same on the host and on the device.
struct GridShape {
  int blocks;       // C
  int units;        // U
  int group_warps;  // 4 or 8
  int depth;        // pieces of an operand that a warp has room for

  __host__ __device__ int groups() const { return units / group_units; }
  __host__ __device__ int warps() const { return groups() * group_warps; }
  __host__ __device__ int elements() const { return groups() * group_elements; }
  __host__ __device__ int all_units() const { return blocks * units; }
};

// Shared memory of a block, in bytes from its start; a warp's sums over k are of `tiles` tiles.
template <class Cell, class Storage>
struct GridLayout {
  using Weights = Fragments<Storage, Cell::gates, grid_resident<Cell>>;

  int k_tiles;      // of a warp: its part of C * U
  int all_k_tiles;  // of C * U
  int row;          // bytes of a row of a piece, padded
  int state, parts, pieces, weights, bytes;

  __host__ __device__ GridLayout(GridShape shape, int tiles) {
    all_k_tiles = shape.all_units() * int{sizeof(Storage)} / k_tile_bytes;
    k_tiles = (all_k_tiles + shape.group_warps - 1) / shape.group_warps;
    row = k_tiles * k_tile_bytes + 16;
    state = grid_slices * int{sizeof(Span)};
    parts = state + grid_slices * shape.elements() * int{sizeof(State<Cell>)};
    pieces = parts + 2 * shape.warps() * tiles * part_floats * 4;
    weights = pieces + shape.warps() * shape.depth * slice_rows * row;
    bytes = weights + shape.warps() * Weights::others_bytes(k_tiles);
  }
};

// What a launch's blocks exchange.
struct GridExchange {
  GridShape shape;
  int first_slice, slices;  // of the first replica, and how many each has
  unsigned char* operands;  // [all slices][2][8][operand's row]
  uint32_t* flags;          // [all slices][C], zero before the first launch
  uint32_t* gave_up;        // someone waited longer than the patience, or 0
  uint64_t patience;        // of clock_now()
};

template <class Storage>
struct GridForward {
  GridExchange exchange;
  RecurrenceForward<Storage> recurrence;
};

template <class Storage>
struct GridBackward {
  GridExchange exchange;
  RecurrenceBackward<Storage> recurrence;
};

// A thread's place, and what its block's slices are.
struct GridPlace {
  int rank, first_slice, slices;
  int group, part;  // of the warp: its group, and its part of k

  __device__ GridPlace(const GridExchange& x, int64_t B) {
    const GridShape& shape = x.shape;
    rank = blockIdx.x % shape.blocks;
    first_slice = x.first_slice + blockIdx.x / shape.blocks * x.slices;
    const int left = static_cast<int>((B + slice_rows - 1) / slice_rows) - first_slice;
    slices = left < x.slices ? left : x.slices;
    group = threadIdx.x / 32 / shape.group_warps;
    part = threadIdx.x / 32 % shape.group_warps;
  }
  // This thread's element of a slice: of the first elements() threads.
  template <class Storage>
  __device__ Element element(const GridShape& shape, const Storage& recurrence, int slice) const {
    return {recurrence.sequence, recurrence.H, int64_t{first_slice + slice} * slice_rows + row(),
            rank * shape.units + unit()};
  }
  __device__ int unit() const {
    return threadIdx.x / group_elements * group_units + threadIdx.x % group_units;
  }
  __device__ int row() const { return threadIdx.x % group_elements / group_units; }
};

// The positions of some slices in the order of computation: step by step, slices in turn. `spans` are
// the positions [begin, end) of each slice, of which the first `skipped` are left out.
class Walk {
 public:
  __device__ Walk(const Span* spans, int slices, int skipped)
      : spans_(spans), slices_(slices), skipped_(skipped), n_(1 << 30) {
    for (int s = 0; s < slices; ++s) {
      if (spans[s].empty()) continue;
      if (spans[s].begin < n_) n_ = spans[s].begin;
      if (spans[s].end > end_) end_ = spans[s].end;
    }
    settle();
  }
  __device__ bool done() const { return n_ >= end_; }
  __device__ int n() const { return n_; }
  __device__ int slice() const { return slice_; }
  __device__ bool first() const { return n_ == spans_[slice_].begin; }
  __device__ bool last() const { return n_ + 1 == spans_[slice_].end; }
  __device__ void advance() {
    go_on();
    settle();
  }

 private:
  __device__ void go_on() {
    if (++slice_ < slices_) return;
    slice_ = 0;
    ++n_;
  }
  __device__ void settle() {
    while (!done() && (n_ < spans_[slice_].begin + skipped_ || n_ >= spans_[slice_].end)) go_on();
  }

  const Span* spans_;
  int slices_, skipped_, n_, slice_ = 0, end_ = 0;
};

// A warp's part of the operands of a walk's positions, piece after piece: [8][its tiles of k] each.
template <int Pieces>
class Operands {
 public:
  // `memory` has room for x.shape.depth pieces; tiles of k from first_k_tile on are `k_tiles`.
  __device__ Operands(const GridExchange& x, const GridPlace& place, const Walk& walk, int64_t all_k_tiles,
                      int first_k_tile, int k_tiles, int row, unsigned char* memory)
      : x_(x),
        next_(walk),
        from_(x.operands + place.first_slice * 2 * slice_rows * Pieces * all_k_tiles * k_tile_bytes +
              int64_t{first_k_tile} * k_tile_bytes),
        flags_(x.flags + int64_t{place.first_slice} * x.shape.blocks),
        memory_(memory),
        gate_bytes_(all_k_tiles * k_tile_bytes),
        k_tiles_(k_tiles),
        row_(row) {
    // The blocks that own the units of this part.
    const int k_tiles_a_block = static_cast<int>(all_k_tiles) / x.shape.blocks;
    first_owner_ = first_k_tile / k_tiles_a_block;
    end_owner_ = k_tiles > 0 ? (first_k_tile + k_tiles - 1) / k_tiles_a_block + 1 : first_owner_;
  }

  // Begins to copy what others have written of the next positions, as far as there is room.
  __device__ void look_ahead() {
    while (held_ < x_.shape.depth && !next_.done() && (piece_ > 0 || warp_all(written<load_acquire>())))
      copy();
  }

  // The next piece, waited for.
  __device__ const unsigned char* receive() {
    if (held_ == 0) {
      if (piece_ == 0) {
        const auto ready = [&] { return written<load_relaxed>() || load_relaxed(x_.gave_up) != 0; };
        if (!wait_for(ready, x_.patience)) store_release(x_.gave_up, 1);
        // Polls are relaxed, as an acquire discards the L1 cache each time. This one, after them, suffices.
        if (!warp_all(written<load_acquire>())) timed_out_ = true;
      }
      copy();
    }
    wait_copies(held_ - 1);
    sync_warp();
    return piece_at(used_);
  }
  // The piece received last is no longer read.
  __device__ void release() {
    --held_;
    if (++used_ == x_.shape.depth) used_ = 0;
  }

  // Something was waited for in vain; pieces have been anything since.
  __device__ bool timed_out() const { return timed_out_; }

 private:
  __device__ unsigned char* piece_at(int i) const { return memory_ + i * slice_rows * row_; }

  // Whether the owners that this lane looks after have written their parts of the next position, by flags
  // that `load` reads.
  template <uint32_t (*load)(const uint32_t*)>
  __device__ bool written() const {
    const uint32_t* flags = flags_ + next_.slice() * x_.shape.blocks;
    for (int owner = first_owner_ + lane(); owner < end_owner_; owner += 32) {
      if (load(flags + owner) <= static_cast<uint32_t>(next_.n())) return false;
    }
    return true;
  }

  __device__ void copy() {
    sync_warp();  // what other lanes know to be written; and all have read what is written over
    constexpr int lanes_a_row = 32 / slice_rows;
    const int r = lane() / lanes_a_row;
    const unsigned char* from =
        from_ + ((int64_t{next_.slice()} * 2 + next_.n() % 2) * slice_rows + r) * Pieces * gate_bytes_ +
        piece_ * gate_bytes_;
    unsigned char* to = piece_at(copied_) + r * row_;
    for (int i = lane() % lanes_a_row; i < k_tiles_ * 2; i += lanes_a_row) {
      begin_copy(to + i * 16, from + i * 16);
    }
    end_copies();
    ++held_;
    if (++copied_ == x_.shape.depth) copied_ = 0;
    if (++piece_ == Pieces) {
      piece_ = 0;
      next_.advance();
    }
  }

  const GridExchange& x_;
  Walk next_;  // whose piece `piece_` is to be copied next
  const unsigned char* from_;
  const uint32_t* flags_;
  unsigned char* memory_;
  int64_t gate_bytes_;  // of an operand's row
  int k_tiles_, row_, first_owner_, end_owner_;
  int piece_ = 0, held_ = 0, copied_ = 0, used_ = 0;
  bool timed_out_ = false;
};

// Where this block's elements are in the operand of position `n` of a slice.
template <class Storage, int Pieces>
__device__ __forceinline__ OperandBits<Storage>* own_operand(const GridExchange& x, const GridPlace& place,
                                                             int slice, int n) {
  const int64_t row = (int64_t{place.first_slice + slice} * 2 + n % 2) * slice_rows + place.row();
  return reinterpret_cast<OperandBits<Storage>*>(x.operands) + row * Pieces * x.shape.all_units() +
         place.rank * x.shape.units + place.unit();
}

// By all threads that have elements, once they have written their part of the operand of position `n`.
__device__ __forceinline__ void raise_flag(const GridExchange& x, const GridPlace& place, int slice,
                                           int n) {
  sync_warps(1, x.shape.elements());
  if (threadIdx.x == 0) {
    store_release(x.flags + int64_t{place.first_slice + slice} * x.shape.blocks + place.rank, n + 1);
  }
}

template <int Tiles>
__device__ __forceinline__ void poison(float (&acc)[Tiles][4]) {
#pragma unroll
  for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[tile][i] = bits_as<float>(uint32_t{0x7fffffff});
  }
}

template <class Cell, class Storage>
__global__ void __launch_bounds__(grid_threads, 1) grid_forward(GridForward<Storage> args) {
  constexpr int G = Cell::gates;
  const GridExchange& x = args.exchange;
  const RecurrenceForward<Storage>& a = args.recurrence;
  const GridShape& shape = x.shape;
  const GridLayout<Cell, Storage> layout(shape, G);
  const GridPlace place(x, a.sequence.B);
  if (place.slices <= 0) return;
  unsigned char* const memory = shared_memory();
  auto* const spans = reinterpret_cast<Span*>(memory);  // [slices] of positions, which are steps
  const int H = static_cast<int>(a.H), warp = threadIdx.x / 32;
  const bool has_element = threadIdx.x < static_cast<unsigned>(shape.elements());
  // A thread's state of each slice.
  auto* const states = reinterpret_cast<State<Cell>*>(memory + layout.state) + threadIdx.x;

  if (threadIdx.x < static_cast<unsigned>(place.slices)) {
    spans[threadIdx.x] =
        active_steps(a.sequence, int64_t{place.first_slice + threadIdx.x} * slice_rows).within(a.k0, a.k1);
  }

  const int first_unit = place.rank * shape.units + place.group * group_units;
  const int first_k_tile = place.part * layout.k_tiles;
  const int k_tiles = first_k_tile + layout.k_tiles < layout.all_k_tiles
                          ? layout.k_tiles
                          : layout.all_k_tiles - first_k_tile;
  using Weights = typename GridLayout<Cell, Storage>::Weights;
  const Weights weights(memory + layout.weights + warp * Weights::others_bytes(layout.k_tiles), k_tiles,
                        [&](int k_tile, int g) {
                          return fragment<Storage>(
                              first_unit, (first_k_tile + k_tile) * k_tile_words, [&](int u, int column) {
                                return u < H && column < H ? a.w_hh[(int64_t{g} * H + u) * H + column]
                                                           : Storage{};
                              });
                        });
  sync_block();

  Biases<Cell> biases;
  if (has_element) {
    biases = biases_of<Cell>(a, place.rank * shape.units + place.unit());
    for (int s = 0; s < place.slices; ++s) {
      const Element e = place.element(shape, a, s);
      write_zeros<Cell>(a, e, spans[s]);
      if (spans[s].empty()) continue;
      State<Cell>& state = states[s * shape.elements()];
      state = state_before<Cell>(a, e, spans[s].begin);
      *own_operand<Storage, 1>(x, place, s, spans[s].begin) = rounded_operand<Storage>(state.h);
      raise_flag(x, place, s, spans[s].begin);
    }
  }

  Walk now(spans, place.slices, 0);
  Operands<1> operands(x, place, now, layout.all_k_tiles, first_k_tile, k_tiles, layout.row,
                       memory + layout.pieces + warp * shape.depth * slice_rows * layout.row);
  // What this thread's element has at a position.
  struct Reading {
    Element element;
    RowAt at;
    bool resets_next;
    ForwardRead<Cell> numbers;
  };
  const auto read = [&](const Walk& of) {
    Reading it{};
    if (!has_element || of.done()) return it;
    it.element = place.element(shape, a, of.slice());
    it.at = row_at(a.sequence, H, of.n(), it.element);
    it.resets_next = resets_at(a.sequence, of.n() + 1, it.element);
    it.numbers = read_forward<Cell>(a, it.element, it.at);
    return it;
  };
  Reading reading = read(now);
  for (int half = 0; !now.done(); half ^= 1) {
    Walk next = now;
    next.advance();
    const Reading next_reading = read(next);

    operands.look_ahead();
    float acc[G][4] = {};
    weights.template multiply<G>(0, operands.receive(), layout.row, acc);
    operands.release();
    if (operands.timed_out()) poison(acc);
    auto* const parts =
        reinterpret_cast<float*>(memory + layout.parts) + half * shape.warps() * G * part_floats;
    leave_part(parts, warp, acc);
    sync_block();

    if (has_element) {
      const float* const sums = parts + threadIdx.x / group_elements * shape.group_warps * G * part_floats;
      float product[G];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        product[g] = sum_of_parts<G>(sums, shape.group_warps, g, place.unit() % group_units, place.row());
      }
      State<Cell>& state = states[now.slice() * shape.elements()];
      const ForwardWritten<Cell> written = advance(reading.element, reading.at, reading.numbers,
                                                   reading.resets_next, biases, product, state);
      if (!now.last()) {
        *own_operand<Storage, 1>(x, place, now.slice(), now.n() + 1) = rounded_operand<Storage>(state.h);
        raise_flag(x, place, now.slice(), now.n() + 1);
      }
      write_forward(a, reading.element, reading.at, written);
    }
    now = next;
    reading = next_reading;
  }
  for (int s = 0; has_element && s < place.slices; ++s) {
    if (!spans[s].empty()) keep_state(a, place.element(shape, a, s), states[s * shape.elements()]);
  }
}

// Position n is step T - 1 - n. The first of a slice has no product, since nothing was computed after it;
// one more, beyond the last step, has the product alone.
template <class Cell, class Storage>
__global__ void __launch_bounds__(grid_threads, 1) grid_backward(GridBackward<Storage> args) {
  constexpr int G = Cell::gates, S = Cell::slots;
  constexpr Columns<Cell> columns;
  const GridExchange& x = args.exchange;
  const RecurrenceBackward<Storage>& a = args.recurrence;
  const GridShape& shape = x.shape;
  const GridLayout<Cell, Storage> layout(shape, 1);
  const GridPlace place(x, a.sequence.B);
  if (place.slices <= 0) return;
  unsigned char* const memory = shared_memory();
  auto* const spans = reinterpret_cast<Span*>(memory);  // [slices] of positions
  const int H = static_cast<int>(a.H), T = static_cast<int>(a.sequence.T), warp = threadIdx.x / 32;
  const bool has_element = threadIdx.x < static_cast<unsigned>(shape.elements());
  auto* const carries = reinterpret_cast<State<Cell>*>(memory + layout.state) + threadIdx.x;

  if (threadIdx.x < static_cast<unsigned>(place.slices)) {
    const Span steps = active_steps(a.sequence, int64_t{place.first_slice + threadIdx.x} * slice_rows);
    spans[threadIdx.x] = {T - steps.end, steps.empty() ? T - steps.end : T - steps.begin + 1};
  }

  // Rows of w_hh' are this block's units, columns of gate g all units.
  const int first_unit = place.rank * shape.units + place.group * group_units;
  const int first_k_tile = place.part * layout.k_tiles;
  const int k_tiles = first_k_tile + layout.k_tiles < layout.all_k_tiles
                          ? layout.k_tiles
                          : layout.all_k_tiles - first_k_tile;
  using Weights = typename GridLayout<Cell, Storage>::Weights;
  const Weights weights(
      memory + layout.weights + warp * Weights::others_bytes(layout.k_tiles), k_tiles,
      [&](int k_tile, int g) {
        return fragment<Storage>(first_unit, (first_k_tile + k_tile) * k_tile_words, [&](int to, int from) {
          return to < H && from < H ? a.w_hh[(int64_t{g} * H + from) * H + to] : Storage{};
        });
      });
  sync_block();

  for (int s = 0; has_element && s < place.slices; ++s) {
    const Element e = place.element(shape, a, s);
    write_zeros<Cell>(a, e, Span{T + 1 - spans[s].end, T - spans[s].begin});
    if (!spans[s].empty()) carries[s * shape.elements()] = carry_of<Cell>(a, e);
  }

  Walk now(spans, place.slices, 0);
  Operands<G> operands(x, place, Walk(spans, place.slices, 1), layout.all_k_tiles, first_k_tile, k_tiles,
                       layout.row, memory + layout.pieces + warp * shape.depth * slice_rows * layout.row);
  struct Reading {
    Element element;
    RowAt at;
    bool reset_after;
    BackwardRead<Cell> numbers;
  };
  const auto read = [&](const Walk& of) {
    Reading it{};
    if (!has_element || of.done()) return it;
    const int k = T - 1 - of.n();
    it.element = place.element(shape, a, of.slice());
    it.at = row_at(a.sequence, H, k, it.element);
    it.reset_after = resets_at(a.sequence, k + 1, it.element);
    it.numbers = read_backward<Cell>(a, it.element, it.at, row_at(a.sequence, H, k - 1, it.element));
    return it;
  };
  Reading reading = read(now);
  for (int half = 0; !now.done(); half ^= 1) {
    Walk next = now;
    next.advance();
    const Reading next_reading = read(next);

    float acc[1][4] = {};
    if (!now.first()) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        operands.look_ahead();
        weights.template multiply<1>(g, operands.receive(), layout.row, acc);
        operands.release();
      }
      if (operands.timed_out()) poison(acc);
    }
    auto* const parts =
        reinterpret_cast<float*>(memory + layout.parts) + half * shape.warps() * part_floats;
    leave_part(parts, warp, acc);
    sync_block();

    if (has_element) {
      const float product =
          sum_of_parts<1>(parts + threadIdx.x / group_elements * shape.group_warps * part_floats,
                          shape.group_warps, 0, place.unit() % group_units, place.row());
      State<Cell>& carry = carries[now.slice() * shape.elements()];
      Storage rounded[S];
      retreat(reading.element, reading.at, reading.numbers, product, reading.reset_after, carry, rounded);
      if (now.last()) {
        keep_carry(a, reading.element, carry);
      } else {
        OperandBits<Storage>* const to = own_operand<Storage, G>(x, place, now.slice(), now.n() + 1);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          to[int64_t{g} * shape.all_units()] = operand_bits(rounded[columns.h_slot[g]]);
        }
        raise_flag(x, place, now.slice(), now.n() + 1);
        write_backward<Cell>(a, reading.element, reading.at, rounded);
      }
    }
    now = next;
    reading = next_reading;
  }
}

}  // namespace fastrnn::cuda
