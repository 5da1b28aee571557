// One core: the kernel's own thread of control (the S pipe), the queues of the other pipes, and the order in which their instructions take effect.
//
// An instruction takes effect at once when its turn comes; a seed decides when. The order obeys what the chip promises and nothing else: pipes are
// queues, a WaitFlag holds its pipe until the SetFlag, S waits where it must. So a kernel with a wait missing goes wrong for some seeds, and each
// access is checked against the clocks (machine.h), so that it is reported for every seed.
#pragma once
#include <ucontext.h>

#include <deque>
#include <functional>
#include <unordered_map>

#include "cost.h"

namespace ropeway {

constexpr struct {
  const char *name;
  pipe_t from, to;
} EVENT_PIPES[] = {
#define ROPEWAY_EVENT(from, to) {#from "_" #to, PIPE_##from, PIPE_##to},
    ROPEWAY_EVENTS(ROPEWAY_EVENT)
#undef ROPEWAY_EVENT
};

struct Flag {
  bool set = false;
  int set_line = 0;
  Clock clock;
  uint32_t last_wait = 0;  // the number, on the waiting pipe, of the WaitFlag that last cleared it
};

struct Instruction {
  const char *name;
  At at;
  Clock::Count issued;                           // what S knew
  std::shared_ptr<const std::map<int, Clock::Count>> issued_others;
  Cycles issued_at;                              // in modelled time
  Work work;
  Effect effect;
  std::function<bool()> ready;  // empty: at once
  bool interlocked = false;
};

struct Launch;

class Engine final : public Core {
  std::vector<uint8_t> memories[MEMORIES];
  Shadow shadows[MEMORIES];
  Timing timing;
  std::deque<Instruction> queues[PIPES];
  Clock clocks[PIPES];
  uint32_t counts[PIPES] = {};
  Flag flags[EVENTS][FLAGS_OF_AN_EVENT];
  std::unordered_map<Token, Flag> tokens;
  Token last_token = 0;
  int order[PIPES] = {1, 2, 3, 4, 5, 6, 0};
  // The instruction that is taking effect.
  const char *instruction = "the kernel";
  At at{0};
  pipe_t pipe = PIPE_S;
  bool interlocked = false;

 public:
  Launch &launch;
  const int number;
  bool done = false, stuck = false;
  ucontext_t context;
  std::string waits_for;

  Engine(Launch &launch, int number, int block, int sub_block, bool cube);

  [[noreturn]] void fault(const std::string &what) const;
  [[noreturn]] void fault(const char *what) const override { fault(std::string(what)); }

  void issue(pipe_t on, const char *name, At at, const Work &work, Effect effect, bool interlocked) override {
    issue_when(on, name, at, work, std::move(effect), {}, interlocked);
  }
  void get_value(At at, const Place &place, uint64_t offset, void *value, uint64_t bytes) override;
  void set_value(At at, const Place &place, uint64_t offset, const void *value, uint64_t bytes) override;

  const uint8_t *read(const Place &place, uint64_t offset, uint64_t bytes) override { return access(place, offset, bytes, false, Atomic::None); }
  uint8_t *write(const Place &place, uint64_t offset, uint64_t bytes, Atomic atomic) override { return access(place, offset, bytes, true, atomic); }

  void set_flag(Event event, int id, At at) override;
  void wait_flag(Event event, int id, At at) override;
  Token set_token(pipe_t from, const char *name, At at) override;
  void wait_token(pipe_t to, Token token, const char *name, At at) override;
  void barrier(pipe_t on, At at) override;
  void cross_set(int mode, pipe_t on, int id, At at) override;
  void cross_wait(int id, At at) override;
  void wait_for(pipe_t on, const bool &given, const char *what) override;

  // How far its pipes have come in modelled time.
  Cycles modelled() const { return *std::max_element(timing.free, timing.free + PIPES); }

  bool step();
  void finish();
  std::string held_up() const;

 private:
  uint8_t *access(const Place &place, uint64_t offset, uint64_t bytes, bool write, Atomic atomic);
  // The instruction waits in its pipe until `ready` holds.
  void issue_when(pipe_t on, const char *name, At at, const Work &work, Effect effect, std::function<bool()> ready, bool interlocked = false);
  // What S does itself, at once.
  void scalar(const char *name, At at, Cycles cycles, const std::function<void()> &effect);
  // S waits; its pipes run.
  void wait_until(const std::function<bool()> &holds, const std::string &what);
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

}  // namespace ropeway
