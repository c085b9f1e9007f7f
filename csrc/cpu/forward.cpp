// Forward over a whole sequence.
//
// The input's products are computed a chunk of steps at a time, into a buffer that stays in the cache. The
// chunk's steps follow, each one product per tile of rows and block of units, with the cell's equations at
// its end. Two copies of h alternate, one read by a step and one written, so that a step is one phase of
// the team, with the blocks of units as its items. If all weights fit each core's cache, the batch is cut
// into slices instead, which go through all steps without waiting for each other.
#include <cstring>
#include <type_traits>

#include "cpu/chunk.h"
#include "cpu/passes.h"
#include "cpu/plugin.h"
#include "cpu/product.h"
#include "cpu/quantized_rows.h"
#include "cpu/threads/partition.h"
#include "cpu/threads/workspace.h"

namespace fastrnn {
namespace {

template <class Kernels>
class Forward {
 public:
  using Storage = typename Kernels::Storage;
  using Operand = typename Kernels::Operand;
  using Compute = typename Kernels::Compute;
  using Product = TransposedProduct<Kernels>;
  static constexpr bool one_type = Kernels::one_type, quantizes = Kernels::quantizes;

  Forward(const ForwardArgs<Storage>& args, const Kernels& kernels, const void* panels)
      : a_(args),
        panels_(static_cast<const char*>(panels)),
        k_(kernels),
        q_(args.sequence),
        cell_(cell_info(args.cell)),
        I_(args.weights.I),
        H_(args.weights.H),
        P_(args.weights.P),
        C_(cell_.own_states * H_),
        cell_forward_(forward_of(kernels, args.cell)),
        input_(kernels, args.weights.w_ih, I_, cell_.gates, H_),
        recurrent_(kernels, args.weights.w_hh, P_, cell_.gates, H_),
        projection_(kernels, args.weights.w_hr, H_, 1, projected() ? P_ : 0),
        h_rows_(kernels, q_),
        m_rows_(kernels, q_) {
    const double work = 2.0 * cell_.gates * H_ * sizeof(Operand) / sizeof(float);
    partition_ = choose_partition(q_.B, recurrent_.blocks(), cell_.gates * H_ * P_ * sizeof(Operand),
                                  work * P_ * q_.B, work * (I_ + P_) * q_.rows);
    x_stride_ = reads_x() ? a_.x_row : row_stride(I_);
    h_stride_ = in_place() ? P_ : row_stride(P_);
    m_stride_ = row_stride(H_);
    for (int i = 0; i < partition_.slices(); ++i) {
      slices_.push_back(make_slice(part_of(q_.B, i, partition_.slices())));
    }
    find_state();
    if (projected()) {
      if constexpr (!quantizes) m_ = workspace_.take<Operand>(q_.B * m_stride_);
      if constexpr (std::is_same_v<Operand, Compute>) {
        m_state_ = m_;
      } else {
        m_state_ = workspace_.take<Compute>(q_.B * m_stride_);
      }
    }
    if constexpr (quantizes) {
      h_rows_.allocate(P_, h_stride_, partition_, workspace_);
      if (projected()) m_rows_.allocate(H_, m_stride_, partition_, workspace_);
    }
  }

  int threads() const { return partition_.threads; }

  void operator()(int id, ThreadTeam& team) {
    run_slices(team, id, partition_, [&](int64_t i, auto for_items) {
      run(slices_[i], partition_.by_batch ? i : id, for_items);
    });
  }

 private:
  // Some sequences, and the buffers for a chunk of their steps.
  struct Slice {
    Range batch;
    Product input, recurrent, projection;
    int64_t shortest = 0;  // length of its shortest sequence
    int64_t chunk_rows = 0;
    Operand* x = nullptr;     // [chunk rows, x_stride] input as products read it, or null: read from a_.x
    Compute* bias = nullptr;  // [G * H] added to the input's products
    Compute* pre = nullptr;   // [chunk rows, G * H] the sums of both
    Compute* b_hh = nullptr;  // [G * H] added to recurrent products that have a slot of their own
  };

  Slice make_slice(Range batch) {
    Slice slice{batch, input_, recurrent_, projection_};
    find_panels(slice);
    slice.shortest = shortest(q_, batch);
    slice.chunk_rows = std::max<int64_t>({batch.size(), std::min<int64_t>(q_.T * batch.size(), 384), 1});
    if (!reads_x()) slice.x = workspace_.take<Operand>(slice.chunk_rows * x_stride_);
    slice.bias = workspace_.take<Compute>(cell_.gates * H_);
    slice.b_hh = workspace_.take<Compute>(cell_.gates * H_);
    slice.pre = workspace_.take<Compute>(slice.chunk_rows * cell_.gates * H_);
    return slice;
  }

  // All steps of a slice, by `worker`, one of the threads that share it; for_items(n, body) calls body(0)
  // .. body(n - 1), or its share. Every thread decides about chunks for itself, so decisions must depend on
  // the arguments alone.
  template <class ForItems>
  void run(const Slice& slice, int64_t worker, ForItems for_items) {
    for (const auto& [product, packs] : {std::pair{&slice.input, packs_input()},
                                         {&slice.recurrent, packs_recurrent()},
                                         {&slice.projection, packs_recurrent()}}) {
      if (packs) for_items(product->blocks(), [&, p = product](int64_t j) { p->pack(j); });
    }
    constexpr int64_t few_rows = 16;
    const int64_t pieces = in_place() ? 0 : (slice.batch.size() + few_rows - 1) / few_rows;
    for (int64_t k0 = 0; k0 < q_.T;) {
      const Range steps = chunk_from(q_, slice.batch, k0, slice.chunk_rows);
      const int64_t rows = rows_of(q_, slice.batch, steps), starts = k0 == 0 ? pieces : 0;
      const int64_t copies = slice.x ? steps.size() : 0;
      for_items(starts + copies, [&](int64_t i) {
        if (i < starts) {
          start(part_of(slice.batch.size(), i, pieces), slice.batch.begin);
        } else {
          convert_x(slice, steps, steps.begin + i - starts);
        }
      });
      for (int64_t k = steps.begin; k < steps.end; ++k) {
        for_items(recurrent_.blocks(), [&](int64_t j) {
          if (k == 0) start_units(slice, j);
          if (k == steps.begin) project(slice, steps, rows, j);
          step(slice, worker, steps, k, j);
        });
        if (projected()) {
          for_items(projection_.blocks(), [&](int64_t j) { output_step(slice, worker, k, j); });
        }
      }
      k0 = steps.end;
    }
  }

  // Of operand rows of n numbers.
  int64_t row_stride(int64_t n) const {
    if constexpr (quantizes) n = round_up(n, k_.k_step) + sizeof(float);  // and their scale
    return operand_stride<Operand>(n);
  }

  bool projected() const { return projects(a_.weights); }
  // Packing pays off after a hundred rows of a product; or after a dozen steps, if a step has so few rows
  // that its product waits for memory. Panels packed beforehand are always used.
  bool packs_input() const {
    constexpr int64_t many_rows = 128;
    return panels_ == nullptr && q_.rows > many_rows * partition_.slices();
  }
  bool packs_recurrent() const {
    constexpr int64_t many_steps = 16;
    return packs_input() || (panels_ == nullptr && q_.T >= many_steps);
  }

  // A slice packs weights for itself, though the slices could share them: to read what another core has
  // just written takes longer than to pack it.
  void find_panels(Slice& slice) {
    char* ready = const_cast<char*>(panels_);
    for (auto [product, packs] : {std::pair{&slice.input, packs_input()},
                                  {&slice.recurrent, packs_recurrent()},
                                  {&slice.projection, packs_recurrent()}}) {
      if (ready) {
        product->use_panels(ready);
        ready += product->bytes();
      } else if (packs) {
        product->use_panels(workspace_.take<char>(product->bytes()));
      }
    }
  }

  // A single step reads its input and state, and writes its new state, in the caller's tensors: copies
  // would cost as much as the step, most of all if one core makes them and another reads them. Longer
  // sequences read x directly if a chunk's rows are evenly spaced.
  bool reads_x() const {
    constexpr int64_t page = 4096;  // rows so far apart would compete for the same cache lines
    if (!one_type || q_.first) return false;
    return q_.T == 1 || (!partition_.by_batch && !q_.reverse && a_.x_step == q_.B * a_.x_row &&
                         a_.x_row * static_cast<int64_t>(sizeof(Storage)) % page != 0);
  }
  bool in_place() const { return one_type && q_.T == 1 && q_.plain(); }

  void find_state() {
    if constexpr (one_type) {
      if (in_place()) {
        state_[0] = operand_[0] = const_cast<Operand*>(a_.h0);  // only read
        state_[1] = operand_[1] = a_.h_n;
        c_ = a_.c_n;
        return;
      }
    }
    if constexpr (quantizes) {
      for (Compute*& buffer : state_) buffer = workspace_.take<Compute>(q_.B * h_stride_);
    } else {
      for (Operand*& buffer : operand_) buffer = workspace_.take<Operand>(q_.B * h_stride_);
    }
    if constexpr (std::is_same_v<Operand, Compute>) {
      for (int i = 0; i < 2; ++i) state_[i] = operand_[i];
    } else if constexpr (!quantizes) {
      state_[0] = state_[1] = workspace_.take<Compute>(q_.B * h_stride_);
    }
    if (cell_.has_c) c_ = workspace_.take<Compute>(q_.B * C_);
  }

  // [B, h_stride] h before step k, and [B, m_stride] the cell's output of step k, as products read them.
  const Operand* h_operand(const Slice& slice, int64_t worker, int64_t k) {
    if constexpr (quantizes) {
      return h_rows_.at_step(k, worker, slice.batch, state_[k % 2]);
    } else {
      return operand_[k % 2];
    }
  }
  const Operand* m_operand(const Slice& slice, int64_t worker, int64_t k) {
    if constexpr (quantizes) {
      return m_rows_.at_step(k, worker, slice.batch, m_state_);
    } else {
      return m_;
    }
  }

  // The biases and c of a block's units.
  void start_units(const Slice& slice, int64_t j) {
    const int64_t u0 = j * recurrent_.block(), units = recurrent_.units(j), first = q_.step(0);
    for (int g = 0; g < cell_.gates; ++g) prepare_bias(slice, g, g * H_ + u0, units);
    for (int64_t b : each(slice.batch)) {
      for (int64_t at = b * C_ + u0; at < (b + 1) * C_; at += H_) {
        if (q_.resets(first, b)) {
          std::fill_n(c_ + at, units, Compute(0));
        } else {
          k_.to_compute(units, a_.c0 + at, c_ + at);
        }
      }
    }
  }

  // The bias added to the input's part, and the one added to recurrent parts in a slot of their own.
  void prepare_bias(const Slice& slice, int gate, int64_t from, int64_t n) {
    if (a_.weights.b_ih == nullptr) {
      std::fill_n(slice.bias + from, n, Compute(0));
      std::fill_n(slice.b_hh + from, n, Compute(0));
      return;
    }
    k_.to_compute(n, a_.weights.b_ih + from, slice.bias + from);
    k_.to_compute(n, a_.weights.b_hh + from, slice.b_hh + from);
    if (cell_.x_slot[gate] != cell_.h_slot[gate]) return;
    for (int64_t i = from; i < from + n; ++i) slice.bias[i] += slice.b_hh[i];
  }

  void start(Range rows, int64_t b0) {
    const int64_t first = q_.step(0);
    for (int64_t b = b0 + rows.begin; b < b0 + rows.end; ++b) {
      set_row(a_.h0, b, P_, h_stride_, q_.resets(first, b), state_[0], operand_[0]);
      if constexpr (quantizes) continue;
      // The other buffer's padding is read as well, from the second step on.
      std::fill(operand_[1] + b * h_stride_ + P_, operand_[1] + (b + 1) * h_stride_, Operand{});
      if (projected()) std::fill(m_ + b * m_stride_ + H_, m_ + (b + 1) * m_stride_, Operand{});
    }
  }

  void set_row(const Storage* from, int64_t b, int64_t n, int64_t stride, bool zero, Compute* state,
               Operand* operand) {
    if constexpr (!quantizes) std::fill(operand + b * stride + n, operand + (b + 1) * stride, Operand{});
    if (zero) {
      if constexpr (!quantizes) std::fill_n(operand + b * stride, n, Operand{});
      std::fill_n(state + b * stride, n, Compute(0));
    } else {
      if constexpr (!quantizes) k_.to_operand(n, from + b * n, operand + b * stride);
      if constexpr (!std::is_same_v<Operand, Compute>) {
        k_.to_compute(n, from + b * n, state + b * stride);
      }
    }
  }

  void convert_x(const Slice& slice, Range steps, int64_t k) {
    const int64_t t = q_.step(k);
    Operand* to = slice.x + row_in_chunk(q_, slice.batch, steps, k) * x_stride_;
    const Storage* from = x_at(a_, t);
    for (int64_t b : each(present(q_, slice.batch, t))) {
      if constexpr (quantizes) {
        k_.quantize(I_, from + b * a_.x_row, to);
      } else {
        k_.to_operand(I_, from + b * a_.x_row, to);
        std::fill(to + I_, to + x_stride_, Operand{});
      }
      to += x_stride_;
    }
  }

  void project(const Slice& slice, Range steps, int64_t rows, int64_t j) {
    const Operand* x = slice.x;
    if constexpr (one_type) {
      if (!x) x = a_.x + slice.batch.begin * a_.x_row + steps.begin * a_.x_step;
    }
    alignas(64) Compute acc[acc_size];
    const int64_t width = cell_.gates * H_, u0 = j * input_.block();
    for_tiles({0, rows}, slice.input.tile_rows(), [&](int64_t row, int count) {
      multiply(slice.input, j, x, x_stride_, row, count, acc);
      k_.add_bias(count, cell_.gates, input_.units(j), input_.block(), H_, acc, slice.bias + u0,
                  slice.pre + row * width + u0, width);
    });
  }

  static void multiply(const Product& product, int64_t j, const Operand* rows, int64_t stride, int64_t row,
                       int count, Compute* acc) {
    const Operand* pointers[max_tile_rows];
    for (int m = 0; m < count; ++m) pointers[m] = rows + (row + m) * stride;
    product.multiply(j, count, pointers, acc);
  }

  void step(const Slice& slice, int64_t worker, Range steps, int64_t k, int64_t j) {
    alignas(64) Compute acc[acc_size];
    const int64_t t = q_.step(k), u0 = j * recurrent_.block(), units = recurrent_.units(j);
    const int64_t row0 = row_in_chunk(q_, slice.batch, steps, k) - slice.batch.begin;
    const Operand* h = h_operand(slice, worker, k);
    for_tiles(present(q_, slice.batch, t), slice.recurrent.tile_rows(), [&](int64_t b, int count) {
      multiply(slice.recurrent, j, h, h_stride_, b, count, acc);
      const Compute* pre = slice.pre + (row0 + b) * cell_.gates * H_ + u0;
      if (!q_.lengths) return cell(slice, k, b, count, u0, units, acc, pre);
      // Runs of active rows, and of inactive ones.
      for (int m = 0, n = 0; m < count; m += n) {
        const bool active = q_.active(t, b + m);
        for (n = 1; m + n < count && q_.active(t, b + m + n) == active;) ++n;
        if (active) {
          cell(slice, k, b + m, n, u0, units, acc + m * recurrent_.columns(), pre + m * cell_.gates * H_);
        } else {
          for (int i = m; i < m + n; ++i) clear(t, b + i, u0, units);
        }
      }
    });
    for_interrupted(q_, slice.batch, slice.shortest, k, [&](int64_t b, bool anew) {
      if (!projected()) carry_h(k, b, u0, units, anew);
      if (!anew) return;
      for (int64_t at = b * C_ + u0; at < (b + 1) * C_; at += H_) std::fill_n(c_ + at, units, Compute(0));
    });
    if (k + 1 < q_.T || in_place()) return;
    if (!projected()) finish_h(slice, u0, units);
    for (int64_t b : each(slice.batch)) {
      for (int64_t at = b * C_ + u0; at < (b + 1) * C_; at += H_)
        k_.to_storage(units, c_ + at, a_.c_n + at);
    }
  }

  void cell(const Slice& slice, int64_t k, int64_t b, int count, int64_t u0, int64_t units,
            const Compute* acc, const Compute* pre) {
    const int64_t row = q_.first_row(q_.step(k)) + b;
    CellForward<Storage, typename Kernels::CellOperand, Compute> t{};
    t.rows = count;
    t.units = units;
    t.block = recurrent_.block();
    t.H = H_;
    t.acc = acc;
    t.acc_row = recurrent_.columns();
    t.pre = pre;
    t.pre_row = cell_.gates * H_;
    t.b_hh = slice.b_hh + u0;
    if (projected()) {
      t.h_prev = t.h = m_state_ + b * m_stride_ + u0;
      t.h_row = t.operand_row = m_stride_;
      if constexpr (!quantizes) t.operand = m_ + b * m_stride_ + u0;
    } else {
      t.h_prev = state_[k % 2] + b * h_stride_ + u0;
      t.h = state_[(k + 1) % 2] + b * h_stride_ + u0;
      t.h_row = t.operand_row = h_stride_;
      if constexpr (!quantizes) t.operand = operand_[(k + 1) % 2] + b * h_stride_ + u0;
      t.y = a_.y + row * P_ + u0;
      t.y_row = P_;
    }
    if (cell_.has_c) t.c = c_ + b * C_ + u0;
    t.c_row = t.c_out_row = C_;
    if (a_.c) t.c_out = a_.c + row * C_ + u0;
    if (a_.slots) t.slots = a_.slots + row * cell_.slots * H_ + u0;
    t.slots_row = cell_.slots * H_;
    if (cell_.unit_weights) t.unit_weights = a_.weights.unit_weights + u0;
    if (cell_.step_inputs) t.step_inputs = a_.step_inputs.at(q_, q_.step(k), b) + u0;
    t.step_inputs_row = a_.step_inputs.row;
    cell_forward_(t);
  }

  // Step t of a sequence that has ended: zero output, and zero in what is kept, since products over all
  // rows read it.
  void clear(int64_t t, int64_t b, int64_t u0, int64_t units) {
    const int64_t row = q_.first_row(t) + b;
    if (!projected()) std::fill_n(a_.y + row * P_ + u0, units, Storage{});
    if (a_.c) {
      for (int64_t at = row * C_ + u0; at < (row + 1) * C_; at += H_)
        std::fill_n(a_.c + at, units, Storage{});
    }
    if (!a_.slots) return;
    for (int s = 0; s < cell_.slots; ++s) {
      std::fill_n(a_.slots + (row * cell_.slots + s) * H_ + u0, units, Storage{});
    }
  }

  // The h that the next step reads for a sequence that it resets, or that was not active.
  void carry_h(int64_t k, int64_t b, int64_t u0, int64_t units, bool anew) {
    const int64_t at = b * h_stride_ + u0;
    Compute* next_state = state_[(k + 1) % 2] + at;
    if (anew) {
      std::fill_n(next_state, units, Compute(0));
    } else if (next_state != state_[k % 2] + at) {
      memcpy(next_state, state_[k % 2] + at, units * sizeof(Compute));
    }
    if constexpr (!std::is_same_v<Operand, Compute> && !quantizes) {
      Operand* next = operand_[(k + 1) % 2] + at;
      if (anew) {
        std::fill_n(next, units, Operand{});
      } else {
        memcpy(next, operand_[k % 2] + at, units * sizeof(Operand));
      }
    }
  }

  // With a projection: h from the cell's output.
  void output_step(const Slice& slice, int64_t worker, int64_t k, int64_t j) {
    alignas(64) Compute acc[acc_size];
    const int64_t t = q_.step(k), u0 = j * projection_.block(), units = projection_.units(j);
    const Operand* rows = m_operand(slice, worker, k);
    for_tiles(present(q_, slice.batch, t), slice.projection.tile_rows(), [&](int64_t b0, int count) {
      multiply(slice.projection, j, rows, m_stride_, b0, count, acc);
      for (int m = 0; m < count; ++m) {
        const int64_t b = b0 + m;
        Storage* y = a_.y + (q_.first_row(t) + b) * P_ + u0;
        const Compute* h = acc + m * projection_.columns();
        if (!q_.active(t, b)) {
          std::fill_n(y, units, Storage{});
          continue;
        }
        k_.to_storage(units, h, y);
        if constexpr (!quantizes) k_.round_to_operand(units, h, operand_[(k + 1) % 2] + b * h_stride_ + u0);
        if constexpr (!std::is_same_v<Operand, Compute>) {
          std::copy_n(h, units, state_[(k + 1) % 2] + b * h_stride_ + u0);
        }
      }
    });
    for_interrupted(q_, slice.batch, slice.shortest, k,
                    [&](int64_t b, bool anew) { carry_h(k, b, u0, units, anew); });
    if (k + 1 == q_.T && !in_place()) finish_h(slice, u0, units);
  }

  void finish_h(const Slice& slice, int64_t u0, int64_t units) {
    for (int64_t b : each(slice.batch)) {
      k_.to_storage(units, state_[q_.T % 2] + b * h_stride_ + u0, a_.h_n + b * P_ + u0);
    }
  }

  const ForwardArgs<Storage>& a_;
  const char* panels_;  // packed beforehand, or null
  const Kernels& k_;
  const Sequence& q_;
  const CellInfo& cell_;
  const int64_t I_, H_, P_, C_;  // C: all private states of a row
  void (*const cell_forward_)(const CellForward<Storage, typename Kernels::CellOperand, Compute>&);
  Workspace workspace_;
  const Product input_, recurrent_, projection_;  // the panels are the slices'
  Partition partition_;
  std::vector<Slice> slices_;  // one, unless the batch is cut
  int64_t x_stride_, h_stride_, m_stride_;
  Operand* operand_[2];   // [B, h_stride] h as products read it, alternating; unused if quantized
  Compute* state_[2];     // [B, h_stride] h as cells read it: the same memory, or one or two in Compute
  Compute* c_ = nullptr;  // [B, C]
  Operand* m_ = nullptr;  // [B, m_stride] the cell's output, if a projection follows
  Compute* m_state_ = nullptr;              // [B, m_stride] the same in Compute, or the same memory
  QuantizedRows<Kernels> h_rows_, m_rows_;  // of h and of m_, if quantized
};

}  // namespace

template <class Kernels>
void run_forward(const ForwardArgs<typename Kernels::Storage>& args, const Kernels& kernels,
                 const void* panels) {
  Forward<Kernels> forward(args, kernels, panels);
  run_thread_team(forward.threads(), forward);
}

#define FASTRNN_FORWARD(...) \
  template void run_forward(const ForwardArgs<__VA_ARGS__::Storage>&, const __VA_ARGS__&, const void*);
FASTRNN_FORWARD(Kernels<float, float, float>)
FASTRNN_FORWARD(Kernels<float, BFloat16, float>)
FASTRNN_FORWARD(Kernels<float, SplitFloat, float>)
FASTRNN_FORWARD(Kernels<float, QuantizedByte, float>)
FASTRNN_FORWARD(Kernels<double, double, double>)
FASTRNN_FORWARD(Kernels<BFloat16, float, float>)
FASTRNN_FORWARD(Kernels<Half, float, float>)
FASTRNN_FORWARD(Kernels<BFloat16, BFloat16, float>)

}  // namespace fastrnn
