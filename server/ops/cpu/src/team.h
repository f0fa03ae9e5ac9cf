// Threads that go through the phases of a forward pass together.
#pragma once

#include <omp.h>

#include <atomic>
#include <chrono>
#include <memory>

// Between two looks at what another processor is to change.
inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Where all threads of a team wait for each other: spinning, and then asleep. On an idle machine the
// others are microseconds away; on a busy one a thread that spun on would keep them from running.
class Barrier {
   public:
    explicit Barrier(int size) : size_(size) {}

    void wait() {
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            round_.notify_all();
            return;
        }
        const auto patience = std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicroseconds);
        do {
            for (int i = 0; i < 32; ++i) {
                if (round_.load(std::memory_order_acquire) != round) return;
                relax();
            }
        } while (std::chrono::steady_clock::now() < patience);
        round_.wait(round, std::memory_order_acquire);
    }

   private:
    static constexpr int kSpinMicroseconds = 100;

    const int size_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
};

// Counters of the work that each thread was given, two sets in turn.
class Team {
   public:
    explicit Team(int size) : size(size), barrier_(size), counters_(new Counter[2 * size]) {}

    const int size;

   private:
    friend class Member;
    struct alignas(64) Counter {
        std::atomic<int> next{0};
    };
    Barrier barrier_;
    std::unique_ptr<Counter[]> counters_;
};

// One thread of a team, inside a parallel region.
class Member {
   public:
    Member(Team& team, int rank) : team_(team), rank_(rank) {}

    // Run body(task) for every task below `tasks`, by all threads, and wait for all. Each thread
    // begins with its own share, in order, and then helps the others: a thread that the operating
    // system holds up does not hold up the rest.
    template <class Body>
    void share(int tasks, const Body& body) {
        Team::Counter* counters = team_.counters_.get() + phase_ % 2 * team_.size;
        for (int step = 0; step < team_.size; ++step) {
            const int owner = (rank_ + step) % team_.size;
            const int begin = first(tasks, owner), end = first(tasks, owner + 1);
            for (;;) {
                const int task = begin + counters[owner].next.fetch_add(1, std::memory_order_relaxed);
                if (task >= end) break;
                body(task);
            }
        }
        ++phase_;
        team_.barrier_.wait();
        // no thread looks at this set again before the next phase, which all enter after this line, ends
        counters[rank_].next.store(0, std::memory_order_relaxed);
    }

   private:
    int first(int tasks, int rank) const { return int(int64_t(tasks) * rank / team_.size); }

    Team& team_;
    const int rank_;
    int phase_ = 0;
};
