// How a process notices that it is the child of a fork, in which no other thread exists.
//
// A mutex that another thread held stays locked in the child, and a condition variable that another
// thread waited on cannot be destroyed there. An owner of either compares NumForks() with its value
// when they were made, and does not touch them if it grew.
#ifndef FORERUN_CPP_UTIL_FORK_H_
#define FORERUN_CPP_UTIL_FORK_H_

namespace forerun {

// The number of forks between the first call in this process or an ancestor of it and now, along
// the line of descent.
int NumForks();

}  // namespace forerun

#endif  // FORERUN_CPP_UTIL_FORK_H_
