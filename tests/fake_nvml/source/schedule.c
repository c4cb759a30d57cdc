// Reads the load schedules: piecewise constant, integrated exactly, on CLOCK_MONOTONIC.
#include "fake.h"

enum { WRITER_WAIT_NS = 20 * 1000, WRITER_GIVE_UP_NS = 2000 * 1000 * 1000 };

static struct schedule *schedule_of(const struct target *target) {
    struct schedule *schedules = (struct schedule *)(fake_control + 1);
    return &schedules[target->slot * SCHEDULES_PER_GPU + target->number + 1];
}

// Everything the schedule says at `time_ns`: the totals at the start of the running segment, plus its own part.
static void integrate(const struct schedule *schedule, uint64_t time_ns, struct totals *totals) {
    uint64_t low = 0, high = schedule->count;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (schedule->segments[middle].start_ns <= time_ns) low = middle;
        else high = middle;
    }
    const struct segment *segment = &schedule->segments[low];
    double seconds = time_ns > segment->start_ns ? (double)(time_ns - segment->start_ns) * 1e-9 : 0.0;
    double cycles = segment->values[VALUE_sm_clock_mhz] * 1e6 * seconds;
    uint64_t reasons = (uint64_t)segment->values[VALUE_event_reasons];

    totals->time_ns = time_ns;
    memcpy(totals->values, segment->values, sizeof totals->values);
    for (int value = 0; value < VALUE_COUNT; value++)
        totals->integrals[value] =
            segment->integrals[value] + segment->values[value] * (CYCLE_WEIGHTED[value] ? cycles : seconds);
    for (int reason = 0; reason < REASON_COUNT; reason++)
        totals->reason_seconds[reason] = segment->reason_seconds[reason] + (reasons >> reason & 1 ? seconds : 0.0);
}

// `time_ns` 0 means now. Now is read inside the sequence lock: a load that starts while it is being written is then
// never missed, and the totals agree to the last digit with what the test computes.
static void read_schedule(const struct target *target, uint64_t time_ns, struct totals *totals) {
    struct schedule *schedule = schedule_of(target);
    uint64_t give_up = fake_now_ns() + WRITER_GIVE_UP_NS;  // the writer may have been killed half way
    for (;;) {
        uint64_t before = __atomic_load_n(&schedule->sequence, __ATOMIC_ACQUIRE);
        uint64_t now = fake_now_ns();
        if (before % 2 == 0 || now > give_up) {
            integrate(schedule, time_ns ? time_ns : now, totals);
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (now > give_up || __atomic_load_n(&schedule->sequence, __ATOMIC_RELAXED) == before) return;
        } else {
            fake_sleep_ns(WRITER_WAIT_NS);
        }
    }
}

void fake_totals(const struct target *target, struct totals *totals) { read_schedule(target, 0, totals); }

void fake_totals_at(const struct target *target, uint64_t time_ns, struct totals *totals) {
    read_schedule(target, time_ns, totals);
}

double fake_value(const struct target *target, enum value value) {
    struct totals totals;
    fake_totals(target, &totals);
    return totals.values[value];
}
