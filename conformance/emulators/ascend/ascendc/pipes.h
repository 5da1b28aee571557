// How instructions of a core's pipes take effect: see engine.h.
#pragma once
#include "launch.h"

namespace ropeway {

// How far a pipe's queue runs ahead of the pipe before S must wait for a place in it.
constexpr size_t QUEUE = 64;

inline void Engine::fault(const std::string &what) const {
  throw Fault{what + "; in " + instruction + " at line " + std::to_string(at.line) + " (pipe " + PIPE_NAMES[pipe] + "), block " +
              std::to_string(block) + (cube ? ", cube core" : ", vector core") + (sub_block ? " 1" : "")};
}

// For the time of an effect, faults name its instruction.
struct Engine::Named {
  Engine &core;
  const char *instruction = core.instruction;
  At at = core.at;
  pipe_t pipe = core.pipe;
  bool interlocked = core.interlocked;
  Named(Engine &core, const char *name, At line, pipe_t on, bool locked = false) : core(core) {
    core.instruction = name, core.at = line, core.pipe = on, core.interlocked = locked;
  }
  ~Named() { core.instruction = instruction, core.at = at, core.pipe = pipe, core.interlocked = interlocked; }
};

inline void Engine::issue_when(pipe_t on, const char *name, At at, const Work &work, Effect effect, std::function<bool()> ready, bool locks) {
  {
    Named named(*this, name, at, on);
    require(cube ? on != PIPE_V : on != PIPE_M && on != PIPE_MTE1 && on != PIPE_FIX, "this core has no such pipe");
    wait_until([&] { return queues[on].size() < QUEUE; }, "a place in a pipe's queue");
  }
  if (launch.cost.on) {
    // The instruction that is as far ahead as the queue is long has left it.
    auto &starts = timing.starts[on];
    if (size_t waiting = queues[on].size(); starts.size() + waiting >= QUEUE) {
      while (starts.size() + waiting > QUEUE) starts.pop_front();
      clocks[PIPE_S].time = std::max(clocks[PIPE_S].time, starts.front());
    }
    spend(launch.cost.figures.issue);
  }
  queues[on].push_back({name, at, clocks[PIPE_S].own, clocks[PIPE_S].others, timing.free[PIPE_S], work, std::move(effect), std::move(ready), locks});
  breathe();
}

inline void Engine::scalar(const char *name, At at, Cycles cycles, const std::function<void()> &effect) {
  breathe();
  Named named(*this, name, at, PIPE_S);
  counts[PIPE_S]++;
  spend(cycles);
  effect();
}

// Nothing is read or written where only the cost counts, unless it is read in global memory.
inline void Engine::get_value(At at, const Place &place, uint64_t offset, void *value, uint64_t bytes) {
  bool memory = place.memory == GM;
  bool known = !launch.cost.only || memory;
  if (!known) launch.cost.unknown_values++;
  scalar("GetValue", at, memory ? launch.cost.figures.scalar_memory : launch.cost.figures.scalar_ub, [&] {
    if (known) std::memcpy(value, read(place, offset, bytes), bytes);
  });
}

inline void Engine::set_value(At at, const Place &place, uint64_t offset, const void *value, uint64_t bytes) {
  scalar("SetValue", at, place.memory == GM ? launch.cost.figures.scalar_memory : launch.cost.figures.scalar_ub, [&] {
    if (!launch.cost.only) std::memcpy(write(place, offset, bytes, Atomic::None), value, bytes);
  });
}

// Modelled time: S goes on for so long, from where what it waited for has ended.
inline void Engine::spend(Cycles cycles) {
  if (!launch.cost.on) return;
  timing.free[PIPE_S] = std::max(timing.free[PIPE_S], clocks[PIPE_S].time) + cycles;
  timing.done[PIPE_S] = timing.free[PIPE_S];
  timing.busy[PIPE_S] += cycles;
}

// An instruction takes its place in the modelled time of its pipe.
inline void Engine::begin_modelled(pipe_t on, const Instruction &next) {
  auto [occupied, later] = launch.cost.of(next.name, next.work);
  Cycles start = std::max({timing.free[on], clocks[on].time, next.issued_at});
  timing.free[on] = start + occupied;
  timing.done[on] = std::max(timing.done[on], start + occupied + later);
  timing.busy[on] += occupied;
  timing.starts[on].push_back(start);
}

// Lets pipes run ahead of S, or other cores ahead of this one, as the seed has it.
inline void Engine::breathe() {
  static constexpr uint64_t CHANCES[] = {0, 8, 96, 256};
  while (launch.random.below(256) < CHANCES[launch.eagerness] && step()) {
  }
  if (launch.random.below(16) == 0) launch.yield(*this);
}

inline bool Engine::step() {
  // One pipe may be passed over for long: that shows a missing wait sooner than fairness does.
  if (launch.random.below(16) == 0) std::swap(order[launch.random.below(PIPES)], order[launch.random.below(PIPES)]);
  for (int on : order) {
    auto &queue = queues[on];
    if (queue.empty() || (queue.front().ready && !queue.front().ready())) continue;
    execute(pipe_t(on));
    return true;
  }
  return false;
}

inline void Engine::execute(pipe_t on) {
  Instruction next = std::move(queues[on].front());
  queues[on].pop_front();
  Named named(*this, next.name, next.at, on, next.interlocked);
  counts[on]++;
  clocks[on].join(Clock{next.issued, next.issued_others});
  if (launch.cost.on) begin_modelled(on, next);
  if (!launch.cost.only || next.work.kind == Work::SYNC) next.effect();
}

inline void Engine::wait_until(const std::function<bool()> &holds, const std::string &what) {
  waits_for = what + " (" + instruction + " at line " + std::to_string(at.line) + ")";
  while (!holds()) {
    if (step()) continue;
    stuck = true;
    launch.yield(*this);
  }
  waits_for.clear();
}

inline void Engine::wait_for(pipe_t on, const bool &given, const char *what) {
  wait_until([&] { return launch.cost.only ? queues[on].empty() : given; }, what);
  if (launch.cost.only) launch.cost.unknown_values++;
  clocks[PIPE_S].time = std::max(clocks[PIPE_S].time, timing.done[on]);
  spend(launch.cost.figures.flag);
}

inline std::string Engine::held_up() const {
  std::string text = "block " + std::to_string(block) + (cube ? ", cube core" : ", vector core") + (sub_block ? " 1" : "") + ", waits for " + waits_for;
  for (int on = 0; on < PIPES; on++)
    if (!queues[on].empty())
      text += std::string(", pipe ") + PIPE_NAMES[on] + " is held by " + queues[on].front().name + " at line " + std::to_string(queues[on].front().at.line);
  return text;
}

inline uint8_t *Engine::access(const Place &place, uint64_t offset, uint64_t bytes, bool write, Atomic atomic) {
  if (bytes == 0) return nullptr;
  uint64_t from = place.address + offset, to = from + bytes;
  auto where = [&] { return std::string(MEMORY_NAMES[place.memory]) + " bytes " + std::to_string(from) + " to " + std::to_string(to); };
  if (to > place.limit || from > to) fault("out of bounds: " + where() + " of a buffer that ends at " + std::to_string(place.limit));
  uint8_t *host_bytes;
  if (place.memory == GM) {
    host_bytes = launch.host.translate(launch.host.context, from, bytes, write);
    if (!host_bytes) fault("out of bounds: " + where() + " are not inside one live allocation");
  } else {
    require(cube == (place.memory != UB), "this core has no such memory");
    auto &memory = memories[place.memory];
    // Every float format has a not-a-number of all ones.
    if (memory.empty()) memory.assign(MEMORY_BYTES[place.memory], 0xff);
    host_bytes = memory.data() + from;
  }
  if (!launch.hazards) return host_bytes;
  Shadow &shadow = place.memory == GM ? launch.global : shadows[place.memory];
  for (uint64_t cell = from / CELL * CELL; cell < to; cell += CELL) {
    uint32_t mask = Cell::mask(std::max(from, cell) - cell, std::min(to, cell + CELL) - cell);
    const Access now{instruction, at.line, number, counts[pipe], mask, uint8_t(pipe), write, interlocked, atomic};
    const Access *before = shadow.cell(cell).add(now, clocks[pipe]);
    if (!before) continue;
    std::string who = std::string(before->instruction) + " at line " + std::to_string(before->line) + " (pipe " + PIPE_NAMES[before->pipe] +
                      (before->core == number ? ")" : ", another core, of block " + std::to_string(before->core / launch.cores_of_a_block()) + ")");
    fault("hazard: nothing orders this " + std::string(write ? "write" : "read") + " of " + where() + " and the " + (before->write ? "write" : "read") +
          " by " + who);
  }
  return host_bytes;
}

inline void Engine::raise(Flag &flag, pipe_t from, pipe_t to) {
  if (flag.set) fault("SetFlag of a flag that is still set, from line " + std::to_string(flag.set_line));
  // S gives out instructions only after its own waits.
  if (to != PIPE_S && clocks[from].own[to] < flag.last_wait) fault("SetFlag may come before the WaitFlag that clears the one before: nothing orders them");
  flag.set = true;
  flag.set_line = at.line;
  flag.clock = clocks[from];
  flag.clock.own[from] = counts[from];
  flag.clock.time = std::max(flag.clock.time, timing.done[from]);
}

inline void Engine::lower(Flag &flag, pipe_t to) {
  flag.set = false;
  flag.last_wait = counts[to];
  clocks[to].join(flag.clock);
}

inline void Engine::set_flag(Event event, int id, At at) {
  if (launch.marks.dropped(at)) return;
  Flag *flag = &this->flag(event, id);
  pipe_t from = EVENT_PIPES[event].from, to = EVENT_PIPES[event].to;
  if (from == PIPE_S) return scalar("SetFlag", at, launch.cost.figures.flag, [=] { raise(*flag, from, to); });
  issue(from, "SetFlag", at, Work::sync(), [=] { raise(*flag, from, to); }, false);
}

inline void Engine::wait_flag(Event event, int id, At at) {
  if (launch.marks.dropped(at)) return;
  Flag *flag = &this->flag(event, id);
  pipe_t to = EVENT_PIPES[event].to;
  if (to != PIPE_S) return issue_when(to, "WaitFlag", at, Work::sync(), [=] { lower(*flag, to); }, [=] { return flag->set; });
  Named named(*this, "WaitFlag", at, PIPE_S);
  wait_until([=] { return flag->set; }, std::string("the flag ") + EVENT_PIPES[event].name + " " + std::to_string(id));
  counts[PIPE_S]++;
  lower(*flag, to);
  spend(launch.cost.figures.flag);
}

inline Token Engine::set_token(pipe_t from, const char *name, At at) {
  Flag *flag = &tokens[++last_token];
  issue(from, name, at, Work::sync(), [=] { raise(*flag, from, PIPE_S); }, false);
  return last_token;
}

inline void Engine::wait_token(pipe_t to, Token token, const char *name, At at) {
  Flag *flag = &tokens.at(token);
  auto lowered = [=] {
    lower(*flag, to);
    tokens.erase(token);
  };
  issue_when(to, name, at, Work::sync(), lowered, [flag] { return flag->set; });
}

inline void Engine::barrier(pipe_t on, At at) {
  if (launch.marks.dropped(at)) return;
  if (on != PIPE_ALL) {
    Named named(*this, "PipeBarrier", at, on);
    require(on != PIPE_S, "there is no barrier of the scalar pipe");
    return issue(on, "PipeBarrier", at, Work::sync(), [=] {
      clocks[on].own[on] = counts[on];
      clocks[on].time = std::max(clocks[on].time, timing.done[on]);
    }, false);
  }
  Named named(*this, "PipeBarrier", at, PIPE_S);
  wait_until([&] { return std::all_of(queues, queues + PIPES, [](auto &queue) { return queue.empty(); }); }, "all pipes");
  Clock all;
  for (int pipe = 0; pipe < PIPES; pipe++) {
    clocks[pipe].own[pipe] = counts[pipe];
    clocks[pipe].time = std::max(clocks[pipe].time, timing.done[pipe]);
    all.join(clocks[pipe]);
  }
  for (Clock &clock : clocks) clock = all;
  spend(launch.cost.figures.flag);
}

inline void Engine::cross_set(int mode, pipe_t on, int id, At at) {
  if (launch.marks.dropped(at)) return;
  Named named(*this, "CrossCoreSetFlag", at, on);
  require(on != PIPE_S && on != PIPE_ALL, "a cross-core flag is set by a pipe other than S");
  issue(on, "CrossCoreSetFlag", at, Work::sync(), [=] {
    Clock known = clocks[on];
    known.own[on] = counts[on];
    known.time = std::max(known.time, timing.done[on]);
    launch.cross_set(*this, mode, id, known.seen_from_outside(number));
  }, false);
}

inline void Engine::cross_wait(int id, At at) {
  if (launch.marks.dropped(at)) return;
  Named named(*this, "CrossCoreWaitFlag", at, PIPE_S);
  require(launch.mixed(), "cross-core flags need a kernel of a mixed type");
  require(id >= 0 && id < CROSS_FLAGS, "the number of a cross-core flag is 0 to 15");
  auto &granted = launch.cross[number][id].granted;
  wait_until([&] { return !granted.empty(); }, "cross-core flag " + std::to_string(id));
  clocks[PIPE_S].learn(granted.front(), number);
  granted.pop_front();
  spend(launch.cost.figures.flag);
}

inline void Engine::finish() {
  wait_until([&] { return std::all_of(queues, queues + PIPES, [](auto &queue) { return queue.empty(); }); }, "its pipes at the end");
  for (int event = 0; event < EVENTS; event++)
    for (int id = 0; id < FLAGS_OF_AN_EVENT; id++)
      if (flags[event][id].set)
        fault(std::string("SetFlag without WaitFlag: ") + EVENT_PIPES[event].name + " " + std::to_string(id) + ", set at line " +
              std::to_string(flags[event][id].set_line) + ", is still set at the end");
  if (launch.cost.on) launch.cost.ended(timing, uint32_t(block), cube);
}

}  // namespace ropeway
