// One core as instructions see it: they are issued to its pipes, and take effect later, when they read and write through it. What the core is made of stands in
// engine.h; kernels are compiled without that, which is machine.cpp's, an object of its own: there are hundreds of kernels, and their compilation is
// most of what a run of the tests takes. For the same reason this includes nothing of the standard library that takes long to read.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

enum pipe_t : int { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };
enum KernelMetaType { KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_AIC_ONLY, KERNEL_TYPE_MIX_AIC_1_1, KERNEL_TYPE_MIX_AIC_1_2, KERNEL_TYPE_NOT_SAID };

namespace ropeway {

enum Memory : uint8_t { GM, L1, L0A, L0B, L0C, UB, BT, MEMORIES };

// Where in the kernel's source an instruction stands; filled in as a default argument at the call.
struct At {
  int line;
  const char *file = "";
};

// Where a tensor lies: `limit` is the first address that no longer belongs to its buffer.
struct Place {
  Memory memory = GM;
  uint64_t address = 0, limit = 0;
};

// What the copy units do with what is in global memory already. Writes of one kind give the same whatever their order; of two kinds they do not.
enum class Atomic : uint8_t { None, Add, Max };

// The pairs of pipes between which the chip has flags: source, then the pipe that waits.
#define ROPEWAY_EVENTS(EVENT)                                                                                                                 \
  EVENT(MTE2, MTE1) EVENT(MTE1, MTE2) EVENT(MTE1, M) EVENT(M, MTE1) EVENT(MTE2, V) EVENT(V, MTE2) EVENT(MTE3, V) EVENT(V, MTE3) EVENT(M, V)     \
  EVENT(V, M) EVENT(MTE3, MTE1) EVENT(MTE1, MTE3) EVENT(MTE1, V) EVENT(MTE2, M) EVENT(M, MTE2) EVENT(V, MTE1) EVENT(M, FIX) EVENT(FIX, M)      \
  EVENT(MTE3, MTE2) EVENT(MTE2, MTE3) EVENT(S, V) EVENT(V, S) EVENT(S, MTE1) EVENT(MTE1, S) EVENT(S, MTE2) EVENT(MTE2, S) EVENT(S, MTE3)      \
  EVENT(MTE3, S) EVENT(S, M) EVENT(M, S) EVENT(S, FIX) EVENT(FIX, S) EVENT(MTE2, FIX) EVENT(FIX, MTE2) EVENT(FIX, MTE3) EVENT(MTE1, FIX)       \
  EVENT(FIX, MTE1)

enum Event : uint8_t {
#define ROPEWAY_EVENT(from, to) from##_TO_##to,
  ROPEWAY_EVENTS(ROPEWAY_EVENT)
#undef ROPEWAY_EVENT
      EVENTS
};
constexpr int FLAGS_OF_AN_EVENT = 8;

// Rows in global memory that an instruction reads or writes.
struct Rows {
  uint64_t address = 0, count = 0, bytes = 0, stride = 0;
};

// What an instruction has to do, for the estimate of its cycles (cost.h).
struct Work {
  enum Kind : uint8_t { UNPRICED, SYNC, READ, WRITE, TO_L0A, TO_L0B, TO_BT, CUBE, FIXPIPE, VECTOR, SLOW_VECTOR, GATHER };
  Kind kind = UNPRICED;
  double amount = 0;  // bytes; of CUBE cycles, of FIXPIPE and GATHER elements, of VECTOR repeats
  Rows rows{};
  double macs = 0;

  static Work sync() { return {SYNC}; }
  static Work read(const Rows &rows) { return {READ, double(rows.count) * double(rows.bytes), rows}; }
  static Work write(const Rows &rows) { return {WRITE, double(rows.count) * double(rows.bytes), rows}; }
  // Repeats of 256 bytes, of elements of the widest type that takes part.
  static Work vector(uint64_t count, uint64_t element_bytes, bool slow = false) {
    return {slow ? SLOW_VECTOR : VECTOR, double((count * element_bytes + 255) / 256)};
  }
  static Work repeats(uint64_t repeats, bool slow = false) { return {slow ? SLOW_VECTOR : VECTOR, double(repeats)}; }
  static Work gather(uint64_t count) { return {GATHER, double(count)}; }
  static Work mmad(uint64_t m, uint64_t n, uint64_t k, uint64_t element_bytes);
  static bool slow(const char *name);
};

// What an instruction does: a closure that is called once at most.
class Effect {
  void *closure = nullptr;
  void (*call)(void *) = nullptr, (*drop)(void *) = nullptr;

 public:
  template <class F, class = std::enable_if_t<!std::is_same<std::decay_t<F>, Effect>::value>>
  Effect(F given) : closure(new F(std::move(given))), call([](void *self) { (*static_cast<F *>(self))(); }), drop([](void *self) { delete static_cast<F *>(self); }) {}
  Effect(Effect &&from) noexcept : closure(from.closure), call(from.call), drop(from.drop) { from.closure = nullptr; }
  Effect &operator=(Effect &&from) noexcept {
    std::swap(closure, from.closure), std::swap(call, from.call), std::swap(drop, from.drop);
    return *this;
  }
  ~Effect() {
    if (closure) drop(closure);
  }
  void operator()() const { call(closure); }
};

// A flag of a queue's own, between two pipes: it has no number, and is set once. 0 is none.
using Token = uint32_t;

class Core {
 public:
  const int block, sub_block;
  const bool cube;
  const uint32_t num_blocks;
  const int vectors;             // to a cube core, in a kernel of a mixed type; else none
  Atomic atomic = Atomic::None;  // of the instructions issued from now on

  [[noreturn]] virtual void fault(const char *what) const = 0;
  void require(bool holds, const char *what) const {
    if (!holds) fault(what);
  }

  // Queues an instruction; `effect` runs when its turn comes, and reads and writes through this core.
  virtual void issue(pipe_t on, const char *name, At at, const Work &work, Effect effect, bool interlocked = false) = 0;
  // What S does itself, at once: one element.
  virtual void get_value(At at, const Place &place, uint64_t offset, void *value, uint64_t bytes) = 0;
  virtual void set_value(At at, const Place &place, uint64_t offset, const void *value, uint64_t bytes) = 0;

  virtual const uint8_t *read(const Place &place, uint64_t offset, uint64_t bytes) = 0;
  virtual uint8_t *write(const Place &place, uint64_t offset, uint64_t bytes, Atomic atomic = Atomic::None) = 0;

  virtual void set_flag(Event event, int id, At at) = 0;
  virtual void wait_flag(Event event, int id, At at) = 0;
  virtual Token set_token(pipe_t from, const char *name, At at) = 0;
  virtual void wait_token(pipe_t to, Token token, const char *name, At at) = 0;
  virtual void barrier(pipe_t on, At at) = 0;
  virtual void cross_set(int mode, pipe_t on, int id, At at) = 0;
  virtual void cross_wait(int id, At at) = 0;
  // S waits for what an instruction of a pipe gives it back.
  virtual void wait_for(pipe_t on, const bool &given, const char *what) = 0;

 protected:
  Core(int block, int sub_block, bool cube, uint32_t num_blocks, int vectors) : block(block), sub_block(sub_block), cube(cube), num_blocks(num_blocks), vectors(vectors) {}
  ~Core() = default;
};

// The core whose kernel is running on this thread.
Core &core();

// Faults that name what they met.
[[noreturn]] void unfit(int64_t given, int64_t low, int64_t high);
[[noreturn]] void no_way(Memory to, Memory from);
[[noreturn]] void memory_full(Memory memory, uint64_t used);
[[noreturn]] void no_buffer(At at);
void aligned(const Place &place, uint64_t bytes, const char *what);
void in(const Place &place, Memory memory, const char *what);
uint64_t bytes_of(Memory memory);

}  // namespace ropeway
