#include "cuda/emulation/fibers.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || defined(FORERUN_EMULATION_UCONTEXT)
#define FORERUN_EMULATION_SWITCH_BY_UCONTEXT
#include <ucontext.h>
#endif

namespace forerun::emulation {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr std::size_t kGuardBytes = 4096;  // closed, below each stack
constexpr std::size_t kStride = kStackBytes + kGuardBytes;

char* g_stacks = nullptr;

char* StackOf(unsigned thread) { return g_stacks + thread * kStride + kGuardBytes; }

void MapStacks() {
  if (g_stacks != nullptr) return;
  void* mapped = mmap(nullptr, kMaxThreads * kStride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  g_stacks = static_cast<char*>(mapped);
  for (unsigned thread = 0; thread < kMaxThreads; ++thread) {
    mprotect(StackOf(thread) - kGuardBytes, kGuardBytes, PROT_NONE);
  }
}

// ---- The switch itself. swapcontext makes a system call each way, hence the assembly.
#if defined(FORERUN_EMULATION_SWITCH_BY_UCONTEXT)
ucontext_t g_contexts[kMaxThreads + 1];

void PrepareContext(unsigned thread, void (*entry)()) {
  ucontext_t& context = g_contexts[thread];
  getcontext(&context);
  context.uc_stack.ss_sp = StackOf(thread);
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
void SwitchContext(unsigned from, unsigned to) { swapcontext(&g_contexts[from], &g_contexts[to]); }
#else
extern "C" void forerun_emulation_switch(void** saved_stack, void* next_stack);
asm(R"(
.text
.type forerun_emulation_switch, @function
.hidden forerun_emulation_switch
.globl forerun_emulation_switch
forerun_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size forerun_emulation_switch, .-forerun_emulation_switch
)");

void* g_contexts[kMaxThreads + 1];  // stack pointers, with the saved registers on top

void PrepareContext(unsigned thread, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(StackOf(thread) + kStackBytes);
  *--top = nullptr;  // the alignment that a function expects at its entry
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  g_contexts[thread] = top;
}
void SwitchContext(unsigned from, unsigned to) {
  forerun_emulation_switch(&g_contexts[from], g_contexts[to]);
}
#endif

// ---- AddressSanitizer must hear of each change of stack.
#if defined(__SANITIZE_ADDRESS__)
void* g_fake_stacks[kMaxThreads + 1];
unsigned g_previous = kHost;
// The host thread that runs the kernel may be another one each time.
const void* g_host_stack = nullptr;
std::size_t g_host_stack_bytes = 0;

void AnnounceSwitch(unsigned from, unsigned to, bool ends) {
  g_previous = from;
  __sanitizer_start_switch_fiber(ends ? nullptr : &g_fake_stacks[from],
                                 to == kHost ? g_host_stack : StackOf(to),
                                 to == kHost ? g_host_stack_bytes : kStackBytes);
}
void Arrived(void* fake_stack) {
  const void* stack = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
  if (g_previous == kHost) {
    g_host_stack = stack;
    g_host_stack_bytes = bytes;
  }
}
#endif

}  // namespace

void PrepareFiber(unsigned thread, void (*entry)()) {
  MapStacks();
#if defined(__SANITIZE_ADDRESS__)
  // A thread that was given up leaves its stack poisoned.
  ASAN_UNPOISON_MEMORY_REGION(StackOf(thread), kStackBytes);
  g_fake_stacks[thread] = nullptr;
#endif
  PrepareContext(thread, entry);
}

void SwitchFiber(unsigned from, unsigned to, [[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
  AnnounceSwitch(from, to, ends);
  SwitchContext(from, to);
  Arrived(g_fake_stacks[from]);
#else
  SwitchContext(from, to);
#endif
}

void ArriveInFiber() {
#if defined(__SANITIZE_ADDRESS__)
  Arrived(nullptr);
#endif
}

unsigned OwnerOfStack(const void* address) {
  const auto offset = static_cast<std::size_t>(static_cast<const char*>(address) - g_stacks);
  if (g_stacks == nullptr || offset >= kMaxThreads * kStride) return kHost;
  return static_cast<unsigned>(offset / kStride);
}

}  // namespace forerun::emulation
