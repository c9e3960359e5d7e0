// Runs many small jobs on a pool of more threads than cores, from two callers at once, and fails unless every part of
// every job ran once before its job returned.
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "threads.h"

namespace {

void call(jaxinfer::ThreadPool& pool, int jobs, int caller) {
  for (int job = 0; job < jobs; ++job) {
    // A new array for each job: a thread that comes late would write where nothing is any more.
    std::vector<int64_t> done((job * 7 + caller) % 23, 0);
    pool.run(done.size(), [&](int64_t i) { done[i] += job + 1; });
    const int64_t expected = (job + 1) * static_cast<int64_t>(done.size());
    if (std::accumulate(done.begin(), done.end(), int64_t{0}) != expected) {
      std::printf("caller %d, job %d of %zu parts\n", caller, job, done.size());
      std::_Exit(1);
    }
    if (job % 1000 == 999) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the others fall asleep
  }
}

}  // namespace

int main(int, char** arguments) {
  jaxinfer::ThreadPool pool(std::atoi(arguments[1]));
  std::thread other([&] { call(pool, std::atoi(arguments[2]), 1); });
  call(pool, std::atoi(arguments[2]), 0);
  other.join();
  std::_Exit(0);  // the pool's threads live as long as the process
}
