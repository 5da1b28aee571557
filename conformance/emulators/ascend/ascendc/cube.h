// The cube unit: LoadData from L1 to L0A and L0B on MTE1, Mmad on M, Fixpipe from L0C to global memory on FIX.
//
// A fractal is 512 bytes: 16 lines of 32 bytes (k0 = 16 elements of f16, 32 of i8, 8 of f32). In memory, with m, n and k counted in fractals:
//
//   L1   NZ  fractals down the columns, rows within:  element (m, k) at fractal [k / k0][m / 16], line m % 16
//   L0A  ZZ  fractals along the rows, rows within:    fractal [m / 16][k / k0], line m % 16
//   L0B  ZN  fractals along the rows, columns within: fractal [k / k0][n / 16], line n % 16
//   L0C  NZ  of 16 x 16 sums (1024 bytes):            fractal [n / 16][m / 16], line m % 16
//
// The order in which the chip adds products is not published. Here each line of k0 products is summed exactly enough (f64) and rounded to f32 as it
// is added to the sum so far, lines in ascending k: a kernel must hold its bound without counting on more.
#pragma once
#include "copy.h"

namespace AscendC {

struct LoadData2DParams {
  ropeway::U16 startIndex = 0;
  ropeway::U8 repeatTimes = 0;
  ropeway::U16 srcStride = 0;
  uint8_t sid = 0;
  ropeway::U16 dstGap = 0;
  bool ifTranspose = false;
  uint8_t addrMode = 0;
};

struct LoadData2dTransposeParams {
  ropeway::U16 startIndex = 0;
  ropeway::U8 repeatTimes = 0;
  ropeway::U16 srcStride = 0, dstGap = 0, dstFracGap = 0;
  uint8_t addrMode = 0;
};

// To be set by name: the order of its fields differs between versions.
struct MmadParams {
  ropeway::Count4095 m = 0, n = 0, k = 0;
  bool cmatrixInitVal = true, cmatrixSource = false, kDirectionAlign = false;
  uint8_t unitFlag = 0;
  MmadParams() {}
};

enum class CO2Layout : uint8_t { NZ, ROW_MAJOR };
struct FixpipeConfig {
  CO2Layout format;
};
constexpr FixpipeConfig CFG_NZ{CO2Layout::NZ}, CFG_ROW_MAJOR{CO2Layout::ROW_MAJOR};

}  // namespace AscendC

enum QuantMode_t { NoQuant, F322F16, F322BF16, DEQF16 };

namespace AscendC {

struct FixpipeParamsV220 {
  ropeway::Count4095 nSize = 0;
  ropeway::U16 mSize = 0, srcStride = 0;
  uint32_t dstStride = 0;
  QuantMode_t quantPre = NoQuant;
  uint64_t deqScalar = 0;
  ropeway::U16 ndNum = 1, srcNdStride = 0, dstNdStride = 0;
  bool reluEn = false;
  uint8_t unitFlag = 0;
  bool isChannelSplit = false;
  FixpipeParamsV220() {}
};

}  // namespace AscendC

namespace ropeway {

inline Work load_work(const Place &to, uint64_t bytes) { return {to.memory == L0B ? Work::TO_L0B : Work::TO_L0A, double(bytes)}; }

}  // namespace ropeway

namespace AscendC {

template <class T> void LoadData(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LoadData2DParams &p, ROPEWAY_AT) {
  ropeway::core().issue(PIPE_MTE1, "LoadData", at, ropeway::load_work(dst.place, uint64_t(p.repeatTimes) * 512), [=, &core = ropeway::core()] {
    core.require(dst.place.memory == ropeway::L0A || dst.place.memory == ropeway::L0B, "the destination is neither in L0A nor in L0B");
    ropeway::in(src, ropeway::L1, "the source");
    ropeway::aligned(dst.place, 512, "the destination");
    ropeway::aligned(src.place, 32, "the source");
    core.require(!p.ifTranspose || sizeof(T) == 2, "LoadData transposes 16-bit elements only");
    core.require(p.addrMode == 0, "addrMode other than 0 is not modelled");
    for (uint64_t i = 0; i < p.repeatTimes; i++) {
      const uint8_t *from = core.read(src.place, (p.startIndex + i * p.srcStride) * 512, 512);
      uint8_t *to = core.write(dst.place, i * (p.dstGap + 1) * 512, 512);
      if (!p.ifTranspose) std::memcpy(to, from, 512);
      for (int e = 0; p.ifTranspose && e < 256; e++) std::memcpy(to + e * 2, from + (e % 16 * 16 + e / 16) * 2, 2);
    }
  });
}

// Transposes squares: one fractal of 16-bit elements; two of 8-bit (32 x 32), one below the other; two of 32-bit (16 x 16), side by side. Each repeat
// reads consecutive fractals and writes them dstFracGap apart; startIndex and srcStride count squares.
template <class T> void LoadDataWithTranspose(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LoadData2dTransposeParams &p, ROPEWAY_AT) {
  constexpr uint64_t LINE = 32 / sizeof(T), SIDE = LINE < 16 ? 16 : LINE, FRACTALS = SIDE * SIDE / (16 * LINE), SQUARE = FRACTALS * 512;
  ropeway::Work work = ropeway::load_work(dst.place, uint64_t(p.repeatTimes) * SQUARE);
  ropeway::core().issue(PIPE_MTE1, "LoadDataWithTranspose", at, work, [=, &core = ropeway::core()] {
    core.require(dst.place.memory == ropeway::L0A || dst.place.memory == ropeway::L0B, "the destination is neither in L0A nor in L0B");
    ropeway::in(src, ropeway::L1, "the source");
    ropeway::aligned(dst.place, 512, "the destination");
    ropeway::aligned(src.place, 32, "the source");
    core.require(p.addrMode == 0, "addrMode other than 0 is not modelled");
    // Where an element of the square lies, in elements.
    auto place = [](uint64_t row, uint64_t column) { return LINE < SIDE ? (column / LINE * 16 + row) * LINE + column % LINE : row * LINE + column; };
    for (uint64_t i = 0; i < p.repeatTimes; i++) {
      const uint8_t *from = core.read(src.place, (p.startIndex + i * p.srcStride) * SQUARE, SQUARE);
      for (uint64_t fractal = 0; fractal < FRACTALS; fractal++) {
        uint8_t *to = core.write(dst.place, (i * (p.dstGap + 1) + fractal * (p.dstFracGap + 1)) * 512, 512);
        for (uint64_t line = 0; line < 16; line++)
          for (uint64_t e = 0; e < LINE; e++) {
            uint64_t row = LINE < SIDE ? line : fractal * 16 + line, column = LINE < SIDE ? fractal * LINE + e : e;
            std::memcpy(to + (line * LINE + e) * sizeof(T), from + place(column, row) * sizeof(T), sizeof(T));
          }
      }
    }
  });
}

}  // namespace AscendC

namespace ropeway {

// The parts of L0A or L0B that an Mmad uses, as numbers in plain rows of k: `lines` of m or n, fractals `[line / 16][k / k0]` or, of L0B, the reverse.
template <class T, class Sum> std::vector<Sum> unpack(const uint8_t *fractals, uint64_t lines, uint64_t k, bool column_first) {
  constexpr uint64_t K0 = 32 / sizeof(T);
  uint64_t across = (k + K0 - 1) / K0, down = (lines + 15) / 16;
  std::vector<Sum> plain(lines * k);
  for (uint64_t line = 0; line < lines; line++)
    for (uint64_t e = 0; e < k; e++) {
      uint64_t fractal = column_first ? e / K0 * down + line / 16 : line / 16 * across + e / K0;
      T value;
      std::memcpy(&value, fractals + fractal * 512 + line % 16 * 32 + e % K0 * sizeof(T), sizeof(T));
      plain[line * k + e] = Sum(value);
    }
  return plain;
}

// sums[m][n] += a[m][k] b[n][k], as the head of this file says. For double and float, int32_t and int32_t: machine.cpp.
template <class Product, class Sum>
void multiply(const std::vector<Product> &a, const std::vector<Product> &b, uint64_t m, uint64_t n, uint64_t k, uint64_t k0, std::vector<Sum> &sums);

template <class C, class T>
void mmad(const AscendC::LocalTensor<C> &dst, const AscendC::LocalTensor<T> &a, const AscendC::LocalTensor<T> &b, const AscendC::LocalTensor<C> *bias_given,
          const AscendC::MmadParams &p, At at) {
  constexpr bool WHOLE = std::is_same<T, int8_t>::value;
  static_assert(WHOLE ? std::is_same<C, int32_t>::value : std::is_same<C, float>::value, "the cube unit sums i8 in i32 and floats in f32");
  static_assert(WHOLE || std::is_same<T, half>::value || std::is_same<T, bfloat16_t>::value || std::is_same<T, float>::value, "a type that the cube unit has");
  using Product = std::conditional_t<WHOLE, int32_t, double>;
  bool with_bias = bias_given != nullptr;
  AscendC::LocalTensor<C> bias = with_bias ? *bias_given : AscendC::LocalTensor<C>();
  // From this size on the cube unit itself waits for the sums of the Mmad before; below, a PipeBarrier must.
  bool interlocked = (p.m / 16) * (p.n / 16) >= 10;
  core().issue(PIPE_M, "Mmad", at, Work::mmad(p.m, p.n, p.k, sizeof(T)), [=, &core = core()] {
    in(dst, L0C, "the result"), in(a, L0A, "the left matrix"), in(b, L0B, "the right matrix");
    aligned(dst.place, 1024, "the result"), aligned(a.place, 512, "the left matrix"), aligned(b.place, 512, "the right matrix");
    core.require(p.unitFlag == 0 && !p.kDirectionAlign && !p.cmatrixSource, "unitFlag, kDirectionAlign and cmatrixSource are not modelled");
    constexpr uint64_t K0 = 32 / sizeof(T);
    uint64_t m = p.m, n = p.n, k = p.k, high = (m + 15) / 16, wide = (n + 15) / 16, deep = (k + K0 - 1) / K0;
    if (!m || !n || !k) return;
    // One row is taken as it lies, not in fractals.
    const uint8_t *left = core.read(a.place, 0, m == 1 ? (k * sizeof(T) + 31) / 32 * 32 : high * deep * 512), *right = core.read(b.place, 0, wide * deep * 512);
    std::vector<Product> rows(m == 1 ? k : 0), columns = unpack<T, Product>(right, n, k, true);
    for (uint64_t e = 0; e < rows.size(); e++) rows[e] = Product(reinterpret_cast<const T *>(left)[e]);
    if (m > 1) rows = unpack<T, Product>(left, m, k, false);
    std::vector<C> sums(m * n, C(0));
    auto element = [&](uint64_t i, uint64_t j) { return ((j / 16 * high + i / 16) * 256 + i % 16 * 16 + j % 16) * sizeof(C); };
    if (with_bias) {
      in(bias, BT, "the bias"), aligned(bias.place, 64, "the bias");
      const uint8_t *from = core.read(bias.place, 0, n * sizeof(C));
      for (uint64_t i = 0; i < m * n; i++) std::memcpy(&sums[i], from + i % n * sizeof(C), sizeof(C));
    } else if (!p.cmatrixInitVal) {
      const uint8_t *from = core.read(dst.place, 0, high * wide * 256 * sizeof(C));
      for (uint64_t i = 0; i < m * n; i++) std::memcpy(&sums[i], from + element(i / n, i % n), sizeof(C));
    }
    multiply(rows, columns, m, n, k, K0, sums);
    uint8_t *to = core.write(dst.place, 0, high * wide * 256 * sizeof(C));
    for (uint64_t i = 0; i < m * n; i++) std::memcpy(to + element(i / n, i % n), &sums[i], sizeof(C));
  }, interlocked);
}

}  // namespace ropeway

namespace AscendC {

template <class C, class T> void Mmad(const LocalTensor<C> &dst, const LocalTensor<T> &fm, const LocalTensor<T> &filter, const MmadParams &p, ROPEWAY_AT) {
  ropeway::mmad<C, T>(dst, fm, filter, nullptr, p, at);
}
template <class C, class T>
void Mmad(const LocalTensor<C> &dst, const LocalTensor<T> &fm, const LocalTensor<T> &filter, const LocalTensor<C> &bias, const MmadParams &p, ROPEWAY_AT) {
  ropeway::mmad<C, T>(dst, fm, filter, &bias, p, at);
}

template <class T, class C, const FixpipeConfig &config = CFG_ROW_MAJOR>
void Fixpipe(const GlobalTensor<T> &dst, const LocalTensor<C> &src, const FixpipeParamsV220 &p, ROPEWAY_AT) {
  ropeway::Atomic atomic = ropeway::core().atomic;
  uint64_t lines = uint64_t(p.ndNum) * p.mSize, columns = p.nSize;
  ropeway::Rows rows{dst.place.address, lines, columns * sizeof(T), uint64_t(p.dstStride) * sizeof(T)};
  if (config.format == CO2Layout::NZ) rows = {dst.place.address, columns / 16, lines * 16 * sizeof(T), uint64_t(p.dstStride) * 32};
  ropeway::core().issue(PIPE_FIX, "Fixpipe", at, {ropeway::Work::FIXPIPE, double(lines * columns), rows}, [=, &core = ropeway::core()] {
    ropeway::in(src, ropeway::L0C, "the source");
    ropeway::aligned(src.place, 64, "the source");
    constexpr bool ROWS = config.format == CO2Layout::ROW_MAJOR;
    ropeway::aligned(dst.place, ROWS ? sizeof(T) : 32, "the destination");
    core.require(p.unitFlag == 0 && !p.isChannelSplit, "unitFlag and isChannelSplit are not modelled");
    core.require(ROWS || (p.nSize % 16 == 0 && p.ndNum == 1), "fractals are stored 16 columns at a time, one matrix at a time");
    bool right = (std::is_same<T, C>::value && p.quantPre == NoQuant) || (std::is_same<C, float>::value && std::is_same<T, half>::value && p.quantPre == F322F16) ||
                 (std::is_same<C, float>::value && std::is_same<T, bfloat16_t>::value && p.quantPre == F322BF16) ||
                 (std::is_same<C, int32_t>::value && std::is_same<T, half>::value && p.quantPre == DEQF16);
    core.require(right, "quantPre does not turn the source's type into the destination's");
    // The scale is a float of which the chip keeps ten bits behind the point.
    float scale = p.quantPre == DEQF16 ? ropeway::bits_as<float>(uint32_t(p.deqScalar) & 0xffffe000u) : 1.0f;
    for (uint64_t matrix = 0; matrix < p.ndNum; matrix++)
      for (uint64_t row = 0; row < p.mSize; row++)
        for (uint64_t column = 0; column < p.nSize; column += 16) {
          uint64_t count = std::min<uint64_t>(16, p.nSize - column);
          const uint8_t *line = core.read(src.place, matrix * p.srcNdStride * 256 * sizeof(C) + (column / 16 * p.srcStride + row) * 16 * sizeof(C), count * sizeof(C));
          T values[16];
          for (uint64_t e = 0; e < count; e++) {
            C sum;
            std::memcpy(&sum, line + e * sizeof(C), sizeof(C));
            if (p.reluEn && !(sum > 0)) sum = 0;
            if constexpr (std::is_same<T, C>::value) values[e] = sum;
            else values[e] = T(float(sum) * scale);
          }
          uint64_t to = ROWS ? (matrix * p.dstNdStride + row * p.dstStride + column) * sizeof(T) : column / 16 * p.dstStride * 32 + row * 16 * sizeof(T);
          ropeway::store(core, dst.place, to, values, count, atomic);
        }
  });
}

}  // namespace AscendC
