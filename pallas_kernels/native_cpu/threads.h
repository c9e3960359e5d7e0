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
    active_.store(size_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) generation_.notify_all();
    take(0);
    // Threads that were asleep may come late and find nothing: they must have left before `part` goes away.
    for (int spins = 0; active_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < kSpins) pause_cpu(); else std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 30000;  // about half a millisecond: longer than what XLA computes between two calls

  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void take(int thread) {
    for (int other = 0; other < size_; ++other) {
      Range& range = ranges_[(thread + other) % size_];
      for (int64_t i; (i = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) call_(function_, i);
    }
  }

  void work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < kSpins) { pause_cpu(); continue; }
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        generation_.wait(seen, std::memory_order_seq_cst);
        sleeping_.fetch_sub(1, std::memory_order_seq_cst);
      }
      ++seen;
      take(thread);
      active_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int size_;
  std::mutex busy_;
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<int> active_{0};
  std::vector<Range> ranges_;
  const void* function_ = nullptr;
  void (*call_)(const void*, int64_t) = nullptr;
};

}  // namespace jaxinfer
