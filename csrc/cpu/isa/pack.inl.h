// Packing: a block's weights from a row-major matrix into a panel, in the order in which a tile reads it.

// An entry of a panel: one number, or two consecutive k in one word if products take pairs.
template <int pair, class Compute>
using PanelWord = std::conditional_t<pair == 2, uint32_t, Compute>;

// The next numbers of a row of w as panel words; zero after `count` numbers.
template <int pair, class Compute, class Storage>
FASTRNN_INLINE Vec<PanelWord<pair, Compute>> load_words(const Storage* from, int64_t count) {
  constexpr int64_t lanes = lanes_of<Compute>;
  if constexpr (pair == 1) {
    return count < lanes ? load(from, count) : load(from, lanes);
  } else {
    BFloat16 pairs[2 * lanes] = {};
    convert<Storage, BFloat16, Compute>(count < 2 * lanes ? count : 2 * lanes, from, pairs);
    Vec<uint32_t> words;
    memcpy(&words, pairs, sizeof(words));
    return words;
  }
}

// Transposes squares of lanes x lanes words in registers, so that reads and writes both run along cache
// lines. Calls store_row(word, column, vector) for every vector of a panel's rows, padding included, which
// is zero. D: the Dot that will read the panel.
template <class D, class Compute, class Storage, class Store>
FASTRNN_INLINE void transpose_panel(int64_t k, const Storage* w, int64_t w_row, int gates, int64_t H,
                                    int64_t units, int64_t block, Store store_row) {
  using Word = PanelWord<D::pair, Compute>;
  constexpr int lanes = lanes_of<Compute>;
  // The last square with words of w reaches to the end of the padding.
  static_assert(D::k_step <= D::pair * lanes);
  const int64_t words = (k + D::pair - 1) / D::pair;
  const int64_t padded = (k + D::k_step - 1) / D::k_step * (D::k_step / D::pair);
  for (int g = 0; g < gates; ++g) {
    for (int64_t u = 0; u < block; u += lanes) {
      for (int64_t p = 0; p < words; p += lanes) {
        Vec<Word> square[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          const Storage* from = w + (g * H + u + i) * w_row + p * D::pair;
          square[i] = u + i < units ? load_words<D::pair, Compute>(from, k - p * D::pair) : Vec<Word>{};
        }
        transpose(square);
        const int64_t rows = padded - p < lanes ? padded - p : lanes;
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          if (i >= rows) break;
          store_row(p + i, g * block + u, square[i]);
        }
      }
    }
  }
}

template <class Storage, class Operand, class Compute>
void pack_transposed(int64_t k, const Storage* w, int64_t w_row, int gates, int64_t H, int64_t units,
                     int64_t block, Operand* panel) {
  using D = Dot<Operand, Compute>;
  using Word = PanelWord<D::pair, Compute>;
  const int64_t columns = gates * block;
  auto put = [&](int64_t i, int64_t column, Vec<Word> v) __attribute__((always_inline)) {
    Operand* to = panel + (i * columns + column) * D::pair;
    if constexpr (std::is_same_v<Operand, Compute> || D::pair == 2) {
      memcpy(to, &v, sizeof(v));
    } else {
      store(to, v, lanes_of<Compute>);
    }
  };
  transpose_panel<D, Compute>(k, w, w_row, gates, H, units, block, put);
}

template <class Storage, class Operand, class Compute>
void pack(int64_t k, const Storage* w, int64_t w_row, int64_t units, int64_t block, Operand* panel) {
  using D = Dot<Operand, Compute>;
  constexpr int step = D::pair;
  const int64_t padded = (k + D::k_step - 1) / D::k_step * D::k_step;
  Operand row[max_tile_vectors * lanes_of<Compute>];
  for (int64_t i = 0; i < padded; ++i) {
    Operand* to = panel + i / step * block * step + i % step;
    const int64_t exist = i < k ? units : 0;
    convert<Storage, Operand, Compute>(exist, w + i * w_row, step == 1 ? to : row);
    if constexpr (step == 1) {
      for (int64_t u = exist; u < block; ++u) to[u] = Operand{};
    } else {
      for (int64_t u = 0; u < block; ++u) to[u * step] = u < exist ? row[u] : Operand{};
    }
  }
}
