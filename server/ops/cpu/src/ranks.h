// Ranks of a split model: processes of one host that tell each other what they have computed, in memory that all of
// them have mapped.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "team.h"

// Which of the ranks this is; all zero for a model in one piece. `memory` was zeros when the ranks began, and holds
// first a flag, which anybody may set: a rank is gone. Then, for each rank, how often it was at a meeting. Then, twice,
// a place of `room` floats for each rank.
struct Ranks {
    int32_t rank, count;
    int64_t room;
    void* memory;
};

// Exchanges what ranks have computed, piece by piece: each puts its part in its own place, they meet, and all read all
// parts. The places are used in turn: whoever is at the next meeting has read what was put before the last one, so
// that nothing is overwritten that somebody still reads.
class Exchange {
   public:
    explicit Exchange(const Ranks& ranks) : ranks_(ranks) {}

    bool split() const { return ranks_.count > 1; }
    int rank() const { return ranks_.rank; }
    int count() const { return ranks_.count; }
    // Rows of so many numbers that a place has room for.
    int rows(int64_t width) const { return int(ranks_.room / width); }
    // Where this rank puts its part before the next meeting.
    float* own() const { return place(meetings_ + 1, ranks_.rank); }
    // What a rank had put when they met last.
    const float* of(int rank) const { return place(meetings_, rank); }
    // Whether a rank is gone: what was computed since is of no use.
    bool broken() const { return word(0).load(std::memory_order_relaxed) != 0; }

    // Wait until all ranks are here. By one thread, after and before all others use own() and of().
    void meet() {
        const uint32_t meeting = uint32_t(++meetings_);
        word(1 + ranks_.rank).store(meeting, std::memory_order_release);
        for (int rank = 0; rank < ranks_.count; ++rank) await(word(1 + rank), meeting);
    }

   private:
    static constexpr int kLine = 64;
    static constexpr int kSpinMicroseconds = 200, kNapMicroseconds = 50;

    std::atomic<uint32_t>& word(int line) const {
        return *reinterpret_cast<std::atomic<uint32_t>*>(static_cast<char*>(ranks_.memory) + line * kLine);
    }

    float* place(uint64_t meeting, int rank) const {
        char* places = static_cast<char*>(ranks_.memory) + (1 + ranks_.count) * kLine;
        return reinterpret_cast<float*>(places) + (int64_t(meeting % 2) * ranks_.count + rank) * ranks_.room;
    }

    // The other one is microseconds away, or has no processor: then this thread's is free for it.
    void await(const std::atomic<uint32_t>& met, uint32_t meeting) const {
        const auto there = [&] { return int32_t(met.load(std::memory_order_acquire) - meeting) >= 0; };
        const auto patience = std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicroseconds);
        do {
            for (int i = 0; i < 64; ++i) {
                if (there()) return;
                relax();
            }
            std::this_thread::yield();
        } while (std::chrono::steady_clock::now() < patience);
        while (!there() && !broken()) std::this_thread::sleep_for(std::chrono::microseconds(kNapMicroseconds));
    }

    const Ranks ranks_;
    uint64_t meetings_ = 0;
};
