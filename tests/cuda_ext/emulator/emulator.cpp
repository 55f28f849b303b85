#include "emulator.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "guarded.h"
#include "ordering.h"
#include "tensor_core.h"

namespace bitsweep::emulator {
namespace {

constexpr size_t kStack = 256 * 1024;
constexpr int kWarp = 32;

struct Copy {
  uint32_t to;
  const void* from;
  int size, bytes;
};

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  State state = State::kReady;
  bool started = false;
  int index = 0;
  ucontext_t entry;
  jmp_buf where;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> closed;
  const void* site = nullptr;  // of the instruction of its warp that it waits in
  int name = 0, threads = 0;   // of the barrier that it waits at
  bool multiplies = false, bfloat16 = false;
  Fragment fragment;
};

struct Machine {
  DeviceShape shape{132, 227 * 1024, 228 * 1024};
  std::vector<DeviceShape> shapes;
  int device = 0;
  uint64_t order = 0;
  std::mt19937_64 random;
  int64_t launches = 0;
  std::string error;
  std::vector<std::unique_ptr<char[]>> stacks;
  // Of the block that runs:
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  unsigned block = 0;
  Guarded* shared = nullptr;
  Ordering ordering;
  jmp_buf scheduler;
  sigjmp_buf fault;
};

Machine machine;

[[noreturn]] void fail(const std::string& what) {
  machine.error = "block " + std::to_string(machine.block) +
      (machine.current ? ", thread " + std::to_string(machine.current->index) : "") + ": " + what;
  siglongjmp(machine.fault, 1);
}

void on_fault(int, siginfo_t* info, void*) {
  char text[96];
  snprintf(text, sizeof text, "touches memory that is not its own, at %p", info->si_addr);
  fail(text);
}

// Back to the scheduler until this thread is chosen again.
__attribute__((noinline)) void wait() {
  if (_setjmp(machine.current->where) == 0) _longjmp(machine.scheduler, 1);
}

void enter() {
  (*machine.body)();
  machine.current->state = State::kDone;
  _longjmp(machine.scheduler, 1);
}

__attribute__((noinline)) void resume(Fiber& fiber) {
  machine.current = &fiber;
  if (_setjmp(machine.scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.where, 1);
    fiber.started = true;
    setcontext(&fiber.entry);
  }
  machine.current = nullptr;
}

std::vector<int> ordered(int count) {
  std::vector<int> order(count);
  for (int i = 0; i < count; i++) order[i] = machine.order == 1 ? count - 1 - i : i;
  if (machine.order > 1) std::shuffle(order.begin(), order.end(), machine.random);
  return order;
}

// All lanes are in an instruction of the warp: it happens.
void finish_warp_instruction(Fiber* lanes) {
  for (int i = 0; i < kWarp; i++) {
    if (lanes[i].state != State::kAtWarp || lanes[i].site != lanes[0].site)
      fail("the lanes of warp " + std::to_string(lanes[0].index / kWarp) +
           " are not together in an instruction that needs all of them");
    lanes[i].state = State::kReady;
  }
  if (!lanes[0].multiplies) {  // products order no memory
    std::vector<int> threads(kWarp);
    for (int i = 0; i < kWarp; i++) threads[i] = lanes[i].index;
    machine.ordering.meet(threads);
    return;
  }
  Fragment* fragments[kWarp];
  for (int i = 0; i < kWarp; i++) fragments[i] = &lanes[i].fragment;
  multiply(fragments, lanes[0].bfloat16);
}

// Run a warp as far as it goes without others; whether it went anywhere.
bool run_warp(Fiber* lanes) {
  bool went = false;
  const std::vector<int> order = ordered(kWarp);
  for (;;) {
    for (int i : order) {
      if (lanes[i].state != State::kReady) continue;
      resume(lanes[i]);
      went = true;
    }
    const bool any = std::any_of(
        lanes, lanes + kWarp, [](const Fiber& f) { return f.state == State::kAtWarp; });
    if (!any) return went;
    finish_warp_instruction(lanes);
  }
}

// Release the threads of every barrier that is complete; whether there was one.
bool release_barriers() {
  bool released = false;
  for (Fiber& first : machine.fibers) {
    if (first.state != State::kAtBlock) continue;
    std::vector<Fiber*> here;
    std::vector<int> of_warp(machine.fibers.size() / kWarp);
    for (Fiber& fiber : machine.fibers) {
      if (fiber.state != State::kAtBlock || fiber.name != first.name) continue;
      if (fiber.threads != first.threads) fail("threads count differently at one barrier");
      here.push_back(&fiber);
      of_warp[fiber.index / kWarp]++;
    }
    const size_t wanted = first.threads ? first.threads : machine.fibers.size();
    if (here.size() < wanted) continue;
    if (here.size() > wanted) fail("more threads than it counts are at a barrier");
    for (int count : of_warp)
      if (count % kWarp) fail("half a warp is at a barrier");
    std::vector<int> met;
    for (Fiber* fiber : here) {
      fiber->state = State::kReady;
      met.push_back(fiber->index);
    }
    machine.ordering.meet(met);
    released = true;
  }
  return released;
}

void run_block(int threads) {
  machine.fibers = std::vector<Fiber>(threads);
  while (machine.stacks.size() < static_cast<size_t>(threads))
    machine.stacks.emplace_back(new char[kStack]);
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = machine.fibers[i];
    fiber.index = i;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = machine.stacks[i].get();
    fiber.entry.uc_stack.ss_size = kStack;
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, enter, 0);
  }
  for (;;) {
    bool went = false;
    for (int warp : ordered(threads / kWarp)) went |= run_warp(&machine.fibers[warp * kWarp]);
    went |= release_barriers();
    const bool done = std::all_of(
        machine.fibers.begin(), machine.fibers.end(),
        [](const Fiber& f) { return f.state == State::kDone; });
    if (done) return;
    if (!went) fail("threads wait for each other at barriers that nobody completes");
  }
}

// Faults are caught on a stack of their own, because a fiber's may be what ran out.
struct FaultHandler {
  struct sigaction segv, bus;
  stack_t before;
  std::unique_ptr<char[]> stack{new char[64 * 1024]};
  FaultHandler() {
    stack_t own{};
    own.ss_sp = stack.get();
    own.ss_size = 64 * 1024;
    sigaltstack(&own, &before);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &segv);
    sigaction(SIGBUS, &action, &bus);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &segv, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    sigaltstack(&before, nullptr);
  }
};

}  // namespace

void use_device(const DeviceShape& shape, uint64_t order) {
  auto same = [&](const DeviceShape& s) { return std::memcmp(&s, &shape, sizeof s) == 0; };
  auto found = std::find_if(machine.shapes.begin(), machine.shapes.end(), same);
  machine.device = static_cast<int>(found - machine.shapes.begin());
  if (found == machine.shapes.end()) machine.shapes.push_back(shape);
  machine.shape = shape;
  machine.order = order;
  machine.random.seed(order);
  machine.launches = 0;
  machine.error.clear();
}

const std::string& last_error() { return machine.error; }
int64_t launches() { return machine.launches; }

cudaError_t run(
    int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& thread) {
  machine.launches++;
  const bool fits = shared_bytes <= static_cast<size_t>(machine.shape.block_shared);
  if (blocks < 1 || blocks > 0x7fffffff || threads % kWarp || threads > 1024 || !fits)
    return cudaErrorInvalidValue;
  const FaultHandler handler;
  Guarded shared(shared_bytes);
  machine.shared = &shared;
  machine.body = &thread;
  if (sigsetjmp(machine.fault, 1)) return cudaErrorLaunchFailure;
  for (int block : ordered(static_cast<int>(blocks))) {
    machine.block = static_cast<unsigned>(block);
    shared.spoil();
    machine.ordering.begin(threads, shared_bytes);
    run_block(threads);
  }
  return cudaSuccess;
}

Index thread_index() { return {static_cast<unsigned>(machine.current->index)}; }
Index block_index() { return {machine.block}; }
char* shared_bytes(uint32_t address, int size, bool write) {
  const Guarded& shared = *machine.shared;
  const uint32_t at = address - kSharedBase;
  if (address < kSharedBase || at + size > shared.size())
    fail("goes past the end of shared memory");
  if (at % size) fail("accesses shared memory off its alignment");
  const int other = machine.ordering.access(machine.current->index, at, size, write);
  if (other >= 0)
    fail("races with thread " + std::to_string(other) + " for byte " + std::to_string(at) +
         " of shared memory");
  return shared.data() + at;
}

void copy(uint32_t to, const void* from, int size, int bytes) {
  if (reinterpret_cast<uintptr_t>(from) % size || bytes < 0 || bytes > size)
    fail("copies from an address that is not aligned");
  std::memset(shared_bytes(to, size, true), 0xff, size);
  machine.ordering.begin_copy(machine.current->index, to - kSharedBase, size);
  machine.current->open.push_back({to, from, size, bytes});
}

void close_copies() {
  machine.current->closed.push_back(std::move(machine.current->open));
  machine.current->open.clear();
}

void await_copies(int pending) {
  auto& closed = machine.current->closed;
  for (; closed.size() > static_cast<size_t>(pending); closed.pop_front())
    for (const Copy& copy : closed.front()) {
      char* to = machine.shared->data() + (copy.to - kSharedBase);
      std::memcpy(to, copy.from, copy.bytes);
      std::memset(to + copy.bytes, 0, copy.size - copy.bytes);
      machine.ordering.end_copy(machine.current->index, copy.to - kSharedBase, copy.size);
    }
}

void wait_for_warp(const void* site) {
  machine.current->state = State::kAtWarp;
  machine.current->site = site;
  machine.current->multiplies = false;
  wait();
}

void wait_for_block(int name, int threads) {
  machine.current->state = State::kAtBlock;
  machine.current->name = name;
  machine.current->threads = threads;
  wait();
}

void multiply_tiles(
    const void* site, bool bfloat16, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
    uint32_t b1) {
  Fiber& fiber = *machine.current;
  std::copy(a, a + 4, fiber.fragment.a);
  std::copy(sum, sum + 4, fiber.fragment.sum);
  fiber.fragment.b[0] = b0, fiber.fragment.b[1] = b1;
  fiber.state = State::kAtWarp;
  fiber.site = site;
  fiber.multiplies = true;
  fiber.bfloat16 = bfloat16;
  wait();
  std::copy(fiber.fragment.sum, fiber.fragment.sum + 4, sum);
}

}  // namespace bitsweep::emulator

cudaError_t cudaGetDevice(int* device) {
  *device = bitsweep::emulator::machine.device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& shape = bitsweep::emulator::machine.shape;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = shape.multiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shape.shared; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shape.block_shared; break;
  }
  return cudaSuccess;
}
