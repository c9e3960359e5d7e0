// A pool of threads that waits spinning between the calls of a step: waking a thread takes longer than a small product.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace jaxinfer {

inline void pause_cpu() { __builtin_ia32_pause(); }

// Runs the parts of one job at a time on every thread; a second job that comes meanwhile runs on its caller's thread
// alone (virtual devices call at the same time).
class ThreadPool {
 public:
  explicit ThreadPool(int threads) : size_(threads), ranges_(threads) {
    for (int i = 1; i < threads; ++i) std::thread([this, i] { work(i); }).detach();  // they live as long as the process
  }

  int size() const { return size_; }

  // Calls part(i) for i in 0..count-1 and returns when all are done. Each thread has a range of its own, in order, so that
  // what it reads lies in a row; who is done early helps the others.
  template <class F>
  void run(int64_t count, const F& part) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (count <= 1 || size_ <= 1 || !lock.owns_lock()) {
      for (int64_t i = 0; i < count; ++i) part(i);
      return;
    }
    call_ = [](const void* f, int64_t i) { (*static_cast<const F*>(f))(i); };
    function_ = &part;
    for (int i = 0; i < size_; ++i) {
      ranges_[i].next.store(count * i / size_, std::memory_order_relaxed);
      ranges_[i].end = count * (i + 1) / size_;
    }
    const uint32_t next = (state_.load(std::memory_order_relaxed) & ~kInside) + kJob;
    state_.store(next | kOpen, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) state_.notify_all();
    take(0);
    // Nobody may begin from here on, and `part` goes away when those inside have left. Who never came, since the machine
    // gave the core to somebody else, is not waited for: the others have done its parts.
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; (state_.load(std::memory_order_acquire) & kInside) != 0; ++spins) rest(spins);
  }

 private:
  static constexpr int kSpins = 30000;  // about half a millisecond: longer than what XLA computes between two calls
  static constexpr int kYield = 64;     // so often a waiting thread offers its core to whoever else wants it

  // The state: how many threads are inside the job, whether more may enter, and the job's number.
  static constexpr uint32_t kInside = 0xFFF, kOpen = 0x1000, kJob = 0x2000;

  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  static void rest(int spins) {
    if (spins % kYield == kYield - 1) std::this_thread::yield(); else pause_cpu();
  }

  void take(int thread) {
    for (int other = 0; other < size_; ++other) {
      Range& range = ranges_[(thread + other) % size_];
      for (int64_t i; (i = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) call_(function_, i);
    }
  }

  void work(int thread) {
    uint32_t last = 0;  // the job that this thread has seen
    for (;;) {
      uint32_t state = await(last);
      last = state / kJob;
      while (state & kOpen && state / kJob == last) {
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
        take(thread);
        state_.fetch_sub(1, std::memory_order_release);
        break;
      }
    }
  }

  // The state when another job than `last` is there.
  uint32_t await(uint32_t last) {
    for (int spins = 0;; ++spins) {
      const uint32_t state = state_.load(std::memory_order_acquire);
      if (state / kJob != last) return state;
      if (spins < kSpins) { rest(spins); continue; }
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
      state_.wait(state, std::memory_order_seq_cst);
      sleeping_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  const int size_;
  std::mutex busy_;
  std::atomic<uint32_t> state_{0};
  std::atomic<int> sleeping_{0};
  std::vector<Range> ranges_;
  const void* function_ = nullptr;
  void (*call_)(const void*, int64_t) = nullptr;
};

}  // namespace jaxinfer
