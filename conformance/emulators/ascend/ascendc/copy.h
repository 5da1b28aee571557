// DataCopy and DataCopyPad: global memory to L1 or UB on MTE2, and back on MTE3; UB to UB on V.
#pragma once
#include "sync.h"

namespace AscendC {

// Blocks of blockLen x 32 bytes; the gaps lie between the end of one and the start of the next.
struct DataCopyParams {
  ropeway::Count4095 blockCount = 1;
  ropeway::U16 blockLen = 0;
  ropeway::U16 srcStride = 0, dstStride = 0;
};

// blockLen in bytes; gaps in bytes in global memory, in blocks of 32 bytes in UB.
struct DataCopyExtParams {
  ropeway::Count4095 blockCount = 1;
  ropeway::Field<uint32_t, 0, 2097151> blockLen = 0;
  uint32_t srcStride = 0, dstStride = 0, rsv = 0;
};

template <class T> struct DataCopyPadExtParams {
  bool isPad = false;
  ropeway::U8 leftPadding = 0, rightPadding = 0;
  T paddingValue = T(0);
};

// Rows of dValue elements to columns of fractals: 32 bytes of a row lie together, those of the next row dstNzNStride x 32 bytes on, the
// next 32 bytes of the same row dstNzC0Stride x 32 bytes on.
struct Nd2NzParams {
  ropeway::Count4095 ndNum = 0;
  ropeway::Field<uint16_t, 0, 16384> nValue = 0;
  ropeway::U16 dValue = 0, srcNdMatrixStride = 0;
  ropeway::Field<uint16_t, 1, 65535> srcDValue = 1;
  ropeway::Field<uint16_t, 1, 16384> dstNzC0Stride = 1, dstNzNStride = 1;
  ropeway::Field<uint16_t, 0, 16384> dstNzMatrixStride = 0;
};

}  // namespace AscendC

namespace ropeway {

// Writes to global memory, or joins with what is there.
template <class T> void store(Core &core, const Place &to, uint64_t offset, const T *values, uint64_t count, Atomic atomic) {
  if (to.memory != GM) atomic = Atomic::None;
  uint8_t *bytes = core.write(to, offset, count * sizeof(T), atomic);
  if (atomic == Atomic::None) {
    if (count) std::memcpy(bytes, values, count * sizeof(T));
    return;
  }
  for (uint64_t i = 0; i < count; i++, bytes += sizeof(T)) {
    T old;
    std::memcpy(&old, bytes, sizeof(T));
    if (atomic == Atomic::Add) old = T(old + values[i]);
    else if (values[i] > old) old = values[i];
    std::memcpy(bytes, &old, sizeof(T));
  }
}

// Which pipe copies between two memories, and only where the chip has the way.
inline pipe_t copier(Memory to, Memory from) {
  if (from == GM && (to == L1 || to == UB)) return PIPE_MTE2;
  if ((from == UB || from == L1) && to == GM) return PIPE_MTE3;
  if (from == UB && to == UB) return PIPE_V;
  if (from == L1 && to == BT) return PIPE_MTE1;
  no_way(to, from);
}

// For the cost: `rows` are those in global memory, or the blocks that are copied within the core.
inline Work copy_work(const Place &to, const Place &from, const Rows &rows) {
  if (from.memory == GM) return Work::read(rows);
  if (to.memory == GM) return Work::write(rows);
  if (to.memory == BT) return {Work::TO_BT, double(rows.count) * double(rows.bytes)};
  return Work::vector(rows.count * rows.bytes, 1);
}

template <class T> void copy_blocks(Place to, Place from, AscendC::DataCopyParams p, At at) {
  Atomic atomic = core().atomic;
  const Place &global = to.memory == GM ? to : from;
  uint64_t gap = to.memory == GM ? p.dstStride : p.srcStride, length = p.blockLen;
  Work work = copy_work(to, from, {global.address, p.blockCount, length * 32, (length + gap) * 32});
  core().issue(copier(to.memory, from.memory), "DataCopy", at, work, [=, &core = core()] {
    aligned(to, to.memory == GM ? sizeof(T) : to.memory == BT ? 64 : 32, "the destination");
    aligned(from, from.memory == GM ? sizeof(T) : 32, "the source");
    for (uint64_t i = 0; i < p.blockCount; i++) {
      const uint8_t *block = core.read(from, i * (p.blockLen + p.srcStride) * 32, p.blockLen * 32);
      store(core, to, i * (p.blockLen + p.dstStride) * 32, reinterpret_cast<const T *>(block), p.blockLen * 32 / sizeof(T), atomic);
    }
  });
}

template <class T> void copy_whole(Place to, Place from, uint64_t count, At at) {
  uint64_t bytes = count * sizeof(T);
  Atomic atomic = core().atomic;
  Work work = copy_work(to, from, {(to.memory == GM ? to : from).address, 1, bytes, 0});
  core().issue(copier(to.memory, from.memory), "DataCopy", at, work, [=, &core = core()] {
    aligned(to, to.memory == GM ? sizeof(T) : 32, "the destination");
    aligned(from, from.memory == GM ? sizeof(T) : 32, "the source");
    core.require(bytes % 32 == 0, "misaligned: DataCopy of a length that is not whole blocks of 32 bytes");
    store(core, to, 0, reinterpret_cast<const T *>(core.read(from, 0, bytes)), count, atomic);
  });
}

}  // namespace ropeway

namespace AscendC {

template <class T> void DataCopy(const LocalTensor<T> &dst, const GlobalTensor<T> &src, uint32_t count, ROPEWAY_AT) { ropeway::copy_whole<T>(dst.place, src.place, count, at); }
template <class T> void DataCopy(const GlobalTensor<T> &dst, const LocalTensor<T> &src, uint32_t count, ROPEWAY_AT) { ropeway::copy_whole<T>(dst.place, src.place, count, at); }
template <class T> void DataCopy(const LocalTensor<T> &dst, const LocalTensor<T> &src, uint32_t count, ROPEWAY_AT) { ropeway::copy_whole<T>(dst.place, src.place, count, at); }

template <class T> void DataCopy(const LocalTensor<T> &dst, const GlobalTensor<T> &src, const DataCopyParams &p, ROPEWAY_AT) { ropeway::copy_blocks<T>(dst.place, src.place, p, at); }
template <class T> void DataCopy(const GlobalTensor<T> &dst, const LocalTensor<T> &src, const DataCopyParams &p, ROPEWAY_AT) { ropeway::copy_blocks<T>(dst.place, src.place, p, at); }
template <class T> void DataCopy(const LocalTensor<T> &dst, const LocalTensor<T> &src, const DataCopyParams &p, ROPEWAY_AT) { ropeway::copy_blocks<T>(dst.place, src.place, p, at); }

template <class T> void DataCopy(const LocalTensor<T> &dst, const GlobalTensor<T> &src, const Nd2NzParams &p, ROPEWAY_AT) {
  // Of several matrices: as if they lay one behind the other.
  ropeway::Rows rows{src.place.address, uint64_t(p.ndNum) * p.nValue, p.dValue * sizeof(T), p.srcDValue * sizeof(T)};
  ropeway::core().issue(PIPE_MTE2, "DataCopy", at, ropeway::Work::read(rows), [=, &core = ropeway::core()] {
    ropeway::in(dst, ropeway::L1, "the destination");
    ropeway::aligned(dst.place, 32, "the destination");
    constexpr uint64_t ACROSS = 32 / sizeof(T);
    for (uint64_t matrix = 0; matrix < p.ndNum; matrix++)
      for (uint64_t row = 0; row < p.nValue; row++) {
        const uint8_t *from = core.read(src.place, (matrix * p.srcNdMatrixStride + row * p.srcDValue) * sizeof(T), p.dValue * sizeof(T));
        uint64_t to = matrix * p.dstNzMatrixStride * sizeof(T) + row * p.dstNzNStride * 32;
        for (uint64_t column = 0; column < p.dValue; column += ACROSS, to += p.dstNzC0Stride * 32) {
          uint64_t bytes = std::min(ACROSS, p.dValue - column) * sizeof(T);
          uint8_t *block = core.write(dst.place, to, 32);
          std::memset(block, 0, 32);  // the end of a row is filled with zeroes
          std::memcpy(block, from + column * sizeof(T), bytes);
        }
      }
  });
}

template <class T>
void DataCopyPad(const LocalTensor<T> &dst, const GlobalTensor<T> &src, const DataCopyExtParams &p, const DataCopyPadExtParams<T> &pad, ROPEWAY_AT) {
  ropeway::Rows rows{src.place.address, p.blockCount, p.blockLen, uint64_t(p.blockLen) + p.srcStride};
  ropeway::core().issue(PIPE_MTE2, "DataCopyPad", at, ropeway::Work::read(rows), [=, &core = ropeway::core()] {
    ropeway::in(dst, ropeway::UB, "the destination");
    ropeway::aligned(dst.place, 32, "the destination");
    core.require(p.blockLen % sizeof(T) == 0, "blockLen is not whole elements");
    uint64_t left = pad.leftPadding * sizeof(T), right = pad.rightPadding * sizeof(T), whole = (left + p.blockLen + right + 31) / 32 * 32;
    core.require(left <= 32 && right <= 32, "more than 32 bytes of padding");
    for (uint64_t i = 0; i < p.blockCount && p.blockLen; i++) {
      uint8_t *to = core.write(dst.place, i * (whole + uint64_t(p.dstStride) * 32), whole);
      // What fills the block up is of no stated value unless the kernel gives one.
      std::memset(to, 0xff, whole);
      if (pad.isPad && left + right)
        for (uint64_t at_byte = 0; at_byte < whole; at_byte += sizeof(T)) std::memcpy(to + at_byte, &pad.paddingValue, sizeof(T));
      std::memcpy(to + left, core.read(src.place, i * (uint64_t(p.blockLen) + p.srcStride), p.blockLen), p.blockLen);
    }
  });
}

template <class T> void DataCopyPad(const GlobalTensor<T> &dst, const LocalTensor<T> &src, const DataCopyExtParams &p, ROPEWAY_AT) {
  ropeway::Atomic atomic = ropeway::core().atomic;
  ropeway::Rows rows{dst.place.address, p.blockCount, p.blockLen, uint64_t(p.blockLen) + p.dstStride};
  ropeway::core().issue(PIPE_MTE3, "DataCopyPad", at, ropeway::Work::write(rows), [=, &core = ropeway::core()] {
    ropeway::in(src, ropeway::UB, "the source");
    ropeway::aligned(src.place, 32, "the source");
    core.require(p.blockLen % sizeof(T) == 0, "blockLen is not whole elements");
    uint64_t whole = (uint64_t(p.blockLen) + 31) / 32 * 32;
    for (uint64_t i = 0; i < p.blockCount; i++) {
      const uint8_t *block = core.read(src.place, i * (whole + uint64_t(p.srcStride) * 32), p.blockLen);
      ropeway::store(core, dst.place, i * (uint64_t(p.blockLen) + p.dstStride), reinterpret_cast<const T *>(block), p.blockLen / sizeof(T), atomic);
    }
  });
}

}  // namespace AscendC
