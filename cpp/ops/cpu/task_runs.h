// How neighbouring tasks that stream memory are shared by threads.
#ifndef FORERUN_CPP_OPS_CPU_TASK_RUNS_H_
#define FORERUN_CPP_OPS_CPU_TASK_RUNS_H_

#include <algorithm>

namespace forerun {

// Splits tasks into runs: a long one for every thread first, so that it streams, then runs of
// `short_tasks` that even out the ends.
struct TaskRuns {
  TaskRuns(int num_tasks_, int num_threads, int short_tasks_)
      : num_tasks(num_tasks_),
        num_long(num_threads),
        long_tasks(num_tasks_ * 3 / 4 / num_threads / 4 * 4),
        short_tasks(short_tasks_) {
    if (long_tasks == 0) num_long = 0;
    const int num_left = num_tasks - num_long * long_tasks;
    num_runs = num_long + (num_left + short_tasks - 1) / short_tasks;
  }

  int begin(int run) const {
    return run < num_long ? run * long_tasks
                          : num_long * long_tasks + (run - num_long) * short_tasks;
  }
  int end(int run) const {
    return std::min(num_tasks, begin(run) + (run < num_long ? long_tasks : short_tasks));
  }

  int num_tasks, num_long, long_tasks, short_tasks, num_runs;
};

}  // namespace forerun

#endif  // FORERUN_CPP_OPS_CPU_TASK_RUNS_H_
