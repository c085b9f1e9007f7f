// Forward over a whole sequence.
//
// The input's products are computed a chunk of steps at a time, into a buffer that stays in the cache;
// then the chunk's steps, each one product per tile of rows and block of units with the cell's equations
// at its end. h is kept twice, in turn read by one step and written by the next, so that one barrier a
// step is enough; a thread that has all units of its sequences needs none.
#include <cstring>
#include <type_traits>

#include "driver.h"
#include "product.h"

namespace fastrnn {
namespace {

template <class Storage, class Operand, class Compute>
class Forward {
 public:
  using K = Kernels<Storage, Operand, Compute>;
  using Product = TransposedProduct<Storage, Operand, Compute>;

  Forward(const ForwardArgs<Storage>& args, const K& kernels)
      : a_(args),
        k_(kernels),
        q_(args.sequence),
        cell_(cell_info(args.cell)),
        I_(args.weights.I),
        H_(args.weights.H),
        P_(args.weights.P),
        input_(kernels, args.weights.w_ih, I_, cell_.gates, H_, packs_input(), workspace_),
        recurrent_(kernels, args.weights.w_hh, P_, cell_.gates, H_, packs_recurrent(), workspace_),
        projection_(kernels, args.weights.w_hr, H_, 1, projected() ? P_ : 0, packs_recurrent(),
                    workspace_) {
    const double work = 2.0 * cell_.gates * H_;
    partition_ = choose_partition(q_.B, recurrent_.blocks(), cell_.gates * H_ * P_ * sizeof(Operand),
                                  work * P_ * q_.B, work * (I_ + P_) * q_.rows);
    chunk_rows_ = std::max<int64_t>(q_.B, std::min<int64_t>(q_.rows, 384));
    x_stride_ = operand_stride<Operand>(I_);
    h_stride_ = operand_stride<Operand>(P_);
    m_stride_ = operand_stride<Operand>(H_);
    x_ = workspace_.take<Operand>(chunk_rows_ * x_stride_);
    pre_ = workspace_.take<Compute>(chunk_rows_ * cell_.gates * H_);
    for (Operand*& buffer : operand_) buffer = workspace_.take<Operand>(q_.B * h_stride_);
    if constexpr (std::is_same_v<Operand, Compute>) {
      for (int i = 0; i < 2; ++i) state_[i] = operand_[i];
    } else {
      state_[0] = state_[1] = workspace_.take<Compute>(q_.B * h_stride_);
    }
    if (cell_.has_c) c_ = workspace_.take<Compute>(q_.B * H_);
    if (projected()) {
      m_ = workspace_.take<Operand>(q_.B * m_stride_);
      m_state_ = workspace_.take<Compute>(q_.B * m_stride_);
    }
    bias_ = workspace_.take<Compute>(cell_.gates * H_);
    b_hh_ = workspace_.take<Compute>(cell_.gates * H_);
    prepare_biases();
  }

  int threads() const { return partition_.threads; }

  void operator()(int id, Team& team) {
    const Range batch = partition_.batch(q_.B, id, team.size());
    const Range blocks = partition_.blocks(recurrent_.blocks(), id, team.size());
    const Range outputs = partition_.blocks(projection_.blocks(), id, team.size());
    for (int64_t j : each(part_of(recurrent_.blocks(), id, team.size()))) {
      input_.pack(j);
      recurrent_.pack(j);
    }
    for (int64_t j : each(part_of(projection_.blocks(), id, team.size()))) projection_.pack(j);
    start(part_of(q_.B, id, team.size()));

    for (int64_t k0 = 0; k0 < q_.T;) {
      const Chunk chunk = chunk_from(k0);
      convert_x(chunk, part_of(chunk.rows.size(), id, team.size()));
      team.barrier(id);
      if (partition_.by_batch) {
        project(chunk, part_of(chunk.rows.size(), id, team.size()), blocks);
        team.barrier(id);
      } else {
        project(chunk, {0, chunk.rows.size()}, blocks);
      }
      for (int64_t k = chunk.steps.begin; k < chunk.steps.end; ++k) {
        step(chunk, k, batch, blocks);
        if (projected()) {
          if (!partition_.by_batch) team.barrier(id);
          output_step(k, batch, outputs);
        }
        if (!partition_.by_batch) team.barrier(id);
      }
      if (partition_.by_batch) team.barrier(id);
      k0 = chunk.steps.end;
    }
    finish(part_of(q_.B, id, team.size()));
  }

 private:
  struct Chunk {
    Range steps;  // k of its steps
    Range rows;   // of every per-step tensor
  };
  bool projected() const { return a_.weights.w_hr != nullptr; }
  // Packing reads and writes a matrix once; a product with few rows reads it once.
  bool packs_input() const { return q_.rows > 8; }
  bool packs_recurrent() const { return q_.B > 2 && q_.rows > 8; }

  // The bias that the input's part carries, and the one of recurrent parts in a slot of their own.
  void prepare_biases() {
    const int64_t n = cell_.gates * H_;
    std::fill(bias_, bias_ + n, Compute(0));
    std::fill(b_hh_, b_hh_ + n, Compute(0));
    if (a_.weights.b_ih == nullptr) return;
    k_.to_compute(n, a_.weights.b_ih, bias_);
    k_.to_compute(n, a_.weights.b_hh, b_hh_);
    for (int g = 0; g < cell_.gates; ++g) {
      if (cell_.x_slot[g] != cell_.h_slot[g]) continue;
      for (int64_t u = g * H_; u < (g + 1) * H_; ++u) bias_[u] += b_hh_[u];
    }
  }

  void start(Range batch) {
    const int64_t first = q_.step(0);
    for (int64_t b : each(batch)) {
      const bool zero = q_.resets(first, b);
      set_row(a_.h0, b, P_, h_stride_, zero, state_[0], operand_[0]);
      // The other buffer's padding is read as well, once its row has been written.
      std::fill(operand_[1] + b * h_stride_ + P_, operand_[1] + (b + 1) * h_stride_, Operand{});
      if (projected()) std::fill(m_ + b * m_stride_ + H_, m_ + (b + 1) * m_stride_, Operand{});
      if (!cell_.has_c) continue;
      if (zero) {
        std::fill(c_ + b * H_, c_ + (b + 1) * H_, Compute(0));
      } else {
        k_.to_compute(H_, a_.c0 + b * H_, c_ + b * H_);
      }
    }
  }

  void set_row(const Storage* from, int64_t b, int64_t n, int64_t stride, bool zero, Compute* state,
               Operand* operand) {
    std::fill(operand + b * stride + n, operand + (b + 1) * stride, Operand{});
    if (zero) {
      std::fill(operand + b * stride, operand + b * stride + n, Operand{});
      std::fill(state + b * stride, state + b * stride + n, Compute(0));
    } else {
      k_.to_operand(n, from + b * n, operand + b * stride);
      if constexpr (!std::is_same_v<Operand, Compute>) {
        k_.to_compute(n, from + b * n, state + b * stride);
      }
    }
  }

  Chunk chunk_from(int64_t k0) const {
    int64_t k1 = k0, rows = 0;
    while (k1 < q_.T && (k1 == k0 || rows + q_.batch(q_.step(k1)) <= chunk_rows_)) {
      rows += q_.batch(q_.step(k1++));
    }
    const int64_t lowest = q_.reverse ? q_.step(k1 - 1) : k0;
    const int64_t first = q_.first_row(lowest);
    return {{k0, k1}, {first, first + rows}};
  }

  void convert_x(const Chunk& chunk, Range part) {
    for (int64_t i : each(part)) {
      const int64_t row = chunk.rows.begin + i;
      const Storage* from =
          q_.first ? a_.x + row * a_.x_row : a_.x + row / q_.B * a_.x_step + row % q_.B * a_.x_row;
      Operand* to = x_ + i * x_stride_;
      k_.to_operand(I_, from, to);
      std::fill(to + I_, to + x_stride_, Operand{});
    }
  }

  void project(const Chunk&, Range rows, Range blocks) {
    alignas(64) Compute acc[max_tile_rows * max_tile_vectors * 16];
    for (int64_t j : each(blocks)) {
      for_tiles(rows, input_.tile_rows(), [&](int64_t row, int count) {
        multiply(input_, j, x_, x_stride_, row, count, acc);
        k_.add_bias(count, cell_.gates, input_.units(j), input_.block(), H_, acc,
                    bias_ + j * input_.block(),
                    pre_ + row * cell_.gates * H_ + j * input_.block(), cell_.gates * H_);
      });
    }
  }

  static void multiply(const Product& product, int64_t j, const Operand* rows, int64_t stride,
                       int64_t row, int count, Compute* acc) {
    const Operand* pointers[max_tile_rows];
    for (int m = 0; m < count; ++m) pointers[m] = rows + (row + m) * stride;
    product.multiply(j, count, pointers, acc);
  }

  void step(const Chunk& chunk, int64_t k, Range batch, Range blocks) {
    alignas(64) Compute acc[max_tile_rows * max_tile_vectors * 16];
    const int64_t t = q_.step(k);
    const Range present = {batch.begin, std::max(batch.begin, std::min(batch.end, q_.batch(t)))};
    for (int64_t j : each(blocks)) {
      const int64_t u0 = j * recurrent_.block(), units = recurrent_.units(j);
      for_tiles(present, recurrent_.tile_rows(), [&](int64_t b, int count) {
        multiply(recurrent_, j, operand_[k % 2], h_stride_, b, count, acc);
        if (!q_.lengths) return cell(chunk, k, b, count, u0, units, acc);
        for (int m = 0; m < count; ++m) {
          if (q_.active(t, b + m)) {
            cell(chunk, k, b + m, 1, u0, units, acc + m * recurrent_.columns());
          } else {
            clear(t, b + m, u0, units);
          }
        }
      });
      if (q_.plain() || projected()) continue;
      for (int64_t b : each(batch)) carry_h(k, b, u0, units);
    }
    if (q_.plain() || !cell_.has_c) return;
    for (int64_t b : each(batch)) {
      if (!resets_next(k, b)) continue;
      for (int64_t j : each(blocks)) {
        Compute* c = c_ + b * H_ + j * recurrent_.block();
        std::fill(c, c + recurrent_.units(j), Compute(0));
      }
    }
  }

  void cell(const Chunk& chunk, int64_t k, int64_t b, int count, int64_t u0, int64_t units,
            const Compute* acc) {
    const int64_t row = q_.first_row(q_.step(k)) + b;
    const int64_t width = cell_.gates * H_;
    CellForward<Storage, Operand, Compute> t{};
    t.rows = count;
    t.units = units;
    t.block = recurrent_.block();
    t.H = H_;
    t.acc = acc;
    t.acc_row = recurrent_.columns();
    t.pre = pre_ + (row - chunk.rows.begin) * width + u0;
    t.pre_row = width;
    t.b_hh = b_hh_ + u0;
    if (projected()) {
      t.h_prev = t.h = m_state_ + b * m_stride_ + u0;
      t.h_row = t.operand_row = m_stride_;
      t.operand = m_ + b * m_stride_ + u0;
    } else {
      t.h_prev = state_[k % 2] + b * h_stride_ + u0;
      t.h = state_[(k + 1) % 2] + b * h_stride_ + u0;
      t.h_row = t.operand_row = h_stride_;
      t.operand = operand_[(k + 1) % 2] + b * h_stride_ + u0;
      t.y = a_.y + row * P_ + u0;
      t.y_row = P_;
    }
    if (cell_.has_c) t.c = c_ + b * H_ + u0;
    t.c_row = t.c_out_row = H_;
    if (a_.c) t.c_out = a_.c + row * H_ + u0;
    if (a_.slots) t.slots = a_.slots + row * cell_.slots * H_ + u0;
    t.slots_row = cell_.slots * H_;
    k_.forward[static_cast<int>(a_.cell)](t);
  }

  // Step t of a sequence that has ended: zero output, and zero in what is kept, which nothing reads but
  // the products over all rows.
  void clear(int64_t t, int64_t b, int64_t u0, int64_t units) {
    const int64_t row = q_.first_row(t) + b;
    if (!projected()) std::fill_n(a_.y + row * P_ + u0, units, Storage{});
    if (a_.c) std::fill_n(a_.c + row * H_ + u0, units, Storage{});
    if (!a_.slots) return;
    for (int s = 0; s < cell_.slots; ++s) {
      std::fill_n(a_.slots + (row * cell_.slots + s) * H_ + u0, units, Storage{});
    }
  }

  bool resets_next(int64_t k, int64_t b) const { return k + 1 < q_.T && q_.resets(q_.step(k + 1), b); }

  // What the next step finds as sequence b's h: unchanged where this step was not its own, zero where
  // the next step starts anew.
  void carry_h(int64_t k, int64_t b, int64_t u0, int64_t units) {
    Operand* next = operand_[(k + 1) % 2] + b * h_stride_ + u0;
    Compute* next_state = state_[(k + 1) % 2] + b * h_stride_ + u0;
    if (resets_next(k, b)) {
      std::fill_n(next, units, Operand{});
      std::fill_n(next_state, units, Compute(0));
    } else if (!q_.active(q_.step(k), b)) {
      memcpy(next, operand_[k % 2] + b * h_stride_ + u0, units * sizeof(Operand));
    }
  }

  // h of a layer with a projection, from the cell's output.
  void output_step(int64_t k, Range batch, Range blocks) {
    alignas(64) Compute acc[max_tile_rows * max_tile_vectors * 16];
    const int64_t t = q_.step(k);
    const Range present = {batch.begin, std::max(batch.begin, std::min(batch.end, q_.batch(t)))};
    for (int64_t j : each(blocks)) {
      const int64_t u0 = j * projection_.block(), units = projection_.units(j);
      for_tiles(present, projection_.tile_rows(), [&](int64_t b0, int count) {
        multiply(projection_, j, m_, m_stride_, b0, count, acc);
        for (int m = 0; m < count; ++m) {
          const int64_t b = b0 + m;
          Storage* y = a_.y + (q_.first_row(t) + b) * P_ + u0;
          const Compute* h = acc + m * projection_.columns();
          if (!q_.active(t, b)) {
            std::fill_n(y, units, Storage{});
            continue;
          }
          k_.to_storage(units, h, y);
          k_.round_to_operand(units, h, operand_[(k + 1) % 2] + b * h_stride_ + u0);
          if constexpr (!std::is_same_v<Operand, Compute>) {
            std::copy_n(h, units, state_[0] + b * h_stride_ + u0);
          }
        }
      });
      if (q_.plain()) continue;
      for (int64_t b : each(batch)) carry_h(k, b, u0, units);
    }
  }

  void finish(Range batch) {
    for (int64_t b : each(batch)) {
      k_.to_storage(P_, state_[q_.T % 2] + b * h_stride_, a_.h_n + b * P_);
      if (cell_.has_c) k_.to_storage(H_, c_ + b * H_, a_.c_n + b * H_);
    }
  }

  const ForwardArgs<Storage>& a_;
  const K& k_;
  const Sequence& q_;
  const CellInfo& cell_;
  const int64_t I_, H_, P_;
  Workspace workspace_;
  Product input_, recurrent_, projection_;
  Partition partition_;
  int64_t chunk_rows_;
  int64_t x_stride_, h_stride_, m_stride_;
  Operand* x_;           // [chunk rows, x_stride] input of a chunk as products read it
  Compute* pre_;         // [chunk rows, G * H] its products, with the bias
  Operand* operand_[2];  // [B, h_stride] h as products read it, in turn
  Compute* state_[2];    // [B, h_stride] h as cells read it: the same memory, or one copy in Compute
  Compute* c_ = nullptr;        // [B, H]
  Operand* m_ = nullptr;        // [B, m_stride] the cell's output where a projection follows
  Compute* m_state_ = nullptr;  // [B, m_stride] the same in Compute
  Compute *bias_, *b_hh_;       // [G * H]
};

}  // namespace

template <class Storage, class Operand, class Compute>
void run_forward(const ForwardArgs<Storage>& args, const Kernels<Storage, Operand, Compute>& kernels) {
  Forward<Storage, Operand, Compute> forward(args, kernels);
  run_team(forward.threads(), forward);
}

template void run_forward(const ForwardArgs<float>&, const Kernels<float, float, float>&);
template void run_forward(const ForwardArgs<double>&, const Kernels<double, double, double>&);
template void run_forward(const ForwardArgs<BFloat16>&, const Kernels<BFloat16, float, float>&);
template void run_forward(const ForwardArgs<Half>&, const Kernels<Half, float, float>&);
template void run_forward(const ForwardArgs<BFloat16>&, const Kernels<BFloat16, BFloat16, float>&);

}  // namespace fastrnn
