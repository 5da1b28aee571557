// One core: the kernel's own thread of control (the S pipe), the queues of the other pipes, and the order in which their instructions take effect.
//
// An instruction takes effect at once when its turn comes; a seed decides when. The order obeys what the chip promises and nothing else: pipes are
// queues, a WaitFlag holds its pipe until the SetFlag, S waits where it must. So a kernel with a wait missing goes wrong for some seeds, and each
// access is checked against the clocks (machine.h), so that it is reported for every seed.
#pragma once
#include <ucontext.h>

#include <deque>
#include <functional>

#include "cost.h"

namespace ropeway {

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
constexpr struct {
  const char *name;
  pipe_t from, to;
} EVENT_PIPES[] = {
#define ROPEWAY_EVENT(from, to) {#from "_" #to, PIPE_##from, PIPE_##to},
    ROPEWAY_EVENTS(ROPEWAY_EVENT)
#undef ROPEWAY_EVENT
};
constexpr int FLAGS_OF_AN_EVENT = 8;

struct Flag {
  bool set = false;
  int set_line = 0;
  Clock clock;
  uint32_t last_wait = 0;  // the number, on the waiting pipe, of the WaitFlag that last cleared it
};

// Where a tensor lies: `limit` is the first address that no longer belongs to its buffer.
struct Place {
  Memory memory = GM;
  uint64_t address = 0, limit = 0;
};

struct Instruction {
  const char *name;
  At at;
  Clock::Count issued;                           // what S knew
  std::shared_ptr<const std::map<int, Clock::Count>> issued_others;
  Cycles issued_at;                              // in modelled time
  Work work;
  std::function<void()> effect;
  std::function<bool()> ready;  // empty: at once
  bool interlocked = false;
};

struct Launch;

class Core {
  std::vector<uint8_t> memories[MEMORIES];
  Shadow shadows[MEMORIES];
  Timing timing;
  std::deque<Instruction> queues[PIPES];
  Clock clocks[PIPES];
  uint32_t counts[PIPES] = {};
  Flag flags[EVENTS][FLAGS_OF_AN_EVENT];
  int order[PIPES] = {1, 2, 3, 4, 5, 6, 0};
  // The instruction that is taking effect.
  const char *instruction = "the kernel";
  At at{0};
  pipe_t pipe = PIPE_S;
  bool interlocked = false;

 public:
  Launch &launch;
  const int number, block, sub_block;
  const bool cube;
  Atomic atomic = Atomic::None;  // of the instructions issued from now on
  bool done = false, stuck = false;
  ucontext_t context;
  std::string waits_for;

  Core(Launch &launch, int number, int block, int sub_block, bool cube)
      : launch(launch), number(number), block(block), sub_block(sub_block), cube(cube) {}

  [[noreturn]] void fault(const std::string &what) const {
    throw Fault{what + "; in " + instruction + " at line " + std::to_string(at.line) + " (pipe " + PIPE_NAMES[pipe] + "), block " +
                std::to_string(block) + (cube ? ", cube core" : ", vector core") + (sub_block ? " 1" : "")};
  }
  void require(bool holds, const char *what) const {
    if (!holds) fault(what);
  }

  // Queues an instruction; `effect` runs when its turn comes, and reads and writes through this core.
  void issue(pipe_t on, const char *name, At at, const Work &work, std::function<void()> effect, bool interlocked = false, std::function<bool()> ready = {});
  void issue(pipe_t on, const char *name, At at, std::function<void()> effect) { issue(on, name, at, Work(), std::move(effect)); }
  // What S does itself, at once.
  void scalar(const char *name, At at, Cycles cycles, const std::function<void()> &effect);
  // The same, an access to one element: nothing is read or written where only the cost counts, unless it is read in global memory.
  void scalar_access(const char *name, At at, const Place &place, bool write, const std::function<void()> &effect);

  const uint8_t *read(const Place &place, uint64_t offset, uint64_t bytes) { return access(place, offset, bytes, false, Atomic::None); }
  uint8_t *write(const Place &place, uint64_t offset, uint64_t bytes, Atomic atomic = Atomic::None) { return access(place, offset, bytes, true, atomic); }

  void set_flag(Event event, int id, At at);
  void wait_flag(Event event, int id, At at);
  // A flag of a queue's own, between two pipes: it has no number, and is set once.
  std::shared_ptr<Flag> set_token(pipe_t from, const char *name, At at);
  void wait_token(pipe_t to, std::shared_ptr<Flag> flag, const char *name, At at);
  void barrier(pipe_t on, At at);
  void cross_set(int mode, pipe_t on, int id, At at);
  void cross_wait(int id, At at);

  // S waits; its pipes run.
  void wait_until(const std::function<bool()> &holds, const std::string &what);
  // How far its pipes have come in modelled time.
  Cycles modelled() const { return *std::max_element(timing.free, timing.free + PIPES); }

  bool step();
  void finish();
  std::string held_up() const;

 private:
  uint8_t *access(const Place &place, uint64_t offset, uint64_t bytes, bool write, Atomic atomic);
  void breathe();
  void raise(Flag &flag, pipe_t from, pipe_t to);
  void lower(Flag &flag, pipe_t to);
  void execute(pipe_t on);
  void begin_modelled(pipe_t on, const Instruction &next);
  void spend(Cycles cycles);
  struct Named;
  Flag &flag(Event event, int id) {
    require(id >= 0 && id < FLAGS_OF_AN_EVENT, "the event id is not one of 0 to 7");
    return flags[event][id];
  }
};

// The core whose kernel is running on this thread.
inline Core *&running() {
  static thread_local Core *core = nullptr;
  return core;
}
inline Core &core() { return *running(); }

}  // namespace ropeway
