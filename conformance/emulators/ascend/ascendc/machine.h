// What one core is made of, and what is remembered of each byte: its pipes, memories, clocks, and the last accesses that nothing has superseded.
//
// A core's scalar unit (S) runs the kernel and gives instructions to its pipes. Each pipe starts its instructions in order, but they overlap; between
// pipes there is no order but that of flags and barriers. Every pipe has a clock: for each pipe, how many of its instructions are known to have
// ended before the next one here starts. Two accesses to a byte, one a write, must be ordered by these clocks; if not, they are a hazard,
// whatever order this run happened to take.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core.h"

namespace ropeway {

constexpr int PIPES = PIPE_ALL;
constexpr const char *PIPE_NAMES[] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX", "ALL"};

constexpr const char *MEMORY_NAMES[] = {"global memory", "L1", "L0A", "L0B", "L0C", "UB", "BT"};
constexpr uint64_t MEMORY_BYTES[] = {0, 512 << 10, 64 << 10, 64 << 10, 128 << 10, 192 << 10, 1 << 10};

// An Ascend 910B3: 20 AI cores, each a cube core (AIC) with two vector cores (AIV).
constexpr int AI_CORES = 20;
constexpr int VECTORS_OF_A_CORE = 2;

// Ends the launch.
struct Fault {
  std::string text;
};

// Unwinds the other cores once one has faulted.
struct Abandoned {};

struct Clock {
  using Count = std::array<uint32_t, PIPES>;
  Count own{};
  // Of other cores, by number: only cross-core flags fill it, so most clocks share none.
  std::shared_ptr<const std::map<int, Count>> others;
  // When all that is known to have ended has, in modelled cycles (cost.h).
  uint64_t time = 0;

  static void join(Count &to, const Count &from) {
    for (int pipe = 0; pipe < PIPES; pipe++)
      if (from[pipe] > to[pipe]) to[pipe] = from[pipe];
  }
  void join(const Clock &from) {
    join(own, from.own);
    if (from.time > time) time = from.time;
    if (!from.others || from.others == others) return;
    if (!others) {
      others = from.others;
      return;
    }
    auto joined = std::make_shared<std::map<int, Count>>(*others);
    for (auto &[core, count] : *from.others) join((*joined)[core], count);
    others = joined;
  }
  // What this clock of core `core` says to a core that does not share its pipes.
  Clock seen_from_outside(int core) const {
    auto all = others ? std::make_shared<std::map<int, Count>>(*others) : std::make_shared<std::map<int, Count>>();
    join((*all)[core], own);
    return Clock{{}, all, time};
  }
  // What core `core` learns of it: what is said of its own pipes included.
  void learn(const Clock &outside, int core) {
    join(outside);
    if (!others) return;
    auto mine = others->find(core);
    if (mine != others->end()) join(own, mine->second);
  }
  bool knows(int core, int pipe, uint32_t sequence, int self) const {
    if (core == self) return own[pipe] >= sequence;
    if (!others) return false;
    auto found = others->find(core);
    return found != others->end() && found->second[pipe] >= sequence;
  }
};

// One instruction's access to some bytes of a cell.
struct Access {
  const char *instruction;
  int line, core;
  uint32_t sequence, bytes;  // its number on its pipe; a bit for each byte of the cell
  uint8_t pipe;
  bool write;
  bool interlocked;  // an Mmad large enough that the cube unit itself waits for the one before
  Atomic atomic;
};

constexpr uint64_t CELL = 32;

// 32 bytes of a memory: the writes that are not overwritten, and the reads since.
struct Cell {
  std::vector<Access> accesses;

  static uint32_t mask(uint64_t from, uint64_t to) { return uint32_t((to - from == 32 ? ~0ull : (1ull << (to - from)) - 1) << from); }

  static bool conflict(const Access &before, const Access &now, const Clock &clock) {
    if (!(before.bytes & now.bytes) || !(before.write || now.write) || (before.atomic != Atomic::None && before.atomic == now.atomic)) return false;
    if (before.core == now.core && before.pipe == now.pipe) {
      if (before.sequence == now.sequence || now.pipe == PIPE_S) return false;
      // A pipe's operands are read in the order of its instructions, so that only what it wrote may be late.
      if (!before.write || (before.interlocked && now.interlocked)) return false;
    }
    return !clock.knows(before.core, before.pipe, before.sequence, now.core);
  }

  // Remembers `now`; gives the access that it is not ordered after, if there is one.
  const Access *add(const Access &now, const Clock &clock) {
    for (const Access &before : accesses)
      if (conflict(before, now, clock)) return &before;
    size_t kept = 0;
    for (Access &before : accesses) {
      bool superseded = (now.write && now.atomic == Atomic::None) ||
                        (before.core == now.core && before.pipe == now.pipe && before.write == now.write && before.atomic == Atomic::None);
      if (superseded) before.bytes &= ~now.bytes;
      if (before.bytes) accesses[kept++] = before;
    }
    accesses.resize(kept);
    accesses.push_back(now);
    return nullptr;
  }
};

// The cells of a memory, by page, so that global memory costs only what is touched.
class Shadow {
  static constexpr uint64_t PAGE = 4096;
  using Page = std::array<Cell, PAGE / CELL>;
  std::map<uint64_t, std::unique_ptr<Page>> pages;
  uint64_t last = ~0ull;
  Page *page = nullptr;

 public:
  Cell &cell(uint64_t address) {
    uint64_t number = address / PAGE;
    if (number != last) {
      auto &slot = pages[number];
      if (!slot) slot = std::make_unique<Page>();
      last = number, page = slot.get();
    }
    return (*page)[address % PAGE / CELL];
  }
};

// A small generator (splitmix64): the same seed takes the same order on every machine.
class Random {
  uint64_t state;

 public:
  explicit Random(uint64_t seed) : state(seed) {}
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t end) { return next() % end; }
};

}  // namespace ropeway
